//! A guest, whichever way it is called.
//!
//! The functions are those of the interface; what runs below is a component, or the core module
//! inside it. Everything above (deadlines, what an answer means, what becomes of a fault) is the
//! same for both.

use wasmtime::Store;

use crate::bindings::feedback::Ended;
use crate::bindings::signals::Sample;
use crate::bindings::types::{Decision, Endpoint, Flow};
use crate::instance::State;

/// What makes guests: a module that is compiled, linked and checked.
pub(crate) trait Prepared: Send + Sync {
    /// Makes one, and runs its start functions.
    fn start(&self, store: &mut Store<State>) -> wasmtime::Result<Box<dyn Guest>>;
}

/// The functions that a guest may export, called in the store that it was started in.
///
/// Asking for one that it does not export is an error as any other.
pub(crate) trait Guest: Send {
    fn configure(&self, store: &mut Store<State>, config: &str) -> Answer<Result<(), String>>;

    fn endpoints_changed(&self, store: &mut Store<State>, list: &List) -> Answer<()>;

    fn decide(&self, store: &mut Store<State>, flow: Flow) -> Answer<Decision>;

    fn build(&self, store: &mut Store<State>, list: &List) -> Answer<Result<Vec<u32>, String>>;

    fn weigh(&self, store: &mut Store<State>, now_ms: u64, samples: &[Sample]) -> Answer<Vec<u32>>;

    fn feed(&self, store: &mut Store<State>, feed: &Feed<'_>) -> Answer<()>;

    fn snapshot(&self, store: &mut Store<State>) -> Answer<Vec<u8>>;

    fn restore(&self, store: &mut Store<State>, state: &[u8]) -> Answer<Result<(), String>>;

    fn config_schema(&self, store: &mut Store<State>) -> Answer<String>;
}

/// What a call comes to. After an error the store is not entered again.
pub(crate) type Answer<T> = wasmtime::Result<T>;

/// A list of endpoints in the guest's words.
pub(crate) struct List {
    pub(crate) generation: u64,
    pub(crate) endpoints: Vec<Endpoint>,
}

/// What has happened since the last tick.
pub(crate) struct Feed<'a> {
    pub(crate) now_ms: u64,
    pub(crate) samples: &'a [Sample],
    pub(crate) ended: &'a [Ended],
    pub(crate) missed: u32,
}
