//! Senders that come once, and are more than the worker can deal with.
//!
//! All clients of a listener share its socket's queue. A flow without a reply costs a policy's
//! decision, a place, a port and a send; where strangers come faster than that can be done, the queue
//! overflows, and flows that are there lose their datagrams too. To turn a stranger away costs a
//! fraction. So a worker that is behind takes in no more of them than it has time for.
//! One that keeps up takes in all, and so do those whose flows are answered: they are no strangers.

use crate::time::Instant;

/// Completions at once that show that more are waiting: the kernel takes no more from one socket before
/// it turns to others.
const BEHIND: usize = 32;
/// A span of time, in milliseconds as a power of two.
const SPAN_BITS: u32 = 7;
/// New flows without a reply in a span: some 10 µs each leave most of a core to the others.
const STRANGERS_MAX: u32 = 4_096;

/// The new flows of this span that have had no reply.
#[derive(Debug, Default)]
pub(super) struct Strangers {
    is_behind: bool,
    span: u64,
    unanswered: u32,
}

impl Strangers {
    /// A turn begins with so many completions.
    pub(super) fn on_turn(&mut self, completions: usize) {
        self.is_behind = completions >= BEHIND;
    }

    /// Whether there is time for another.
    #[inline]
    pub(super) fn admits_another(&mut self, now: Instant) -> bool {
        self.turn_to(now);
        !self.is_behind || self.unanswered < STRANGERS_MAX
    }

    pub(super) fn on_started(&mut self, now: Instant) {
        self.turn_to(now);
        self.unanswered += 1;
    }

    /// A flow that started then has had its first reply.
    pub(super) fn on_answered(&mut self, started: Instant) {
        if span(started) == self.span {
            self.unanswered = self.unanswered.saturating_sub(1);
        }
    }

    fn turn_to(&mut self, now: Instant) {
        if span(now) != self.span {
            (self.span, self.unanswered) = (span(now), 0);
        }
    }
}

fn span(time: Instant) -> u64 {
    time.as_millis() >> SPAN_BITS
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Instant = Instant::from_millis(1_024);
    const SAME: Instant = Instant::from_millis(1_151);
    const NEXT: Instant = Instant::from_millis(1_152);

    fn admitted(strangers: &mut Strangers, now: Instant, count: u32) -> u32 {
        let admit = |_: &u32| {
            let admitted = strangers.admits_another(now);
            admitted.then(|| strangers.on_started(now)).is_some()
        };
        (0..count).filter(admit).count() as u32
    }

    #[test]
    fn a_worker_that_is_behind_takes_in_only_so_many_at_a_time() {
        let mut strangers = Strangers::default();
        strangers.on_turn(BEHIND);
        assert_eq!(admitted(&mut strangers, NOW, 100_000), STRANGERS_MAX);
        assert_eq!(admitted(&mut strangers, SAME, 1), 0);
        assert_eq!(admitted(&mut strangers, NEXT, 1), 1);
    }

    #[test]
    fn a_worker_that_keeps_up_takes_in_everybody() {
        let mut strangers = Strangers::default();
        strangers.on_turn(BEHIND - 1);
        assert_eq!(admitted(&mut strangers, NOW, 100_000), 100_000);
        strangers.on_turn(BEHIND);
        assert_eq!(admitted(&mut strangers, NOW, 1), 0, "until it does not");
    }

    #[test]
    fn clients_that_are_answered_are_no_strangers() {
        let mut strangers = Strangers::default();
        strangers.on_turn(BEHIND);
        for _ in 0..2 * STRANGERS_MAX {
            assert_eq!(admitted(&mut strangers, NOW, 1), 1);
            strangers.on_answered(NOW);
        }
        strangers.on_answered(Instant::from_millis(1_023));
        assert_eq!(admitted(&mut strangers, NOW, 100_000), STRANGERS_MAX);
    }
}
