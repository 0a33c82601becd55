//! Who decides for a cluster, who did before, and who is being tried.
//!
//! ```text
//!               swap, promote
//!   candidate ────────────────▶ live ────────▶ previous
//!       ▲                         ▲   retired     │
//!       │ shadow, canary          └───────────────┘
//!                                     rollback
//! ```
//!
//! A seat is claimed for as long as one of these moves takes, and whoever comes meanwhile is told
//! so: two swaps at once could not both be undone.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering::AcqRel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use pointsman_core::Tally;
use pointsman_plugin::{Module, PolicyCounts};

use crate::crew::Counts;
use crate::plan::PluginId;

/// Digests that are remembered as bad; the oldest is forgotten for a new one.
const QUARANTINED_MAX: usize = 64;

/// A cluster's place for policies.
pub struct Seat {
    /// The cluster's name.
    pub name: String,
    /// The policy that its modules are configured as; `None` if it is a native one.
    pub plugin: Option<PluginId>,
    is_claimed: AtomicBool,
    sitting: Mutex<Sitting>,
}

/// Who sits there.
pub struct Sitting {
    /// Who decides.
    pub live: Sitter,
    /// Who did before, ready to do so again.
    pub previous: Option<Module>,
    /// Who is tried beside it.
    pub candidate: Option<Candidate>,
    /// 1 for the first, one more for each that came after.
    pub generation: u64,
    /// What came of attempts to change this, by [`Outcome`].
    pub outcomes: [u64; Outcome::ALL.len()],
    /// The longest that a swap has held up a worker.
    pub pause_max: Duration,
    /// What was counted of those that are gone.
    past: PolicyCounts,
    quarantined: VecDeque<String>,
}

/// The one that decides.
pub struct Sitter {
    /// `None` for a native policy.
    pub module: Option<Module>,
    /// What is counted of it.
    pub counts: Counts,
    /// Since when.
    pub since: Instant,
    /// Since when its faults are looked at, if it came by a swap that they may undo.
    pub probation: Option<Instant>,
}

/// One that is tried.
pub struct Candidate {
    /// What it is made of.
    pub module: Module,
    /// What is counted of it.
    pub counts: Counts,
    /// What it has shown.
    pub tally: Arc<Tally>,
    /// How it is tried.
    pub stage: Stage,
    /// Since when.
    pub since: Instant,
}

/// How far a trial is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    /// It is asked and not obeyed, until then.
    Shadow {
        /// The end.
        until: Instant,
    },
    /// It decides on a share of the flows.
    Canary,
    /// It is asked nothing any more, and can be promoted.
    Over,
}

impl Stage {
    /// The word for it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Shadow { .. } => "shadow",
            Self::Canary => "canary",
            Self::Over => "over",
        }
    }
}

/// What came of an attempt to change who decides.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// Another module decides.
    Swapped,
    /// It was refused, and nothing has changed.
    Refused,
    /// The module before decides again, because somebody said so.
    RolledBack,
    /// The module before decides again, because of faults.
    RolledBackByItself,
}

impl Outcome {
    /// All of them, in the order of their numbers.
    pub const ALL: [Self; 4] =
        [Self::Swapped, Self::Refused, Self::RolledBack, Self::RolledBackByItself];

    /// The value of the metric's `outcome` label.
    pub const fn label(self) -> &'static str {
        match self {
            Self::Swapped => "swapped",
            Self::Refused => "refused",
            Self::RolledBack => "rolled-back",
            Self::RolledBackByItself => "rolled-back-by-itself",
        }
    }
}

impl Seat {
    /// A seat whose first policy has just begun.
    pub fn new(
        name: &str,
        plugin: Option<PluginId>,
        module: Option<Module>,
        counts: Counts,
    ) -> Self {
        let live = Sitter { module, counts, since: Instant::now(), probation: None };
        let sitting = Sitting {
            live,
            previous: None,
            candidate: None,
            generation: 1,
            outcomes: [0; Outcome::ALL.len()],
            pause_max: Duration::ZERO,
            past: PolicyCounts::default(),
            quarantined: VecDeque::new(),
        };
        Self {
            name: name.to_owned(),
            plugin,
            is_claimed: AtomicBool::new(false),
            sitting: Mutex::new(sitting),
        }
    }

    /// Who sits there.
    pub fn sitting(&self) -> MutexGuard<'_, Sitting> {
        self.sitting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Claims the seat for one move; `None` if one is under way.
    pub fn claim(self: &Arc<Self>) -> Option<Claim> {
        let was_claimed = self.is_claimed.swap(true, AcqRel);
        (!was_claimed).then(|| Claim { seat: Arc::clone(self) })
    }
}

/// That nobody else changes a seat as long as this is kept.
pub struct Claim {
    /// The seat.
    pub seat: Arc<Seat>,
}

impl Drop for Claim {
    fn drop(&mut self) {
        self.seat.is_claimed.store(false, std::sync::atomic::Ordering::Release);
    }
}

impl Sitting {
    /// Another one decides from here on.
    pub fn seat(&mut self, sitter: Sitter, pause: Duration) {
        let old = std::mem::replace(&mut self.live, sitter);
        self.past.add(&old.counts.sum());
        // The same file once more is nothing to go back from.
        let digest = |module: &Option<Module>| module.as_ref().map(|it| it.digest().to_owned());
        if digest(&old.module) != digest(&self.live.module) {
            self.previous = old.module;
        }
        self.generation += 1;
        self.pause_max = self.pause_max.max(pause);
    }

    /// Another one is tried from here on, or nobody.
    pub fn try_out(&mut self, candidate: Option<Candidate>) {
        if let Some(old) = std::mem::replace(&mut self.candidate, candidate) {
            self.past.add(&old.counts.sum());
        }
    }

    /// Counts what came of an attempt.
    pub fn on_outcome(&mut self, outcome: Outcome) {
        self.outcomes[outcome as usize] += 1;
    }

    /// What was counted of all modules that have been here.
    pub fn counts(&self) -> PolicyCounts {
        let mut sum = self.past;
        sum.add(&self.live.counts.sum());
        if let Some(candidate) = &self.candidate {
            sum.add(&candidate.counts.sum());
        }
        sum
    }

    /// Whether a module has shown here that it is bad.
    pub fn is_quarantined(&self, digest: &str) -> bool {
        self.quarantined.iter().any(|bad| bad == digest)
    }

    /// The digest of the module before, if that has shown that it is bad.
    pub fn previous_if_quarantined(&self) -> Option<String> {
        let digest = self.previous.as_ref()?.digest();
        self.is_quarantined(digest).then(|| digest.to_owned())
    }

    /// Remembers a module as bad.
    pub fn quarantine(&mut self, digest: &str) {
        if self.is_quarantined(digest) {
            return;
        }
        if self.quarantined.len() == QUARANTINED_MAX {
            self.quarantined.pop_front();
        }
        self.quarantined.push_back(digest.to_owned());
    }

    /// Gives a module another chance.
    pub fn lift_quarantine(&mut self, digest: &str) {
        self.quarantined.retain(|bad| bad != digest);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seat() -> Arc<Seat> {
        Arc::new(Seat::new("web", None, None, Counts::default()))
    }

    #[test]
    fn a_seat_is_claimed_by_one_at_a_time() {
        let seat = seat();
        let claim = seat.claim().expect("it is free");
        assert!(seat.claim().is_none());
        drop(claim);
        assert!(seat.claim().is_some());
    }

    #[test]
    fn a_bad_module_is_bad_until_it_gets_another_chance() {
        let seat = seat();
        let mut sitting = seat.sitting();
        sitting.quarantine("aa");
        assert!(sitting.is_quarantined("aa"));
        assert!(!sitting.is_quarantined("ab"));
        sitting.lift_quarantine("aa");
        assert!(!sitting.is_quarantined("aa"));
    }

    #[test]
    fn bad_modules_are_not_remembered_without_end() {
        let seat = seat();
        let mut sitting = seat.sitting();
        (0..=QUARANTINED_MAX).for_each(|digest| sitting.quarantine(&digest.to_string()));
        assert!(!sitting.is_quarantined("0"));
        assert!(sitting.is_quarantined("1"));
    }
}
