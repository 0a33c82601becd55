//! Decides: the state machine at the centre of Pointsman.
//!
//! Completions go in, ops come out ([`boundary`]). There are no sockets in here, no clock, no
//! randomness but what a seed gives, no allocation once started and no unsafe code, so every
//! schedule that the kernel can produce can be replayed in a simulator.
#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;
#[cfg(test)]
extern crate std;

mod access;
mod affinity;
mod allocation;
mod balancer;
mod board;
pub mod boundary;
mod chain;
pub mod datagram;
pub mod ejection;
pub mod eligibility;
pub mod growth;
pub mod handover;
pub mod health;
pub mod kept_table;
mod limits;
pub mod listing;
mod load;
mod pace;
pub mod policy;
pub mod preread;
pub mod proxy;
mod queue;
mod recent;
mod relay;
mod session;
mod slab;
mod snapshot;
mod stats;
mod tags;
#[cfg(test)]
mod testing;
mod time;
mod timers;
mod trial;

pub use access::{AccessList, Network};
pub use balancer::{Balancer, BalancerConfig, NewPolicy};
pub use board::Board;
pub use limits::{AllFlows, SharedRate, SourceCounts, SourceRates};
pub use load::{LatencySample, Load, Outcomes, SLOTS, Sample};
pub use queue::{Line, Queue};
pub use recent::FlowFacts;
pub use snapshot::{
    Candidates, Cluster, ClusterId, DatagramSettings, Endpoint, EndpointId, EndpointState,
    Generation, Listener, OnEndpointDown, Openness, PrefixLengths, Protocol, SharedCount, Snapshot,
    Timeouts,
};
pub use stats::{
    CloseReason, ClusterStats, DropReason, FlowRecord, KeylessReason, ListenerStats, ShedReason,
    Stats, Untaken,
};
pub use time::Instant;
pub use trial::{CANARY_SLOTS, Tally, TallyCounts, Trial};
