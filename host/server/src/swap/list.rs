//! All clusters and who decides for them, for a person and for a program.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

use super::short;
use crate::plan::{ClusterPlan, PolicyPlan};
use crate::seat::{Outcome, Seat};
use crate::service::Service;
use crate::status::Counts;
use crate::table::Table;

/// All clusters, in the configuration's order.
#[derive(Debug, Serialize, Deserialize)]
pub struct PolicyList {
    /// One for each cluster.
    pub policies: Vec<Listed>,
}

/// Who decides for a cluster.
#[derive(Debug, Serialize, Deserialize)]
pub struct Listed {
    /// The cluster.
    pub cluster: String,
    /// Its policy's name.
    pub policy: String,
    /// `native`, `chooser`, `table` or `weights`.
    pub shape: String,
    /// The SHA-256 of the file that decides; absent for a native policy.
    pub digest: Option<String>,
    /// 1 for the first, one more for each that came after.
    pub generation: u64,
    /// Since when it decides, in milliseconds since 1970.
    pub since_unix_ms: u64,
    /// For how long it has decided.
    pub age_ms: u64,
    /// The file that a rollback would bring back.
    pub previous: Option<String>,
    /// The file on trial.
    pub trial: Option<OnTrial>,
    /// Whether the one that decides has just been swapped in, and is taken out if it fails.
    pub on_probation: bool,
    /// Calls of the one that decides that failed.
    pub faults: u64,
    /// Times that the one that decides was not asked for want of CPU.
    pub throttled: u64,
    /// What came of attempts to change who decides.
    pub swaps: Counts,
    /// The longest that a swap has held up a worker.
    pub pause_max_ns: u64,
}

/// A file on trial.
#[derive(Debug, Serialize, Deserialize)]
pub struct OnTrial {
    /// Its SHA-256.
    pub digest: String,
    /// `shadow`, `canary` or `over`.
    pub stage: String,
    /// Calls of it that failed.
    pub faults: u64,
}

impl PolicyList {
    /// Looks at all clusters.
    pub fn new(service: &Service) -> Self {
        let clusters = service.plan().clusters.iter().zip(service.seats());
        Self { policies: clusters.map(|(plan, seat)| Listed::new(plan, seat)).collect() }
    }

    /// The list for a person.
    pub fn to_table(&self) -> String {
        let heads = [
            "CLUSTER",
            "POLICY",
            "SHAPE",
            "DIGEST",
            "GENERATION",
            "SINCE",
            "PREVIOUS",
            "TRIAL",
            "FAULTS",
        ];
        let mut table = Table::new(&heads);
        let dash = || "-".to_owned();
        for listed in &self.policies {
            let digest = |digest: &Option<String>| digest.as_deref().map_or("-", short).to_owned();
            let on_trial = |trial: &OnTrial| format!("{} {}", trial.stage, short(&trial.digest));
            table.row([
                listed.cluster.clone(),
                listed.policy.clone(),
                listed.shape.clone(),
                digest(&listed.digest),
                listed.generation.to_string(),
                format!("{} s ago", listed.age_ms / 1000),
                digest(&listed.previous),
                listed.trial.as_ref().map_or_else(dash, on_trial),
                listed.faults.to_string(),
            ]);
        }
        table.to_string()
    }
}

impl Listed {
    fn new(plan: &ClusterPlan, seat: &Seat) -> Self {
        let sitting = seat.sitting();
        let live = &sitting.live;
        let module = live.module.as_ref();
        let counts = live.counts.sum();
        let shape = match (plan.policy, module) {
            (PolicyPlan::Plugin(_), Some(module)) => module.shape().to_string(),
            _ => "native".to_owned(),
        };
        let trial = sitting.candidate.as_ref().map(|candidate| OnTrial {
            digest: candidate.module.digest().to_owned(),
            stage: candidate.stage.name().to_owned(),
            faults: candidate.counts.sum().faults_total(),
        });
        let outcomes = Outcome::ALL.into_iter().zip(sitting.outcomes);
        let outcomes = outcomes.filter(|(_, count)| *count > 0);
        Self {
            cluster: plan.name.clone(),
            policy: plan.policy_name.clone(),
            shape,
            digest: module.map(|module| module.digest().to_owned()),
            generation: sitting.generation,
            since_unix_ms: unix_millis(live.since),
            age_ms: millis(live.since.elapsed()),
            previous: sitting.previous.as_ref().map(|module| module.digest().to_owned()),
            trial,
            on_probation: live.probation.is_some(),
            faults: counts.faults_total(),
            throttled: counts.throttled,
            swaps: outcomes.map(|(outcome, n)| (outcome.label().to_owned(), n)).collect(),
            pause_max_ns: u64::try_from(sitting.pause_max.as_nanos()).unwrap_or(u64::MAX),
        }
    }
}

fn unix_millis(then: Instant) -> u64 {
    let then = SystemTime::now().checked_sub(then.elapsed());
    then.and_then(|then| then.duration_since(UNIX_EPOCH).ok()).map_or(0, millis)
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
