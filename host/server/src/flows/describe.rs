//! From numbers to names: what a worker answers, as a person or a program wants to read it.

use std::time::Duration;

use pointsman_core::boundary::Side;
use pointsman_core::listing::{Entry, EntryKind, FlowEntry, KeptEntry};
use pointsman_core::policy::{Scope, Source};
use pointsman_core::{Instant, Snapshot};

use super::{FlowId, Shown, ShownFlow, ShownKept, Sort};
use crate::plan::{Plan, protocol_name};

/// Knows what numbers stand for, and what time it is.
#[derive(Debug)]
pub struct Describer<'a> {
    /// The names of policies.
    pub plan: &'a Plan,
    /// The names of everything else.
    pub snapshot: &'a Snapshot,
    /// On the workers' clock.
    pub now: Instant,
}

impl Describer<'_> {
    /// Describes an entry of a worker.
    pub fn describe(&self, worker: usize, entry: &Entry) -> Shown {
        let (endpoint, tag, sort) = match &entry.kind {
            EntryKind::Flow(flow) => {
                (flow.endpoint_address, flow.tag, Sort::Flow(self.describe_flow(flow)))
            }
            EntryKind::Kept(kept) => (None, kept.tag, Sort::Kept(self.describe_kept(kept))),
        };
        let cluster = &self.snapshot.clusters[entry.cluster.index()];
        let configured = || Some(cluster.endpoint(entry.endpoint?)?.endpoint.address);
        Shown {
            id: FlowId { worker, entry: entry.id }.to_string(),
            cluster: cluster.name.to_string(),
            endpoint: endpoint.or_else(configured).map(|address| address.to_string()),
            policy: self.plan.clusters[entry.cluster.index()].policy_name.clone(),
            policy_generation: entry.policy_generation,
            tag,
            sort,
        }
    }

    fn describe_flow(&self, flow: &FlowEntry) -> ShownFlow {
        let (up, down) = (Side::Upstream.index(), Side::Downstream.index());
        ShownFlow {
            listener: self.snapshot.listeners[flow.listener.index()].name.to_string(),
            protocol: protocol_name(flow.protocol).to_owned(),
            client: flow.client.to_string(),
            local: flow.local.to_string(),
            state: flow.state.label().to_owned(),
            source: flow.source.map(|source| Source::label(source).to_owned()),
            age_ms: millis(self.now.since(flow.started)),
            idle_ms: millis(self.now.since(flow.last_active)),
            bytes_upstream: flow.bytes[up],
            bytes_downstream: flow.bytes[down],
            datagrams_upstream: flow.datagrams[up],
            datagrams_downstream: flow.datagrams[down],
        }
    }

    fn describe_kept(&self, kept: &KeptEntry) -> ShownKept {
        let scope = match kept.scope {
            Scope::Flow => "flow",
            Scope::Client => "client",
            Scope::Key => "key",
            Scope::None => "none",
        };
        ShownKept {
            scope: scope.to_owned(),
            client: kept.client.map(|client| client.to_canonical().to_string()),
            key: kept.key.map(|hash| format!("{hash:016x}")),
            denies: kept.denies,
            expires_in_ms: millis(kept.expires.since(self.now)),
            sliding: kept.sliding,
        }
    }
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}
