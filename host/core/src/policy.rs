//! What allocates a new flow.
//!
//! A policy is asked once, when a flow is born, and answers at once. Native policies and Wasm
//! plugins implement the same trait, so the balancer has no state for "waiting for a decision".

mod least_flows;
pub mod maglev;
mod round_robin;
mod table;

use alloc::sync::Arc;
use alloc::vec::Vec;
use core::net::SocketAddr;
use core::time::Duration;

use crate::boundary::ListenerId;
use crate::snapshot::{Candidates, Endpoint, EndpointId, Protocol};
use crate::stats::CloseReason;
use crate::time::Instant;

pub use least_flows::LeastFlows;
pub use round_robin::RoundRobin;
pub use table::{Table, TablePolicy};

/// Everything a policy may know about the flow it decides on.
#[derive(Debug, Clone, Copy)]
pub struct Flow<'a> {
    /// What it speaks.
    pub protocol: Protocol,
    /// The client's address and port.
    pub client: SocketAddr,
    /// The listener's address and port.
    pub local: SocketAddr,
    /// The listener.
    pub listener: ListenerId,
    /// The hash of the application key, where the listener takes one and the flow has it. The same
    /// for related flows in every worker and every balancer; never 0.
    pub key: Option<u64>,
    /// 0 for a new flow, then 1, 2, … for each time connecting failed.
    pub attempt: u32,
    /// The endpoints that have already failed this flow, latest last.
    pub tried: &'a [EndpointId],
    /// The turn's time.
    pub now: Instant,
    /// 64 fresh random bits.
    pub random: u64,
}

impl Flow<'_> {
    /// Whether connecting to this endpoint has already failed for this flow.
    #[must_use]
    pub fn has_tried(&self, endpoint: EndpointId) -> bool {
        self.tried.contains(&endpoint)
    }

    /// Whether nothing speaks against this endpoint: it has a place, and has not failed this flow.
    pub(crate) fn suits(&self, endpoint: &Endpoint) -> bool {
        !self.has_tried(endpoint.id) && !endpoint.is_full()
    }

    /// What a table is indexed by: the same in every worker and every balancer for related flows,
    /// or for all flows of a client.
    #[must_use]
    pub fn hash(&self) -> u64 {
        self.key.unwrap_or_else(|| table::client_hash(self.client.ip()))
    }
}

/// Among whom a native policy chooses for a flow.
#[derive(Debug, Clone, Copy)]
enum Choice {
    /// Those that have a place and have not failed it.
    Suited,
    /// All that have a place, because each of them has failed it.
    Placed,
    /// All, because they are full.
    All,
}

impl Choice {
    fn of(flow: &Flow<'_>, among: &Candidates) -> Self {
        let mut endpoints = among.endpoints.iter();
        if endpoints.clone().any(|endpoint| flow.suits(endpoint)) {
            Self::Suited
        } else if endpoints.any(|endpoint| !endpoint.is_full()) {
            Self::Placed
        } else {
            Self::All
        }
    }

    fn holds(self, flow: &Flow<'_>, endpoint: &Endpoint) -> bool {
        match self {
            Self::Suited => flow.suits(endpoint),
            Self::Placed => !endpoint.is_full(),
            Self::All => true,
        }
    }
}

/// What allocates new flows to endpoints.
pub trait Policy: Send {
    /// Decides on one new flow. `among` is never empty; it is the same `Arc` until the candidates
    /// change, so a policy that keeps state per endpoint compares generations and catches up.
    ///
    /// Infallible and synchronous: whoever implements this answers in bounded time, whatever
    /// happens inside.
    fn decide(&mut self, flow: &Flow<'_>, among: &Arc<Candidates>) -> Decided;

    /// Whether the answer depends on the flow and the candidates alone, so that a datagram may be
    /// forwarded by it without a flow being kept.
    fn is_stateless(&self) -> bool {
        false
    }

    /// Whether [`tick`](Self::tick) is to be called.
    fn wants_ticks(&self) -> bool {
        false
    }

    /// Time has passed. Called between turns, about every [`TICK`], whether there are flows or not.
    fn tick(&mut self, _now: Instant, _among: &Arc<Candidates>) {}

    /// A flow that was allocated to an endpoint of the cluster has ended. Called at each, so it may
    /// take note and no more.
    fn on_flow_ended(&mut self, _ended: &EndedFlow) {}

    /// What it would hand over to its successor, if it keeps such a thing. Called between turns.
    fn state(&mut self) -> Option<Vec<u8>> {
        None
    }
}

/// What becomes of kept decisions when another policy takes the place of the one that made them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OnSwap {
    /// They hold.
    Keep,
    /// The new policy is asked once more; if it forwards the flow, the endpoint stays.
    Revalidate,
    /// They are forgotten.
    Flush,
}

/// How often [`Policy::tick`] is called.
pub const TICK: Duration = Duration::from_millis(100);

/// What a policy may hear of a flow that has ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EndedFlow {
    /// Where it was.
    pub endpoint: EndpointId,
    /// Why it ended.
    pub reason: CloseReason,
    /// How long it lasted.
    pub duration: Duration,
    /// Bytes delivered towards each [`Side`](crate::boundary::Side), by its index.
    pub bytes: [u64; 2],
    /// The mark that its decision gave it.
    pub tag: u32,
}

/// A decision, and who made it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Decided {
    /// What was decided.
    pub decision: Decision,
    /// Who decided.
    pub source: Source,
}

/// A policy's answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Decision {
    /// What happens with the flow.
    pub verdict: Verdict,
    /// For whom the decision is kept.
    pub scope: Scope,
    /// How long a kept decision lives; zero means the listener's idle timeout.
    pub ttl: Duration,
    /// Whether each use starts the ttl anew.
    pub sliding: bool,
    /// How the flow is handled.
    pub method: Method,
}

impl Decision {
    /// Forwards this flow, and for as long as it is used all that have its application key, if it
    /// has one.
    #[must_use]
    pub const fn forward_related(flow: &Flow<'_>, endpoint: EndpointIndex) -> Self {
        let scope = if flow.key.is_some() { Scope::Key } else { Scope::Flow };
        Self { scope, sliding: true, ..Self::forward(endpoint) }
    }

    /// Forwards this flow alone, with the default method.
    #[must_use]
    pub const fn forward(endpoint: EndpointIndex) -> Self {
        Self {
            verdict: Verdict::Forward(endpoint),
            scope: Scope::Flow,
            ttl: Duration::ZERO,
            sliding: false,
            method: Method::DEFAULT,
        }
    }
}

/// What happens with a flow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// It goes to this endpoint.
    Forward(EndpointIndex),
    /// The client is reset.
    Reset,
    /// The client's connection is closed without a word.
    Drop,
}

/// An index into the [`Candidates`] that the policy was asked to choose among.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct EndpointIndex(pub u32);

/// For whom a decision is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scope {
    /// For this flow alone.
    Flow,
    /// For every flow of this client address (a prefix of it, per listener).
    Client,
    /// For every flow with this application key; for this flow alone if it has none.
    Key,
    /// For nobody: not even the client's next datagram is held to it.
    None,
}

/// The method allocated to a flow, kept with it for life.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Method {
    /// Replaces the listener's idle timeout.
    pub idle_timeout: Option<Duration>,
    /// At most this many KiB per second in each direction.
    pub throttle_kib_s: Option<u32>,
    /// Whether the endpoint is told the client's address first (PROXY protocol version 2).
    pub announce: bool,
    /// The policy's own mark, shown in the access log; 0 is none.
    pub tag: u32,
}

impl Method {
    /// Nothing special.
    pub const DEFAULT: Self =
        Self { idle_timeout: None, throttle_kib_s: None, announce: false, tag: 0 };
}

/// Who made a decision.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Source {
    /// A Wasm plugin was called.
    Plugin,
    /// A kept decision was found; nobody was asked.
    Cache,
    /// A lookup table answered.
    Table,
    /// A native policy was asked.
    Native,
    /// The native policy that stands in for a plugin was asked.
    Fallback,
}

impl Source {
    /// All sources, in the order of their [`index`](Self::index).
    pub const ALL: [Self; 5] =
        [Self::Plugin, Self::Cache, Self::Table, Self::Native, Self::Fallback];

    /// Dense, from 0.
    #[must_use]
    pub const fn index(self) -> usize {
        self as usize
    }

    /// The value of the metric's `source` label.
    #[must_use]
    pub const fn label(self) -> &'static str {
        match self {
            Self::Plugin => "plugin",
            Self::Cache => "cache",
            Self::Table => "table",
            Self::Native => "native",
            Self::Fallback => "fallback",
        }
    }
}

#[cfg(test)]
pub(crate) mod testing {
    use super::*;
    use crate::snapshot::Generation;
    use alloc::vec::Vec;
    use core::net::Ipv4Addr;

    pub(crate) fn candidates(generation: u64, weights: &[u32]) -> Arc<Candidates> {
        let endpoint = |(n, &weight): (u32, &u32)| Endpoint {
            id: EndpointId(n),
            address: (Ipv4Addr::new(10, 0, 0, n as u8), 80).into(),
            weight,
            flows_max: u32::MAX,
            load: Arc::default(),
        };
        Arc::new(Candidates {
            generation: Generation(generation),
            endpoints: (0..).zip(weights).map(endpoint).collect(),
            table: None,
        })
    }

    pub(crate) fn flow(attempt: u32, tried: &[EndpointId]) -> Flow<'_> {
        Flow {
            protocol: Protocol::Tcp,
            client: (Ipv4Addr::new(192, 0, 2, 1), 1234).into(),
            local: (Ipv4Addr::new(192, 0, 2, 2), 80).into(),
            listener: ListenerId(0),
            key: None,
            attempt,
            tried,
            now: Instant::ZERO,
            random: 1,
        }
    }

    pub(crate) fn choices(
        policy: &mut dyn Policy,
        among: &Arc<Candidates>,
        count: usize,
    ) -> Vec<u32> {
        let choice = |_| match policy.decide(&flow(0, &[]), among).decision.verdict {
            Verdict::Forward(EndpointIndex(index)) => index,
            other => panic!("{other:?}"),
        };
        (0..count).map(choice).collect()
    }
}
