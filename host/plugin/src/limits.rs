//! How much a plugin may have of everything.
//!
//! Every number has a default that suits a policy of ordinary size and a reason to be no larger.

use std::sync::Arc;
use std::time::Duration;

use wasmtime::ResourceLimiter;

use crate::world::Shape;

/// How often the epoch advances: the grain of every deadline.
pub(crate) const TICK: Duration = Duration::from_millis(1);
/// How many ticks a guest gets beyond its deadline, in case its thread was kept off its core. Two,
/// because the first may come at once.
pub(crate) const GRACE_TICKS: u64 = 2;
/// The longest deadline that can be added to an epoch without wrapping.
const TICKS_MAX: u64 = u64::MAX / 4;
/// How much of the calling thread's stack a guest may use. A worker's stack must be well above it.
pub(crate) const STACK_BYTES_MAX: usize = 256 << 10;
/// What a call may use where that is counted: it is there to be counted, and the deadline is what
/// ends a call.
pub(crate) const FUEL_MAX: u64 = u64::MAX;
/// How many bytes a guest may hand over in one call, in either a log line or a result.
pub(crate) const HOSTCALL_BYTES_MAX: usize = 256 << 10;
/// The same for a policy that makes lookup tables: the largest takes 4 MiB, and one that is too
/// large should be refused for its length.
const HOSTCALL_BYTES_MAX_TABLE: usize = 16 << 20;
/// How many bytes a guest of this shape may hand over in one call.
pub(crate) const fn hostcall_bytes_max(shape: Shape) -> usize {
    match shape {
        Shape::Table => HOSTCALL_BYTES_MAX_TABLE,
        Shape::Chooser | Shape::Weights => HOSTCALL_BYTES_MAX,
    }
}

/// How many bytes an instance may hand over to its successor.
pub(crate) const STATE_BYTES_MAX: usize = 64 << 10;
/// The most that one endpoint may weigh.
pub(crate) const WEIGHT_MAX: u32 = 65_535;
/// How many elements a guest's table may have; a Rust policy of ordinary size has under a thousand.
pub(crate) const TABLE_ELEMENTS_MAX: usize = 20_000;

/// What an engine reserves at start.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EngineLimits {
    /// Instances at a time, over all policies and workers. A swap needs the old and the new at
    /// once, so: policies × workers × 3 with one on trial, and a few for those being re-made.
    ///
    /// Each reserves 4 GiB of address space, and no memory until it uses it.
    pub instances_max: u32,
    /// The largest plugin that is compiled. Compiling is the one thing here that no deadline bounds.
    pub module_bytes_max: usize,
    /// Whether instances count what they execute. Exact, and not for the data path: the code is
    /// larger and slower for it.
    pub counts_fuel: bool,
}

impl Default for EngineLimits {
    fn default() -> Self {
        Self { instances_max: 256, module_bytes_max: 16 << 20, counts_fuel: false }
    }
}

/// What one policy is given.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PolicySettings {
    /// The policy's name in the configuration.
    pub name: Arc<str>,
    /// Handed to the guest's `configure`: the policy's `config` as JSON, `null` if it has none.
    pub config_json: String,
    /// How long a guest may take over one decision, to the next millisecond above. Time on the
    /// wall, with up to two milliseconds of grace.
    ///
    /// Also bounds what it makes of a changed list of endpoints while flows wait.
    pub decide_deadline: Duration,
    /// How long each step of making an instance may take: starting, `configure`, and hearing of the
    /// first endpoints. Nothing waits for these.
    pub configure_deadline: Duration,
    /// How far the guest's memory may grow.
    pub memory_bytes_max: usize,
}

impl PolicySettings {
    /// Settings with the default limits: 2 ms, 200 ms and 16 MiB.
    #[must_use]
    pub fn new(name: &str, config_json: &str) -> Self {
        Self {
            name: name.into(),
            config_json: config_json.into(),
            decide_deadline: Duration::from_millis(2),
            configure_deadline: Duration::from_millis(200),
            memory_bytes_max: 16 << 20,
        }
    }
}

/// The number of ticks that a deadline is, to the next millisecond above.
///
/// The first of them may come at once; the grace that follows is longer than what this cuts off, so
/// a guest never has less than it was promised, and at most two milliseconds more.
pub(crate) fn ticks(deadline: Duration) -> u64 {
    let whole = deadline.as_nanos().div_ceil(TICK.as_nanos());
    u64::try_from(whole).unwrap_or(u64::MAX).clamp(1, TICKS_MAX)
}

/// Says no to a guest that wants too much memory, and remembers that it did.
///
/// A refused growth is not a fault: a guest may live with it. But most allocators then trap, and
/// the fault is to be called by its cause.
#[derive(Debug)]
pub(crate) struct Allowance {
    memory_bytes_max: usize,
    /// What all of the guest's memories have together: a language's runtime may have several.
    memory_bytes: usize,
    refused: bool,
}

impl Allowance {
    pub(crate) fn new(memory_bytes_max: usize) -> Self {
        Self { memory_bytes_max, memory_bytes: 0, refused: false }
    }

    /// Begins a new call.
    pub(crate) fn forget(&mut self) {
        self.refused = false;
    }

    /// How large the guest's memory has become.
    pub(crate) fn memory_bytes(&self) -> usize {
        self.memory_bytes
    }

    /// Whether something was refused since the last [`forget`](Self::forget).
    pub(crate) fn has_refused(&self) -> bool {
        self.refused
    }

    fn grant(&mut self, granted: bool) -> bool {
        self.refused |= !granted;
        granted
    }
}

impl ResourceLimiter for Allowance {
    fn memory_growing(
        &mut self,
        current: usize,
        desired: usize,
        _maximum: Option<usize>,
    ) -> wasmtime::Result<bool> {
        let total = self.memory_bytes.saturating_sub(current).saturating_add(desired);
        let granted = self.grant(total <= self.memory_bytes_max);
        if granted {
            self.memory_bytes = total;
        }
        Ok(granted)
    }

    fn table_growing(
        &mut self,
        _current: usize,
        desired: usize,
        _maximum: Option<usize>,
    ) -> wasmtime::Result<bool> {
        Ok(self.grant(desired <= TABLE_ELEMENTS_MAX))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_deadline_with_its_grace_is_never_shorter_than_asked_for() {
        let cases = [(0, 1), (1, 1), (1000, 1), (1001, 2), (2000, 2)];
        for (micros, expected) in cases {
            assert_eq!(ticks(Duration::from_micros(micros)), expected, "{micros}");
        }
        assert_eq!(ticks(Duration::MAX), TICKS_MAX);
    }

    #[test]
    fn memories_share_what_a_guest_may_have() {
        let mut allowance = Allowance::new(1 << 20);
        assert!(allowance.memory_growing(0, 3 << 18, None).unwrap());
        assert!(!allowance.memory_growing(0, 1 << 19, None).unwrap());
        assert!(allowance.memory_growing(0, 1 << 18, None).unwrap());
        assert!(!allowance.memory_growing(3 << 18, 1 << 20, None).unwrap());
    }

    #[test]
    fn a_refusal_is_remembered_for_one_call() {
        let mut allowance = Allowance::new(1 << 20);
        assert!(allowance.memory_growing(0, 1 << 20, None).unwrap());
        assert!(!allowance.has_refused());
        assert!(!allowance.memory_growing(1 << 20, (1 << 20) + 1, None).unwrap());
        assert!(allowance.has_refused());
        allowance.forget();
        assert!(!allowance.has_refused());
    }
}
