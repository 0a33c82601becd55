//! What a trial has shown, for a person and for a program.

use std::fmt::Write;
use std::time::{Duration, Instant};

use pointsman_core::{CANARY_SLOTS, EndpointState};
use pointsman_plugin::PolicyCounts;
use serde::{Deserialize, Serialize};

use super::short;
use crate::seat::{Candidate, Stage};
use crate::table::Table;

/// What a trial has shown.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct TrialReport {
    /// Where.
    pub cluster: String,
    /// The policy that the module is configured as.
    pub policy: String,
    /// `shadow`, `canary` or `over`.
    pub stage: String,
    /// The canary's share of the flows; absent for a shadow.
    pub canary_percent: Option<f64>,
    /// How long a shadow still lasts.
    pub left_ms: Option<u64>,
    /// `chooser`, `table` or `weights`.
    pub shape: String,
    /// The SHA-256 of its file.
    pub digest: String,
    /// Since it began.
    pub age_ms: u64,
    /// Flows that it was asked about.
    pub asked: u64,
    /// Those that its fallback answered for it; nothing below counts them.
    pub unanswered: u64,
    /// Those on which it said what the live policy said; of a shadow only.
    pub agreed: u64,
    /// The share of those, from 0 to 1.
    pub agreement: Option<f64>,
    /// Flows that it would not forward.
    pub refused: u64,
    /// Who gets the flows, by either.
    pub endpoints: Vec<Predicted>,
    /// The live policy.
    pub live: Side,
    /// The one on trial.
    pub candidate: Side,
}

/// How many of the flows an endpoint gets.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Predicted {
    /// Its address.
    pub address: String,
    /// Its configured share.
    pub weight: u32,
    /// By the live policy.
    pub live: u64,
    /// By the one on trial.
    pub candidate: u64,
}

/// One of the two policies.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Side {
    /// The most flows per weight that any endpoint gets, over the mean of all; 1 is even.
    pub imbalance: Option<f64>,
    /// What half of its decisions take at most.
    pub p50_ns: Option<u64>,
    /// What 99 of 100 take at most.
    pub p99_ns: Option<u64>,
    /// Calls that failed.
    pub faults: u64,
    /// Flows that it was not asked about for want of CPU.
    pub throttled: u64,
}

impl TrialReport {
    /// Looks at a trial. Cluster and policy have no names yet.
    pub(super) fn new(
        candidate: &Candidate,
        endpoints: &[EndpointState],
        live: &PolicyCounts,
    ) -> Self {
        let tally = candidate.tally.counts();
        let slots = candidate.tally.canary_slots();
        let left = match candidate.stage {
            Stage::Shadow { until } => Some(until.saturating_duration_since(Instant::now())),
            Stage::Canary | Stage::Over => None,
        };
        let count = |of: &[u64], state: &EndpointState| {
            of.get(state.endpoint.id.0 as usize).copied().unwrap_or_default()
        };
        let predicted = |state: &EndpointState| Predicted {
            address: state.endpoint.address.to_string(),
            weight: state.endpoint.weight,
            live: count(&tally.live, state),
            candidate: count(&tally.candidate, state),
        };
        let endpoints: Vec<_> = endpoints.iter().map(predicted).collect();
        let is_shadow = slots == 0;
        Self {
            cluster: String::new(),
            policy: String::new(),
            stage: candidate.stage.name().to_owned(),
            canary_percent: (!is_shadow).then(|| percent_of(slots)),
            left_ms: left.map(millis),
            shape: candidate.module.shape().to_string(),
            digest: candidate.module.digest().to_owned(),
            age_ms: millis(candidate.since.elapsed()),
            asked: tally.asked,
            unanswered: tally.unanswered,
            agreed: tally.agreed,
            agreement: (is_shadow && tally.answered() > 0)
                .then(|| tally.agreed as f64 / tally.answered() as f64),
            refused: tally.refused,
            live: Side::new(live, imbalance(&endpoints, |endpoint| endpoint.live)),
            candidate: Side::new(
                &candidate.counts.sum(),
                imbalance(&endpoints, |endpoint| endpoint.candidate),
            ),
            endpoints,
        }
    }

    /// The report for a person.
    pub fn to_text(&self) -> String {
        let mut text = String::new();
        let way = match (self.canary_percent, self.left_ms) {
            (Some(percent), _) => format!("canary of {percent} %"),
            (None, Some(left)) => format!("shadow for another {:.1} s", left as f64 / 1e3),
            (None, None) => "shadow that is over".to_owned(),
        };
        let agreement = self.agreement.map_or_else(String::new, |agreement| {
            format!(", agrees on {:.2} % of what it answers", agreement * 100.0)
        });
        let _ = writeln!(
            text,
            "{}: {} {} on trial as {way}, asked about {} flow(s), leaves {} to the fallback\
             {agreement}, refuses {}\n",
            self.cluster,
            self.shape,
            short(&self.digest),
            self.asked,
            self.unanswered,
            self.refused
        );
        text.push_str(&self.endpoints_table());
        text.push('\n');
        text.push_str(&self.sides_table());
        text
    }

    fn endpoints_table(&self) -> String {
        let sum = |of: fn(&Predicted) -> u64| self.endpoints.iter().map(of).sum::<u64>();
        let (live, candidate) = (sum(|one| one.live), sum(|one| one.candidate));
        let mut table = Table::new(&["ENDPOINT", "WEIGHT", "LIVE", "SHARE", "CANDIDATE", "SHARE"]);
        for endpoint in &self.endpoints {
            table.row([
                endpoint.address.clone(),
                endpoint.weight.to_string(),
                endpoint.live.to_string(),
                share(endpoint.live, live),
                endpoint.candidate.to_string(),
                share(endpoint.candidate, candidate),
            ]);
        }
        table.to_string()
    }

    fn sides_table(&self) -> String {
        let heads = ["POLICY", "IMBALANCE", "P50 NS", "P99 NS", "FAULTS", "THROTTLED"];
        let mut table = Table::new(&heads);
        for (name, side) in [("live", &self.live), ("candidate", &self.candidate)] {
            let nanos =
                |nanos: Option<u64>| nanos.map_or_else(|| "-".to_owned(), |n| n.to_string());
            table.row([
                name.to_owned(),
                side.imbalance.map_or_else(|| "-".to_owned(), |value| format!("{value:.3}")),
                nanos(side.p50_ns),
                nanos(side.p99_ns),
                side.faults.to_string(),
                side.throttled.to_string(),
            ]);
        }
        table.to_string()
    }
}

impl Side {
    fn new(counts: &PolicyCounts, imbalance: Option<f64>) -> Self {
        Self {
            imbalance,
            p50_ns: counts.p50().map(nanos),
            p99_ns: counts.p99().map(nanos),
            faults: counts.faults_total(),
            throttled: counts.throttled,
        }
    }
}

/// A share in percent as slots of a canary; `None` if it is none.
pub fn slots_of(percent: f64) -> Option<u32> {
    let slots = (percent / 100.0 * f64::from(CANARY_SLOTS)).round();
    // Both bounds are checked, so nothing is cut off.
    let fits = slots >= 1.0 && slots <= f64::from(CANARY_SLOTS);
    fits.then_some(slots as u32)
}

fn percent_of(slots: u32) -> f64 {
    f64::from(slots) * 100.0 / f64::from(CANARY_SLOTS)
}

/// The most that any endpoint has per weight, over what all have together per weight of all.
fn imbalance(endpoints: &[Predicted], of: fn(&Predicted) -> u64) -> Option<f64> {
    let flows: u64 = endpoints.iter().map(of).sum();
    let weights: u64 = endpoints.iter().map(|endpoint| u64::from(endpoint.weight)).sum();
    let each = endpoints.iter().map(|one| of(one) as f64 / f64::from(one.weight.max(1)));
    (flows > 0).then(|| each.fold(0.0, f64::max) * weights as f64 / flows as f64)
}

fn share(count: u64, of: u64) -> String {
    if of == 0 { "-".to_owned() } else { format!("{:.1} %", count as f64 * 100.0 / of as f64) }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn predicted(flows: &[(u32, u64)]) -> Vec<Predicted> {
        let one = |&(weight, live): &(u32, u64)| Predicted {
            address: String::new(),
            weight,
            live,
            candidate: 0,
        };
        flows.iter().map(one).collect()
    }

    #[test]
    fn an_imbalance_is_measured_by_weight() {
        let of = |flows: &[(u32, u64)]| imbalance(&predicted(flows), |one| one.live);
        assert_eq!(of(&[(1, 10), (1, 10)]), Some(1.0));
        assert_eq!(of(&[(2, 20), (1, 10)]), Some(1.0));
        assert_eq!(of(&[(1, 20), (1, 0)]), Some(2.0));
        assert_eq!(of(&[(1, 0)]), None);
    }

    #[test]
    fn a_share_may_have_decimals_and_is_never_nothing() {
        assert_eq!(slots_of(5.0), Some(500));
        assert_eq!(slots_of(0.25), Some(25));
        assert_eq!(slots_of(100.0), Some(CANARY_SLOTS));
        for none in [0.0, -1.0, 0.001, 100.1, f64::NAN, f64::INFINITY] {
            assert_eq!(slots_of(none), None, "{none}");
        }
    }
}
