//! A balancer's place, taken by the tests: it submits ops, and collects what becomes of them.
#![allow(dead_code, reason = "every scenario uses its own part")]

use std::fs::File;
use std::io::Read;
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::{IntoRawFd, OwnedFd};
use std::process::Command;
use std::time::Duration;

use pointsman_core::boundary::{
    Accepted, Buffer, Completion, DatagramSocket, Goodbye, Link, ListenerId, Op, Path, Pool,
    PoolSizes, PortKind, Train,
};
use pointsman_ring::{Clock, Ring, RingConfig, bind_tcp, bind_udp};

pub(crate) const LISTENER: ListenerId = ListenerId(0);

/// A ring with room for `links` links and the given buffers.
pub(crate) fn ring_with(links: u32, small: u32, bulk: u32) -> Ring {
    Ring::new(&RingConfig {
        links_max: links,
        listeners_max: 2,
        ports_max: 0,
        buffers: PoolSizes { small, bulk },
        datagram_buffers: 0,
    })
    .expect("these tests need io_uring")
}

/// A ring for a few links.
pub(crate) fn ring() -> Ring {
    ring_with(16, 1024, 64)
}

pub(crate) fn link(index: u32) -> Link {
    Link::from_index(index)
}

/// A listening socket and where it listens.
pub(crate) fn listening() -> (OwnedFd, SocketAddr) {
    let socket = bind_tcp("127.0.0.1:0".parse().expect("address"), 1024).expect("bind");
    let listener = TcpListener::from(socket);
    let address = listener.local_addr().expect("address");
    (listener.into(), address)
}

/// Two ends of one TCP connection: the ring's and the peer's.
pub(crate) fn pair() -> (Accepted, TcpStream) {
    let (listener, address) = listening();
    let peer = TcpStream::connect(address).expect("connect");
    let (ours, _) = TcpListener::from(listener).accept().expect("accept");
    ours.set_nodelay(true).expect("option");
    (Accepted::new(ours.into_raw_fd()), peer)
}

/// Gives a link a connection and returns the peer's end.
pub(crate) fn adopt(ring: &mut Ring, link: Link) -> TcpStream {
    let (socket, peer) = pair();
    submit(ring, [Op::Adopt { link, socket }]);
    peer
}

pub(crate) fn submit<const N: usize>(ring: &mut Ring, ops: [Op; N]) {
    ring.submit(ops.into_iter());
}

/// One turn. Panics if nothing happens for long: the scenario is stuck.
pub(crate) fn turn(ring: &mut Ring) -> Vec<Completion> {
    let deadline = Clock.now() + Duration::from_secs(20);
    loop {
        ring.wait(Some(deadline)).expect("wait");
        let completions: Vec<_> = ring.reap(256).collect();
        if !completions.is_empty() {
            return completions;
        }
        assert!(Clock.now() < deadline, "nothing happens");
    }
}

/// Turns until `count` completions have come.
pub(crate) fn collect(ring: &mut Ring, count: usize) -> Vec<Completion> {
    let mut all = Vec::new();
    while all.len() < count {
        all.extend(turn(ring));
    }
    assert_eq!(all.len(), count, "{all:?}");
    all
}

/// One turn that must not bring anything.
pub(crate) fn quiet(ring: &mut Ring) {
    let deadline = Clock.now() + Duration::from_millis(20);
    while Clock.now() < deadline {
        ring.wait(Some(deadline)).expect("wait");
        let completions: Vec<_> = ring.reap(256).collect();
        assert!(completions.is_empty(), "{completions:?}");
    }
}

/// Receives `bytes` bytes on a link, as buffers the test then holds.
pub(crate) fn receive(ring: &mut Ring, link: Link, pool: Pool, bytes: u32) -> Vec<Buffer> {
    submit(ring, [Op::Receive { link, pool, credit: bytes }]);
    let mut buffers = Vec::new();
    loop {
        for completion in turn(ring) {
            match completion {
                Completion::Received { buffer, .. } => buffers.push(buffer),
                Completion::ReceiveEnded { .. } => {
                    assert_eq!(total(&buffers), bytes);
                    return buffers;
                }
                other => panic!("{other:?}"),
            }
        }
    }
}

pub(crate) fn total(buffers: &[Buffer]) -> u32 {
    buffers.iter().map(Buffer::len).sum()
}

/// Sends buffers as one run.
pub(crate) fn send(ring: &mut Ring, link: Link, buffers: Vec<Buffer>) {
    let last = buffers.len() - 1;
    let sends = buffers.into_iter().enumerate();
    ring.submit(sends.map(|(at, buffer)| Op::Send { link, buffer, more: at < last }));
}

/// Closes links and waits for their last completion; what comes before it is returned.
pub(crate) fn close(ring: &mut Ring, closing: Link, goodbye: Goodbye) -> Vec<Completion> {
    submit(ring, [Op::Close { link: closing, goodbye }]);
    let mut before = Vec::new();
    loop {
        for completion in turn(ring) {
            if completion == (Completion::Closed { link: closing }) {
                return before;
            }
            before.push(completion);
        }
    }
}

pub(crate) fn recycle(ring: &mut Ring, buffers: Vec<Buffer>) {
    ring.submit(buffers.into_iter().map(|buffer| Op::Recycle { buffer }));
}

/// Bytes whose order can be told.
pub(crate) fn pattern(len: usize) -> Vec<u8> {
    (0..len).map(|at| ((at / 7) ^ (at / 4096)) as u8).collect()
}

/// Reads exactly `len` bytes.
pub(crate) fn read(peer: &mut TcpStream, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    peer.read_exact(&mut bytes).expect("read");
    bytes
}

/// Ends a peer's connection with a reset.
pub(crate) fn reset(ring: &mut Ring, peer: TcpStream) {
    let socket = Accepted::new(peer.into_raw_fd());
    submit(ring, [Op::Refuse { socket, goodbye: Goodbye::Reset }]);
}

/// An address that never answers, for as long as the sockets live: its backlog is full, and the
/// kernel drops what comes.
pub(crate) fn black_hole() -> (OwnedFd, TcpStream, SocketAddr) {
    let socket = bind_tcp("127.0.0.1:0".parse().expect("address"), 0).expect("bind");
    let listener = TcpListener::from(socket);
    let address = listener.local_addr().expect("address");
    let only = TcpStream::connect(address).expect("connect");
    (listener.into(), only, address)
}

/// How many descriptors this process has open.
pub(crate) fn open_descriptors() -> usize {
    std::fs::read_dir("/proc/self/fd").expect("proc").count()
}

/// Runs a scenario in a process of its own, which may have 256 descriptors open: it counts them or
/// runs out of them, and no other test may interfere.
pub(crate) fn alone(test: &str, scenario: impl FnOnce()) {
    const ALONE: &str = "POINTSMAN_TEST_ALONE";
    if std::env::var_os(ALONE).is_some() {
        return scenario();
    }
    let program = std::env::current_exe().expect("this program");
    let output = Command::new("sh")
        .args(["-c", "ulimit -n 256; exec \"$0\" \"$@\""])
        .arg(program)
        .args(["--exact", test, "--nocapture", "--test-threads=1"])
        .env(ALONE, "1")
        .output()
        .expect("a process");
    let said = String::from_utf8_lossy(&output.stdout);
    let complained = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}{complained}");
    assert!(said.contains("1 passed"), "the scenario is named after its test: {said}");
}

/// Opens files until only `count` descriptors are left.
pub(crate) fn leave_descriptors(count: usize) {
    let mut files: Vec<_> = std::iter::from_fn(|| File::open("/dev/null").ok()).collect();
    let kept = files.len() - count;
    files.drain(..kept).for_each(std::mem::forget);
}

/// A ring for a few datagram sockets.
pub(crate) fn datagram_ring(buffers: u32) -> Ring {
    datagram_ring_with(buffers, 64)
}

/// The same for more of them.
pub(crate) fn datagram_ring_with(buffers: u32, ports: u32) -> Ring {
    Ring::new(&RingConfig {
        links_max: 2,
        listeners_max: 2,
        ports_max: ports,
        buffers: PoolSizes { small: 16, bulk: 1 },
        datagram_buffers: buffers,
    })
    .expect("these tests need io_uring")
}

/// Makes the ring's listener one of datagrams, and says where it listens.
pub(crate) fn listen_datagrams(ring: &mut Ring, address: &str, offload: bool) -> SocketAddr {
    let socket = UdpSocket::from(bind_udp(address.parse().expect("address")).expect("bind"));
    let address = socket.local_addr().expect("address");
    ring.listen_datagrams(LISTENER, socket.into(), offload).expect("listen");
    address
}

/// A peer of the ring's, which gives up waiting before the test is stuck.
pub(crate) fn udp_peer(address: &str) -> UdpSocket {
    let peer = UdpSocket::bind(address).expect("bind");
    peer.set_read_timeout(Some(Duration::from_secs(20))).expect("option");
    peer
}

/// Datagrams that have come: where, on which path, and as what.
pub(crate) type Came = (DatagramSocket, Path, Train);

/// The next datagrams. Nothing else may happen.
pub(crate) fn came(ring: &mut Ring) -> Came {
    let [completion] = <[_; 1]>::try_from(collect(ring, 1)).expect("one completion");
    match completion {
        Completion::Datagrams { socket, path, train } => (socket, path, train),
        other => panic!("{other:?}"),
    }
}

/// What a peer receives next.
pub(crate) fn receive_datagram(peer: &UdpSocket) -> (Vec<u8>, SocketAddr) {
    let mut bytes = vec![0; 1 << 16];
    let (len, from) = peer.recv_from(&mut bytes).expect("a datagram");
    bytes.truncate(len);
    (bytes, from)
}

pub(crate) fn port_kind(towards: SocketAddr) -> PortKind {
    PortKind { towards, connected: false, from: None, makes_way: false, offload: false }
}
