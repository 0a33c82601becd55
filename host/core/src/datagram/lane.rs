//! The ports that are free for the flows of one endpoint.
//!
//! A reply that comes after its flow reaches the flow that has its port and its endpoint next. So
//! the port that was left last is the last that is used again; and there is no search for a free
//! one, however few there are.

use alloc::collections::VecDeque;
use alloc::vec::Vec;
use core::cmp::Reverse;

use crate::boundary::PortId;

/// A port, and which of those that ever had its number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Opened {
    pub(super) port: PortId,
    pub(super) opening: u64,
}

/// One endpoint's free ports. It grows to as many as have been free at a time.
#[derive(Debug, Default)]
pub(super) struct Lane {
    /// Those that flows have left, in this order. Some may have been closed since.
    left: VecDeque<Opened>,
    /// Ports opened from here on have served no flow of this endpoint, but for those it has met.
    unknown: u64,
    /// Those of them that its flows came with from another process, the next one last.
    met: Vec<u64>,
}

impl Lane {
    pub(super) fn len(&self) -> usize {
        self.left.len()
    }

    /// Whether no port has been opened that it does not know of, `openings` having been so far.
    pub(super) fn knows_all(&self, openings: u64) -> bool {
        self.unknown >= openings
    }

    pub(super) fn knows(&self, opening: u64) -> bool {
        opening < self.unknown
    }

    pub(super) fn has_met(&self, opening: u64) -> bool {
        self.met.binary_search_by_key(&Reverse(opening), |met| Reverse(*met)).is_ok()
    }

    /// A flow of the endpoint has come with its port. The lane may know none of those opened before: to
    /// tell it of them all would cost as much for an endpoint's first flow as for a thousand.
    pub(super) fn meet(&mut self, opening: u64) {
        if !self.knows(opening) {
            self.met.push(opening);
        }
    }

    /// All flows that come with their ports have come.
    pub(super) fn settle(&mut self) {
        self.met.sort_unstable_by_key(|met| Reverse(*met));
    }

    /// Takes note of the next port that it does not know of. Tells whether that has served no flow.
    pub(super) fn learn(&mut self, opening: u64) -> bool {
        self.unknown = opening + 1;
        while let Some(met) = self.met.pop_if(|met| *met <= opening) {
            if met == opening {
                return false;
            }
        }
        true
    }

    /// Takes note of all ports, `openings` having been so far.
    pub(super) fn learn_all(&mut self, openings: u64) {
        self.unknown = openings;
        self.met.clear();
    }

    /// A flow has left a port.
    pub(super) fn put(&mut self, opened: Opened, is_open: impl Fn(Opened) -> bool) {
        if self.left.len() == self.left.capacity() {
            self.left.retain(|it| is_open(*it));
        }
        self.left.push_back(opened);
    }

    /// The open port that was left first.
    pub(super) fn take(&mut self, is_open: impl Fn(Opened) -> bool) -> Option<Opened> {
        while let Some(opened) = self.left.pop_front() {
            if is_open(opened) {
                return Some(opened);
            }
        }
        None
    }

    /// Asserts that each open port is in it once, and tells how many are.
    pub(super) fn check_invariants(&self, is_open: impl Fn(Opened) -> bool) -> usize {
        let open = self.left.iter().filter(|it| is_open(**it));
        let mut openings: Vec<_> = open.map(|it| it.opening).collect();
        openings.sort_unstable();
        assert!(openings.is_sorted_by(|one, next| one < next), "a port is free once");
        openings.len()
    }
}
