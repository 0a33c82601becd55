//! A relay of datagrams that decides nothing: what anybody pays who passes them on through sockets.
//!
//! `cargo xtask bench --peers` runs it beside the balancers. It has no flow table that forgets, no limits, no
//! counters and no health; it takes as many datagrams as there are in one system call, sends on
//! connected sockets, and answers clients in batches. What it takes is the kernel's share.

use std::collections::HashMap;
use std::io::{self, ErrorKind, IoSlice, IoSliceMut};
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4, UdpSocket};
use std::os::fd::AsRawFd;

use anyhow::{Context, Result, bail};
use clap::Parser;
use nix::errno::Errno;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use nix::sys::socket::sockopt::{RcvBuf, UdpGroSegment, UdpGsoSegment};
use nix::sys::socket::{MsgFlags, MultiHeaders, SockaddrIn, recvmmsg, sendmmsg, setsockopt};

/// Datagrams in one system call.
const BATCH: usize = 64;
/// What is received at once, at most: longer datagrams are cut off, of which the load has none.
const DATAGRAM_BYTES: usize = 2048;
const TRAIN_BYTES: usize = 65_535;
/// As the balancers are set up.
const BUFFER_BYTES: usize = 4 << 20;
/// What epoll says of the listening socket; flows are told of by their number.
const LISTENER: u64 = u64::MAX;

#[derive(Parser)]
struct Arguments {
    /// Where to listen.
    listen: SocketAddrV4,
    /// Whom to pass everything on to.
    endpoint: SocketAddrV4,
    /// Take trains of datagrams of this many bytes each, and pass them on whole.
    #[arg(long, value_name = "BYTES")]
    segment: Option<i32>,
}

struct Relay {
    listener: UdpSocket,
    endpoint: SocketAddrV4,
    segment: Option<i32>,
    epoll: Epoll,
    flows: Vec<Flow>,
    by_client: HashMap<SocketAddrV4, usize>,
    buffers: Vec<Vec<u8>>,
}

struct Flow {
    client: SockaddrIn,
    socket: UdpSocket,
}

fn main() -> Result<()> {
    let mut relay = Relay::new(&Arguments::parse())?;
    loop {
        relay.turn()?;
    }
}

impl Relay {
    fn new(arguments: &Arguments) -> Result<Self> {
        let &Arguments { listen, endpoint, segment } = arguments;
        let listener = UdpSocket::bind(listen).context("cannot listen")?;
        prepare(&listener, segment)?;
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
        epoll.add(&listener, EpollEvent::new(EpollFlags::EPOLLIN, LISTENER))?;
        let bytes = if segment.is_some() { TRAIN_BYTES } else { DATAGRAM_BYTES };
        let buffers = vec![vec![0; bytes]; BATCH];
        let (flows, by_client) = (Vec::new(), HashMap::new());
        Ok(Self { listener, endpoint, segment, epoll, flows, by_client, buffers })
    }

    fn turn(&mut self) -> Result<()> {
        let mut events = [EpollEvent::empty(); 4 * BATCH];
        let count = self.epoll.wait(&mut events, EpollTimeout::NONE)?;
        let (mut is_called, mut ready) = (false, Vec::with_capacity(count));
        for event in &events[..count] {
            match event.data() {
                LISTENER => is_called = true,
                flow => ready.push(flow as usize),
            }
        }
        for flows in ready.chunks(BATCH) {
            self.answer(flows)?;
        }
        if is_called { self.pass_on() } else { Ok(()) }
    }

    /// Passes on what clients have sent.
    fn pass_on(&mut self) -> Result<()> {
        let mut headers = MultiHeaders::<SockaddrIn>::preallocate(BATCH, None);
        let mut slices: Vec<_> =
            self.buffers.iter_mut().map(|buffer| [IoSliceMut::new(buffer)]).collect();
        let (socket, flags) = (self.listener.as_raw_fd(), MsgFlags::MSG_DONTWAIT);
        let arrived: Vec<_> = match recvmmsg(socket, &mut headers, &mut slices, flags, None) {
            Ok(messages) => messages.map(|message| (message.address, message.bytes)).collect(),
            Err(Errno::EAGAIN) => return Ok(()),
            Err(error) => return Err(error).context("cannot receive from clients"),
        };
        for (buffer, (client, bytes)) in arrived.into_iter().enumerate() {
            let client = client.context("a datagram has a sender")?;
            let flow = self.flow(client)?;
            lossy(self.flows[flow].socket.send(&self.buffers[buffer][..bytes]))?;
        }
        Ok(())
    }

    fn flow(&mut self, client: SockaddrIn) -> Result<usize> {
        let key = SocketAddrV4::from(client);
        if let Some(flow) = self.by_client.get(&key) {
            return Ok(*flow);
        }
        let any = if self.endpoint.ip().is_loopback() {
            Ipv4Addr::LOCALHOST
        } else {
            Ipv4Addr::UNSPECIFIED
        };
        let socket = UdpSocket::bind((any, 0))?;
        socket.connect(SocketAddr::V4(self.endpoint))?;
        prepare(&socket, self.segment)?;
        socket.set_nonblocking(true)?;
        let flow = self.flows.len();
        self.epoll.add(&socket, EpollEvent::new(EpollFlags::EPOLLIN, flow as u64))?;
        self.flows.push(Flow { client, socket });
        self.by_client.insert(key, flow);
        Ok(flow)
    }

    /// Answers at most a batch of clients, each with the oldest datagram that has come for it.
    fn answer(&mut self, flows: &[usize]) -> Result<()> {
        let (mut lengths, mut clients) = (Vec::new(), Vec::new());
        for &flow in flows {
            let Flow { client, socket } = &self.flows[flow];
            match socket.recv(&mut self.buffers[lengths.len()]) {
                Ok(bytes) => {
                    lengths.push(bytes);
                    clients.push(Some(*client));
                }
                Err(error) => lossy(Err(error))?,
            }
        }
        let content =
            |(buffer, bytes): (usize, &usize)| [IoSlice::new(&self.buffers[buffer][..*bytes])];
        let slices: Vec<_> = lengths.iter().enumerate().map(content).collect();
        let mut headers = MultiHeaders::preallocate(slices.len(), None);
        let (socket, flags) = (self.listener.as_raw_fd(), MsgFlags::empty());
        sendmmsg(socket, &mut headers, &slices, &clients, [], flags)
            .map(drop)
            .context("cannot answer clients")
    }
}

/// Room for what waits, and trains both ways if there are any.
fn prepare(socket: &UdpSocket, segment: Option<i32>) -> Result<()> {
    setsockopt(socket, RcvBuf, &BUFFER_BYTES)?;
    if let Some(bytes) = segment {
        setsockopt(socket, UdpGroSegment, &true)?;
        setsockopt(socket, UdpGsoSegment, &bytes)?;
    }
    Ok(())
}

/// A datagram may be lost; anything else ends the relay.
fn lossy(result: io::Result<usize>) -> Result<()> {
    match result {
        Ok(_) => Ok(()),
        Err(error)
            if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::ConnectionRefused) =>
        {
            Ok(())
        }
        Err(error) => bail!("cannot pass a datagram on: {error}"),
    }
}
