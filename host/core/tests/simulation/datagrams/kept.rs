//! A shadow of the kept decisions: what each worker has, and what stands on the board.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv6Addr};
use std::time::Duration;

use pointsman_core::listing::KeptEntry;
use pointsman_core::policy::{Method, OnSwap, Scope};
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
    /// How many policies the cluster had had before the one that decided.
    pub(super) policy: u32,
}

/// What decisions of earlier policies are worth.
#[derive(Debug, Clone, Copy, Default)]
struct Floor {
    policy: u32,
    flushed: u32,
    stale: u32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Worth {
    Valid,
    Stale,
    Nothing,
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

/// What becomes of kept decisions between two processes.
pub(super) struct Passed<'a> {
    pub(super) now: Instant,
    /// How long they were with nobody, and did not age.
    pub(super) gap: Duration,
    /// The endpoint at the address that another has or had, by cluster.
    pub(super) renamed: &'a dyn Fn(u16, EndpointId) -> Option<EndpointId>,
}

impl Passed<'_> {
    fn after(&self, floors: &BTreeMap<u16, Floor>, key: KeptKey, kept: &Kept) -> Option<Kept> {
        let (KeptKey::Client { cluster, .. } | KeptKey::Key { cluster, .. }) = key;
        let floor = floors.get(&cluster).copied().unwrap_or_default();
        let holds = kept.policy >= floor.flushed.max(floor.stale);
        if !holds || kept.expires <= self.now - self.gap {
            return None;
        }
        let verdict = match kept.verdict {
            Ok(id) => Ok((self.renamed)(cluster, id)?),
            Err(reason) => Err(reason),
        };
        Some(Kept { verdict, expires: kept.expires + self.gap, ..*kept })
    }
}

#[derive(Debug)]
pub(super) struct Shelf {
    own: Vec<Table>,
    board: Option<Table>,
    /// By cluster.
    floors: BTreeMap<u16, Floor>,
}

impl Shelf {
    pub(super) fn new(workers: usize, has_board: bool) -> Self {
        let board = has_board.then(Table::new);
        Self { own: vec![Table::new(); workers], board, floors: BTreeMap::new() }
    }

    /// A cluster's policy has given its place to another.
    pub(super) fn on_swap(&mut self, cluster: u16, on_swap: OnSwap) {
        let floor = self.floors.entry(cluster).or_default();
        floor.policy += 1;
        match on_swap {
            OnSwap::Keep => {}
            OnSwap::Revalidate => floor.stale = floor.policy,
            OnSwap::Flush => floor.flushed = floor.policy,
        }
    }

    /// Another process takes over what holds. There has been one policy only.
    pub(super) fn start_afresh(&mut self, passed: &Passed<'_>) {
        let floors = std::mem::take(&mut self.floors);
        for table in &mut self.own {
            let before = std::mem::take(table);
            table.extend(before.into_iter().filter_map(|(key, kept)| {
                let after = passed.after(&floors, key, &kept)?;
                Some((key, Kept { policy: 0, ..after }))
            }));
        }
        self.board = self.board.take().map(|_| Table::new());
    }

    /// One of its workers has what one before had, and tells the others before its flows use it.
    pub(super) fn come(&mut self, worker: usize) {
        if let Some(board) = &mut self.board {
            board.extend(&self.own[worker]);
        }
    }

    /// A worker has taken back what holds. Most of it is there yet; tells how much of it is not.
    pub(super) fn come_back(&mut self, worker: usize, passed: &Passed<'_>) -> u32 {
        let mut back = 0;
        for (key, kept) in &mut self.own[worker] {
            if kept.expires > passed.now {
                continue;
            }
            let Some(after) = passed.after(&self.floors, *key, kept) else { continue };
            *kept = after;
            if let Some(board) = &mut self.board {
                board.insert(*key, after);
            }
            back += 1;
        }
        back
    }

    /// Which of its policies a cluster has.
    pub(super) fn policy(&self, cluster: u16) -> u32 {
        self.floors.get(&cluster).map_or(0, |floor| floor.policy)
    }

    fn worth(&self, now: Instant, key: KeptKey, kept: &Kept, among: &Candidates) -> Worth {
        let (KeptKey::Client { cluster, .. } | KeptKey::Key { cluster, .. }) = key;
        let floor = self.floors.get(&cluster).copied().unwrap_or_default();
        if kept.policy < floor.flushed || !kept.holds(now, among) {
            Worth::Nothing
        } else if kept.policy < floor.stale {
            Worth::Stale
        } else {
            Worth::Valid
        }
    }

    /// What a worker finds, and so also learns from the others and makes to live longer; and whether
    /// the policy's successor is to be asked once more, for which it is given up.
    pub(super) fn find(
        &mut self,
        (now, worker): (Instant, usize),
        key: KeptKey,
        among: &Candidates,
    ) -> Option<(Kept, bool)> {
        let worth = |kept: &Kept| self.worth(now, key, kept, among);
        let own = self.own[worker].get(&key).copied();
        let own_worth = own.as_ref().map_or(Worth::Nothing, worth);
        let is_better = |kept: &Kept| ![Worth::Nothing, own_worth].contains(&worth(kept));
        let board = self.board.as_ref().filter(|_| own_worth != Worth::Valid);
        let learned = board.and_then(|board| board.get(&key)).copied().filter(is_better);
        let mut kept = learned.or(own.filter(|_| own_worth != Worth::Nothing))?;
        if worth(&kept) == Worth::Stale {
            self.forget(worker, key);
            return Some((kept, true));
        }
        self.own[worker].insert(key, kept);
        if let Some(ttl) = kept.slides {
            kept.prolong(now + ttl);
            let tables = self.own.get_mut(worker).into_iter().chain(&mut self.board);
            let entries = tables.filter_map(|table| table.get_mut(&key));
            entries.filter(|entry| entry.expires > now).for_each(|it| it.prolong(now + ttl));
        }
        Some((kept, false))
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
