//! What all workers together know of an endpoint: its flows, and how it has served them.
//!
//! Counts are exact; averages are fed by several threads that do not wait for each other, so one
//! sample in a great many may be lost. A worker writes a few times per flow and never per packet.

use core::sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed};
use core::time::Duration;

use crate::time::Instant;

/// How fast averages forget: after this time a sample counts for a third.
const TIME_CONSTANT: Duration = Duration::from_secs(10);
/// Numbers that the host keeps per endpoint for policies.
pub const SLOTS: usize = 8;

/// What all workers together know of an endpoint, in cache lines of its own.
#[derive(Debug, Default)]
#[repr(align(64))]
pub struct Load {
    flows_active: AtomicU32,
    connecting: AtomicU32,
    connect_failures_in_a_row: AtomicU32,
    flows_total: AtomicU64,
    connect_failures_total: AtomicU64,
    connect: Latency,
    first_byte: Latency,
    errors: Average,
    successes_total: AtomicU64,
    failures_total: AtomicU64,
    failures_in_a_row: AtomicU32,
    slots: [AtomicU64; SLOTS],
}

impl Load {
    /// A flow was given to the endpoint (it may still be connecting).
    pub fn on_flow_started(&self) {
        self.flows_active.fetch_add(1, Relaxed);
        self.flows_total.fetch_add(1, Relaxed);
    }

    /// The same, if there are fewer than `flows_max`, which is [`u32::MAX`] where there may be any
    /// number; tells whether it was. Exact, whoever else does it at the same time.
    pub fn try_start(&self, flows_max: u32) -> bool {
        if flows_max == u32::MAX {
            self.on_flow_started();
            return true;
        }
        let one_more = |flows: u32| (flows < flows_max).then_some(flows + 1);
        let started = self.flows_active.fetch_update(Relaxed, Relaxed, one_more).is_ok();
        if started {
            self.flows_total.fetch_add(1, Relaxed);
        }
        started
    }

    /// A flow that was given to the endpoint before goes on here. It has its place, however many there
    /// may be.
    pub(crate) fn on_flow_taken_over(&self) {
        self.flows_active.fetch_add(1, Relaxed);
    }

    /// A flow has left the endpoint, or never reached it.
    pub fn on_flow_ended(&self) {
        self.flows_active.fetch_sub(1, Relaxed);
    }

    /// A connection is being made.
    pub fn on_connecting(&self) {
        self.connecting.fetch_add(1, Relaxed);
    }

    /// A connection is no longer being made, whatever came of it.
    pub fn on_connecting_ended(&self) {
        self.connecting.fetch_sub(1, Relaxed);
    }

    /// The endpoint answered.
    pub fn on_answered(&self) {
        if self.connect_failures_in_a_row.load(Relaxed) != 0 {
            self.connect_failures_in_a_row.store(0, Relaxed);
        }
    }

    /// A connection came about.
    pub fn on_connected(&self, now: Instant, took: Duration) {
        self.on_answered();
        self.connect.feed(now, took);
    }

    /// The first byte of an answer came.
    pub fn on_first_byte(&self, now: Instant, took: Duration) {
        self.first_byte.feed(now, took);
        self.on_served(now);
    }

    /// A flow got what it wanted of the endpoint: an answer, or an end in order without one.
    pub fn on_served(&self, now: Instant) {
        self.errors.feed(now, 0.0);
        self.successes_total.fetch_add(1, Relaxed);
        if self.failures_in_a_row.load(Relaxed) != 0 {
            self.failures_in_a_row.store(0, Relaxed);
        }
    }

    /// The endpoint reset a flow before the first byte of an answer, or left it without one.
    pub fn on_broken(&self, now: Instant) {
        self.errors.feed(now, 1.0);
        self.failures_total.fetch_add(1, Relaxed);
        self.failures_in_a_row.fetch_add(1, Relaxed);
    }

    /// No connection came about, and the endpoint is to blame.
    pub fn on_connect_failed(&self, now: Instant) {
        self.connect_failures_in_a_row.fetch_add(1, Relaxed);
        self.connect_failures_total.fetch_add(1, Relaxed);
        self.on_broken(now);
    }

    /// Flows now, connecting ones included.
    #[must_use]
    pub fn flows_active(&self) -> u32 {
        self.flows_active.load(Relaxed)
    }

    /// Connections being made now.
    #[must_use]
    pub fn connecting(&self) -> u32 {
        self.connecting.load(Relaxed)
    }

    /// Flows ever given to the endpoint.
    #[must_use]
    pub fn flows_total(&self) -> u64 {
        self.flows_total.load(Relaxed)
    }

    /// Failed connects since the last that succeeded.
    #[must_use]
    pub fn connect_failures_in_a_row(&self) -> u32 {
        self.connect_failures_in_a_row.load(Relaxed)
    }

    /// Failed connects ever.
    #[must_use]
    pub fn connect_failures_total(&self) -> u64 {
        self.connect_failures_total.load(Relaxed)
    }

    /// How the flows given to the endpoint have fared.
    #[must_use]
    pub fn outcomes(&self) -> Outcomes {
        Outcomes {
            successes: self.successes_total.load(Relaxed),
            failures: self.failures_total.load(Relaxed),
            in_a_row: self.failures_in_a_row.load(Relaxed),
        }
    }

    /// Everything a policy may know.
    #[must_use]
    pub fn sample(&self, now: Instant) -> Sample {
        Sample {
            flows_active: self.flows_active(),
            connecting: self.connecting(),
            connect: self.connect.sample(now),
            first_byte: self.first_byte.sample(now),
            #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "0 to 1")]
            errors_ppm: (self.errors.value() * 1e6) as u32,
            errors_age: self.errors.age(now),
        }
    }

    /// One of the numbers that policies keep here, if there is such a one.
    #[must_use]
    pub fn slot(&self, slot: usize) -> Option<&AtomicU64> {
        self.slots.get(slot)
    }
}

/// How flows have fared. Each attempt counts once at most: one that its client gave up says nothing
/// of the endpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Outcomes {
    /// Those that were served, ever.
    pub successes: u64,
    /// Those that failed to connect, or were reset or left alone before the first byte of an
    /// answer, ever.
    pub failures: u64,
    /// Failures since the last success.
    pub in_a_row: u32,
}

/// What is known of an endpoint at one moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Sample {
    /// Flows, connecting ones included.
    pub flows_active: u32,
    /// Connections being made.
    pub connecting: u32,
    /// Until connections came about.
    pub connect: LatencySample,
    /// From a client's first bytes to the endpoint's.
    pub first_byte: LatencySample,
    /// The share of flows that failed, in parts per million.
    pub errors_ppm: u32,
    /// How old that share is; `None` if there is none.
    pub errors_age: Option<Duration>,
}

/// How long something has taken lately.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct LatencySample {
    /// A moving average.
    pub average: Duration,
    /// The same, but a slower sample counts in full.
    pub peak: Duration,
    /// How long ago the last sample was; `None` if there was none.
    pub age: Option<Duration>,
}

/// Times, averaged in two ways.
#[derive(Debug, Default)]
struct Latency {
    average: Average,
    /// Peak EWMA (Finagle's `PeakEwma`): a slower sample is believed at once, a faster one slowly.
    peak: Average,
}

impl Latency {
    fn feed(&self, now: Instant, took: Duration) {
        let micros = took.as_secs_f64() * 1e6;
        self.average.feed(now, micros);
        self.peak.feed_peak(now, micros);
    }

    fn sample(&self, now: Instant) -> LatencySample {
        let micros = |average: &Average| Duration::from_secs_f64(average.value() / 1e6);
        LatencySample {
            average: micros(&self.average),
            peak: micros(&self.peak),
            age: self.average.age(now),
        }
    }
}

/// An exponentially weighted moving average over unevenly spaced samples. No number until the first.
///
/// A sample after a gap of `t` weighs `t / (T + t)` with `T` the time constant: the first-order
/// rational approximation of `1 - e^(-t/T)`, for there is no exponential function without `std`.
#[derive(Debug)]
struct Average {
    /// The bits of an `f64`.
    value: AtomicU64,
    /// When it was last fed, in nanoseconds; 0 if never.
    fed: AtomicU64,
}

impl Default for Average {
    fn default() -> Self {
        Self { value: AtomicU64::new(f64::NAN.to_bits()), fed: AtomicU64::new(0) }
    }
}

impl Average {
    fn feed(&self, now: Instant, sample: f64) {
        self.feed_with(now, sample, |old, weight| old + (sample - old) * weight);
    }

    fn feed_peak(&self, now: Instant, sample: f64) {
        let next = |old: f64, weight: f64| (old + (sample - old) * weight).max(sample);
        self.feed_with(now, sample, next);
    }

    /// The swap gives each of several writers a gap of its own.
    fn feed_with(&self, now: Instant, sample: f64, next: impl Fn(f64, f64) -> f64) {
        let now = now.as_nanos().max(1);
        let before = self.fed.swap(now, Relaxed);
        let gap = Duration::from_nanos(now.saturating_sub(before)).as_secs_f64();
        let weight = gap / (TIME_CONSTANT.as_secs_f64() + gap);
        let old = f64::from_bits(self.value.load(Relaxed));
        let value = if old.is_nan() { sample } else { next(old, weight) };
        self.value.store(value.to_bits(), Relaxed);
    }

    fn value(&self) -> f64 {
        let value = f64::from_bits(self.value.load(Relaxed));
        if value.is_nan() { 0.0 } else { value }
    }

    fn age(&self, now: Instant) -> Option<Duration> {
        let fed = self.fed.load(Relaxed);
        (fed != 0).then(|| Duration::from_nanos(now.as_nanos().saturating_sub(fed)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seconds(seconds: u64) -> Instant {
        Instant::from_millis(seconds * 1_000)
    }

    #[test]
    fn what_was_never_measured_has_no_age() {
        assert_eq!(Load::default().sample(seconds(5)), Sample::default());
    }

    #[test]
    fn the_first_sample_counts_in_full_and_later_ones_by_the_time_since() {
        let load = Load::default();
        load.on_connected(seconds(1), Duration::from_micros(100));
        assert_eq!(load.sample(seconds(1)).connect.average, Duration::from_micros(100));
        load.on_connected(seconds(11), Duration::from_micros(300));
        let sample = load.sample(seconds(13)).connect;
        assert_eq!(sample.average, Duration::from_micros(200), "half of it after the constant");
        assert_eq!(sample.age, Some(Duration::from_secs(2)));
    }

    #[test]
    fn a_peak_is_believed_at_once_and_forgotten_slowly() {
        let load = Load::default();
        load.on_first_byte(seconds(1), Duration::from_micros(100));
        load.on_first_byte(seconds(1), Duration::from_micros(900));
        let sample = load.sample(seconds(1)).first_byte;
        assert_eq!(sample.peak, Duration::from_micros(900));
        assert_eq!(sample.average, Duration::from_micros(100));
        load.on_first_byte(seconds(11), Duration::from_micros(100));
        assert_eq!(load.sample(seconds(11)).first_byte.peak, Duration::from_micros(500));
    }

    #[test]
    fn errors_are_a_share_of_flows() {
        let load = Load::default();
        load.on_first_byte(seconds(1), Duration::ZERO);
        load.on_connect_failed(seconds(11));
        assert_eq!(load.sample(seconds(11)).errors_ppm, 500_000);
        load.on_broken(seconds(21));
        assert_eq!(load.sample(seconds(21)).errors_ppm, 750_000);
    }

    #[test]
    fn an_endpoint_that_accepts_and_breaks_every_flow_has_a_row_of_failures() {
        let load = Load::default();
        load.on_connect_failed(seconds(1));
        load.on_connected(seconds(1), Duration::ZERO);
        load.on_broken(seconds(1));
        assert_eq!(load.outcomes(), Outcomes { successes: 0, failures: 2, in_a_row: 2 });
        load.on_first_byte(seconds(1), Duration::ZERO);
        assert_eq!(load.outcomes(), Outcomes { successes: 1, failures: 2, in_a_row: 0 });
    }

    #[test]
    fn a_full_endpoint_takes_no_flow_until_one_has_left() {
        let load = Load::default();
        assert_eq!((0..9).filter(|_| load.try_start(3)).count(), 3);
        assert_eq!((load.flows_active(), load.flows_total()), (3, 3));
        load.on_flow_ended();
        assert!(load.try_start(3) && !load.try_start(3));
        assert!(!load.try_start(2), "the maximum has come down");
        assert!(load.try_start(u32::MAX));
    }

    #[test]
    fn an_answer_ends_a_row_of_failures() {
        let load = Load::default();
        load.on_connect_failed(seconds(1));
        load.on_connect_failed(seconds(1));
        assert_eq!(load.connect_failures_in_a_row(), 2);
        load.on_answered();
        assert_eq!((load.connect_failures_in_a_row(), load.connect_failures_total()), (0, 2));
    }
}
