//! Endpoints that come back, or are added, and whose share grows until it is whole.

mod support;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::process::Command;

use support::{Balancer, Endpoint, POINTSMAN, ask_once, eventually, raw};

/// Longer than any test.
const FOR_EVER: &str = "slow_start_ms = 600000000";

/// One worker, so that the smooth order of all flows is one.
fn start(endpoints: &[SocketAddr], cluster: &str) -> Balancer {
    Balancer::start(&(raw::config("workers = 1", "", endpoints) + cluster + "\n"))
}

fn add(balancer: &Balancer, address: SocketAddr) {
    let mut command = Command::new(POINTSMAN);
    command.args(["endpoint", "add", "web", &address.to_string(), "--admin"]);
    let output = command.arg(balancer.socket()).output().expect("the binary runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

fn percent(balancer: &Balancer, address: SocketAddr) -> u32 {
    let (status, address) = (balancer.status(), address.to_string());
    let found = status.clusters[0].endpoints.iter().find(|endpoint| endpoint.address == address);
    found.expect("the endpoint").weight_percent
}

/// How many of so many flows each endpoint has answered.
fn answers(web: SocketAddr, flows: usize) -> BTreeMap<SocketAddr, usize> {
    let mut answers = BTreeMap::new();
    for _ in 0..flows {
        *answers.entry(ask_once(web).expect("an answer")).or_default() += 1;
    }
    answers
}

#[test]
fn an_endpoint_that_is_added_begins_with_a_tenth_of_its_share() {
    let (old, new) = (Endpoint::start(), Endpoint::start());
    let balancer = start(&[old.address], FOR_EVER);
    assert_eq!(percent(&balancer, old.address), 100, "nobody is new at the start");
    add(&balancer, new.address);
    assert_eq!((percent(&balancer, old.address), percent(&balancer, new.address)), (100, 10));
    let expected = BTreeMap::from([(old.address, 40), (new.address, 4)]);
    assert_eq!(answers(balancer.address("web"), 44), expected);
    assert!(balancer.log().contains("endpoint is added"));
    let ratio = balancer.metric(&format!(
        "pointsman_endpoint_weight_percent{{cluster=\"web\",endpoint=\"{}\"}}",
        new.address
    ));
    assert_eq!(ratio, 10.0);
}

#[test]
fn a_share_that_grows_is_whole_in_the_end() {
    let (old, new) = (Endpoint::start(), Endpoint::start());
    let balancer = start(&[old.address], "slow_start_ms = 500");
    add(&balancer, new.address);
    eventually("it has all of its weight", || percent(&balancer, new.address) == 100);
    let equal = BTreeMap::from([(old.address, 10), (new.address, 10)]);
    eventually("both have as much", || answers(balancer.address("web"), 20) == equal);
}

#[test]
fn an_endpoint_that_was_down_begins_with_a_tenth_and_the_others_keep_theirs() {
    let (stays, goes) = (Endpoint::start(), Endpoint::start());
    let checks = "health = { interval_ms = 50, rise = 1, fall = 1, timeout_ms = 5000 }\n";
    let balancer = start(&[stays.address, goes.address], &format!("{checks}{FOR_EVER}"));
    let address = goes.address;
    eventually("both are up", || balancer.is_up(address) && balancer.is_up(stays.address));
    assert_eq!(percent(&balancer, address), 100);
    drop(goes);
    eventually("it is down", || !balancer.is_up(address));
    let _back = Endpoint::start_at(address);
    eventually("it is up", || balancer.is_up(address));
    assert_eq!((percent(&balancer, stays.address), percent(&balancer, address)), (100, 10));
    let web = balancer.address("web");
    let expected = BTreeMap::from([(stays.address, 20), (address, 2)]);
    eventually("it has a tenth of a share", || answers(web, 22) == expected);
}
