//! What a chooser that listens is told of flows that have ended.
//!
//! Flows end all the time and a guest is told a few times a second, so they are noted in a list of
//! fixed size. It is handed over whole on the next tick; what has no room until then is counted.

use pointsman_core::policy::EndedFlow;
use pointsman_core::{Candidates, Instant};

use crate::bindings::{ended_of, feedback::Ended, sample_of, signals};
use crate::guest::Feed;

/// Ended flows of one worker since the last tick. Allocates nothing after it was made but for the
/// samples of a list that has grown.
pub(crate) struct Batch {
    flows: Vec<EndedFlow>,
    missed: u32,
    ended: Vec<Ended>,
    samples: Vec<signals::Sample>,
}

impl Batch {
    /// Flows that can wait for one tick.
    pub(crate) const FLOWS_MAX: usize = 1024;

    pub(crate) fn new() -> Self {
        Self {
            flows: Vec::with_capacity(Self::FLOWS_MAX),
            missed: 0,
            ended: Vec::with_capacity(Self::FLOWS_MAX),
            samples: Vec::new(),
        }
    }

    /// Takes note of one flow, or counts it.
    pub(crate) fn note(&mut self, flow: &EndedFlow) {
        if self.flows.len() < Self::FLOWS_MAX {
            self.flows.push(*flow);
        } else {
            self.missed = self.missed.saturating_add(1);
        }
    }

    /// Everything noted so far in the guest's words, and forgets it.
    pub(crate) fn hand_over(&mut self, now: Instant, among: &Candidates) -> Feed<'_> {
        self.samples.clear();
        self.samples.extend(among.endpoints.iter().map(|it| sample_of(&it.load.sample(now))));
        self.ended.clear();
        self.ended.extend(self.flows.drain(..).filter_map(|flow| ended_of(&flow, among)));
        Feed {
            now_ms: now.as_millis(),
            samples: &self.samples,
            ended: &self.ended,
            missed: std::mem::take(&mut self.missed),
        }
    }
}
