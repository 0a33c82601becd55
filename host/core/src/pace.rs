//! How fast one direction of a throttled flow may go.
//!
//! The generic cell rate algorithm (ITU-T I.371, virtual scheduling): every byte received moves the
//! time at which the flow is on schedule; credit is granted only when that time has come, and then
//! for one slice. A slice is short enough that the flow is smooth, and long enough that a timer
//! per slice costs nothing.

use core::time::Duration;

use crate::time::Instant;

const SLICE: Duration = Duration::from_millis(50);

/// The schedule of one direction.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Pace {
    bytes_per_s: u64,
    on_schedule: Instant,
}

impl Pace {
    /// At most this many KiB per second; 0 is taken for 1.
    pub(crate) fn new(kib_s: u32, now: Instant) -> Self {
        Self { bytes_per_s: u64::from(kib_s.max(1)) * 1024, on_schedule: now }
    }

    pub(crate) fn on_received(&mut self, now: Instant, bytes: u32) {
        let nanos = u64::from(bytes) * 1_000_000_000 / self.bytes_per_s;
        self.on_schedule = self.on_schedule.max(now) + Duration::from_nanos(nanos);
    }

    /// When credit may be granted, if not at once.
    pub(crate) fn waits_until(&self, now: Instant) -> Option<Instant> {
        Some(self.on_schedule).filter(|&at| at > now)
    }

    /// The most bytes to grant at a time.
    pub(crate) fn slice_bytes(&self) -> u32 {
        let bytes = self.bytes_per_s * SLICE.as_millis() as u64 / 1_000;
        u32::try_from(bytes).unwrap_or(u32::MAX).max(1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slice_is_followed_by_its_own_time() {
        let start = Instant::from_millis(1_000);
        let mut pace = Pace::new(100, start);
        assert_eq!(pace.waits_until(start), None);
        assert_eq!(pace.slice_bytes(), 5_120);
        pace.on_received(start, pace.slice_bytes());
        assert_eq!(pace.waits_until(start), Some(Instant::from_millis(1_050)));
        assert_eq!(pace.waits_until(Instant::from_millis(1_050)), None);
    }

    #[test]
    fn time_that_was_not_used_is_not_saved_up() {
        let mut pace = Pace::new(1, Instant::ZERO);
        let late = Instant::from_millis(60_000);
        pace.on_received(late, 1_024);
        assert_eq!(pace.waits_until(late), Some(Instant::from_millis(61_000)));
    }
}
