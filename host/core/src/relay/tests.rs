//! What one direction does, step by step.

use super::*;
use crate::boundary::PoolSizes;
use alloc::vec::Vec;

const SLOT: u32 = 7;

/// A relay from downstream to upstream and everything it needs.
struct Bench {
    relay: Relay,
    chains: Chains,
    ops: Ops,
    next_buffer: u32,
    now: Instant,
}

impl Bench {
    fn started() -> Self {
        Self::throttled(None)
    }

    fn throttled(kib_s: Option<u32>) -> Self {
        let chains = Chains::new(PoolSizes { small: 1_024, bulk: 64 });
        let relay = Relay::new(Side::Downstream);
        let mut bench = Self {
            relay,
            chains,
            ops: Ops::with_capacity(256),
            next_buffer: 0,
            now: Instant::ZERO,
        };
        bench.with(|relay, step| relay.start(kib_s, step));
        bench
    }

    /// One whose first bytes are waited for, up to so many.
    fn held(bytes_max: u32) -> Self {
        let mut bench = Self {
            relay: Relay::new(Side::Downstream),
            chains: Chains::new(PoolSizes { small: 1_024, bulk: 64 }),
            ops: Ops::with_capacity(256),
            next_buffer: 0,
            now: Instant::ZERO,
        };
        let mut step =
            Step { now: bench.now, slot: SLOT, chains: &mut bench.chains, ops: &mut bench.ops };
        bench.relay.preread(bytes_max, &mut step);
        bench
    }

    fn with(&mut self, act: impl FnOnce(&mut Relay, &mut Step<'_>)) {
        let mut step =
            Step { now: self.now, slot: SLOT, chains: &mut self.chains, ops: &mut self.ops };
        act(&mut self.relay, &mut step);
        if self.relay.outbound != Outbound::Held {
            self.relay.check_invariants();
        }
    }

    fn receive(&mut self, pool: Pool, len: u32) {
        let buffer = Buffer::new(pool, self.next_buffer, len);
        self.next_buffer = (self.next_buffer + 1) % 64;
        self.with(|relay, step| relay.on_received(buffer, step));
    }

    fn sent(&mut self) {
        self.relay.on_delivered(0, &mut self.chains);
        self.with(Relay::on_sent);
    }

    fn ops(&mut self) -> Vec<Op> {
        self.ops.drain().collect()
    }

    /// The pool and credit of the only op there is.
    fn subscription(&mut self) -> (Pool, u32) {
        match self.ops()[..] {
            [Op::Receive { link, pool, credit }] => {
                assert_eq!(link, Link::new(SLOT, Side::Downstream));
                (pool, credit)
            }
            ref other => panic!("{other:?}"),
        }
    }
}

#[test]
fn received_bytes_are_sent_at_once() {
    let mut bench = Bench::started();
    assert_eq!(bench.subscription(), (Pool::Small, 16_384));
    bench.receive(Pool::Small, 100);
    let link = Link::new(SLOT, Side::Upstream);
    let buffer = Buffer::new(Pool::Small, 0, 100);
    assert_eq!(bench.ops(), [Op::Send { link, buffer, more: false }]);
}

#[test]
fn what_comes_during_a_send_leaves_in_one_run_after_it() {
    let mut bench = Bench::started();
    bench.receive(Pool::Small, 1);
    bench.ops();
    bench.receive(Pool::Small, 2);
    bench.receive(Pool::Small, 3);
    assert_eq!(bench.ops(), [], "one run at a time");
    bench.sent();
    let runs: Vec<_> = bench
        .ops()
        .into_iter()
        .map(|op| match op {
            Op::Send { buffer, more, .. } => (buffer.len(), more),
            other => panic!("{other:?}"),
        })
        .collect();
    assert_eq!(runs, [(2, true), (3, false)]);
}

#[test]
fn a_destination_that_stalls_stops_the_source_and_its_recovery_starts_it_again() {
    let mut bench = Bench::started();
    (0..4).for_each(|_| bench.receive(Pool::Small, 4_096));
    bench.ops();
    bench.with(|relay, step| relay.on_receive_ended(ReceiveEnd::Paused, step));
    assert_eq!(bench.ops(), [], "12 KiB wait: no credit");
    bench.sent();
    let granted = |ops: Vec<Op>| ops.iter().any(|op| matches!(op, Op::Receive { .. }));
    assert!(!granted(bench.ops()), "12 KiB are being sent: no credit");
    bench.sent();
    assert!(granted(bench.ops()), "everything has been taken: new credit");
}

#[test]
fn a_source_of_single_bytes_is_paused_before_it_hoards_buffers() {
    let mut bench = Bench::started();
    bench.receive(Pool::Small, 1);
    bench.ops();
    (2..WAITING_MAX).for_each(|_| bench.receive(Pool::Small, 1));
    assert_eq!(bench.ops(), []);
    bench.receive(Pool::Small, 1);
    assert_eq!(bench.ops(), [Op::Pause { link: Link::new(SLOT, Side::Downstream) }]);
    bench.receive(Pool::Small, 1);
    assert_eq!(bench.ops(), [], "paused once, however much is on its way");
}

#[test]
fn a_direction_that_fills_its_buffers_moves_to_bulk_and_back() {
    let mut bench = Bench::started();
    bench.ops();
    for _ in 0..4 {
        bench.receive(Pool::Small, 4_096);
        bench.sent();
    }
    bench.ops();
    bench.with(|relay, step| relay.on_receive_ended(ReceiveEnd::Paused, step));
    assert_eq!(bench.subscription(), (Pool::Bulk, 512 * 1024));
    bench.receive(Pool::Bulk, 300);
    bench.sent();
    bench.ops();
    bench.with(|relay, step| relay.on_receive_ended(ReceiveEnd::Paused, step));
    assert_eq!(bench.subscription(), (Pool::Small, 16_384));
}

#[test]
fn messages_of_one_and_a_half_buffers_stay_small() {
    let mut bench = Bench::started();
    for _ in 0..3 {
        bench.receive(Pool::Small, 4_096);
        bench.sent();
        bench.receive(Pool::Small, 2_000);
        bench.sent();
    }
    bench.ops();
    bench.with(|relay, step| relay.on_receive_ended(ReceiveEnd::Paused, step));
    assert_eq!(bench.subscription().0, Pool::Small);
}

#[test]
fn the_end_is_announced_after_the_last_byte() {
    let mut bench = Bench::started();
    bench.receive(Pool::Small, 10);
    bench.ops();
    bench.with(|relay, step| relay.on_receive_ended(ReceiveEnd::EndOfStream, step));
    bench.with(Relay::finish);
    assert_eq!(bench.ops(), [], "the last byte is still on its way");
    bench.sent();
    bench.with(Relay::finish);
    assert_eq!(bench.ops(), [Op::Shutdown { link: Link::new(SLOT, Side::Upstream) }]);
    bench.with(Relay::finish);
    assert_eq!(bench.ops(), [], "once");
}

#[test]
fn a_short_pool_grants_one_buffer_at_a_time() {
    let mut bench = Bench::started();
    bench.ops();
    let mut hoard = Queue::EMPTY;
    (100..1_000).for_each(|n| bench.chains.push(&mut hoard, Buffer::new(Pool::Small, n, 1)));
    bench.with(|relay, step| relay.on_receive_ended(ReceiveEnd::Paused, step));
    assert_eq!(bench.subscription(), (Pool::Small, 4_096));
}

#[test]
fn a_throttled_source_gets_its_slice_and_then_waits_for_its_time() {
    let mut bench = Bench::throttled(Some(40));
    assert_eq!(bench.subscription(), (Pool::Small, 2_048));
    bench.receive(Pool::Small, 2_048);
    bench.sent();
    bench.ops();
    bench.with(|relay, step| relay.on_receive_ended(ReceiveEnd::Paused, step));
    assert_eq!(bench.ops(), [], "no credit before its time");
    assert_eq!(bench.relay.resumes(), Some(Instant::from_millis(50)));
    bench.now = Instant::from_millis(49);
    bench.with(Relay::resume);
    assert_eq!(bench.ops(), []);
    bench.now = Instant::from_millis(50);
    bench.with(Relay::resume);
    assert_eq!(bench.subscription(), (Pool::Small, 2_048));
}

#[test]
fn an_announcement_goes_ahead_of_the_stream_and_is_not_counted() {
    let mut bench = Bench::held(100);
    bench.receive(Pool::Small, 10);
    bench.ops();
    bench.relay.announce(Buffer::new(Pool::Small, 63, 28), &mut bench.chains);
    bench.with(|relay, step| relay.start(None, step));
    let run = bench.ops();
    let lengths = run.iter().map(|op| match op {
        Op::Send { buffer, more, .. } => (buffer.len(), *more),
        other => panic!("{other:?}"),
    });
    assert_eq!(lengths.collect::<Vec<_>>(), [(28, true), (10, false)], "both in one run");
    assert_eq!(bench.relay.on_delivered(20, &mut bench.chains), 0, "a header that breaks off");
    assert_eq!(bench.relay.on_delivered(18, &mut bench.chains), 10);
    assert_eq!(bench.relay.delivered(), 10);
}

#[test]
fn an_announcement_leaves_without_waiting_for_the_stream() {
    let mut bench = Bench::held(100);
    bench.ops();
    bench.relay.announce(Buffer::new(Pool::Small, 63, 28), &mut bench.chains);
    bench.with(|relay, step| relay.start(None, step));
    assert!(
        matches!(&bench.ops()[..], [Op::Send { buffer, more: false, .. }] if buffer.len() == 28)
    );
}

#[test]
fn first_bytes_are_asked_for_again_until_there_are_enough() {
    let mut bench = Bench::held(100);
    bench.receive(Pool::Small, 60);
    bench.with(|relay, step| relay.on_receive_ended(ReceiveEnd::Paused, step));
    bench.ops();
    bench.with(|relay, step| relay.hold_more(100, step));
    assert_eq!(bench.subscription(), (Pool::Small, 40));
    bench.with(|relay, step| relay.hold_more(100, step));
    assert_eq!(bench.ops(), [], "one subscription at a time");
    bench.receive(Pool::Small, 40);
    bench.with(|relay, step| relay.on_receive_ended(ReceiveEnd::Paused, step));
    bench.with(|relay, step| relay.hold_more(100, step));
    assert_eq!(bench.ops(), [], "there are enough");
}

#[test]
fn a_throttled_source_stays_with_small_buffers() {
    let mut bench = Bench::throttled(Some(40));
    bench.ops();
    bench.receive(Pool::Small, 4_096);
    bench.sent();
    bench.ops();
    bench.with(|relay, step| relay.on_receive_ended(ReceiveEnd::Paused, step));
    bench.now = Instant::from_millis(1_000);
    bench.with(Relay::resume);
    assert_eq!(bench.subscription(), (Pool::Small, 2_048), "though it filled its buffer");
}
