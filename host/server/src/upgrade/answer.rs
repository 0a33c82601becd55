//! What came of upgrades, for a person and for a program.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

use super::{Refused, TakenOver};

/// Another process has taken over.
#[derive(Debug, Serialize, Deserialize)]
pub struct Answer {
    /// Its number.
    pub pid: u32,
    /// Its version.
    pub version: String,
    /// Flows of datagrams that go on there.
    pub flows: u64,
    /// Flows of datagrams that its configuration, or its room, has no place for.
    pub flows_lost: u64,
    /// How long all of it took.
    pub took_us: u64,
}

/// What can come of an upgrade.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// Another process serves.
    Applied,
    /// None could, and the old one has gone on.
    Refused,
}

impl Outcome {
    /// All of them, in the order of their numbers.
    pub const ALL: [Self; 2] = [Self::Applied, Self::Refused];

    /// The value of the metric's `outcome` label.
    pub const fn label(self) -> &'static str {
        match self {
            Self::Applied => "applied",
            Self::Refused => "refused",
        }
    }
}

/// What came of all upgrades so far, those of the processes before included.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Upgrades {
    /// How many, by [`Outcome`].
    pub outcomes: [u64; Outcome::ALL.len()],
    /// The last one.
    #[serde(default)]
    pub last: Option<Last>,
}

/// The last upgrade.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Last {
    /// When, in milliseconds since 1970.
    pub at_unix_ms: u64,
    /// `applied` or `refused`.
    pub outcome: String,
    /// The version before, if another process has taken over.
    #[serde(default)]
    pub from_version: Option<String>,
    /// Flows of datagrams that were taken over.
    #[serde(default)]
    pub flows: u64,
    /// Flows of datagrams for which there was no place.
    #[serde(default)]
    pub flows_lost: u64,
    /// Why none has: one line each.
    #[serde(default)]
    pub problems: Vec<String>,
}

impl Upgrades {
    pub(super) fn note_refusal(&mut self, refused: &Refused) {
        let problems = refused.to_string().lines().map(str::to_owned).collect();
        let last = Last { problems, ..Last::of(Outcome::Refused) };
        self.note(Outcome::Refused, last);
    }

    /// This process has taken over from one of this version.
    pub(super) fn note_success(&mut self, from_version: &str, (flows, flows_lost): (u64, u64)) {
        let from_version = Some(from_version.to_owned());
        let last = Last { from_version, flows, flows_lost, ..Last::of(Outcome::Applied) };
        self.note(Outcome::Applied, last);
    }

    fn note(&mut self, outcome: Outcome, last: Last) {
        self.outcomes[outcome as usize] += 1;
        self.last = Some(last);
    }
}

impl Last {
    fn of(outcome: Outcome) -> Self {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Self {
            at_unix_ms: u64::try_from(now.as_millis()).unwrap_or(u64::MAX),
            outcome: outcome.label().to_owned(),
            from_version: None,
            flows: 0,
            flows_lost: 0,
            problems: Vec::new(),
        }
    }
}

impl Answer {
    pub(super) fn new(pid: u32, there: TakenOver, took: Duration) -> Self {
        let TakenOver { version, flows, flows_lost } = there;
        let took_us = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        Self { pid, version, flows, flows_lost, took_us }
    }

    /// One line, for a person.
    pub fn to_text(&self) -> String {
        let Self { pid, version, flows, flows_lost, took_us } = self;
        let took = Duration::from_micros(*took_us).as_secs_f64() * 1000.0;
        let lost = match flows_lost {
            0 => String::new(),
            lost => format!(", {lost} lost"),
        };
        format!(
            "process {pid} (pointsman {version}) has taken over in {took:.0} ms: {flows} flow(s) of \
             datagrams{lost}\n"
        )
    }

    pub(super) fn log(&self) {
        let Self { pid, version, flows, flows_lost, took_us } = self;
        tracing::info!(pid, version, flows, flows_lost, took_us, "another process has taken over");
    }
}
