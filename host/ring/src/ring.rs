//! The `io_uring` itself: entries in, events out.
//!
//! This is the file that hands addresses to the kernel, and it keeps two promises about them:
//!
//! 1. Buffers, and the description of a message, belong to the [`Uring`]; buffers stay mapped until nothing is in flight. It counts what
//!    the kernel holds; on drop it cancels everything and waits for the count to reach zero. If
//!    the kernel does not answer in time the mappings are leaked: memory lost once, instead of
//!    memory that the kernel writes to after it has become something else.
//! 2. Addresses and lists of buffers live in a scratch area until the kernel has consumed the
//!    entries that point to it (`IORING_FEAT_SUBMIT_STABLE`, in every kernel that has the rest).
//!
//! An entry completes with one event, or, if it is multishot, with many of which all but the last
//! carry `F_MORE`. Nothing else tells whether a multishot still lives: when the completion queue
//! is full the kernel ends it with an ordinary result.
#![allow(unsafe_code)]

use std::io;
use std::marker::PhantomData;
use std::mem::ManuallyDrop;
use std::net::SocketAddr;
use std::os::fd::{AsRawFd, RawFd};
use std::time::Duration;

use io_uring::squeue::{Entry, Flags};
use io_uring::types::{CancelBuilder, Fd, SubmitArgs, Timespec};
use io_uring::{EnterFlags, IoUring, cqueue, opcode};
use pointsman_core::Instant;
use pointsman_core::boundary::{Buffer, Pool};

use crate::RingError;
use crate::buffers::{BufferId, Buffers, DATAGRAM_GROUP};
use crate::message;
use crate::stats::RingStats;
use crate::sys::{self, Clock, RawAddress};
use crate::token::Token;

/// Entries of the submission queue: a turn's worth. A fuller turn costs another system call.
const SUBMISSIONS: u32 = 512;

/// Bounds of the completion queue, which is memory that is always there. Beyond them the kernel
/// queues events in memory of its own, and nothing is lost.
const COMPLETIONS: std::ops::RangeInclusive<u32> = SUBMISSIONS..=32_768;

/// Buffers in the longest run of sends; the kernel's `IOV_MAX`.
pub(crate) const RUN_MAX: u32 = 1024;

/// `IORING_SEND_VECTORIZED`, which the crate does not name.
const SEND_VECTORIZED: u16 = 1 << 5;

/// Where an entry keeps `optlen`, which the crate has no setter for.
const OPTLEN: usize = 44;

/// How long a dropped ring waits for the kernel to let go of its buffers.
const FAREWELL: Duration = Duration::from_secs(2);

const SEND_FLAGS: i32 = libc::MSG_WAITALL | libc::MSG_NOSIGNAL;

const _: () = assert!(size_of::<Entry>() == 64 && align_of::<Entry>() >= align_of::<u32>());

/// What this kernel can do beyond what the ring cannot do without.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Features {
    /// A multishot receive stops by itself after a number of bytes.
    pub(crate) credit: bool,
    /// A plain send takes a list of buffers.
    pub(crate) vectorized: bool,
    /// A wait takes the time at which it ends, instead of a duration.
    pub(crate) absolute: bool,
    /// A sleeping worker is not mistaken for one that waits for a disk.
    pub(crate) no_iowait: bool,
}

/// Something the kernel says about an entry.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Event {
    pub(crate) token: Token,
    /// What the system call would have returned, or the negative error.
    pub(crate) result: i32,
    flags: u32,
}

impl Event {
    /// Whether more events of the same entry follow.
    pub(crate) fn more(self) -> bool {
        cqueue::more(self.flags)
    }

    /// The provided buffer that the kernel has used.
    pub(crate) fn buffer(self) -> Option<u16> {
        cqueue::buffer_select(self.flags)
    }
}

/// One `io_uring`, bound to the thread that made it.
pub(crate) struct Uring {
    ring: IoUring,
    /// The ring as `io_uring_enter` names it, and the flag that says by which kind of name.
    enter_name: (RawFd, EnterFlags),
    features: Features,
    /// Entries whose last event has not been taken, but for cancels.
    in_flight: u32,
    /// Times the kernel was entered, and times it then had more events than the queue holds.
    enters_total: u64,
    overflows_total: u64,
    scratch: Scratch,
    /// What a receive of messages wants to be told. Entries point to it.
    message: Box<libc::msghdr>,
    /// A failure that came when it could not be reported.
    failure: Option<io::Error>,
    buffers: ManuallyDrop<Buffers>,
    /// The kernel insists that one thread does it all.
    thread: PhantomData<*const ()>,
}

impl Uring {
    /// Sets up a ring with room for `events` that have not been taken; `bystander` is any
    /// descriptor that is not a socket, to ask the kernel about its abilities with.
    pub(crate) fn new(events: u32, buffers: Buffers, bystander: RawFd) -> Result<Self, RingError> {
        let ring = set_up(events).map_err(RingError::setup)?;
        buffers.register(&ring).map_err(RingError::os("register buffers with io_uring"))?;
        let enter_name = sys_ring::register(ring.as_raw_fd());
        let mut uring = Self {
            ring,
            enter_name,
            features: Features::default(),
            in_flight: 0,
            enters_total: 0,
            overflows_total: 0,
            scratch: Scratch::new(),
            message: Box::new(message_wanted()),
            failure: None,
            buffers: ManuallyDrop::new(buffers),
            thread: PhantomData,
        };
        uring.features = uring.find_features(bystander).map_err(RingError::os("test io_uring"))?;
        uring.buffers.provide();
        Ok(uring)
    }

    pub(crate) fn features(&self) -> Features {
        self.features
    }

    /// Behaves as on a kernel that has only what the ring cannot do without.
    #[cfg(test)]
    pub(crate) fn forget_features(&mut self) {
        self.features = Features::default();
    }

    pub(crate) fn buffers(&self) -> &Buffers {
        &self.buffers
    }

    /// What is counted here; of buffers nothing.
    pub(crate) fn stats(&self) -> RingStats {
        let Self { enters_total, overflows_total, in_flight, .. } = *self;
        RingStats { enters_total, overflows_total, in_flight, ..RingStats::default() }
    }

    /// Arms a multishot accept.
    pub(crate) fn accept(&mut self, token: Token, listener: RawFd) {
        let entry = opcode::AcceptMulti::new(Fd(listener)).flags(libc::SOCK_CLOEXEC).build();
        self.start(token, entry);
    }

    /// Starts to accept one connection. Where others accept from the same socket, the kernel tells of
    /// each connection whoever has waited longest: who accepts one by one goes to the end of that line.
    pub(crate) fn accept_one(&mut self, token: Token, listener: RawFd) {
        let nobody = std::ptr::null_mut();
        let entry = opcode::Accept::new(Fd(listener), nobody, nobody.cast());
        self.start(token, entry.flags(libc::SOCK_CLOEXEC).build());
    }

    /// Connects a socket.
    pub(crate) fn connect(&mut self, token: Token, socket: RawFd, address: &SocketAddr) {
        if self.scratch.addresses.len() == self.scratch.addresses.capacity() && !self.flush() {
            return;
        }
        let raw = self.scratch.keep_address(address);
        // SAFETY: the pointer is to an address kept in the scratch area.
        let (pointer, length) = unsafe { ((*raw).as_ptr(), (*raw).len()) };
        self.start(token, opcode::Connect::new(Fd(socket), pointer, length).build());
    }

    /// Arms a multishot receive that ends after `credit` bytes.
    pub(crate) fn receive(&mut self, token: Token, socket: RawFd, pool: Pool, credit: u32) {
        let entry = opcode::RecvMulti::new(Fd(socket), pool.index() as u16).build();
        let entry = if self.features.credit { with_credit(entry, credit) } else { entry };
        self.start(token, entry);
    }

    /// Arms a multishot receive of messages, with their addresses and control data.
    pub(crate) fn receive_messages(&mut self, token: Token, socket: RawFd) {
        let wanted = std::ptr::from_ref(&*self.message);
        let entry = opcode::RecvMsgMulti::new(Fd(socket), wanted, DATAGRAM_GROUP).build();
        self.start(token, entry);
    }

    /// Sends the buffers of a chain, as one.
    pub(crate) fn send(&mut self, token: Token, socket: RawFd, run: &Run) {
        let entry = if run.buffers == 1 {
            let Some(chunk) = self.buffers.chunks(run.head).next() else { return };
            let (base, len) = (chunk.iov_base.cast_const().cast(), chunk.iov_len as u32);
            opcode::Send::new(Fd(socket), base, len).flags(SEND_FLAGS).build()
        } else {
            if !self.scratch.has_room(run.buffers) && !self.flush() {
                return;
            }
            let (list, count) = self.scratch.keep_list(self.buffers.chunks(run.head));
            self.send_list(socket, list, count)
        };
        self.start(token, entry);
    }

    fn send_list(&mut self, socket: RawFd, list: *mut libc::iovec, count: usize) -> Entry {
        if self.features.vectorized {
            opcode::Send::new(Fd(socket), list.cast_const().cast(), count as u32)
                .ioprio(SEND_VECTORIZED)
                .flags(SEND_FLAGS)
                .build()
        } else {
            let header = self.scratch.keep_header(list, count);
            opcode::SendMsg::new(Fd(socket), header).flags(SEND_FLAGS.cast_unsigned()).build()
        }
    }

    /// Polls a descriptor for readability, again and again.
    pub(crate) fn poll(&mut self, token: Token, descriptor: RawFd) {
        let events = libc::POLLIN as u32;
        self.start(token, opcode::PollAdd::new(Fd(descriptor), events).multi(true).build());
    }

    /// Asks for the end of what `target` names; its own last event tells how it ended.
    pub(crate) fn cancel(&mut self, target: Token) {
        let entry = opcode::AsyncCancel::new(target.encode()).build();
        self.push(&entry.flags(Flags::SKIP_SUCCESS).user_data(Token::Cancel.encode()));
    }

    /// Enters the kernel once: submits what is queued, and waits, if asked to, until there is an
    /// event or the deadline has passed.
    pub(crate) fn enter(&mut self, wait: bool, deadline: Option<Instant>) -> io::Result<()> {
        if let Some(failure) = self.failure.take() {
            return Err(failure);
        }
        let timespec = deadline.map(|deadline| self.timespec(deadline));
        let arguments = SubmitArgs::new();
        let arguments = match &timespec {
            Some(timespec) => arguments.timespec(timespec),
            None => arguments,
        };
        let result = self.enter_with(u32::from(wait), self.wait_flags(deadline), &arguments);
        let submissions = self.ring.submission();
        self.overflows_total += u64::from(submissions.cq_overflow());
        if submissions.is_empty() {
            self.scratch.clear();
        }
        match result {
            Err(error) if !is_transient(&error) => Err(error),
            _ => Ok(()),
        }
    }

    /// Takes the next event.
    #[inline]
    pub(crate) fn next_event(&mut self) -> Option<Event> {
        let entry = self.ring.completion().next()?;
        let token = Token::decode(entry.user_data());
        let event = Event { token, result: entry.result(), flags: entry.flags() };
        if token != Token::Cancel && !event.more() {
            self.in_flight -= 1;
        }
        Some(event)
    }

    /// Whether there is an event to take.
    pub(crate) fn has_events(&mut self) -> bool {
        !self.ring.completion().is_empty()
    }

    /// Whether something waits to be submitted.
    pub(crate) fn has_entries(&mut self) -> bool {
        !self.ring.submission().is_empty()
    }

    /// Shows free buffers to the kernel again.
    pub(crate) fn provide(&mut self) {
        self.buffers.provide();
    }

    /// Takes the buffer that an event names.
    pub(crate) fn taken(&mut self, pool: Pool, number: u16, len: u32) -> Buffer {
        self.buffers.taken(pool, number, len)
    }

    /// Takes the datagram buffer that an event names.
    pub(crate) fn taken_message(&mut self, number: u16) {
        self.buffers.taken_message(number);
    }

    /// Takes a datagram buffer back.
    pub(crate) fn put_message(&mut self, number: u32) {
        self.buffers.put_message(number);
    }

    /// Fills a free small buffer, if there is one.
    pub(crate) fn write(&mut self, bytes: &[u8]) -> Option<Buffer> {
        self.buffers.write(bytes)
    }

    /// Takes a buffer back.
    pub(crate) fn put(&mut self, buffer: &Buffer) {
        self.buffers.put(buffer);
    }

    /// Takes the buffers of a run back.
    pub(crate) fn put_chain(&mut self, head: BufferId) {
        self.buffers.put_chain(head);
    }

    /// Starts a run with one buffer.
    pub(crate) fn run(&mut self, buffer: &Buffer) -> Run {
        let head = self.buffers.chain(buffer);
        Run { head, tail: head, buffers: 1, bytes: buffer.len() }
    }

    /// Makes a run longer by one buffer.
    pub(crate) fn extend(&mut self, run: &mut Run, buffer: &Buffer) {
        assert!(run.buffers < RUN_MAX, "a run of sends has at most {RUN_MAX} buffers");
        let next = self.buffers.chain(buffer);
        self.buffers.append(run.tail, next);
        run.tail = next;
        run.buffers += 1;
        run.bytes += buffer.len();
    }

    fn start(&mut self, token: Token, entry: Entry) {
        self.in_flight += 1;
        self.push(&entry.user_data(token.encode()));
    }

    fn push(&mut self, entry: &Entry) {
        loop {
            // SAFETY: entries are made by this file alone. Their addresses are of provided buffers,
            // which stay mapped until nothing is in flight, of the scratch area, which stays as it
            // is until the entry is consumed, or of the wanted message, which never changes.
            if unsafe { self.ring.submission().push(entry) }.is_ok() || !self.flush() {
                return;
            }
        }
    }

    /// Submits everything that is queued, without waiting. False if the ring is broken, which the
    /// next `enter` reports.
    fn flush(&mut self) -> bool {
        while self.has_entries() {
            match self.enter_with(0, EnterFlags::empty(), &SubmitArgs::new()) {
                Ok(_) => {}
                Err(error) if is_transient(&error) => sys::pause(),
                Err(error) => {
                    self.failure = Some(error);
                    return false;
                }
            }
        }
        self.scratch.clear();
        true
    }

    fn enter_with(
        &mut self,
        want: u32,
        flags: EnterFlags,
        arguments: &SubmitArgs<'_, '_>,
    ) -> io::Result<u32> {
        self.enters_total += 1;
        let queued = self.ring.submission().len() as u32;
        let (name, kind) = self.enter_name;
        sys_ring::enter(name, [queued, want], flags | kind | EnterFlags::EXT_ARG, arguments)
    }

    fn wait_flags(&self, deadline: Option<Instant>) -> EnterFlags {
        let mut flags = EnterFlags::GETEVENTS;
        flags.set(EnterFlags::NO_IOWAIT, self.features.no_iowait);
        flags.set(EnterFlags::ABS_TIMER, deadline.is_some() && self.features.absolute);
        flags
    }

    fn timespec(&self, deadline: Instant) -> Timespec {
        let wait = if self.features.absolute {
            Duration::from_nanos(deadline.as_nanos())
        } else {
            deadline.since(Clock.now())
        };
        Timespec::from(wait)
    }

    /// Tells from how the kernel rejects two requests on something that is no socket whether it
    /// has understood them: `EINVAL` if it has not, `ENOTSOCK` if it has.
    fn find_features(&mut self, bystander: RawFd) -> io::Result<Features> {
        let parameters = self.ring.params();
        let mut features = Features {
            absolute: parameters.is_feature_min_timeout(),
            no_iowait: parameters.is_feature_no_iowait(),
            ..Features::default()
        };
        self.features = Features { credit: true, vectorized: true, ..features };
        let (credit, vectorized) = (Token::Receive(FIRST), Token::Send(FIRST));
        self.receive(credit, bystander, Pool::Small, 1);
        let (list, count) = self.scratch.keep_list(std::iter::empty());
        let entry = self.send_list(bystander, list, count);
        self.start(vectorized, entry);
        while self.in_flight > 0 {
            self.enter(true, None)?;
            while let Some(event) = self.next_event() {
                let understood = event.result != -libc::EINVAL;
                match event.token {
                    Token::Receive(_) => features.credit = understood,
                    _ => features.vectorized = understood,
                }
            }
        }
        Ok(features)
    }

    /// Cancels everything and waits until the kernel has let go of it.
    fn quiesce(&mut self) -> bool {
        let entry = opcode::AsyncCancel2::new(CancelBuilder::any().all()).build();
        self.push(&entry.user_data(Token::Cancel.encode()));
        let deadline = Clock.now() + FAREWELL;
        while self.in_flight > 0 {
            if self.enter(true, Some(deadline)).is_err() || Clock.now() >= deadline {
                return false;
            }
            while let Some(event) = self.next_event() {
                if matches!(event.token, Token::Accept(_)) && event.result >= 0 {
                    drop(sys::take_over(event.result));
                }
            }
        }
        true
    }
}

impl Drop for Uring {
    fn drop(&mut self) {
        let quiet = self.quiesce();
        sys_ring::unregister(self.ring.as_raw_fd(), self.enter_name);
        self.buffers.unregister(&self.ring);
        if quiet {
            // SAFETY: the kernel holds no entry and no buffer group any more, and nothing touches
            // the field after this.
            unsafe { ManuallyDrop::drop(&mut self.buffers) };
        }
    }
}

/// The link that the start-up test borrows, when no link is in use.
const FIRST: pointsman_core::boundary::Link = pointsman_core::boundary::Link::from_index(0);

/// Buffers that are sent as one.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Run {
    pub(crate) head: BufferId,
    tail: BufferId,
    buffers: u32,
    pub(crate) bytes: u32,
}

/// What entries point to until the kernel has consumed them. Nothing here ever moves: the lists
/// have their capacity from the start, and are cleared only when the submission queue is empty.
struct Scratch {
    lists: Vec<libc::iovec>,
    headers: Vec<libc::msghdr>,
    addresses: Vec<RawAddress>,
}

impl Scratch {
    fn new() -> Self {
        Self {
            lists: Vec::with_capacity(4 * RUN_MAX as usize),
            headers: Vec::with_capacity(SUBMISSIONS as usize),
            addresses: Vec::with_capacity(SUBMISSIONS as usize),
        }
    }

    fn has_room(&self, buffers: u32) -> bool {
        self.lists.capacity() - self.lists.len() >= buffers as usize
            && self.headers.len() < self.headers.capacity()
    }

    fn keep_list(&mut self, list: impl Iterator<Item = libc::iovec>) -> (*mut libc::iovec, usize) {
        let (start, before) = (self.lists.len(), self.lists.capacity());
        self.lists.extend(list);
        assert_eq!(self.lists.capacity(), before, "the scratch area never moves");
        (self.lists.as_mut_ptr().wrapping_add(start), self.lists.len() - start)
    }

    fn keep_header(&mut self, list: *mut libc::iovec, count: usize) -> *const libc::msghdr {
        assert!(self.headers.len() < self.headers.capacity(), "the scratch area never moves");
        let mut header = sys::empty_message();
        header.msg_iov = list;
        header.msg_iovlen = count as _;
        self.headers.push(header);
        self.headers.as_ptr().wrapping_add(self.headers.len() - 1)
    }

    fn keep_address(&mut self, address: &SocketAddr) -> *const RawAddress {
        assert!(self.addresses.len() < self.addresses.capacity(), "the scratch area never moves");
        self.addresses.push(RawAddress::new(address));
        self.addresses.as_ptr().wrapping_add(self.addresses.len() - 1)
    }

    fn clear(&mut self) {
        self.lists.clear();
        self.headers.clear();
        self.addresses.clear();
    }
}

/// How much room the kernel leaves for address and control data ahead of each payload.
fn message_wanted() -> libc::msghdr {
    let mut wanted = sys::empty_message();
    wanted.msg_namelen = message::NAME_BYTES as _;
    wanted.msg_controllen = message::CONTROL_BYTES as _;
    wanted
}

/// Makes a ring with what every supported kernel has, and without the submission array where the
/// kernel can do without.
fn set_up(events: u32) -> io::Result<IoUring> {
    let completions = events.clamp(*COMPLETIONS.start(), *COMPLETIONS.end());
    let mut builder = IoUring::builder();
    builder
        .setup_single_issuer()
        .setup_defer_taskrun()
        .setup_submit_all()
        .setup_cqsize(completions.next_power_of_two());
    let plain = builder.clone();
    match builder.setup_no_sqarray().build(SUBMISSIONS) {
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) => plain.build(SUBMISSIONS),
        result => result,
    }
}

/// Writes the number of bytes after which a multishot receive ends.
fn with_credit(mut entry: Entry, credit: u32) -> Entry {
    let start = std::ptr::from_mut(&mut entry).cast::<u8>();
    // SAFETY: an entry is the kernel's `io_uring_sqe`, 64 bytes of plain integers aligned to 8
    // (asserted above); bytes 44 to 47 are one of them.
    unsafe { start.add(OPTLEN).cast::<u32>().write(credit) };
    entry
}

/// Whether entering the kernel again may help. A time-out and a signal are not even failures.
fn is_transient(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EINTR | libc::ETIME | libc::EAGAIN | libc::EBUSY))
}

/// The two system calls that the crate makes only through a borrow of the ring.
mod sys_ring {
    use super::{AsRawFd, EnterFlags, RawFd, SubmitArgs, io};

    const REGISTER_RING_FDS: u32 = 20;
    const UNREGISTER_RING_FDS: u32 = 21;

    /// The kernel's `io_uring_rsrc_update`.
    #[repr(C)]
    struct Update {
        offset: u32,
        reserved: u32,
        data: u64,
    }

    /// Gives the ring a name that is cheaper to look up than a descriptor, if the kernel has one.
    pub(super) fn register(ring: RawFd) -> (RawFd, EnterFlags) {
        let mut update =
            Update { offset: u32::MAX, reserved: 0, data: u64::from(ring.cast_unsigned()) };
        if change(ring, REGISTER_RING_FDS, &mut update) == 1 {
            (update.offset.cast_signed(), EnterFlags::REGISTERED_RING)
        } else {
            (ring.as_raw_fd(), EnterFlags::empty())
        }
    }

    /// Takes the name away: it would keep the ring alive for as long as the thread.
    pub(super) fn unregister(ring: RawFd, (name, kind): (RawFd, EnterFlags)) {
        if kind == EnterFlags::REGISTERED_RING {
            let mut update = Update { offset: name.cast_unsigned(), reserved: 0, data: 0 };
            change(ring, UNREGISTER_RING_FDS, &mut update);
        }
    }

    fn change(ring: RawFd, operation: u32, update: &mut Update) -> i64 {
        let update = std::ptr::from_mut(update);
        // SAFETY: the kernel reads and writes one `io_uring_rsrc_update`, which outlives the call.
        unsafe { libc::syscall(libc::SYS_io_uring_register, ring, operation, update, 1) }
    }

    pub(super) fn enter(
        ring: RawFd,
        [submit, want]: [u32; 2],
        flags: EnterFlags,
        arguments: &SubmitArgs<'_, '_>,
    ) -> io::Result<u32> {
        let (pointer, size) = (std::ptr::from_ref(arguments), size_of::<SubmitArgs<'_, '_>>());
        let (number, flags) = (libc::SYS_io_uring_enter, flags.bits());
        // SAFETY: the kernel reads one `io_uring_getevents_arg`, which is what `SubmitArgs`
        // transparently is, and the time it points to; both outlive the call. What the submitted
        // entries point to is upheld where they are pushed.
        let result = unsafe { libc::syscall(number, ring, submit, want, flags, pointer, size) };
        if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result as u32) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes(entry: &Entry) -> [u8; 64] {
        // SAFETY: an entry is 64 bytes of plain integers without padding.
        unsafe { std::ptr::from_ref(entry).cast::<[u8; 64]>().read() }
    }

    #[test]
    fn the_credit_lies_where_the_crate_keeps_optlen() {
        let length = 0x0102_0304;
        let theirs = opcode::SetSockOpt::new(Fd(0), 0, 0, std::ptr::null(), length).build();
        let ours = with_credit(opcode::RecvMulti::new(Fd(0), 0).build(), length);
        assert_eq!(bytes(&theirs)[OPTLEN..OPTLEN + 4], length.to_ne_bytes());
        assert_eq!(bytes(&ours)[OPTLEN..OPTLEN + 4], length.to_ne_bytes());
    }

    #[test]
    fn the_credit_changes_nothing_else() {
        let plain = opcode::RecvMulti::new(Fd(7), 1).build().user_data(9);
        let mut expected = bytes(&plain);
        expected[OPTLEN..OPTLEN + 4].copy_from_slice(&77u32.to_ne_bytes());
        assert_eq!(bytes(&with_credit(plain, 77)), expected);
    }

    #[test]
    fn a_dropped_ring_gives_its_name_back() {
        let names = (0..40).map(|_| {
            let sizes = pointsman_core::boundary::PoolSizes { small: 1, bulk: 1 };
            let buffers = Buffers::new(&sizes, 0).expect("buffers");
            let event = sys::event_descriptor().expect("eventfd");
            let uring = Uring::new(1, buffers, event.as_raw_fd()).expect("io_uring");
            uring.enter_name.1
        });
        let names: Vec<_> = names.collect();
        assert_eq!(names.first(), names.last(), "the kernel has 16 names for each thread");
    }

    #[test]
    fn the_vectorized_flag_is_in_ioprio() {
        let entry = opcode::Send::new(Fd(0), std::ptr::null(), 0).ioprio(SEND_VECTORIZED).build();
        assert_eq!(bytes(&entry)[2..4], SEND_VECTORIZED.to_ne_bytes());
    }
}
