//! What is kept of decisions, where there was room for them.

use pointsman_core::listing::{Entry, EntryKind};
use pointsman_core::policy::{Scope, Verdict};
use pointsman_core::{EndpointId, Instant};

use super::{Call, Flow, Kept, KeptFor, Oracle, View};

impl Oracle {
    /// Keeps a decision, if it is one to keep and there was room for it.
    pub(super) fn keep(
        &mut self,
        (now, view): (Instant, &View<'_>),
        flow: &Flow,
        call: &Call,
        with: Option<EndpointId>,
    ) {
        let decision = call.decision;
        let key = match decision.scope {
            Scope::Client => Some(KeptFor::Client(flow.client.ip())),
            Scope::Key => flow.key.map(KeptFor::Key),
            Scope::Flow | Scope::None => None,
        };
        let Some(key) = key else { return };
        let cluster = &view.snapshot.clusters[flow.cluster];
        let idle = view.listener(flow).timeouts.idle;
        let ttl = if decision.ttl.is_zero() { idle } else { decision.ttl };
        let endpoint = match decision.verdict {
            Verdict::Forward(index) => {
                with.or_else(|| cluster.candidates.get(index).map(|endpoint| endpoint.id))
            }
            _ => None,
        };
        let kept = Kept {
            verdict: decision.verdict,
            endpoint,
            method: decision.method,
            expires: now + ttl,
            slides: decision.sliding.then_some(ttl),
            stale: false,
        };
        if self.had_room((flow.cluster, key), &kept) {
            self.kept.insert((flow.cluster, key), kept);
        }
    }

    /// Whether the table has taken a decision in. A call may lead to several: where there was no room
    /// for one, there was for those that are in the table.
    fn had_room(&self, (cluster, key): (usize, KeptFor), kept: &Kept) -> bool {
        let is_it = |entry: &Entry| match &entry.kind {
            EntryKind::Kept(shown) => {
                let is_its = match key {
                    KeptFor::Client(client) => shown.client == Some(client),
                    KeptFor::Key(key) => shown.key == Some(key),
                };
                is_its && entry.cluster.index() == cluster && shown.expires == kept.expires
            }
            EntryKind::Flow(_) => false,
        };
        self.in_full_table.as_ref().is_none_or(|entries| entries.iter().any(is_it))
    }
}
