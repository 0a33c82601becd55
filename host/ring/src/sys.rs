//! The system calls that neither `std` nor the crate `io-uring` makes, each behind a safe function.
//!
//! Sockets stay blocking on purpose: on a non-blocking one the kernel answers a request with
//! `EAGAIN` instead of waiting for it inside the ring.
#![allow(unsafe_code)]

use std::io;
use std::net::{SocketAddr, SocketAddrV6, TcpStream, UdpSocket};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use pointsman_core::Instant;
use pointsman_core::boundary::{Goodbye, PortKind};

use crate::RingError;
use crate::message;

/// The queue of a datagram socket: bursts wait there while the worker is at other things.
const DATAGRAM_QUEUE_BYTES: i32 = 4 * 1024 * 1024;

/// The first descriptor that is neither standard input, output nor error.
const INHERITED_START: RawFd = 3;

/// The size and the alignment of a large page.
const LARGE_PAGE_BYTES: usize = 2 * 1024 * 1024;

/// The worker's clock: `CLOCK_MONOTONIC`, whose origin is the kernel's.
#[derive(Debug, Clone, Copy, Default)]
pub struct Clock;

impl Clock {
    /// Reads the clock.
    #[must_use]
    pub fn now(self) -> Instant {
        let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
        // SAFETY: the kernel writes one `timespec`, which outlives the call.
        unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &raw mut time) };
        Instant::from_nanos(
            time.tv_sec.cast_unsigned() * 1_000_000_000 + time.tv_nsec.cast_unsigned(),
        )
    }
}

/// How many descriptors this process may have open.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DescriptorLimit {
    /// The limit in force.
    pub soft: u64,
    /// What it can be raised to without privileges.
    pub hard: u64,
}

/// Reads the limit of open descriptors.
///
/// # Errors
/// The kernel refuses to say, which a sandbox may cause.
pub fn descriptor_limit() -> io::Result<DescriptorLimit> {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: the kernel writes one `rlimit`, which outlives the call.
    check(unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit) })?;
    Ok(DescriptorLimit { soft: limit.rlim_cur, hard: limit.rlim_max })
}

/// Raises the soft limit of open descriptors to the hard one, and returns the soft limit as it
/// was before and as it is now.
///
/// # Errors
/// The limit can be neither read nor set.
pub fn raise_descriptor_limit() -> io::Result<(u64, u64)> {
    let before = descriptor_limit()?;
    set_descriptor_limit(DescriptorLimit { soft: before.hard, ..before })?;
    Ok((before.soft, before.hard))
}

fn set_descriptor_limit(limit: DescriptorLimit) -> io::Result<()> {
    let raw = libc::rlimit { rlim_cur: limit.soft, rlim_max: limit.hard };
    // SAFETY: the kernel reads one `rlimit`, which outlives the call.
    check(unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &raw const raw) })?;
    Ok(())
}

/// Makes a listening socket for one worker: `SO_REUSEPORT`, so that every worker has its own, and
/// `TCP_NODELAY`, which accepted sockets inherit. An IPv6 address takes IPv4 clients too.
///
/// # Errors
/// The address is taken, is not this machine's, or needs a privilege.
pub fn bind_tcp(address: SocketAddr, backlog: i32) -> Result<OwnedFd, RingError> {
    listening_socket(address, backlog).map_err(|source| RingError::Bind { address, source })
}

/// Makes a datagram socket for one worker: `SO_REUSEPORT`, so that every worker has its own, and
/// large queues. On a wildcard address it is told which of our addresses each datagram was sent to.
/// An IPv6 address takes IPv4 clients too.
///
/// # Errors
/// The address is taken, is not this machine's, or needs a privilege.
pub fn bind_udp(address: SocketAddr) -> Result<OwnedFd, RingError> {
    let socket = datagram_listener(&address);
    socket.map(OwnedFd::from).map_err(|source| RingError::Bind { address, source })
}

fn datagram_listener(address: &SocketAddr) -> io::Result<UdpSocket> {
    let socket = new_socket(address, libc::SOCK_DGRAM)?;
    set_option(&socket, libc::SOL_SOCKET, libc::SO_REUSEPORT, 1)?;
    take_both_families(&socket, address)?;
    prepare_udp(&socket, address)?;
    bind(&socket, address)?;
    Ok(UdpSocket::from(socket))
}

/// Gives a listening socket that somebody else has made what [`bind_tcp`] gives to its own.
///
/// # Errors
/// It is no TCP socket.
pub fn prepare_tcp(socket: &OwnedFd) -> io::Result<()> {
    set_option(socket, libc::IPPROTO_TCP, libc::TCP_NODELAY, 1)
}

/// Gives a datagram socket of this address what [`bind_udp`] gives to its own, whoever has made it.
///
/// # Errors
/// It is no socket of the address' family.
pub fn prepare_udp(socket: &OwnedFd, address: &SocketAddr) -> io::Result<()> {
    if address.ip().is_unspecified() && address.is_ipv4() {
        set_option(socket, libc::IPPROTO_IP, libc::IP_PKTINFO, 1)?;
    } else if address.ip().is_unspecified() {
        set_option(socket, libc::IPPROTO_IPV6, libc::IPV6_RECVPKTINFO, 1)?;
    }
    enlarge(socket, libc::SO_RCVBUFFORCE, libc::SO_RCVBUF);
    enlarge(socket, libc::SO_SNDBUFFORCE, libc::SO_SNDBUF);
    Ok(())
}

/// Takes over the descriptors that whoever started this process has left open for it: `count` of them,
/// from 3 on, as `sd_listen_fds(3)` has it. They are not passed on to children. There is something to
/// take once; to be called before this process opens anything itself.
///
/// # Errors
/// One of them is not open.
pub fn take_inherited(count: u16) -> io::Result<Vec<OwnedFd>> {
    static TAKEN: AtomicBool = AtomicBool::new(false);
    if TAKEN.swap(true, Relaxed) {
        return Ok(Vec::new());
    }
    let numbers = INHERITED_START..INHERITED_START + RawFd::from(count);
    for number in numbers.clone() {
        // SAFETY: no memory is passed.
        check(unsafe { libc::fcntl(number, libc::F_SETFD, libc::FD_CLOEXEC) })?;
    }
    // SAFETY: they are open, and were before this process could open anything, so nothing in it owns
    // them; the flag sees to it that they are taken once.
    Ok(numbers.map(|number| unsafe { OwnedFd::from_raw_fd(number) }).collect())
}

/// Makes a socket that sends to `kind.towards` first, from a random local port or from a client's. A
/// connected one serves one flow, for which the system's usual queue is enough.
pub(crate) fn port_socket(kind: &PortKind) -> io::Result<UdpSocket> {
    let socket = new_socket(&kind.towards, libc::SOCK_DGRAM)?;
    if kind.connected {
        if let Some(client) = &kind.from {
            lend_address(&socket, client)?;
        }
        let socket = UdpSocket::from(socket);
        socket.connect(kind.towards)?;
        return Ok(socket);
    }
    take_both_families(&socket, &kind.towards)?;
    enlarge(&socket, libc::SO_RCVBUFFORCE, libc::SO_RCVBUF);
    let any: SocketAddr = match kind.towards {
        SocketAddr::V4(_) => (std::net::Ipv4Addr::UNSPECIFIED, 0).into(),
        SocketAddr::V6(_) => (std::net::Ipv6Addr::UNSPECIFIED, 0).into(),
    };
    bind(&socket, &any)?;
    if kind.makes_way {
        // Once it is bound, or the kernel might give two ports one number.
        set_option(&socket, libc::SOL_SOCKET, libc::SO_REUSEPORT, 1)?;
    }
    Ok(UdpSocket::from(socket))
}

/// Gives a datagram socket a client's address and port. Other flows of the client may have them too, and
/// so may sockets of ours that are bound to no address: of all these the kernel hands what comes to the
/// one that is connected to its sender. `SO_REUSEADDR` would do that too, but for everybody's sockets.
fn lend_address(socket: &OwnedFd, client: &SocketAddr) -> io::Result<()> {
    make_transparent(socket, client)?;
    set_option(socket, libc::SOL_SOCKET, libc::SO_REUSEPORT, 1)?;
    bind(socket, client)
}

fn take_both_families(socket: &OwnedFd, address: &SocketAddr) -> io::Result<()> {
    if address.is_ipv6() {
        set_option(socket, libc::IPPROTO_IPV6, libc::IPV6_V6ONLY, 0)?;
    }
    Ok(())
}

/// Asks for a large queue: beyond the system's limit with the privilege for it, else up to that.
fn enlarge(socket: &OwnedFd, forced: i32, polite: i32) {
    if set_option(socket, libc::SOL_SOCKET, forced, DATAGRAM_QUEUE_BYTES).is_err() {
        // A smaller queue overflows earlier, that is all.
        let _ = set_option(socket, libc::SOL_SOCKET, polite, DATAGRAM_QUEUE_BYTES);
    }
}

/// Whether a socket is one for datagrams.
pub(crate) fn is_datagram_socket(socket: &OwnedFd) -> bool {
    let (mut kind, mut size) = (0_i32, size_of::<i32>() as libc::socklen_t);
    let (place, room) = (std::ptr::from_mut(&mut kind), std::ptr::from_mut(&mut size));
    // SAFETY: the kernel writes at most as many bytes as the place has, and how many these are.
    let result = unsafe {
        libc::getsockopt(socket.as_raw_fd(), libc::SOL_SOCKET, libc::SO_TYPE, place.cast(), room)
    };
    result == 0 && kind == libc::SOCK_DGRAM
}

/// Lets trains of datagrams arrive whole. Where the kernel cannot do that they arrive one by one.
pub(crate) fn receive_trains(socket: &UdpSocket) {
    let _ = set_raw_option(socket.as_raw_fd(), libc::SOL_UDP, libc::UDP_GRO, &1);
}

/// Sends one message without waiting for anything: to the connected peer if there is no name.
pub(crate) fn send_message(
    socket: &UdpSocket,
    name: Option<&RawAddress>,
    control: &[u8],
    payload: &[u8],
) -> io::Result<()> {
    let flags = libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL;
    let (address, length) = name.map_or((std::ptr::null(), 0), |raw| (raw.as_ptr(), raw.len()));
    let (fd, data) = (socket.as_raw_fd(), payload.as_ptr().cast::<libc::c_void>());
    let result = if control.is_empty() {
        // SAFETY: the kernel reads the payload, and `length` bytes of the address; both outlive the
        // call.
        unsafe { libc::sendto(fd, data, payload.len(), flags, address, length) }
    } else {
        let mut list = libc::iovec { iov_base: data.cast_mut(), iov_len: payload.len() };
        let mut header = empty_message();
        header.msg_name = address.cast_mut().cast();
        header.msg_namelen = length;
        header.msg_iov = &raw mut list;
        header.msg_iovlen = 1;
        header.msg_control = control.as_ptr().cast_mut().cast();
        header.msg_controllen = control.len() as _;
        // SAFETY: the kernel reads, and does not write, what the header points to: payload, address
        // and control data, each with its length. All of it outlives the call.
        unsafe { libc::sendmsg(fd, &raw const header, flags) }
    };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// A message header without name, data and control data.
pub(crate) fn empty_message() -> libc::msghdr {
    // SAFETY: a header is integers and pointers, for which zero is a value.
    unsafe { std::mem::zeroed() }
}

/// Asks the kernel to back a range of addresses with large pages, where it holds whole ones. Only
/// worthwhile before the memory is touched. It is advice: it changes no contents, whatever is
/// there, and if the kernel does not follow it nothing is lost.
pub fn prefer_large_pages(range: std::ops::Range<usize>) {
    let Some(start) = range.start.checked_next_multiple_of(LARGE_PAGE_BYTES) else { return };
    let end = range.end - range.end % LARGE_PAGE_BYTES;
    if start < end {
        let address = std::ptr::without_provenance_mut(start);
        // SAFETY: nothing is read or written through the address. The advice changes only which
        // pages hold the memory, not what it holds, and fails where nothing is mapped.
        unsafe { libc::madvise(address, end - start, libc::MADV_HUGEPAGE) };
    }
}

fn listening_socket(address: SocketAddr, backlog: i32) -> io::Result<OwnedFd> {
    let socket = stream_socket(&address)?;
    set_option(&socket, libc::SOL_SOCKET, libc::SO_REUSEADDR, 1)?;
    set_option(&socket, libc::SOL_SOCKET, libc::SO_REUSEPORT, 1)?;
    set_option(&socket, libc::IPPROTO_TCP, libc::TCP_NODELAY, 1)?;
    take_both_families(&socket, &address)?;
    bind(&socket, &address)?;
    // SAFETY: no memory is passed.
    check(unsafe { libc::listen(socket.as_raw_fd(), backlog) })?;
    Ok(socket)
}

fn bind(socket: &OwnedFd, address: &SocketAddr) -> io::Result<()> {
    let raw = RawAddress::new(address);
    // SAFETY: the kernel reads `raw.len()` bytes of an address that outlives the call.
    check(unsafe { libc::bind(socket.as_raw_fd(), raw.as_ptr(), raw.len()) })?;
    Ok(())
}

/// Makes a socket that can connect to `address`, with small writes sent at once. It leaves from an
/// address of ours, or from somebody else's, whose port does not matter: one that is free towards
/// `address` is found when it connects.
pub(crate) fn connecting_socket(
    address: &SocketAddr,
    from: Option<SocketAddr>,
) -> io::Result<TcpStream> {
    let socket = stream_socket(address)?;
    if let Some(mut from) = from {
        from.set_port(0);
        make_transparent(&socket, &from)?;
        set_option(&socket, libc::IPPROTO_IP, libc::IP_BIND_ADDRESS_NO_PORT, 1)?;
        bind(&socket, &from)?;
    }
    let socket = TcpStream::from(socket);
    socket.set_nodelay(true)?;
    Ok(socket)
}

/// Lets a socket have an address of this family that is not ours.
fn make_transparent(socket: &OwnedFd, address: &SocketAddr) -> io::Result<()> {
    let (level, name) = match address {
        SocketAddr::V4(_) => (libc::IPPROTO_IP, libc::IP_TRANSPARENT),
        SocketAddr::V6(_) => (libc::IPPROTO_IPV6, libc::IPV6_TRANSPARENT),
    };
    set_option(socket, level, name, 1)
}

/// Whether this process may send from addresses that are not ours, which takes `CAP_NET_ADMIN`.
///
/// # Errors
/// It may not, or has no descriptor to find out.
pub fn may_be_transparent() -> io::Result<()> {
    let any = SocketAddr::from((std::net::Ipv4Addr::UNSPECIFIED, 0));
    make_transparent(&stream_socket(&any)?, &any)
}

/// Whether this machine has an address from which it can reach `address`. For want of one a connect
/// fails as it does for want of a port (`EADDRNOTAVAIL`). A datagram's socket tells them apart: it takes
/// the same way, and its port need not be free towards anybody. Nothing is sent.
#[must_use]
pub fn has_source_for(address: &SocketAddr) -> bool {
    let socket = new_socket(address, libc::SOCK_DGRAM).map(UdpSocket::from);
    let error = socket.and_then(|socket| socket.connect(address)).err();
    error.and_then(|error| error.raw_os_error()) != Some(libc::EADDRNOTAVAIL)
}

fn stream_socket(address: &SocketAddr) -> io::Result<OwnedFd> {
    new_socket(address, libc::SOCK_STREAM)
}

fn new_socket(address: &SocketAddr, kind: i32) -> io::Result<OwnedFd> {
    let domain = if address.is_ipv4() { libc::AF_INET } else { libc::AF_INET6 };
    // SAFETY: no memory is passed.
    let fd = check(unsafe { libc::socket(domain, kind | libc::SOCK_CLOEXEC, 0) })?;
    // SAFETY: the kernel has just made this descriptor for us, so nobody else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

fn set_option(socket: &OwnedFd, level: i32, name: i32, value: i32) -> io::Result<()> {
    set_raw_option(socket.as_raw_fd(), level, name, &value)
}

fn set_raw_option<T>(fd: RawFd, level: i32, name: i32, value: &T) -> io::Result<()> {
    let length = size_of::<T>() as libc::socklen_t;
    let pointer = std::ptr::from_ref(value).cast();
    // SAFETY: the kernel reads `length` bytes of `value`, which outlives the call.
    check(unsafe { libc::setsockopt(fd, level, name, pointer, length) })?;
    Ok(())
}

/// Takes over a descriptor that the kernel handed to this ring, from an accept's completion or by
/// way of an [`Accepted`](pointsman_core::boundary::Accepted).
pub(crate) fn take_over(number: RawFd) -> TcpStream {
    assert!(number >= 0, "a descriptor is not negative");
    // SAFETY: `Accepted` is not `Clone` and is made where a connection is handed over, so whoever
    // gives its number back is the descriptor's only owner.
    unsafe { TcpStream::from_raw_fd(number) }
}

/// Closes a connection. Data the kernel has taken still arrives, unless the goodbye is a reset.
pub(crate) fn close(socket: TcpStream, goodbye: Goodbye) {
    if goodbye == Goodbye::Reset {
        let linger = libc::linger { l_onoff: 1, l_linger: 0 };
        // It fails only on what is no TCP socket, and that has no reset to send.
        let _ = set_raw_option(socket.as_raw_fd(), libc::SOL_SOCKET, libc::SO_LINGER, &linger);
    }
    drop(socket);
}

/// Makes the descriptor that wakes a ring.
pub(crate) fn event_descriptor() -> io::Result<OwnedFd> {
    // SAFETY: no memory is passed.
    let fd = check(unsafe { libc::eventfd(0, libc::EFD_CLOEXEC | libc::EFD_NONBLOCK) })?;
    // SAFETY: the kernel has just made this descriptor for us, so nobody else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Takes an eventfd's count.
#[cfg(test)]
pub(crate) fn event_count(mut event: &std::fs::File) -> u64 {
    let mut count = [0; 8];
    io::Read::read_exact(&mut event, &mut count).expect("an eventfd holds a count");
    u64::from_ne_bytes(count)
}

/// Gives the processor away for a moment.
pub(crate) fn pause() {
    std::thread::yield_now();
}

/// The kernel's name, release and version, in one line.
pub(crate) fn kernel_release() -> String {
    std::fs::read_to_string("/proc/sys/kernel/osrelease")
        .map_or_else(|_| "unknown".to_owned(), |release| release.trim().to_owned())
}

fn check(result: i32) -> io::Result<i32> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

/// An address in the kernel's own form.
#[derive(Clone, Copy)]
#[repr(C)]
pub(crate) union RawAddress {
    v4: libc::sockaddr_in,
    v6: libc::sockaddr_in6,
    family: libc::sa_family_t,
}

impl RawAddress {
    pub(crate) fn new(address: &SocketAddr) -> Self {
        match address {
            SocketAddr::V4(address) => Self {
                v4: libc::sockaddr_in {
                    sin_family: libc::AF_INET as libc::sa_family_t,
                    sin_port: address.port().to_be(),
                    sin_addr: libc::in_addr { s_addr: u32::from_ne_bytes(address.ip().octets()) },
                    sin_zero: [0; 8],
                },
            },
            SocketAddr::V6(address) => Self {
                v6: libc::sockaddr_in6 {
                    sin6_family: libc::AF_INET6 as libc::sa_family_t,
                    sin6_port: address.port().to_be(),
                    sin6_flowinfo: address.flowinfo(),
                    sin6_addr: libc::in6_addr { s6_addr: address.ip().octets() },
                    sin6_scope_id: address.scope_id(),
                },
            },
        }
    }

    /// The address as a socket of IPv6 (`v6`) or of IPv4 takes it.
    pub(crate) fn towards(address: &SocketAddr, v6: bool) -> Self {
        match address {
            SocketAddr::V4(v4) if v6 => {
                let ip = message::mapped((*v4.ip()).into());
                Self::new(&SocketAddrV6::new(ip, v4.port(), 0, 0).into())
            }
            _ => Self::new(address),
        }
    }

    pub(crate) fn len(&self) -> libc::socklen_t {
        // SAFETY: both kinds of address begin with their family.
        let family = unsafe { self.family };
        if i32::from(family) == libc::AF_INET {
            size_of::<libc::sockaddr_in>() as libc::socklen_t
        } else {
            size_of::<libc::sockaddr_in6>() as libc::socklen_t
        }
    }

    pub(crate) fn as_ptr(&self) -> *const libc::sockaddr {
        std::ptr::from_ref(self).cast()
    }
}

/// Private anonymous memory, page-aligned and zero, that costs nothing until it is touched.
#[derive(Debug)]
pub(crate) struct Mapping {
    start: NonNull<u8>,
    bytes: usize,
}

impl Mapping {
    pub(crate) fn new(bytes: usize) -> io::Result<Self> {
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
        // SAFETY: a new mapping at an address of the kernel's choice touches no existing memory.
        let start = unsafe { libc::mmap(std::ptr::null_mut(), bytes, protection, flags, -1, 0) };
        if start == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let start = NonNull::new(start.cast()).expect("the kernel maps nothing at address zero");
        Ok(Self { start, bytes })
    }

    /// The first byte. Valid as long as the mapping is.
    pub(crate) fn start(&self) -> NonNull<u8> {
        self.start
    }

    /// How many bytes are mapped.
    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: the mapping is ours alone; whoever lent its memory to the kernel has had it back
        // or has leaked the mapping instead of dropping it.
        unsafe { libc::munmap(self.start.as_ptr().cast(), self.bytes) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::TcpListener;

    #[test]
    fn two_workers_share_a_port() {
        let first = bind_tcp("127.0.0.1:0".parse().expect("address"), 16).expect("first");
        let address = TcpListener::from(first.try_clone().expect("clone")).local_addr();
        let address = address.expect("address");
        bind_tcp(address, 16).expect("second");
    }

    #[test]
    fn a_wildcard_of_six_takes_clients_of_four() {
        let Ok(listener) = bind_tcp("[::]:0".parse().expect("address"), 16) else { return };
        let listener = TcpListener::from(listener);
        let port = listener.local_addr().expect("address").port();
        TcpStream::connect(("127.0.0.1", port)).expect("connect");
    }

    #[test]
    fn an_accepted_socket_inherits_no_delay() {
        let listener = bind_tcp("127.0.0.1:0".parse().expect("address"), 16).expect("bind");
        let listener = TcpListener::from(listener);
        let _client = TcpStream::connect(listener.local_addr().expect("address")).expect("connect");
        let (accepted, _) = listener.accept().expect("accept");
        assert!(accepted.nodelay().expect("option"));
    }

    #[test]
    fn a_foreign_address_is_refused_with_a_remedy() {
        let error = bind_tcp("192.0.2.1:1".parse().expect("address"), 16).expect_err("not ours");
        assert!(error.to_string().contains("choose"), "{error}");
    }

    #[test]
    fn the_descriptor_limit_is_raised_as_far_as_it_goes() {
        let (before, now) = raise_descriptor_limit().expect("limit");
        assert!(before <= now);
        let limit = descriptor_limit().expect("limit");
        assert_eq!((limit.soft, limit.hard), (now, now));
    }

    #[test]
    fn two_workers_share_a_port_for_datagrams() {
        let first = bind_udp("127.0.0.1:0".parse().expect("address")).expect("first");
        let address = UdpSocket::from(first.try_clone().expect("clone")).local_addr();
        bind_udp(address.expect("address")).expect("second");
    }

    #[test]
    fn advice_about_memory_changes_nothing() {
        let mapping = Mapping::new(5 * LARGE_PAGE_BYTES).expect("map");
        let start = mapping.start().as_ptr();
        // SAFETY: the byte is in the mapping, which nobody else has.
        unsafe { start.add(LARGE_PAGE_BYTES).write(7) };
        let from = start.addr();
        prefer_large_pages(from..from + mapping.bytes());
        prefer_large_pages(from..from);
        // SAFETY: as above.
        assert_eq!(unsafe { start.add(LARGE_PAGE_BYTES).read() }, 7);
    }

    #[test]
    fn the_clock_does_not_run_backwards() {
        let first = Clock.now();
        assert!(Clock.now() >= first);
    }
}
