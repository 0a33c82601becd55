//! The access log: one line of JSON per ended flow, with everything promised.

mod support;

use std::fs;
use std::path::Path;

use serde_json::Value;
use support::raw::{Origin, config, connect, refusing, reset, rest};
use support::{Balancer, eventually};

const KEYS: [&str; 18] = [
    "started_unix_ms",
    "client",
    "peer",
    "listener",
    "protocol",
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
