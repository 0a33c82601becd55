//! What the balancer has measured, and what has become of flows.

/// What is known of an endpoint, over all workers.
///
/// Averages forget with a time constant of ten seconds. Peaks jump up with a slower sample and decay
/// to the average.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Sample {
    /// Flows that the endpoint has now, connecting ones included.
    pub flows_active: u32,
    /// Of those, the ones whose connection has not come about yet.
    pub connecting: u32,
    /// Time until a connection came about.
    pub connect: Latency,
    /// Time from the client's first bytes to the endpoint's.
    pub first_byte: Latency,
    /// The share of flows that could not connect, or that the endpoint reset before its first byte,
    /// in parts per million.
    pub errors_ppm: u32,
    /// How long ago that share was last fed; `None` if it never was.
    pub errors_age_ms: Option<u32>,
}

/// How long something has taken lately.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Latency {
    /// The moving average.
    pub average_us: u32,
    /// The same, but a slower sample counts in full.
    pub peak_us: u32,
    /// How long ago the last sample was; `None` if there was none.
    pub age_ms: Option<u32>,
}

/// What a tick tells a policy with [`Feedback`](crate::Feedback).
#[derive(Debug, Clone, Copy)]
pub struct Report<'a> {
    /// Milliseconds on the clock of [`Flow::now_ms`](crate::Flow::now_ms).
    pub now_ms: u64,
    /// What is known of each endpoint, by index.
    pub samples: &'a [Sample],
    /// Flows of this worker that have ended, oldest first. Those whose endpoint has left the list
    /// are not among them.
    pub ended: &'a [Ended],
    /// How many more have ended, for which there was no room.
    pub missed: u32,
}

/// A flow that has ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ended {
    /// The index of its endpoint.
    pub endpoint: usize,
    /// How it ended.
    pub outcome: Outcome,
    /// How long it lasted.
    pub duration_ms: u32,
    /// What the client sent.
    pub bytes_to_endpoint: u64,
    /// What the endpoint sent.
    pub bytes_to_client: u64,
    /// The mark that the decision gave it.
    pub tag: u32,
}

/// How a flow ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// Both sides finished in order.
    Finished,
    /// The client broke it off.
    ClientReset,
    /// The endpoint broke it off.
    EndpointReset,
    /// The endpoint could not be reached.
    ConnectFailed,
    /// It was idle for too long.
    Timeout,
    /// The balancer ended it for a reason of its own.
    Other,
}
