//! Who decides on a flow, and what is kept of it.

use std::net::SocketAddr;
use std::time::Duration;

use pointsman_core::listing::{Entry, EntryKind};
use pointsman_core::policy::{Method, Scope, Source, Verdict};
use pointsman_core::{CloseReason, DropReason, EndpointId};

use super::kept::{Kept, KeptKey};
use super::model::{Flow, Model, Scene, Seen};
use super::setup::Kind;

/// How a new flow is allocated, as far as the model can know before it sees it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Allocated {
    /// Its endpoint, unless a policy was asked that nobody observes; or how it is denied.
    pub(super) target: Result<Option<EndpointId>, CloseReason>,
    pub(super) method: Method,
    pub(super) hidden: bool,
    /// Whether what a native policy chooses may be kept: it is not where an endpoint was full.
    pub(super) keeps: bool,
    /// How long a denial holds.
    pub(super) ttl: Duration,
}

impl Model {
    /// Who decides on a flow, and what: a kept decision, else the policy. `None` if nobody can, or if
    /// every endpoint is full.
    pub(super) fn allocate(
        &mut self,
        scene: &Scene<'_>,
        (listener, client, key): (usize, SocketAddr, Option<u64>),
        seen: &mut Seen,
    ) -> Option<Allocated> {
        if self.all_are_full(scene, listener) {
            return None;
        }
        let cluster = listener as u16;
        let among = &scene.snapshot.clusters[listener].candidates;
        let keyed = key.map(|key| KeptKey::Key { cluster, key });
        let keys = keyed.into_iter().chain([KeptKey::client(cluster, client.ip())]);
        let here = (scene.now, scene.worker);
        let found = { keys }.find_map(|key| self.shelf.find(here, key, among));
        let kept = found.and_then(|(kept, is_stale)| (!is_stale).then_some(kept));
        let with = found.filter(|(_, is_stale)| *is_stale).and_then(|(kept, _)| kept.verdict.ok());
        let idle = scene.listener(listener).timeouts.idle;
        if kept.is_none() && among.endpoints.is_empty() {
            return None;
        }
        let is_full = |id: &EndpointId| self.is_endpoint_full(scene, listener, *id);
        let overflows = kept.is_some_and(|kept| kept.verdict.is_ok_and(|id| is_full(&id)));
        let with_full = with.as_ref().is_some_and(is_full);
        let kept = kept.filter(|_| !overflows);
        let keeps = !overflows && !with_full;
        let source = if kept.is_some() { Source::Cache } else { self.kinds[listener].source() };
        self.worker(scene).decisions[listener][source.index()] += 1;
        if let Some(kept) = kept {
            let ttl = kept.expires.since(scene.now);
            let target = kept.verdict.map(Some);
            let method = kept.method;
            return Some(Allocated { target, method, hidden: false, keeps, ttl });
        }
        if self.kinds[listener] != Kind::Scripted {
            let with = with.filter(|_| keeps);
            if let (Some(endpoint), Some(key)) = (with, self.related(listener, key)) {
                self.keep(scene, key, self.lasting(scene, listener, endpoint), seen);
            }
            let (target, method) = (Ok(with), Method::DEFAULT);
            return Some(Allocated { target, method, hidden: false, keeps, ttl: idle });
        }
        let call = seen.calls.pop_front().expect("a flow that no entry covers is decided on");
        assert_eq!((call.client, call.key), (client, key), "a policy is asked of this flow");
        let decision = call.decision;
        let ttl = if decision.ttl.is_zero() { idle } else { decision.ttl };
        let wanted = |index| with.unwrap_or_else(|| among.get(index).expect("a candidate").id);
        let target = match decision.verdict {
            Verdict::Forward(index) => Ok(wanted(index)),
            Verdict::Reset => Err(CloseReason::DeniedReset),
            Verdict::Drop => Err(CloseReason::DeniedDrop),
        };
        let key = match decision.scope {
            Scope::Key => keyed,
            Scope::Client => Some(KeptKey::client(cluster, client.ip())),
            Scope::Flow | Scope::None => None,
        };
        let is_full = |id: EndpointId| self.is_endpoint_full(scene, listener, id);
        let is_obeyed = !target.is_ok_and(is_full);
        if let Some(key) = key.filter(|_| is_obeyed && !overflows) {
            let slides = decision.sliding.then_some(ttl);
            let (method, expires) = (decision.method, scene.now + ttl);
            let policy = self.shelf.policy(cluster);
            let kept = Kept { verdict: target, method, expires, slides, policy };
            self.keep(scene, key, kept, seen);
        }
        let hidden = decision.scope == Scope::None;
        let target = target.map(|id| is_obeyed.then_some(id));
        Some(Allocated { target, method: decision.method, hidden, keeps: is_obeyed, ttl })
    }

    /// Keeps a decision, unless there was no room.
    pub(super) fn keep(&mut self, scene: &Scene<'_>, key: KeptKey, kept: Kept, seen: &Seen) {
        let is_it = |entry: &Entry| match &entry.kind {
            EntryKind::Kept(shown) => {
                KeptKey::of(entry.cluster.0, shown) == key
                    && (shown.expires, entry.endpoint) == (kept.expires, kept.verdict.ok())
            }
            EntryKind::Flow(_) => false,
        };
        if !seen.table_was_full || seen.shown.iter().any(is_it) {
            self.shelf.keep(scene.worker, key, kept);
        } else {
            let (KeptKey::Client { cluster, .. } | KeptKey::Key { cluster, .. }) = key;
            let drops = &mut self.worker(scene).stats[usize::from(cluster)].drops_total;
            drops[DropReason::FlowTableFull.index()] += 1;
        }
    }

    /// What a native policy keeps of its own accord: the endpoint of related flows.
    pub(super) fn keep_related(&mut self, scene: &Scene<'_>, flow: &Flow, endpoint: EndpointId) {
        let Some(key) = self.related(flow.listener, flow.key) else { return };
        let kept = self.lasting(scene, flow.listener, endpoint);
        self.shelf.keep(scene.worker, key, kept);
    }

    /// What a native policy keeps an endpoint under.
    fn related(&self, listener: usize, key: Option<u64>) -> Option<KeptKey> {
        let related = matches!(self.kinds[listener], Kind::RoundRobin | Kind::LeastFlows);
        let key = key.filter(|_| related)?;
        Some(KeptKey::Key { cluster: listener as u16, key })
    }

    /// A decision of a native policy that lasts while it is used.
    fn lasting(&self, scene: &Scene<'_>, listener: usize, endpoint: EndpointId) -> Kept {
        let idle = scene.listener(listener).timeouts.idle;
        Kept {
            verdict: Ok(endpoint),
            method: Method::DEFAULT,
            expires: scene.now + idle,
            slides: Some(idle),
            policy: self.shelf.policy(listener as u16),
        }
    }

    /// The same for a flow that got no port: only what is kept shows what was decided.
    pub(super) fn keep_unseen(&mut self, scene: &Scene<'_>, flow: &Flow, seen: &Seen) {
        let is_it = |entry: &&Entry| match &entry.kind {
            EntryKind::Kept(shown) => {
                entry.cluster.index() == flow.listener && shown.key == flow.key && shown.sliding
            }
            EntryKind::Flow(_) => false,
        };
        let shown = seen.shown.iter().filter(|_| flow.key.is_some()).find(is_it);
        if let Some(endpoint) = shown.and_then(|entry| entry.endpoint) {
            self.keep_related(scene, flow, endpoint);
        }
    }

    /// A flow that goes on uses what is kept for its key.
    pub(super) fn use_key(&mut self, scene: &Scene<'_>, flow: &Flow) {
        let Some(key) = flow.key.filter(|_| flow.target.is_ok()) else { return };
        let key = KeptKey::Key { cluster: flow.listener as u16, key };
        let expires = scene.now + 2 * scene.timeout(flow);
        self.shelf.on_used((scene.now, scene.worker), key, expires);
    }
}
