//! One ended flow as a line: JSON for programs, or words for people.

use std::fmt::Write as _;
use std::io::Write as _;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use pointsman_core::boundary::Side;
use pointsman_core::{FlowRecord, Instant};
use pointsman_ring::Clock;
use serde::Serialize;

use crate::config::LogFormat;
use crate::plan::{Plan, protocol_name};

/// What records name by number.
#[derive(Debug)]
pub(super) struct Names {
    /// Name and protocol.
    listeners: Vec<(String, &'static str)>,
    /// Name and policy.
    clusters: Vec<(String, String)>,
}

impl Names {
    pub(super) fn new(plan: &Plan) -> Self {
        let (listeners, clusters) = (plan.listeners.iter(), plan.clusters.iter());
        Self {
            listeners: listeners.map(|l| (l.name.clone(), protocol_name(l.protocol))).collect(),
            clusters: clusters.map(|c| (c.name.clone(), c.policy_name.clone())).collect(),
        }
    }

    /// Adds a line, without its end.
    pub(super) fn write(
        &self,
        out: &mut Vec<u8>,
        record: &FlowRecord,
        (format, wall): (LogFormat, WallClock),
    ) {
        let line = self.line(record, wall);
        // Neither fails: they write to memory what can always be written.
        let _ = match format {
            LogFormat::Json => serde_json::to_writer(out, &line).map_err(Into::into),
            LogFormat::Text => out.write_all(line.to_text().as_bytes()),
        };
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
            queued_us: (!record.queued.is_zero())
                .then(|| u64::try_from(record.queued.as_micros()).unwrap_or(u64::MAX)),
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
    queued_us: Option<u64>,
    connect_us: Option<u64>,
    duration_us: u64,
    reason: &'static str,
}

impl Line<'_> {
    /// When, where, who, to whom, how it ended; then what it took, by name.
    fn to_text(&self) -> String {
        let endpoint = self.endpoint.as_deref().unwrap_or("-");
        let mut text = timestamp(self.started_unix_ms);
        let _ = write!(
            text,
            " {} {} {} -> {} {endpoint} {}",
            word(self.listener),
            self.protocol,
            self.client,
            word(self.cluster),
            self.reason
        );
        let _ = write!(
            text,
            " up={} down={} duration_us={}",
            self.bytes_upstream, self.bytes_downstream, self.duration_us
        );
        if let Some(queued) = self.queued_us {
            let _ = write!(text, " queued_us={queued}");
        }
        if let Some(connect) = self.connect_us {
            let _ = write!(text, " connect_us={connect}");
        }
        if let Some(source) = self.source {
            let _ = write!(text, " source={source}");
        }
        let _ = write!(text, " attempts={}", self.attempts);
        if self.tag != 0 {
            let _ = write!(text, " tag={}", self.tag);
        }
        if let Some(peer) = &self.peer {
            let _ = write!(text, " peer={peer}");
        }
        if let Some(id) = &self.unique_id {
            let _ = write!(text, " unique_id={id}");
        }
        text
    }
}

/// A name that cannot be taken for several words, or for lines.
fn word(name: &str) -> String {
    name.chars().map(|c| if c.is_whitespace() || c.is_control() { '_' } else { c }).collect()
}

/// A time in UTC as RFC 3339 has it, with milliseconds.
pub(super) fn timestamp(unix_ms: u64) -> String {
    let (seconds, millis) = (unix_ms / 1_000, unix_ms % 1_000);
    let (days, second) = (seconds / 86_400, seconds % 86_400);
    let (year, month, day) = date(days);
    let (hour, minute, second) = (second / 3_600, second / 60 % 60, second % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{millis:03}Z")
}

/// The date so many days after the first of January 1970, by the algorithm of Hinnant ("chrono-
/// compatible low-level date algorithms", `civil_from_days`), for days that are not before that.
fn date(days: u64) -> (u64, u64, u64) {
    // Counted from the first of March of the year 0, so that the leap day is the last of its year.
    let days = days + 719_468;
    let (era, day) = (days / 146_097, days % 146_097);
    let year = (day - day / 1_460 + day / 36_524 - day / 146_096) / 365;
    let day = day - (365 * year + year / 4 - year / 100);
    let month = (5 * day + 2) / 153;
    let day = day - (153 * month + 2) / 5 + 1;
    let month = if month < 10 { month + 3 } else { month - 9 };
    (era * 400 + year + u64::from(month <= 2), month, day)
}

fn micros(later: Instant, earlier: Instant) -> u64 {
    u64::try_from(later.since(earlier).as_micros()).unwrap_or(u64::MAX)
}

/// One moment on both clocks: records carry the workers' clock, readers want the calendar's.
#[derive(Debug, Clone, Copy)]
pub(super) struct WallClock {
    monotonic: Instant,
    since_epoch: Duration,
}

impl WallClock {
    pub(super) fn now() -> Self {
        let since_epoch = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Self { monotonic: Clock.now(), since_epoch }
    }

    pub(super) fn unix_ms(self, moment: Instant) -> u64 {
        let then = self.since_epoch.saturating_sub(self.monotonic.since(moment));
        u64::try_from(then.as_millis()).unwrap_or(u64::MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_are_those_of_the_calendar() {
        for (unix_ms, expected) in [
            (0, "1970-01-01T00:00:00.000Z"),
            (951_782_399_999, "2000-02-28T23:59:59.999Z"),
            (951_782_400_000, "2000-02-29T00:00:00.000Z"),
            (1_709_251_199_001, "2024-02-29T23:59:59.001Z"),
            (4_107_542_400_000, "2100-03-01T00:00:00.000Z"),
        ] {
            assert_eq!(timestamp(unix_ms), expected);
        }
    }

    #[test]
    fn a_name_is_one_word() {
        assert_eq!(word("my web\nsite"), "my_web_site");
    }
}
