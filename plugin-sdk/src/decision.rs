//! A policy's answer.

use std::time::Duration;

/// What happens with a flow, for whom that is kept, and how the flow is handled.
///
/// Starts as one of [`forward`](Self::forward), [`reset`](Self::reset), [`drop`](Self::drop) and
/// [`defer`](Self::defer); the other methods add to it:
///
/// ```
/// use pointsman_sdk::Decision;
/// use std::time::Duration;
///
/// let decision = Decision::forward(2)
///     .for_client(Duration::from_secs(600))
///     .sliding()
///     .throttle(512)
///     .announce();
/// assert_eq!(decision.ttl_ms, 600_000);
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use]
pub struct Decision {
    /// What happens with the flow.
    pub verdict: Verdict,
    /// For whom the decision is kept.
    pub scope: Scope,
    /// How long a kept decision lives; 0 is the listener's idle timeout.
    pub ttl_ms: u32,
    /// Whether each use of a kept decision starts its ttl anew.
    pub sliding: bool,
    /// At most this many KiB per second in each direction; 0 is no limit.
    pub throttle_kib_s: u32,
    /// Whether the endpoint is told the client's address (PROXY protocol version 2).
    pub announce: bool,
    /// Replaces the listener's idle timeout; 0 leaves it.
    pub idle_timeout_ms: u32,
    /// The policy's own mark, shown in the access log; 0 is none.
    pub tag: u32,
}

impl Decision {
    /// Sends the flow to the endpoint at this index of the list.
    pub const fn forward(endpoint: usize) -> Self {
        Self::of(Verdict::Forward(endpoint))
    }

    /// Resets the client.
    pub const fn reset() -> Self {
        Self::of(Verdict::Reset)
    }

    /// Closes without a word.
    pub const fn drop() -> Self {
        Self::of(Verdict::Drop)
    }

    /// Lets the cluster's native fallback policy decide.
    pub const fn defer() -> Self {
        Self::of(Verdict::Defer)
    }

    /// Keeps the decision for every flow of this client address (a prefix of it, where the listener
    /// says so). A zero ttl is the listener's idle timeout.
    pub fn for_client(self, ttl: Duration) -> Self {
        Self { scope: Scope::Client, ttl_ms: milliseconds(ttl), ..self }
    }

    /// Keeps the decision for every flow with this application key. A zero ttl is the listener's
    /// idle timeout.
    pub fn for_key(self, ttl: Duration) -> Self {
        Self { scope: Scope::Key, ttl_ms: milliseconds(ttl), ..self }
    }

    /// Keeps nothing: the decision holds for this connection, or for this datagram and its replies,
    /// and is forgotten with it.
    pub const fn for_nobody(self) -> Self {
        Self { scope: Scope::None, ..self }
    }

    /// Starts the ttl anew whenever the kept decision is used.
    pub const fn sliding(self) -> Self {
        Self { sliding: true, ..self }
    }

    /// Limits each direction to this many KiB per second; 0 is no limit.
    pub const fn throttle(self, kib_s: u32) -> Self {
        Self { throttle_kib_s: kib_s, ..self }
    }

    /// Tells the endpoint the client's address (PROXY protocol version 2).
    pub const fn announce(self) -> Self {
        Self { announce: true, ..self }
    }

    /// Replaces the listener's idle timeout for this flow; zero leaves it.
    pub fn idle_timeout(self, timeout: Duration) -> Self {
        Self { idle_timeout_ms: milliseconds(timeout), ..self }
    }

    /// Marks the flow in the access log; 0 is no mark.
    pub const fn tag(self, tag: u32) -> Self {
        Self { tag, ..self }
    }

    /// The endpoint the flow goes to, if it goes to one.
    #[must_use]
    pub const fn endpoint(&self) -> Option<usize> {
        match self.verdict {
            Verdict::Forward(endpoint) => Some(endpoint),
            _ => None,
        }
    }

    const fn of(verdict: Verdict) -> Self {
        Self {
            verdict,
            scope: Scope::Flow,
            ttl_ms: 0,
            sliding: false,
            throttle_kib_s: 0,
            announce: false,
            idle_timeout_ms: 0,
            tag: 0,
        }
    }
}

/// What happens with a flow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// It goes to the endpoint at this index of the list.
    Forward(usize),
    /// The client is reset.
    Reset,
    /// It is closed without a word.
    Drop,
    /// The cluster's native fallback policy decides.
    Defer,
}

/// For whom a decision is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scope {
    /// For this flow alone.
    Flow,
    /// For every flow of this client address (a prefix of it, per listener).
    Client,
    /// For every flow with this application key.
    Key,
    /// For nobody: nothing is remembered.
    None,
}

/// Whole milliseconds, rounded up, so that a short time never becomes the 0 that means "unset";
/// at most `u32::MAX`, 49 days.
fn milliseconds(duration: Duration) -> u32 {
    let parts = u64::from(duration.subsec_nanos().div_ceil(1_000_000));
    let all = duration.as_secs().saturating_mul(1_000).saturating_add(parts);
    u32::try_from(all).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_plain_forward_is_kept_for_its_flow_and_changes_nothing_else() {
        let decision = Decision::forward(3);
        assert_eq!(decision.endpoint(), Some(3));
        assert_eq!(decision.scope, Scope::Flow);
        assert_eq!((decision.ttl_ms, decision.idle_timeout_ms, decision.tag), (0, 0, 0));
        assert!(!decision.sliding && !decision.announce && decision.throttle_kib_s == 0);
    }

    #[test]
    fn several_services_apply_to_one_flow() {
        let decision = Decision::forward(0)
            .for_client(Duration::from_secs(2))
            .sliding()
            .throttle(64)
            .announce()
            .idle_timeout(Duration::from_millis(1_500))
            .tag(7);
        assert_eq!(decision.scope, Scope::Client);
        assert_eq!((decision.ttl_ms, decision.idle_timeout_ms), (2_000, 1_500));
        assert_eq!((decision.throttle_kib_s, decision.tag), (64, 7));
        assert!(decision.sliding && decision.announce);
    }

    #[test]
    fn a_time_below_a_millisecond_is_not_taken_for_unset() {
        assert_eq!(milliseconds(Duration::from_nanos(1)), 1);
        assert_eq!(milliseconds(Duration::ZERO), 0);
        assert_eq!(milliseconds(Duration::MAX), u32::MAX);
    }

    #[test]
    fn only_a_forward_has_an_endpoint() {
        for other in [Decision::reset(), Decision::drop(), Decision::defer()] {
            assert_eq!(other.endpoint(), None);
        }
    }
}
