//! Endpoints that may have so many flows at a time, and flows that wait for a place at one.

mod support;

use std::fmt::Write as _;
use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::process::Command;

use support::raw::{connect, refusing, reset, rest};
use support::udp::{Asker, Server};
use support::{Balancer, Client, Endpoint, POINTSMAN, eventually};

/// Endpoints with the flows that each may have.
fn config(workers: u32, listener: &str, endpoints: &[(SocketAddr, u32)], cluster: &str) -> String {
    let mut text = format!(
        "workers = {workers}\n[[listeners]]\nname = \"web\"\naddress = \"127.0.0.1:0\"\n\
         cluster = \"web\"\n{listener}\n[[clusters]]\nname = \"web\"\n{cluster}\nendpoints = ["
    );
    for (address, max_flows) in endpoints {
        let _ = write!(text, "{{ address = \"{address}\", max_flows = {max_flows} }}, ");
    }
    text + "]\n"
}

fn queued(balancer: &Balancer) -> f64 {
    balancer.metric("pointsman_cluster_queue_flows{cluster=\"web\"}")
}

/// A client that has sent a line, whether it is served or not.
fn ask(web: SocketAddr) -> TcpStream {
    let mut client = connect(web);
    client.write_all(b"hello\n").expect("it is sent");
    client
}

/// Waits for the answer to [`ask`].
fn is_answered(client: &mut TcpStream) -> bool {
    let mut byte = [0];
    client.read_exact(&mut byte).is_ok()
}

#[test]
fn an_endpoint_has_no_more_flows_than_it_may_and_the_others_have_the_rest() {
    let (small, large) = (Endpoint::start(), Endpoint::start());
    let endpoints = [(small.address, 2), (large.address, 0)];
    for policy in ["round-robin", "least-flows", "maglev"] {
        let text = config(2, "", &endpoints, &format!("policy = \"{policy}\""));
        let balancer = Balancer::start(&text);
        let web = balancer.address("web");
        let mut clients: Vec<_> = (0..12).map(|_| Client::connect(web).expect("one")).collect();
        let answered: Vec<_> =
            clients.iter_mut().map(|client| client.ask("who").expect("an answer")).collect();
        let by_small = answered.iter().filter(|address| **address == small.address).count();
        assert!(by_small <= 2, "{policy}: {by_small}");
        assert!(policy == "maglev" || by_small == 2, "{policy}: its places are used");
        let shown = &balancer.status().clusters[0].endpoints[0];
        assert_eq!((shown.flows_active as usize, shown.flows_max), (by_small, 2));
    }
}

#[test]
fn flows_that_find_no_place_wait_and_are_served_as_they_came_in_whatever_worker() {
    let endpoint = Endpoint::start();
    let queue = "queue = { max_flows = 20, timeout_ms = 600000 }";
    let balancer = Balancer::start(&config(3, "", &[(endpoint.address, 2)], queue));
    let web = balancer.address("web");
    let mut served = vec![ask(web), ask(web)];
    assert!(served.iter_mut().all(is_answered));
    let mut waiting = std::collections::VecDeque::new();
    for count in 1..=9 {
        waiting.push_back(ask(web));
        eventually("it waits", || queued(&balancer) == f64::from(count));
    }
    while let Some(mut next) = waiting.pop_front() {
        drop(served.pop());
        assert!(is_answered(&mut next), "the first who waits is the next to be served");
        assert_eq!(queued(&balancer), waiting.len() as f64, "and nobody else");
        served.push(next);
    }
    let metric = |name: &str| balancer.metric(&format!("pointsman_{name}{{cluster=\"web\"}}"));
    assert_eq!(metric("cluster_queued_total"), 9.0);
    assert!(metric("cluster_queued_seconds_total") > 0.0);
    drop(served);
    eventually("all have ended", || balancer.web("flows_active") == 0.0);
    assert_eq!(balancer.decisions("web", "native"), 11.0, "each is decided on once");
}

#[test]
fn a_retry_goes_back_to_the_endpoint_that_failed_it_only_where_no_other_has_a_place() {
    // As HAProxy does: the other may be full for long, and it may have been a moment's failure.
    let (_kept, refuses) = refusing();
    let good = Endpoint::start();
    let queue = "queue = { timeout_ms = 600000 }";
    let text = config(1, "connect_attempts = 2", &[(refuses, 9), (good.address, 1)], queue);
    let balancer = Balancer::start(&text);
    let web = balancer.address("web");
    let mut served = Client::connect(web).expect("a connection");
    assert_eq!(served.ask("who").expect("an answer"), good.address, "the other has a place");
    assert_eq!(rest(&mut connect(web)), Err(ErrorKind::ConnectionReset));
    eventually("it failed twice", || balancer.count("closes", "connect-failed") == 1.0);
    assert_eq!(balancer.metric("pointsman_cluster_queued_total{cluster=\"web\"}"), 0.0);
    served.ask("after").expect("the flow that is there goes on");
}

#[test]
fn more_places_serve_those_who_wait_at_once() {
    let endpoint = Endpoint::start();
    let queue = "queue = { timeout_ms = 600000 }";
    let balancer = Balancer::start(&config(2, "", &[(endpoint.address, 1)], queue));
    let web = balancer.address("web");
    let mut clients: Vec<_> = (0..5).map(|_| ask(web)).collect();
    eventually("four wait", || queued(&balancer) == 4.0);
    let mut command = Command::new(POINTSMAN);
    command.args(["endpoint", "max-flows", "web", &endpoint.address.to_string(), "5"]);
    let said = command.arg("--admin").arg(balancer.socket()).output().expect("the binary runs");
    assert!(said.status.success(), "{}", String::from_utf8_lossy(&said.stderr));
    assert!(String::from_utf8_lossy(&said.stdout).contains("/5"), "the limit is shown");
    assert!(clients.iter_mut().all(is_answered));
}

#[test]
fn a_client_that_goes_away_gives_back_its_room_in_the_queue() {
    let endpoint = Endpoint::start();
    let queue = "queue = { max_flows = 1, timeout_ms = 600000 }";
    let balancer = Balancer::start(&config(2, "", &[(endpoint.address, 1)], queue));
    let web = balancer.address("web");
    let mut served = ask(web);
    assert!(is_answered(&mut served));
    let gone = ask(web);
    eventually("it waits", || queued(&balancer) == 1.0);
    assert_eq!(rest(&mut connect(web)), Err(ErrorKind::ConnectionReset), "no more may wait");
    eventually("that is counted", || balancer.count("closes", "endpoints-full") == 1.0);
    reset(gone);
    eventually("its room is free", || queued(&balancer) == 0.0);
    let mut late = ask(web);
    eventually("another waits", || queued(&balancer) == 1.0);
    drop(served);
    assert!(is_answered(&mut late));
}

#[test]
fn whoever_waits_too_long_is_refused_under_that_name() {
    let endpoint = Endpoint::start();
    let queue = "queue = { timeout_ms = 30 }";
    let balancer = Balancer::start(&config(1, "", &[(endpoint.address, 1)], queue));
    let web = balancer.address("web");
    let mut served = Client::connect(web).expect("a connection");
    served.ask("before").expect("an answer");
    assert_eq!(rest(&mut connect(web)), Err(ErrorKind::ConnectionReset));
    eventually("that is counted", || balancer.count("closes", "queue-timeout") == 1.0);
    served.ask("after").expect("the flow that is there goes on");
}

#[test]
fn without_a_queue_flows_that_find_no_place_are_refused() {
    let endpoint = Endpoint::start();
    let balancer = Balancer::start(&config(2, "", &[(endpoint.address, 1)], ""));
    let web = balancer.address("web");
    let mut served = Client::connect(web).expect("a connection");
    served.ask("before").expect("an answer");
    for _ in 0..3 {
        assert_eq!(rest(&mut connect(web)), Err(ErrorKind::ConnectionReset));
    }
    eventually("they are counted", || balancer.count("closes", "endpoints-full") == 3.0);
    drop(served);
    eventually("it has ended", || balancer.web("flows_active") == 0.0);
    Client::connect(web).expect("a connection").ask("new").expect("there is a place again");
}

#[test]
fn datagrams_for_which_no_endpoint_has_a_place_are_shed() {
    let server = Server::start();
    let listener = "protocol = \"udp\"\nidle_timeout_ms = 600000";
    let balancer = Balancer::start(&config(2, listener, &[(server.address, 1)], ""));
    let web = balancer.address("web");
    let first = Asker::new("127.0.0.1", web);
    assert_eq!(first.ask(b"hello"), server.address);
    let second = Asker::new("127.0.0.1", web);
    second.send(b"hello");
    eventually("it is shed", || balancer.count("sheds", "endpoints-full") >= 1.0);
    assert_eq!(first.ask(b"again"), server.address);
    assert_eq!(balancer.web("flows_active"), 1.0);
}
