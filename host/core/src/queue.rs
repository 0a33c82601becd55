//! Flows that wait for a place at an endpoint, because every one of their cluster is full.
//!
//! ```text
//!   no place ──▶ joins its worker's queue, with a ticket ──▶ served when its ticket is the lowest
//!                of all workers and there is a place ──▶ connects
//!                     └─ its time is over, or its client gone ──▶ closed
//! ```
//!
//! A place that becomes free belongs to the lowest ticket, in whatever worker that waits: the worker
//! that frees a place serves it, or calls the one that has it. A newcomer does not overtake those
//! who wait. Nothing is locked: each worker publishes the ticket of its first, and whoever publishes
//! looks for places afterwards, while whoever frees a place looks for tickets afterwards, so that one
//! of the two sees the other.

use alloc::boxed::Box;
use alloc::sync::Arc;
use alloc::vec;
use alloc::vec::{Drain, Vec};
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed, Ordering::SeqCst, fence};
use core::time::Duration;

use crate::policy::TICK;
use crate::snapshot::{Candidates, ClusterId, Endpoint, SharedCount, Snapshot};
use crate::time::Instant;

/// Whether and how long flows of a cluster may wait for a place.
#[derive(Debug, Clone)]
pub struct Queue {
    /// How many may wait at a time, over all workers; 0 if none may.
    pub flows_max: u32,
    /// How long each may wait.
    pub timeout: Duration,
    /// Those who do. It is there even if none may, so that the limit can be set while there are flows.
    pub line: Arc<Line>,
}

impl Queue {
    /// One in which nobody waits, for a process of so many workers.
    #[must_use]
    pub fn none(workers: usize) -> Self {
        Self { flows_max: 0, timeout: Duration::ZERO, line: Arc::new(Line::new(workers)) }
    }

    /// Whether somebody waits whom a newcomer must not overtake, be it from before the queue was taken
    /// away.
    pub(crate) fn is_awaited(&self) -> bool {
        !self.line.is_empty()
    }

    pub(crate) fn try_enter(&self) -> bool {
        self.line.waiting.try_increment(self.flows_max)
    }
}

/// Those who wait for a place in one cluster, as all workers see them.
#[derive(Debug)]
pub struct Line {
    waiting: SharedCount,
    tickets: AtomicU64,
    /// By worker.
    ends: Box<[End]>,
}

/// What a worker tells the others of its part of a line.
#[derive(Debug)]
#[repr(align(64))]
struct End {
    /// The ticket of its first, or [`NOBODY`].
    ticket: AtomicU64,
    /// Whether it is to look for a place.
    called: AtomicBool,
}

const NOBODY: u64 = u64::MAX;

impl Line {
    /// A line without anybody.
    #[must_use]
    pub fn new(workers: usize) -> Self {
        let end = || End { ticket: AtomicU64::new(NOBODY), called: AtomicBool::new(false) };
        Self {
            waiting: SharedCount::default(),
            tickets: AtomicU64::new(0),
            ends: (0..workers).map(|_| end()).collect(),
        }
    }

    /// How many wait.
    #[must_use]
    pub fn len(&self) -> u32 {
        self.waiting.get()
    }

    /// Whether nobody waits.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The worker whose turn it is.
    fn first(&self) -> Option<usize> {
        let tickets = self.ends.iter().map(|end| end.ticket.load(SeqCst)).enumerate();
        let first = tickets.min_by_key(|(_, ticket)| *ticket);
        first.filter(|(_, ticket)| *ticket != NOBODY).map(|(worker, _)| worker)
    }
}

/// Whose turn it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Next {
    /// The flow in this slot.
    Own(u32),
    /// A flow of another worker, which has been called.
    Other,
    /// Nobody's: there is no place, or nobody waits.
    Nobody,
}

/// The flows of one worker that wait, in order, by cluster.
#[derive(Debug)]
pub(crate) struct Waiting {
    worker: usize,
    /// By slot; those that do not wait mean nothing.
    nodes: Vec<Node>,
    /// By [`ClusterId`].
    rows: Vec<Row>,
    len: u32,
    /// Clusters in which there may be a place for somebody who waits.
    due: Vec<ClusterId>,
    /// Workers that are to be woken.
    calls: Vec<usize>,
    /// When all clusters are looked at next, in case a call was not heard.
    tick_at: Option<Instant>,
}

#[derive(Debug, Clone, Copy)]
struct Node {
    cluster: ClusterId,
    ticket: u64,
    before: Option<u32>,
    after: Option<u32>,
}

#[derive(Debug, Clone, Copy, Default)]
struct Row {
    first: Option<u32>,
    last: Option<u32>,
    is_due: bool,
}

impl Waiting {
    /// Nobody waits in this worker, which has so many slots.
    pub(crate) fn new(worker: usize, slots: u32, snapshot: &Snapshot) -> Self {
        let clusters = snapshot.clusters.len();
        let workers = snapshot.clusters.first().map_or(0, |first| first.queue.line.ends.len());
        Self {
            worker,
            nodes: Vec::with_capacity(slots as usize),
            rows: vec![Row::default(); clusters],
            len: 0,
            due: Vec::with_capacity(clusters),
            calls: Vec::with_capacity(workers),
            tick_at: None,
        }
    }

    /// The world has changed: there may be places where there were none.
    pub(crate) fn apply(&mut self, snapshot: &Snapshot) {
        self.rows.resize(snapshot.clusters.len().max(self.rows.len()), Row::default());
        self.look_everywhere();
    }

    /// Joins the end of a cluster's line, in which it has been given room.
    pub(crate) fn join(&mut self, now: Instant, (cluster, queue): (ClusterId, &Queue), slot: u32) {
        let ticket = queue.line.tickets.fetch_add(1, Relaxed);
        let row = &mut self.rows[cluster.index()];
        let before = row.last.replace(slot);
        match before {
            Some(last) => self.nodes[last as usize].after = Some(slot),
            None => row.first = Some(slot),
        }
        let node = Node { cluster, ticket, before, after: None };
        let end = self.nodes.len().max(slot as usize + 1);
        self.nodes.resize(end, node);
        self.nodes[slot as usize] = node;
        self.len += 1;
        self.tick_at = self.tick_at.or(Some(now + TICK));
        self.publish(cluster, queue);
        self.look_at(cluster);
    }

    /// Leaves the line, for whatever reason. Tells which line it was.
    pub(crate) fn leave(&mut self, snapshot: &Snapshot, slot: u32) -> ClusterId {
        let Node { cluster, before, after, .. } = self.nodes[slot as usize];
        let row = &mut self.rows[cluster.index()];
        match before {
            Some(before) => self.nodes[before as usize].after = after,
            None => row.first = after,
        }
        match after {
            Some(after) => self.nodes[after as usize].before = before,
            None => row.last = before,
        }
        self.len -= 1;
        if self.len == 0 {
            self.tick_at = None;
        }
        let queue = &snapshot.clusters[cluster.index()].queue;
        queue.line.waiting.decrement();
        self.publish(cluster, queue);
        // It may have been called, and then the next must be.
        self.look_at(cluster);
        cluster
    }

    /// The cluster for a place in which this slot's flow waits.
    pub(crate) fn cluster_of(&self, slot: u32) -> ClusterId {
        self.nodes[slot as usize].cluster
    }

    /// Tells the other workers who is first here.
    fn publish(&self, cluster: ClusterId, queue: &Queue) {
        let first = self.rows[cluster.index()].first;
        let ticket = first.map_or(NOBODY, |slot| self.nodes[slot as usize].ticket);
        queue.line.ends[self.worker].ticket.store(ticket, SeqCst);
    }

    /// An endpoint of a cluster has a place more than before.
    pub(crate) fn on_place_free(&mut self, cluster: ClusterId, queue: &Queue) {
        fence(SeqCst);
        if queue.is_awaited() {
            self.look_at(cluster);
        }
    }

    /// There may be a place for somebody in this cluster.
    pub(crate) fn look_at(&mut self, cluster: ClusterId) {
        let row = &mut self.rows[cluster.index()];
        if !core::mem::replace(&mut row.is_due, true) {
            self.due.push(cluster);
        }
    }

    fn look_everywhere(&mut self) {
        for cluster in (0..self.rows.len() as u16).map(ClusterId) {
            if self.rows[cluster.index()].first.is_some() {
                self.look_at(cluster);
            }
        }
    }

    /// Takes note of calls by other workers, and of the time.
    pub(crate) fn handle_timeout(&mut self, now: Instant, snapshot: &Snapshot) {
        if self.len == 0 {
            return;
        }
        if self.tick_at.is_some_and(|at| at <= now) {
            self.tick_at = Some(now + TICK);
            self.look_everywhere();
        }
        for (id, cluster) in (0..).map(ClusterId).zip(&snapshot.clusters) {
            let called = &cluster.queue.line.ends[self.worker].called;
            if self.rows[id.index()].first.is_some() && called.load(Relaxed) {
                self.look_at(id);
            }
        }
    }

    /// Takes a cluster in which there may be a place.
    pub(crate) fn next_due(&mut self) -> Option<ClusterId> {
        let cluster = self.due.pop()?;
        self.rows[cluster.index()].is_due = false;
        Some(cluster)
    }

    /// Whose turn it is in a cluster. If it is another worker's, that is called.
    pub(crate) fn next(&mut self, cluster: ClusterId, snapshot: &Snapshot) -> Next {
        let of = &snapshot.clusters[cluster.index()];
        let line = &of.queue.line;
        line.ends[self.worker].called.store(false, Relaxed);
        fence(SeqCst);
        if line.is_empty() || !has_place(&of.candidates) {
            return Next::Nobody;
        }
        match (line.first(), self.rows[cluster.index()].first) {
            (Some(worker), Some(slot)) if worker == self.worker => Next::Own(slot),
            (Some(worker), _) if worker != self.worker => {
                if !line.ends[worker].called.swap(true, SeqCst) && !self.calls.contains(&worker) {
                    self.calls.push(worker);
                }
                Next::Other
            }
            _ => Next::Nobody,
        }
    }

    /// The workers that are to be woken, because it is their turn.
    pub(crate) fn take_calls(&mut self) -> Drain<'_, usize> {
        self.calls.drain(..)
    }

    pub(crate) fn next_timeout(&self) -> Option<Instant> {
        if self.due.is_empty() { self.tick_at } else { Some(Instant::ZERO) }
    }

    pub(crate) fn len(&self) -> u32 {
        self.len
    }
}

/// Whether a flow that waits has something to hope for: a place, or to hear that nobody is left.
fn has_place(among: &Candidates) -> bool {
    among.is_empty() || !among.endpoints.iter().all(Endpoint::is_full)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nobody_overtakes_those_who_wait_in_a_queue_that_was_taken_away() {
        let queue = Queue { flows_max: 1, ..Queue::none(1) };
        assert!(queue.try_enter());
        let taken_away = Queue { flows_max: 0, ..queue };
        assert!(!taken_away.try_enter() && taken_away.is_awaited());
        taken_away.line.waiting.decrement();
        assert!(!taken_away.is_awaited());
    }
}
