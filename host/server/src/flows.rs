//! What the workers keep, for an operator to look at: live flows, and kept decisions.
//!
//! A balancer may keep millions of them, so nothing ever looks at all at once. The control thread
//! asks one worker after another for a bounded number of places ([`walk`]); the worker compares
//! them with the [`Filter`] and answers with what matches; and a page ends when it is full or has
//! taken long enough, with a token that says where the next one begins.

use std::fmt;
use std::str::FromStr;

use pointsman_core::listing::{Cursor, EntryId};
use serde::{Deserialize, Serialize};

mod describe;
mod filter;
mod query;
mod survey;
mod table;

pub use describe::Describer;
pub use filter::{Filter, Search};
pub use query::Query;
pub use survey::{Answer, Found, Question, walk};

/// Some of what the workers keep.
#[derive(Debug, Serialize, Deserialize)]
pub struct Page {
    /// In no particular order.
    pub flows: Vec<Shown>,
    /// Where the next page begins, unless this is the last.
    pub next: Option<String>,
}

/// A flow or a kept decision.
#[derive(Debug, Serialize, Deserialize)]
pub struct Shown {
    /// What names it: a [`FlowId`].
    pub id: String,
    /// Who serves it.
    pub cluster: String,
    /// The address of its endpoint, if it has one that is still configured.
    pub endpoint: Option<String>,
    /// The policy of its cluster.
    pub policy: String,
    /// The generation of the policy that decided.
    pub policy_generation: u64,
    /// The policy's mark; 0 is none.
    pub tag: u32,
    /// What sort of entry it is.
    #[serde(flatten)]
    pub sort: Sort,
}

/// The two sorts of entry.
#[derive(Debug, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "lowercase")]
pub enum Sort {
    /// A live flow.
    Flow(ShownFlow),
    /// A decision kept for flows to come.
    Kept(ShownKept),
}

/// A live flow.
#[derive(Debug, Serialize, Deserialize)]
pub struct ShownFlow {
    /// Where it came in.
    pub listener: String,
    /// `tcp` or `udp`.
    pub protocol: String,
    /// The client.
    pub client: String,
    /// The address the client used.
    pub local: String,
    /// Where it is in its life.
    pub state: String,
    /// Who decided, if anybody was asked yet.
    pub source: Option<String>,
    /// Since it began.
    pub age_ms: u64,
    /// Since something of it last moved.
    pub idle_ms: u64,
    /// Bytes towards its endpoint.
    pub bytes_upstream: u64,
    /// Bytes towards its client.
    pub bytes_downstream: u64,
    /// Datagrams towards its endpoint.
    pub datagrams_upstream: u64,
    /// Datagrams towards its client.
    pub datagrams_downstream: u64,
}

/// A decision kept for flows to come.
#[derive(Debug, Serialize, Deserialize)]
pub struct ShownKept {
    /// `client` or `key`.
    pub scope: String,
    /// The client, masked to the listener's prefix.
    pub client: Option<String>,
    /// The key's hash, in hex.
    pub key: Option<String>,
    /// Whether it denies instead of naming an endpoint.
    pub denies: bool,
    /// Until it ends, unless it is used.
    pub expires_in_ms: u64,
    /// Whether each use starts its life anew.
    pub sliding: bool,
}

/// Names a flow or a kept decision among all workers: `0-00000005a3f1c27e` is the worker's number
/// and its name for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FlowId {
    /// Whose it is.
    pub worker: usize,
    /// What the worker calls it.
    pub entry: EntryId,
}

impl fmt::Display for FlowId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{:016x}", self.worker, self.entry.0)
    }
}

impl FromStr for FlowId {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let parts = worker_and_number(text);
        let (worker, number) = parts.ok_or_else(|| {
            format!(
                "\"{text}\" names no flow; write an ID as `pointsman flows` shows it, such as \
                 0-00000005a3f1c27e"
            )
        })?;
        Ok(Self { worker, entry: EntryId(number) })
    }
}

/// Where a page begins; written like a [`FlowId`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct PageToken {
    /// The worker that is asked first.
    pub worker: usize,
    /// Where it begins to look.
    pub from: Cursor,
}

impl fmt::Display for PageToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{:016x}", self.worker, self.from.0)
    }
}

impl FromStr for PageToken {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let parts = worker_and_number(text);
        let (worker, number) = parts.ok_or_else(|| {
            format!("\"{text}\" names no page; write what the page before gave as the next one")
        })?;
        Ok(Self { worker, from: Cursor(number) })
    }
}

fn worker_and_number(text: &str) -> Option<(usize, u64)> {
    let (worker, number) = text.split_once('-')?;
    let is_plain = worker.bytes().all(|byte| byte.is_ascii_digit())
        && number.bytes().all(|byte| byte.is_ascii_hexdigit());
    if !is_plain {
        return None;
    }
    Some((worker.parse().ok()?, u64::from_str_radix(number, 16).ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_survives_its_way_through_text() {
        let id = FlowId { worker: 3, entry: EntryId(0x5a3_f1c2) };
        assert_eq!(id.to_string(), "3-0000000005a3f1c2");
        assert_eq!(id.to_string().parse(), Ok(id));
        let last = FlowId { worker: 0, entry: EntryId(u64::MAX) };
        assert_eq!(last.to_string().parse(), Ok(last));
    }

    #[test]
    fn what_is_no_id_is_refused() {
        for text in ["", "-", "0", "0-", "-5", "a-5", "0-g", "0-+5", "+0-5", "0-12345678901234567"]
        {
            let error = text.parse::<FlowId>().expect_err(text);
            assert!(error.contains("names no flow"), "{error}");
            assert!(text.parse::<PageToken>().is_err());
        }
    }
}
