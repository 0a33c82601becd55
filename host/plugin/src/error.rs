//! Everything that can be wrong with a plugin, and what to call it.
//!
//! Loading and making an instance fail with an error for a person to read: one line that says what
//! to do. A call on the data path fails with a [`Fault`], which is counted, logged elsewhere, and
//! answered by the fallback.

use core::fmt;

use wasmtime::{PoolConcurrencyLimitError, Trap, WasmBacktrace};

use crate::bindings::{PACKAGE, VERSION};
use crate::log::one_line;
use crate::world::Shape;

/// Why there is no engine.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// The address space for the instances cannot be had.
    #[error(
        "cannot reserve address space for {instances} plugin instances ({reason}); run fewer \
         workers or policies, or raise the limit on address space (ulimit -v)"
    )]
    Reserve {
        /// How many instances were wanted.
        instances: u32,
        /// What the system said.
        reason: String,
    },
    /// A thread cannot be started.
    #[error("cannot start a thread for plugins ({0}); raise the limit on processes (ulimit -u)")]
    Thread(#[from] std::io::Error),
}

/// Why a file is not a policy that can be run.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum LoadError {
    /// The file is larger than allowed.
    #[error(
        "{bytes} bytes are more than the {bytes_max} allowed for a plugin; build it in release \
         mode and strip it"
    )]
    TooLarge {
        /// Its size.
        bytes: usize,
        /// The largest size that is accepted.
        bytes_max: usize,
    },
    /// The file is something else altogether.
    #[error("not a WebAssembly file but {0}; give the .wasm that `pointsman policy build` makes")]
    NotWasm(&'static str),
    /// The file is WebAssembly, but damaged or in need of something that is switched off.
    #[error("not a WebAssembly file that can be run ({0}); build it again")]
    Invalid(String),
    /// A core module that says nothing about its interface.
    #[error("a module without an interface; build it with `pointsman policy build`")]
    NoInterface,
    /// It imports part of WASI.
    #[error(
        "it imports `{0}`, but a policy gets no WASI; build it for wasm32-unknown-unknown, or, if it \
         is a component, give it stubs with profile = \"compat\""
    )]
    Wasi(String),
    /// It imports something unknown.
    #[error("it imports `{0}`, which this host does not have; use only what pointsman-sdk offers")]
    UnknownImport(String),
    /// It was made for another version of the interface.
    #[error(
        "it wants {PACKAGE}@{0}, but this host speaks {PACKAGE}@{VERSION}; build it with the \
         pointsman-sdk of this release"
    )]
    Version(String),
    /// It does not export what a policy must.
    #[error("it does not export `{0}`, so it is no policy; build it with pointsman-sdk")]
    MissingExport(&'static str),
    /// It exports nothing that a policy could be asked for.
    #[error(
        "it exports none of `decide`, `build` and `tick`, so it is no policy; build it with \
         pointsman-sdk"
    )]
    NoShape,
    /// It is several policies at once.
    #[error("it implements both `{0}` and `{1}`; leave it the functions of one world")]
    SeveralShapes(Shape, Shape),
    /// It wants to hear of ended flows, and is of a shape that does not.
    #[error(
        "it exports `feedback`, which only a chooser is given, and it is a `{0}`; leave it out"
    )]
    NoFeedback(Shape),
    /// It exports or imports something by the right name with the wrong type.
    #[error("`{name}` has another type than {PACKAGE}@{VERSION} says ({reason}); build it again")]
    WrongType {
        /// What it is that differs.
        name: String,
        /// How it differs.
        reason: String,
    },
}

/// Why no instance could be made of a module.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum InstanceError {
    /// Every reserved place is taken.
    #[error("all places for plugin instances are taken; run fewer workers or fewer policies")]
    Full,
    /// The guest did not like its configuration. The message is the guest's.
    #[error("the policy refuses its configuration: {0}")]
    Config(String),
    /// The guest cannot go on from what its predecessor handed over. The message is the guest's.
    #[error("the policy refuses its predecessor's state: {0}")]
    State(String),
    /// The module is another kind of policy.
    #[error("a policy of the shape `{wanted}` is wanted here, and this one is a `{found}`")]
    Shape {
        /// What was asked for.
        wanted: Shape,
        /// What the module is.
        found: Shape,
    },
    /// The guest failed before its first decision.
    #[error("the policy failed {step} ({kind}: {reason}); see its log, or go back to the last one")]
    Fault {
        /// What it was doing.
        step: Step,
        /// How it failed.
        kind: FaultKind,
        /// What the runtime said.
        reason: String,
    },
}

/// What a guest does before its first decision.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// Its start functions run.
    Start,
    /// It reads its configuration.
    Configure,
    /// It takes over from a predecessor.
    Restore,
    /// It hears of the endpoints.
    Endpoints,
    /// It says what it may be configured with.
    Schema,
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Start => "to start",
            Self::Configure => "in `configure`",
            Self::Restore => "in `restore`",
            Self::Endpoints => "in `endpoints-changed`",
            Self::Schema => "in `config-schema`",
        })
    }
}

/// The ways in which a guest can fail.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum FaultKind {
    /// It trapped: `unreachable`, a division by zero, the end of its stack, …
    Trap,
    /// It took too long.
    Deadline,
    /// It trapped after it was refused more memory.
    Memory,
    /// It answered what is no answer.
    Answer,
}

impl FaultKind {
    /// All kinds, in the order of their [`index`](Self::index).
    pub const ALL: [Self; 4] = [Self::Trap, Self::Deadline, Self::Memory, Self::Answer];

    /// Dense, from 0.
    #[must_use]
    pub const fn index(self) -> usize {
        self as usize
    }

    /// The value of the metric's `kind` label.
    #[must_use]
    pub const fn label(self) -> &'static str {
        match self {
            Self::Trap => "trap",
            Self::Deadline => "deadline",
            Self::Memory => "memory",
            Self::Answer => "answer",
        }
    }
}

impl fmt::Display for FaultKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.label())
    }
}

/// Why a guest that is asked off the data path has no answer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{kind} fault: {reason}")]
pub struct GuestFault {
    /// How it failed.
    pub kind: FaultKind,
    /// What happened, on one line.
    pub reason: String,
}

/// A call that failed and with it the whole store: the runtime does not let it be entered again.
#[derive(Debug)]
pub(crate) struct Fault {
    pub(crate) kind: FaultKind,
    cause: Cause,
}

/// What the runtime gave as a reason. Put into words only where there is time for it.
#[derive(Debug)]
enum Cause {
    Error(wasmtime::Error),
    Panic,
    Answer(String),
}

impl Fault {
    /// Judges a call that returned an error.
    pub(crate) fn of_error(error: wasmtime::Error, was_refused_memory: bool) -> Self {
        // Under an import there are guest frames; without any, the guest had returned, and what it
        // had returned could not be read.
        let was_inside = error.downcast_ref::<WasmBacktrace>().is_some();
        let kind = match error.downcast_ref::<Trap>() {
            Some(Trap::Interrupt) => FaultKind::Deadline,
            _ if was_refused_memory => FaultKind::Memory,
            None if !was_inside => FaultKind::Answer,
            _ => FaultKind::Trap,
        };
        Self { kind, cause: Cause::Error(error) }
    }

    /// Judges a call that ended in a panic of our own.
    pub(crate) fn of_panic() -> Self {
        Self { kind: FaultKind::Trap, cause: Cause::Panic }
    }

    /// An answer that could be read and cannot be used.
    pub(crate) fn of_answer(reason: String) -> Self {
        Self { kind: FaultKind::Answer, cause: Cause::Answer(reason) }
    }

    /// Whether it failed for want of a place in the pool.
    pub(crate) fn is_full(&self) -> bool {
        let Cause::Error(error) = &self.cause else { return false };
        error.downcast_ref::<PoolConcurrencyLimitError>().is_some()
    }

    /// What happened, on one line.
    pub(crate) fn reason(&self) -> String {
        match &self.cause {
            Cause::Error(error) => reason_of(error),
            Cause::Panic => "the host panicked, please report it".into(),
            Cause::Answer(reason) => one_line(reason),
        }
    }
}

impl From<Fault> for GuestFault {
    fn from(fault: Fault) -> Self {
        Self { kind: fault.kind, reason: fault.reason() }
    }
}

/// An error and everything that led to it, outermost first.
pub(crate) fn chain_of(error: &wasmtime::Error) -> String {
    let chain: Vec<_> = error.chain().map(ToString::to_string).collect();
    one_line(&chain.join(": "))
}

/// The root of an error, and the innermost function it happened in.
pub(crate) fn reason_of(error: &wasmtime::Error) -> String {
    let mut reason = one_line(&error.root_cause().to_string());
    let backtrace = error.downcast_ref::<WasmBacktrace>();
    let function = backtrace
        .and_then(|backtrace| backtrace.frames().first())
        .and_then(|frame| frame.func_name());
    if let Some(function) = function {
        reason.push_str(" in ");
        reason.push_str(&one_line(function));
    }
    reason
}
