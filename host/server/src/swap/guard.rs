//! Undoes what turns out to be bad: a module that fails soon after it was swapped in gives its seat
//! back to the one before, and one that fails on trial loses its trial.

use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use pointsman_core::ClusterId;

use super::{Walk, short, trial};
use crate::plan::PluginPlan;
use crate::seat::{Outcome, Seat, Stage};
use crate::service::Service;

/// After a way back that was barred, say because the pool of instances was full.
const AGAIN_AFTER: Duration = Duration::from_secs(5);

/// What has to be done at a seat.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Remedy {
    /// The module before is to decide again, after so many faults.
    RollBack(u64),
    /// The trial is to end, after so many faults.
    Condemn(u64),
    /// The shadow's time is over.
    EndShadow,
}

/// Looks at every seat; what is to be done is done on threads of its own. Called several times a
/// second.
pub fn look_after(service: &Arc<Service>) {
    for (cluster, seat) in (0..).map(ClusterId).zip(service.seats()) {
        let Some(plugin) = seat.plugin else { continue };
        if remedy_for(seat, service.plan().plugin(plugin)).is_none() {
            continue;
        }
        let service = Arc::clone(service);
        let apply = move || apply(&service, cluster);
        if let Err(error) = thread::Builder::new().name("policy-guard".into()).spawn(apply) {
            tracing::error!(cluster = %seat.name, %error, "cannot look after its policy");
        }
    }
}

fn remedy_for(seat: &Seat, plan: &PluginPlan) -> Option<Remedy> {
    let now = Instant::now();
    let mut sitting = seat.sitting();
    if let Some(since) = sitting.live.probation {
        let faults = sitting.live.counts.sum().faults_total();
        let can_go_back = sitting.previous.is_some() && sitting.previous_if_quarantined().is_none();
        let is_owed = faults > plan.rollback_faults.into() && can_go_back;
        if is_owed && since <= now {
            return Some(Remedy::RollBack(faults));
        }
        if !is_owed && now.duration_since(sitting.live.since) > plan.rollback_window {
            sitting.live.probation = None;
        }
    }
    let candidate = sitting.candidate.as_ref()?;
    let faults = candidate.counts.sum().faults_total();
    match candidate.stage {
        Stage::Over => None,
        _ if faults > plan.rollback_faults.into() => Some(Remedy::Condemn(faults)),
        Stage::Shadow { until } if until <= now => Some(Remedy::EndShadow),
        Stage::Shadow { .. } | Stage::Canary => None,
    }
}

/// Where somebody else has claimed the seat, or has already done what was to be done, this is left
/// to the next look.
fn apply(service: &Service, cluster: ClusterId) {
    let Ok(walk) = Walk::begin(service, cluster) else { return };
    let Some(plugin) = walk.seat().plugin else { return };
    let Some(remedy) = remedy_for(walk.seat(), service.plan().plugin(plugin)) else { return };
    match remedy {
        Remedy::RollBack(faults) => roll_back(&walk, faults),
        Remedy::Condemn(faults) => trial::condemn(&walk, faults),
        Remedy::EndShadow => trial::end_shadow(&walk),
    }
}

fn roll_back(walk: &Walk<'_>, faults: u64) {
    let cluster = walk.cluster_name();
    let live = walk.seat().sitting().live.module.clone();
    let Some(live) = live else { return };
    let digest = short(live.digest());
    tracing::warn!(%cluster, %digest, faults, "the policy that was swapped in fails: goes back");
    walk.seat().sitting().quarantine(live.digest());
    if let Err(error) = walk.roll_back(Outcome::RolledBackByItself) {
        // The fallback goes on answering meanwhile.
        walk.seat().sitting().live.probation = Some(Instant::now() + AGAIN_AFTER);
        let seconds = AGAIN_AFTER.as_secs();
        tracing::error!(%cluster, %error, seconds, "cannot go back to the policy before: tries again");
    }
}
