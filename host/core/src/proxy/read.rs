//! Reads a header, whatever pieces it comes in.
//!
//! ```text
//!   "PROXY "  ─▶ line up to its end, 107 bytes at most           ─▶ addresses
//!   signature ─▶ 16 bytes ─▶ addresses ─▶ values, up to 64 KiB   ─▶ addresses
//! ```
//!
//! The reader keeps the line or the addresses and forgets everything else as it comes: a header of
//! the greatest length takes no more memory than the shortest, so values are skipped and never a
//! reason to refuse. They must fit the header's length, though, and the checksum, where there is one,
//! must be right (section 2.2.3).

use core::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use super::crc32c::Crc32c;
use super::{
    COMMAND_LOCAL, COMMAND_PROXY, FIXED_BYTES, LINE_BYTES_MAX, Route, SIGNATURE, VALUE_CRC32C,
    VALUE_PREFIX_BYTES,
};

/// What version 1 begins with.
const WORD: &[u8; 6] = b"PROXY ";
const CHECKSUM_BYTES: u16 = 4;

/// What has come of a header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reading {
    /// Not all of it.
    More,
    /// All of it. Without a route the connection is the sender's own (a health check), or of a
    /// family that is not TCP over IP, and its real addresses hold.
    Whole(Option<Route>),
    /// It is none.
    Invalid,
}

/// Reads one header.
#[derive(Debug)]
pub struct Reader {
    /// The line of version 1, or of version 2 everything up to and with the addresses.
    head: [u8; LINE_BYTES_MAX],
    held: usize,
    /// What is after the addresses, once they are all there.
    tail: Option<Tail>,
}

impl Default for Reader {
    fn default() -> Self {
        Self::new()
    }
}

impl Reader {
    /// A reader that has seen nothing.
    #[must_use]
    pub const fn new() -> Self {
        Self { head: [0; LINE_BYTES_MAX], held: 0, tail: None }
    }

    /// Reads the next bytes. Says how many of them are the header's: all, until it is whole. Nothing
    /// may be read after an answer other than [`Reading::More`].
    pub fn read(&mut self, bytes: &[u8]) -> (usize, Reading) {
        for (place, byte) in bytes.iter().enumerate() {
            match self.step(*byte) {
                Reading::More => {}
                reading => return (place + 1, reading),
            }
        }
        (bytes.len(), Reading::More)
    }

    fn step(&mut self, byte: u8) -> Reading {
        if let Some(tail) = &mut self.tail {
            return tail.step(byte);
        }
        self.head[self.held] = byte;
        self.held += 1;
        if self.head[0] == WORD[0] { self.line() } else { self.binary() }
    }

    fn head(&self) -> &[u8] {
        &self.head[..self.held]
    }

    fn line(&self) -> Reading {
        let line = self.head();
        if !agree(line, WORD) {
            return Reading::Invalid;
        }
        match line.strip_suffix(b"\r\n") {
            Some(line) => route_of_line(line).map_or(Reading::Invalid, Reading::Whole),
            None if line.ends_with(b"\n") || line.len() == LINE_BYTES_MAX => Reading::Invalid,
            None => Reading::More,
        }
    }

    fn binary(&mut self) -> Reading {
        if !agree(self.head(), &SIGNATURE) {
            return Reading::Invalid;
        }
        if self.held < FIXED_BYTES {
            return Reading::More;
        }
        let length = u16::from_be_bytes([self.head[14], self.head[15]]);
        let Some(family) = Family::of(self.head[12], self.head[13]) else {
            return Reading::Invalid;
        };
        let addresses = family.address_bytes();
        if length < addresses {
            return Reading::Invalid;
        }
        if self.held < FIXED_BYTES + usize::from(family.held_bytes()) {
            return Reading::More;
        }
        let (left, route) = (length - family.held_bytes(), family.route(&self.head));
        let mut crc = Crc32c::NEW;
        self.head().iter().for_each(|byte| crc.add(*byte));
        let values =
            family.has_values().then_some(Values { place: Place::Prefix(0), crc, sum: None });
        let tail = Tail { left, route, values };
        if left == 0 {
            return tail.end();
        }
        self.tail = Some(tail);
        Reading::More
    }
}

/// Whether one of two is the beginning of the other.
fn agree(one: &[u8], other: &[u8]) -> bool {
    one.iter().zip(other).all(|(one, other)| one == other)
}

/// What a header of version 2 is about (sections 2.2 and 2.2.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Family {
    /// The sender's own connection: whatever follows means nothing.
    Local,
    /// A connection of which nothing is known.
    Unspecified,
    V4 {
        is_stream: bool,
    },
    V6 {
        is_stream: bool,
    },
    Unix,
}

impl Family {
    /// None for what must be refused.
    fn of(command: u8, family: u8) -> Option<Self> {
        match (command, family) {
            (COMMAND_LOCAL, _) => Some(Self::Local),
            (COMMAND_PROXY, 0x00) => Some(Self::Unspecified),
            (COMMAND_PROXY, 0x11 | 0x12) => Some(Self::V4 { is_stream: family == 0x11 }),
            (COMMAND_PROXY, 0x21 | 0x22) => Some(Self::V6 { is_stream: family == 0x21 }),
            (COMMAND_PROXY, 0x31 | 0x32) => Some(Self::Unix),
            _ => None,
        }
    }

    const fn address_bytes(self) -> u16 {
        match self {
            Self::Local | Self::Unspecified => 0,
            Self::V4 { .. } => 12,
            Self::V6 { .. } => 36,
            Self::Unix => 216,
        }
    }

    /// Bytes of addresses that are of any use.
    const fn held_bytes(self) -> u16 {
        match self {
            Self::Local | Self::Unspecified | Self::Unix => 0,
            Self::V4 { .. } | Self::V6 { .. } => self.address_bytes(),
        }
    }

    const fn has_values(self) -> bool {
        self.held_bytes() > 0
    }

    /// The addresses, where they are those of a stream over IP.
    fn route(self, head: &[u8; LINE_BYTES_MAX]) -> Option<Route> {
        let at = FIXED_BYTES;
        let port = |at: usize| u16::from_be_bytes([head[at], head[at + 1]]);
        let v4 = |at: usize| Ipv4Addr::from(bytes::<4>(head, at)).into();
        let v6 = |at: usize| Ipv6Addr::from(bytes::<16>(head, at)).into();
        match self {
            Self::V4 { is_stream: true } => {
                Some(route((v4(at), port(at + 8)), (v4(at + 4), port(at + 10))))
            }
            Self::V6 { is_stream: true } => {
                Some(route((v6(at), port(at + 32)), (v6(at + 16), port(at + 34))))
            }
            _ => None,
        }
    }
}

fn bytes<const BYTES: usize>(head: &[u8; LINE_BYTES_MAX], at: usize) -> [u8; BYTES] {
    core::array::from_fn(|place| head[at + place])
}

/// A route between addresses in their shortest form.
fn route(client: (IpAddr, u16), local: (IpAddr, u16)) -> Route {
    let address = |(ip, port): (IpAddr, u16)| SocketAddr::new(ip.to_canonical(), port);
    Route { client: address(client), local: address(local) }
}

/// What comes after the addresses.
#[derive(Debug)]
struct Tail {
    left: u16,
    route: Option<Route>,
    /// Where the values are, unless what follows is of no meaning.
    values: Option<Values>,
}

impl Tail {
    fn step(&mut self, byte: u8) -> Reading {
        self.left -= 1;
        if let Some(values) = &mut self.values
            && !values.step(byte, self.left)
        {
            return Reading::Invalid;
        }
        if self.left == 0 { self.end() } else { Reading::More }
    }

    fn end(&self) -> Reading {
        match &self.values {
            Some(values) if !values.is_sound() => Reading::Invalid,
            _ => Reading::Whole(self.route),
        }
    }
}

/// A walk over the values, one byte after the other.
#[derive(Debug)]
struct Values {
    place: Place,
    /// The checksum of everything so far, the bytes of the checksum itself taken for zeros.
    crc: Crc32c,
    /// What it should be.
    sum: Option<u32>,
}

#[derive(Debug, Clone, Copy)]
enum Place {
    /// In a value's type and length; the bytes of them so far, the first of which is 1.
    Prefix(u32),
    Value {
        is_sum: bool,
        left: u16,
    },
}

impl Values {
    /// Takes in a byte, after which `left` follow. False if they cannot be values.
    fn step(&mut self, byte: u8, left: u16) -> bool {
        let is_sum = matches!(self.place, Place::Value { is_sum: true, .. });
        self.crc.add(if is_sum { 0 } else { byte });
        match &mut self.place {
            Place::Prefix(bytes) => {
                let before = if *bytes == 0 { 1 } else { *bytes };
                *bytes = before << 8 | u32::from(byte);
                let is_whole = *bytes >> (8 * VALUE_PREFIX_BYTES) == 1;
                !is_whole || self.begin(left)
            }
            Place::Value { left: value_left, .. } => {
                *value_left -= 1;
                let is_over = *value_left == 0;
                if is_sum {
                    self.sum = Some(self.sum.unwrap_or(0) << 8 | u32::from(byte));
                }
                if is_over {
                    self.place = Place::Prefix(0);
                }
                true
            }
        }
    }

    /// Begins a value whose type and length are known.
    fn begin(&mut self, left: u16) -> bool {
        let Place::Prefix(prefix) = self.place else { return true };
        let [_, kind, high, low] = prefix.to_be_bytes();
        let length = u16::from_be_bytes([high, low]);
        let is_sum = kind == VALUE_CRC32C;
        if length > left || (is_sum && (length != CHECKSUM_BYTES || self.sum.is_some())) {
            return false;
        }
        self.place = match length {
            0 => Place::Prefix(0),
            left => Place::Value { is_sum, left },
        };
        true
    }

    fn is_sound(&self) -> bool {
        matches!(self.place, Place::Prefix(0)) && self.sum.is_none_or(|sum| sum == self.crc.value())
    }
}

/// The route in a line of version 1, without its line break (section 2.1). None if it is no such
/// line.
fn route_of_line(line: &[u8]) -> Option<Option<Route>> {
    let rest = line.strip_prefix(WORD)?;
    // Whatever follows is to be ignored.
    if matches!(rest.strip_prefix(b"UNKNOWN"), Some([] | [b' ', ..])) {
        return Some(None);
    }
    let mut words = core::str::from_utf8(rest).ok()?.split(' ');
    let (client, local) = match words.next()? {
        "TCP4" => (v4(words.next()?)?, v4(words.next()?)?),
        "TCP6" => (v6(words.next()?)?, v6(words.next()?)?),
        _ => return None,
    };
    let ports = (number(words.next()?)?, number(words.next()?)?);
    words.next().is_none().then(|| Some(route((client, ports.0), (local, ports.1))))
}

fn v4(word: &str) -> Option<IpAddr> {
    word.parse().ok().map(IpAddr::V4)
}

fn v6(word: &str) -> Option<IpAddr> {
    word.parse().ok().map(IpAddr::V6)
}

/// A port in decimal digits, without zeros before it.
fn number(word: &str) -> Option<u16> {
    let is_plain = word.bytes().all(|byte| byte.is_ascii_digit());
    let is_short = word == "0" || !word.starts_with('0');
    if is_plain && is_short { word.parse().ok() } else { None }
}
