//! Looks up listeners.

use std::sync::Arc;

use pointsman_core::{
    ClusterId, DatagramSettings, Listener as CoreListener, PrefixLengths, Timeouts,
};

use super::findings::{Distinct, Findings};
use super::{ListenerPlan, access, keys, proxy};
use crate::config::{Cluster, Listener, OnEndpointDown, Protocol, UpstreamSockets};
use crate::problem::suggestion;

/// More flows than any machine of today can hold.
pub(super) const FLOWS_MAX: u32 = 10_000_000;

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
    let (mut tcp, mut udp) = (Distinct::default(), Distinct::default());
    let mut plans = Vec::with_capacity(listeners.len());
    for (place, listener) in listeners.iter().enumerate() {
        let key = format!("listeners[{place}]");
        let plan = Resolver { key: &key, listener, findings }.resolve(clusters);
        names.note(findings, &format!("{key}.name"), &plan.name);
        let addresses = if plan.is_datagrams() { &mut udp } else { &mut tcp };
        if plan.address.port() != 0 {
            addresses.note(findings, &format!("{key}.address"), &plan.address.to_string());
        }
        plans.push(plan);
    }
    plans
}

/// One listener and the key at which it stands.
struct Resolver<'a> {
    key: &'a str,
    listener: &'a Listener,
    findings: &'a mut Findings,
}

impl Resolver<'_> {
    fn resolve(mut self, clusters: &[Cluster]) -> ListenerPlan {
        let listener = self.listener;
        let preread_bytes_max = self.preread_bytes_max();
        ListenerPlan {
            name: self
                .findings
                .required(&self.at("name"), listener.name.as_ref(), "name it")
                .to_owned(),
            address: self.findings.address(&self.at("address"), listener.address.as_ref()),
            protocol: match listener.protocol {
                Protocol::Tcp => pointsman_core::Protocol::Tcp,
                Protocol::Udp => pointsman_core::Protocol::Udp,
            },
            cluster: self.cluster(clusters),
            flows_max: self.within("max_flows", listener.max_flows, 1..=FLOWS_MAX),
            flows_per_client_max: self.within(
                "max_flows_per_client",
                listener.max_flows_per_client,
                0..=FLOWS_MAX,
            ),
            new_flows_per_second: self.within(
                "new_flows_per_second",
                listener.new_flows_per_second,
                0..=FLOWS_MAX,
            ),
            new_flows_per_second_per_client: self.within(
                "new_flows_per_second_per_client",
                listener.new_flows_per_second_per_client,
                0..=FLOWS_MAX,
            ),
            access: access::resolve(self.key, listener, self.findings),
            client_prefix: PrefixLengths {
                v4: self.within("client_prefix_v4", listener.client_prefix_v4, 0..=32),
                v6: self.within("client_prefix_v6", listener.client_prefix_v6, 0..=128),
            },
            connect_attempts: self.connect_attempts(),
            on_endpoint_down: self.on_endpoint_down(),
            timeouts: self.timeouts(),
            key: self.key_rule(preread_bytes_max),
            preread_bytes_max,
            proxy: self.proxy(),
            datagrams: self.datagrams(),
        }
    }

    fn connect_attempts(&mut self) -> u32 {
        let attempts = self.only(Protocol::Tcp, "connect_attempts", self.listener.connect_attempts);
        let attempts = attempts.unwrap_or(Listener::CONNECT_ATTEMPTS);
        self.within("connect_attempts", attempts, 1..=CoreListener::CONNECT_ATTEMPTS_MAX)
    }

    fn timeouts(&mut self) -> Timeouts {
        let Listener { preread_timeout_ms, connect_timeout_ms, .. } = *self.listener;
        let half_closed = self.listener.half_closed_timeout_ms;
        let preread = self.only_with_key("preread_timeout_ms", preread_timeout_ms);
        let connect = self.only(Protocol::Tcp, "connect_timeout_ms", connect_timeout_ms);
        let half_closed = self.only(Protocol::Tcp, "half_closed_timeout_ms", half_closed);
        let mut millis = |name, value| self.findings.millis(&format!("{}.{name}", self.key), value);
        Timeouts {
            preread: millis("preread_timeout_ms", preread.unwrap_or(Listener::PREREAD_TIMEOUT_MS)),
            connect: millis("connect_timeout_ms", connect.unwrap_or(Listener::CONNECT_TIMEOUT_MS)),
            idle: millis("idle_timeout_ms", self.listener.idle_timeout_ms),
            half_closed: millis(
                "half_closed_timeout_ms",
                half_closed.unwrap_or(Listener::HALF_CLOSED_TIMEOUT_MS),
            ),
        }
    }

    fn preread_bytes_max(&mut self) -> u32 {
        let bytes = self.only_with_key("preread_bytes_max", self.listener.preread_bytes_max);
        let bytes = bytes.unwrap_or(Listener::PREREAD_BYTES_MAX);
        self.within("preread_bytes_max", bytes, 64..=65_536)
    }

    fn key_rule(&mut self, preread_bytes_max: u32) -> Option<pointsman_core::preread::KeyRule> {
        let key = self.listener.key.as_ref()?;
        let source = keys::Source { protocol: self.listener.protocol, preread_bytes_max };
        keys::resolve(&self.at("key"), key, source, self.findings)
    }

    fn proxy(&mut self) -> Option<Arc<pointsman_core::proxy::Inbound>> {
        let value = self.listener.proxy_protocol.as_ref();
        let inbound = self.only(Protocol::Tcp, "proxy_protocol", value)?;
        Some(Arc::new(proxy::inbound(&self.at("proxy_protocol"), inbound, self.findings)))
    }

    fn datagrams(&mut self) -> DatagramSettings {
        let listener = self.listener;
        let replies = self.only(Protocol::Udp, "replies_expected", listener.replies_expected);
        let sockets = self.only(Protocol::Udp, "upstream_sockets", listener.upstream_sockets);
        let ports = self.only(Protocol::Udp, "upstream_ports_max", listener.upstream_ports_max);
        let offload =
            self.only(Protocol::Udp, "segmentation_offload", listener.segmentation_offload);
        let replies = replies.unwrap_or(Listener::REPLIES_EXPECTED);
        let ports = ports.unwrap_or(Listener::UPSTREAM_PORTS_MAX);
        let sockets = sockets.unwrap_or(Listener::UPSTREAM_SOCKETS);
        DatagramSettings {
            replies_expected: self.within("replies_expected", replies, 0..=1_000_000),
            ports_max: self.within("upstream_ports_max", ports, 1..=65_535),
            ports_min: DatagramSettings::DEFAULT.ports_min,
            port_per_flow: sockets == UpstreamSockets::PerFlow,
            offload: offload.unwrap_or(Listener::SEGMENTATION_OFFLOAD),
            announce: None,
        }
    }

    fn on_endpoint_down(&mut self) -> pointsman_core::OnEndpointDown {
        use pointsman_core::OnEndpointDown as Core;

        let (what, word, only) = match self.listener.on_endpoint_down {
            OnEndpointDown::Keep => return Core::Keep,
            OnEndpointDown::Reset => (Core::Reset, "reset", Protocol::Tcp),
            OnEndpointDown::Reallocate => (Core::Reallocate, "reallocate", Protocol::Udp),
            OnEndpointDown::Drop => (Core::Drop, "drop", Protocol::Udp),
        };
        if self.listener.protocol != only {
            let instead = match self.listener.protocol {
                Protocol::Tcp => "\"keep\" or \"reset\"",
                Protocol::Udp => "\"keep\", \"reallocate\" or \"drop\"",
            };
            let message = format!("\"{word}\" is for {} listeners; write {instead}", only.name());
            self.findings.add(self.at("on_endpoint_down"), message);
        }
        what
    }

    fn cluster(&mut self, clusters: &[Cluster]) -> ClusterId {
        let key = self.at("cluster");
        let advice = "name the cluster that serves this listener";
        let name = self.findings.required(&key, self.listener.cluster.as_ref(), advice);
        let place = clusters.iter().position(|cluster| cluster.name.as_deref() == Some(name));
        if place.is_none() && !name.is_empty() {
            let known = clusters.iter().filter_map(|cluster| cluster.name.as_deref());
            let hint = suggestion(name, known);
            self.findings.add(key, format!("no cluster is named \"{name}\"{hint}"));
        }
        ClusterId(place.and_then(|place| u16::try_from(place).ok()).unwrap_or_default())
    }

    /// A key that only one protocol has: its value, unless the listener speaks the other one.
    fn only<T>(&mut self, protocol: Protocol, name: &str, value: Option<T>) -> Option<T> {
        if value.is_some() && self.listener.protocol != protocol {
            let only = protocol.name();
            let message =
                format!("is for {only} listeners; leave it out, or write protocol = \"{only}\"");
            self.findings.add(self.at(name), message);
            return None;
        }
        value
    }

    /// A key that only connections with an application key have.
    fn only_with_key<T>(&mut self, name: &str, value: Option<T>) -> Option<T> {
        let value = self.only(Protocol::Tcp, name, value)?;
        if self.listener.key.is_none() {
            let message = "is for listeners with a key; leave it out, or write a key, such as \
                           key = { kind = \"sni\" }";
            self.findings.add(self.at(name), message);
        }
        Some(value)
    }

    fn within<N: PartialOrd + Copy + std::fmt::Display>(
        &mut self,
        name: &str,
        value: N,
        bounds: std::ops::RangeInclusive<N>,
    ) -> N {
        self.findings.within(&self.at(name), value, bounds)
    }

    fn at(&self, name: &str) -> String {
        format!("{}.{name}", self.key)
    }
}
