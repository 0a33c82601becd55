//! One guest that runs: a store of its own, configured, and told the endpoints.
//!
//! An error out of any call poisons the whole store, so there is exactly one guest in each, and the
//! [`Fault`] that a call returns is the last that is heard of the guest. Everything a guest is made
//! from is in its [`Recipe`], by which another one like it is made.

use core::mem;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use pointsman_core::policy::{Flow, Table};
use pointsman_core::{Candidates, Endpoint, Generation, Instant};
use wasmtime::{Memory, Store, UpdateDeadline};

use crate::bindings::{flow_of, list_of, sample_of, types};
use crate::compat::Wasi;
use crate::error::{Fault, InstanceError, Step};
use crate::feedback::Batch;
use crate::guest::Guest;
use crate::limits::{
    Allowance, FUEL_MAX, GRACE_TICKS, PolicySettings, STATE_BYTES_MAX, WEIGHT_MAX,
    hostcall_bytes_max, ticks,
};
use crate::log::{LogBudget, LogLevel, LogLine, Speaker, one_line};
use crate::module::Module;
use crate::stats::PolicyStats;

/// Everything that one worker's instances of one policy have in common.
pub(crate) struct Recipe {
    module: Module,
    settings: Arc<PolicySettings>,
    pub(crate) stats: Arc<PolicyStats>,
    budget: LogBudget,
    decide_ticks: u64,
    configure_ticks: u64,
}

impl Recipe {
    pub(crate) fn new(
        module: &Module,
        settings: Arc<PolicySettings>,
        stats: Arc<PolicyStats>,
    ) -> Self {
        Self {
            module: module.clone(),
            decide_ticks: ticks(settings.decide_deadline),
            configure_ticks: ticks(settings.configure_deadline),
            settings,
            stats,
            budget: LogBudget::new(),
        }
    }

    pub(crate) fn module(&self) -> &Module {
        &self.module
    }

    /// Logs a line, or counts that there were too many. Never blocks.
    pub(crate) fn log(&self, speaker: Speaker, level: LogLevel, message: &str) {
        if !self.budget.take() || !self.enqueue(speaker, level, message) {
            self.stats.on_line_dropped();
        }
    }

    fn enqueue(&self, speaker: Speaker, level: LogLevel, message: &str) -> bool {
        let policy = Arc::clone(&self.settings.name);
        let message = one_line(message);
        self.module.engine().log(LogLine { policy, speaker, level, message })
    }
}

/// What the host functions see.
pub(crate) struct State {
    pub(crate) recipe: Arc<Recipe>,
    pub(crate) candidates: Arc<Candidates>,
    /// The time of the call.
    pub(crate) now: Instant,
    pub(crate) wasi: Wasi,
    /// Where the guest is called by pointers: its memory, once it may be used.
    pub(crate) memory: Option<Memory>,
    counts_fuel: bool,
    allowance: Allowance,
    /// How many ticks it gets when its deadline has passed, once per call.
    grace_ticks: u64,
}

impl State {
    /// Begins a new call.
    fn begin(&mut self) {
        self.allowance.forget();
        self.grace_ticks = GRACE_TICKS;
    }

    /// Lets a guest that is overdue go on for a moment, once.
    ///
    /// An epoch is a time on the wall, and the thread may have been off its core for all of it. A
    /// sound guest then needs some hundred nanoseconds more; one that loops is only a little later.
    fn on_deadline(&mut self) -> UpdateDeadline {
        match mem::take(&mut self.grace_ticks) {
            0 => UpdateDeadline::Interrupt,
            ticks => UpdateDeadline::Continue(ticks),
        }
    }
}

/// A guest that can be asked.
pub(crate) struct Instance {
    store: Store<State>,
    guest: Box<dyn Guest>,
    /// The generation of the endpoints that the guest knows, if it knows any.
    told: Option<Generation>,
}

impl Instance {
    /// Starts a guest, configures it, and has it take over from a predecessor if it can. May take as
    /// long as three configuration deadlines.
    pub(crate) fn new(recipe: &Arc<Recipe>, state: Option<&[u8]>) -> Result<Self, InstanceError> {
        let mut instance = Self::start(recipe)?;
        instance.configure()?;
        if let Some(state) = state.filter(|_| recipe.module.has_state()) {
            instance.restore(state)?;
        }
        Ok(instance)
    }

    /// Tells a new guest its first endpoints.
    pub(crate) fn introduce(
        &mut self,
        now: Instant,
        candidates: &Arc<Candidates>,
    ) -> Result<(), InstanceError> {
        self.store.data_mut().now = now;
        let ticks = self.recipe().configure_ticks;
        self.tell(candidates, ticks).map_err(|fault| failed(Step::Endpoints, &fault))
    }

    /// Asks about a flow, having told the guest first if the endpoints have changed.
    pub(crate) fn decide(
        &mut self,
        flow: &Flow<'_>,
        among: &Arc<Candidates>,
    ) -> Result<types::Decision, Fault> {
        let ticks = self.recipe().decide_ticks;
        self.store.data_mut().now = flow.now;
        self.catch_up(among, ticks)?;
        let flow = flow_of(flow, among);
        guarded(&mut self.store, ticks, |store| self.guest.decide(store, flow))
    }

    /// Hands over what has happened since the last time.
    pub(crate) fn feed(
        &mut self,
        now: Instant,
        among: &Arc<Candidates>,
        batch: &mut Batch,
    ) -> Result<(), Fault> {
        let ticks = self.recipe().decide_ticks;
        let feed = batch.hand_over(now, among);
        self.store.data_mut().now = now;
        self.catch_up(among, ticks)?;
        guarded(&mut self.store, ticks, |store| self.guest.feed(store, &feed))
    }

    /// Has it make the lookup table for a list.
    pub(crate) fn build(&mut self, now: Instant, among: &Arc<Candidates>) -> Result<Table, Fault> {
        let ticks = self.recipe().configure_ticks;
        let list = list_of(among);
        self.store.data_mut().now = now;
        self.store.data_mut().candidates = Arc::clone(among);
        let built = guarded(&mut self.store, ticks, |store| self.guest.build(store, &list))?;
        built
            .map_err(|words| format!("it made no table: {words}"))
            .and_then(|slots| table_of(slots, among.len()))
            .map_err(Fault::of_answer)
    }

    /// Asks it for new weights; `None` if they are to stay as they are.
    pub(crate) fn weigh(
        &mut self,
        now: Instant,
        among: &Arc<Candidates>,
    ) -> Result<Option<Vec<u32>>, Fault> {
        let ticks = self.recipe().configure_ticks;
        self.store.data_mut().now = now;
        self.catch_up(among, ticks)?;
        let sample_of = |endpoint: &Endpoint| sample_of(&endpoint.load.sample(now));
        let samples: Vec<_> = among.endpoints.iter().map(sample_of).collect();
        let weights = guarded(&mut self.store, ticks, |store| {
            self.guest.weigh(store, now.as_millis(), &samples)
        })?;
        if weights.is_empty() {
            return Ok(None);
        }
        check_weights(&weights, among.len()).map_err(Fault::of_answer)?;
        Ok(Some(weights))
    }

    /// What it hands over to its successor, if it does such a thing.
    pub(crate) fn snapshot(&mut self) -> Result<Option<Vec<u8>>, Fault> {
        if !self.recipe().module.has_state() {
            return Ok(None);
        }
        let ticks = self.recipe().decide_ticks;
        let state = guarded(&mut self.store, ticks, |store| self.guest.snapshot(store))?;
        if state.len() > STATE_BYTES_MAX {
            let size = state.len();
            let problem = format!("a state of {size} bytes; at most {STATE_BYTES_MAX} are kept");
            return Err(Fault::of_answer(problem));
        }
        Ok(Some(state))
    }

    fn start(recipe: &Arc<Recipe>) -> Result<Self, InstanceError> {
        let nobody = Candidates { generation: Generation(0), endpoints: [].into(), table: None };
        let state = State {
            recipe: Arc::clone(recipe),
            candidates: Arc::new(nobody),
            now: Instant::ZERO,
            wasi: Wasi::default(),
            memory: None,
            counts_fuel: recipe.module.engine().limits().counts_fuel,
            allowance: Allowance::new(recipe.settings.memory_bytes_max),
            grace_ticks: 0,
        };
        let mut store = Store::new(recipe.module.engine().wasm(), state);
        store.limiter(|state| &mut state.allowance);
        store.set_hostcall_fuel(hostcall_bytes_max(recipe.module.shape()));
        store.epoch_deadline_callback(|mut store| Ok(store.data_mut().on_deadline()));
        let prepared = recipe.module.prepared();
        let guest = guarded(&mut store, recipe.configure_ticks, |store| prepared.start(store))
            .map_err(|fault| failed(Step::Start, &fault))?;
        Ok(Self { store, guest, told: None })
    }

    fn configure(&mut self) -> Result<(), InstanceError> {
        let recipe = Arc::clone(self.recipe());
        let configured = guarded(&mut self.store, recipe.configure_ticks, |store| {
            self.guest.configure(store, &recipe.settings.config_json)
        });
        configured
            .map_err(|fault| failed(Step::Configure, &fault))?
            .map_err(|words| InstanceError::Config(one_line(&words)))
    }

    fn restore(&mut self, state: &[u8]) -> Result<(), InstanceError> {
        let ticks = self.recipe().configure_ticks;
        let restored = guarded(&mut self.store, ticks, |store| self.guest.restore(store, state));
        restored
            .map_err(|fault| failed(Step::Restore, &fault))?
            .map_err(|words| InstanceError::State(one_line(&words)))
    }

    fn catch_up(&mut self, candidates: &Arc<Candidates>, ticks: u64) -> Result<(), Fault> {
        if self.told == Some(candidates.generation) {
            return Ok(());
        }
        self.tell(candidates, ticks)
    }

    fn tell(&mut self, candidates: &Arc<Candidates>, ticks: u64) -> Result<(), Fault> {
        let list = list_of(candidates);
        self.store.data_mut().candidates = Arc::clone(candidates);
        guarded(&mut self.store, ticks, |store| self.guest.endpoints_changed(store, &list))?;
        self.told = Some(candidates.generation);
        Ok(())
    }

    /// What the last call has executed, if the engine counts that.
    pub(crate) fn fuel_used(&self) -> Option<u64> {
        self.store.get_fuel().ok().map(|left| FUEL_MAX - left)
    }

    /// How large its memory has become.
    pub(crate) fn memory_bytes(&self) -> usize {
        self.store.data().allowance.memory_bytes()
    }

    /// The endpoints that it was told of last.
    pub(crate) fn candidates(&self) -> &Arc<Candidates> {
        &self.store.data().candidates
    }

    /// When it was called last.
    pub(crate) fn now(&self) -> Instant {
        self.store.data().now
    }

    pub(crate) fn recipe(&self) -> &Arc<Recipe> {
        &self.store.data().recipe
    }
}

/// Makes an instance only to ask what it may be configured with.
pub(crate) fn config_schema(module: &Module) -> Result<String, InstanceError> {
    let settings = Arc::new(PolicySettings::new("schema", "null"));
    let recipe = Arc::new(Recipe::new(module, settings, Arc::default()));
    let mut instance = Instance::start(&recipe)?;
    let schema = guarded(&mut instance.store, recipe.configure_ticks, |store| {
        instance.guest.config_schema(store)
    });
    schema.map_err(|fault| failed(Step::Schema, &fault))
}

/// Takes a table, or says what is wrong with it.
fn table_of(slots: Vec<u32>, endpoints: usize) -> Result<Table, String> {
    let (length, length_max) = (slots.len(), Table::SIZE_MAX);
    let strange = slots.iter().position(|&slot| slot as usize >= endpoints);
    let strange = strange.map(|place| (place, slots[place]));
    Table::new(slots.into(), endpoints).ok_or_else(|| match strange {
        Some((place, slot)) if length <= length_max => {
            format!("entry {place} of the table is endpoint {slot} of {endpoints}")
        }
        _ => format!("a table of {length} entries; it must have 1 to {length_max}"),
    })
}

/// Says what is wrong with weights.
fn check_weights(weights: &[u32], endpoints: usize) -> Result<(), String> {
    if weights.len() != endpoints {
        return Err(format!("{} weights for {endpoints} endpoints", weights.len()));
    }
    match weights.iter().enumerate().find(|(_, weight)| !(1..=WEIGHT_MAX).contains(*weight)) {
        Some((place, weight)) => {
            Err(format!("endpoint {place} is to weigh {weight}; it must be 1 to {WEIGHT_MAX}"))
        }
        None => Ok(()),
    }
}

/// Calls into a guest, with a deadline, and with a net under it: a panic in a host function is our
/// mistake and is to cost one decision, not the worker. The store is not used again after one.
fn guarded<R>(
    store: &mut Store<State>,
    ticks: u64,
    call: impl FnOnce(&mut Store<State>) -> wasmtime::Result<R>,
) -> Result<R, Fault> {
    store.set_epoch_deadline(ticks);
    store.data_mut().begin();
    if store.data().counts_fuel {
        // Fails only where fuel is not counted.
        let _ = store.set_fuel(FUEL_MAX);
    }
    match catch_unwind(AssertUnwindSafe(|| call(&mut *store))) {
        Ok(Ok(result)) => Ok(result),
        Ok(Err(error)) => Err(Fault::of_error(error, store.data().allowance.has_refused())),
        Err(_) => Err(Fault::of_panic()),
    }
}

fn failed(step: Step, fault: &Fault) -> InstanceError {
    if fault.is_full() {
        return InstanceError::Full;
    }
    InstanceError::Fault { step, kind: fault.kind, reason: fault.reason() }
}

#[cfg(test)]
mod tests {
    use wasmtime::{Linker, Module as CoreModule};
    use wit_component::{StringEncoding, embed_component_metadata};
    use wit_parser::Resolve;

    use super::*;
    use crate::engine::Engine;
    use crate::error::FaultKind;
    use crate::limits::EngineLimits;

    /// A guest of which only the types are right.
    const HOLLOW: &str = r#"(module
        (memory (export "memory") 1)
        (func (export "cabi_realloc") (param i32 i32 i32 i32) (result i32) unreachable)
        (func (export "configure") (param i32 i32) (result i32) unreachable)
        (func (export "endpoints-changed") (param i64 i32 i32))
        (func (export "decide")
            (param i32 i64 i64 i32 i64 i64 i32 i64 i32 i32 i64 i64) (result i32) unreachable))"#;

    fn hollow() -> Vec<u8> {
        let mut module = wat::parse_str(HOLLOW).unwrap();
        let mut resolve = Resolve::default();
        let wit = include_str!("../../../plugin-sdk/wit/policy.wit");
        let package = resolve.push_str("policy.wit", wit).unwrap();
        let world = resolve.select_world(&[package], Some("chooser")).unwrap();
        let encoding = StringEncoding::UTF8;
        embed_component_metadata(&mut module, &resolve, world, encoding, false).unwrap();
        module
    }

    fn store() -> Store<State> {
        let limits = EngineLimits { instances_max: 1, ..EngineLimits::default() };
        let engine = Engine::new(limits, Arc::new(|_| {})).unwrap();
        let module = engine.load(&hollow()).unwrap();
        let settings = Arc::new(PolicySettings::new("test", "null"));
        let recipe = Arc::new(Recipe::new(&module, settings, Arc::default()));
        let candidates =
            Arc::new(Candidates { generation: Generation(1), endpoints: [].into(), table: None });
        let allowance = Allowance::new(1 << 20);
        let now = Instant::ZERO;
        let state = State {
            recipe,
            candidates,
            now,
            wasi: Wasi::default(),
            memory: None,
            counts_fuel: false,
            allowance,
            grace_ticks: 0,
        };
        Store::new(engine.wasm(), state)
    }

    #[test]
    fn a_panic_of_our_own_under_a_guest_is_a_fault_and_no_more() {
        let mut store = store();
        let text = r#"(module (import "host" "f" (func $f)) (func (export "run") (call $f)))"#;
        let wasm = store.engine().clone();
        let module = CoreModule::new(&wasm, wat::parse_str(text).unwrap()).unwrap();
        let mut linker = Linker::new(&wasm);
        let panicking = || -> () { panic!("a mistake in a host function") };
        linker.func_wrap("host", "f", panicking).unwrap();
        store.set_epoch_deadline(ticks(std::time::Duration::from_secs(20)));
        let run = linker.instantiate(&mut store, &module).unwrap();
        let run = run.get_typed_func::<(), ()>(&mut store, "run").unwrap();

        let fault = guarded(&mut store, 1 << 20, |store| run.call(store, ())).unwrap_err();
        assert_eq!(fault.kind, FaultKind::Trap);
        assert!(fault.reason().contains("panicked"));
    }
}
