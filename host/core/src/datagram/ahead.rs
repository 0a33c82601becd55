//! Looking ahead: the tables' memory is fetched for a turn's datagrams together.
//!
//! With a million flows each datagram's entry is a walk to main memory, and the next datagram's
//! walk cannot begin before this one is dealt with. Nothing here remembers what it found: it is in
//! the cache when it is looked for again, a microsecond later.

use core::hint::black_box;

use super::Datagrams;
use super::flow::FlowKey;
use crate::boundary::{Completion, DatagramSocket};
use crate::snapshot::Snapshot;

/// Datagrams looked at together: more than one core has walks to memory under way.
const TOGETHER: usize = 32;
/// Fewer flows than this are in the cache anyway.
const FLOWS_MIN: u32 = 16_384;

impl Datagrams {
    /// Fetches what these completions, all of a turn, will need.
    pub(crate) fn look_ahead(&mut self, completions: &[Completion], snapshot: &Snapshot) {
        self.strangers.on_turn(completions.len());
        if self.table.len() < FLOWS_MIN {
            return;
        }
        for together in completions.chunks(TOGETHER) {
            let mut guesses = [None; TOGETHER];
            for (guess, completion) in guesses.iter_mut().zip(together) {
                *guess = self.guess(completion, snapshot);
            }
            for number in guesses.into_iter().flatten() {
                black_box(self.table.get(number).is_some());
            }
        }
    }

    fn guess(&self, completion: &Completion, snapshot: &Snapshot) -> Option<u32> {
        let Completion::Datagrams { socket, path, .. } = completion else { return None };
        match *socket {
            DatagramSocket::Listener(listener) => {
                let local = path.local.unwrap_or_else(|| snapshot.listener(listener).address.ip());
                self.table.guess_by_client(&FlowKey { listener, client: path.peer, local })
            }
            DatagramSocket::Port(port) => self.table.guess_by_reply(port, path.peer),
        }
    }
}
