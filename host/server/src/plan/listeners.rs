//! Looks up listeners.

use pointsman_core::{ClusterId, Listener as CoreListener, PrefixLengths, Timeouts};

use super::ListenerPlan;
use super::findings::{Distinct, Findings};
use crate::config::{Cluster, Listener, OnEndpointDown, Protocol};
use crate::problem::suggestion;

pub(super) fn resolve(
    listeners: &[Listener],
    clusters: &[Cluster],
    findings: &mut Findings,
) -> Vec<ListenerPlan> {
    if listeners.is_empty() {
        findings
            .add("listeners", "there is none; add a [[listeners]] with name, address and cluster");
    }
    if u16::try_from(listeners.len()).is_err() {
        findings.add("listeners", format!("there are more than {}", u16::MAX));
    }
    let mut names = Distinct::default();
    let mut addresses = Distinct::default();
    let mut plans = Vec::with_capacity(listeners.len());
    for (place, listener) in listeners.iter().enumerate() {
        let key = format!("listeners[{place}]");
        let plan = resolve_one(&key, listener, clusters, findings);
        names.note(findings, &format!("{key}.name"), &plan.name);
        if plan.address.port() != 0 {
            addresses.note(findings, &format!("{key}.address"), &plan.address.to_string());
        }
        plans.push(plan);
    }
    plans
}

fn resolve_one(
    key: &str,
    listener: &Listener,
    clusters: &[Cluster],
    findings: &mut Findings,
) -> ListenerPlan {
    if listener.protocol == Protocol::Udp {
        findings.add(
            format!("{key}.protocol"),
            "udp listeners are not available in this version; use protocol = \"tcp\"",
        );
    }
    let name = findings.required(&format!("{key}.name"), listener.name.as_ref(), "name it");
    ListenerPlan {
        name: name.to_owned(),
        address: findings.address(&format!("{key}.address"), listener.address.as_ref()),
        cluster: cluster(&format!("{key}.cluster"), listener.cluster.as_ref(), clusters, findings),
        flows_max: findings.within(&format!("{key}.max_flows"), listener.max_flows, 1..=10_000_000),
        client_prefix: PrefixLengths {
            v4: findings.within(
                &format!("{key}.client_prefix_v4"),
                listener.client_prefix_v4,
                0..=32,
            ),
            v6: findings.within(
                &format!("{key}.client_prefix_v6"),
                listener.client_prefix_v6,
                0..=128,
            ),
        },
        connect_attempts: findings.within(
            &format!("{key}.connect_attempts"),
            listener.connect_attempts,
            1..=CoreListener::CONNECT_ATTEMPTS_MAX,
        ),
        on_endpoint_down: match listener.on_endpoint_down {
            OnEndpointDown::Keep => pointsman_core::OnEndpointDown::Keep,
            OnEndpointDown::Reset => pointsman_core::OnEndpointDown::Reset,
        },
        timeouts: timeouts(key, listener, findings),
    }
}

fn timeouts(key: &str, listener: &Listener, findings: &mut Findings) -> Timeouts {
    let mut millis = |name: &str, value| findings.millis(&format!("{key}.{name}"), value);
    Timeouts {
        preread: std::time::Duration::from_secs(3),
        connect: millis("connect_timeout_ms", listener.connect_timeout_ms),
        idle: millis("idle_timeout_ms", listener.idle_timeout_ms),
        half_closed: millis("half_closed_timeout_ms", listener.half_closed_timeout_ms),
    }
}

fn cluster(
    key: &str,
    name: Option<&String>,
    clusters: &[Cluster],
    findings: &mut Findings,
) -> ClusterId {
    let name = findings.required(key, name, "name the cluster that serves this listener");
    let place = clusters.iter().position(|cluster| cluster.name.as_deref() == Some(name));
    if place.is_none() && !name.is_empty() {
        let known = clusters.iter().filter_map(|cluster| cluster.name.as_deref());
        let hint = suggestion(name, known);
        findings.add(key, format!("no cluster is named \"{name}\"{hint}"));
    }
    ClusterId(place.and_then(|place| u16::try_from(place).ok()).unwrap_or_default())
}
