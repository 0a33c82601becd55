//! The interface's words in those that authors see, and back.

use super::chooser::pointsman::policy::{counters, host, signals, slots, types};
use super::feedback::exports::pointsman::policy::feedback;
use crate::flow::Address;
use crate::{Decision, Flow, Host, Latency, Level, Outcome, Protocol, Scope, Verdict};

pub(super) use self::feedback::Ended;
pub(super) use self::signals::Sample;

/// The host, as the component imports it.
pub(super) struct Imports;

/// An index beyond 32 bits is as far out of range as the last one there is.
fn index(index: usize) -> u32 {
    u32::try_from(index).unwrap_or(u32::MAX)
}

impl Host for Imports {
    fn load(&self, endpoint: usize) -> u32 {
        host::load(index(endpoint))
    }

    fn sample(&self, endpoint: usize) -> crate::Sample {
        (&signals::read(index(endpoint))).into()
    }

    fn slot(&self, endpoint: usize, slot: usize) -> u64 {
        slots::get(index(endpoint), index(slot))
    }

    fn set_slot(&self, endpoint: usize, slot: usize, value: u64) {
        slots::set(index(endpoint), index(slot), value);
    }

    fn add_slot(&self, endpoint: usize, slot: usize, value: u64) -> u64 {
        slots::add(index(endpoint), index(slot), value)
    }

    fn count(&self, counter: usize, by: u64) {
        counters::count(index(counter), by);
    }

    fn log(&self, level: Level, message: &str) {
        let level = match level {
            Level::Error => host::Level::Error,
            Level::Warn => host::Level::Warn,
            Level::Info => host::Level::Info,
            Level::Debug => host::Level::Debug,
        };
        host::log(level, message);
    }
}

impl From<&Sample> for crate::Sample {
    fn from(sample: &Sample) -> Self {
        Self {
            flows_active: sample.flows_active,
            connecting: sample.connecting,
            connect: Latency {
                average_us: sample.connect_us,
                peak_us: sample.connect_peak_us,
                age_ms: age(sample.connect_age_ms),
            },
            first_byte: Latency {
                average_us: sample.first_byte_us,
                peak_us: sample.first_byte_peak_us,
                age_ms: age(sample.first_byte_age_ms),
            },
            errors_ppm: sample.errors_ppm,
            errors_age_ms: age(sample.errors_age_ms),
        }
    }
}

/// What was never measured is older than everything.
fn age(age_ms: u32) -> Option<u32> {
    (age_ms != u32::MAX).then_some(age_ms)
}

impl From<&Ended> for crate::Ended {
    fn from(ended: &Ended) -> Self {
        Self {
            endpoint: ended.endpoint as usize,
            outcome: match ended.outcome {
                feedback::Outcome::Finished => Outcome::Finished,
                feedback::Outcome::ClientReset => Outcome::ClientReset,
                feedback::Outcome::EndpointReset => Outcome::EndpointReset,
                feedback::Outcome::ConnectFailed => Outcome::ConnectFailed,
                feedback::Outcome::Timeout => Outcome::Timeout,
                feedback::Outcome::Other => Outcome::Other,
            },
            duration_ms: ended.duration_ms,
            bytes_to_endpoint: ended.bytes_to_endpoint,
            bytes_to_client: ended.bytes_to_client,
            tag: ended.tag,
        }
    }
}

impl From<&types::Flow> for Flow {
    fn from(flow: &types::Flow) -> Self {
        Self {
            protocol: match flow.protocol {
                types::Protocol::Tcp => Protocol::Tcp,
                types::Protocol::Udp => Protocol::Udp,
            },
            client: Address {
                high: flow.client_high,
                low: flow.client_low,
                port: flow.client_port,
            },
            local: Address { high: flow.local_high, low: flow.local_low, port: flow.local_port },
            key: flow.key,
            attempt: flow.attempt,
            avoid: flow.avoid,
            now_ms: flow.now_ms,
            random: flow.random,
        }
    }
}

impl From<Decision> for types::Decision {
    fn from(decision: Decision) -> Self {
        let (verdict, endpoint) = match decision.verdict {
            Verdict::Forward(endpoint) => (types::Verdict::Forward, index(endpoint)),
            Verdict::Reset => (types::Verdict::Reset, 0),
            Verdict::Drop => (types::Verdict::Drop, 0),
            Verdict::Defer => (types::Verdict::Defer, 0),
        };
        Self {
            verdict,
            endpoint,
            scope: match decision.scope {
                Scope::Flow => types::Scope::Flow,
                Scope::Client => types::Scope::Client,
                Scope::Key => types::Scope::Key,
                Scope::None => types::Scope::None,
            },
            ttl_ms: decision.ttl_ms,
            sliding: decision.sliding,
            throttle_kib_s: decision.throttle_kib_s,
            announce: decision.announce,
            idle_timeout_ms: decision.idle_timeout_ms,
            tag: decision.tag,
        }
    }
}
