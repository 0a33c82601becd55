//! Endpoints that come, go and change while the balancer serves.

mod support;

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::process::{Command, Output};

use pointsman::status::Endpoint as Shown;
use support::policy::Traffic;
use support::udp::{Asker, Server};
use support::{Balancer, Client, Endpoint, POINTSMAN, ask_once, eventually, raw};

fn config(endpoints: &[SocketAddr], listener: &str, cluster: &str) -> String {
    raw::config("workers = 2", listener, endpoints) + cluster + "\n"
}

fn run(balancer: &Balancer, arguments: &[&str]) -> Output {
    let mut command = Command::new(POINTSMAN);
    command.arg("endpoint").args(arguments).arg("--admin").arg(balancer.socket());
    command.output().expect("the binary runs")
}

fn endpoint(balancer: &Balancer, arguments: &[&str]) -> Vec<Shown> {
    let output = run(balancer, &[arguments, &["--json"]].concat());
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{arguments:?}: {said}");
    serde_json::from_slice(&output.stdout).expect("endpoints")
}

fn shown(balancer: &Balancer, address: &str) -> Option<Shown> {
    endpoint(balancer, &["list", "web"]).into_iter().find(|one| one.address == address)
}

fn who_answers(address: SocketAddr) -> BTreeSet<SocketAddr> {
    (0..20).filter_map(|_| ask_once(address).ok()).collect()
}

#[test]
fn an_endpoint_that_is_added_serves_and_one_that_is_removed_keeps_its_flows() {
    let (old, new) = (Endpoint::start(), Endpoint::start());
    let balancer = Balancer::start(&config(&[old.address], "", ""));
    let web = balancer.address("web");
    let (old_name, new_name) = (old.address.to_string(), new.address.to_string());
    let mut client = Client::connect(web).expect("a connection");
    assert_eq!(client.ask("before").expect("an answer"), old.address);

    let listed = endpoint(&balancer, &["add", "web", &new_name, "--weight", "4"]);
    assert_eq!((listed.len(), listed[1].weight, listed[1].up), (2, 4, true));
    eventually("both serve", || who_answers(web).len() == 2);

    let listed = endpoint(&balancer, &["remove", "web", &old_name]);
    assert!(listed[1].removed && !listed[0].removed, "{listed:?}");
    assert_eq!(listed[1].flows_active, 1);
    eventually("the new one serves alone", || who_answers(web) == BTreeSet::from([new.address]));
    assert_eq!(client.ask("after").expect("an answer"), old.address);
    let flows =
        format!("pointsman_endpoint_flows_active{{cluster=\"web\",endpoint=\"{old_name}\"}}");
    assert!((balancer.metric(&flows) - 1.0).abs() < f64::EPSILON);

    drop(client);
    eventually("it is forgotten", || !balancer.metrics().contains(&old_name));
    assert!(shown(&balancer, &old_name).is_none());
}

#[test]
fn flows_of_an_endpoint_that_is_removed_are_reset_where_the_listener_says_so() {
    let (gone, stays) = (Endpoint::start(), Endpoint::start());
    let text = config(&[gone.address, stays.address], "on_endpoint_down = \"reset\"", "");
    let balancer = Balancer::start(&text);
    let web = balancer.address("web");
    let of = |wanted: SocketAddr| {
        let mut clients = (0..100).map(|_| Client::connect(web).expect("a connection"));
        clients.find_map(|mut client| {
            (client.ask("who").expect("an answer") == wanted).then_some(client)
        })
    };
    let mut lost = of(gone.address).expect("a flow");
    let mut kept = of(stays.address).expect("a flow");
    endpoint(&balancer, &["remove", "web", &gone.address.to_string()]);
    assert!(lost.is_ended());
    assert_eq!(kept.ask("still").expect("an answer"), stays.address);
}

#[test]
fn flows_of_datagrams_go_elsewhere_when_their_endpoint_is_removed() {
    let (first, second) = (Server::start(), Server::start());
    let listener = "protocol = \"udp\"\non_endpoint_down = \"reallocate\"";
    let balancer = Balancer::start(&config(&[first.address], listener, ""));
    let client = Asker::new("127.0.0.1", balancer.address("web"));
    assert_eq!(client.ask(b"before"), first.address);
    endpoint(&balancer, &["add", "web", &second.address.to_string()]);
    assert_eq!(client.ask(b"still"), first.address);
    endpoint(&balancer, &["remove", "web", &first.address.to_string()]);
    assert_eq!(client.insist(b"after"), second.address);
}

#[test]
fn an_endpoint_that_drains_keeps_its_flows_and_shows_how_many() {
    let (one, other) = (Endpoint::start(), Endpoint::start());
    let listener = "on_endpoint_down = \"reset\"";
    let balancer = Balancer::start(&config(&[one.address], listener, ""));
    let web = balancer.address("web");
    let name = one.address.to_string();
    let mut client = Client::connect(web).expect("a connection");
    assert_eq!(client.ask("before").expect("an answer"), one.address);
    endpoint(&balancer, &["add", "web", &other.address.to_string()]);
    endpoint(&balancer, &["drain", "web", &name]);
    eventually("nothing new comes", || who_answers(web) == BTreeSet::from([other.address]));
    assert_eq!(client.ask("during").expect("an answer"), one.address);
    let drained = shown(&balancer, &name).expect("it is there");
    assert_eq!((drained.draining, drained.up, drained.flows_active), (true, true, 1));
    let draining = format!("pointsman_endpoint_draining{{cluster=\"web\",endpoint=\"{name}\"}}");
    assert!((balancer.metric(&draining) - 1.0).abs() < f64::EPSILON);
    endpoint(&balancer, &["undrain", "web", &name]);
    eventually("it serves again", || who_answers(web).len() == 2);
}

#[test]
fn another_weight_changes_the_shares() {
    let (one, other) = (Endpoint::start(), Endpoint::start());
    let text = config(&[one.address, other.address], "", "").replace("workers = 2", "workers = 1");
    let balancer = Balancer::start(&text);
    let web = balancer.address("web");
    endpoint(&balancer, &["weight", "web", &one.address.to_string(), "3"]);
    eventually("three of four flows are its own", || {
        let answers: Vec<_> = (0..40).filter_map(|_| ask_once(web).ok()).collect();
        answers.iter().filter(|address| **address == one.address).count() == 30
    });
}

#[test]
fn one_that_is_added_is_checked_before_it_gets_flows_and_no_longer_when_it_is_gone() {
    let old = Endpoint::start();
    let health = "health = { interval_ms = 200, rise = 1, fall = 1 }";
    let balancer = Balancer::start(&config(&[old.address], "", health));
    let web = balancer.address("web");
    // A port that was free a moment ago: nobody serves there yet.
    let place = Endpoint::start().address;
    let listed = endpoint(&balancer, &["add", "web", &place.to_string()]);
    assert!(!listed[1].up);
    for _ in 0..20 {
        assert_eq!(ask_once(web).expect("an answer"), old.address);
    }
    let new = Endpoint::start_at(place);
    eventually("it is checked and serves", || balancer.is_up(place));
    eventually("both serve", || who_answers(web).len() == 2);
    endpoint(&balancer, &["remove", "web", &place.to_string()]);
    drop(new);
    let went_down = |log: &str| log.matches("endpoint is down").count();
    assert_eq!(went_down(&balancer.log()), 0);
    endpoint(&balancer, &["add", "web", &place.to_string()]);
    assert!(!balancer.is_up(place), "what was seen of it before counts no more");
}

#[test]
fn a_command_is_carried_out_for_all_endpoints_or_for_none() {
    let old = Endpoint::start();
    let balancer = Balancer::start(&config(&[old.address], "", ""));
    let before = balancer.status().generation;
    let refused = |arguments: &[&str], lines: usize, expected: &str| {
        let output = run(&balancer, arguments);
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{arguments:?}: {said}");
        assert_eq!(said.lines().count(), lines, "{said}");
        assert!(said.lines().all(|line| line.starts_with("error: ")), "{said}");
        assert!(said.contains(expected), "{said}");
    };
    let old_name = old.address.to_string();
    refused(&["add", "web", "127.0.0.1:1", &old_name], 1, "already");
    refused(&["drain", "web", &old_name, "127.0.0.1:1", "127.0.0.1:2"], 2, "has no endpoint");
    refused(&["add", "web", "localhost:80", "127.0.0.1"], 2, "names are not resolved");
    refused(&["remove", "web", &old_name], 1, "would have no endpoint left");
    refused(&["weight", "web", &old_name, "0"], 1, "or drain the endpoint");
    refused(&["list", "wbe"], 1, "did you mean \"web\"?");
    assert_eq!(balancer.status().generation, before);
    assert_eq!(endpoint(&balancer, &["list", "web"]).len(), 1);
}

#[test]
fn what_is_no_request_is_refused_with_what_to_send() {
    let old = Endpoint::start();
    let balancer = Balancer::start(&config(&[old.address], "", ""));
    let path = "/v1/clusters/web/endpoints";
    for body in
        [&b""[..], b"{", b"[]", b"{\"addresses\": 1}", b"{\"addresses\": [], \"x\": 1}", b"\xff"]
    {
        let (code, said) = balancer.post(path, body);
        assert_eq!(code, 400, "{said}");
        assert!(said.contains("send JSON such as"), "{said}");
    }
    let (code, _) = balancer.post("/v1/clusters/other/endpoints", b"{\"addresses\": []}");
    assert_eq!(code, 404);
}

#[test]
fn no_request_fails_while_endpoints_come_and_go() {
    let stays = Endpoint::start();
    let others: Vec<_> = (0..3).map(|_| Endpoint::start()).collect();
    let names: Vec<_> = others.iter().map(|other| other.address.to_string()).collect();
    let balancer = Balancer::start(&config(&[stays.address], "", ""));
    let web = balancer.address("web");
    let mut client = Client::connect(web).expect("a connection");
    assert_eq!(client.ask("before").expect("an answer"), stays.address);
    let load = Traffic::start(web, 4);
    let all: Vec<&str> = names.iter().map(String::as_str).collect();
    for _ in 0..10 {
        endpoint(&balancer, &[&["add", "web"], &all[..]].concat());
        endpoint(&balancer, &["weight", "web", all[0], "5"]);
        endpoint(&balancer, &["drain", "web", all[1], all[2]]);
        endpoint(&balancer, &[&["remove", "web"], &all[..]].concat());
    }
    assert!(load.stop() > 0, "there was traffic");
    assert_eq!(client.ask("after").expect("an answer"), stays.address);
    eventually("everybody is forgotten", || endpoint(&balancer, &["list", "web"]).len() == 1);
}

#[test]
fn one_that_waits_for_its_first_check_is_shown_as_being_checked() {
    let (old, silent) = (Endpoint::start(), raw::Origin::start());
    // The check is answered by nobody, and takes longer than the test.
    let checks = "health = { kind = \"http\", timeout_ms = 600000, interval_ms = 600000 }";
    let balancer = Balancer::start(&config(&[old.address], "", checks));
    let name = silent.address().to_string();
    let listed = endpoint(&balancer, &["add", "web", &name]);
    assert_eq!((listed[1].up, listed[1].checking), (false, true));
    let shown = run(&balancer, &["list", "web"]).stdout;
    assert!(String::from_utf8_lossy(&shown).contains(" checking "));
    let up = format!("pointsman_endpoint_up{{cluster=\"web\",endpoint=\"{name}\"}}");
    assert_eq!(balancer.metric(&up), 0.0);
}

#[test]
fn those_who_serve_are_not_removed_from_before_their_backups() {
    let (own, backup) = (Endpoint::start(), Endpoint::start());
    let balancer = Balancer::start(&config(&[own.address], "", ""));
    endpoint(&balancer, &["add", "web", &backup.address.to_string(), "--backup"]);
    let refused = run(&balancer, &["remove", "web", &own.address.to_string()]);
    assert_eq!(refused.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&refused.stderr).contains("would have backups alone"));
    assert_eq!(ask_once(balancer.address("web")).expect("an answer"), own.address);
}
