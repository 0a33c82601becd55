//! A policy that is tried beside the one that decides.
//!
//! In the **shadow** it is asked about every flow that the live policy is asked about, and what it
//! says is compared and forgotten. As a **canary** it decides on a share of the flows: those whose
//! hash falls into the first so many of ten thousand slots, so that raising the share never takes a
//! client back from the candidate. What comes of it stands in a [`Tally`] that all workers write and
//! the control thread reads.

use alloc::boxed::Box;
use alloc::sync::Arc;
use core::sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed};

use twox_hash::XxHash64;

use crate::policy::{Decided, Flow, Policy, Source, Verdict};
use crate::snapshot::{Candidates, Cluster, EndpointId};

/// Slots that flows fall into by their hash.
pub const CANARY_SLOTS: u32 = 10_000;

/// A policy on trial in one worker.
pub struct Trial {
    policy: Box<dyn Policy>,
    tally: Arc<Tally>,
}

/// What a trial has shown so far, in all workers.
#[derive(Debug)]
pub struct Tally {
    /// 0 is a shadow; else the slots that the candidate decides on.
    canary_slots: AtomicU32,
    asked: AtomicU64,
    unanswered: AtomicU64,
    agreed: AtomicU64,
    refused: AtomicU64,
    /// By [`EndpointId`]: what the live policy and what the candidate chose.
    chosen: [Box<[AtomicU64]>; 2],
}

/// What a [`Tally`] says at one moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TallyCounts {
    /// Flows that both were asked about, or that the candidate decided on.
    pub asked: u64,
    /// Of those, the ones that the candidate's fallback answered for it. Nothing else is counted of
    /// them: they say nothing about the candidate.
    pub unanswered: u64,
    /// Of those that both answered, the ones on which they said the same.
    pub agreed: u64,
    /// Flows that the candidate would not forward.
    pub refused: u64,
    /// By [`EndpointId`]: how often the live policy chose it.
    pub live: Box<[u64]>,
    /// By [`EndpointId`]: how often the candidate chose it.
    pub candidate: Box<[u64]>,
}

impl TallyCounts {
    /// Flows that the candidate answered itself.
    #[must_use]
    pub fn answered(&self) -> u64 {
        self.asked - self.unanswered
    }
}

impl Tally {
    /// A tally for a cluster whose endpoints have ids below `endpoints`. Of `canary_slots` out of
    /// [`CANARY_SLOTS`] the candidate decides on the flows; with 0 it stays in the shadow.
    #[must_use]
    pub fn new(endpoints: u32, canary_slots: u32) -> Self {
        let counts = || (0..endpoints).map(|_| AtomicU64::new(0)).collect();
        Self {
            canary_slots: AtomicU32::new(canary_slots),
            asked: AtomicU64::new(0),
            unanswered: AtomicU64::new(0),
            agreed: AtomicU64::new(0),
            refused: AtomicU64::new(0),
            chosen: [counts(), counts()],
        }
    }

    /// Gives the candidate another share; flows that are there stay where they are.
    pub fn set_canary_slots(&self, slots: u32) {
        self.canary_slots.store(slots, Relaxed);
    }

    /// The candidate's share, in slots; 0 is a shadow.
    #[must_use]
    pub fn canary_slots(&self) -> u32 {
        self.canary_slots.load(Relaxed)
    }

    /// What it says.
    #[must_use]
    pub fn counts(&self) -> TallyCounts {
        let counts = |of: &[AtomicU64]| of.iter().map(|count| count.load(Relaxed)).collect();
        let [live, candidate] = [counts(&self.chosen[0]), counts(&self.chosen[1])];
        // Workers go on counting between the two looks.
        let unanswered = self.unanswered.load(Relaxed);
        TallyCounts {
            asked: self.asked.load(Relaxed).max(unanswered),
            unanswered,
            agreed: self.agreed.load(Relaxed),
            refused: self.refused.load(Relaxed),
            live,
            candidate,
        }
    }

    fn on_chosen(&self, by: usize, endpoint: EndpointId) {
        if let Some(count) = self.chosen[by].get(endpoint.0 as usize) {
            count.fetch_add(1, Relaxed);
        }
    }
}

/// Whose choices a [`Tally`] keeps where.
const LIVE: usize = 0;
const CANDIDATE: usize = 1;

impl Trial {
    /// Puts a policy on trial.
    #[must_use]
    pub fn new(policy: Box<dyn Policy>, tally: Arc<Tally>) -> Self {
        Self { policy, tally }
    }

    /// What the candidate decides, if the flow is in its share.
    pub(crate) fn decide_as_canary(
        &mut self,
        flow: &Flow<'_>,
        among: &Arc<Candidates>,
    ) -> Option<Decided> {
        let slots = self.tally.canary_slots();
        if slots == 0 || slot_of(flow) >= slots {
            return None;
        }
        let decided = self.policy.decide(flow, among);
        self.count_candidate(&decided, among);
        Some(decided)
    }

    /// Lets the candidate say what it would have done, if it is in the shadow.
    pub(crate) fn compare(&mut self, flow: &Flow<'_>, live: &Decided, views: Views<'_>) {
        if self.tally.canary_slots() != 0 {
            self.count(LIVE, live, views.live);
            return;
        }
        let candidate = self.policy.decide(flow, views.trial);
        self.count(LIVE, live, views.live);
        let is_answered = self.count_candidate(&candidate, views.trial);
        // Both views hold the same endpoints in the same order: an index means the same in each.
        if is_answered && live.decision.verdict == candidate.decision.verdict {
            self.tally.agreed.fetch_add(1, Relaxed);
        }
    }

    /// Tells whether it was the candidate's own answer.
    fn count_candidate(&self, decided: &Decided, among: &Candidates) -> bool {
        self.tally.asked.fetch_add(1, Relaxed);
        let is_answered = decided.source != Source::Fallback;
        if is_answered {
            self.count(CANDIDATE, decided, among);
        } else {
            self.tally.unanswered.fetch_add(1, Relaxed);
        }
        is_answered
    }

    fn count(&self, by: usize, decided: &Decided, among: &Candidates) {
        match decided.decision.verdict {
            Verdict::Forward(index) => {
                if let Some(endpoint) = among.get(index) {
                    self.tally.on_chosen(by, endpoint.id);
                }
            }
            Verdict::Reset | Verdict::Drop if by == CANDIDATE => {
                self.tally.refused.fetch_add(1, Relaxed);
            }
            Verdict::Reset | Verdict::Drop => {}
        }
    }

    /// Whether flows can be sent on their way without being kept, as far as the candidate has a say.
    pub(crate) fn lets_be_stateless(&self) -> bool {
        self.tally.canary_slots() == 0 || self.policy.is_stateless()
    }

    pub(crate) fn policy(&mut self) -> &mut dyn Policy {
        &mut *self.policy
    }
}

/// The candidates as the two policies see them.
#[derive(Clone, Copy)]
pub(crate) struct Views<'a> {
    pub(crate) live: &'a Arc<Candidates>,
    pub(crate) trial: &'a Arc<Candidates>,
}

impl<'a> Views<'a> {
    pub(crate) fn of(cluster: &'a Cluster) -> Self {
        let live = &cluster.candidates;
        let trial = cluster.trial.as_ref().filter(|trial| trial.len() == live.len());
        Self { live, trial: trial.unwrap_or(live) }
    }
}

/// Mixed with a seed of its own: a table indexes by the same hash, and would otherwise see only
/// some of its entries used.
fn slot_of(flow: &Flow<'_>) -> u32 {
    const SEED: u64 = 0x7261_6e61_6379;
    (XxHash64::oneshot(SEED, &flow.hash().to_le_bytes()) % u64::from(CANARY_SLOTS)) as u32
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::testing::{candidates, flow};
    use crate::policy::{Decision, EndpointIndex};
    use core::net::Ipv4Addr;

    struct Always(u32);

    impl Policy for Always {
        fn decide(&mut self, _: &Flow<'_>, _: &Arc<Candidates>) -> Decided {
            let decision = Decision::forward(EndpointIndex(self.0));
            Decided { decision, source: Source::Plugin }
        }
    }

    fn from(host: u8) -> Flow<'static> {
        Flow { client: (Ipv4Addr::new(192, 0, 2, host), 1).into(), ..flow(0, &[]) }
    }

    fn clients_of_canary(slots: u32) -> alloc::vec::Vec<u8> {
        let among = candidates(1, &[1, 1]);
        let mut trial = Trial::new(Box::new(Always(1)), Arc::new(Tally::new(2, slots)));
        let mut is_taken = |host: &u8| trial.decide_as_canary(&from(*host), &among).is_some();
        (0..=255).filter(&mut is_taken).collect()
    }

    #[test]
    fn a_larger_share_keeps_every_client_of_the_smaller() {
        let shares = [0, 100, 2_500, 5_000, CANARY_SLOTS].map(clients_of_canary);
        for pair in shares.windows(2) {
            assert!(pair[0].iter().all(|client| pair[1].contains(client)));
            assert!(pair[0].len() < pair[1].len());
        }
        assert_eq!((shares[0].len(), shares[4].len()), (0, 256));
        assert!((80..=176).contains(&shares[3].len()), "about half: {}", shares[3].len());
    }

    #[test]
    fn a_shadow_counts_where_it_agrees_and_decides_nothing() {
        let among = candidates(1, &[1, 1]);
        let tally = Arc::new(Tally::new(2, 0));
        let mut trial = Trial::new(Box::new(Always(1)), Arc::clone(&tally));
        let views = Views { live: &among, trial: &among };
        for choice in [0, 1, 1] {
            assert!(trial.decide_as_canary(&from(1), &among).is_none());
            let live = Always(choice).decide(&from(1), &among);
            trial.compare(&from(1), &live, views);
        }
        let counts = tally.counts();
        assert_eq!((counts.asked, counts.agreed, counts.refused), (3, 2, 0));
        assert_eq!((&*counts.live, &*counts.candidate), (&[1, 2][..], &[0, 3][..]));
    }

    #[test]
    fn what_the_fallback_answers_is_no_merit_of_the_candidate() {
        struct Unable;

        impl Policy for Unable {
            fn decide(&mut self, flow: &Flow<'_>, among: &Arc<Candidates>) -> Decided {
                Decided { source: Source::Fallback, ..Always(1).decide(flow, among) }
            }
        }

        let among = candidates(1, &[1, 1]);
        for slots in [0, CANARY_SLOTS] {
            let tally = Arc::new(Tally::new(2, slots));
            let mut trial = Trial::new(Box::new(Unable), Arc::clone(&tally));
            let live = Always(1).decide(&from(1), &among);
            match trial.decide_as_canary(&from(1), &among) {
                Some(decided) => assert_eq!(decided.source, Source::Fallback),
                None => trial.compare(&from(1), &live, Views { live: &among, trial: &among }),
            }
            let counts = tally.counts();
            assert_eq!((counts.asked, counts.unanswered, counts.agreed), (1, 1, 0), "{slots}");
            assert_eq!(*counts.candidate, [0, 0], "{slots}");
        }
    }
}
