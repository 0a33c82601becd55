//! `passive`: which endpoints are left alone for a time because flows fail on them.

use serde::Deserialize;

/// When an endpoint is ejected, and for how long.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Passive {
    /// Failed flows in a row that eject an endpoint; 0: rows do not matter. A flow fails that cannot
    /// connect, or is reset before the first byte of an answer, or whose reply does not come where
    /// one is expected. Default 5: with several workers a few flows are always under way together.
    pub consecutive_failures: u32,
    /// How often success rates are compared, and how long an endpoint must behave until one of its
    /// ejections is forgotten. Default 10000: a rate needs flows.
    pub interval_ms: u64,
    /// How long the first ejection lasts; the second lasts twice as long, and so on. Default 30000:
    /// most restarts are over by then.
    pub base_ejection_ms: u64,
    /// How long any ejection lasts at most. Default 300000: somebody who mends an endpoint will not
    /// wait longer.
    pub ejection_ms_max: u64,
    /// How much of the cluster may be ejected at a time, 1 to 100; one endpoint always may, and the
    /// last that could serve never is. Default 10: where more fail, the endpoints are not the cause.
    pub ejected_percent_max: u32,
    /// How success rates are compared. Default: not at all.
    pub success_rate: Option<SuccessRate>,
}

impl Default for Passive {
    fn default() -> Self {
        Self {
            consecutive_failures: 5,
            interval_ms: 10_000,
            base_ejection_ms: 30_000,
            ejection_ms_max: 300_000,
            ejected_percent_max: 10,
            success_rate: None,
        }
    }
}

/// An endpoint is ejected whose share of good flows is far below the others'.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct SuccessRate {
    /// Flows within the interval below which a rate says nothing. Default 100: one failure is then
    /// one percent.
    pub flows_min: u64,
    /// Endpoints with as many flows, below which there is nothing to compare with. Default 5: the
    /// deviation of fewer is chance.
    pub endpoints_min: u32,
    /// How many standard deviations below the mean are too far, more than 0, at most 100. Default
    /// 1.9: of as many equals one in thirty lies there by chance.
    pub deviations: f64,
}

impl Default for SuccessRate {
    fn default() -> Self {
        Self { flows_min: 100, endpoints_min: 5, deviations: 1.9 }
    }
}
