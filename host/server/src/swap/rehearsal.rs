//! Asks a module about flows that were, before it is asked about any that are.

use std::fmt;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;

use pointsman_core::boundary::ListenerId;
use pointsman_core::policy::{Flow, Policy};
use pointsman_core::{Candidates, ClusterId, FlowFacts, Snapshot};
use pointsman_plugin::{FaultKind, Governor, Module, Shape};
use pointsman_ring::Clock;

use super::{Refusal, Walk};
use crate::crew::{Berth, Counts, Crew};
use crate::mailbox::PolicyCommand;
use crate::random;

/// A deadline is time on the wall, and the thread may have been off its core for all of it: only a
/// module that misses it so often is too slow.
const ATTEMPTS: u32 = 3;
/// Flows that are made up for a cluster that has had none.
const MADE_UP: u8 = 8;

/// How a module has failed with a flow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Failed {
    flow: usize,
    flows: usize,
    kind: FaultKind,
}

impl fmt::Display for Failed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { flow, flows, kind } = self;
        let what = match kind {
            FaultKind::Trap => "trapped",
            FaultKind::Deadline => "missed its deadline",
            FaultKind::Memory => "wanted more memory than it may have",
            FaultKind::Answer => "gave an answer that is none",
        };
        write!(f, "the policy {what} with recent flow {flow} of {flows} ({kind}); see its log")
    }
}

/// Lets a module decide on recent flows. One that decides on none itself has been tried when it has
/// made its first table or weights, which is without a flow.
pub(super) fn rehearse(walk: &Walk<'_>, module: &Module) -> Result<(), Refusal> {
    let candidates = walk.service.look(|world| world.base(walk.cluster));
    if module.shape() != Shape::Chooser || candidates.endpoints.is_empty() {
        return Ok(());
    }
    let flows = flows(walk)?;
    let mut last = Ok(());
    for _ in 0..ATTEMPTS {
        last = rehearse_once(walk, module, &candidates, &flows)?;
        if !matches!(last, Err(Failed { kind: FaultKind::Deadline, .. })) {
            break;
        }
    }
    last.map_err(|failed| Refusal::Rehearsal { policy: walk.policy_name(), failed })
}

/// A rehearsal with a guest of its own, which nothing holds back.
fn rehearse_once(
    walk: &Walk<'_>,
    module: &Module,
    candidates: &Arc<Candidates>,
    flows: &[FlowFacts],
) -> Result<Result<(), Failed>, Refusal> {
    let governors = [Arc::new(Governor::new(100))];
    let berth = Berth { candidates, governors: &governors, states: Vec::new() };
    let crew = Crew::of(module, walk.kit(), berth).map_err(|error| walk.refuse(error))?;
    let Crew { mut policies, counts, .. } = crew;
    Ok(policies.iter_mut().try_for_each(|policy| ask(&mut **policy, &counts, candidates, flows)))
}

fn ask(
    policy: &mut dyn Policy,
    counts: &Counts,
    candidates: &Arc<Candidates>,
    flows: &[FlowFacts],
) -> Result<(), Failed> {
    for (place, facts) in flows.iter().enumerate() {
        policy.decide(&flow(facts), candidates);
        let faults = counts.sum();
        if let Some(kind) = FaultKind::ALL.into_iter().find(|kind| faults.faults_of(*kind) > 0) {
            return Err(Failed { flow: place + 1, flows: flows.len(), kind });
        }
    }
    Ok(())
}

fn flow(facts: &FlowFacts) -> Flow<'static> {
    let &FlowFacts { protocol, client, local, listener, key } = facts;
    // Where the kernel has no randomness to give, any number does.
    let random = random::secret().unwrap_or(1);
    Flow {
        protocol,
        client,
        local,
        listener,
        key,
        attempt: 0,
        tried: &[],
        now: Clock.now(),
        random,
    }
}

/// The cluster's recent flows in all workers, or made-up ones.
fn flows(walk: &Walk<'_>) -> Result<Vec<FlowFacts>, Refusal> {
    let told = walk.service.fleet().tell_each(walk.cluster, PolicyCommand::RecentFlows);
    let told = told.into_iter().collect::<Result<Vec<_>, _>>()?;
    let flows: Vec<_> = told.into_iter().flatten().flatten().collect();
    if !flows.is_empty() {
        return Ok(flows);
    }
    let snapshot = walk.service.look(|world| world.snapshot());
    Ok(made_up(&snapshot, walk.cluster))
}

/// Flows from addresses that are kept for documentation, to each of the cluster's listeners.
fn made_up(snapshot: &Snapshot, cluster: ClusterId) -> Vec<FlowFacts> {
    let listeners = (0..).map(ListenerId).zip(&snapshot.listeners);
    let mut flows = Vec::new();
    for (id, listener) in listeners.filter(|(_, listener)| listener.cluster == cluster) {
        flows.extend((0..MADE_UP).map(|number| FlowFacts {
            protocol: listener.protocol,
            client: client(number),
            local: listener.address,
            listener: id,
            key: listener.key.is_some().then(|| u64::from(number) + 1),
        }));
    }
    flows
}

fn client(number: u8) -> SocketAddr {
    let port = 49_152 + u16::from(number);
    if number.is_multiple_of(2) {
        (Ipv4Addr::new(192, 0, 2, number + 1), port).into()
    } else {
        (Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, u16::from(number)), port).into()
    }
}
