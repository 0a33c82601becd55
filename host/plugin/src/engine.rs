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
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, SyncSender, channel};
use std::thread;

use wasmtime::component::{HasSelf, Linker};
use wasmtime::{Config, EngineWeak, InstanceAllocationStrategy, OptLevel, PoolingAllocationConfig};

use crate::bindings::Chooser;
use crate::error::{EngineError, LoadError, reason_of};
use crate::instance::State;
use crate::limits::{EngineLimits, STACK_BYTES_MAX, TABLE_ELEMENTS_MAX, TICK};
use crate::log::{self, LogLine, LogSink};
use crate::module::Module;
use crate::repair::{self, Task};

/// Frames kept of a trap; the innermost says most.
const BACKTRACE_FRAMES_MAX: usize = 8;
/// Core modules in one component. The encoder makes three or four of one module.
const CORE_INSTANCES_MAX: u32 = 8;
/// Tables in one component: the module's own, and one of its imports.
const TABLES_MAX: u32 = 4;
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
    limits: EngineLimits,
    tasks: Sender<Task>,
    lines: SyncSender<LogLine>,
}

impl Engine {
    /// Reserves the pool and starts the threads. `sink` is handed every log line, on the log
    /// thread.
    ///
    /// # Errors
    ///
    /// If the system refuses the address space or a thread.
    pub fn new(limits: EngineLimits, sink: LogSink) -> Result<Self, EngineError> {
        let refused = |error: &wasmtime::Error| EngineError::Reserve {
            instances: limits.instances_max,
            reason: reason_of(error),
        };
        let wasm = wasmtime::Engine::new(&config(limits)).map_err(|error| refused(&error))?;
        let mut linker = Linker::new(&wasm);
        Chooser::add_to_linker::<_, HasSelf<_>>(&mut linker, |state| state)
            .map_err(|error| refused(&error))?;
        let (tasks, repairs) = channel();
        let (lines, written) = log::queue();
        start_threads(wasm.weak(), repairs, written, sink)?;
        Ok(Self { shared: Arc::new(Shared { wasm, linker, limits, tasks, lines }) })
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

    pub(crate) fn linker(&self) -> &Linker<State> {
        &self.shared.linker
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

fn config(limits: EngineLimits) -> Config {
    let mut config = Config::new();
    config
        .epoch_interruption(true)
        .consume_fuel(limits.counts_fuel)
        .max_wasm_stack(STACK_BYTES_MAX)
        .cranelift_opt_level(OptLevel::Speed)
        .native_unwind_info(false)
        .wasm_backtrace_max_frames(NonZeroUsize::new(BACKTRACE_FRAMES_MAX))
        .concurrency_support(false)
        .wasm_simd(false)
        .wasm_relaxed_simd(false)
        .wasm_memory64(false)
        .wasm_multi_memory(false)
        .wasm_tail_call(false)
        .allocation_strategy(InstanceAllocationStrategy::Pooling(pool(limits.instances_max)));
    config
}

fn pool(instances_max: u32) -> PoolingAllocationConfig {
    let mut pool = PoolingAllocationConfig::new();
    pool.total_component_instances(instances_max)
        .total_core_instances(instances_max.saturating_mul(CORE_INSTANCES_MAX))
        .total_memories(instances_max)
        .total_tables(instances_max.saturating_mul(TABLES_MAX))
        .max_core_instances_per_component(CORE_INSTANCES_MAX)
        .max_memories_per_component(1)
        .max_tables_per_component(TABLES_MAX)
        .max_memory_size(MEMORY_ADDRESS_BYTES)
        .table_elements(TABLE_ELEMENTS_MAX);
    pool
}

fn start_threads(
    wasm: EngineWeak,
    tasks: Receiver<Task>,
    lines: Receiver<LogLine>,
    sink: LogSink,
) -> Result<(), EngineError> {
    spawn("policy-ticker", move || tick(&wasm))?;
    spawn("policy-repair", move || repair::run(&tasks))?;
    spawn("policy-log", move || log::run(&lines, &sink))
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
