//! A module is tried beside the one that decides.
//!
//! In the shadow it is asked about every flow and not obeyed, for some time; as a canary it decides
//! on a share. What it has shown is told at any time, also after the trial. A trial that is over
//! costs the data path nothing: what is kept is the compiled module, ready to be promoted.

use std::sync::Arc;
use std::time::{Duration, Instant};

use pointsman_core::{CANARY_SLOTS, ClusterId, Tally, Trial};
use pointsman_plugin::Module;

use super::report::TrialReport;
use super::{File, Ready, Refusal, Walk, module_of, short};
use crate::mailbox::PolicyCommand;
use crate::seat::{Candidate, Seat, Stage};
use crate::service::Service;
use crate::world::Role;

/// How many endpoints may be added during a trial until it no longer counts what they get.
const ADDED_MAX: u32 = 1024;

/// How a module is to be tried.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// For so long it is asked and not obeyed.
    Shadow(Duration),
    /// It decides on so many of [`CANARY_SLOTS`].
    Canary(u32),
}

/// Puts a file on trial in a cluster. A canary of the same file only gets another share.
///
/// # Errors
/// Nothing has changed.
pub fn begin(
    service: &Service,
    cluster: ClusterId,
    file: &File,
    way: Way,
) -> Result<TrialReport, Refusal> {
    let module = module_of(service, &[cluster], file)?;
    let walk = Walk::begin(service, cluster)?;
    if let Way::Canary(slots) = way
        && set_share(walk.seat(), Some(module.digest()), slots)
    {
        return report(service, cluster);
    }
    let ready = walk.admits(&module).and_then(|()| walk.prepare_trial(&module));
    let ready = ready.inspect_err(|_| walk.on_refused())?;
    start(&walk, ready, way);
    report(service, cluster)
}

/// Gives the canary of a cluster another share.
///
/// # Errors
/// There is none.
pub fn share(service: &Service, cluster: ClusterId, slots: u32) -> Result<TrialReport, Refusal> {
    let walk = Walk::begin(service, cluster)?;
    if !set_share(walk.seat(), None, slots) {
        return Err(Refusal::NoTrial(walk.cluster_name()));
    }
    report(service, cluster)
}

/// Ends a trial, and forgets the module that was on it. Tells what it has shown.
///
/// # Errors
/// There is none.
pub fn abort(service: &Service, cluster: ClusterId) -> Result<TrialReport, Refusal> {
    let walk = Walk::begin(service, cluster)?;
    let report = report(service, cluster)?;
    drop_candidate(&walk);
    Ok(report)
}

/// What the module that is on trial has shown so far.
///
/// # Errors
/// There is none.
pub fn report(service: &Service, cluster: ClusterId) -> Result<TrialReport, Refusal> {
    let setup = service.setup();
    let seat = setup.seat(cluster);
    let plugin = seat.plugin.map(|id| &setup.plan.plugin(id).name);
    let snapshot = service.look(|world| world.snapshot());
    let sitting = seat.sitting();
    let candidate = sitting.candidate.as_ref();
    let candidate = candidate.ok_or_else(|| Refusal::NoTrial(seat.name.clone()))?;
    let endpoints = &snapshot.clusters[cluster.index()].endpoints;
    let policy = plugin.cloned().unwrap_or_default();
    let mut report = TrialReport::new(candidate, endpoints, &sitting.live.counts.sum());
    (report.cluster, report.policy) = (seat.name.clone(), policy);
    Ok(report)
}

/// Takes whoever is on trial off the data path, and keeps what he has shown.
pub(super) fn end(service: &Service, cluster: ClusterId) {
    let seat = service.seat(cluster);
    {
        let mut sitting = seat.sitting();
        let Some(candidate) = &mut sitting.candidate else { return };
        if candidate.stage == Stage::Over {
            return;
        }
        candidate.stage = Stage::Over;
    }
    let trial = |reply| PolicyCommand::SetTrial { trial: None, reply };
    drop(service.fleet().tell_each(cluster, trial));
    service.steer((cluster, Role::Trial), None);
    service.change(|world| world.hide(cluster));
}

/// Ends a shadow whose time is over; the module can still be promoted.
pub(super) fn end_shadow(walk: &Walk<'_>) {
    end(walk.service, walk.cluster);
    tracing::info!(cluster = %walk.seat().name, "the shadow is over; promote it or abort it");
}

/// Ends a trial because of the module's faults, and remembers it as bad.
pub(super) fn condemn(walk: &Walk<'_>, faults: u64) {
    let digest = {
        let mut sitting = walk.seat().sitting();
        let Some(candidate) = &sitting.candidate else { return };
        let digest = candidate.module.digest().to_owned();
        sitting.quarantine(&digest);
        digest
    };
    drop_candidate(walk);
    let (cluster, digest) = (&walk.seat().name, short(&digest));
    tracing::warn!(%cluster, %digest, faults, "the policy on trial fails: the trial is aborted");
}

fn drop_candidate(walk: &Walk<'_>) {
    end(walk.service, walk.cluster);
    walk.seat().sitting().try_out(None);
}

/// Gives a canary another share; false if there is none, or one of another file.
fn set_share(seat: &Seat, digest: Option<&str>, slots: u32) -> bool {
    let sitting = seat.sitting();
    let canary = sitting.candidate.as_ref().filter(|candidate| candidate.stage == Stage::Canary);
    let same = |module: &Module| digest.is_none_or(|digest| digest == module.digest());
    let Some(canary) = canary.filter(|canary| same(&canary.module)) else { return false };
    canary.tally.set_canary_slots(slots);
    tracing::info!(cluster = %seat.name, slots, of = CANARY_SLOTS, "the canary has another share");
    true
}

fn start(walk: &Walk<'_>, ready: Ready, way: Way) {
    let (service, cluster) = (walk.service, walk.cluster);
    let Ready { module, crew } = ready;
    drop_candidate(walk);
    let endpoints = service.look(|world| world.ids_end(cluster)) + ADDED_MAX;
    let (slots, stage) = match way {
        Way::Shadow(time) => (0, Stage::Shadow { until: Instant::now() + time }),
        Way::Canary(slots) => (slots, Stage::Canary),
    };
    let tally = Arc::new(Tally::new(endpoints, slots));
    let place = (cluster, Role::Trial);
    service.show(place, crew.outlook);
    let mut policies = crew.policies.into_iter();
    let told = service.fleet().tell_each(cluster, |reply| {
        let policy = policies.next().expect("one policy per worker");
        let trial = Some(Trial::new(policy, Arc::clone(&tally)));
        PolicyCommand::SetTrial { trial, reply }
    });
    drop(told);
    service.steer(place, crew.steerer);
    tracing::info!(
        cluster = %walk.seat().name, digest = %short(module.digest()), stage = stage.name(), slots,
        "a policy is on trial"
    );
    let (counts, since) = (crew.counts, Instant::now());
    let candidate = Candidate { module, counts, tally, stage, since };
    walk.seat().sitting().try_out(Some(candidate));
}
