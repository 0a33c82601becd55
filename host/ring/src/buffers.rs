//! The memory that connections receive into, and the kernel's view of it.
//!
//! Each pool is one mapping of equal buffers. The kernel sees only a *window* of them, in a ring
//! of provided buffers; the rest wait on a stack, last in, first out. So the memory that is ever
//! touched follows the load and not the configuration, and what comes next is still in the cache.
//!
//! ```text
//!        taken (a completion names it)          put back
//!   ┌─────────────◀─ window (kernel) ◀─ provide ─ stack ◀──┐
//!   └─▶ the core holds it ─▶ a run of sends ───────────────┘
//! ```
//!
//! Rust code looks only into buffers that are *held*: a completion has named them, and they have not
//! been put back since. The kernel does not write to these, and whoever borrows their bytes borrows
//! the pools, so that nobody puts them back meanwhile. Each pool notes what is held, and does not
//! take the word of a name for it, which anybody can make. The others the kernel may write to at any
//! time; what must hold is that their memory stays mapped. The mappings are dropped by the ring's
//! owner, after the kernel has given everything back.
//!
//! Datagrams have a third pool, of buffers that hold the largest train there is. Most of them carry
//! a small datagram and so touch one page; they are not a whole number of pages long, for then all
//! small datagrams would compete for the same lines of the cache.
//!
//! Buffers of one run of sends are chained through a table with one place per buffer: a run costs
//! no memory of its own, however long it is.
#![allow(unsafe_code)]

use std::io;
use std::sync::atomic::{AtomicU16, Ordering};

use io_uring::types::BufRingEntry;
use io_uring::{IoUring, Submitter};
use pointsman_core::boundary::{Buffer, Pool, PoolSizes, Train};

use crate::RingError;
use crate::message;
use crate::stats::BufferPool;
use crate::sys::Mapping;

/// Buffers of a pool are numbered in 16 bits.
const POOL_MAX: u32 = 1 << 16;

/// How many buffers of each pool the kernel sees. The kernel takes them in turn, so all of them
/// pass through the cache: a window of 1 MiB and one of 2 MiB. One that is used up within a turn
/// costs its links a second attempt, no more.
const WINDOWS: PoolSizes = PoolSizes { small: 256, bulk: 32 };

/// How many datagram buffers the kernel sees.
pub(crate) const DATAGRAM_WINDOW: u32 = 256;

/// The kernel's name for the buffers of datagrams; those of a stream pool are named by its index.
pub(crate) const DATAGRAM_GROUP: u16 = 2;

/// Names a buffer of either pool.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct BufferId(u32);

impl BufferId {
    /// No buffer: the end of a chain.
    pub(crate) const NONE: Self = Self(u32::MAX);
}

/// All pools, and the table that chains the buffers of streams into runs.
#[derive(Debug)]
pub(crate) struct Buffers {
    pools: [Memory; 2],
    /// There is none where no datagrams are expected.
    datagrams: Option<Memory>,
    /// Where each buffer's content begins, its length, and the buffer that follows it in its run.
    /// Arrays, so that the table comes zeroed from the kernel and untouched.
    chain: Vec<[u32; 3]>,
}

impl Buffers {
    /// Maps all pools; provides nothing yet.
    pub(crate) fn new(sizes: &PoolSizes, datagrams: u32) -> Result<Self, RingError> {
        for pool in Pool::BOTH {
            let count = sizes.of(pool);
            if count == 0 || count > POOL_MAX {
                return Err(RingError::PoolSize { pool, count });
            }
        }
        if datagrams > POOL_MAX {
            return Err(RingError::DatagramPoolSize { count: datagrams });
        }
        let small = Memory::new(Shape::of(Pool::Small), sizes.small)?;
        let bulk = Memory::new(Shape::of(Pool::Bulk), sizes.bulk)?;
        let datagrams = match datagrams {
            0 => None,
            count => Some(Memory::new(Shape::DATAGRAM, count)?),
        };
        let chain = vec![[0; 3]; (sizes.small + sizes.bulk) as usize];
        Ok(Self { pools: [small, bulk], datagrams, chain })
    }

    /// Shows all windows to a ring. The caller keeps these buffers mapped until the ring has
    /// nothing in flight.
    pub(crate) fn register(&self, ring: &IoUring) -> io::Result<()> {
        for memory in self.pools.iter().chain(&self.datagrams) {
            memory.register(&ring.submitter())?;
        }
        Ok(())
    }

    /// Takes the windows away from a ring that has nothing in flight.
    pub(crate) fn unregister(&self, ring: &IoUring) {
        for memory in self.pools.iter().chain(&self.datagrams) {
            // It fails only if the ring is broken, and then it sees nothing any more.
            let _ = ring.submitter().unregister_buf_ring(memory.shape.group);
        }
    }

    /// Fills all windows up again.
    pub(crate) fn provide(&mut self) {
        for memory in self.pools.iter_mut().chain(&mut self.datagrams) {
            if memory.visible < memory.window {
                memory.provide();
            }
        }
    }

    /// Takes the buffer the kernel has put `len` bytes into.
    pub(crate) fn taken(&mut self, pool: Pool, number: u16, len: u32) -> Buffer {
        self.pools[pool.index()].taken(number);
        Buffer::new(pool, u32::from(number), len)
    }

    /// Takes the datagram buffer that the kernel has used.
    pub(crate) fn taken_message(&mut self, number: u16) {
        self.messages_mut().taken(number);
    }

    /// The first `len` bytes of a held datagram buffer: what the kernel has written of a message.
    pub(crate) fn message(&self, number: u16, len: usize) -> &[u8] {
        self.messages().held(u32::from(number), 0, len)
    }

    /// The payload of a train.
    ///
    /// # Panics
    /// The train is not this ring's, or its buffer has been put back.
    pub(crate) fn payload(&self, train: &Train) -> &[u8] {
        self.messages().held(train.buffer(), message::PAYLOAD, train.len() as usize)
    }

    /// Takes a datagram buffer back.
    pub(crate) fn put_message(&mut self, number: u32) {
        self.messages_mut().put(number);
    }

    fn messages(&self) -> &Memory {
        self.datagrams.as_ref().expect("datagrams need a pool of buffers")
    }

    fn messages_mut(&mut self) -> &mut Memory {
        self.datagrams.as_mut().expect("datagrams need a pool of buffers")
    }

    /// The bytes of a held buffer.
    ///
    /// # Panics
    /// The buffer is not this ring's, or has been put back.
    pub(crate) fn bytes(&self, buffer: &Buffer) -> &[u8] {
        let (start, len) = (buffer.start() as usize, buffer.len() as usize);
        self.pools[buffer.pool().index()].held(buffer.index(), start, len)
    }

    /// Fills a free small buffer, if there is one.
    pub(crate) fn write(&mut self, bytes: &[u8]) -> Option<Buffer> {
        let index = self.pools[Pool::Small.index()].write(bytes)?;
        Some(Buffer::new(Pool::Small, index, bytes.len() as u32))
    }

    /// Takes a buffer back; nobody needs its bytes.
    pub(crate) fn put(&mut self, buffer: &Buffer) {
        self.pools[buffer.pool().index()].put(buffer.index());
    }

    /// How many buffers a pool has, and how many of them are free.
    pub(crate) fn fill(&self, pool: BufferPool) -> (u32, u32) {
        let memory = match pool {
            BufferPool::Small => Some(&self.pools[Pool::Small.index()]),
            BufferPool::Bulk => Some(&self.pools[Pool::Bulk.index()]),
            BufferPool::Datagrams => self.datagrams.as_ref(),
        };
        memory.map_or((0, 0), |memory| (memory.count, memory.free()))
    }

    /// How many buffers of a pool are free, whether the kernel sees them or not.
    pub(crate) fn free(&self, pool: Pool) -> u32 {
        self.pools[pool.index()].free()
    }

    /// Whether there is a pool for datagrams.
    pub(crate) fn take_datagrams(&self) -> bool {
        self.datagrams.is_some()
    }

    /// How many datagram buffers are free, whether the kernel sees them or not.
    pub(crate) fn free_messages(&self) -> u32 {
        self.datagrams.as_ref().map_or(0, Memory::free)
    }

    /// How many datagram buffers the kernel may still take.
    pub(crate) fn visible_messages(&self) -> u32 {
        self.datagrams.as_ref().map_or(0, |memory| memory.visible)
    }

    /// How many buffers of a pool the kernel may still take.
    pub(crate) fn visible(&self, pool: Pool) -> u32 {
        self.pools[pool.index()].visible
    }

    /// Starts a chain of one.
    pub(crate) fn chain(&mut self, buffer: &Buffer) -> BufferId {
        let memory = &self.pools[buffer.pool().index()];
        assert!(
            buffer.index() < memory.count
                && buffer.start() + buffer.len() <= buffer.pool().buffer_bytes(),
            "a buffer comes from this ring"
        );
        let id = match buffer.pool() {
            Pool::Small => buffer.index(),
            Pool::Bulk => self.pools[0].count + buffer.index(),
        };
        self.chain[id as usize] = [buffer.start(), buffer.len(), BufferId::NONE.0];
        BufferId(id)
    }

    /// Makes `next` follow `tail`.
    pub(crate) fn append(&mut self, tail: BufferId, next: BufferId) {
        self.chain[tail.0 as usize][2] = next.0;
    }

    /// Puts a whole chain back.
    pub(crate) fn put_chain(&mut self, head: BufferId) {
        let mut id = head;
        while id != BufferId::NONE {
            let next = BufferId(self.chain[id.0 as usize][2]);
            let (pool, index) = self.locate(id);
            self.pools[pool.index()].put(index);
            id = next;
        }
    }

    /// The buffers of a chain, as they were when it was made.
    pub(crate) fn run(&self, head: BufferId) -> impl Iterator<Item = Buffer> + '_ {
        let mut id = head;
        std::iter::from_fn(move || {
            let [start, len, next] = *self.chain.get(id.0 as usize)?;
            let (pool, index) = self.locate(id);
            id = BufferId(next);
            let whole = Buffer::new(pool, index, start + len);
            Some(whole.skip(start).unwrap_or_else(|whole| whole))
        })
    }

    /// The bytes of a chain, buffer by buffer.
    pub(crate) fn chunks(&self, head: BufferId) -> impl Iterator<Item = libc::iovec> + '_ {
        let mut id = head;
        std::iter::from_fn(move || {
            let [start, len, next] = *self.chain.get(id.0 as usize)?;
            let (pool, index) = self.locate(id);
            let base = self.pools[pool.index()].start(index).wrapping_add(start as usize);
            id = BufferId(next);
            Some(libc::iovec { iov_base: base.cast(), iov_len: len as usize })
        })
    }

    fn locate(&self, id: BufferId) -> (Pool, u32) {
        match id.0.checked_sub(self.pools[0].count) {
            None => (Pool::Small, id.0),
            Some(index) => (Pool::Bulk, index),
        }
    }
}

/// What makes one pool differ from another.
#[derive(Debug, Clone, Copy)]
struct Shape {
    /// The kernel's name for it.
    group: u16,
    /// Bytes in one buffer.
    bytes: u32,
    /// How many buffers the kernel sees, at most.
    window: u32,
}

impl Shape {
    const DATAGRAM: Self =
        Self { group: DATAGRAM_GROUP, bytes: message::BUFFER_BYTES, window: DATAGRAM_WINDOW };

    const fn of(pool: Pool) -> Self {
        Self { group: pool.index() as u16, bytes: pool.buffer_bytes(), window: WINDOWS.of(pool) }
    }
}

/// One pool.
#[derive(Debug)]
struct Memory {
    shape: Shape,
    count: u32,
    /// The buffers themselves.
    bytes: Mapping,
    /// The kernel's ring of provided buffers.
    ring: Mapping,
    /// How many entries that ring has, less one.
    mask: u16,
    /// Where the next buffer goes in it.
    tail: u16,
    /// How many buffers the kernel should see.
    window: u32,
    /// How many it does see, counting those whose completion is not reaped yet.
    visible: u32,
    /// Buffers that have been used and are free.
    returned: Vec<u16>,
    /// The first buffer that has never been used.
    fresh: u32,
    /// Which buffers have arrived, or were written to, and have not been put back.
    held: Vec<bool>,
}

impl Memory {
    fn new(shape: Shape, count: u32) -> Result<Self, RingError> {
        let window = count.min(shape.window);
        let entries = window.next_power_of_two();
        let map = |bytes| Mapping::new(bytes).map_err(RingError::os("map the receive buffers"));
        Ok(Self {
            shape,
            count,
            bytes: map(count as usize * shape.bytes as usize)?,
            ring: map(entries as usize * size_of::<BufRingEntry>())?,
            mask: (entries - 1) as u16,
            tail: 0,
            window,
            visible: 0,
            returned: Vec::with_capacity(count as usize),
            fresh: 0,
            held: vec![false; count as usize],
        })
    }

    fn register(&self, submitter: &Submitter<'_>) -> io::Result<()> {
        let (address, group) = (self.ring.start().as_ptr() as u64, self.shape.group);
        // SAFETY: the mapping holds `mask + 1` zeroed entries, page-aligned, and the ring's owner
        // keeps it mapped for as long as the ring lives.
        unsafe { submitter.register_buf_ring_with_flags(address, self.mask + 1, group, 0) }
    }

    fn provide(&mut self) {
        while self.visible < self.window {
            let Some(index) = self.take() else { break };
            let place = usize::from(self.tail & self.mask);
            // SAFETY: `place` is below the number of entries in the mapping. Only this thread
            // writes to them, and the kernel reads this one only after the tail has passed it.
            let entry =
                unsafe { &mut *self.ring.start().cast::<BufRingEntry>().add(place).as_ptr() };
            entry.set_addr(self.start(u32::from(index)) as u64);
            entry.set_len(self.shape.bytes);
            entry.set_bid(index);
            self.tail = self.tail.wrapping_add(1);
            self.visible += 1;
        }
        self.kernel_tail().store(self.tail, Ordering::Release);
    }

    /// The tail as the kernel reads it, in the unused part of the first entry.
    fn kernel_tail(&self) -> &AtomicU16 {
        // SAFETY: the mapping begins with an entry; its tail field is 2-aligned, lives as long as
        // the mapping and is only ever written through this reference.
        unsafe {
            let base = self.ring.start().cast::<BufRingEntry>().as_ptr();
            AtomicU16::from_ptr(BufRingEntry::tail(base).cast_mut())
        }
    }

    /// How many buffers nobody holds.
    fn free(&self) -> u32 {
        self.visible + self.returned.len() as u32 + (self.count - self.fresh)
    }

    /// Notes that the kernel has used a buffer and named it in a completion.
    fn taken(&mut self, number: u16) {
        self.visible -= 1;
        self.held[usize::from(number)] = true;
    }

    /// `len` bytes of a held buffer, from byte `from` on.
    ///
    /// # Panics
    /// The buffer is not held, or not that large.
    fn held(&self, index: u32, from: usize, len: usize) -> &[u8] {
        assert!(self.held.get(index as usize) == Some(&true), "a buffer is held by who reads it");
        let bytes = self.shape.bytes as usize;
        assert!(from <= bytes && len <= bytes - from, "a buffer's bytes are within it");
        let start = self.start(index).wrapping_add(from);
        // SAFETY: the bytes are within a buffer of the mapping, which this value owns. It is held, so
        // the kernel writes to it only after it has been put back, for which this value has to be
        // borrowed mutably; the slice is a shared borrow of it.
        unsafe { std::slice::from_raw_parts(start, len) }
    }

    fn take(&mut self) -> Option<u16> {
        if let Some(index) = self.returned.pop() {
            return Some(index);
        }
        if self.fresh == self.count {
            return None;
        }
        self.fresh += 1;
        Some((self.fresh - 1) as u16)
    }

    /// Fills a free buffer, if there is one.
    ///
    /// # Panics
    /// There are more bytes than fit.
    fn write(&mut self, bytes: &[u8]) -> Option<u32> {
        assert!(bytes.len() <= self.shape.bytes as usize);
        let index = u32::from(self.take()?);
        self.held[index as usize] = true;
        // SAFETY: the buffer was free, so neither the kernel nor the core has it, and the bytes
        // fit into it.
        unsafe { self.start(index).copy_from_nonoverlapping(bytes.as_ptr(), bytes.len()) };
        Some(index)
    }

    fn put(&mut self, index: u32) {
        let held = self.held.get_mut(index as usize).expect("a buffer comes from this ring");
        assert!(std::mem::take(held), "a buffer is put back once");
        self.returned.push(index as u16);
    }

    /// Where a buffer begins.
    fn start(&self, index: u32) -> *mut u8 {
        debug_assert!(index < self.count);
        let offset = index as usize * self.shape.bytes as usize;
        debug_assert!(offset < self.bytes.bytes());
        self.bytes.start().as_ptr().wrapping_add(offset)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn buffers(small: u32, bulk: u32) -> Buffers {
        Buffers::new(&PoolSizes { small, bulk }, 2).expect("map")
    }

    #[test]
    fn the_window_is_small_and_every_buffer_is_free_at_first() {
        let mut buffers = buffers(4096, 1);
        buffers.provide();
        assert_eq!(buffers.visible(Pool::Small), WINDOWS.small);
        assert_eq!(buffers.free(Pool::Small), 4096);
        assert_eq!(buffers.visible(Pool::Bulk), 1);
    }

    #[test]
    fn what_is_put_back_last_is_provided_first() {
        let mut buffers = buffers(4096, 1);
        buffers.provide();
        let first = buffers.taken(Pool::Small, 0, 1);
        let second = buffers.taken(Pool::Small, 1, 1);
        buffers.put(&first);
        buffers.put(&second);
        assert_eq!(buffers.pools[0].take(), Some(1));
        assert_eq!(buffers.pools[0].take(), Some(0));
        assert_eq!(buffers.pools[0].take(), Some(WINDOWS.small as u16));
    }

    #[test]
    fn a_chain_spans_both_pools_in_order() {
        let mut buffers = buffers(2, 2);
        buffers.provide();
        let small = buffers.taken(Pool::Small, 1, 10);
        let bulk = buffers.taken(Pool::Bulk, 0, 20);
        let head = buffers.chain(&small);
        let tail = buffers.chain(&bulk);
        buffers.append(head, tail);
        let lengths: Vec<_> = buffers.chunks(head).map(|chunk| chunk.iov_len).collect();
        assert_eq!(lengths, [10, 20]);
        buffers.put_chain(head);
        assert_eq!((buffers.free(Pool::Small), buffers.free(Pool::Bulk)), (2, 2));
    }

    #[test]
    fn of_a_buffer_that_lost_its_beginning_the_rest_is_read_and_sent() {
        let mut buffers = buffers(2, 2);
        let whole = buffers.write(b"header, then the stream").expect("a buffer");
        let rest = whole.skip(8).expect("there is more");
        assert_eq!(buffers.bytes(&rest), b"then the stream");
        let head = buffers.chain(&rest);
        let chunk = buffers.chunks(head).next().expect("a chunk");
        assert_eq!(chunk.iov_len, 15);
        assert_eq!(chunk.iov_base.cast::<u8>().cast_const(), buffers.bytes(&rest).as_ptr());
        buffers.put_chain(head);
        assert_eq!(buffers.free(Pool::Small), 2);
    }

    #[test]
    fn a_pool_that_is_used_up_provides_nothing() {
        let mut buffers = buffers(1, 1);
        buffers.provide();
        let only = buffers.taken(Pool::Small, 0, 1);
        buffers.provide();
        assert_eq!((buffers.visible(Pool::Small), buffers.free(Pool::Small)), (0, 0));
        buffers.put(&only);
        buffers.provide();
        assert_eq!(buffers.visible(Pool::Small), 1);
    }

    #[test]
    fn a_pool_beyond_sixteen_bits_is_refused() {
        let of = |small, bulk, datagrams| Buffers::new(&PoolSizes { small, bulk }, datagrams);
        assert!(of(POOL_MAX + 1, 1, 0).is_err());
        assert!(of(0, 1, 0).is_err());
        assert!(of(1, 1, POOL_MAX + 1).is_err());
        assert!(of(POOL_MAX, 1, POOL_MAX).is_ok());
    }

    #[test]
    fn without_datagrams_there_is_no_pool_for_them() {
        let mut buffers =
            Buffers::new(&PoolSizes { small: 1, bulk: 1 }, 0).expect("two small pools");
        buffers.provide();
        assert!(buffers.datagrams.is_none());
        assert_eq!((buffers.visible_messages(), buffers.free_messages()), (0, 0));
    }

    #[test]
    fn the_largest_train_fits_behind_its_header() {
        let mut buffers = buffers(1, 1);
        buffers.provide();
        buffers.taken_message(1);
        let train = Train::new(1, 65_535, 0);
        assert_eq!(buffers.payload(&train).len(), 65_535);
        buffers.put_message(1);
        assert_eq!(buffers.free_messages(), 2);
    }

    #[test]
    #[should_panic(expected = "held by who reads it")]
    fn a_buffer_that_the_kernel_has_cannot_be_read() {
        let mut buffers = buffers(1, 1);
        buffers.provide();
        buffers.payload(&Train::new(0, 1, 0));
    }

    #[test]
    #[should_panic(expected = "within it")]
    fn a_train_longer_than_its_buffer_cannot_be_read() {
        let mut buffers = buffers(1, 1);
        buffers.provide();
        buffers.taken_message(1);
        buffers.payload(&Train::new(1, message::BUFFER_BYTES, 0));
    }

    #[test]
    #[should_panic(expected = "put back once")]
    fn a_buffer_put_back_twice_is_caught() {
        let mut buffers = buffers(1, 1);
        buffers.provide();
        let buffer = buffers.taken(Pool::Small, 0, 1);
        buffers.put(&buffer);
        buffers.put(&buffer);
    }
}
