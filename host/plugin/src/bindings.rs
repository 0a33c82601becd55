//! The interface's types, generated from `policy.wit`, and what the host does for a guest.
//!
//! Generated rather than written down again, so that the WIT file stays the only description of the
//! interface. The imports are bounded and never block: neither an epoch nor anything else could
//! interrupt them.

use core::net::{IpAddr, SocketAddr};
use core::sync::atomic::{AtomicU64, Ordering::Relaxed};
use core::time::Duration;

use pointsman_core::boundary::Side;
use pointsman_core::policy::{EndedFlow, EndpointIndex, Flow};
use pointsman_core::{
    Candidates, CloseReason, Endpoint, EndpointId, LatencySample, Load, Protocol, Sample,
};

use crate::guest::List;
use crate::instance::State;
use crate::log::{LogLevel, Speaker};

/// What the macro writes; apart, because its style is its own.
#[allow(missing_docs, unreachable_pub, unused_qualifications, clippy::all, clippy::pedantic)]
mod generated {
    wasmtime::component::bindgen!({
        path: "../../plugin-sdk/wit",
        world: "chooser",
    });
}

/// The types of what a chooser may export beside its world.
#[allow(missing_docs, unreachable_pub, unused_qualifications, clippy::all, clippy::pedantic)]
mod of_feedback {
    wasmtime::component::bindgen!({
        path: "../../plugin-sdk/wit",
        world: "with-feedback",
        with: { "pointsman:policy/signals": super::generated::pointsman::policy::signals },
    });
}

pub(crate) use generated::Chooser;
pub(crate) use generated::pointsman::policy::types::{self, Scope, Verdict};
pub(crate) use generated::pointsman::policy::{counters, host, signals, slots};
pub(crate) use of_feedback::exports::pointsman::policy::feedback;

/// The package that both sides of the interface name.
pub(crate) const PACKAGE: &str = "pointsman:policy";
/// The version of [`PACKAGE`] that this host speaks.
pub(crate) const VERSION: &str = "0.1.1";
/// The interfaces that it offers, each with its functions.
pub(crate) const HOST_FUNCTIONS: [(&str, &[&str]); 4] = [
    ("host", &["log", "load"]),
    ("signals", &["read"]),
    ("slots", &["get", "set", "add"]),
    ("counters", &["count"]),
];

/// What `avoid` is when there is nothing to avoid.
const NO_ENDPOINT: u32 = u32::MAX;

impl types::Host for State {}

impl host::Host for State {
    fn log(&mut self, level: host::Level, message: String) {
        let level = match level {
            host::Level::Error => LogLevel::Error,
            host::Level::Warn => LogLevel::Warn,
            host::Level::Info => LogLevel::Info,
            host::Level::Debug => LogLevel::Debug,
        };
        self.recipe.log(Speaker::Guest, level, &message);
    }

    fn load(&mut self, endpoint: u32) -> u32 {
        self.load_of(endpoint).map_or(0, Load::flows_active)
    }
}

impl signals::Host for State {
    fn read(&mut self, endpoint: u32) -> signals::Sample {
        let sample = self.load_of(endpoint).map(|load| load.sample(self.now));
        sample_of(&sample.unwrap_or_default())
    }
}

impl slots::Host for State {
    fn get(&mut self, endpoint: u32, slot: u32) -> u64 {
        self.slot(endpoint, slot).map_or(0, |number| number.load(Relaxed))
    }

    fn set(&mut self, endpoint: u32, slot: u32, value: u64) {
        if let Some(number) = self.slot(endpoint, slot) {
            number.store(value, Relaxed);
        }
    }

    fn add(&mut self, endpoint: u32, slot: u32, value: u64) -> u64 {
        let number = self.slot(endpoint, slot);
        number.map_or(0, |number| number.fetch_add(value, Relaxed).wrapping_add(value))
    }
}

impl counters::Host for State {
    fn count(&mut self, counter: u32, by: u64) {
        self.recipe.stats.on_counted(counter, by);
    }
}

impl State {
    fn load_of(&self, endpoint: u32) -> Option<&Load> {
        self.candidates.get(EndpointIndex(endpoint)).map(|endpoint| &*endpoint.load)
    }

    fn slot(&self, endpoint: u32, slot: u32) -> Option<&AtomicU64> {
        self.load_of(endpoint)?.slot(slot as usize)
    }
}

/// Puts what is known of an endpoint in the guest's words.
pub(crate) fn sample_of(sample: &Sample) -> signals::Sample {
    let Sample { flows_active, connecting, connect, first_byte, errors_ppm, errors_age } = *sample;
    let [connect, first_byte] = [connect, first_byte].map(|latency: LatencySample| {
        (micros(latency.average), micros(latency.peak), age(latency.age))
    });
    signals::Sample {
        flows_active,
        connecting,
        connect_us: connect.0,
        connect_peak_us: connect.1,
        connect_age_ms: connect.2,
        first_byte_us: first_byte.0,
        first_byte_peak_us: first_byte.1,
        first_byte_age_ms: first_byte.2,
        errors_ppm,
        errors_age_ms: age(errors_age),
    }
}

fn micros(duration: Duration) -> u32 {
    u32::try_from(duration.as_micros()).unwrap_or(u32::MAX)
}

/// What was never measured is older than everything.
fn age(age: Option<Duration>) -> u32 {
    age.map_or(u32::MAX, |age| u32::try_from(age.as_millis()).unwrap_or(u32::MAX))
}

/// Puts a flow in the guest's words.
pub(crate) fn flow_of(flow: &Flow<'_>, among: &Candidates) -> types::Flow {
    let (client_high, client_low) = halves(flow.client);
    let (local_high, local_low) = halves(flow.local);
    types::Flow {
        protocol: match flow.protocol {
            Protocol::Tcp => types::Protocol::Tcp,
            Protocol::Udp => types::Protocol::Udp,
        },
        client_high,
        client_low,
        client_port: flow.client.port(),
        local_high,
        local_low,
        local_port: flow.local.port(),
        key: flow.key.unwrap_or(0),
        attempt: flow.attempt,
        avoid: avoid(flow, among),
        now_ms: flow.now.as_millis(),
        random: flow.random,
    }
}

/// Puts the endpoints in the guest's words.
pub(crate) fn list_of(among: &Candidates) -> List {
    let endpoint_of = |endpoint: &Endpoint| types::Endpoint {
        address: endpoint.address.to_string(),
        weight: endpoint.weight,
    };
    let endpoints = among.endpoints.iter().map(endpoint_of).collect();
    List { generation: among.generation.0, endpoints }
}

/// Puts a flow that has ended in the guest's words; `None` if its endpoint has left the list.
pub(crate) fn ended_of(flow: &EndedFlow, among: &Candidates) -> Option<feedback::Ended> {
    Some(feedback::Ended {
        endpoint: index_of(flow.endpoint, among)?,
        outcome: outcome_of(flow.reason),
        duration_ms: u32::try_from(flow.duration.as_millis()).unwrap_or(u32::MAX),
        bytes_to_endpoint: flow.bytes[Side::Upstream.index()],
        bytes_to_client: flow.bytes[Side::Downstream.index()],
        tag: flow.tag,
    })
}

fn outcome_of(reason: CloseReason) -> feedback::Outcome {
    match reason {
        CloseReason::Finished => feedback::Outcome::Finished,
        CloseReason::DownstreamReset => feedback::Outcome::ClientReset,
        CloseReason::UpstreamReset => feedback::Outcome::EndpointReset,
        // Those who waited in vain have left an endpoint that failed to connect.
        CloseReason::ConnectFailed
        | CloseReason::ConnectTimeout
        | CloseReason::EndpointsFull
        | CloseReason::QueueTimeout => feedback::Outcome::ConnectFailed,
        CloseReason::IdleTimeout | CloseReason::HalfClosedTimeout => feedback::Outcome::Timeout,
        CloseReason::Descriptors
        | CloseReason::NoEndpoint
        | CloseReason::DrainTimeout
        | CloseReason::EndpointDown
        | CloseReason::DeniedReset
        | CloseReason::DeniedDrop
        | CloseReason::Evicted
        | CloseReason::Forgotten
        | CloseReason::ProxyTimeout
        | CloseReason::ProxyInvalid
        | CloseReason::Shed => feedback::Outcome::Other,
    }
}

/// The index of the endpoint that failed last, if it is still a candidate.
fn avoid(flow: &Flow<'_>, among: &Candidates) -> u32 {
    flow.tried.last().and_then(|&last| index_of(last, among)).unwrap_or(NO_ENDPOINT)
}

fn index_of(id: EndpointId, among: &Candidates) -> Option<u32> {
    let place = among.endpoints.binary_search_by_key(&id, |endpoint| endpoint.id);
    place.ok().and_then(|place| u32::try_from(place).ok())
}

/// An address as IPv6 in two halves.
fn halves(address: SocketAddr) -> (u64, u64) {
    let bits = match address.ip() {
        IpAddr::V4(v4) => v4.to_ipv6_mapped().to_bits(),
        IpAddr::V6(v6) => v6.to_bits(),
    };
    #[expect(clippy::cast_possible_truncation, reason = "the low half is wanted")]
    let low = bits as u64;
    ((bits >> 64) as u64, low)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_ipv4_address_is_mapped() {
        let address = "10.1.2.3:80".parse().unwrap();
        assert_eq!(halves(address), (0, 0xffff_0a01_0203));
    }

    #[test]
    fn an_ipv6_address_keeps_its_halves() {
        let address = "[2001:db8::1]:80".parse().unwrap();
        assert_eq!(halves(address), (0x2001_0db8_0000_0000, 1));
    }
}
