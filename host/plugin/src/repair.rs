//! The repair thread: drops what is no longer wanted and makes anew what broke.
//!
//! One thread per engine. A worker hands over a broken instance with everything that is needed to
//! make another, goes on with its fallback, and finds the new one in its [`Slot`]:
//!
//! ```text
//!   worker                       repair thread
//!   Task::Remake ─────────────▶  drop the broken one
//!        │                       wait: 10 ms, doubling with every failure in a row, up to 5 s
//!   fallback decides             make, configure, tell ──▶ failed? wait again
//!        │                       │
//!   Slot::take  ◀────────────────┘ Slot::put
//! ```
//!
//! While it makes one, it takes no other task, and a guest may need three configuration deadlines
//! for that; the waiting between attempts bounds how much of the thread such a guest can have.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use pointsman_core::Candidates;

use crate::engine::Engine;
use crate::error::{Fault, InstanceError};
use crate::instance::{Instance, Recipe};
use crate::log::{LogLevel, Speaker};

/// How long the first attempt waits; each next in a row waits twice as long.
const BACKOFF_MIN: Duration = Duration::from_millis(10);
/// The longest wait.
const BACKOFF_MAX: Duration = Duration::from_secs(5);

/// How long a new policy waits for the places of dropped ones when all are taken.
const FENCE_WAIT: Duration = Duration::from_secs(1);

/// What the repair thread can be asked for.
pub(crate) enum Task {
    /// Drop a broken instance and make another.
    Remake { broken: Instance, fault: Fault, order: Order },
    /// Drop the instance of a policy that is gone, and whatever is made or being made for it.
    Retire { instance: Option<Instance>, slot: Arc<Slot> },
    /// Say when everything asked for earlier has been dropped.
    Fence(SyncSender<()>),
}

/// All that is needed to make an instance and deliver it.
pub(crate) struct Order {
    pub(crate) recipe: Arc<Recipe>,
    pub(crate) candidates: Arc<Candidates>,
    pub(crate) slot: Arc<Slot>,
    /// When the last one was called last.
    pub(crate) now: pointsman_core::Instant,
    /// How often in a row an instance of this policy has failed, this time not included.
    pub(crate) failures: u32,
}

/// A new instance, and how many of its predecessors failed in a row.
pub(crate) struct Fresh {
    pub(crate) instance: Instance,
    pub(crate) failures: u32,
}

/// Where the repair thread leaves a new instance for a worker.
#[derive(Default)]
pub(crate) struct Slot {
    /// Lets a worker look without touching the lock.
    is_ready: AtomicBool,
    place: Mutex<Option<Fresh>>,
}

impl Slot {
    /// Takes the new instance, if there is one. Never blocks: one load while there is none.
    pub(crate) fn take(&self) -> Option<Fresh> {
        if !self.is_ready.load(Ordering::Acquire) {
            return None;
        }
        let fresh = self.place.try_lock().ok()?.take();
        self.is_ready.store(false, Ordering::Relaxed);
        fresh
    }

    fn put(&self, fresh: Fresh) {
        *self.place.lock().unwrap_or_else(PoisonError::into_inner) = Some(fresh);
        self.is_ready.store(true, Ordering::Release);
    }
}

/// Works until nobody is left who could ask for anything.
pub(crate) fn run(tasks: &Receiver<Task>) {
    let mut bench = Bench::default();
    loop {
        let task = match bench.next(tasks) {
            Ok(task) => Some(task),
            Err(RecvTimeoutError::Timeout) => None,
            Err(RecvTimeoutError::Disconnected) => return,
        };
        // Nothing here should panic; but if it does, other policies still want their repairs.
        let _ = catch_unwind(AssertUnwindSafe(|| bench.work(task)));
    }
}

/// Makes an instance for a new policy, if need be in the place of one that is being dropped.
pub(crate) fn make(recipe: &Arc<Recipe>, state: Option<&[u8]>) -> Result<Instance, InstanceError> {
    match Instance::new(recipe, state) {
        Err(InstanceError::Full) => {
            await_dropped(recipe.module().engine());
            Instance::new(recipe, state)
        }
        made => made,
    }
}

/// Waits until the repair thread has dropped what it was given so far.
fn await_dropped(engine: &Engine) {
    let (done, is_done) = sync_channel(1);
    engine.repair(Task::Fence(done));
    // After the wait there is either a place or there is none; the next attempt will tell.
    let _ = is_done.recv_timeout(FENCE_WAIT);
}

/// The orders that wait for their time.
#[derive(Default)]
struct Bench {
    waiting: Vec<Waiting>,
}

struct Waiting {
    due: Instant,
    order: Order,
}

impl Bench {
    fn next(&self, tasks: &Receiver<Task>) -> Result<Task, RecvTimeoutError> {
        match self.waiting.iter().map(|waiting| waiting.due).min() {
            Some(due) => tasks.recv_timeout(due.saturating_duration_since(Instant::now())),
            None => tasks.recv().map_err(|_| RecvTimeoutError::Disconnected),
        }
    }

    fn work(&mut self, task: Option<Task>) {
        match task {
            Some(Task::Remake { broken, fault, order }) => {
                drop(broken);
                say(&order, LogLevel::Warn, || {
                    format!("{} fault: {}; the fallback decides", fault.kind, fault.reason())
                });
                self.wait(order);
            }
            Some(Task::Retire { instance, slot }) => {
                drop(instance);
                drop(slot.take());
                self.waiting.retain(|waiting| !Arc::ptr_eq(&waiting.order.slot, &slot));
            }
            // Nobody waits for the answer any longer if this fails.
            Some(Task::Fence(done)) => drop(done.try_send(())),
            None => self.make_next(),
        }
    }

    fn wait(&mut self, order: Order) {
        let due = Instant::now() + backoff(order.failures);
        self.waiting.push(Waiting { due, order });
    }

    /// Makes what is due first.
    fn make_next(&mut self) {
        let now = Instant::now();
        let first = self.waiting.iter().enumerate().min_by_key(|(_, waiting)| waiting.due);
        let Some((place, waiting)) = first else { return };
        if waiting.due > now {
            return;
        }
        let mut order = self.waiting.swap_remove(place).order;
        order.failures = order.failures.saturating_add(1);
        // What a predecessor handed over may be what broke the last one, so this one starts anew.
        let made = Instance::new(&order.recipe, None).and_then(|mut instance| {
            instance.introduce(order.now, &order.candidates)?;
            Ok(instance)
        });
        match made {
            Ok(instance) => {
                order.recipe.stats.on_remade();
                say(&order, LogLevel::Info, || "made anew, it decides again".into());
                order.slot.put(Fresh { instance, failures: order.failures });
            }
            Err(error) => {
                count(&order, &error);
                say(&order, LogLevel::Warn, || format!("cannot be made anew: {error}"));
                self.wait(order);
            }
        }
    }
}

fn count(order: &Order, error: &InstanceError) {
    let stats = &order.recipe.stats;
    stats.on_remake_failed();
    if let InstanceError::Fault { kind, .. } = error {
        stats.on_fault(*kind);
    }
}

fn say(order: &Order, level: LogLevel, message: impl FnOnce() -> String) {
    order.recipe.log(Speaker::Host, level, &message());
}

/// How long to wait before an instance is made, after so many failures in a row.
fn backoff(failures: u32) -> Duration {
    BACKOFF_MIN.saturating_mul(1 << failures.min(16)).min(BACKOFF_MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_wait_doubles_up_to_its_bound() {
        assert_eq!(backoff(0), Duration::from_millis(10));
        assert_eq!(backoff(1), Duration::from_millis(20));
        assert_eq!(backoff(8), Duration::from_millis(2560));
        assert_eq!(backoff(9), BACKOFF_MAX);
        assert_eq!(backoff(u32::MAX), BACKOFF_MAX);
    }
}
