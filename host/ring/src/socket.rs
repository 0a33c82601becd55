//! One link's socket, and what of it the kernel holds.
//!
//! ```text
//!            ┌───────────── nothing in flight and closing ─────────────┐
//!   free ─▶ open (connecting, receiving, starved, sending: any mix) ─▶ closed = free
//! ```
//!
//! A socket is closed in one place only, when it is closing and the kernel holds nothing of it. A
//! thousand idle links cost what this struct costs: some 24 bytes each.

use std::net::TcpStream;
use std::os::fd::{AsRawFd, RawFd};

use pointsman_core::boundary::{Goodbye, Pool, ReceiveEnd};

use crate::buffers::BufferId;

/// A link's subscription to its bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Receive {
    /// There is none.
    Idle,
    /// The kernel has it.
    Armed,
    /// The kernel has it and was asked to end it.
    Pausing,
    /// It waits for buffers; the kernel knows nothing of it.
    Starved,
}

/// What has become of a subscription whose last event has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ending {
    /// It is over.
    Over(ReceiveEnd),
    /// It goes on as soon as there are buffers.
    Starving,
}

/// The state of one link.
#[derive(Debug)]
pub(crate) struct Socket {
    /// The connection; a free link has none.
    pub(crate) stream: Option<TcpStream>,
    /// The run of sends in flight, or `NONE`.
    pub(crate) sending: BufferId,
    /// How many bytes that run has.
    pub(crate) sending_bytes: u32,
    /// How many bytes may still arrive.
    pub(crate) credit: u32,
    pub(crate) receive: Receive,
    /// Where the subscription's bytes go.
    pub(crate) pool: Pool,
    pub(crate) connecting: bool,
    /// Whether the starved list has an entry for this link, be it an old one.
    pub(crate) queued: bool,
    pub(crate) closing: Option<Goodbye>,
}

impl Socket {
    /// A free link.
    pub(crate) const FREE: Self = Self {
        stream: None,
        sending: BufferId::NONE,
        sending_bytes: 0,
        credit: 0,
        receive: Receive::Idle,
        pool: Pool::Small,
        connecting: false,
        queued: false,
        closing: None,
    };

    /// Takes a connection in.
    pub(crate) fn open(&mut self, stream: TcpStream) {
        debug_assert!(self.stream.is_none(), "a link has one socket");
        debug_assert!(!self.is_in_flight(), "a free link has nothing in flight");
        self.stream = Some(stream);
        self.closing = None;
    }

    /// The descriptor of a link in use.
    pub(crate) fn descriptor(&self) -> RawFd {
        self.stream.as_ref().expect("a link in use has a socket").as_raw_fd()
    }

    /// Whether the kernel holds anything of this link.
    pub(crate) fn is_in_flight(&self) -> bool {
        self.connecting || self.is_sending() || self.is_receiving()
    }

    /// Whether a run of sends is in flight.
    pub(crate) fn is_sending(&self) -> bool {
        self.sending != BufferId::NONE
    }

    /// Whether the kernel holds a subscription.
    pub(crate) fn is_receiving(&self) -> bool {
        matches!(self.receive, Receive::Armed | Receive::Pausing)
    }

    /// Counts received bytes against the credit.
    pub(crate) fn spend(&mut self, bytes: u32) {
        self.credit = self.credit.saturating_sub(bytes);
    }

    /// Ends the subscription, of which the kernel's last word was `result`.
    pub(crate) fn end_receive(&mut self, result: i32) -> Ending {
        let ending = self.ending(result);
        self.receive = match ending {
            Ending::Over(_) => Receive::Idle,
            Ending::Starving => Receive::Starved,
        };
        ending
    }

    fn ending(&self, result: i32) -> Ending {
        let interrupted = match self.closing {
            Some(_) => ReceiveEnd::Cancelled,
            None => ReceiveEnd::Paused,
        };
        let wanted = self.receive == Receive::Armed && self.closing.is_none();
        match -result {
            0 => Ending::Over(ReceiveEnd::EndOfStream),
            libc::ENOBUFS if wanted => Ending::Starving,
            libc::ENOBUFS | libc::ECANCELED | libc::EINTR | libc::EAGAIN => {
                Ending::Over(interrupted)
            }
            error if error < 0 => Ending::Over(interrupted),
            _ => Ending::Over(ReceiveEnd::Reset),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn armed() -> Socket {
        Socket { receive: Receive::Armed, credit: 100, ..Socket::FREE }
    }

    #[test]
    fn a_link_costs_little() {
        assert!(size_of::<Socket>() <= 24, "{} bytes", size_of::<Socket>());
    }

    #[test]
    fn a_result_with_bytes_ends_in_a_pause() {
        assert_eq!(armed().end_receive(17), Ending::Over(ReceiveEnd::Paused));
    }

    #[test]
    fn want_of_buffers_starves_a_subscription_and_ends_a_paused_one() {
        let mut socket = armed();
        assert_eq!(socket.end_receive(-libc::ENOBUFS), Ending::Starving);
        assert_eq!(socket.receive, Receive::Starved);
        let mut socket = Socket { receive: Receive::Pausing, ..Socket::FREE };
        assert_eq!(socket.end_receive(-libc::ENOBUFS), Ending::Over(ReceiveEnd::Paused));
        let mut socket = Socket { closing: Some(Goodbye::Fin), ..armed() };
        assert_eq!(socket.end_receive(-libc::ENOBUFS), Ending::Over(ReceiveEnd::Cancelled));
    }

    #[test]
    fn a_cancelled_subscription_says_who_cancelled_it() {
        assert_eq!(armed().end_receive(-libc::ECANCELED), Ending::Over(ReceiveEnd::Paused));
        let mut closing = Socket { closing: Some(Goodbye::Reset), ..armed() };
        assert_eq!(closing.end_receive(-libc::ECANCELED), Ending::Over(ReceiveEnd::Cancelled));
    }

    #[test]
    fn the_end_of_the_stream_is_told_from_a_broken_one() {
        assert_eq!(armed().end_receive(0), Ending::Over(ReceiveEnd::EndOfStream));
        assert_eq!(armed().end_receive(-libc::ECONNRESET), Ending::Over(ReceiveEnd::Reset));
    }
}
