//! Looks up clusters and their endpoints.

use std::ops::RangeInclusive;
use std::sync::Arc;
use std::time::Duration;

use pointsman_core::eligibility::Eligibility;

use super::findings::{Distinct, Findings};
use super::plugins::Policies;
use super::{
    ClusterPlan, ENDPOINT_FLOWS, ENDPOINTS_MAX, EndpointPlan, ListenerPlan, PluginFolders,
    QueuePlan, checks, discovery, endpoint_problem, limit, passive, proxy, weights,
};
use crate::config::{Cluster, DiscoveryKind, Endpoint};

pub(super) fn resolve(
    clusters: &[Cluster],
    policies: &Policies,
    folders: &PluginFolders,
    findings: &mut Findings,
) -> Vec<ClusterPlan> {
    if clusters.is_empty() {
        findings.add("clusters", "there is none; add a [[clusters]] with name and endpoints");
    }
    if u16::try_from(clusters.len()).is_err() {
        findings.add("clusters", format!("there are more than {}", u16::MAX));
    }
    let mut names = Distinct::default();
    let mut plans = Vec::with_capacity(clusters.len());
    for (place, cluster) in clusters.iter().enumerate() {
        let key = format!("clusters[{place}]");
        let plan = resolve_one(&key, cluster, policies, folders, findings);
        names.note(findings, &format!("{key}.name"), &plan.name);
        plans.push(plan);
    }
    plans
}

fn resolve_one(
    key: &str,
    cluster: &Cluster,
    policies: &Policies,
    folders: &PluginFolders,
    findings: &mut Findings,
) -> ClusterPlan {
    let name = findings.required(&format!("{key}.name"), cluster.name.as_ref(), "name it");
    ClusterPlan {
        name: name.to_owned(),
        policy_name: cluster.policy.clone(),
        policy: policies.find(&format!("{key}.policy"), &cluster.policy, findings),
        endpoints: written_endpoints(&format!("{key}.endpoints"), cluster, findings),
        discovery: cluster
            .discovery
            .as_ref()
            .and_then(|it| discovery::resolve(&format!("{key}.discovery"), it, folders, findings))
            .map(Arc::new),
        check: cluster
            .health
            .as_ref()
            .map(|health| Arc::new(checks::resolve(&format!("{key}.health"), health, findings))),
        passive: cluster
            .passive
            .as_ref()
            .map(|passive| passive::resolve(&format!("{key}.passive"), passive, findings)),
        eligibility: eligibility(key, cluster, findings),
        queue: queue(key, cluster, findings),
        slow_start: slow_start(key, cluster, findings),
        proxy: cluster
            .proxy_protocol
            .as_ref()
            .map(|outbound| proxy::outbound(&format!("{key}.proxy_protocol"), outbound, findings)),
        transparent: cluster.transparent,
        removed: false,
    }
}

fn slow_start(key: &str, cluster: &Cluster, findings: &mut Findings) -> Duration {
    match cluster.slow_start_ms {
        0 => Duration::ZERO,
        millis => findings.millis(&format!("{key}.slow_start_ms"), millis),
    }
}

fn queue(key: &str, cluster: &Cluster, findings: &mut Findings) -> QueuePlan {
    let Some(queue) = &cluster.queue else {
        return QueuePlan { flows_max: 0, timeout: Duration::ZERO };
    };
    let key = format!("{key}.queue");
    if cluster.endpoints.iter().any(|endpoint| endpoint.max_flows == 0) {
        let advice = "nobody ever waits, because an endpoint without max_flows is never full; give \
                      every endpoint max_flows, or remove `queue`";
        findings.add(&*key, advice);
    }
    let kind = cluster.discovery.as_ref().and_then(|discovery| discovery.kind);
    if kind.is_some_and(|kind| kind != DiscoveryKind::File) {
        let advice = "nobody ever waits, because what DNS finds has no max_flows; remove `queue`, or \
                      find the endpoints by kind \"file\"";
        findings.add(&*key, advice);
    }
    let max_key = format!("{key}.max_flows");
    QueuePlan {
        flows_max: findings.within(&max_key, queue.max_flows, 1..=*ENDPOINT_FLOWS.end()),
        timeout: findings.millis(&format!("{key}.timeout_ms"), queue.timeout_ms),
    }
}

/// Datagrams do not wait: a queue that only they come to is a mistake.
pub(super) fn check_queues(
    clusters: &[Cluster],
    listeners: &[ListenerPlan],
    findings: &mut Findings,
) {
    for (place, _) in clusters.iter().enumerate().filter(|(_, cluster)| cluster.queue.is_some()) {
        let mut own = listeners.iter().filter(|listener| listener.cluster.index() == place);
        if own.clone().next().is_some() && own.all(ListenerPlan::is_datagrams) {
            let advice = "no flow of UDP ever waits, and the cluster has no other; remove `queue`";
            findings.add(format!("clusters[{place}].queue"), advice);
        }
    }
}

fn eligibility(key: &str, cluster: &Cluster, findings: &mut Findings) -> Eligibility {
    let key = format!("{key}.panic_threshold_percent");
    let threshold = findings.within(&key, cluster.panic_threshold_percent, 0..=100);
    if threshold > 0 && !cluster.fail_open {
        let advice = "uses all endpoints where few are available, and fail_open = false forbids that \
                      where none is; remove one of the two";
        findings.add(key, advice);
    }
    Eligibility { fails_open: cluster.fail_open, panic_threshold_percent: threshold }
}

/// A cluster's endpoints are written or found, not both: nobody could tell whose word counts.
fn written_endpoints(key: &str, cluster: &Cluster, findings: &mut Findings) -> Vec<EndpointPlan> {
    if cluster.discovery.is_none() {
        let weights = weights(Duration::from_millis(cluster.slow_start_ms));
        return endpoints(key, &cluster.endpoints, weights, findings);
    }
    if !cluster.endpoints.is_empty() {
        findings.add(key, "they are found by discovery already; remove one of the two");
    }
    Vec::new()
}

pub(super) fn endpoints(
    key: &str,
    endpoints: &[Endpoint],
    weights: RangeInclusive<u32>,
    findings: &mut Findings,
) -> Vec<EndpointPlan> {
    if endpoints.is_empty() {
        findings
            .add(key, "there is none; write at least one, such as { address = \"10.0.0.1:80\" }");
    }
    if endpoints.len() > ENDPOINTS_MAX {
        findings.add(key, format!("there are {}; at most {ENDPOINTS_MAX} fit", endpoints.len()));
    }
    let mut addresses = Distinct::default();
    let mut plans = Vec::with_capacity(endpoints.len());
    for (place, endpoint) in endpoints.iter().enumerate() {
        let key_address = format!("{key}[{place}].address");
        let before = findings.count();
        let address = findings.address(&key_address, endpoint.address.as_ref());
        if findings.count() == before {
            if let Some(problem) = endpoint_problem(address) {
                findings.add(&key_address, problem);
            }
            addresses.note(findings, &key_address, &address.to_string());
        }
        let weight =
            findings.within(&format!("{key}[{place}].weight"), endpoint.weight, weights.clone());
        let key_max = format!("{key}[{place}].max_flows");
        let flows_max = limit(findings.within(&key_max, endpoint.max_flows, ENDPOINT_FLOWS));
        plans.push(EndpointPlan { address, weight, backup: endpoint.backup, flows_max });
    }
    if !plans.is_empty() && plans.iter().all(|plan| plan.backup) {
        findings.add(key, "all of them are backups, of nobody; remove `backup` from at least one");
    }
    plans
}
