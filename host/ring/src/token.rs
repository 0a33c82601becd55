//! What an entry says about itself when it completes.
//!
//! A token is the kind of request and the index of what it belongs to, packed into `user_data`.
//! There is no generation number: a link gets its next socket only after everything in flight on
//! the last one has completed, so a token can never outlive what it names.

use pointsman_core::boundary::{DatagramSocket, Link, ListenerId, PortId};

/// Names a request in the kernel's hands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Token {
    /// A link's subscription to its bytes.
    Receive(Link),
    /// A link's run of sends.
    Send(Link),
    /// A link's connect.
    Connect(Link),
    /// A listener's multishot accept.
    Accept(ListenerId),
    /// A listener's or a port's multishot receive of datagrams.
    Datagrams(DatagramSocket),
    /// The poll that lets other threads wake this one.
    Wake,
    /// A cancel: what matters is the completion of its target.
    Cancel,
}

const RECEIVE: u32 = 0;
const SEND: u32 = 1;
const CONNECT: u32 = 2;
const ACCEPT: u32 = 3;
const WAKE: u32 = 4;
const CANCEL: u32 = 5;
const LISTENER_DATAGRAMS: u32 = 6;
const PORT_DATAGRAMS: u32 = 7;

impl Token {
    /// The token as the kernel carries it.
    pub(crate) const fn encode(self) -> u64 {
        let (kind, index) = match self {
            Self::Receive(link) => (RECEIVE, link.index() as u64),
            Self::Send(link) => (SEND, link.index() as u64),
            Self::Connect(link) => (CONNECT, link.index() as u64),
            Self::Accept(listener) => (ACCEPT, listener.0 as u64),
            Self::Datagrams(DatagramSocket::Listener(listener)) => {
                (LISTENER_DATAGRAMS, listener.0 as u64)
            }
            Self::Datagrams(DatagramSocket::Port(port)) => (PORT_DATAGRAMS, port.0 as u64),
            Self::Wake => (WAKE, 0),
            Self::Cancel => (CANCEL, 0),
        };
        (kind as u64) << 32 | index
    }

    /// The token the kernel gave back.
    pub(crate) const fn decode(raw: u64) -> Self {
        let index = raw as u32;
        match (raw >> 32) as u32 {
            RECEIVE => Self::Receive(Link::from_index(index)),
            SEND => Self::Send(Link::from_index(index)),
            CONNECT => Self::Connect(Link::from_index(index)),
            ACCEPT => Self::Accept(ListenerId(index as u16)),
            LISTENER_DATAGRAMS => {
                Self::Datagrams(DatagramSocket::Listener(ListenerId(index as u16)))
            }
            PORT_DATAGRAMS => Self::Datagrams(DatagramSocket::Port(PortId(index))),
            WAKE => Self::Wake,
            _ => Self::Cancel,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_survives_the_kernel() {
        let link = Link::from_index(u32::MAX);
        for token in [
            Token::Receive(link),
            Token::Send(link),
            Token::Connect(link),
            Token::Accept(ListenerId(u16::MAX)),
            Token::Datagrams(DatagramSocket::Listener(ListenerId(u16::MAX))),
            Token::Datagrams(DatagramSocket::Port(PortId(u32::MAX))),
            Token::Wake,
            Token::Cancel,
        ] {
            assert_eq!(Token::decode(token.encode()), token);
        }
    }

    #[test]
    fn tokens_of_one_link_differ() {
        let link = Link::from_index(7);
        assert_ne!(Token::Receive(link).encode(), Token::Send(link).encode());
        assert_ne!(Token::Send(link).encode(), Token::Connect(link).encode());
    }
}
