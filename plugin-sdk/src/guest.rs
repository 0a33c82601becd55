//! The glue between the host's calls and an [`Instance`]. Exists in the guest only.
//!
//! The bindings are generated from `wit/policy.wit`; this file translates their types to the ones
//! that authors see, so that a policy and its tests know nothing of the component model.

use std::cell::Cell;
use std::net::{Ipv6Addr, SocketAddr};

use self::bindings::pointsman::policy::{host, types};
use crate::{Decision, Endpoint, Endpoints, Flow, Host, Instance, Level, Policy, Protocol};
use crate::{Scope, Verdict};

pub use wit_bindgen;

pub use self::bindings::export_bindings;

#[allow(missing_docs, unreachable_pub, unused_qualifications, clippy::all, clippy::pedantic)]
pub mod bindings {
    wit_bindgen::generate!({
        path: "wit",
        world: "chooser",
        pub_export_macro: true,
        export_macro_name: "export_bindings",
        default_bindings_module: "::pointsman_sdk::guest::bindings",
        runtime_path: "::pointsman_sdk::guest::wit_bindgen::rt",
    });
}

/// What [`export!`](crate::export) implements: where the crate's one instance is.
pub trait Exported {
    /// The exported policy.
    type Policy: Policy;

    /// Lends the slot that holds the instance.
    fn with<T>(f: impl FnOnce(&Slot<Self::Policy>) -> T) -> T;
}

/// Holds the instance between two calls of the host.
///
/// A call takes it out and puts it back, which needs neither a borrow flag nor a panic for a
/// re-entrance that the component model rules out. The instance lives as long as the module's
/// memory, so nothing ever drops it, and a thread-local without a destructor is a plain static.
pub struct Slot<P: 'static>(Cell<Option<&'static mut Instance<P>>>);

impl<P: Policy> Slot<P> {
    /// A slot before `configure`.
    #[must_use]
    pub const fn empty() -> Self {
        Self(Cell::new(None))
    }

    fn call<T>(&self, f: impl FnOnce(&mut Instance<P>) -> T) -> Option<T> {
        let instance = self.0.take()?;
        let answer = f(instance);
        self.0.set(Some(instance));
        Some(answer)
    }
}

impl<E: Exported> bindings::Guest for E {
    fn configure(config: String) -> Result<(), String> {
        report_panics();
        let instance = Box::leak(Box::new(Instance::configure(&config)?));
        E::with(|slot| slot.0.set(Some(instance)));
        Ok(())
    }

    fn endpoints_changed(generation: u64, endpoints: Vec<types::Endpoint>) {
        let list = endpoints.into_iter().map(|e| Endpoint::new(e.address, e.weight)).collect();
        E::with(|slot| slot.call(|it| it.endpoints_changed(Endpoints::new(generation, list))));
    }

    fn decide(flow: types::Flow) -> types::Decision {
        let flow = Flow::from(&flow);
        E::with(|slot| slot.call(|it| it.decide(&flow, &Imports)))
            .unwrap_or_else(Decision::defer)
            .into()
    }
}

/// Sends a panic's message to the balancer's log before the trap; without it an author sees
/// nothing but `unreachable`.
fn report_panics() {
    std::panic::set_hook(Box::new(|panic| Imports.log(Level::Error, &panic.to_string())));
}

/// The host, as the component imports it.
struct Imports;

impl Host for Imports {
    fn load(&self, endpoint: usize) -> u32 {
        u32::try_from(endpoint).map_or(0, host::load)
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

impl From<&types::Flow> for Flow {
    fn from(flow: &types::Flow) -> Self {
        Self {
            protocol: match flow.protocol {
                types::Protocol::Tcp => Protocol::Tcp,
                types::Protocol::Udp => Protocol::Udp,
            },
            client: address(flow.client_high, flow.client_low, flow.client_port),
            local: address(flow.local_high, flow.local_low, flow.local_port),
            key: flow.key,
            attempt: flow.attempt,
            avoid: flow.avoid,
            now_ms: flow.now_ms,
            random: flow.random,
        }
    }
}

fn address(high: u64, low: u64, port: u16) -> SocketAddr {
    let bits = u128::from(high) << 64 | u128::from(low);
    SocketAddr::new(Ipv6Addr::from_bits(bits).to_canonical(), port)
}

impl From<Decision> for types::Decision {
    fn from(decision: Decision) -> Self {
        let (verdict, endpoint) = match decision.verdict {
            // An index beyond u32 is as far out of range as the last one there is.
            Verdict::Forward(index) => {
                (types::Verdict::Forward, u32::try_from(index).unwrap_or(u32::MAX))
            }
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
