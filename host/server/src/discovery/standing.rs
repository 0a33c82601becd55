//! How the search for a cluster's endpoints is going, for metrics, status and log.

use std::time::Instant;

use super::answer::{Answer, Failure, LeftOut, Outcome};

/// What has come of all attempts so far.
#[derive(Debug, Clone, Default)]
pub struct Standing {
    /// Attempts, by [`Outcome`].
    pub outcomes: [u64; Outcome::ALL.len()],
    /// What answers had that was not used, summed.
    pub left_out: LeftOut,
    /// When the last answer came.
    pub answered_at: Option<Instant>,
    /// Why there is none any more, or none yet.
    pub failure: Option<Failure>,
    /// The last answer's.
    left_out_last: LeftOut,
}

impl Standing {
    /// Takes in what came of an attempt, and logs what is news: not every attempt is.
    pub fn note(&mut self, who: Who<'_>, said: &Result<Answer, Failure>, now: Instant) {
        match said {
            Ok(answer) => self.on_answer(who, answer, now),
            Err(failure) => self.on_failure(who, failure),
        }
    }

    fn on_answer(&mut self, who: Who<'_>, answer: &Answer, now: Instant) {
        let Who { cluster, source } = who;
        self.count(Outcome::Answered);
        self.answered_at = Some(now);
        if self.failure.take().is_some() {
            tracing::info!(cluster, %source, "endpoints are found again");
        }
        let LeftOut { unusable, excess } = answer.left_out;
        self.left_out.unusable += unusable;
        self.left_out.excess += excess;
        let before = std::mem::replace(&mut self.left_out_last, answer.left_out);
        if answer.left_out != before && answer.left_out != LeftOut::default() {
            tracing::warn!(cluster, %source, unusable, excess, "a part of the answer is not used");
        }
    }

    fn on_failure(&mut self, who: Who<'_>, failure: &Failure) {
        let Who { cluster, source } = who;
        self.count(failure.outcome);
        let before = self.failure.replace(failure.clone());
        let is_news = before.is_none_or(|before| {
            // A file is told of only when it has changed.
            before.forgets != failure.forgets || failure.outcome == Outcome::Invalid
        });
        if !is_news {
            return;
        }
        let (outcome, why) = (failure.outcome.label(), &failure.why);
        if failure.forgets {
            tracing::warn!(cluster, %source, outcome, why, "endpoints are given up");
        } else if self.answered_at.is_some() {
            tracing::warn!(cluster, %source, outcome, why, "endpoints are not found; the last stay");
        } else {
            tracing::warn!(cluster, %source, outcome, why, "endpoints are not found");
        }
    }

    fn count(&mut self, outcome: Outcome) {
        self.outcomes[outcome as usize] += 1;
    }
}

/// Whose standing it is.
#[derive(Clone, Copy)]
pub struct Who<'a> {
    /// The cluster's name.
    pub cluster: &'a str,
    /// Who knows its endpoints.
    pub source: &'a crate::plan::Source,
}
