//! The status as JSON and as a table: what `/v1/status` answers and `pointsman status` prints.

mod load;

use std::collections::BTreeMap;
use std::fmt::Write;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use pointsman_core::boundary::Side;
use pointsman_core::growth::STEPS;
use pointsman_core::policy::Source;
use pointsman_core::{CloseReason, DropReason, EndpointState, KeylessReason, ShedReason};
use pointsman_plugin::FaultKind;
use serde::{Deserialize, Serialize};

use crate::discovery::{self, LeftOut, Standing};
use crate::plan::{ClusterPlan, ListenerPlan, PolicyPlan, limit_shown, protocol_name};
use crate::reload::{Last, Outcome};
use crate::swap::short;
use crate::table::Table;
use crate::view::{ClusterView, ListenerView, PluginView, View};

pub use load::{Buffers, Load};

/// What a table tells of an endpoint.
const ENDPOINT_HEADS: [&str; 6] = ["ENDPOINT", "WEIGHT", "STATE", "ACTIVE", "FLOWS", "FAILED"];

/// Counts by name; those that are zero are left out.
pub type Counts = BTreeMap<String, u64>;

/// Everything about a running balancer.
#[derive(Debug, Serialize, Deserialize)]
pub struct Status {
    /// The program's version.
    pub version: String,
    /// Since it began to accept.
    pub uptime_s: u64,
    /// Threads that carry traffic.
    pub workers: usize,
    /// Which world is published.
    pub generation: u64,
    /// Whether it is about to end.
    pub draining: bool,
    /// In the configuration's order at the start; those that a reload has brought come later.
    pub listeners: Vec<Listener>,
    /// In the same order.
    pub clusters: Vec<Cluster>,
    /// The policies that are plugins.
    pub policies: Vec<Policy>,
    /// What all listeners together may have at a time.
    #[serde(default)]
    pub flows_max: u32,
    /// How busy each worker is, by number.
    #[serde(default)]
    pub loads: Vec<Load>,
    /// Times that the configuration was read again, by what came of it.
    #[serde(default)]
    pub reloads: Counts,
    /// The last time.
    #[serde(default)]
    pub last_reload: Option<Last>,
}

/// A listener.
#[derive(Debug, Serialize, Deserialize)]
pub struct Listener {
    /// Its name.
    pub name: String,
    /// Where it really listens.
    pub address: String,
    /// `tcp` or `udp`.
    pub protocol: String,
    /// Who serves its flows.
    pub cluster: String,
    /// Whether it was removed and is shown for the flows it still has.
    #[serde(default)]
    pub removed: bool,
    /// Flows now.
    pub flows_active: u64,
    /// Flows it may have at a time.
    #[serde(default)]
    pub flows_max: u32,
    /// Flows ever.
    pub flows_total: u64,
    /// Bytes delivered towards endpoints.
    pub bytes_upstream: u64,
    /// Bytes delivered towards clients.
    pub bytes_downstream: u64,
    /// What only listeners of datagrams count.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub datagrams: Option<Datagrams>,
    /// Times a flow was decided again.
    pub connect_retries: u64,
    /// Ended flows by reason.
    pub closes: Counts,
    /// Refused flows by reason.
    pub sheds: Counts,
    /// Things lost by reason.
    pub drops: Counts,
    /// Flows without the key that was looked for, by reason.
    #[serde(default)]
    pub keyless: Counts,
}

/// What only listeners of datagrams count.
#[derive(Debug, Serialize, Deserialize)]
pub struct Datagrams {
    /// Sent towards endpoints.
    pub upstream: u64,
    /// Sent towards clients.
    pub downstream: u64,
    /// Forwarded by a stateless policy without a flow.
    pub stateless: u64,
}

/// A cluster.
#[derive(Debug, Serialize, Deserialize)]
pub struct Cluster {
    /// Its name.
    pub name: String,
    /// Its policy's name.
    pub policy: String,
    /// `plugin` or `native`.
    pub kind: String,
    /// `chooser`, `table` or `weights`, if it is a plugin.
    #[serde(default)]
    pub shape: Option<String>,
    /// The SHA-256 of the file that decides, if it is a plugin.
    #[serde(default)]
    pub digest: Option<String>,
    /// Which of its policies is deciding, from 1.
    pub policy_generation: u64,
    /// Decisions by who made them.
    pub decisions: Counts,
    /// Who gets flows: `sound`, or `backup`, `panic`, `fail-open` or `none` for want of endpoints.
    #[serde(default)]
    pub footing: String,
    /// Whether it was removed and is shown for the flows it still has.
    #[serde(default)]
    pub removed: bool,
    /// How its endpoints are found, if they are not written.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub discovery: Option<Discovery>,
    /// Who waits because every endpoint is full, if anybody may.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub queue: Option<Queue>,
    /// Flows that went elsewhere than was decided, because that endpoint was full.
    #[serde(default)]
    pub overflows: u64,
    /// In the configuration's order.
    pub endpoints: Vec<Endpoint>,
}

/// How a cluster's endpoints are found.
#[derive(Debug, Serialize, Deserialize)]
pub struct Discovery {
    /// Who knows them.
    pub source: String,
    /// `waiting` for the first answer, `found`, `failing` where the last answer stays, or `absent` where
    /// there never was one, or it was given up.
    pub state: String,
    /// Why there is no answer.
    pub problem: Option<String>,
    /// Since the last answer.
    pub age_s: Option<u64>,
    /// Attempts by outcome.
    pub attempts: Counts,
    /// What answers had that was not used.
    pub left_out: Counts,
}

/// Flows that wait for a place at an endpoint.
#[derive(Debug, Serialize, Deserialize)]
pub struct Queue {
    /// How many do.
    pub flows: u32,
    /// How many may.
    pub flows_max: u32,
    /// How many ever have.
    pub queued: u64,
    /// How long, all together.
    pub queued_ms: u64,
}

/// An endpoint.
#[derive(Debug, Serialize, Deserialize)]
pub struct Endpoint {
    /// Where it serves.
    pub address: String,
    /// Its share.
    pub weight: u32,
    /// How much of that counts, in percent: less than all while it grows after a return.
    #[serde(default)]
    pub weight_percent: u32,
    /// Whether it is believed to serve.
    pub up: bool,
    /// Whether it was added and its first check is waited for, which is neither up nor down.
    #[serde(default)]
    pub checking: bool,
    /// Whether it gets nothing new.
    pub draining: bool,
    /// Whether it was removed and is shown for the flows it still has.
    #[serde(default)]
    pub removed: bool,
    /// Why it gets nothing new for a time, if its flows have failed.
    #[serde(default)]
    pub ejected: Option<String>,
    /// How often that has ever been so.
    #[serde(default)]
    pub ejections: u64,
    /// Whether it gets flows only where no other is available.
    #[serde(default)]
    pub backup: bool,
    /// Flows now.
    pub flows_active: u32,
    /// Flows it may have; 0 if that is not limited.
    #[serde(default)]
    pub flows_max: u32,
    /// Flows ever.
    pub flows_total: u64,
    /// Failed connects ever.
    pub connect_failures: u64,
}

/// A policy that is a plugin.
#[derive(Debug, Serialize, Deserialize)]
pub struct Policy {
    /// Its name.
    pub name: String,
    /// Its file.
    pub plugin: String,
    /// Who answers when it cannot.
    pub fallback: String,
    /// How often it was asked.
    pub calls: u64,
    /// How often it left the answer to the fallback.
    pub deferred: u64,
    /// Time in its calls.
    pub decision_ns: u64,
    /// What half of its decisions take at most.
    #[serde(default)]
    pub p50_ns: Option<u64>,
    /// What 99 of 100 take at most.
    #[serde(default)]
    pub p99_ns: Option<u64>,
    /// Flows on which it was not asked for want of CPU.
    #[serde(default)]
    pub throttled: u64,
    /// Failed calls by kind.
    pub faults: Counts,
}

impl Status {
    /// Describes what the view shows.
    pub fn new(view: &View, uptime_s: u64) -> Self {
        let plan = &view.setup.plan;
        let listener = |view_of: &ListenerView| {
            let plan_of = &plan.listeners[view_of.id.index()];
            let listener = &view.snapshot.listeners[view_of.id.index()];
            let cluster = &plan.clusters[plan_of.cluster.index()].name;
            Listener::new(plan_of, listener.address.to_string(), cluster, view_of)
        };
        let cluster = |view: &ClusterView| Cluster::new(&plan.clusters[view.id.index()], view);
        let policy = |view: &PluginView| {
            let plan = plan.plugins.get(view.id.0)?;
            Some(Policy::new(plan.file.display().to_string(), plan.fallback.name(), view))
        };
        Self {
            version: crate::VERSION.to_owned(),
            uptime_s,
            workers: plan.workers,
            generation: view.snapshot.generation.0,
            draining: view.snapshot.drain_until.is_some(),
            listeners: view.listeners.iter().map(listener).collect(),
            clusters: view.clusters.iter().map(cluster).collect(),
            policies: view.plugins.iter().filter_map(policy).collect(),
            flows_max: plan.flows_max,
            loads: view.workers.iter().map(Load::new).collect(),
            reloads: counts(Outcome::ALL.map(Outcome::label), &view.reloads.outcomes),
            last_reload: view.reloads.last.clone(),
        }
    }

    /// The status for a person.
    pub fn to_table(&self) -> String {
        let mut text = String::new();
        let state = if self.draining { "draining" } else { "serving" };
        let _ = writeln!(
            text,
            "pointsman {}, {state}, up {} s, {} worker(s), generation {}\n",
            self.version, self.uptime_s, self.workers, self.generation
        );
        if let Some(last) = &self.last_reload {
            let _ = writeln!(text, "{}\n", reloaded(last));
        }
        text.push_str(&self.listeners_table());
        text.push('\n');
        text.push_str(&self.endpoints_table());
        if self.clusters.iter().any(|cluster| cluster.discovery.is_some()) {
            text.push('\n');
            text.push_str(&self.discovery_table());
        }
        text.push('\n');
        text.push_str(&self.decisions_table());
        text
    }

    fn listeners_table(&self) -> String {
        let heads = [
            "LISTENER", "PROTO", "ADDRESS", "CLUSTER", "ACTIVE", "FLOWS", "UP B", "DOWN B",
            "UP DG", "DOWN DG", "CLOSES", "SHEDS",
        ];
        let mut table = Table::new(&heads);
        for listener in &self.listeners {
            let datagrams = |of: fn(&Datagrams) -> u64| {
                listener
                    .datagrams
                    .as_ref()
                    .map_or_else(|| "-".to_owned(), |all| of(all).to_string())
            };
            table.row([
                listener.name.clone(),
                listener.protocol.clone(),
                listener.address.clone(),
                if listener.removed { "(removed)".to_owned() } else { listener.cluster.clone() },
                listener.flows_active.to_string(),
                listener.flows_total.to_string(),
                listener.bytes_upstream.to_string(),
                listener.bytes_downstream.to_string(),
                datagrams(|all| all.upstream),
                datagrams(|all| all.downstream),
                shown(&listener.closes),
                shown(&listener.sheds),
            ]);
        }
        table.to_string()
    }

    fn endpoints_table(&self) -> String {
        let [address, weight, state, active, flows, failed] = ENDPOINT_HEADS;
        let heads = ["CLUSTER", address, weight, state, active, flows, failed];
        let mut table = Table::new(&heads);
        for cluster in &self.clusters {
            for endpoint in &cluster.endpoints {
                let [address, rest @ ..] = endpoint.cells();
                let [weight, state, active, flows, failed] = rest;
                table.row([cluster.name.clone(), address, weight, state, active, flows, failed]);
            }
        }
        table.to_string()
    }

    fn discovery_table(&self) -> String {
        let mut table = Table::new(&[
            "CLUSTER", "FOUND IN", "STATE", "AGE S", "ATTEMPTS", "LEFT OUT", "PROBLEM",
        ]);
        for cluster in &self.clusters {
            let Some(discovery) = &cluster.discovery else { continue };
            table.row([
                cluster.name.clone(),
                discovery.source.clone(),
                discovery.state.clone(),
                discovery.age_s.map_or_else(|| "-".to_owned(), |age| age.to_string()),
                shown(&discovery.attempts),
                shown(&discovery.left_out),
                discovery.problem.clone().unwrap_or_else(|| "-".to_owned()),
            ]);
        }
        table.to_string()
    }

    fn decisions_table(&self) -> String {
        let heads = [
            "CLUSTER",
            "POLICY",
            "KIND",
            "DIGEST",
            "GENERATION",
            "FOOTING",
            "QUEUE",
            "DECISIONS",
            "P50 NS",
            "P99 NS",
            "FAULTS",
            "THROTTLED",
        ];
        let mut table = Table::new(&heads);
        for cluster in &self.clusters {
            let plugin = self.policies.iter().find(|policy| policy.name == cluster.policy);
            let of = |of: &dyn Fn(&Policy) -> Option<String>| {
                plugin.and_then(of).unwrap_or_else(|| "-".to_owned())
            };
            table.row([
                cluster.name.clone(),
                cluster.policy.clone(),
                cluster.shape.as_ref().unwrap_or(&cluster.kind).clone(),
                cluster.digest.as_deref().map_or("-", short).to_owned(),
                cluster.policy_generation.to_string(),
                cluster.footing.clone(),
                cluster.queue.as_ref().map_or_else(
                    || "-".to_owned(),
                    |queue| format!("{}/{}", queue.flows, queue.flows_max),
                ),
                shown(&cluster.decisions),
                of(&|policy| Some(policy.p50_ns?.to_string())),
                of(&|policy| Some(policy.p99_ns?.to_string())),
                of(&|policy| Some(shown(&policy.faults))),
                of(&|policy| Some(policy.throttled.to_string())),
            ]);
        }
        table.to_string()
    }
}

impl Listener {
    fn new(plan: &ListenerPlan, address: String, cluster: &str, view: &ListenerView) -> Self {
        let stats = &view.stats;
        let datagrams = || Datagrams {
            upstream: stats.datagrams_total[Side::Upstream.index()],
            downstream: stats.datagrams_total[Side::Downstream.index()],
            stateless: stats.stateless_total,
        };
        Self {
            name: view.name.clone(),
            address,
            protocol: protocol_name(plan.protocol).to_owned(),
            datagrams: plan.is_datagrams().then(datagrams),
            cluster: cluster.to_owned(),
            removed: plan.removed,
            flows_active: stats.flows_active,
            flows_max: plan.flows_max,
            flows_total: stats.flows_total,
            bytes_upstream: stats.bytes_total[Side::Upstream.index()],
            bytes_downstream: stats.bytes_total[Side::Downstream.index()],
            connect_retries: stats.connect_retries_total,
            closes: counts(CloseReason::ALL.map(CloseReason::label), &stats.closes_total),
            sheds: counts(ShedReason::ALL.map(ShedReason::label), &stats.sheds_total),
            drops: counts(DropReason::ALL.map(DropReason::label), &stats.drops_total),
            keyless: counts(KeylessReason::ALL.map(KeylessReason::label), &stats.keyless_total),
        }
    }
}

impl Cluster {
    fn new(plan: &ClusterPlan, view: &ClusterView) -> Self {
        let kind = match plan.policy {
            PolicyPlan::Native(_) => "native",
            PolicyPlan::Plugin(_) => "plugin",
        };
        Self {
            name: view.name.clone(),
            policy: plan.policy_name.clone(),
            kind: kind.to_owned(),
            shape: view.seat.shape.map(|shape| shape.to_string()),
            digest: view.seat.digest.clone(),
            policy_generation: view.stats.policy_generation,
            decisions: counts(Source::ALL.map(Source::label), &view.stats.decisions_total),
            footing: view.footing.label().to_owned(),
            removed: plan.removed,
            discovery: view
                .discovery
                .as_ref()
                .map(|(plan, standing)| Discovery::new(plan.source.to_string(), standing)),
            queue: (view.queue.flows_max > 0).then(|| Queue {
                flows: view.queue.flows,
                flows_max: view.queue.flows_max,
                queued: view.stats.queued_total,
                queued_ms: u64::try_from(view.stats.queued_time.as_millis()).unwrap_or(u64::MAX),
            }),
            overflows: view.stats.overflows_total,
            endpoints: endpoints(&view.endpoints, &view.leaving),
        }
    }
}

impl Discovery {
    fn new(source: String, standing: &Standing) -> Self {
        let state = match (&standing.failure, standing.answered_at) {
            (None, None) => "waiting",
            (None, Some(_)) => "found",
            (Some(failure), Some(_)) if !failure.forgets => "failing",
            (Some(_), _) => "absent",
        };
        Self {
            source,
            state: state.to_owned(),
            problem: standing.failure.as_ref().map(|failure| failure.why.clone()),
            age_s: standing.answered_at.map(|at| at.elapsed().as_secs()),
            attempts: counts(
                discovery::Outcome::ALL.map(discovery::Outcome::label),
                &standing.outcomes,
            ),
            left_out: counts(LeftOut::LABELS, &standing.left_out.counts()),
        }
    }
}

impl Endpoint {
    fn new(state: &EndpointState) -> Self {
        let load = &state.endpoint.load;
        Self {
            address: state.endpoint.address.to_string(),
            weight: state.endpoint.weight,
            weight_percent: state.growth.tenths() * 100 / STEPS,
            up: state.up,
            checking: state.unproven,
            draining: state.draining,
            removed: false,
            ejected: state.ejected.map(|reason| reason.label().to_owned()),
            ejections: state.ejections_total,
            backup: state.backup,
            flows_active: load.flows_active(),
            flows_max: limit_shown(state.endpoint.flows_max),
            flows_total: load.flows_total(),
            connect_failures: load.connect_failures_total(),
        }
    }
}

/// A cluster's endpoints, and after them those that were removed and still have flows.
pub fn endpoints(configured: &[EndpointState], leaving: &[EndpointState]) -> Vec<Endpoint> {
    let leaving = leaving.iter().map(|one| Endpoint { removed: true, ..Endpoint::new(one) });
    configured.iter().map(Endpoint::new).chain(leaving).collect()
}

/// The endpoints of one cluster for a person.
pub fn endpoints_table(endpoints: &[Endpoint]) -> String {
    let mut table = Table::new(&ENDPOINT_HEADS);
    endpoints.iter().for_each(|endpoint| table.row(endpoint.cells()));
    table.to_string()
}

impl Endpoint {
    /// What [`ENDPOINT_HEADS`] names.
    fn cells(&self) -> [String; ENDPOINT_HEADS.len()] {
        [
            self.address.clone(),
            match self.weight_percent {
                100 => self.weight.to_string(),
                percent => format!("{} ({percent} %)", self.weight),
            },
            self.state(),
            match self.flows_max {
                0 => self.flows_active.to_string(),
                max => format!("{}/{max}", self.flows_active),
            },
            self.flows_total.to_string(),
            self.connect_failures.to_string(),
        ]
    }

    /// Its state for a person.
    fn state(&self) -> String {
        if self.removed {
            return "removed".to_owned();
        }
        let state = match (&self.ejected, self.up, self.draining) {
            (_, false, _) if self.checking => "checking",
            (_, false, _) => "down",
            (_, true, true) => "draining",
            (Some(reason), true, false) => return format!("ejected ({reason})"),
            (None, true, false) => "up",
        };
        if self.backup { format!("{state}, backup") } else { state.to_owned() }
    }
}

impl Policy {
    fn new(plugin: String, fallback: &str, view: &PluginView) -> Self {
        Self {
            name: view.name.clone(),
            plugin,
            fallback: fallback.to_owned(),
            calls: view.counts.calls(),
            deferred: view.counts.deferred,
            decision_ns: view.counts.decision_nanos,
            p50_ns: view.counts.p50().map(nanos),
            p99_ns: view.counts.p99().map(nanos),
            throttled: view.counts.throttled,
            faults: counts(FaultKind::ALL.map(FaultKind::label), &view.counts.faults),
        }
    }
}

/// How the last reload went, for a person.
fn reloaded(last: &Last) -> String {
    let then = Duration::from_millis(last.at_unix_ms);
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let ago = now.saturating_sub(then).as_secs();
    let problems = last.problems.join("\n  ");
    match last.generation {
        Some(generation) => format!("reloaded {ago} s ago: generation {generation}"),
        None => format!("a reload was refused {ago} s ago, nothing has changed:\n  {problems}"),
    }
}

fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

fn counts<const N: usize>(names: [&str; N], of: &[u64]) -> Counts {
    let named = names.into_iter().zip(of);
    named.filter(|(_, n)| **n > 0).map(|(name, n)| (name.to_owned(), *n)).collect()
}

fn shown(counts: &Counts) -> String {
    if counts.is_empty() {
        return "-".to_owned();
    }
    let each = counts.iter().map(|(name, count)| format!("{name} {count}"));
    each.collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::view::tests::view;

    #[test]
    fn the_status_survives_its_way_over_the_socket() {
        let status = Status::new(&view(), 7);
        let text = serde_json::to_string(&status).expect("JSON");
        let back: Status = serde_json::from_str(&text).expect("a status");
        assert_eq!(back.listeners[0].flows_total, 6);
        assert_eq!(back.listeners[0].protocol, "tcp");
        assert!(back.listeners[0].datagrams.is_none());
        assert_eq!(back.listeners[0].closes["idle-timeout"], 2);
        assert_eq!(back.clusters[0].decisions["native"], 6);
        assert!(back.clusters[0].endpoints[0].up);
    }

    #[test]
    fn a_listener_of_datagrams_shows_how_many() {
        let mut view = view();
        let setup = std::sync::Arc::get_mut(&mut view.setup).expect("nobody else has it");
        setup.plan.listeners[0].protocol = pointsman_core::Protocol::Udp;
        let status = Status::new(&view, 7);
        assert_eq!(status.listeners[0].protocol, "udp");
        let datagrams = status.listeners[0].datagrams.as_ref().expect("counts");
        assert_eq!((datagrams.upstream, datagrams.downstream, datagrams.stateless), (6, 0, 4));
        assert!(status.to_table().contains("udp"));
    }

    #[test]
    fn the_table_names_listener_endpoint_and_policy() {
        let table = Status::new(&view(), 7).to_table();
        for part in ["web", "127.0.0.1:8080", "127.0.0.1:1", "round-robin", "native 6", "up 7 s"] {
            assert!(table.contains(part), "{part} is not in\n{table}");
        }
    }
}
