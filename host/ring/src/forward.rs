//! Datagrams out.
//!
//! A forward is an ordinary system call on the spot, not an entry in the ring. Sending a datagram
//! never waits for anything, so the ring has nothing to offer but one system call less, and its own
//! work for an entry and a completion costs as much: measured, the two differ by less than the
//! noise, and neither sending many at once nor registered descriptors help. In return errors are
//! known at once, what goes out of a socket keeps its order through every retry, buffers come back
//! within the turn, and nothing is in flight when a socket is closed.
//!
//! A train leaves as one message that the kernel, or better the device, cuts into its segments.
//! Where that is refused (a path that is too narrow for the segments, a tunnel, a device without
//! checksums) the datagrams leave one by one, and the route is remembered for a while: a train that
//! is refused costs as much as one that is sent.

use std::net::{IpAddr, SocketAddr, UdpSocket};

use pointsman_core::boundary::{Completion, DatagramSocket, LossCause, Train};
use pointsman_core::proxy::Header;

use crate::Ring;
use crate::datagram::Gate;
use crate::message::{self, Control};
use crate::sys::{self, RawAddress};

/// Segments of one message that every kernel with segmentation takes.
const SEGMENTS_MAX: usize = 64;
/// Bytes of one message that IPv4 takes: 65,535 less two headers.
const MESSAGE_MAX: usize = 65_507;

impl Ring {
    /// Sends a train and takes its buffer back. A loss is told of as long as the end of its socket
    /// has not been: nothing may follow that.
    pub(crate) fn forward(
        &mut self,
        socket: DatagramSocket,
        peer: SocketAddr,
        local: Option<IpAddr>,
        train: &Train,
    ) {
        let Some(gate) = self.datagrams.gate(socket) else {
            self.preface.forget();
            return self.discard(train);
        };
        if let Some(udp) = gate.socket() {
            let mut departure = Departure::new(udp, gate, peer, local);
            let payload = self.uring.buffers().payload(train);
            let (payload, segment) = self.preface.put(payload, train.segment() as usize);
            if segment == 0 || !gate.offload {
                departure.send_singly(payload, segment);
            } else {
                departure.send_trains(payload, segment, &mut self.routes);
            }
            let Departure { lost, stale, .. } = departure;
            if stale {
                self.report_unreachable(socket);
            }
            if let Some(Lost { datagrams, cause }) = lost {
                self.pending.push_back(Completion::Lost { socket, datagrams, cause });
            }
        } else if gate.has_failed() {
            let (datagrams, cause) = (train.datagrams(), LossCause::Full);
            self.pending.push_back(Completion::Lost { socket, datagrams, cause });
        }
        self.preface.forget();
        self.discard(train);
    }

    pub(crate) fn discard(&mut self, train: &Train) {
        self.uring.put_message(train.buffer());
    }
}

/// A header that comes before each datagram of the next train.
///
/// The datagrams are copied behind their headers: what that costs is little beside the system call, and
/// a train stays a train, of segments that are longer by the header.
#[derive(Debug, Default)]
pub(crate) struct Preface {
    /// Empty if there is none.
    header: Vec<u8>,
    /// The train with its headers.
    prefaced: Vec<u8>,
}

impl Preface {
    pub(crate) fn set(&mut self, header: &Header) {
        debug_assert!(self.header.is_empty(), "a header is followed by its datagrams");
        self.header.extend_from_slice(header.as_bytes());
    }

    fn forget(&mut self) {
        self.header.clear();
    }

    /// A train, of one datagram if its segments have no length, as it is to be sent.
    fn put<'a>(&'a mut self, payload: &'a [u8], segment: usize) -> (&'a [u8], usize) {
        if self.header.is_empty() {
            return (payload, segment);
        }
        self.prefaced.clear();
        if segment == 0 || payload.is_empty() {
            self.prefaced.extend_from_slice(&self.header);
            self.prefaced.extend_from_slice(payload);
            return (&self.prefaced, 0);
        }
        for datagram in payload.chunks(segment) {
            self.prefaced.extend_from_slice(&self.header);
            self.prefaced.extend_from_slice(datagram);
        }
        (&self.prefaced, self.header.len() + segment)
    }
}

/// Datagrams that could not be sent, and why the first of them could not.
#[derive(Debug, Clone, Copy)]
struct Lost {
    datagrams: u32,
    cause: LossCause,
}

/// A train on its way out of a socket.
struct Departure<'a> {
    socket: &'a UdpSocket,
    peer: IpAddr,
    /// Where to; a connected socket knows.
    name: Option<RawAddress>,
    /// Where from, if that has to be said.
    source: Control,
    lost: Option<Lost>,
    /// Whether an error was in the way that an earlier datagram had caused.
    stale: bool,
}

impl<'a> Departure<'a> {
    fn new(socket: &'a UdpSocket, gate: &Gate, peer: SocketAddr, local: Option<IpAddr>) -> Self {
        let name = (!gate.connected).then(|| RawAddress::towards(&peer, gate.v6));
        let source = match local {
            Some(local) if gate.wildcard => Control::from_address(local, gate.v6),
            _ => Control::NONE,
        };
        Self { socket, peer: peer.ip(), name, source, lost: None, stale: false }
    }

    /// Sends messages of as many segments as fit into one; the datagrams of those that are refused
    /// go one by one, before the next.
    fn send_trains(&mut self, payload: &[u8], segment: usize, routes: &mut Routes) {
        let segments = (MESSAGE_MAX / segment).clamp(1, SEGMENTS_MAX);
        for part in payload.chunks(segments * segment) {
            if part.len() <= segment || routes.is_refused(self.peer, segment) {
                self.send_singly(part, segment);
                continue;
            }
            match self.send(part, &self.source.with_segment(segment as u16)) {
                Ok(()) => {}
                Err(errno) if may_be_segmentation(errno) => {
                    if self.send_singly(part, segment) {
                        routes.refuse(self.peer, segment);
                    }
                }
                Err(errno) => self.lose(part.len().div_ceil(segment), errno),
            }
        }
    }

    /// Sends one datagram for each segment, or a single one if there are no segments. True if any
    /// was sent.
    fn send_singly(&mut self, payload: &[u8], segment: usize) -> bool {
        if segment == 0 || payload.is_empty() {
            return self.send_one(payload);
        }
        let mut sent = false;
        for datagram in payload.chunks(segment) {
            sent |= self.send_one(datagram);
        }
        sent
    }

    fn send_one(&mut self, datagram: &[u8]) -> bool {
        let source = self.source;
        let result = self.send(datagram, &source);
        result.map_err(|errno| self.lose(1, errno)).is_ok()
    }

    /// Sends a message. On a connected socket an error may be that of an earlier datagram, which an
    /// ICMP message has reported: it does not count against this one, which is sent again.
    fn send(&mut self, payload: &[u8], control: &Control) -> Result<(), i32> {
        let first = self.try_send(payload, control);
        let Err(errno) = first else { return Ok(()) };
        let reported = self.name.is_none() && (is_unreachable(errno) || errno == libc::EMSGSIZE);
        if !reported && errno != libc::EINTR {
            return first;
        }
        let second = self.try_send(payload, control);
        // Only an ICMP message refuses; other errors may be our own, and then they come again.
        self.stale |= errno == libc::ECONNREFUSED || (is_unreachable(errno) && second.is_ok());
        second
    }

    fn try_send(&self, payload: &[u8], control: &Control) -> Result<(), i32> {
        sys::send_message(self.socket, self.name.as_ref(), control.bytes(), payload)
            .map_err(|error| error.raw_os_error().unwrap_or(0))
    }

    fn lose(&mut self, datagrams: usize, errno: i32) {
        let lost = self.lost.get_or_insert(Lost { datagrams: 0, cause: loss_cause(errno) });
        lost.datagrams += datagrams as u32;
    }
}

/// Destinations that trains cannot be sent to as they are: as many as have a place, each for a
/// number of trains. What has lost its place, or its time, is found out again.
#[derive(Debug)]
pub(crate) struct Routes {
    places: [Route; 1 << ROUTES_BITS],
}

#[derive(Debug, Clone, Copy)]
struct Route {
    peer: IpAddr,
    /// Segments of this many bytes and more are refused.
    segment: usize,
    /// For how many trains that is believed.
    trains: u32,
}

const ROUTES_BITS: u32 = 6;
const BELIEVED_FOR: u32 = 4096;

impl Default for Routes {
    fn default() -> Self {
        let nowhere = IpAddr::V4(std::net::Ipv4Addr::UNSPECIFIED);
        let free = Route { peer: nowhere, segment: 0, trains: 0 };
        Self { places: [free; 1 << ROUTES_BITS] }
    }
}

impl Routes {
    /// Whether a train was refused on this route that was no harder to send.
    fn is_refused(&mut self, peer: IpAddr, segment: usize) -> bool {
        let route = self.place(peer);
        let refused = route.trains > 0 && route.peer == peer && segment >= route.segment;
        if refused {
            route.trains -= 1;
        }
        refused
    }

    fn refuse(&mut self, peer: IpAddr, segment: usize) {
        *self.place(peer) = Route { peer, segment, trains: BELIEVED_FOR };
    }

    fn place(&mut self, peer: IpAddr) -> &mut Route {
        let bits = message::mapped(peer).to_bits();
        let folded = (bits as u64) ^ (bits >> 64) as u64;
        let place = folded.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> (u64::BITS - ROUTES_BITS);
        &mut self.places[place as usize]
    }
}

/// Whether a train may have been refused for being one.
fn may_be_segmentation(errno: i32) -> bool {
    matches!(
        errno,
        libc::EIO | libc::EINVAL | libc::EMSGSIZE | libc::EOPNOTSUPP | libc::ENOPROTOOPT
    )
}

/// Whether an error says that the peer cannot be reached.
pub(crate) fn is_unreachable(errno: i32) -> bool {
    matches!(
        errno,
        libc::ECONNREFUSED
            | libc::EHOSTUNREACH
            | libc::ENETUNREACH
            | libc::EHOSTDOWN
            | libc::ENETDOWN
            | libc::ENONET
            | libc::ENOPROTOOPT
            | libc::EPROTO
            | libc::EACCES
    )
}

fn loss_cause(errno: i32) -> LossCause {
    match errno {
        libc::EAGAIN | libc::ENOBUFS | libc::ENOMEM => LossCause::Full,
        libc::EMSGSIZE => LossCause::TooLarge,
        _ => LossCause::Unreachable,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(last: u8) -> IpAddr {
        [192, 0, 2, last].into()
    }

    #[test]
    fn a_route_that_refused_a_train_is_spared_harder_ones_for_a_while() {
        let mut routes = Routes::default();
        assert!(!routes.is_refused(address(1), 1400));
        routes.refuse(address(1), 1400);
        assert!(!routes.is_refused(address(1), 1399));
        for _ in 0..BELIEVED_FOR {
            assert!(routes.is_refused(address(1), 1400));
        }
        assert!(!routes.is_refused(address(1), 1400), "it is tried again");
    }

    #[test]
    fn a_route_is_not_mistaken_for_the_one_whose_place_it_takes() {
        let mut routes = Routes::default();
        for last in 0..=255 {
            routes.refuse(address(last), 100);
            let others = (0..last).filter(|other| routes.is_refused(address(*other), 100));
            assert!(others.count() < 1 << ROUTES_BITS);
            assert!(routes.is_refused(address(last), 100));
        }
    }

    #[test]
    fn each_datagram_of_the_next_train_has_a_header_and_no_other() {
        let header = Header::of_our_own(pointsman_core::proxy::Version::V1);
        let text = "PROXY UNKNOWN\r\n";
        let mut preface = Preface::default();
        preface.set(&header);
        let train = format!("{text}abc{text}def{text}g");
        assert_eq!(preface.put(b"abcdefg", 3), (train.as_bytes(), text.len() + 3));
        assert_eq!(preface.put(b"abc", 0), (format!("{text}abc").as_bytes(), 0));
        assert_eq!(preface.put(b"", 0), (text.as_bytes(), 0), "an empty one is one as well");
        preface.forget();
        assert_eq!(preface.put(b"abcdefg", 3), (&b"abcdefg"[..], 3));
    }

    #[test]
    fn a_full_queue_is_not_the_peers_fault() {
        assert_eq!(loss_cause(libc::EAGAIN), LossCause::Full);
        assert_eq!(loss_cause(libc::ENOBUFS), LossCause::Full);
        assert_eq!(loss_cause(libc::EMSGSIZE), LossCause::TooLarge);
        assert_eq!(loss_cause(libc::ECONNREFUSED), LossCause::Unreachable);
        assert_eq!(loss_cause(libc::EPERM), LossCause::Unreachable);
    }
}
