//! A Wasm plugin as one of the core's policies.
//!
//! ```text
//!                    a call fails: the instance goes to the repair thread
//!      ┌─────────┐ ──────────────────────────────────────────────────────▶ ┌─────────────┐
//!      │ asking  │                                                         │ standing in │
//!      └─────────┘ ◀────────────────────────────────────────────────────── └─────────────┘
//!                    a new instance lies in the slot: looked for at each flow
//! ```
//!
//! The fallback decides every flow while standing in, and while plugins have used up their share of
//! the core. While asking, it decides those flows on which the guest gave no answer that holds: it
//! deferred, it named an endpoint that does not exist, one that has as many flows as it may, or one
//! that has just failed this very flow although others have not been tried.

use core::fmt;
use std::sync::Arc;
use std::time::Duration;

use pointsman_core::policy::{
    Decided, Decision, EndedFlow, EndpointIndex, Flow, Method, Policy, Scope, Source, Verdict,
};
use pointsman_core::{Candidates, EndpointId, Instant};

use crate::bindings::{self, types};
use crate::engine::Engine;
use crate::error::{Fault, FaultKind, InstanceError};
use crate::feedback::Batch;
use crate::governor::Governor;
use crate::instance::{Instance, Recipe};
use crate::limits::PolicySettings;
use crate::log::{LogLevel, Speaker};
use crate::module::Module;
use crate::repair::{Fresh, Order, Slot, Task, make};
use crate::stats::PolicyStats;
use crate::world::Shape;

/// An instance that has made so many decisions is taken to be sound: if it fails, that is the first
/// failure of a new row.
const SOUND_DECISIONS: u32 = 10_000;
/// So is one that has served this long.
const SOUND_TIME: Duration = Duration::from_secs(60);

/// One worker's instance of a chooser, and the native policy that stands in for it.
pub struct GuestPolicy {
    /// `None` while the fallback stands in.
    instance: Option<Instance>,
    fallback: Box<dyn Policy>,
    recipe: Arc<Recipe>,
    governor: Arc<Governor>,
    /// Ended flows, if the guest wants to hear of them.
    batch: Option<Batch>,
    slot: Arc<Slot>,
    record: Record,
}

/// What surrounds a policy on its worker.
pub struct Place {
    /// This worker's own. It outlives instances; keep it to read it.
    pub stats: Arc<PolicyStats>,
    /// Shared by all policies of the worker.
    pub governor: Arc<Governor>,
    /// Decides where the guest does not.
    pub fallback: Box<dyn Policy>,
    /// What a predecessor handed over. A plugin that hands nothing over takes nothing either.
    pub state: Option<Vec<u8>>,
    /// By the worker's clock: the signals that the guest reads when it first hears of the endpoints
    /// have an age.
    pub now: Instant,
}

/// How the instance has done so far.
#[derive(Default)]
struct Record {
    /// How many before it failed in a row.
    failures: u32,
    decisions: u32,
    since: Option<Instant>,
}

impl GuestPolicy {
    /// Makes an instance, configures it, has it take over from a predecessor, and tells it the
    /// endpoints. Takes its time (at most four configuration deadlines), so it is called off the
    /// data path; the result can then be sent to a worker.
    ///
    /// # Errors
    ///
    /// If the module is no chooser, if the guest fails, refuses its configuration or the state, or
    /// if no place for it is left.
    pub fn new(
        module: &Module,
        settings: Arc<PolicySettings>,
        place: Place,
        candidates: &Arc<Candidates>,
    ) -> Result<Self, InstanceError> {
        module.expect(Shape::Chooser)?;
        let Place { stats, governor, fallback, state, now } = place;
        let recipe = Arc::new(Recipe::new(module, settings, stats));
        let mut instance = make(&recipe, state.as_deref())?;
        instance.introduce(now, candidates)?;
        Ok(Self {
            instance: Some(instance),
            fallback,
            recipe,
            governor,
            batch: module.has_feedback().then(Batch::new),
            slot: Arc::default(),
            record: Record::default(),
        })
    }

    /// What the last call of the guest has executed, in the runtime's units of about one
    /// instruction; `None` unless the engine counts that.
    #[must_use]
    pub fn fuel_used(&self) -> Option<u64> {
        self.instance.as_ref()?.fuel_used()
    }

    /// How large the guest's memory has become; 0 while the fallback stands in.
    #[must_use]
    pub fn memory_bytes(&self) -> usize {
        self.instance.as_ref().map_or(0, Instance::memory_bytes)
    }

    /// What the guest decides, if it can be asked and its answer holds.
    fn ask(&mut self, flow: &Flow<'_>, among: &Arc<Candidates>) -> Option<Decision> {
        if self.instance.is_none() {
            self.look_for_replacement(flow.now);
        }
        let instance = self.instance.as_mut()?;
        if !self.governor.allows(flow.now) {
            self.recipe.stats.on_throttled();
            return None;
        }
        let asked = quanta::Instant::now();
        let answer = instance.decide(flow, among);
        let took = asked.elapsed();
        self.recipe.stats.on_call(took);
        self.governor.charge(took);
        match answer {
            Ok(answer) => {
                self.record.decisions = self.record.decisions.saturating_add(1);
                self.judge(&answer, flow, among)
            }
            Err(fault) => {
                self.stand_in(fault);
                None
            }
        }
    }

    /// Turns an answer into a decision, if it holds.
    fn judge(
        &self,
        answer: &types::Decision,
        flow: &Flow<'_>,
        among: &Candidates,
    ) -> Option<Decision> {
        let verdict = match answer.verdict {
            bindings::Verdict::Forward => self.judge_endpoint(answer.endpoint, flow, among)?,
            bindings::Verdict::Reset => Verdict::Reset,
            bindings::Verdict::Drop => Verdict::Drop,
            bindings::Verdict::Defer => {
                self.recipe.stats.on_deferred();
                return None;
            }
        };
        Some(Decision {
            verdict,
            scope: match answer.scope {
                bindings::Scope::Client => Scope::Client,
                bindings::Scope::Flow => Scope::Flow,
                bindings::Scope::Key => Scope::Key,
                bindings::Scope::None => Scope::None,
            },
            ttl: millis(answer.ttl_ms),
            sliding: answer.sliding,
            method: Method {
                idle_timeout: some_unless_zero(answer.idle_timeout_ms).map(millis),
                throttle_kib_s: some_unless_zero(answer.throttle_kib_s),
                announce: answer.announce,
                tag: answer.tag,
            },
        })
    }

    fn judge_endpoint(&self, index: u32, flow: &Flow<'_>, among: &Candidates) -> Option<Verdict> {
        let index = EndpointIndex(index);
        let Some(endpoint) = among.get(index) else {
            self.count_nonsense(index, among);
            return None;
        };
        let holds = !endpoint.is_full() && !is_vain(endpoint.id, flow, among);
        holds.then_some(Verdict::Forward(index))
    }

    /// Counts an answer that names no endpoint. The instance itself is as sound as before.
    fn count_nonsense(&self, index: EndpointIndex, among: &Candidates) {
        let message = format!(
            "answer fault: endpoint {} of {}; the fallback decides",
            index.0,
            among.endpoints.len()
        );
        self.recipe.stats.on_fault(FaultKind::Answer);
        self.recipe.log(Speaker::Host, LogLevel::Warn, &message);
    }

    /// Gives the broken instance away and orders another.
    fn stand_in(&mut self, fault: Fault) {
        self.recipe.stats.on_fault(fault.kind);
        let Some(broken) = self.instance.take() else { return };
        let order = Order {
            recipe: Arc::clone(&self.recipe),
            candidates: Arc::clone(broken.candidates()),
            slot: Arc::clone(&self.slot),
            now: broken.now(),
            failures: self.record.failures_in_a_row(broken.now()),
        };
        self.engine().repair(Task::Remake { broken, fault, order });
    }

    fn look_for_replacement(&mut self, now: Instant) {
        if let Some(Fresh { instance, failures }) = self.slot.take() {
            self.instance = Some(instance);
            self.record = Record { failures, decisions: 0, since: Some(now) };
        }
    }

    fn engine(&self) -> &Engine {
        self.recipe.module().engine()
    }
}

impl Policy for GuestPolicy {
    fn decide(&mut self, flow: &Flow<'_>, among: &Arc<Candidates>) -> Decided {
        match self.ask(flow, among) {
            Some(decision) => Decided { decision, source: Source::Plugin },
            None => Decided {
                decision: self.fallback.decide(flow, among).decision,
                source: Source::Fallback,
            },
        }
    }

    fn wants_ticks(&self) -> bool {
        self.batch.is_some()
    }

    fn tick(&mut self, now: Instant, among: &Arc<Candidates>) {
        if self.instance.is_none() {
            self.look_for_replacement(now);
        }
        let (Some(instance), Some(batch)) = (&mut self.instance, &mut self.batch) else { return };
        if among.is_empty() || !self.governor.allows(now) {
            return;
        }
        let fed = self.governor.charge_for(|| instance.feed(now, among, batch));
        if let Err(fault) = fed {
            self.stand_in(fault);
        }
    }

    fn on_flow_ended(&mut self, ended: &EndedFlow) {
        if let Some(batch) = &mut self.batch {
            batch.note(ended);
        }
    }

    fn state(&mut self) -> Option<Vec<u8>> {
        let instance = self.instance.as_mut()?;
        let state = self.governor.charge_for(|| instance.snapshot());
        state.map_err(|fault| self.stand_in(fault)).ok()?
    }
}

impl fmt::Debug for GuestPolicy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let is_asking = &self.instance.is_some();
        f.debug_struct("GuestPolicy").field("is_asking", is_asking).finish_non_exhaustive()
    }
}

impl Drop for GuestPolicy {
    /// Leaves the dropping of the instance to the repair thread: a worker may be doing this.
    fn drop(&mut self) {
        let instance = self.instance.take();
        let slot = Arc::clone(&self.slot);
        self.engine().repair(Task::Retire { instance, slot });
    }
}

impl Record {
    fn failures_in_a_row(&self, now: Instant) -> u32 {
        let served = self.since.map_or(Duration::ZERO, |since| now.since(since));
        let is_sound = self.decisions >= SOUND_DECISIONS || served >= SOUND_TIME;
        if is_sound { 0 } else { self.failures }
    }
}

/// Whether connecting to the endpoint has failed for this flow, while another is still untried.
fn is_vain(endpoint: EndpointId, flow: &Flow<'_>, among: &Candidates) -> bool {
    flow.has_tried(endpoint) && among.endpoints.iter().any(|other| !flow.has_tried(other.id))
}

fn millis(ms: u32) -> Duration {
    Duration::from_millis(u64::from(ms))
}

fn some_unless_zero(value: u32) -> Option<u32> {
    (value != 0).then_some(value)
}
