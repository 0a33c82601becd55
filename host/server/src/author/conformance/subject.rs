//! The policy under test, of whichever shape.

use std::sync::Arc;
use std::time::Duration;

use pointsman_core::policy::{
    Decided, Decision, EndedFlow, EndpointIndex, Flow, Policy, Source, Verdict,
};
use pointsman_core::{Candidates, CloseReason, Instant};
use pointsman_plugin::{
    FaultKind, Governor, GuestPolicy, Module, Place, PolicySettings, PolicyStats, Shape,
    TableGuest, WeightsGuest,
};

use super::cases::Case;

/// An answer takes so long only if it never comes. Real deadlines are shorter; here a slow machine
/// is no fault of the policy's.
const DEADLINE: Duration = Duration::from_secs(5);

/// An answer that holds.
#[derive(Debug, PartialEq)]
pub(super) enum Answer {
    /// Where a flow goes, if it goes anywhere.
    Decided {
        endpoint: Option<usize>,
        decision: Decision,
    },
    /// The fallback is to decide.
    Deferred,
    Table(Vec<u32>),
    Weights(Option<Vec<u32>>),
}

/// A policy under test.
pub(super) enum Subject {
    Chooser { guest: Box<GuestPolicy>, stats: Arc<PolicyStats> },
    Table(TableGuest),
    Weights(WeightsGuest),
}

impl Subject {
    pub(super) fn new(
        module: &Module,
        config: &str,
        state: Option<&[u8]>,
        list: &Arc<Candidates>,
    ) -> Result<Self, String> {
        let settings = Arc::new(PolicySettings {
            decide_deadline: DEADLINE,
            configure_deadline: DEADLINE,
            ..PolicySettings::new("policy", config)
        });
        let stats = Arc::new(PolicyStats::default());
        let subject = match module.shape() {
            Shape::Chooser => {
                let place = Place {
                    stats: Arc::clone(&stats),
                    governor: Arc::new(Governor::new(100)),
                    fallback: Box::new(Nobody),
                    state: state.map(<[u8]>::to_vec),
                    now: Instant::ZERO,
                };
                let guest = GuestPolicy::new(module, settings, place, list);
                guest.map(|guest| Self::Chooser { guest: Box::new(guest), stats })
            }
            Shape::Table => TableGuest::new(module, settings, stats, state).map(Self::Table),
            Shape::Weights => WeightsGuest::new(module, settings, stats, state).map(Self::Weights),
        };
        subject.map_err(|error| error.to_string())
    }

    /// Asks a question; an answer that does not hold is an error.
    pub(super) fn ask(&mut self, case: &Case) -> Result<Answer, String> {
        match self {
            Self::Chooser { guest, stats } => {
                let before = stats.snapshot();
                let Decided { decision, source } = guest.decide(&case.flow(), &case.among);
                let after = stats.snapshot();
                if source == Source::Plugin {
                    let endpoint = match decision.verdict {
                        Verdict::Forward(EndpointIndex(index)) => Some(index as usize),
                        _ => None,
                    };
                    return Ok(Answer::Decided { endpoint, decision });
                }
                let is_new = |kind: &&FaultKind| after.faults_of(**kind) > before.faults_of(**kind);
                match FaultKind::ALL.iter().find(is_new) {
                    Some(FaultKind::Answer) => Err("it names an endpoint that is none".into()),
                    Some(kind) => Err(format!("a fault: {kind}")),
                    None if after.deferred > before.deferred => Ok(Answer::Deferred),
                    None if case.tried.len() == 1 => {
                        Err("it names the endpoint again that has just failed".into())
                    }
                    // A policy is told of the last failure only. What failed before that the
                    // balancer itself keeps away from.
                    None => Ok(Answer::Deferred),
                }
            }
            Self::Table(guest) => {
                let table =
                    guest.build(case.now, &case.among).map_err(|fault| fault.to_string())?;
                Ok(Answer::Table(table.slots().to_vec()))
            }
            Self::Weights(guest) => {
                let weights = guest.tick(case.now, &case.among);
                weights.map(Answer::Weights).map_err(|fault| fault.to_string())
            }
        }
    }

    /// The flow that was asked about has ended, one way or another.
    pub(super) fn end_flow(&mut self, case: &Case, answer: &Answer) {
        let Self::Chooser { guest, .. } = self else { return };
        let Answer::Decided { endpoint: Some(endpoint), decision } = answer else { return };
        let random = case.flow().random;
        guest.on_flow_ended(&EndedFlow {
            endpoint: case.among.endpoints[*endpoint].id,
            reason: REASONS[random as usize % REASONS.len()],
            duration: Duration::from_millis(random >> 48),
            bytes: [random >> 32, random >> 16],
            tag: decision.method.tag,
        });
    }

    /// Some time has passed.
    pub(super) fn tick(&mut self, case: &Case) -> Result<(), String> {
        let Self::Chooser { guest, stats } = self else { return Ok(()) };
        if !guest.wants_ticks() {
            return Ok(());
        }
        let before = stats.snapshot().faults_total();
        guest.tick(case.now, &case.among);
        if stats.snapshot().faults_total() > before {
            Err("a fault in `tick`".into())
        } else {
            Ok(())
        }
    }

    /// What it hands over to a successor.
    pub(super) fn state(&mut self) -> Result<Option<Vec<u8>>, String> {
        let state = match self {
            Self::Chooser { guest, .. } => Ok(guest.state()),
            Self::Table(guest) => guest.state(),
            Self::Weights(guest) => guest.state(),
        };
        state.map_err(|fault| fault.to_string())
    }

    pub(super) fn fuel_used(&self) -> Option<u64> {
        match self {
            Self::Chooser { guest, .. } => guest.fuel_used(),
            Self::Table(guest) => guest.fuel_used(),
            Self::Weights(guest) => guest.fuel_used(),
        }
    }

    pub(super) fn memory_bytes(&self) -> usize {
        match self {
            Self::Chooser { guest, .. } => guest.memory_bytes(),
            Self::Table(guest) => guest.memory_bytes(),
            Self::Weights(guest) => guest.memory_bytes(),
        }
    }
}

/// Ends of flows, one for each that a policy can be told of.
const REASONS: [CloseReason; 6] = [
    CloseReason::Finished,
    CloseReason::DownstreamReset,
    CloseReason::UpstreamReset,
    CloseReason::ConnectFailed,
    CloseReason::IdleTimeout,
    CloseReason::Forgotten,
];

/// The fallback of a policy that is to decide by itself.
struct Nobody;

impl Policy for Nobody {
    fn decide(&mut self, _: &Flow<'_>, _: &Arc<Candidates>) -> Decided {
        Decided { decision: Decision::forward(EndpointIndex(0)), source: Source::Fallback }
    }
}
