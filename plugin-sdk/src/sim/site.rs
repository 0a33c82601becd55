//! An endpoint of the simulation.

use super::{Change, Distribution};
use crate::parts::Average;
use crate::{Latency, Rng, Sample};

/// As the balancer's own averages forget.
const TIME_CONSTANT_MS: u32 = 10_000;

#[derive(Debug, Clone)]
pub(super) struct Site {
    address: String,
    pub(super) weight: u32,
    service: Distribution,
    slowness: f64,
    pub(super) is_listed: bool,
    pub(super) is_reachable: bool,
    pub(super) active: u32,
    /// When it has served all that it has been given.
    free_us: f64,
    first_byte: Average,
    first_byte_peak: Average,
    errors: Average,
    fed_ms: u64,
}

impl Site {
    pub(super) fn new(address: &str, weight: u32, service: Distribution) -> Self {
        Self {
            address: address.to_owned(),
            weight,
            service,
            slowness: 1.0,
            is_listed: true,
            is_reachable: true,
            active: 0,
            free_us: 0.0,
            first_byte: Average::new(TIME_CONSTANT_MS),
            first_byte_peak: Average::new(TIME_CONSTANT_MS),
            errors: Average::new(TIME_CONSTANT_MS),
            fed_ms: 0,
        }
    }

    pub(super) fn address(&self) -> &str {
        &self.address
    }

    pub(super) fn per_weight(&self) -> f64 {
        f64::from(self.active) / f64::from(self.weight)
    }

    pub(super) fn apply(&mut self, change: Change) {
        match change {
            Change::Joins(_) => self.is_listed = true,
            Change::Leaves(_) => self.is_listed = false,
            Change::Fails(_) => self.is_reachable = false,
            Change::Recovers(_) => self.is_reachable = true,
            Change::Slows(_, factor) => self.slowness = factor,
        }
    }

    /// Takes a flow in, and says when it will be served.
    pub(super) fn serve(&mut self, now_us: f64, rng: &mut Rng) -> f64 {
        self.free_us = self.free_us.max(now_us) + self.service.draw(rng) * self.slowness;
        self.free_us
    }

    pub(super) fn on_answered(&mut self, now_ms: u64, took_us: f64) {
        self.first_byte.feed(now_ms, took_us);
        self.first_byte_peak.feed_peak(now_ms, took_us);
        self.errors.feed(now_ms, 0.0);
        self.fed_ms = now_ms;
    }

    pub(super) fn on_failed(&mut self, now_ms: u64) {
        self.errors.feed(now_ms, 1.0);
        self.fed_ms = now_ms;
    }

    pub(super) fn sample(&self, now_ms: u64) -> Sample {
        let age_ms = u32::try_from(now_ms.saturating_sub(self.fed_ms)).unwrap_or(u32::MAX - 1);
        let micros = |average: &Average| average.value().unwrap_or(0.0) as u32;
        Sample {
            flows_active: self.active,
            connecting: 0,
            connect: Latency::default(),
            first_byte: Latency {
                average_us: micros(&self.first_byte),
                peak_us: micros(&self.first_byte_peak),
                age_ms: self.first_byte.value().map(|_| age_ms),
            },
            errors_ppm: (self.errors.value().unwrap_or(0.0) * 1e6) as u32,
            errors_age_ms: self.errors.value().map(|_| age_ms),
        }
    }
}
