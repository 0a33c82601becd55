//! How flows of datagrams end, and what an operator sees of them and does with them.

mod support;

use std::fs;
use std::net::UdpSocket;
use std::process::Command;
use std::thread;
use std::time::Duration;

use rustix::process::Signal;
use serde_json::Value;
use support::udp::{Asker, Server, socket, udp_config};
use support::{Balancer, POINTSMAN, eventually};

fn origin() -> (UdpSocket, std::net::SocketAddr) {
    let origin = socket("127.0.0.1");
    let address = origin.local_addr().expect("its address");
    (origin, address)
}

fn receive(origin: &UdpSocket) -> (Vec<u8>, std::net::SocketAddr) {
    let mut bytes = [0; 100];
    let (count, port) = origin.recv_from(&mut bytes).expect("it arrives");
    (bytes[..count].to_vec(), port)
}

#[test]
fn a_flow_ends_with_the_last_reply_that_is_expected() {
    let (origin, endpoint) = origin();
    let text = udp_config("workers = 1", "replies_expected = 1", "round-robin", &[endpoint]);
    let balancer = Balancer::start(&text);
    let asker = Asker::new("127.0.0.1", balancer.address("web"));
    asker.send(b"one");
    let (_, port) = receive(&origin);
    asker.send(b"two");
    assert_eq!(receive(&origin), (b"two".to_vec(), port), "both queries are of one flow");
    origin.send_to(b"first", port).expect("it is sent");
    assert_eq!(asker.receive(), b"first");
    assert_eq!(balancer.web("flows_active"), 1.0);
    origin.send_to(b"second", port).expect("it is sent");
    assert_eq!(asker.receive(), b"second");
    eventually("the flow has ended", || balancer.web("flows_active") == 0.0);
    assert_eq!(balancer.count("closes", "finished"), 1.0);
    assert_eq!(balancer.web("flows_total"), 1.0);

    asker.send(b"three");
    let (_, port) = receive(&origin);
    origin.send_to(b"third", port).expect("it is sent");
    assert_eq!(asker.receive(), b"third");
    eventually("the next has ended", || balancer.count("closes", "finished") == 2.0);
    assert_eq!(balancer.web("flows_total"), 2.0);
}

#[test]
fn a_query_that_nobody_answers_is_forgotten_in_time() {
    let (origin, endpoint) = origin();
    let keys = "replies_expected = 1\nidle_timeout_ms = 100";
    let balancer = Balancer::start(&udp_config("workers = 1", keys, "round-robin", &[endpoint]));
    let asker = Asker::new("127.0.0.1", balancer.address("web"));
    for ended in [1.0, 2.0] {
        asker.send(b"hello");
        receive(&origin);
        eventually("it is idle", || balancer.count("closes", "idle-timeout") == ended);
    }
    assert_eq!(balancer.web("flows_active"), 0.0);
    balancer.assert_flows_add_up();
}

#[test]
fn a_flow_in_use_outlives_its_idle_timeout() {
    const IDLE_MS: u64 = 2_000;
    let server = Server::start();
    let keys = format!("idle_timeout_ms = {IDLE_MS}");
    let text = udp_config("workers = 1", &keys, "round-robin", &[server.address]);
    let balancer = Balancer::start(&text);
    let asker = Asker::new("127.0.0.1", balancer.address("web"));
    for _ in 0..30 {
        asker.ask(b"still here");
        thread::sleep(Duration::from_millis(IDLE_MS / 20));
    }
    assert_eq!(balancer.web("flows_total"), 1.0);
    eventually("it is idle", || balancer.count("closes", "idle-timeout") == 1.0);
}

#[test]
fn a_stranger_s_reply_is_dropped_under_that_name() {
    let ((origin, endpoint), stranger) = (origin(), socket("127.0.0.1"));
    let balancer = Balancer::start(&udp_config("workers = 1", "", "round-robin", &[endpoint]));
    let asker = Asker::new("127.0.0.1", balancer.address("web"));
    asker.send(b"hello");
    let (_, port) = receive(&origin);
    for forged in [&b"forged"[..], b"", b"again"] {
        stranger.send_to(forged, port).expect("it is sent");
    }
    eventually("it is counted", || balancer.count("drops", "unknown-source") == 3.0);
    origin.send_to(b"true", port).expect("it is sent");
    assert_eq!(asker.receive(), b"true");
    assert_eq!(balancer.datagrams("downstream"), 1.0);
}

#[test]
fn a_reply_that_comes_after_the_end_of_its_flow_reaches_nobody() {
    let (origin, endpoint) = origin();
    let text = udp_config("workers = 1", "replies_expected = 1", "round-robin", &[endpoint]);
    let balancer = Balancer::start(&text);
    let asker = Asker::new("127.0.0.1", balancer.address("web"));
    asker.send(b"hello");
    let (_, port) = receive(&origin);
    origin.send_to(b"in time", port).expect("it is sent");
    assert_eq!(asker.receive(), b"in time");
    origin.send_to(b"once more", port).expect("it is sent");
    eventually("it is counted", || balancer.count("drops", "unknown-source") == 1.0);
    assert_eq!(balancer.datagrams("downstream"), 1.0);
}

#[test]
fn a_drain_lets_flows_of_datagrams_end_where_they_are_and_refuses_new_ones() {
    const CLIENTS: usize = 24;
    let (origin, endpoint) = origin();
    let log = tempfile::NamedTempFile::new().expect("a file");
    let keys = "replies_expected = 1\nidle_timeout_ms = 3600000";
    let top = "workers = 2\ndrain_timeout_ms = 3600000";
    let text = udp_config(top, keys, "round-robin", &[endpoint]);
    let text = format!("{text}[access_log]\npath = {:?}\n", log.path());
    let mut balancer = Balancer::start(&text);
    let web = balancer.address("web");
    let clients: Vec<_> = (0..CLIENTS).map(|_| Asker::new("127.0.0.1", web)).collect();
    let begin = |asker: &Asker| {
        asker.send(b"before");
        receive(&origin).1
    };
    let ports: Vec<_> = clients.iter().map(begin).collect();

    balancer.signal(Signal::TERM);
    eventually("it drains", || {
        let answer = pointsman::client::request(&balancer.socket(), "/readyz");
        answer.is_ok_and(|(code, _)| code == 503)
    });
    let newcomers: Vec<_> = (0..4).map(|_| Asker::new("127.0.0.1", web)).collect();
    newcomers.iter().for_each(|newcomer| newcomer.send(b"new"));
    eventually("they are refused", || balancer.count("sheds", "draining") == 4.0);
    for (client, port) in clients.iter().zip(&ports) {
        client.send(b"during");
        assert_eq!(receive(&origin), (b"during".to_vec(), *port), "it stays with its flow");
    }
    assert_eq!(balancer.web("flows_active"), CLIENTS as f64);
    assert!(!balancer.has_ended());
    for (client, port) in clients.iter().zip(&ports) {
        for answer in [b"one", b"two"] {
            origin.send_to(answer, port).expect("it is sent");
            assert_eq!(client.receive(), answer);
        }
    }
    assert_eq!(balancer.await_end().code(), Some(0));
    let log = fs::read_to_string(log.path()).expect("the access log");
    let reasons = log.lines().map(|line| {
        let line: Value = serde_json::from_str(line).expect("JSON");
        line["reason"].as_str().expect("a reason").to_owned()
    });
    assert_eq!(reasons.collect::<Vec<_>>(), ["finished"; CLIENTS]);
}

#[test]
fn flows_of_datagrams_that_outlast_the_drain_are_closed() {
    let server = Server::start();
    let log = tempfile::NamedTempFile::new().expect("a file");
    let top = "workers = 2\ndrain_timeout_ms = 300";
    let text = udp_config(top, "", "round-robin", &[server.address]);
    let text = format!("{text}[access_log]\npath = {:?}\n", log.path());
    let mut balancer = Balancer::start(&text);
    Asker::new("127.0.0.1", balancer.address("web")).ask(b"before");
    balancer.signal(Signal::TERM);
    assert_eq!(balancer.await_end().code(), Some(0));
    let line = fs::read_to_string(log.path()).expect("the access log");
    let line: Value = serde_json::from_str(&line).expect("one line of JSON");
    assert_eq!((&line["reason"], &line["protocol"]), (&"drain-timeout".into(), &"udp".into()));
}

/// What `pointsman flows` answers to these arguments.
fn flows(balancer: &Balancer, arguments: &str) -> Value {
    let mut command = Command::new(POINTSMAN);
    command.arg("flows").args(arguments.split_whitespace()).arg("--json");
    let output = command.arg("--admin").arg(balancer.socket()).output().expect("it runs");
    assert!(output.status.success(), "{arguments}: {}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap_or_default()
}

fn listed(balancer: &Balancer, filters: &str) -> Vec<Value> {
    flows(balancer, filters)["flows"].as_array().expect("a list").clone()
}

#[test]
fn flows_of_datagrams_are_listed_shown_and_forgotten() {
    let (silent, endpoint) = origin();
    let server = Server::start();
    let text = udp_config("workers = 2", "", "round-robin", &[server.address]);
    let text = format!(
        "{text}[[listeners]]\nname = \"mute\"\nprotocol = \"udp\"\naddress = \"127.0.0.1:0\"\n\
         cluster = \"mute\"\n[[listeners]]\nname = \"tcp\"\naddress = \"127.0.0.1:0\"\n\
         cluster = \"mute\"\n[[clusters]]\nname = \"mute\"\n\
         endpoints = [{{ address = \"{endpoint}\" }}]\n"
    );
    let balancer = Balancer::start(&text);
    let web = balancer.address("web");
    let askers = ["127.0.0.1", "127.0.0.1", "127.0.0.2"].map(|ip| Asker::new(ip, web));
    askers.iter().for_each(|asker| _ = asker.ask(b"hello"));
    let waiting = Asker::new("127.0.0.3", balancer.address("mute"));
    waiting.send(b"anybody?");
    receive(&silent);

    let count = |filters: &str| listed(&balancer, filters).len();
    for (filters, expected) in [
        ("", 4),
        ("--protocol udp", 4),
        ("--protocol tcp", 0),
        ("--listener web", 3),
        ("--listener web --client 127.0.0.1", 2),
        ("--client 127.0.0.2/31", 2),
        ("--state established", 3),
        ("--state unconfirmed", 1),
        ("--state denied", 0),
        ("--kind kept", 0),
        (&format!("--endpoint {}", server.address), 3),
        (&format!("--endpoint {endpoint} --state unconfirmed"), 1),
    ] {
        assert_eq!(count(filters), expected, "{filters}");
    }

    askers[2].ask(b"and again");
    let found = listed(&balancer, "--client 127.0.0.2");
    let id = found[0]["id"].as_str().expect("an id").to_owned();
    let shown = flows(&balancer, &format!("show {id}"));
    let local = askers[2].socket.local_addr().expect("its address");
    for (fact, value) in [
        ("id", Value::from(id.as_str())),
        ("protocol", "udp".into()),
        ("state", "established".into()),
        ("client", local.to_string().into()),
        ("local", web.to_string().into()),
        ("endpoint", server.address.to_string().into()),
        ("source", "native".into()),
        ("datagrams_upstream", 2.into()),
        ("datagrams_downstream", 2.into()),
        ("bytes_upstream", 14.into()),
    ] {
        assert_eq!(shown[fact], value, "{fact} of {shown}");
    }

    flows(&balancer, &format!("forget {id}"));
    eventually("it has ended", || balancer.count("closes", "forgotten") == 1.0);
    assert_eq!(count("--client 127.0.0.2"), 0);
    assert_eq!(balancer.web("flows_total"), 3.0);
    askers.iter().for_each(|asker| _ = asker.ask(b"once more"));
    assert_eq!(balancer.web("flows_total"), 4.0, "one of them has begun another flow");
    let found = listed(&balancer, "--client 127.0.0.2");
    assert_ne!(found[0]["id"], id.as_str());
}
