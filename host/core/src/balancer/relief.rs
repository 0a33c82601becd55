//! What becomes of flows that hold buffers which others need.
//!
//! A destination that takes nothing holds buffers until its flow has been idle for too long, which may
//! be an hour, and whoever opens enough such flows holds all. So while buffers are short those end that
//! have not taken what they were sent for longer than a kernel needs to repeat what was lost.
//!
//! What counts is that all of a run of sends is taken, and not that some of it is: whoever takes a byte
//! now and then would hold its buffers for ever. So a slow reader yields too, if it takes less than its
//! window in this time.

use core::time::Duration;

use crate::Balancer;
use crate::boundary::{Ops, Pool};
use crate::session::State;
use crate::stats::ShedReason;
use crate::time::Instant;

/// How long what was sent may not be taken while few buffers are left. A segment that was lost is
/// repeated four times within this: after 0.2, 0.6, 1.4 and 3 seconds.
const STALL_MAX: Duration = Duration::from_secs(5);
/// The same while none are left, and so nobody goes on at all.
const STALL_MAX_OF_ALL: Duration = Duration::from_secs(1);
/// Between two walks.
const LOOK: Duration = Duration::from_millis(250);

/// A walk over all sessions while buffers are short, a few at a time.
#[derive(Debug, Default)]
pub(super) struct Relief {
    /// The next slot to look at.
    next: Option<u32>,
    /// When the next walk begins. Nothing else may come that would be looked at on the way.
    due: Option<Instant>,
}

impl Relief {
    pub(super) fn next_timeout(&self) -> Option<Instant> {
        if self.next.is_some() { Some(Instant::ZERO) } else { self.due }
    }
}

impl Balancer {
    /// Ends flows that have stalled for too long, if buffers are short. Bounded work; what is left is due
    /// at once.
    pub(super) fn relieve(&mut self, now: Instant, ops: &mut Ops) {
        if !self.chains.is_short(Pool::Small) {
            self.relief = Relief::default();
            return;
        }
        if self.relief.next.is_none() {
            let due = *self.relief.due.get_or_insert(now + LOOK);
            if due > now {
                return;
            }
            self.relief = Relief { next: Some(0), due: Some(now + LOOK) };
        }
        for _ in 0..Self::STEPS_PER_TURN {
            let Some(slot) = self.relief.next else { return };
            if ops.room() < Self::OPS_PER_COMPLETION_MAX {
                return;
            }
            if self.has_stalled(now, slot) {
                self.shed(now, slot, ShedReason::Buffers, ops);
            }
            self.relief.next = Some(slot + 1).filter(|&next| next < self.sessions.slots_end());
        }
    }

    fn has_stalled(&self, now: Instant, slot: u32) -> bool {
        let Some(session) = self.sessions.get(slot) else { return false };
        let is_over = self.chains.is_exhausted(Pool::Small);
        let stall_max = if is_over { STALL_MAX_OF_ALL } else { STALL_MAX };
        session.state == State::Established
            && session.stalls_since().is_some_and(|since| now.since(since) >= stall_max)
    }
}

#[cfg(test)]
mod tests {
    use super::super::rig::Rig;
    use super::*;
    use crate::boundary::Buffer;
    use crate::chain::Queue;

    #[test]
    fn a_walk_that_finds_nobody_is_followed_by_another() {
        let (mut rig, mut held) = (Rig::new(), Queue::EMPTY);
        for index in 0..4 {
            rig.balancer.chains.push(&mut held, Buffer::new(Pool::Small, index, 1));
        }
        for _ in 0..3 {
            rig.balancer.relieve(rig.now, &mut rig.ops);
            let due = rig.balancer.relief.next_timeout().expect("a walk is due");
            assert!(due <= rig.now + LOOK);
            rig.now = rig.now.max(due);
        }
        while rig.balancer.chains.pop(&mut held).is_some() {}
    }
}
