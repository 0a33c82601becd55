//! How flows, ports and kept decisions lie in a frame.
//!
//! By hand, because there may be millions of them, in the core, which knows no serialisation; field after
//! field, little endian, without padding. What is read is believed to be anything: it may be nonsense, and
//! is never a panic.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6};
use std::time::Duration;

use pointsman_core::ClusterId;
use pointsman_core::boundary::{ListenerId, PortId};
use pointsman_core::handover::{
    HandedDecision, HandedFlow, HandedKey, HandedPort, HandedTarget, HandedVerdict,
};
use pointsman_core::policy::{Method, Source};

use super::wire::nonsense;

/// Bytes that are being laid out.
#[derive(Debug, Default)]
pub(super) struct Writer {
    pub(super) bytes: Vec<u8>,
}

/// Bytes that are being read.
#[derive(Debug)]
pub(super) struct Reader<'a> {
    bytes: &'a [u8],
}

/// Something that has a layout.
pub(super) trait Laid: Sized {
    /// Appends it.
    fn write(&self, to: &mut Writer);
    /// Reads what [`write`](Self::write) has written.
    fn read(from: &mut Reader<'_>) -> io::Result<Self>;
}

impl Writer {
    pub(super) fn put(&mut self, it: &impl Laid) {
        it.write(self);
    }
}

impl<'a> Reader<'a> {
    pub(super) fn new(bytes: &'a [u8]) -> Self {
        Self { bytes }
    }

    pub(super) fn get<T: Laid>(&mut self) -> io::Result<T> {
        T::read(self)
    }

    /// Everything that is left, one after another.
    pub(super) fn rest<T: Laid>(&mut self) -> io::Result<Vec<T>> {
        let mut all = Vec::new();
        while !self.bytes.is_empty() {
            all.push(self.get()?);
        }
        Ok(all)
    }

    fn take<const N: usize>(&mut self) -> io::Result<[u8; N]> {
        let (taken, rest) = self
            .bytes
            .split_first_chunk::<N>()
            .ok_or_else(|| nonsense("a frame that breaks off"))?;
        self.bytes = rest;
        Ok(*taken)
    }
}

/// The error for a number that means nothing.
fn unknown(what: &str) -> io::Error {
    nonsense(&format!("a frame with an unknown {what}"))
}

impl Laid for u8 {
    fn write(&self, to: &mut Writer) {
        to.bytes.push(*self);
    }

    fn read(from: &mut Reader<'_>) -> io::Result<Self> {
        from.take().map(|[byte]| byte)
    }
}

impl Laid for u16 {
    fn write(&self, to: &mut Writer) {
        to.bytes.extend(self.to_le_bytes());
    }

    fn read(from: &mut Reader<'_>) -> io::Result<Self> {
        from.take().map(Self::from_le_bytes)
    }
}

impl Laid for u32 {
    fn write(&self, to: &mut Writer) {
        to.bytes.extend(self.to_le_bytes());
    }

    fn read(from: &mut Reader<'_>) -> io::Result<Self> {
        from.take().map(Self::from_le_bytes)
    }
}

impl Laid for u64 {
    fn write(&self, to: &mut Writer) {
        to.bytes.extend(self.to_le_bytes());
    }

    fn read(from: &mut Reader<'_>) -> io::Result<Self> {
        from.take().map(Self::from_le_bytes)
    }
}

impl Laid for bool {
    fn write(&self, to: &mut Writer) {
        to.bytes.push(u8::from(*self));
    }

    fn read(from: &mut Reader<'_>) -> io::Result<Self> {
        match from.get::<u8>()? {
            0 => Ok(false),
            1 => Ok(true),
            _ => Err(unknown("truth")),
        }
    }
}

impl<T: Laid> Laid for Option<T> {
    fn write(&self, to: &mut Writer) {
        to.put(&self.is_some());
        self.iter().for_each(|it| to.put(it));
    }

    fn read(from: &mut Reader<'_>) -> io::Result<Self> {
        from.get::<bool>()?.then(|| from.get()).transpose()
    }
}

impl<T: Laid> Laid for [T; 2] {
    fn write(&self, to: &mut Writer) {
        self.iter().for_each(|it| to.put(it));
    }

    fn read(from: &mut Reader<'_>) -> io::Result<Self> {
        Ok([from.get()?, from.get()?])
    }
}

impl Laid for Duration {
    fn write(&self, to: &mut Writer) {
        to.put(&u64::try_from(self.as_nanos()).unwrap_or(u64::MAX));
    }

    fn read(from: &mut Reader<'_>) -> io::Result<Self> {
        from.get().map(Self::from_nanos)
    }
}

impl Laid for IpAddr {
    fn write(&self, to: &mut Writer) {
        match self {
            Self::V4(address) => {
                to.put(&4_u8);
                to.bytes.extend(address.octets());
            }
            Self::V6(address) => {
                to.put(&6_u8);
                to.bytes.extend(address.octets());
            }
        }
    }

    fn read(from: &mut Reader<'_>) -> io::Result<Self> {
        match from.get::<u8>()? {
            4 => Ok(Self::V4(Ipv4Addr::from(from.take::<4>()?))),
            6 => Ok(Self::V6(Ipv6Addr::from(from.take::<16>()?))),
            _ => Err(unknown("family of addresses")),
        }
    }
}

impl Laid for SocketAddr {
    fn write(&self, to: &mut Writer) {
        to.put(&self.ip());
        to.put(&self.port());
        if let Self::V6(address) = self {
            to.put(&[address.flowinfo(), address.scope_id()]);
        }
    }

    fn read(from: &mut Reader<'_>) -> io::Result<Self> {
        let (ip, port) = (from.get()?, from.get()?);
        let IpAddr::V6(ip) = ip else { return Ok(Self::new(ip, port)) };
        let [flowinfo, scope_id] = from.get()?;
        Ok(Self::V6(SocketAddrV6::new(ip, port, flowinfo, scope_id)))
    }
}

impl Laid for ListenerId {
    fn write(&self, to: &mut Writer) {
        to.put(&self.0);
    }

    fn read(from: &mut Reader<'_>) -> io::Result<Self> {
        from.get().map(Self)
    }
}

impl Laid for ClusterId {
    fn write(&self, to: &mut Writer) {
        to.put(&self.0);
    }

    fn read(from: &mut Reader<'_>) -> io::Result<Self> {
        from.get().map(Self)
    }
}

impl Laid for PortId {
    fn write(&self, to: &mut Writer) {
        to.put(&self.0);
    }

    fn read(from: &mut Reader<'_>) -> io::Result<Self> {
        from.get().map(Self)
    }
}

impl Laid for Source {
    fn write(&self, to: &mut Writer) {
        to.put(&(self.index() as u8));
    }

    fn read(from: &mut Reader<'_>) -> io::Result<Self> {
        let index = usize::from(from.get::<u8>()?);
        Self::ALL.get(index).copied().ok_or_else(|| unknown("source of a decision"))
    }
}

impl Laid for Method {
    fn write(&self, to: &mut Writer) {
        let Self { idle_timeout, throttle_kib_s, announce, tag } = self;
        to.put(idle_timeout);
        to.put(throttle_kib_s);
        to.put(announce);
        to.put(tag);
    }

    fn read(from: &mut Reader<'_>) -> io::Result<Self> {
        Ok(Self {
            idle_timeout: from.get()?,
            throttle_kib_s: from.get()?,
            announce: from.get()?,
            tag: from.get()?,
        })
    }
}

impl Laid for HandedPort {
    fn write(&self, to: &mut Writer) {
        let Self { port, listener, connected } = self;
        to.put(port);
        to.put(listener);
        to.put(connected);
    }

    fn read(from: &mut Reader<'_>) -> io::Result<Self> {
        Ok(Self { port: from.get()?, listener: from.get()?, connected: from.get()? })
    }
}

impl Laid for HandedTarget {
    fn write(&self, to: &mut Writer) {
        match self {
            Self::Endpoint { cluster, address, port } => {
                to.put(&0_u8);
                to.put(cluster);
                to.put(address);
                to.put(port);
            }
            Self::Denied { reset, remaining } => {
                to.put(&1_u8);
                to.put(reset);
                to.put(remaining);
            }
        }
    }

    fn read(from: &mut Reader<'_>) -> io::Result<Self> {
        match from.get::<u8>()? {
            0 => {
                Ok(Self::Endpoint { cluster: from.get()?, address: from.get()?, port: from.get()? })
            }
            1 => Ok(Self::Denied { reset: from.get()?, remaining: from.get()? }),
            _ => Err(unknown("target of a flow")),
        }
    }
}

impl Laid for HandedFlow {
    fn write(&self, to: &mut Writer) {
        let Self { listener, client, local, target, method, keys, policy_generation, .. } = self;
        let Self { source, age, silent, bytes, datagrams, .. } = self;
        let Self { hidden, resent, keeps_when_answered, .. } = self;
        to.put(listener);
        to.put(client);
        to.put(local);
        to.put(target);
        to.put(method);
        to.put(keys);
        to.put(policy_generation);
        to.put(source);
        to.put(&[*age, *silent]);
        to.put(bytes);
        to.put(datagrams);
        to.put(&[*hidden, *resent]);
        to.put(keeps_when_answered);
    }

    fn read(from: &mut Reader<'_>) -> io::Result<Self> {
        let (listener, client, local) = (from.get()?, from.get()?, from.get()?);
        let (target, method, keys) = (from.get()?, from.get()?, from.get()?);
        let (policy_generation, source) = (from.get()?, from.get()?);
        let [age, silent] = from.get()?;
        let (bytes, datagrams) = (from.get()?, from.get()?);
        let [hidden, resent] = from.get()?;
        Ok(Self {
            listener,
            client,
            local,
            target,
            method,
            keys,
            policy_generation,
            source,
            age,
            silent,
            bytes,
            datagrams,
            hidden,
            resent,
            keeps_when_answered: from.get()?,
        })
    }
}

impl Laid for HandedKey {
    fn write(&self, to: &mut Writer) {
        match self {
            Self::Client(address) => {
                to.put(&0_u8);
                to.put(address);
            }
            Self::Key(hash) => {
                to.put(&1_u8);
                to.put(hash);
            }
        }
    }

    fn read(from: &mut Reader<'_>) -> io::Result<Self> {
        match from.get::<u8>()? {
            0 => from.get().map(Self::Client),
            1 => from.get().map(Self::Key),
            _ => Err(unknown("key of a decision")),
        }
    }
}

impl Laid for HandedVerdict {
    fn write(&self, to: &mut Writer) {
        match self {
            Self::Forward(address) => {
                to.put(&0_u8);
                to.put(address);
            }
            Self::Reset => to.put(&1_u8),
            Self::Drop => to.put(&2_u8),
        }
    }

    fn read(from: &mut Reader<'_>) -> io::Result<Self> {
        match from.get::<u8>()? {
            0 => from.get().map(Self::Forward),
            1 => Ok(Self::Reset),
            2 => Ok(Self::Drop),
            _ => Err(unknown("verdict")),
        }
    }
}

impl Laid for HandedDecision {
    fn write(&self, to: &mut Writer) {
        let Self { cluster, whom, verdict, method, policy_generation, remaining, sliding } = self;
        to.put(cluster);
        to.put(whom);
        to.put(verdict);
        to.put(method);
        to.put(policy_generation);
        to.put(remaining);
        to.put(sliding);
    }

    fn read(from: &mut Reader<'_>) -> io::Result<Self> {
        Ok(Self {
            cluster: from.get()?,
            whom: from.get()?,
            verdict: from.get()?,
            method: from.get()?,
            policy_generation: from.get()?,
            remaining: from.get()?,
            sliding: from.get()?,
        })
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// Flows that differ in everything that can differ.
    pub(in crate::upgrade) fn flow(number: u32) -> HandedFlow {
        let cluster = ClusterId(number as u16 % 2);
        let is_v6 = number.is_multiple_of(3);
        let address = if is_v6 { "[fe80::1%7]:53" } else { "10.0.0.1:53" };
        let remaining = Duration::from_millis(number.into());
        HandedFlow {
            listener: ListenerId(number as u16 % 2),
            client: SocketAddr::from(([10, (number >> 16) as u8, (number >> 8) as u8, 1], 7)),
            local: if is_v6 { Ipv6Addr::LOCALHOST.into() } else { Ipv4Addr::LOCALHOST.into() },
            target: match number % 5 {
                4 => HandedTarget::Denied { reset: true, remaining },
                _ => HandedTarget::Endpoint {
                    cluster,
                    address: address.parse().expect("an address"),
                    port: PortId(number),
                },
            },
            method: Method { tag: number, throttle_kib_s: Some(number), ..Method::DEFAULT },
            keys: [number.is_multiple_of(2).then_some(number.into()), None],
            policy_generation: number,
            source: Source::ALL[number as usize % Source::ALL.len()],
            age: Duration::from_secs(number.into()),
            silent: remaining,
            bytes: [number.into(), u64::MAX],
            datagrams: [number, u32::MAX],
            hidden: number.is_multiple_of(2),
            resent: number % 2 == 1,
            keeps_when_answered: true,
        }
    }

    fn decision(number: u32) -> HandedDecision {
        let verdicts = [
            HandedVerdict::Forward(SocketAddr::from(([10, 0, 0, 1], 80))),
            HandedVerdict::Reset,
            HandedVerdict::Drop,
        ];
        let whom = match number % 2 {
            0 => HandedKey::Client(Ipv6Addr::from(u128::from(number)).into()),
            _ => HandedKey::Key(number.into()),
        };
        HandedDecision {
            cluster: ClusterId(3),
            whom,
            verdict: verdicts[number as usize % 3],
            method: Method { idle_timeout: Some(Duration::from_secs(1)), ..Method::DEFAULT },
            policy_generation: number,
            remaining: Duration::from_millis(number.into()),
            sliding: number.is_multiple_of(4).then_some(Duration::MAX),
        }
    }

    fn laid<T: Laid>(all: &[T]) -> Vec<u8> {
        let mut writer = Writer::default();
        all.iter().for_each(|it| writer.put(it));
        writer.bytes
    }

    #[test]
    fn what_is_written_is_read_again() {
        let flows: Vec<_> = (0..60).map(flow).collect();
        assert_eq!(Reader::new(&laid(&flows)).rest::<HandedFlow>().expect("flows"), flows);
        let ports: Vec<_> = (0..9)
            .map(|number| HandedPort {
                port: PortId(number),
                listener: ListenerId(number as u16),
                connected: number.is_multiple_of(2),
            })
            .collect();
        assert_eq!(Reader::new(&laid(&ports)).rest::<HandedPort>().expect("ports"), ports);
        let kept: Vec<_> = (0..12).map(decision).collect();
        let read = Reader::new(&laid(&kept)).rest::<HandedDecision>().expect("decisions");
        assert_eq!(read.len(), kept.len());
        for (read, kept) in read.iter().zip(&kept) {
            // The longest that is told are some centuries.
            let sliding = kept.sliding.map(|it| it.min(Duration::from_nanos(u64::MAX)));
            assert_eq!(*read, HandedDecision { sliding, ..*kept });
        }
    }

    #[test]
    fn no_damaged_byte_is_more_than_an_error() {
        let whole = laid(&[flow(1), flow(3), flow(4)]);
        for end in 0..whole.len() {
            let read = Reader::new(&whole[..end]).rest::<HandedFlow>();
            assert!(read.is_err() || read.is_ok_and(|flows| flows.len() < 3));
        }
        for (place, value) in (0..whole.len()).flat_map(|at| [0, 1, 7, 255].map(|it| (at, it))) {
            let mut damaged = whole.clone();
            damaged[place] = value;
            let _ = Reader::new(&damaged).rest::<HandedFlow>();
            let _ = Reader::new(&damaged).rest::<HandedDecision>();
        }
    }
}
