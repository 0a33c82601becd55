//! Waking a worker from another thread.
//!
//! A worker sleeps inside the kernel; a control thread with something for it must get it out. The
//! waker writes to an eventfd that the ring polls with a multishot poll. Nobody ever reads the
//! eventfd: the poll fires on every write, whatever the count.
//!
//! Wakes coalesce: only the first since the worker last looked costs a system call. The worker
//! looks at its mailbox after `reap`, so a wake that finds the flag still raised needs no write:
//! the flag is lowered, and the mailbox read, later than it.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsRawFd, RawFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::sys;

/// Wakes a [`Ring`](crate::Ring) out of its `wait`, from any thread.
#[derive(Debug, Clone)]
pub struct Waker {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    raised: AtomicBool,
    event: File,
}

impl Waker {
    pub(crate) fn new() -> io::Result<Self> {
        let event = File::from(sys::event_descriptor()?);
        Ok(Self { shared: Arc::new(Shared { raised: AtomicBool::new(false), event }) })
    }

    /// Makes the ring's current or next `wait` return. Whatever was written before is visible to
    /// the worker once it has reaped.
    pub fn wake(&self) {
        if !self.shared.raised.swap(true, Ordering::AcqRel) {
            // The write can only fail if the count is at its maximum, and then the eventfd is
            // readable and the poll has fired already.
            let _ = (&self.shared.event).write(&1u64.to_ne_bytes());
        }
    }

    /// Notes that the worker is awake: the next wake must write again.
    pub(crate) fn lower(&self) {
        self.shared.raised.swap(false, Ordering::AcqRel);
    }

    /// What the ring polls.
    pub(crate) fn descriptor(&self) -> RawFd {
        self.shared.event.as_raw_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_waker_can_be_shared_between_threads() {
        fn shareable<T: Send + Sync + Clone>(_: &T) {}
        shareable(&Waker::new().expect("eventfd"));
    }

    #[test]
    fn wakes_coalesce_until_the_worker_has_looked() {
        let waker = Waker::new().expect("eventfd");
        waker.wake();
        waker.wake();
        assert_eq!(sys::event_count(&waker.shared.event), 1);
        waker.lower();
        waker.wake();
        assert_eq!(sys::event_count(&waker.shared.event), 1);
    }
}
