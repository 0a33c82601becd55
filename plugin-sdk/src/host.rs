//! What the host does for a policy.

use std::cell::{Ref, RefCell};

use crate::Sample;

/// Numbers that the host keeps per endpoint.
pub const SLOTS: usize = 8;
/// Counters that a policy has of its own.
pub const COUNTERS: usize = 16;

/// What the host does for a policy. None of it blocks.
pub trait Host {
    /// The flows that the endpoint at this index has at the moment, over all workers, connecting
    /// ones included; 0 for an index out of range.
    fn load(&self, endpoint: usize) -> u32;

    /// All that is known of the endpoint at this index, over all workers; nothing for an index out
    /// of range.
    fn sample(&self, endpoint: usize) -> Sample;

    /// One of the [`SLOTS`] numbers that the host keeps under the endpoint's address. All workers
    /// share them, and they outlive instances, swaps and changes of the list. They begin as 0, which
    /// is also what is read out of range.
    fn slot(&self, endpoint: usize, slot: usize) -> u64;

    /// Replaces such a number.
    fn set_slot(&self, endpoint: usize, slot: usize, value: u64);

    /// Adds to such a number, wrapping around, in one step for all workers. Returns the sum.
    fn add_slot(&self, endpoint: usize, slot: usize, value: u64) -> u64;

    /// Adds to one of the policy's [`COUNTERS`] counters, which are shown among the balancer's
    /// metrics.
    fn count(&self, counter: usize, by: u64);

    /// Writes a line to the balancer's log. Long lines are cut, and of many lines some are dropped.
    fn log(&self, level: Level, message: &str);
}

/// How much a line in the log matters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Level {
    /// Something is broken.
    Error,
    /// Something may break.
    Warn,
    /// Something happened.
    Info,
    /// For whoever debugs the policy.
    Debug,
}

/// The host of a unit test: what is measured is set by hand, and what is said is kept for reading.
///
/// ```
/// use pointsman_sdk::{Host, Level, MockHost};
///
/// let host = MockHost::with_loads(&[3, 0]);
/// host.set_load(1, 5);
/// assert_eq!((host.load(0), host.load(1), host.load(2)), (3, 5, 0));
///
/// host.log(Level::Info, "hello");
/// assert_eq!(host.logs()[0], (Level::Info, "hello".to_string()));
/// ```
#[derive(Debug, Clone, Default)]
pub struct MockHost {
    samples: RefCell<Vec<Sample>>,
    slots: RefCell<Vec<[u64; SLOTS]>>,
    counters: RefCell<[u64; COUNTERS]>,
    logs: RefCell<Vec<(Level, String)>>,
}

impl MockHost {
    /// A host on which no endpoint has a flow.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// A host with this many flows on each endpoint.
    #[must_use]
    pub fn with_loads(loads: &[u32]) -> Self {
        let sample_of = |&flows_active| Sample { flows_active, ..Sample::default() };
        Self::with_samples(loads.iter().map(sample_of).collect())
    }

    /// A host that has measured this of each endpoint.
    #[must_use]
    pub fn with_samples(samples: Vec<Sample>) -> Self {
        Self { samples: RefCell::new(samples), ..Self::default() }
    }

    /// Sets the flows of one endpoint.
    pub fn set_load(&self, endpoint: usize, flows: u32) {
        let sample = Sample { flows_active: flows, ..self.sample(endpoint) };
        self.set_sample(endpoint, sample);
    }

    /// Sets all that is known of one endpoint.
    pub fn set_sample(&self, endpoint: usize, sample: Sample) {
        *at(&mut self.samples.borrow_mut(), endpoint) = sample;
    }

    /// What the policy has counted in one of its counters.
    #[must_use]
    pub fn counted(&self, counter: usize) -> u64 {
        self.counters.borrow().get(counter).copied().unwrap_or(0)
    }

    /// Keeps what it has under addresses: each index has what was at the old index, if any.
    #[cfg(not(target_arch = "wasm32"))]
    pub(crate) fn rearrange(&self, old_indices: &[Option<usize>]) {
        let slots = self.slots.replace(Vec::new());
        let moved = |old: &Option<usize>| old.and_then(|old| slots.get(old)).copied();
        *self.slots.borrow_mut() =
            old_indices.iter().map(|old| moved(old).unwrap_or_default()).collect();
    }

    /// What has been logged, oldest first.
    #[must_use]
    pub fn logs(&self) -> Ref<'_, [(Level, String)]> {
        Ref::map(self.logs.borrow(), Vec::as_slice)
    }
}

/// The item at an index, with whatever the list lacks until there.
fn at<T: Clone + Default>(list: &mut Vec<T>, index: usize) -> &mut T {
    if list.len() <= index {
        list.resize(index + 1, T::default());
    }
    &mut list[index]
}

impl Host for MockHost {
    fn load(&self, endpoint: usize) -> u32 {
        self.sample(endpoint).flows_active
    }

    fn sample(&self, endpoint: usize) -> Sample {
        self.samples.borrow().get(endpoint).copied().unwrap_or_default()
    }

    fn slot(&self, endpoint: usize, slot: usize) -> u64 {
        let slots = self.slots.borrow();
        slots.get(endpoint).and_then(|slots| slots.get(slot)).copied().unwrap_or(0)
    }

    fn set_slot(&self, endpoint: usize, slot: usize, value: u64) {
        if slot < SLOTS {
            at(&mut self.slots.borrow_mut(), endpoint)[slot] = value;
        }
    }

    fn add_slot(&self, endpoint: usize, slot: usize, value: u64) -> u64 {
        self.set_slot(endpoint, slot, self.slot(endpoint, slot).wrapping_add(value));
        self.slot(endpoint, slot)
    }

    fn count(&self, counter: usize, by: u64) {
        if let Some(counter) = self.counters.borrow_mut().get_mut(counter) {
            *counter = counter.wrapping_add(by);
        }
    }

    fn log(&self, level: Level, message: &str) {
        self.logs.borrow_mut().push((level, message.to_string()));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slots_begin_as_nothing_and_add_up() {
        let host = MockHost::new();
        assert_eq!(host.slot(3, 7), 0);
        assert_eq!(host.add_slot(3, 7, 5), 5);
        assert_eq!(host.add_slot(3, 7, u64::MAX), 4, "it wraps around");
        assert_eq!((host.slot(3, 7), host.slot(2, 7), host.slot(3, 6)), (4, 0, 0));
    }

    #[test]
    fn what_is_out_of_range_is_ignored() {
        let host = MockHost::new();
        host.set_slot(0, SLOTS, 1);
        assert_eq!(host.add_slot(0, SLOTS, 1), 0);
        host.count(COUNTERS, 1);
        assert_eq!((host.counted(COUNTERS), host.counted(0)), (0, 0));
    }

    #[test]
    fn a_load_is_a_part_of_the_sample() {
        let host = MockHost::with_samples(vec![Sample { errors_ppm: 9, ..Sample::default() }]);
        host.set_load(0, 4);
        assert_eq!((host.sample(0).flows_active, host.sample(0).errors_ppm), (4, 9));
    }
}
