//! Exponentially weighted moving averages over unevenly spaced samples.
//!
//! What is known fades as e^(−t/τ): after the time constant τ it counts for a third. The peak form
//! is Finagle's `PeakEwma`: a sample above the average is believed at once, one below it only as the
//! average fades, because a slow endpoint hurts sooner than a fast one helps.

/// An average that forgets.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Average {
    time_constant_ms: f64,
    value: f64,
    fed_ms: Option<u64>,
}

impl Average {
    /// An average of nothing yet. A time constant of 0 ms keeps the last sample alone.
    #[must_use]
    pub const fn new(time_constant_ms: u32) -> Self {
        Self { time_constant_ms: time_constant_ms as f64, value: 0.0, fed_ms: None }
    }

    /// The average; `None` before the first sample.
    #[must_use]
    pub fn value(&self) -> Option<f64> {
        self.fed_ms.map(|_| self.value)
    }

    /// The average as it has faded towards 0 until this moment; `None` before the first sample.
    #[must_use]
    pub fn faded(&self, now_ms: u64) -> Option<f64> {
        self.fed_ms.map(|_| self.value * self.weight_of_old(now_ms))
    }

    /// Takes a sample in. The first one counts in full; several at the same moment count as one
    /// after the other without a gap, so the first of them stands.
    pub fn feed(&mut self, now_ms: u64, sample: f64) {
        let old = self.weight_of_old(now_ms);
        self.value = self.value * old + sample * (1.0 - old);
        self.fed_ms = self.fed_ms.max(Some(now_ms));
    }

    /// As [`feed`](Self::feed), but a sample above the average replaces it.
    pub fn feed_peak(&mut self, now_ms: u64, sample: f64) {
        self.feed(now_ms, sample);
        self.value = self.value.max(sample);
    }

    fn weight_of_old(&self, now_ms: u64) -> f64 {
        let Some(fed_ms) = self.fed_ms else { return 0.0 };
        if self.time_constant_ms == 0.0 {
            return 0.0;
        }
        (-(now_ms.saturating_sub(fed_ms) as f64) / self.time_constant_ms).exp()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const THIRD: f64 = 0.367_879_441_171_442_3; // 1/e

    #[test]
    fn the_first_sample_counts_in_full_and_fades_by_the_time_constant() {
        let mut average = Average::new(10_000);
        assert_eq!(average.value(), None);
        average.feed(5_000, 100.0);
        assert_eq!(average.value(), Some(100.0));
        average.feed(15_000, 0.0);
        assert!((average.value().unwrap() - 100.0 * THIRD).abs() < 1e-9);
        assert!((average.faded(25_000).unwrap() - 100.0 * THIRD * THIRD).abs() < 1e-9);
    }

    #[test]
    fn steps_of_any_length_lead_to_the_same_average() {
        let (mut coarse, mut fine) = (Average::new(1_000), Average::new(1_000));
        coarse.feed(0, 8.0);
        fine.feed(0, 8.0);
        coarse.feed(3_000, 2.0);
        (1..=300).for_each(|step| fine.feed(step * 10, 2.0));
        assert!((coarse.value().unwrap() - fine.value().unwrap()).abs() < 1e-9);
    }

    #[test]
    fn a_peak_is_believed_at_once_and_forgotten_slowly() {
        let mut average = Average::new(10_000);
        average.feed_peak(0, 100.0);
        average.feed_peak(0, 900.0);
        assert_eq!(average.value(), Some(900.0));
        average.feed_peak(10_000, 100.0);
        assert!((average.value().unwrap() - (100.0 + 800.0 * THIRD)).abs() < 1e-9);
    }

    #[test]
    fn a_clock_that_stands_still_or_goes_back_changes_nothing() {
        let mut average = Average::new(10_000);
        average.feed(1_000, 7.0);
        average.feed(1_000, 9.0);
        average.feed(0, 9.0);
        assert_eq!(average.value(), Some(7.0));
    }

    #[test]
    fn without_a_time_constant_the_last_sample_is_the_average() {
        let mut average = Average::new(0);
        average.feed(1, 7.0);
        average.feed(1, 9.0);
        assert_eq!(average.value(), Some(9.0));
    }
}
