//! Looks up who says for whom it connects, and who is told.

use std::collections::HashMap;

use pointsman_core::preread::KeyRule;
use pointsman_core::proxy::{Inbound, Outbound, Version};
use pointsman_core::{AccessList, ClusterId};

use super::findings::Findings;
use super::{ClusterPlan, ListenerPlan, access};
use crate::config::{ProxyInbound, ProxyOutbound, ProxyValue, ProxyVersion};

pub(super) fn inbound(key: &str, inbound: &ProxyInbound, findings: &mut Findings) -> Inbound {
    let trusted = inbound.trusted.as_deref().unwrap_or_default();
    if trusted.is_empty() {
        let advice = "write who may say for whom it connects, such as [\"10.0.0.0/8\"]";
        findings.add(format!("{key}.trusted"), format!("names nobody; {advice}"));
    }
    let networks =
        access::networks(&format!("{key}.trusted"), trusted, &mut HashMap::new(), findings);
    let timeout_ms = inbound.timeout_ms.unwrap_or(ProxyInbound::TIMEOUT_MS);
    let timeout = findings.millis(&format!("{key}.timeout_ms"), timeout_ms);
    Inbound { trusted: AccessList::new(&networks, &[]), timeout }
}

pub(super) fn outbound(key: &str, outbound: &ProxyOutbound, findings: &mut Findings) -> Outbound {
    let version = version(outbound.version.unwrap_or(ProxyVersion::V2));
    if version == Version::V1 && !outbound.tlvs.is_empty() {
        let advice = "version 1 has none; leave them out, or write version = \"v2\"";
        findings.add(format!("{key}.tlvs"), advice);
    }
    let has = |value| version == Version::V2 && outbound.tlvs.contains(&value);
    Outbound {
        version,
        unique_id: has(ProxyValue::UniqueId),
        authority: has(ProxyValue::Authority),
        crc32c: has(ProxyValue::Crc32c),
    }
}

pub(super) const fn version(version: ProxyVersion) -> Version {
    match version {
        ProxyVersion::V1 => Version::V1,
        ProxyVersion::V2 => Version::V2,
    }
}

/// Shows listeners of datagrams how their clusters tell endpoints of clients, and refuses headers that can
/// never be sent, or never with what they are to have.
pub(super) fn tell_endpoints(
    listeners: &mut [ListenerPlan],
    clusters: &[ClusterPlan],
    findings: &mut Findings,
) {
    for (id, cluster) in (0..).map(ClusterId).zip(clusters) {
        let Some(outbound) = cluster.proxy else { continue };
        let key = format!("clusters[{}].proxy_protocol", id.index());
        let mut served = listeners.iter().filter(|listener| listener.cluster == id);
        if outbound.authority && !served.any(|l| l.key == Some(KeyRule::ServerName)) {
            let advice = "needs a listener of this cluster with key = { kind = \"sni\" }";
            findings.add(
                format!("{key}.tlvs"),
                format!("\"authority\" {advice}; add one, or leave it out"),
            );
        }
        let datagrams = |l: &&mut ListenerPlan| l.cluster == id && l.is_datagrams();
        for listener in listeners.iter_mut().filter(datagrams) {
            refuse_for_datagrams(&key, outbound, findings);
            listener.datagrams.announce = Some(outbound);
        }
    }
}

/// A datagram is announced by itself: there is no flow in the header that an id could be the id of.
fn refuse_for_datagrams(key: &str, outbound: Outbound, findings: &mut Findings) {
    let advice = "use another cluster for the udp listeners";
    if outbound.version == Version::V1 {
        findings.add(
            format!("{key}.version"),
            format!("version 1 knows no datagrams; write \"v2\", or {advice}"),
        );
    }
    if outbound.unique_id {
        findings.add(
            key,
            format!("\"unique-id\" is for connections; leave it out of tlvs, or {advice}"),
        );
    }
}
