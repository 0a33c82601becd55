//! How a balancer ends: new clients at once, established flows in their own time.

mod support;

use std::os::unix::net::UnixDatagram;
use std::os::unix::process::ExitStatusExt;

use rustix::process::Signal;
use support::{Balancer, Client, Endpoint, GIVE_UP, eventually};

fn config(endpoint: &Endpoint, drain_timeout_ms: u64) -> String {
    format!(
        r#"
workers = 2
drain_timeout_ms = {drain_timeout_ms}
[[listeners]]
name = "web"
address = "127.0.0.1:0"
cluster = "web"
[[clusters]]
name = "web"
endpoints = [{{ address = "{}" }}]
"#,
        endpoint.address
    )
}

#[test]
fn a_drain_refuses_new_clients_and_lets_established_flows_finish() {
    for signal in [Signal::TERM, Signal::INT] {
        let endpoint = Endpoint::start();
        let mut balancer = Balancer::start(&config(&endpoint, 3_600_000));
        let web = balancer.address("web");
        let mut client = Client::connect(web).expect("a connection");
        client.ask("before").expect("an answer");

        balancer.signal(signal);
        eventually("new clients are refused", || Client::connect(web).is_err());
        for line in ["during", "a", "drain"] {
            assert_eq!(client.ask(line).expect("an answer"), endpoint.address);
        }
        let (code, _) =
            pointsman::client::request(&balancer.socket(), "/readyz").expect("an answer");
        assert_eq!(code, 503);
        assert!(!balancer.has_ended());

        let socket = balancer.socket();
        drop(client);
        assert_eq!(balancer.await_end().code(), Some(0));
        assert!(!socket.exists(), "the socket file is removed");
    }
}

#[test]
fn the_service_manager_hears_of_start_life_and_end() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("notify");
    let manager = UnixDatagram::bind(&path).expect("a manager");
    manager.set_read_timeout(Some(GIVE_UP)).expect("a timeout");
    let endpoint = Endpoint::start();
    let variables = [("NOTIFY_SOCKET", path.to_str().expect("text")), ("WATCHDOG_USEC", "200000")];
    let mut balancer = Balancer::start_with_environment(&config(&endpoint, 3_600_000), &variables);
    let next = || {
        let mut bytes = [0; 256];
        let length = manager.recv(&mut bytes).expect("a message");
        String::from_utf8_lossy(&bytes[..length]).into_owned()
    };
    assert_eq!([next(), next(), next()], ["READY=1", "WATCHDOG=1", "WATCHDOG=1"]);
    let mut client = Client::connect(balancer.address("web")).expect("a connection");
    client.ask("before").expect("an answer");
    balancer.signal(Signal::HUP);
    eventually("it reloads", || next().starts_with("RELOADING=1\nMONOTONIC_USEC="));
    eventually("it has reloaded", || next() == "READY=1");
    balancer.signal(Signal::TERM);
    eventually("it tells that it ends", || next() == "STOPPING=1");
    assert_eq!(next(), "WATCHDOG=1", "it lives as long as it drains");
    drop(client);
    assert_eq!(balancer.await_end().code(), Some(0));
}

#[test]
fn a_balancer_without_flows_ends_at_once() {
    let endpoint = Endpoint::start();
    let mut balancer = Balancer::start(&config(&endpoint, 3_600_000));
    balancer.signal(Signal::TERM);
    assert_eq!(balancer.await_end().code(), Some(0));
}

#[test]
fn flows_that_outlast_the_drain_are_closed() {
    let endpoint = Endpoint::start();
    let log = tempfile::NamedTempFile::new().expect("a file");
    let text = format!("{}[access_log]\npath = {:?}\n", config(&endpoint, 300), log.path());
    let mut balancer = Balancer::start(&text);
    let mut client = Client::connect(balancer.address("web")).expect("a connection");
    client.ask("before").expect("an answer");
    balancer.signal(Signal::TERM);
    assert!(client.is_ended());
    assert_eq!(balancer.await_end().code(), Some(0));
    let line = std::fs::read_to_string(log.path()).expect("the access log");
    let line: serde_json::Value = serde_json::from_str(&line).expect("one line of JSON");
    assert_eq!(line["reason"], "drain-timeout");
}

#[test]
fn a_second_signal_ends_the_process_at_once() {
    for (second, code) in [(Signal::TERM, 143), (Signal::INT, 130)] {
        let endpoint = Endpoint::start();
        let mut balancer = Balancer::start(&config(&endpoint, 3_600_000));
        let mut client = Client::connect(balancer.address("web")).expect("a connection");
        client.ask("before").expect("an answer");
        balancer.signal(Signal::TERM);
        eventually("it drains", || balancer.status().draining);
        balancer.signal(second);
        let status = balancer.await_end();
        assert_eq!((status.code(), status.signal()), (Some(code), None));
        assert!(!balancer.socket().exists(), "the socket file is removed");
    }
}
