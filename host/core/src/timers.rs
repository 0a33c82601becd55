//! One deadline per session or flow, in a hierarchical timing wheel.
//!
//! After Varghese and Lauck, "Hashed and Hierarchical Timing Wheels" (SOSP 1987), scheme 7: six
//! bits of the deadline per level, one millisecond per tick at the lowest. Setting and cancelling
//! are a few writes. A session that is busy does not touch the wheel: its deadline is checked
//! against its last progress only when it fires, and set again.

use alloc::vec::Vec;

use crate::time::Instant;

const LEVELS: usize = 6;
const LEVEL_BITS: usize = 6;
const LEVEL_SLOTS: usize = 1 << LEVEL_BITS;
/// The farthest a deadline is placed ahead, some 24 days; what lies farther fires early and is set
/// again.
const AHEAD_MAX: u64 = (1 << 31) - 1;
const NONE: u32 = u32::MAX;
const UNSET: u16 = u16::MAX;

#[derive(Debug, Clone)]
struct Node {
    /// The low half of the deadline: all of them lie between `turned` and `turned + AHEAD_MAX`.
    deadline: u32,
    next: u32,
    previous: u32,
    /// `level * LEVEL_SLOTS + slot`, or `UNSET`.
    bucket: u16,
}

const UNSET_NODE: Node = Node { deadline: 0, next: NONE, previous: NONE, bucket: UNSET };

/// The wheel. Timers are named by the slot of what they belong to.
#[derive(Debug)]
pub(crate) struct Timers {
    nodes: Vec<Node>,
    heads: [u32; LEVELS * LEVEL_SLOTS],
    occupied: [u64; LEVELS],
    /// The tick up to which the wheel has turned; no deadline in it is earlier.
    turned: u64,
}

impl Timers {
    /// Bytes that each timer takes.
    pub(crate) const BYTES_PER_TIMER: usize = size_of::<Node>();

    /// For timers 0 to `capacity` − 1.
    pub(crate) fn with_capacity(capacity: u32) -> Self {
        Self {
            nodes: Vec::with_capacity(capacity as usize),
            heads: [NONE; LEVELS * LEVEL_SLOTS],
            occupied: [0; LEVELS],
            turned: 0,
        }
    }

    /// Sets or moves a timer. It fires at `deadline` or at most a tick later, never earlier.
    pub(crate) fn set(&mut self, timer: u32, deadline: Instant) {
        if self.nodes.len() <= timer as usize {
            self.nodes.resize(timer as usize + 1, UNSET_NODE);
        }
        self.cancel(timer);
        let tick = deadline.as_nanos().div_ceil(1_000_000);
        self.place(timer, tick.clamp(self.turned, self.turned + AHEAD_MAX));
    }

    /// Unsets a timer, set or not.
    pub(crate) fn cancel(&mut self, timer: u32) {
        if self.nodes.get(timer as usize).is_some_and(|node| node.bucket != UNSET) {
            self.unlink(timer);
        }
    }

    /// No timer fires before this; one may be due then.
    pub(crate) fn next(&self) -> Option<Instant> {
        self.next_bucket().map(|(_, tick)| Instant::from_millis(tick))
    }

    /// Takes out one timer that is due, spending at least one of `steps` for it and one for each
    /// timer moved down a level on the way. None is due, or the steps are used up, if `None`.
    pub(crate) fn pop_due(&mut self, now: Instant, steps: &mut u32) -> Option<u32> {
        while let Some((bucket, tick)) = self.next_bucket() {
            if tick > now.as_millis() || *steps == 0 {
                break;
            }
            *steps -= 1;
            self.turned = self.turned.max(tick);
            let timer = self.heads[bucket];
            self.unlink(timer);
            let deadline = self.deadline(timer);
            if deadline <= now.as_millis() {
                return Some(timer);
            }
            self.place(timer, deadline);
        }
        if self.next_bucket().is_none_or(|(_, tick)| tick > now.as_millis()) {
            self.turned = self.turned.max(now.as_millis());
        }
        None
    }

    /// Whether the timer is set.
    pub(crate) fn is_set(&self, timer: u32) -> bool {
        self.nodes.get(timer as usize).is_some_and(|node| node.bucket != UNSET)
    }

    /// When a timer that is set is due.
    pub(crate) fn due(&self, timer: u32) -> Instant {
        Instant::from_millis(self.deadline(timer))
    }

    /// The deadline of a timer that is no earlier than `turned`.
    fn deadline(&self, timer: u32) -> u64 {
        let ahead = self.nodes[timer as usize].deadline.wrapping_sub(self.turned as u32);
        self.turned + u64::from(ahead)
    }

    /// The first bucket to come, and the first tick it stands for.
    fn next_bucket(&self) -> Option<(usize, u64)> {
        (0..LEVELS)
            .filter(|&level| self.occupied[level] != 0)
            .map(|level| self.next_in(level))
            .min_by_key(|&(bucket, tick)| (tick, core::cmp::Reverse(bucket)))
    }

    fn next_in(&self, level: usize) -> (usize, u64) {
        let shift = level * LEVEL_BITS;
        let here = (self.turned >> shift) as usize % LEVEL_SLOTS;
        let ahead = self.occupied[level].rotate_right(here as u32).trailing_zeros() as usize;
        let slot = (here + ahead) % LEVEL_SLOTS;
        let first = ((self.turned >> shift) + ahead as u64) << shift;
        (level * LEVEL_SLOTS + slot, first.max(self.turned))
    }

    fn place(&mut self, timer: u32, deadline: u64) {
        let bucket = bucket_of(self.turned, deadline);
        let head = self.heads[bucket];
        self.nodes[timer as usize] =
            Node { deadline: deadline as u32, next: head, previous: NONE, bucket: bucket as u16 };
        if head != NONE {
            self.nodes[head as usize].previous = timer;
        }
        self.heads[bucket] = timer;
        self.occupied[bucket / LEVEL_SLOTS] |= 1 << (bucket % LEVEL_SLOTS);
    }

    fn unlink(&mut self, timer: u32) {
        let Node { next, previous, bucket, .. } = self.nodes[timer as usize];
        let bucket = bucket as usize;
        if next != NONE {
            self.nodes[next as usize].previous = previous;
        }
        if previous == NONE {
            self.heads[bucket] = next;
        } else {
            self.nodes[previous as usize].next = next;
        }
        if self.heads[bucket] == NONE {
            self.occupied[bucket / LEVEL_SLOTS] &= !(1 << (bucket % LEVEL_SLOTS));
        }
        self.nodes[timer as usize].bucket = UNSET;
    }
}

/// The lowest level whose slots can tell `deadline` from `turned`.
fn bucket_of(turned: u64, deadline: u64) -> usize {
    let differing = (turned ^ deadline) | (LEVEL_SLOTS as u64 - 1);
    let level = (63 - differing.leading_zeros() as usize) / LEVEL_BITS;
    let level = level.min(LEVELS - 1);
    let slot = (deadline >> (level * LEVEL_BITS)) as usize % LEVEL_SLOTS;
    level * LEVEL_SLOTS + slot
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    fn ms(millis: u64) -> Instant {
        Instant::from_millis(millis)
    }

    fn pop_all(timers: &mut Timers, now: u64) -> Vec<u32> {
        core::iter::from_fn(|| timers.pop_due(ms(now), &mut 1_000)).collect()
    }

    #[test]
    fn a_timer_fires_once_at_its_deadline_and_not_before() {
        for deadline in [0, 1, 63, 64, 65, 4_095, 4_096, 60_000, 86_400_000] {
            let mut timers = Timers::with_capacity(1);
            timers.set(0, ms(deadline));
            if deadline > 0 {
                assert_eq!(pop_all(&mut timers, deadline - 1), []);
            }
            assert_eq!(pop_all(&mut timers, deadline), [0], "deadline {deadline}");
            assert_eq!(pop_all(&mut timers, deadline + 1_000_000), []);
        }
    }

    #[test]
    fn a_part_of_a_millisecond_is_waited_out() {
        let mut timers = Timers::with_capacity(1);
        timers.set(0, Instant::from_nanos(5_000_001));
        assert_eq!(pop_all(&mut timers, 5), []);
        assert_eq!(pop_all(&mut timers, 6), [0]);
    }

    #[test]
    fn a_cancelled_or_moved_timer_does_not_fire_at_its_old_deadline() {
        let mut timers = Timers::with_capacity(3);
        (0..3).for_each(|timer| timers.set(timer, ms(100)));
        timers.cancel(1);
        timers.set(2, ms(5_000));
        assert_eq!(pop_all(&mut timers, 100), [0]);
        assert_eq!(pop_all(&mut timers, 5_000), [2]);
        assert_eq!(timers.next(), None);
    }

    #[test]
    fn work_is_bounded_by_steps_and_goes_on_later() {
        let mut timers = Timers::with_capacity(10);
        (0..5).for_each(|timer| timers.set(timer, ms(70)));
        (5..10).for_each(|timer| timers.set(timer, ms(90)));
        let fired = |timers: &mut Timers, steps| {
            let mut left = steps;
            core::iter::from_fn(|| timers.pop_due(ms(80), &mut left)).count()
        };
        let first = fired(&mut timers, 4);
        assert!(first <= 4);
        assert!(timers.next().is_some_and(|next| next <= ms(80)), "the rest is due at once");
        assert_eq!(first + fired(&mut timers, 100), 5);
        assert_eq!(pop_all(&mut timers, 90).len(), 5);
    }

    #[test]
    fn the_wheel_agrees_with_a_sorted_map() {
        let mut seed = 0x9e37_79b9_7f4a_7c15_u64;
        let mut random = move |below: u64| {
            seed ^= seed << 13;
            seed ^= seed >> 7;
            seed ^= seed << 17;
            seed % below
        };
        let (mut timers, mut model, mut now) = (Timers::with_capacity(50), BTreeMap::new(), 0);
        for _ in 0..20_000 {
            let timer = random(50) as u32;
            let span = 1 << random(18);
            match random(4) {
                0 => {
                    timers.cancel(timer);
                    model.remove(&timer);
                }
                1 => {
                    now += random(span);
                    let mut fired = pop_all(&mut timers, now);
                    fired.sort_unstable();
                    let due: Vec<_> =
                        model.iter().filter(|&(_, &at)| at <= now).map(|(&t, _)| t).collect();
                    assert_eq!(fired, due, "at {now}");
                    model.retain(|_, at| *at > now);
                }
                _ => {
                    let at = now + random(span);
                    timers.set(timer, ms(at));
                    model.insert(timer, at);
                }
            }
            let earliest = model.values().min().map(|&at| ms(at));
            assert!(timers.next() <= earliest || earliest.is_none(), "woken in time");
            assert_eq!(timers.next().is_some(), earliest.is_some());
        }
    }
}
