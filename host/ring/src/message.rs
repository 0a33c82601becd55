//! A received message as the kernel lays it out in a datagram buffer, and the control data of one
//! to be sent.
//!
//! ```text
//!   0        16         48            112
//!   ├ header ┼ address ─┼ control ────┼ payload ─────▶
//! ```
//!
//! Every datagram socket leaves the same room for address and control data, whether it needs it or
//! not: so a payload always begins at the same byte, and a train's name need not say where. All of
//! this is read and written as bytes, field by field; nothing here trusts a length.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, SocketAddrV6};

/// The kernel's `io_uring_recvmsg_out`: the lengths of address, control data and payload, and flags.
const HEADER_BYTES: usize = 16;
/// Room for an address: an IPv6 one is 28 bytes, and control data is aligned.
pub(crate) const NAME_BYTES: usize = 32;
/// Room for what a datagram socket is told: where to (40 bytes at most) and the segment size (24).
pub(crate) const CONTROL_BYTES: usize = 64;
/// Where a payload begins.
pub(crate) const PAYLOAD: usize = HEADER_BYTES + NAME_BYTES + CONTROL_BYTES;
/// A buffer for a message: the largest train is 65,535 bytes, less its headers.
pub(crate) const BUFFER_BYTES: u32 = 65_536 + 256;

/// `cmsghdr`: a length, a level and a kind.
const CONTROL_HEADER: usize = size_of::<usize>() + 8;

const _: () = assert!(PAYLOAD + 65_535 <= BUFFER_BYTES as usize);

/// What has been received.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Message {
    pub(crate) peer: SocketAddr,
    /// Which of our addresses it was sent to, if the socket tells.
    pub(crate) local: Option<IpAddr>,
    /// Bytes of payload.
    pub(crate) len: u32,
    /// Bytes in each segment of a train, or 0 for a single datagram.
    pub(crate) segment: u32,
    /// Whether a part of it is missing.
    pub(crate) truncated: bool,
}

impl Message {
    /// Reads what the kernel has written to a buffer. `None` if that is no message.
    pub(crate) fn parse(bytes: &[u8]) -> Option<Self> {
        let (head, rest) = bytes.split_at_checked(HEADER_BYTES)?;
        let (name, rest) = rest.split_at_checked(NAME_BYTES)?;
        let (control, payload) = rest.split_at_checked(CONTROL_BYTES)?;
        let field = |at| read(head, at).map(u32::from_ne_bytes);
        let (control_len, flags) = (field(4)? as usize, field(12)?);
        let told = Told::parse(&control[..control_len.min(CONTROL_BYTES)]);
        let len = payload.len() as u32;
        Some(Self {
            peer: peer(name)?,
            local: told.local,
            len,
            segment: if told.segment < len { told.segment } else { 0 },
            truncated: flags & (libc::MSG_TRUNC | libc::MSG_CTRUNC).cast_unsigned() != 0,
        })
    }
}

/// What the control data says.
#[derive(Default)]
struct Told {
    local: Option<IpAddr>,
    segment: u32,
}

impl Told {
    fn parse(mut control: &[u8]) -> Self {
        let mut told = Self::default();
        while let Some(len) = read(control, 0).map(usize::from_ne_bytes) {
            if len < CONTROL_HEADER || len > control.len() {
                break;
            }
            told.note(&control[..len]);
            control = control.get(aligned(len)..).unwrap_or_default();
        }
        told
    }

    fn note(&mut self, control: &[u8]) -> Option<()> {
        let word = |at| read(control, at).map(i32::from_ne_bytes);
        let kind = (word(size_of::<usize>())?, word(size_of::<usize>() + 4)?);
        let data = control.get(CONTROL_HEADER..)?;
        match kind {
            // An interface, the address to answer from, and the one in the packet's header. Of a
            // datagram that came before it was asked for the first two are not known.
            (libc::IPPROTO_IP, libc::IP_PKTINFO) => {
                let [answers, sent_to] = [4, 8].map(|at| read::<4>(data, at).map(Ipv4Addr::from));
                let answers = answers.filter(|address| !address.is_unspecified());
                self.local = Some(answers.or(sent_to)?.into());
            }
            (libc::IPPROTO_IPV6, libc::IPV6_PKTINFO) => {
                let address = Ipv6Addr::from(read::<16>(data, 0)?);
                self.local = Some(IpAddr::from(address).to_canonical());
            }
            (libc::SOL_UDP, libc::UDP_GRO) => {
                self.segment = u32::try_from(i32::from_ne_bytes(read(data, 0)?)).ok()?;
            }
            _ => {}
        }
        Some(())
    }
}

/// Reads a `sockaddr` of either family. IPv4 comes out plain.
fn peer(name: &[u8]) -> Option<SocketAddr> {
    let family = i32::from(u16::from_ne_bytes(read(name, 0)?));
    let port = u16::from_be_bytes(read(name, 2)?);
    match family {
        libc::AF_INET => {
            let ip = Ipv4Addr::from(read::<4>(name, 4)?);
            Some(SocketAddrV4::new(ip, port).into())
        }
        libc::AF_INET6 => {
            let ip = Ipv6Addr::from(read::<16>(name, 8)?);
            let scope = u32::from_ne_bytes(read(name, 24)?);
            Some(match ip.to_ipv4_mapped() {
                Some(ip) => SocketAddrV4::new(ip, port).into(),
                None => SocketAddrV6::new(ip, port, 0, scope).into(),
            })
        }
        _ => None,
    }
}

fn read<const N: usize>(bytes: &[u8], at: usize) -> Option<[u8; N]> {
    bytes.get(at..)?.first_chunk().copied()
}

/// Control data begins at multiples of a word.
const fn aligned(len: usize) -> usize {
    len.next_multiple_of(size_of::<usize>())
}

/// Control data to be sent: from which address, and in which segments.
#[derive(Debug, Clone, Copy)]
#[repr(C, align(8))]
pub(crate) struct Control {
    bytes: [u8; CONTROL_BYTES],
    len: usize,
}

impl Control {
    /// Says nothing.
    pub(crate) const NONE: Self = Self { bytes: [0; CONTROL_BYTES], len: 0 };

    /// Says from which address a socket of IPv6 (`v6`) or IPv4 sends.
    pub(crate) fn from_address(local: IpAddr, v6: bool) -> Self {
        let mut control = Self::NONE;
        match (local, v6) {
            (IpAddr::V4(local), false) => {
                let mut info = [0; 12];
                info[4..8].copy_from_slice(&local.octets());
                control.push(libc::IPPROTO_IP, libc::IP_PKTINFO, &info);
            }
            (IpAddr::V6(_), false) => {}
            (local, true) => {
                let mut info = [0; 20];
                info[..16].copy_from_slice(&mapped(local).octets());
                control.push(libc::IPPROTO_IPV6, libc::IPV6_PKTINFO, &info);
            }
        }
        control
    }

    /// Says, too, that the payload is to be cut into segments of `segment` bytes.
    pub(crate) fn with_segment(mut self, segment: u16) -> Self {
        self.push(libc::SOL_UDP, libc::UDP_SEGMENT, &segment.to_ne_bytes());
        self
    }

    /// What there is to say, without padding at its end: so an address of either family takes no
    /// more than the 36 bytes for which the kernel need not allocate.
    pub(crate) fn bytes(&self) -> &[u8] {
        &self.bytes[..self.len]
    }

    fn push(&mut self, level: i32, kind: i32, data: &[u8]) {
        let len = CONTROL_HEADER + data.len();
        let start = aligned(self.len);
        let place = &mut self.bytes[start..start + len];
        place[..size_of::<usize>()].copy_from_slice(&len.to_ne_bytes());
        place[size_of::<usize>()..][..4].copy_from_slice(&level.to_ne_bytes());
        place[size_of::<usize>() + 4..][..4].copy_from_slice(&kind.to_ne_bytes());
        place[CONTROL_HEADER..].copy_from_slice(data);
        self.len = start + len;
    }
}

/// An address as a socket of IPv6 knows it.
pub(crate) fn mapped(address: IpAddr) -> Ipv6Addr {
    match address {
        IpAddr::V4(v4) => v4.to_ipv6_mapped(),
        IpAddr::V6(v6) => v6,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(name: &[u8], control: &[u8], payload: usize, flags: i32) -> Vec<u8> {
        let lengths = [name.len() as i32, control.len() as i32, payload as i32, flags];
        let mut bytes: Vec<u8> = lengths.into_iter().flat_map(i32::to_ne_bytes).collect();
        bytes.extend(name);
        bytes.resize(HEADER_BYTES + NAME_BYTES, 0);
        bytes.extend(control);
        bytes.resize(PAYLOAD + payload, 0);
        bytes
    }

    fn name_v4() -> Vec<u8> {
        let mut name = (libc::AF_INET as u16).to_ne_bytes().to_vec();
        name.extend([0x12, 0x34, 192, 0, 2, 1]);
        name.resize(16, 0);
        name
    }

    fn name_v6(ip: &str, scope: u32) -> Vec<u8> {
        let mut name = (libc::AF_INET6 as u16).to_ne_bytes().to_vec();
        name.extend([0x12, 0x34, 0, 0, 0, 0]);
        name.extend(ip.parse::<Ipv6Addr>().expect("address").octets());
        name.extend(scope.to_ne_bytes());
        name
    }

    fn parse(name: &[u8], control: &[u8], payload: usize) -> Message {
        Message::parse(&message(name, control, payload, 0)).expect("a message")
    }

    fn gro(segment: i32) -> Vec<u8> {
        let mut control = Control::NONE;
        control.push(libc::SOL_UDP, libc::UDP_GRO, &segment.to_ne_bytes());
        control.bytes().to_vec()
    }

    #[test]
    fn a_train_is_told_with_its_segments() {
        let found = parse(&name_v4(), &gro(100), 250);
        assert_eq!((found.len, found.segment), (250, 100));
        assert_eq!(found.peer, "192.0.2.1:4660".parse().expect("address"));
    }

    #[test]
    fn a_train_of_one_is_a_single_datagram() {
        assert_eq!(parse(&name_v4(), &gro(250), 250).segment, 0);
        assert_eq!(parse(&name_v4(), &gro(-1), 250).segment, 0);
        assert_eq!(parse(&name_v4(), &gro(0), 250).segment, 0);
    }

    #[test]
    fn mapped_addresses_come_out_plain_and_local_ones_keep_their_scope() {
        let mapped = parse(&name_v6("::ffff:192.0.2.1", 0), &[], 1);
        assert_eq!(mapped.peer, "192.0.2.1:4660".parse().expect("address"));
        let local = parse(&name_v6("fe80::1", 3), &[], 1);
        let expected = SocketAddrV6::new("fe80::1".parse().expect("address"), 4660, 0, 3);
        assert_eq!(local.peer, expected.into());
    }

    #[test]
    fn what_is_sent_from_an_address_is_received_at_it() {
        for (local, v6) in [("192.0.2.7", false), ("192.0.2.7", true), ("2001:db8::7", true)] {
            let local: IpAddr = local.parse().expect("address");
            let control = Control::from_address(local, v6).with_segment(9);
            assert_eq!(parse(&name_v4(), control.bytes(), 1).local, Some(local));
        }
    }

    #[test]
    fn a_missing_end_is_noticed_of_payload_and_of_control_data() {
        for flag in [libc::MSG_TRUNC, libc::MSG_CTRUNC] {
            let found = Message::parse(&message(&name_v4(), &[], 1, flag)).expect("a message");
            assert!(found.truncated);
        }
    }

    #[test]
    fn nonsense_is_no_message_and_harms_nobody() {
        let whole = message(&name_v4(), &gro(10), 30, 0);
        for len in 0..PAYLOAD {
            assert_eq!(Message::parse(&whole[..len]), None);
        }
        for at in 0..PAYLOAD {
            for value in [0, 1, 0x7f, 0xff] {
                let mut broken = whole.clone();
                broken[at] = value;
                Message::parse(&broken);
            }
        }
        assert_eq!(Message::parse(&message(&[0; 16], &[], 1, 0)), None);
    }
}
