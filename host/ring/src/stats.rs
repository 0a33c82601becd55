//! What a ring counts, and what it holds at the moment.

use pointsman_core::boundary::Pool;

use crate::Ring;

/// What a ring has counted since it was made, and how full it is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct RingStats {
    /// Times the kernel was entered to hand over requests, to wait, or both.
    pub enters_total: u64,
    /// Of these, times the kernel had more events to tell than its queue holds. It kept them, and
    /// told them later.
    pub overflows_total: u64,
    /// Requests that the kernel has and has not answered for good.
    pub in_flight: u32,
    /// By [`BufferPool::index`].
    pub buffers: [BufferStats; BufferPool::ALL.len()],
}

/// The buffers of one pool.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct BufferStats {
    /// How many there are.
    pub count: u32,
    /// How many of them nobody holds.
    pub free: u32,
    /// Times a socket had to wait because the kernel saw no free one.
    pub starved_total: u64,
}

/// Which buffers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BufferPool {
    /// Small ones, for streams.
    Small,
    /// Large ones, for streams with much to say.
    Bulk,
    /// Those of datagrams.
    Datagrams,
}

impl BufferPool {
    /// All, in the order of their [`index`](Self::index).
    pub const ALL: [Self; 3] = [Self::Small, Self::Bulk, Self::Datagrams];

    /// Dense, from 0.
    #[must_use]
    pub const fn index(self) -> usize {
        self as usize
    }

    /// The value of the metric's `pool` label, which is the configuration's word.
    #[must_use]
    pub const fn label(self) -> &'static str {
        match self {
            Self::Small => "small",
            Self::Bulk => "bulk",
            Self::Datagrams => "datagrams",
        }
    }
}

impl From<Pool> for BufferPool {
    fn from(pool: Pool) -> Self {
        match pool {
            Pool::Small => Self::Small,
            Pool::Bulk => Self::Bulk,
        }
    }
}

impl Ring {
    /// What it has counted so far, and how full it is now.
    #[must_use]
    pub fn stats(&self) -> RingStats {
        let buffers = self.uring.buffers();
        let of = |pool| {
            let (count, free) = buffers.fill(pool);
            BufferStats { count, free, starved_total: self.starved_total[pool.index()] }
        };
        RingStats { buffers: BufferPool::ALL.map(of), ..self.uring.stats() }
    }
}
