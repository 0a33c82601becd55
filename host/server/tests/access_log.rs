//! The access log: one line of JSON per ended flow, with everything promised.

mod support;

use std::fs;
use std::net::UdpSocket;
use std::os::unix::net::UnixDatagram;
use std::path::Path;

use rustix::process::{Signal, kill_process};
use serde_json::Value;
use support::raw::{Origin, config, connect, refusing, reset, rest};
use support::{Balancer, Endpoint, GIVE_UP, ask_once, eventually};

const KEYS: [&str; 19] = [
    "started_unix_ms",
    "client",
    "peer",
    "listener",
    "protocol",
    "queued_us",
    "cluster",
    "endpoint",
    "policy",
    "policy_generation",
    "source",
    "attempts",
    "tag",
    "unique_id",
    "bytes_upstream",
    "bytes_downstream",
    "connect_us",
    "duration_us",
    "reason",
];

/// The only line of a log, once it is there.
fn line(log: &Path) -> Value {
    let mut text = String::new();
    eventually("the line is written", || {
        text = fs::read_to_string(log).unwrap_or_default();
        text.ends_with('\n')
    });
    assert_eq!(text.lines().count(), 1, "{text}");
    serde_json::from_str(&text).expect("JSON")
}

fn start(endpoints: &[std::net::SocketAddr], log: &Path) -> Balancer {
    let text = config("workers = 1", "", endpoints);
    Balancer::start(&format!("{text}[access_log]\npath = {log:?}\n"))
}

#[test]
fn a_line_says_who_was_served_by_whom_why_for_how_long_and_how_it_ended() {
    let folder = tempfile::tempdir().expect("a folder");
    let log = folder.path().join("access.log");
    let origin = Origin::start();
    let balancer = start(&[origin.address()], &log);
    let mut ends = origin.open(balancer.address("web"));
    let client = ends.client.local_addr().expect("its address");
    for _ in 0..3 {
        ends.exchange().expect("the flow works");
    }
    drop(ends);

    let line = line(&log);
    let keys: Vec<_> = line.as_object().expect("an object").keys().map(String::as_str).collect();
    let mut expected = KEYS.to_vec();
    expected.sort_unstable();
    assert_eq!(keys, expected);
    for (key, value) in [
        ("client", Value::from(client.to_string())),
        ("listener", "web".into()),
        ("protocol", "tcp".into()),
        ("cluster", "web".into()),
        ("endpoint", origin.address().to_string().into()),
        ("policy", "round-robin".into()),
        ("policy_generation", 1.into()),
        ("source", "native".into()),
        ("attempts", 1.into()),
        ("bytes_upstream", 3.into()),
        ("bytes_downstream", 3.into()),
        ("reason", "finished".into()),
    ] {
        assert_eq!(line[key], value, "{key} of {line}");
    }
    let duration = line["duration_us"].as_u64().expect("a duration");
    assert!(line["connect_us"].as_u64().expect("a duration") <= duration, "{line}");
    assert!(line["started_unix_ms"].as_u64().expect("a time") > 1_600_000_000_000, "{line}");
}

#[test]
fn a_line_names_the_side_that_reset() {
    let folder = tempfile::tempdir().expect("a folder");
    let log = folder.path().join("access.log");
    let origin = Origin::start();
    let balancer = start(&[origin.address()], &log);
    let mut ends = origin.open(balancer.address("web"));
    ends.exchange().expect("the flow works");
    reset(ends.client);
    assert_eq!(line(&log)["reason"], "downstream-reset");
}

#[test]
fn a_line_tells_of_a_flow_that_reached_nobody() {
    let folder = tempfile::tempdir().expect("a folder");
    let log = folder.path().join("access.log");
    let (_one, first) = refusing();
    let (_other, second) = refusing();
    let balancer = start(&[first, second], &log);
    assert!(rest(&mut connect(balancer.address("web"))).is_err());
    let line = line(&log);
    assert_eq!(line["reason"], "connect-failed");
    assert_eq!((&line["attempts"], &line["connect_us"]), (&3.into(), &Value::Null), "{line}");
    assert_eq!((&line["bytes_upstream"], &line["bytes_downstream"]), (&0.into(), &0.into()));
}

/// A balancer whose log is configured so.
fn start_with(log: &str, endpoint: &Endpoint) -> Balancer {
    let text = config("workers = 2", "", &[endpoint.address]);
    Balancer::start(&format!("{text}[access_log]\n{log}\n"))
}

fn lost(balancer: &Balancer) -> f64 {
    balancer.metric("pointsman_access_log_dropped_total")
}

#[test]
fn a_log_that_was_moved_away_goes_on_in_a_new_file_after_a_signal() {
    let folder = tempfile::tempdir().expect("a folder");
    let (log, moved) = (folder.path().join("access.log"), folder.path().join("access.log.1"));
    let endpoint = Endpoint::start();
    let balancer = start_with(&format!("path = {log:?}\nformat = \"text\""), &endpoint);
    let web = balancer.address("web");
    let lines = |file: &Path| fs::read_to_string(file).unwrap_or_default().lines().count();
    ask_once(web).expect("an answer");
    eventually("the line is written", || lines(&log) == 1);
    fs::rename(&log, &moved).expect("it is moved");
    ask_once(web).expect("an answer");
    eventually("the line follows the file", || lines(&moved) == 2);
    kill_process(balancer.pid(), Signal::USR1).expect("a signal");
    eventually("there is a new file", || log.exists());
    for flows in 1..=20 {
        ask_once(web).expect("an answer");
        eventually("the line is in the new file", || lines(&log) == flows);
    }
    let text = fs::read_to_string(&log).expect("the log");
    assert!(text.lines().all(|line| line.contains(" web tcp 127.0.0.1:")), "{text}");
    assert_eq!((lines(&moved), lost(&balancer)), (2, 0.0));
}

#[test]
fn a_full_disk_costs_lines_that_are_counted_and_no_flow() {
    let endpoint = Endpoint::start();
    let balancer = start_with("path = \"/dev/full\"", &endpoint);
    let web = balancer.address("web");
    for _ in 0..20 {
        ask_once(web).expect("every flow is served");
    }
    eventually("all of them are counted", || lost(&balancer) == 20.0);
    let told = balancer.log().matches("cannot write the access log").count();
    assert_eq!(told, 1, "it is told once");
}

/// The text of the next datagram.
fn datagram(receive: impl FnOnce(&mut [u8]) -> std::io::Result<usize>) -> String {
    let mut bytes = [0; 4096];
    let length = receive(&mut bytes).expect("a datagram");
    String::from_utf8_lossy(&bytes[..length]).into_owned()
}

#[test]
fn a_syslog_daemon_that_was_away_gets_what_comes_once_it_is_back() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("log.sock");
    let endpoint = Endpoint::start();
    let balancer = start_with(&format!("syslog = {path:?}"), &endpoint);
    let web = balancer.address("web");
    for round in 1..=2 {
        for _ in 0..3 {
            ask_once(web).expect("every flow is served");
        }
        eventually("they are counted", || lost(&balancer) == 3.0 * f64::from(round));
        let daemon = UnixDatagram::bind(&path).expect("a daemon");
        daemon.set_read_timeout(Some(GIVE_UP)).expect("a timeout");
        ask_once(web).expect("an answer");
        let text = datagram(|bytes| daemon.recv(bytes));
        // Priority, version, time, host, application, process, kind, no structured data, line.
        let parts: Vec<_> = text.splitn(8, ' ').collect();
        assert_eq!((parts[0], parts[3], parts[5], parts[6]), ("<134>1", "pointsman", "flow", "-"));
        assert_eq!(parts[4], balancer.pid().as_raw_nonzero().to_string());
        assert_eq!(parts[1].len(), "2026-11-28T05:44:39.123Z".len());
        let line: Value = serde_json::from_str(parts[7]).expect("JSON");
        assert_eq!(line["reason"], "finished");
        drop(daemon);
        fs::remove_file(&path).expect("it is away again");
    }
}

#[test]
fn a_syslog_daemon_elsewhere_gets_datagrams_by_udp() {
    let daemon = UdpSocket::bind("127.0.0.1:0").expect("a daemon");
    daemon.set_read_timeout(Some(GIVE_UP)).expect("a timeout");
    let address = daemon.local_addr().expect("its address");
    let endpoint = Endpoint::start();
    let log = format!("syslog = \"{address}\"\nformat = \"text\"");
    let balancer = start_with(&log, &endpoint);
    ask_once(balancer.address("web")).expect("an answer");
    let text = datagram(|bytes| daemon.recv(bytes));
    assert!(text.starts_with("<134>1 ") && text.contains(" web tcp 127.0.0.1:"), "{text}");
}

#[test]
fn a_sample_leaves_out_what_went_well_and_counts_nothing_of_it_as_lost() {
    let folder = tempfile::tempdir().expect("a folder");
    let log = folder.path().join("access.log");
    let endpoint = Endpoint::start();
    let text = config("workers = 1", "", &[endpoint.address]);
    let text = format!("{text}[access_log]\npath = {log:?}\nsample = 0.25\n");
    let balancer = Balancer::start(&text);
    let web = balancer.address("web");
    for _ in 0..12 {
        ask_once(web).expect("an answer");
    }
    eventually("all have ended", || balancer.count("closes", "finished") == 12.0);
    eventually("a quarter is written", || {
        fs::read_to_string(&log).unwrap_or_default().lines().count() == 3
    });
    assert_eq!(lost(&balancer), 0.0);
}
