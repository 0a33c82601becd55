//! Asks a guest: runs allocation policies that come as WebAssembly plugins.
//!
//! A plugin is somebody else's code on the data path, and this crate exists so that the worst it
//! can do is to waste its own turn. [`GuestPolicy`] implements the core's
//! [`Policy`](pointsman_core::policy::Policy), so the balancer sees no difference between a plugin
//! and a native policy; whatever goes wrong inside (a trap, an endless loop, memory without end, a
//! nonsensical answer) is answered by the cluster's native fallback and counted by [`FaultKind`].
//!
//! ```text
//!             bytes ──▶ Engine::load ──▶ Module        control thread, once per plugin
//!                                          │
//!                                          ▼
//!                  settings ──▶ GuestPolicy::new       control thread, once per worker
//!                                          │
//!                                          ▼
//!    worker:   flow ──▶ GuestPolicy::decide ──▶ decision
//!                       │ ▲             │
//!           broken or   │ │ fresh       └──▶ the fallback, where the guest has no answer
//!          no longer    ▼ │ instance
//!              wanted  repair thread                   one per engine
//! ```
//!
//! Nothing but the call itself happens on the data path: instances are made, configured and dropped
//! elsewhere, and the lines that guests log are written by a thread of their own.
#![forbid(unsafe_code)]

mod bindings;
mod component;
mod control;
mod engine;
mod error;
mod feedback;
mod flat;
mod governor;
mod guest;
mod instance;
mod limits;
mod log;
mod module;
mod policy;
mod repair;
mod stats;
mod world;

pub use control::{TableGuest, WeightsGuest};
pub use engine::Engine;
pub use error::{EngineError, FaultKind, GuestFault, InstanceError, LoadError, Step};
pub use governor::Governor;
pub use limits::{EngineLimits, PolicySettings};
pub use log::{LogLevel, LogLine, LogSink, Speaker};
pub use module::Module;
pub use policy::{GuestPolicy, Place};
pub use stats::{DECISION_BUCKETS, OWN_COUNTERS, PolicyCounts, PolicyStats};
pub use world::Shape;
