//! The engine: the compiler's and runtime's settings, and the three threads beside the workers.
//!
//! | thread | does | why it is not a worker's job |
//! |---|---|---|
//! | ticker | advances the epoch every millisecond | a guest that loops does not look at clocks |
//! | repair | drops and makes instances | both cost microseconds to milliseconds, or block |
//! | log | hands lines to the sink | a sink may block |
//!
//! Instances live in a pool: making one is then a few microseconds of bookkeeping, and the number
//! at a time is bounded. The pool reserves address space only; a page that no guest has touched is
//! no memory. There is no second way of allocating behind it: an engine that cannot reserve its
//! pool says so and does not start.

use core::fmt;
use std::num::NonZeroUsize;
use std::sync::mpsc::{Sender, SyncSender, channel};
use std::sync::{Arc, OnceLock};
use std::thread;

use wasmtime::component::types::Component;
use wasmtime::component::{HasSelf, Linker};
use wasmtime::{Config, EngineWeak, InstanceAllocationStrategy, OptLevel, PoolingAllocationConfig};

use crate::bindings::Chooser;
use crate::compat::{self, Parts, Profile};
use crate::error::{EngineError, LoadError, reason_of};
use crate::instance::State;
use crate::limits::{EngineLimits, STACK_BYTES_MAX, TABLE_ELEMENTS_MAX, TICK};
use crate::log::{self, LogLine, LogSink};
use crate::module::Module;
use crate::repair::{self, Task};

/// Frames kept of a trap; the innermost says most.
const BACKTRACE_FRAMES_MAX: usize = 8;
/// The size of a 32-bit memory; how much of it a policy may use is said in its settings.
const MEMORY_ADDRESS_BYTES: usize = 1 << 32;

/// Compiles plugins and owns what all their instances share. Cheap to clone.
///
/// Everything made from it keeps it alive; its threads end when the last of these is gone.
#[derive(Clone)]
pub struct Engine {
    shared: Arc<Shared>,
}

struct Shared {
    wasm: wasmtime::Engine,
    linker: Linker<State>,
    profile: Profile,
    limits: EngineLimits,
    tasks: Sender<Task>,
    lines: SyncSender<LogLine>,
    /// The engine of the other profile, once it was wanted.
    compat: OnceLock<Engine>,
}

impl Engine {
    /// Reserves the pool and starts the threads. `sink` is handed every log line, on the log
    /// thread.
    ///
    /// # Errors
    ///
    /// If the system refuses the address space or a thread.
    pub fn new(limits: EngineLimits, sink: LogSink) -> Result<Self, EngineError> {
        // The first reading learns how fast the counter counts, which no worker is to wait for.
        quanta::Instant::now();
        let (tasks, repairs) = channel();
        let (lines, written) = log::queue();
        let engine = Self::of(Profile::Strict, limits, tasks, lines)?;
        spawn("policy-repair", move || repair::run(&repairs))?;
        spawn("policy-log", move || log::run(&written, &sink))?;
        Ok(engine)
    }

    /// The engine that loads plugins of a profile. That of [`Profile::Compat`] is made when it is
    /// first asked for, and then shared: it has settings of the runtime and a pool of its own.
    ///
    /// # Errors
    ///
    /// If the system refuses the address space or a thread.
    pub fn of_profile(&self, profile: Profile) -> Result<Self, EngineError> {
        if profile == self.shared.profile {
            return Ok(self.clone());
        }
        if let Some(engine) = self.shared.compat.get() {
            return Ok(engine.clone());
        }
        let Shared { limits, tasks, lines, .. } = &*self.shared;
        let engine = Self::of(profile, *limits, tasks.clone(), lines.clone())?;
        Ok(self.shared.compat.get_or_init(|| engine).clone())
    }

    /// Reserves a pool and starts the ticker.
    fn of(
        profile: Profile,
        limits: EngineLimits,
        tasks: Sender<Task>,
        lines: SyncSender<LogLine>,
    ) -> Result<Self, EngineError> {
        let refused = |error: &wasmtime::Error| EngineError::Reserve {
            instances: limits.instances_max,
            reason: reason_of(error),
        };
        let config = config(profile, limits);
        let wasm = wasmtime::Engine::new(&config).map_err(|error| refused(&error))?;
        let mut linker = Linker::new(&wasm);
        Chooser::add_to_linker::<_, HasSelf<_>>(&mut linker, |state| state)
            .map_err(|error| refused(&error))?;
        let weak = wasm.weak();
        spawn("policy-ticker", move || tick(&weak))?;
        let compat = OnceLock::new();
        let shared = Shared { wasm, linker, profile, limits, tasks, lines, compat };
        Ok(Self { shared: Arc::new(shared) })
    }

    /// Does what the first call on a thread would otherwise do, which costs hundreds of
    /// microseconds. Every worker calls this once, before it serves.
    pub fn prepare_thread(&self) {
        wasmtime::Engine::tls_eager_initialize();
    }

    /// Compiles and checks a plugin: a component, or a core module that carries its interface.
    ///
    /// Takes 20 ms and more, and as long as it likes for a file made to be slow.
    ///
    /// # Errors
    ///
    /// If it is not a policy for this host; the error is one line for its author.
    pub fn load(&self, bytes: &[u8]) -> Result<Module, LoadError> {
        Module::load(self, bytes)
    }

    pub(crate) fn wasm(&self) -> &wasmtime::Engine {
        &self.shared.wasm
    }

    /// What a component is linked with.
    pub(crate) fn linker_for(&self, world: &Component) -> wasmtime::Result<Linker<State>> {
        let mut linker = self.shared.linker.clone();
        if self.shared.profile == Profile::Compat {
            compat::add_stubs(&mut linker, self.wasm(), world)?;
        }
        Ok(linker)
    }

    pub(crate) fn profile(&self) -> Profile {
        self.shared.profile
    }

    pub(crate) fn limits(&self) -> EngineLimits {
        self.shared.limits
    }

    /// Hands work to the repair thread. Never blocks.
    pub(crate) fn repair(&self, task: Task) {
        // Fails only if the thread is gone, and then there is nobody to do it better.
        let _ = self.shared.tasks.send(task);
    }

    /// Hands a line to the log thread; false if too many are waiting. Never blocks.
    pub(crate) fn log(&self, line: LogLine) -> bool {
        self.shared.lines.try_send(line).is_ok()
    }
}

impl fmt::Debug for Engine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Engine").field("limits", &self.shared.limits).finish_non_exhaustive()
    }
}

fn config(profile: Profile, limits: EngineLimits) -> Config {
    let mut config = Config::new();
    config
        .epoch_interruption(true)
        // On the thread that asks for it, which may have stepped back behind the workers.
        .parallel_compilation(false)
        .consume_fuel(limits.counts_fuel)
        .max_wasm_stack(STACK_BYTES_MAX)
        .cranelift_opt_level(OptLevel::Speed)
        .native_unwind_info(false)
        .wasm_backtrace_max_frames(NonZeroUsize::new(BACKTRACE_FRAMES_MAX))
        .concurrency_support(false)
        .wasm_simd(false)
        .wasm_relaxed_simd(false)
        .wasm_memory64(false)
        .wasm_multi_memory(profile.parts().memories > 1)
        .wasm_tail_call(false)
        .allocation_strategy(InstanceAllocationStrategy::Pooling(pool(
            profile,
            limits.instances_max,
        )));
    config
}

fn pool(profile: Profile, instances_max: u32) -> PoolingAllocationConfig {
    let Parts { core_instances, memories, tables } = profile.parts();
    let mut pool = PoolingAllocationConfig::new();
    pool.total_component_instances(instances_max)
        .total_core_instances(instances_max.saturating_mul(core_instances))
        .total_memories(instances_max.saturating_mul(memories))
        .total_tables(instances_max.saturating_mul(tables))
        .max_core_instances_per_component(core_instances)
        .max_memories_per_component(memories)
        .max_tables_per_component(tables)
        .max_memory_size(MEMORY_ADDRESS_BYTES)
        .table_elements(TABLE_ELEMENTS_MAX);
    pool
}

fn spawn(name: &str, body: impl FnOnce() + Send + 'static) -> Result<(), EngineError> {
    thread::Builder::new().name(name.into()).spawn(body)?;
    Ok(())
}

/// Advances the epoch until nobody is left to see it.
///
/// It does not catch up when it was late: a deadline may then be longer than asked for, never
/// shorter.
fn tick(wasm: &EngineWeak) {
    while let Some(wasm) = wasm.upgrade() {
        wasm.increment_epoch();
        drop(wasm);
        thread::sleep(TICK);
    }
}
