//! Completions out: what the kernel reports becomes what the balancer understands.
//!
//! Retries, re-arming, cancels that found nothing and wakes end here; the balancer sees none of
//! them. One event may say two things (the last bytes of a subscription, and that it was the
//! last): the second goes to the queue of synthetic completions, which is always read first, so
//! what a link reports stays in order.

use pointsman_core::boundary::{Completion, ConnectFailure, Link, SendEnd};

use crate::Ring;
use crate::buffers::BufferId;
use crate::perform::connect_failure;
use crate::ring::Event;
use crate::socket::{Ending, Receive};
use crate::token::Token;

/// Completions, oldest first, up to a limit. Borrows only the [`Ring`].
#[derive(Debug)]
pub struct Reap<'a> {
    ring: &'a mut Ring,
    left: usize,
}

impl<'a> Reap<'a> {
    pub(crate) fn new(ring: &'a mut Ring, limit: usize) -> Self {
        Self { ring, left: limit }
    }
}

impl Iterator for Reap<'_> {
    type Item = Completion;

    #[inline]
    fn next(&mut self) -> Option<Completion> {
        self.left = self.left.checked_sub(1)?;
        self.ring.next_completion()
    }
}

impl Ring {
    fn next_completion(&mut self) -> Option<Completion> {
        loop {
            if let Some(completion) = self.pending.pop_front() {
                return Some(completion);
            }
            // An empty queue starts over at the front of its memory, which is in the cache.
            self.pending.clear();
            let Some(event) = self.uring.next_event() else { return self.drain_listeners() };
            let completion = self.translate(event);
            if completion.is_some() {
                return completion;
            }
        }
    }

    fn translate(&mut self, event: Event) -> Option<Completion> {
        match event.token {
            Token::Receive(link) => self.on_receive(link, event),
            Token::Send(link) => self.on_send(link, event.result),
            Token::Connect(link) => Some(self.on_connect(link, event.result)),
            Token::Accept(listener) => self.on_accept(listener, event),
            Token::Datagrams(socket) => self.on_datagrams(socket, event),
            Token::Wake => {
                self.on_wake(event);
                None
            }
            Token::Cancel => None,
        }
    }

    fn on_receive(&mut self, link: Link, event: Event) -> Option<Completion> {
        let socket = &mut self.sockets[link.index()];
        let len = event.result.max(0).cast_unsigned();
        socket.spend(len);
        let buffer = event.buffer().map(|number| self.uring.taken(socket.pool, number, len));
        let received = match buffer {
            Some(buffer) if len > 0 => Some(Completion::Received { link, buffer }),
            Some(empty) => {
                self.uring.put(&empty);
                None
            }
            None => None,
        };
        if event.more() {
            self.enforce_credit(link);
            return received;
        }
        let ended = self.on_receive_end(link, event.result);
        if received.is_none() {
            self.settle(link);
            return ended;
        }
        self.pending.extend(ended);
        self.settle(link);
        received
    }

    /// Pauses a subscription that has used up its credit on a kernel that does not count it.
    fn enforce_credit(&mut self, link: Link) {
        let socket = &mut self.sockets[link.index()];
        let spent = socket.credit == 0 && socket.receive == Receive::Armed;
        if spent && socket.closing.is_none() && !self.uring.features().credit {
            socket.receive = Receive::Pausing;
            self.uring.cancel(Token::Receive(link));
        }
    }

    fn on_receive_end(&mut self, link: Link, result: i32) -> Option<Completion> {
        match self.sockets[link.index()].end_receive(result) {
            Ending::Over(end) => Some(Completion::ReceiveEnded { link, end }),
            Ending::Starving => {
                self.starve(link);
                None
            }
        }
    }

    fn on_send(&mut self, link: Link, result: i32) -> Option<Completion> {
        let socket = &mut self.sockets[link.index()];
        let head = std::mem::replace(&mut socket.sending, BufferId::NONE);
        let bytes = result.max(0).cast_unsigned();
        let whole = bytes == socket.sending_bytes;
        if bytes == 0 {
            self.give_back(link, head);
            self.settle(link);
            return None;
        }
        self.uring.put_chain(head);
        self.settle(link);
        let end = if whole { SendEnd::Whole } else { SendEnd::Broken };
        Some(Completion::Sent { link, bytes, end })
    }

    /// A run of which nothing was taken: the balancer may have another use for its buffers. Nothing is
    /// queued while an event is translated, so the last of them comes to the front.
    fn give_back(&mut self, link: Link, head: BufferId) {
        let run = self.uring.buffers().run(head);
        let returned = run.map(|buffer| Completion::Returned { link, buffer });
        returned.for_each(|completion| self.pending.push_front(completion));
        self.pending.push_back(Completion::Sent { link, bytes: 0, end: SendEnd::Broken });
    }

    fn on_connect(&mut self, link: Link, result: i32) -> Completion {
        let socket = &mut self.sockets[link.index()];
        socket.connecting = false;
        if socket.closing.is_some() {
            self.settle(link);
            return Completion::ConnectFailed { link, cause: ConnectFailure::Cancelled };
        }
        if result < 0 {
            socket.stream = None;
            return Completion::ConnectFailed { link, cause: connect_failure(-result) };
        }
        Completion::Connected { link }
    }

    fn on_wake(&mut self, event: Event) {
        self.waker.lower();
        if !event.more() {
            self.uring.poll(Token::Wake, self.waker.descriptor());
        }
    }
}
