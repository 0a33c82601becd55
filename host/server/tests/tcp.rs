//! What clients and endpoints see of each other through the balancer.

mod support;

use std::io::{Read, Write};
use std::net::Shutdown;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
use std::thread;

use rustix::process::{Pid, Signal, kill_process};
use support::raw::{
    Ends, Origin, config, connect, expect_pattern, refusing, reset, rest, send_pattern, silent,
};
use support::{Balancer, Client, Endpoint, eventually};

const MIB: u64 = 1024 * 1024;

fn sent(stream: &mut std::net::TcpStream, bytes: u64) {
    send_pattern(stream, bytes, &AtomicU64::new(0));
}

/// A balancer with one endpoint, and one flow through it.
fn one_flow() -> (Balancer, Origin, Ends) {
    let origin = Origin::start();
    let balancer = Balancer::start(&config("workers = 1", "", &[origin.address()]));
    let ends = origin.open(balancer.address("web"));
    (balancer, origin, ends)
}

#[test]
fn bytes_arrive_whole_both_ways_at_once() {
    let (balancer, _origin, Ends { client, server }) = one_flow();
    let bytes = 64 * MIB;
    thread::scope(|scope| {
        for stream in [&client, &server] {
            let mut writer = stream.try_clone().expect("a second handle");
            let mut reader = stream.try_clone().expect("a third handle");
            scope.spawn(move || sent(&mut writer, bytes));
            scope.spawn(move || expect_pattern(&mut reader, bytes));
        }
    });
    for direction in ["upstream", "downstream"] {
        let labels = format!("{{listener=\"web\",direction=\"{direction}\"}}");
        assert_eq!(balancer.metric(&format!("pointsman_bytes_total{labels}")), bytes as f64);
    }
}

#[test]
fn a_worker_tells_how_busy_it_is_and_what_it_has_left() {
    let (balancer, _origin, Ends { mut client, mut server }) = one_flow();
    sent(&mut client, 1000);
    expect_pattern(&mut server, 1000);
    for pool in ["small", "bulk", "datagrams"] {
        let of = |name: &str| balancer.metric(&format!("{name}{{worker=\"0\",pool=\"{pool}\"}}"));
        let (all, free) = (of("pointsman_buffers"), of("pointsman_buffers_free"));
        assert!(free <= all && (all > 0.0) == (pool != "datagrams"), "{pool}: {free} of {all}");
    }
    let of = |name: &str| balancer.metric(&format!("pointsman_{name}{{worker=\"0\"}}"));
    eventually("it serves one connection", || of("sessions") == 1.0);
    assert!(of("turn_seconds_count") > 1.0 && of("turn_seconds_sum") > 0.0);
    assert!(of("completions_total") > 1.0 && of("ring_enters_total") > 1.0);
    assert!(of("ring_requests") > 1.0, "it accepts and receives");
}

#[test]
fn requests_that_do_not_wait_for_answers_are_answered_in_order() {
    let (_balancer, _origin, Ends { mut client, mut server }) = one_flow();
    let requests = 1_000_u32;
    let answering = thread::spawn(move || {
        let mut request = [0; 4];
        while server.read_exact(&mut request).is_ok() {
            let answer = u32::from_le_bytes(request) + 1;
            server.write_all(&answer.to_le_bytes()).expect("it is sent");
        }
    });
    for number in 0..requests {
        client.write_all(&number.to_le_bytes()).expect("it is sent");
    }
    for number in 0..requests {
        let mut answer = [0; 4];
        client.read_exact(&mut answer).expect("an answer");
        assert_eq!(u32::from_le_bytes(answer), number + 1);
    }
    drop(client);
    answering.join().expect("the endpoint");
}

#[test]
fn a_side_that_has_said_everything_still_hears_everything() {
    for client_ends_first in [true, false] {
        let (balancer, _origin, Ends { client, server }) = one_flow();
        let (mut first, mut last) =
            if client_ends_first { (client, server) } else { (server, client) };
        sent(&mut first, MIB);
        first.shutdown(Shutdown::Write).expect("it is shut down");
        expect_pattern(&mut last, MIB);
        assert_eq!(rest(&mut last), Ok(0), "the end is passed on");
        let answering = thread::spawn(move || sent(&mut last, 8 * MIB));
        expect_pattern(&mut first, 8 * MIB);
        assert_eq!(rest(&mut first), Ok(0));
        answering.join().expect("the other side");
        eventually("the flow has finished", || balancer.count("closes", "finished") == 1.0);
    }
}

#[test]
fn a_reset_of_either_side_reaches_the_other() {
    for (from_client, reason) in [(true, "downstream-reset"), (false, "upstream-reset")] {
        let (balancer, _origin, mut ends) = one_flow();
        ends.exchange().expect("the flow works");
        let Ends { client, server } = ends;
        let (resets, mut hears) = if from_client { (client, server) } else { (server, client) };
        reset(resets);
        assert_eq!(rest(&mut hears), Err(std::io::ErrorKind::ConnectionReset));
        eventually("the reset is counted", || balancer.count("closes", reason) == 1.0);
    }
}

#[test]
fn a_reader_that_stalls_stops_its_sender_and_costs_little_memory() {
    let (balancer, origin, Ends { mut client, mut server }) = one_flow();
    let mut other = origin.open(balancer.address("web"));
    other.exchange().expect("the other flow works");
    let before = balancer.resident_kib();

    let bytes = 64 * MIB;
    let progress = Arc::new(AtomicU64::new(0));
    let counted = Arc::clone(&progress);
    let sending = thread::spawn(move || {
        send_pattern(&mut client, bytes, &counted);
        client
    });
    let (mut last, mut same) = (0, 0);
    eventually("the sender is stopped", || {
        let found = progress.load(SeqCst);
        same = if found == last && found > 0 { same + 1 } else { 0 };
        last = found;
        same == 50
    });
    assert!(last < bytes, "everything was taken, though nobody reads");
    let grown = balancer.resident_kib().saturating_sub(before);
    assert!(grown < 4 * 1024, "a stalled flow costs {grown} KiB");
    for _ in 0..100 {
        other.exchange().expect("the other flow goes on");
    }

    expect_pattern(&mut server, bytes);
    drop(sending.join().expect("the sender"));
    assert_eq!(rest(&mut server), Ok(0));
}

#[test]
fn an_endpoint_that_refuses_costs_a_flow_nothing_but_a_retry() {
    let (_refuses, refusing) = refusing();
    let endpoint = Endpoint::start();
    let balancer = Balancer::start(&config("workers = 1", "", &[refusing, endpoint.address]));
    let web = balancer.address("web");
    for _ in 0..10 {
        let mut client = Client::connect(web).expect("a connection");
        for line in ["one", "connection", "that works"] {
            assert_eq!(client.ask(line).expect("an answer"), endpoint.address);
        }
    }
    let retries = balancer.web("connect_retries_total");
    assert!(retries >= 1.0);
    assert_eq!(balancer.web("flows_total"), 10.0);
    assert_eq!(balancer.decisions("web", "native"), 10.0 + retries);
}

#[test]
fn a_flow_that_every_endpoint_refuses_is_reset() {
    let (refusals, addresses): (Vec<_>, Vec<_>) = (0..3).map(|_| refusing()).unzip();
    let balancer = Balancer::start(&config("workers = 1", "", &addresses));
    let mut client = connect(balancer.address("web"));
    assert_eq!(rest(&mut client), Err(std::io::ErrorKind::ConnectionReset));
    eventually("the flow is counted", || balancer.count("closes", "connect-failed") == 1.0);
    assert_eq!(balancer.web("connect_retries_total"), 2.0);
    assert_eq!(balancer.web("flows_active"), 0.0);
    drop(refusals);
}

#[test]
fn an_endpoint_that_never_answers_is_given_up_for_another() {
    let (_socket, _waiting, silent) = silent();
    let endpoint = Endpoint::start();
    let listener = "connect_timeout_ms = 200";
    let balancer = Balancer::start(&config("workers = 1", listener, &[silent, endpoint.address]));
    let mut client = Client::connect(balancer.address("web")).expect("a connection");
    assert_eq!(client.ask("is anybody there").expect("an answer"), endpoint.address);
    assert_eq!(balancer.web("connect_retries_total"), 1.0);
}

#[test]
fn an_endpoint_that_resets_before_it_had_anything_costs_a_flow_nothing_but_a_retry() {
    let (resets, endpoint) = (Origin::start(), Endpoint::start());
    let addresses = [resets.address(), endpoint.address];
    let balancer = Balancer::start(&config("workers = 1", "", &addresses));
    let mut client = Client::connect(balancer.address("web")).expect("a connection");
    reset(resets.accept());
    eventually("it is given up", || balancer.web("connect_retries_total") == 1.0);
    for line in ["one", "connection", "that works"] {
        assert_eq!(client.ask(line).expect("an answer"), endpoint.address);
    }
    drop(client);
    eventually("the flow has finished", || balancer.count("closes", "finished") == 1.0);
    assert_eq!(balancer.web("flows_total"), 1.0);
}

/// A balancer that stands still until this is dropped.
struct Stopped(Pid);

impl Stopped {
    fn new(balancer: &Balancer) -> Self {
        kill_process(balancer.pid(), Signal::STOP).expect("it is stopped");
        Self(balancer.pid())
    }
}

impl Drop for Stopped {
    fn drop(&mut self) {
        kill_process(self.0, Signal::CONT).expect("it goes on");
    }
}

/// Whether any connection to this port of 127.0.0.1 is established.
fn is_connected_to(port: u16) -> bool {
    let table = std::fs::read_to_string("/proc/net/tcp").expect("all connections");
    table.contains(&format!(" 0100007F:{port:04X} 01 "))
}

#[test]
fn bytes_that_come_when_the_endpoint_is_already_gone_are_served_by_another() {
    let (resets, endpoint) = (Origin::start(), Endpoint::start());
    let addresses = [resets.address(), endpoint.address];
    let balancer = Balancer::start(&config("workers = 1", "", &addresses));
    let Ends { mut client, server } = resets.open(balancer.address("web"));
    let stopped = Stopped::new(&balancer);
    reset(server);
    let port = resets.address().port();
    eventually("the reset has arrived", || !is_connected_to(port));
    client.write_all(b"hello\n").expect("it is sent");
    drop(stopped);
    let expected = format!("{} hello\n", endpoint.address);
    let mut answer = vec![0; expected.len()];
    client.read_exact(&mut answer).expect("an answer");
    assert_eq!(answer, expected.as_bytes());
    assert_eq!(balancer.web("connect_retries_total"), 1.0);
}

#[test]
fn a_flow_that_every_endpoint_resets_at_once_is_reset() {
    let origin = Origin::start();
    let listener = "connect_attempts = 3";
    let balancer = Balancer::start(&config("workers = 1", listener, &[origin.address()]));
    let mut client = connect(balancer.address("web"));
    for _ in 0..3 {
        reset(origin.accept());
    }
    assert_eq!(rest(&mut client), Err(std::io::ErrorKind::ConnectionReset));
    eventually("the flow is counted", || balancer.count("closes", "upstream-reset") == 1.0);
    assert_eq!(balancer.web("connect_retries_total"), 2.0);
}

#[test]
fn a_flow_that_no_endpoint_answers_is_reset() {
    let (_socket, _waiting, silent) = silent();
    let listener = "connect_timeout_ms = 200\nconnect_attempts = 2";
    let balancer = Balancer::start(&config("workers = 1", listener, &[silent]));
    let mut client = connect(balancer.address("web"));
    assert_eq!(rest(&mut client), Err(std::io::ErrorKind::ConnectionReset));
    eventually("the flow is counted", || balancer.count("closes", "connect-timeout") == 1.0);
}
