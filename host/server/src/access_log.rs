//! One line per ended flow, written off the data path.
//!
//! A worker only ever puts records into a bounded channel. When the disk is slower than the
//! traffic the channel fills, and records are counted instead of kept: a log that is too slow costs
//! log lines, never flows.

use std::cell::Cell;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};

use pointsman_core::{CloseReason, FlowRecord};

use crate::config::LogFormat;
use crate::plan::{LogPlan, Plan};

mod keeper;
mod line;
mod syslog;
mod writer;

pub use keeper::LogKeeper;
pub use writer::{Log, LogTask, LogWriter};

use line::{Names, WallClock};

/// Records that may wait: a second of 65,000 flows, in some ten megabytes.
const WAITING_MAX: usize = 65_536;
/// Records written at a time, so that one write stays a few megabytes.
const BATCH_MAX: usize = 8_192;

/// A worker's end: takes records and never blocks.
#[derive(Debug, Clone)]
pub struct LogSender {
    records: SyncSender<FlowRecord>,
    dropped: Arc<AtomicU64>,
    sample: Sample,
}

impl LogSender {
    /// Takes a turn's records.
    pub fn offer(&self, records: impl Iterator<Item = FlowRecord>) {
        for record in records {
            let kept = !is_ordinary(record.reason) || self.sample.takes_next();
            if kept && self.records.try_send(record).is_err() {
                self.dropped.fetch_add(1, Relaxed);
            }
        }
    }
}

/// Whether it is of no interest to whoever looks for what went wrong.
const fn is_ordinary(reason: CloseReason) -> bool {
    matches!(reason, CloseReason::Finished | CloseReason::IdleTimeout | CloseReason::Evicted)
}

/// An even share of all things that come.
#[derive(Debug, Clone)]
struct Sample {
    /// The share, in millionths, which a reload may change.
    share: Arc<AtomicU32>,
    /// What has been saved up towards the next one that is taken.
    saved: Cell<u32>,
}

impl Sample {
    const ALL: u32 = 1_000_000;

    fn new(share: f64) -> Self {
        // The first one is taken, so that a log that begins shows something.
        let share = Self::millionths(share);
        let saved = Cell::new(Self::ALL.saturating_sub(share));
        Self { share: Arc::new(AtomicU32::new(share)), saved }
    }

    fn millionths(share: f64) -> u32 {
        (share * f64::from(Self::ALL)).round() as u32
    }

    fn takes_next(&self) -> bool {
        let saved = self.saved.get() + self.share.load(Relaxed);
        self.saved.set(saved % Self::ALL);
        saved >= Self::ALL
    }
}

/// The control thread's end: turns records into lines.
#[derive(Debug)]
pub struct LogReader {
    records: Receiver<FlowRecord>,
    names: Names,
    format: LogFormat,
}

/// Makes the channel, and the count of records that are lost.
pub fn channel(plan: &Plan, log: &LogPlan) -> (LogSender, LogReader, Arc<AtomicU64>) {
    let (sender, receiver) = sync_channel(WAITING_MAX);
    let dropped = Arc::new(AtomicU64::new(0));
    let reader = LogReader { records: receiver, names: Names::new(plan), format: log.format };
    let sample = Sample::new(log.sample);
    (LogSender { records: sender, dropped: Arc::clone(&dropped), sample }, reader, dropped)
}

impl LogReader {
    /// Writes with these names, and in this form, from here on.
    fn go_by(&mut self, names: Names, format: LogFormat) {
        (self.names, self.format) = (names, format);
    }

    /// The lines of what is waiting, or of the first part of it; empty if nothing is.
    pub fn lines(&self) -> Vec<u8> {
        let wall = WallClock::now();
        let mut lines = Vec::new();
        for record in self.records.try_iter().take(BATCH_MAX) {
            self.names.write(&mut lines, &record, (self.format, wall));
            lines.push(b'\n');
        }
        lines
    }

    /// The next record that is waiting: when it ended, in milliseconds since 1970, and its line.
    fn next(&self, line: &mut Vec<u8>) -> Option<u64> {
        let record = self.records.try_recv().ok()?;
        let wall = WallClock::now();
        self.names.write(line, &record, (self.format, wall));
        Some(wall.unix_ms(record.ended))
    }
}

#[cfg(test)]
mod tests {
    use pointsman_core::boundary::ListenerId;
    use pointsman_core::policy::Source;
    use pointsman_core::{ClusterId, EndpointId, Instant};

    use std::time::Duration;

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
            queued: Duration::ZERO,
            ended: Instant::from_millis(15),
            bytes: [20, 10],
            reason: CloseReason::Finished,
        }
    }

    fn test_channel_of(log: &str) -> (LogSender, LogReader, Arc<AtomicU64>) {
        let text = format!("{TEXT}[access_log]\npath = \"-\"\n{log}\n");
        let plan = resolve(&crate::config::read(&text).config, &PluginFolders::default());
        let plan = plan.expect("the test's plan");
        channel(&plan, plan.access_log.as_ref().expect("a log"))
    }

    fn test_channel() -> (LogSender, LogReader, Arc<AtomicU64>) {
        test_channel_of("")
    }

    #[test]
    fn a_record_becomes_one_line_of_words() {
        let (sender, reader, _) = test_channel_of("format = \"text\"");
        sender.offer(std::iter::once(record()));
        let lines = String::from_utf8(reader.lines()).expect("text");
        let (_, line) = lines.split_once(' ').expect("a time");
        assert_eq!(
            line,
            "web_\"quoted\" tcp 192.0.2.7:1234 -> web 127.0.0.1:1 finished up=10 down=20 \
             duration_us=5000 connect_us=1000 source=native attempts=1 peer=10.0.0.1:80 \
             unique_id=00000000000000000000000000000abc\n"
        );
    }

    #[test]
    fn a_flow_that_waited_for_a_place_says_how_long() {
        let waited = FlowRecord { queued: Duration::from_millis(2), ..record() };
        for (format, expected) in [("json", "\"queued_us\":2000,"), ("text", " queued_us=2000 ")] {
            let (sender, reader, _) = test_channel_of(&format!("format = \"{format}\""));
            sender.offer(std::iter::once(waited.clone()));
            let line = String::from_utf8(reader.lines()).expect("text");
            assert!(line.contains(expected), "{line}");
        }
    }

    #[test]
    fn a_sample_is_a_share_of_what_went_well_and_all_that_did_not() {
        let (sender, reader, dropped) = test_channel_of("sample = 0.01");
        sender.offer((0..1_000).map(|_| record()));
        let failed = FlowRecord { reason: CloseReason::ConnectFailed, ..record() };
        sender.offer((0..7).map(|_| failed.clone()));
        let lines = String::from_utf8(reader.lines()).expect("text");
        assert_eq!(lines.lines().filter(|line| line.contains("finished")).count(), 10);
        assert_eq!(lines.lines().filter(|line| line.contains("connect-failed")).count(), 7);
        assert_eq!(dropped.load(Relaxed), 0, "what is not in the sample is not lost");
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
