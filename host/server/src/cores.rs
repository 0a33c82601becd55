//! Which cores this process may use, and staying on one.

use std::io;

use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

/// A core, by the kernel's number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Core(usize);

impl Core {
    /// The cores this process may use; empty if the kernel does not say.
    pub fn allowed() -> Vec<Self> {
        let Ok(set) = sched_getaffinity(None) else { return Vec::new() };
        (0..CpuSet::MAX_CPU).filter(|core| set.is_set(*core)).map(Self).collect()
    }

    /// Keeps the calling thread on this core, where its caches are.
    ///
    /// # Errors
    /// The kernel refuses, which a sandbox may cause.
    pub fn pin_this_thread(self) -> io::Result<()> {
        let mut set = CpuSet::new();
        set.set(self.0);
        sched_setaffinity(None, &set).map_err(io::Error::from)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thread_can_be_pinned_to_every_core_that_is_allowed() {
        let cores = Core::allowed();
        assert!(!cores.is_empty());
        for core in cores {
            std::thread::spawn(move || {
                core.pin_this_thread().expect("the kernel allows what it said it allows");
                assert_eq!(Core::allowed(), [core]);
            })
            .join()
            .expect("the thread's assertion");
        }
    }
}
