//! What the author of a Pointsman policy depends on.
//!
//! A policy is asked once, when a flow is born, which endpoint the flow goes to and how it is
//! handled. The balancer keeps that [`Decision`] with the flow and serves every later byte without
//! asking again, so a policy pays for births and never for traffic.
//!
//! # A policy of one's own
//!
//! Implement [`Policy`], name the type in [`export!`], build to WebAssembly:
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
//! `cargo xtask plugins --manifest DIR --out FILE` builds it.
//!
//! # What the host promises, and what it checks
//!
//! - [`Policy::new`] runs once; [`Policy::endpoints_changed`] runs before the first decision and
//!   whenever the list has changed; the list is never empty.
//! - One instance serves one worker thread. Instances share nothing: what one counts, the others do
//!   not see. The one number that covers all workers is [`Host::load`].
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
mod rng;

pub use config::NoConfig;
pub use decision::{Decision, Scope, Verdict};
pub use endpoints::{Endpoint, Endpoints};
pub use flow::{Flow, Protocol};
pub use host::{Host, Level, MockHost};
pub use instance::Instance;
pub use rng::Rng;

use serde::de::DeserializeOwned;

/// What allocates new flows to endpoints.
pub trait Policy: Sized + 'static {
    /// What the policy's `config` in the balancer's configuration is read as; [`NoConfig`] if there
    /// is nothing to set.
    ///
    /// The default stands in where the configuration says nothing. A key that is not a field of
    /// this type is refused by name, with the fields that there are.
    type Config: DeserializeOwned + Default;

    /// Makes the policy from its config.
    ///
    /// # Errors
    ///
    /// Says in one line what is wrong with the config; the operator reads it.
    fn new(config: Self::Config) -> Result<Self, String>;

    /// Learns of a new list of endpoints. The list is handed to [`decide`](Self::decide) as well,
    /// so only a policy that keeps something per endpoint needs this.
    ///
    /// An endpoint may sit at another index than before; its address stays.
    fn endpoints_changed(&mut self, _endpoints: &Endpoints) {}

    /// Decides on one new flow, or again on one whose endpoint could not be reached (see
    /// [`Flow::avoid`]).
    fn decide(&mut self, flow: &Flow, endpoints: &Endpoints, host: &dyn Host) -> Decision;
}

/// Makes a [`Policy`] the one that this crate exports to the host.
///
/// Once per crate, at the top level of `lib.rs`.
#[macro_export]
macro_rules! export {
    ($policy:ty) => {
        #[cfg(target_arch = "wasm32")]
        const _: () = {
            ::std::thread_local! {
                static SLOT: $crate::guest::Slot<$policy> = const { $crate::guest::Slot::empty() };
            }
            struct Exported;
            impl $crate::guest::Exported for Exported {
                type Policy = $policy;
                fn with<T>(f: impl FnOnce(&$crate::guest::Slot<$policy>) -> T) -> T {
                    SLOT.with(f)
                }
            }
            $crate::guest::export_bindings!(Exported);
        };

        #[cfg(not(target_arch = "wasm32"))]
        const _: () = {
            const fn is_a_policy<P: $crate::Policy>() {}
            is_a_policy::<$policy>();
        };
    };
}
