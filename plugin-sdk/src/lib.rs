//! What the author of a Pointsman policy depends on.
//!
//! A policy is asked once, when a flow is born, which endpoint the flow goes to and how it is
//! handled. The balancer keeps that [`Decision`] with the flow and serves every later byte without
//! asking again, so a policy pays for births and never for traffic.
//!
//! # A policy of one's own
//!
//! Implement [`Policy`], name the type in [`export!`], build to WebAssembly. [`guide`] goes through
//! it step by step; the short form is:
//!
//! ```
//! use pointsman_sdk::{Decision, Endpoints, Flow, Host, Policy, export};
//! use serde::Deserialize;
//!
//! /// Fills the first endpoint before it touches the second.
//! struct FillFirst {
//!     flows_max: u32,
//! }
//!
//! #[derive(Deserialize)]
//! #[serde(default)]
//! struct Config {
//!     flows_max: u32,
//! }
//!
//! impl Default for Config {
//!     fn default() -> Self {
//!         Self { flows_max: 100 }
//!     }
//! }
//!
//! impl Policy for FillFirst {
//!     type Config = Config;
//!
//!     fn new(config: Config) -> Result<Self, String> {
//!         if config.flows_max == 0 {
//!             return Err("`flows_max` must be at least 1".into());
//!         }
//!         Ok(Self { flows_max: config.flows_max })
//!     }
//!
//!     fn decide(&mut self, flow: &Flow, endpoints: &Endpoints, host: &dyn Host) -> Decision {
//!         (0..endpoints.len())
//!             .filter(|&index| flow.avoid() != Some(index))
//!             .find(|&index| host.load(index) < self.flows_max)
//!             .map_or(Decision::reset(), Decision::forward)
//!     }
//! }
//!
//! export!(FillFirst);
//!
//! // What follows belongs in a `#[test]`: plain `cargo test` runs it, without a host.
//! use pointsman_sdk::{Instance, MockHost};
//!
//! let mut policy = Instance::<FillFirst>::configure(r#"{ "flows_max": 2 }"#)?;
//! policy.endpoints_changed(Endpoints::from([("10.0.0.1:80", 1), ("10.0.0.2:80", 1)]));
//!
//! let host = MockHost::new();
//! let flow = Flow::new("192.0.2.1:5000".parse().unwrap());
//! assert_eq!(policy.decide(&flow, &host), Decision::forward(0));
//! host.set_load(0, 2);
//! assert_eq!(policy.decide(&flow, &host), Decision::forward(1));
//! # Ok::<(), String>(())
//! ```
//!
//! The manifest asks for both kinds of library, the plugin and the one that tests link:
//!
//! ```toml
//! [lib]
//! crate-type = ["cdylib", "rlib"]
//!
//! [dependencies]
//! pointsman-sdk = { path = "…/pointsman/plugin-sdk" }
//! serde = { version = "1", features = ["derive"] }
//! ```
//!
//! `pointsman policy new NAME` makes such a crate, `pointsman policy build` builds it, and
//! `pointsman policy test NAME.wasm` holds the result against everything that the balancer asks for.
//!
//! # Three shapes
//!
//! | a type that implements | is asked | exported by |
//! |---|---|---|
//! | [`Policy`] | once per new flow | [`export!`] |
//! | [`TablePolicy`] | once per list of endpoints, for a lookup table | [`export_table!`] |
//! | [`WeightsPolicy`] | several times a second, for weights | [`export_weights!`] |
//!
//! A [`Policy`] may also implement [`Feedback`] and hear what became of its flows; a policy of any
//! shape may implement [`KeepsState`] and hand over what it knows to the version that replaces it.
//! [`parts`] holds what policies are made of, and [`sim`] tries them on traffic that never was.
//!
//! # What the host promises, and what it checks
//!
//! - [`Policy::new`] runs once; [`Policy::endpoints_changed`] runs before the first decision and
//!   whenever the list has changed; the list is never empty.
//! - One instance serves one worker thread. Instances share nothing: what one counts, the others do
//!   not see. What covers all workers is the [`Host`]: its measurements, and the numbers that it
//!   keeps for each endpoint.
//! - Time and randomness come with the [`Flow`], so a decision can be replayed.
//! - A policy that panics, loops beyond its deadline or names an endpoint that does not exist is
//!   answered for by the cluster's native fallback, counted, and started anew.
//!
//! # Why there is no unsafe here
//!
//! The glue of the component model is generated, and only for `wasm32`. On every other target
//! [`export!`] checks the type and compiles to nothing.
#![cfg_attr(not(target_arch = "wasm32"), forbid(unsafe_code))]

// The generated glue names this crate by its path, from inside it and from a policy's crate alike.
#[cfg(target_arch = "wasm32")]
extern crate self as pointsman_sdk;

mod config;
mod decision;
mod endpoints;
mod flow;
#[cfg(target_arch = "wasm32")]
#[doc(hidden)]
pub mod guest;
mod host;
mod instance;
mod json;
pub mod parts;
mod policy;
mod rng;
mod schema;
mod signals;
#[cfg(not(target_arch = "wasm32"))]
pub mod sim;

pub use config::NoConfig;
pub use decision::{Decision, Scope, Verdict};
pub use endpoints::{Endpoint, Endpoints};
pub use flow::{Flow, Protocol};
pub use host::{COUNTERS, Host, Level, MockHost, SLOTS};
pub use instance::{Instance, TableInstance, WeightsInstance};
pub use policy::{Feedback, KeepsState, Policy, TablePolicy, WeightsPolicy};
pub use rng::Rng;
pub use signals::{Ended, Latency, Outcome, Report, Sample};

#[doc = include_str!("../GUIDE.md")]
pub mod guide {}

/// Makes a [`Policy`] the one that this crate exports to the host: `export!(P)`, and with what it
/// implements besides, `export!(P: feedback, state)`.
///
/// Once per crate, at the top level of `lib.rs`.
#[macro_export]
macro_rules! export {
    ($policy:ty $(: $($also:ident),+)?) => {
        $crate::export!(@ chooser, Instance, $policy $($(, $also)+)?);
    };

    (@ $world:ident, $instance:ident, $policy:ty $(, $also:ident)*) => {
        #[cfg(target_arch = "wasm32")]
        const _: () = {
            type Instance = $crate::$instance<$policy>;
            ::std::thread_local! {
                static SLOT: $crate::guest::Slot<Instance> = const { $crate::guest::Slot::empty() };
            }
            struct Exported;
            impl $crate::guest::Exported for Exported {
                type Instance = Instance;
                fn with<T>(f: impl FnOnce(&$crate::guest::Slot<Instance>) -> T) -> T {
                    SLOT.with(f)
                }
            }
            $crate::guest::$world::export_bindings!(Exported);
            $crate::guest::config_schema::export_bindings!(Exported);
            $($crate::guest::$also::export_bindings!(Exported);)*
        };

        #[cfg(not(target_arch = "wasm32"))]
        const _: () = {
            $crate::checks::$world::<$policy>();
            $($crate::checks::$also::<$policy>();)*
        };
    };
}

/// Makes a [`TablePolicy`] the one that this crate exports to the host: `export_table!(P)`, and with
/// what it implements besides, `export_table!(P: state)`.
///
/// Once per crate, at the top level of `lib.rs`.
#[macro_export]
macro_rules! export_table {
    ($policy:ty $(: $also:ident)?) => {
        $crate::export!(@ table, TableInstance, $policy $(, $also)?);
    };
}

/// Makes a [`WeightsPolicy`] the one that this crate exports to the host: `export_weights!(P)`, and
/// with what it implements besides, `export_weights!(P: state)`.
///
/// Once per crate, at the top level of `lib.rs`.
#[macro_export]
macro_rules! export_weights {
    ($policy:ty $(: $also:ident)?) => {
        $crate::export!(@ weights, WeightsInstance, $policy $(, $also)?);
    };
}

/// What the export macros ask of a type where there is no host to ask it: each takes what can be
/// exported under its name.
#[cfg(not(target_arch = "wasm32"))]
#[doc(hidden)]
pub mod checks {
    pub const fn chooser<P: crate::Policy>() {}
    pub const fn table<P: crate::TablePolicy>() {}
    pub const fn weights<P: crate::WeightsPolicy>() {}
    pub const fn feedback<P: crate::Feedback>() {}
    pub const fn state<P: crate::KeepsState>() {}
}
