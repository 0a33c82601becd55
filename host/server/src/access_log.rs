//! One line of JSON per ended flow, written off the data path.
//!
//! A worker only ever puts records into a bounded channel. When the disk is slower than the
//! traffic the channel fills, and records are counted instead of kept: a log that is too slow costs
//! log lines, never flows.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use pointsman_core::boundary::Side;
use pointsman_core::{FlowRecord, Instant};
use pointsman_ring::Clock;
use serde::Serialize;

use crate::plan::{Plan, protocol_name};

/// Records that may wait: a second of 65,000 flows, in some ten megabytes.
const WAITING_MAX: usize = 65_536;
/// Records written at a time, so that one write stays a few megabytes.
const BATCH_MAX: usize = 8_192;

/// A worker's end: takes records and never blocks.
#[derive(Debug, Clone)]
pub struct LogSender {
    records: SyncSender<FlowRecord>,
    dropped: Arc<AtomicU64>,
}

impl LogSender {
    /// Takes a turn's records.
    pub fn offer(&self, records: impl Iterator<Item = FlowRecord>) {
        for record in records {
            if self.records.try_send(record).is_err() {
                self.dropped.fetch_add(1, Relaxed);
            }
        }
    }
}

/// The control thread's end: turns records into lines.
#[derive(Debug)]
pub struct LogReader {
    records: Receiver<FlowRecord>,
    names: Names,
}

/// Makes the channel, and the count of records that did not fit.
pub fn channel(plan: &Plan) -> (LogSender, LogReader, Arc<AtomicU64>) {
    let (sender, receiver) = sync_channel(WAITING_MAX);
    let dropped = Arc::new(AtomicU64::new(0));
    let reader = LogReader { records: receiver, names: Names::new(plan) };
    (LogSender { records: sender, dropped: Arc::clone(&dropped) }, reader, dropped)
}

impl LogReader {
    /// The lines of what is waiting, or of the first part of it; empty if nothing is.
    pub fn lines(&self) -> Vec<u8> {
        let wall = WallClock::now();
        let mut lines = Vec::new();
        for record in self.records.try_iter().take(BATCH_MAX) {
            if serde_json::to_writer(&mut lines, &self.names.line(&record, wall)).is_ok() {
                lines.push(b'\n');
            }
        }
        lines
    }
}

/// What records name by number.
#[derive(Debug)]
struct Names {
    /// Name and protocol.
    listeners: Vec<(String, &'static str)>,
    /// Name and policy.
    clusters: Vec<(String, String)>,
}

impl Names {
    fn new(plan: &Plan) -> Self {
        let (listeners, clusters) = (plan.listeners.iter(), plan.clusters.iter());
        Self {
            listeners: listeners.map(|l| (l.name.clone(), protocol_name(l.protocol))).collect(),
            clusters: clusters.map(|c| (c.name.clone(), c.policy_name.clone())).collect(),
        }
    }

    fn line(&self, record: &FlowRecord, wall: WallClock) -> Line<'_> {
        let (listener, protocol) = &self.listeners[record.listener.index()];
        let (cluster, policy) = &self.clusters[record.cluster.index()];
        Line {
            started_unix_ms: wall.unix_ms(record.started),
            client: record.client.to_string(),
            peer: record.peer.map(|peer| peer.to_string()),
            listener,
            protocol,
            cluster,
            endpoint: record.endpoint.map(|(_, address)| address.to_string()),
            policy,
            policy_generation: record.policy_generation,
            source: record.source.map(pointsman_core::policy::Source::label),
            attempts: record.attempts,
            tag: record.tag,
            unique_id: record.unique_id.map(|id| format!("{id:032x}")),
            bytes_upstream: record.bytes[Side::Upstream.index()],
            bytes_downstream: record.bytes[Side::Downstream.index()],
            connect_us: record.connected.map(|connected| micros(connected, record.started)),
            duration_us: micros(record.ended, record.started),
            reason: record.reason.label(),
        }
    }
}

/// The line's keys, in the order in which they are written.
#[derive(Debug, Serialize)]
struct Line<'a> {
    started_unix_ms: u64,
    client: String,
    peer: Option<String>,
    listener: &'a str,
    protocol: &'static str,
    cluster: &'a str,
    endpoint: Option<String>,
    policy: &'a str,
    policy_generation: u64,
    source: Option<&'static str>,
    attempts: u32,
    tag: u32,
    unique_id: Option<String>,
    bytes_upstream: u64,
    bytes_downstream: u64,
    connect_us: Option<u64>,
    duration_us: u64,
    reason: &'static str,
}

fn micros(later: Instant, earlier: Instant) -> u64 {
    u64::try_from(later.since(earlier).as_micros()).unwrap_or(u64::MAX)
}

/// One moment on both clocks: records carry the workers' clock, readers want the calendar's.
#[derive(Debug, Clone, Copy)]
struct WallClock {
    monotonic: Instant,
    since_epoch: Duration,
}

impl WallClock {
    fn now() -> Self {
        let since_epoch = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Self { monotonic: Clock.now(), since_epoch }
    }

    fn unix_ms(self, moment: Instant) -> u64 {
        let then = self.since_epoch.saturating_sub(self.monotonic.since(moment));
        u64::try_from(then.as_millis()).unwrap_or(u64::MAX)
    }
}

#[cfg(test)]
mod tests {
    use pointsman_core::boundary::ListenerId;
    use pointsman_core::policy::Source;
    use pointsman_core::{CloseReason, ClusterId, EndpointId};

    use super::*;
    use crate::plan::{PluginFolders, resolve};

    const TEXT: &str = r#"
[[listeners]]
name = "web \"quoted\""
address = "127.0.0.1:8080"
cluster = "web"
[[clusters]]
name = "web"
endpoints = [{ address = "127.0.0.1:1" }]
"#;

    fn record() -> FlowRecord {
        FlowRecord {
            listener: ListenerId(0),
            cluster: ClusterId(0),
            client: "192.0.2.7:1234".parse().expect("an address"),
            peer: Some("10.0.0.1:80".parse().expect("an address")),
            unique_id: Some(0xabc),
            endpoint: Some((EndpointId(0), "127.0.0.1:1".parse().expect("an address"))),
            policy_generation: 1,
            source: Some(Source::Native),
            attempts: 1,
            tag: 0,
            started: Instant::from_millis(10),
            connected: Some(Instant::from_millis(11)),
            ended: Instant::from_millis(15),
            bytes: [20, 10],
            reason: CloseReason::Finished,
        }
    }

    fn test_channel() -> (LogSender, LogReader, Arc<AtomicU64>) {
        let config = crate::config::read(TEXT).config;
        channel(&resolve(&config, &PluginFolders::default()).expect("the test's plan"))
    }

    #[test]
    fn a_record_becomes_one_line_of_json() {
        let (sender, reader, _) = test_channel();
        sender.offer([record(), record()].into_iter());
        let lines = String::from_utf8(reader.lines()).expect("text");
        assert_eq!(lines.lines().count(), 2);
        let line: serde_json::Value =
            serde_json::from_str(lines.lines().next().expect("a line")).expect("JSON");
        assert_eq!(line["listener"], "web \"quoted\"");
        assert_eq!(line["protocol"], "tcp");
        assert_eq!(line["policy"], "round-robin");
        assert_eq!(line["endpoint"], "127.0.0.1:1");
        assert_eq!(line["source"], "native");
        assert_eq!(
            (&line["client"], &line["peer"]),
            (&"192.0.2.7:1234".into(), &"10.0.0.1:80".into())
        );
        assert_eq!(line["unique_id"], "00000000000000000000000000000abc");
        assert_eq!(line["bytes_upstream"], 10);
        assert_eq!(line["bytes_downstream"], 20);
        assert_eq!(line["connect_us"], 1000);
        assert_eq!(line["duration_us"], 5000);
        assert_eq!(line["reason"], "finished");
        assert!(reader.lines().is_empty());
    }

    #[test]
    fn a_log_that_nobody_reads_costs_lines_and_blocks_nobody() {
        let (sender, reader, dropped) = test_channel();
        sender.offer((0..WAITING_MAX + 5).map(|_| record()));
        assert_eq!(dropped.load(Relaxed), 5);
        drop(reader);
        sender.offer(std::iter::once(record()));
    }
}
