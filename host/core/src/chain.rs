//! Queues of buffers without allocation.
//!
//! A buffer has one holder, so one link per buffer is enough for any number of queues: the links
//! of all buffers stand in one array sized at start.

use alloc::vec::Vec;

use crate::boundary::{Buffer, Pool, PoolSizes};

const NONE: u32 = u32::MAX;

/// Buffers received and not yet sent, oldest first.
#[derive(Debug)]
pub(crate) struct Queue {
    head: u32,
    tail: u32,
    buffers: u32,
    bytes: u32,
}

impl Queue {
    pub(crate) const EMPTY: Self = Self { head: NONE, tail: NONE, buffers: 0, bytes: 0 };

    pub(crate) fn is_empty(&self) -> bool {
        self.buffers == 0
    }

    pub(crate) fn buffers(&self) -> u32 {
        self.buffers
    }

    pub(crate) fn bytes(&self) -> u32 {
        self.bytes
    }
}

/// Some buffers: how many of each pool, and the bytes in them.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Tally {
    buffers: [u32; 2],
    bytes: u32,
}

impl Tally {
    pub(crate) fn add(&mut self, buffer: &Buffer) {
        self.buffers[buffer.pool().index()] += 1;
        self.bytes += buffer.len();
    }

    pub(crate) fn buffers(&self) -> u32 {
        self.buffers[0] + self.buffers[1]
    }

    pub(crate) fn has(&self, pool: Pool) -> bool {
        self.buffers[pool.index()] > 0
    }

    pub(crate) fn bytes(&self) -> u32 {
        self.bytes
    }
}

#[derive(Debug)]
struct Node {
    buffer: Option<Buffer>,
    next: u32,
}

/// The links of all buffers, and how many of them are in use.
#[derive(Debug)]
pub(crate) struct Chains {
    nodes: Vec<Node>,
    sizes: PoolSizes,
    in_use: [u32; 2],
}

impl Chains {
    pub(crate) fn new(sizes: PoolSizes) -> Self {
        let mut nodes = Vec::new();
        nodes
            .resize_with((sizes.small + sizes.bulk) as usize, || Node { buffer: None, next: NONE });
        Self { nodes, sizes, in_use: [0; 2] }
    }

    /// Appends a buffer that has just arrived. It is in use until it is [`release`](Self::release)d.
    pub(crate) fn push(&mut self, queue: &mut Queue, buffer: Buffer) {
        let place = self.place_of(&buffer);
        self.in_use[buffer.pool().index()] += 1;
        queue.buffers += 1;
        queue.bytes += buffer.len();
        let node = &mut self.nodes[place as usize];
        assert!(node.buffer.is_none(), "a buffer has one holder");
        *node = Node { buffer: Some(buffer), next: NONE };
        if queue.tail == NONE {
            queue.head = place;
        } else {
            self.nodes[queue.tail as usize].next = place;
        }
        queue.tail = place;
    }

    /// Puts a buffer that has just been written ahead of all that wait.
    pub(crate) fn push_front(&mut self, queue: &mut Queue, buffer: Buffer) {
        let mut ahead = Queue::EMPTY;
        self.push(&mut ahead, buffer);
        if queue.is_empty() {
            *queue = ahead;
            return;
        }
        self.nodes[ahead.tail as usize].next = queue.head;
        queue.head = ahead.head;
        queue.buffers += ahead.buffers;
        queue.bytes += ahead.bytes;
    }

    pub(crate) fn pop(&mut self, queue: &mut Queue) -> Option<Buffer> {
        let node = self.nodes.get_mut(queue.head as usize)?;
        let buffer = node.buffer.take()?;
        queue.head = node.next;
        if queue.head == NONE {
            queue.tail = NONE;
        }
        queue.buffers -= 1;
        queue.bytes -= buffer.len();
        Some(buffer)
    }

    /// The buffers of a queue, oldest first.
    pub(crate) fn iter(&self, queue: &Queue) -> impl Iterator<Item = &Buffer> + Clone {
        let node = |place: u32| self.nodes.get(place as usize);
        let nodes = core::iter::successors(node(queue.head), move |last| node(last.next));
        nodes.filter_map(|node| node.buffer.as_ref())
    }

    /// Takes back buffers that are neither in a queue nor being sent any more.
    pub(crate) fn release(&mut self, tally: Tally) {
        for pool in Pool::BOTH {
            self.in_use[pool.index()] -= tally.buffers[pool.index()];
        }
    }

    /// Whether so many buffers wait or are being sent that what is left must be kept for flows
    /// that have none: seven eighths of a pool.
    pub(crate) fn is_short(&self, pool: Pool) -> bool {
        let size = self.sizes.of(pool);
        self.in_use[pool.index()] >= size - size / 8
    }

    /// Whether hardly one is left.
    pub(crate) fn is_exhausted(&self, pool: Pool) -> bool {
        let size = self.sizes.of(pool);
        self.in_use[pool.index()] >= size - size / 64
    }

    /// Asserts that nobody holds a buffer when nobody is there.
    pub(crate) fn check_invariants(&self, sessions: u32) {
        assert!(sessions > 0 || self.in_use == [0; 2], "a buffer outlived its session");
    }

    fn place_of(&self, buffer: &Buffer) -> u32 {
        match buffer.pool() {
            Pool::Small => buffer.index(),
            Pool::Bulk => self.sizes.small + buffer.index(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SIZES: PoolSizes = PoolSizes { small: 8, bulk: 2 };

    #[test]
    fn buffers_leave_each_queue_in_the_order_they_came() {
        let (mut chains, mut a, mut b) = (Chains::new(SIZES), Queue::EMPTY, Queue::EMPTY);
        chains.push(&mut a, Buffer::new(Pool::Small, 3, 30));
        chains.push(&mut b, Buffer::new(Pool::Small, 1, 10));
        chains.push(&mut a, Buffer::new(Pool::Bulk, 0, 5));
        chains.push(&mut a, Buffer::new(Pool::Small, 0, 7));
        assert_eq!((a.buffers(), a.bytes()), (3, 42));
        let order: Vec<_> =
            core::iter::from_fn(|| chains.pop(&mut a)).map(|buffer| buffer.len()).collect();
        assert_eq!(order, [30, 5, 7]);
        assert!(a.is_empty());
        assert_eq!(chains.pop(&mut b), Some(Buffer::new(Pool::Small, 1, 10)));
    }

    #[test]
    fn a_buffer_is_put_ahead_of_those_that_wait() {
        let (mut chains, mut queue) = (Chains::new(SIZES), Queue::EMPTY);
        chains.push_front(&mut queue, Buffer::new(Pool::Small, 2, 20));
        chains.push(&mut queue, Buffer::new(Pool::Small, 5, 50));
        chains.push_front(&mut queue, Buffer::new(Pool::Small, 1, 10));
        assert_eq!((queue.buffers(), queue.bytes()), (3, 80));
        let order: Vec<_> =
            core::iter::from_fn(|| chains.pop(&mut queue)).map(|buffer| buffer.len()).collect();
        assert_eq!(order, [10, 20, 50]);
    }

    #[test]
    fn a_pool_is_short_when_seven_eighths_wait() {
        let (mut chains, mut queue) = (Chains::new(SIZES), Queue::EMPTY);
        (0..6).for_each(|index| chains.push(&mut queue, Buffer::new(Pool::Small, index, 1)));
        assert!(!chains.is_short(Pool::Small));
        chains.push(&mut queue, Buffer::new(Pool::Small, 6, 1));
        assert!(chains.is_short(Pool::Small));
        let mut tally = Tally::default();
        tally.add(&chains.pop(&mut queue).unwrap());
        assert!(chains.is_short(Pool::Small), "what is being sent is still in use");
        chains.release(tally);
        assert!(!chains.is_short(Pool::Small));
    }

    #[test]
    #[should_panic(expected = "a buffer has one holder")]
    fn a_buffer_that_comes_twice_is_noticed() {
        let (mut chains, mut queue) = (Chains::new(SIZES), Queue::EMPTY);
        chains.push(&mut queue, Buffer::new(Pool::Small, 3, 30));
        chains.push(&mut queue, Buffer::new(Pool::Small, 3, 30));
    }
}
