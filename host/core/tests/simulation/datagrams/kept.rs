//! A shadow of the kept decisions: what each worker has, and what stands on the board.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv6Addr};
use std::time::Duration;

use pointsman_core::listing::KeptEntry;
use pointsman_core::policy::{Method, Scope};
use pointsman_core::{Candidates, CloseReason, EndpointId, Instant};

use super::setup::PREFIX;

/// Who a decision is kept for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum KeptKey {
    Client { cluster: u16, prefix: Ipv6Addr },
    Key { cluster: u16, key: u64 },
}

impl KeptKey {
    pub(super) fn client(cluster: u16, client: IpAddr) -> Self {
        Self::Client { cluster, prefix: PREFIX.mask(client) }
    }

    /// The key that an entry of the survey stands for.
    pub(super) fn of(cluster: u16, entry: &KeptEntry) -> Self {
        match (entry.scope, entry.client, entry.key) {
            (Scope::Client, Some(client), None) => Self::client(cluster, client),
            (Scope::Key, None, Some(key)) => Self::Key { cluster, key },
            _ => panic!("{entry:?}"),
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Kept {
    /// Where it sends flows, or how it denies them.
    pub(super) verdict: Result<EndpointId, CloseReason>,
    pub(super) method: Method,
    pub(super) expires: Instant,
    pub(super) slides: Option<Duration>,
}

impl Kept {
    fn prolong(&mut self, expires: Instant) {
        self.expires = self.expires.max(expires);
    }

    fn holds(&self, now: Instant, among: &Candidates) -> bool {
        let serves = self.verdict.is_ok_and(|id| among.find(id).is_some());
        self.expires > now && (serves || self.verdict.is_err())
    }
}

type Table = BTreeMap<KeptKey, Kept>;

#[derive(Debug)]
pub(super) struct Shelf {
    own: Vec<Table>,
    board: Option<Table>,
}

impl Shelf {
    pub(super) fn new(workers: usize, has_board: bool) -> Self {
        Self { own: vec![Table::new(); workers], board: has_board.then(Table::new) }
    }

    /// What a worker finds, and so also learns from the others and makes to live longer.
    pub(super) fn find(
        &mut self,
        (now, worker): (Instant, usize),
        key: KeptKey,
        among: &Candidates,
    ) -> Option<Kept> {
        let holds = |kept: &&Kept| kept.holds(now, among);
        let own = self.own[worker].get(&key).filter(holds);
        let learned = || self.board.as_ref()?.get(&key).filter(holds);
        let mut kept = *own.or_else(learned)?;
        self.own[worker].insert(key, kept);
        if let Some(ttl) = kept.slides {
            kept.prolong(now + ttl);
            let tables = self.own.get_mut(worker).into_iter().chain(&mut self.board);
            let entries = tables.filter_map(|table| table.get_mut(&key));
            entries.filter(|entry| entry.expires > now).for_each(|it| it.prolong(now + ttl));
        }
        Some(kept)
    }

    /// A flow that goes on uses what its worker keeps for its key.
    pub(super) fn on_used(
        &mut self,
        (now, worker): (Instant, usize),
        key: KeptKey,
        expires: Instant,
    ) {
        let slides = |kept: &Kept| kept.expires > now && kept.slides.is_some();
        if !self.own[worker].get(&key).is_some_and(slides) {
            return;
        }
        let tables = self.own.get_mut(worker).into_iter().chain(&mut self.board);
        let entries = tables.filter_map(|table| table.get_mut(&key));
        entries.filter(|entry| entry.expires > now).for_each(|it| it.prolong(expires));
    }

    pub(super) fn keep(&mut self, worker: usize, key: KeptKey, kept: Kept) {
        self.own[worker].insert(key, kept);
        if let Some(board) = &mut self.board {
            board.insert(key, kept);
        }
    }

    pub(super) fn forget(&mut self, worker: usize, key: KeptKey) -> bool {
        if let Some(board) = &mut self.board {
            board.remove(&key);
        }
        self.own[worker].remove(&key).is_some()
    }

    /// What a worker keeps and has not expired.
    pub(super) fn live(
        &self,
        now: Instant,
        worker: usize,
    ) -> impl Iterator<Item = (KeptKey, Kept)> {
        let own = self.own[worker].iter().map(|(key, kept)| (*key, *kept));
        own.filter(move |(_, kept)| kept.expires > now)
    }
}
