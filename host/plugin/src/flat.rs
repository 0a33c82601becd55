//! A guest as a plain core module: what a policy of the SDK is before it is made a component.
//!
//! A component's functions are wrapped: each call checks whether it may be entered, and converts
//! every value by a description of its type. That costs more than a whole decision. The module
//! inside exports the same functions already, with flat parameters and records in memory, so where
//! the plugin comes as such a module it is checked as the component that it is, and then called
//! without the wrapping. What a conversion would refuse is refused here too, by the same rules: the
//! Component Model's canonical ABI. Its part that the interface needs is in [`abi`]; the names of
//! the functions are those that `wit-bindgen` gives them and `wit-component` looks for.

mod abi;
mod imports;
mod outline;

use std::sync::Arc;

use wasmtime::{
    Extern, Instance, InstancePre, Linker, Memory, Module, ModuleExport, Store, TypedFunc,
    WasmParams, WasmResults, format_err,
};

pub(crate) use self::outline::outline;

use self::abi::{FlatFlow, Heap, Realloc, View, bytes, nothing, numbers, result, string};
use crate::bindings::signals::Sample;
use crate::bindings::types::{Decision, Flow};
use crate::component::not_exported;
use crate::engine::Engine;
use crate::guest::{Answer, Feed, Guest, List, Prepared};
use crate::instance::State;
use crate::limits::hostcall_bytes_max;
use crate::world::{ByFunction, Function, World};

/// What each module calls its memory, its allocator, and what is to run before everything else.
const MEMORY: &str = "memory";
const REALLOC: &str = "cabi_realloc";
const INITIALIZE: &str = "_initialize";
/// Before the name of a function, that of another which is called once its result has been read.
const POST_RETURN: &str = "cabi_post_";

/// A core module whose imports are linked.
pub(crate) struct PreparedModule {
    pre: InstancePre<State>,
    exports: Arc<Exports>,
    initialize: Option<ModuleExport>,
}

/// Where in a module everything is.
struct Exports {
    memory: ModuleExport,
    realloc: ModuleExport,
    functions: ByFunction<ModuleExport>,
    post_returns: ByFunction<ModuleExport>,
    /// Bytes that a guest may hand over in one call.
    bytes_max: usize,
}

impl PreparedModule {
    /// Prepares a module that is known to be the inside of a component of this world. `None` if it
    /// is put together in another way than `wit-bindgen` does it; it then has to be a component.
    pub(crate) fn new(engine: &Engine, module: &Module, world: &World) -> Option<Self> {
        let mut linker = Linker::new(engine.wasm());
        imports::link(&mut linker, module)?;
        let pre = linker.instantiate_pre(module).ok()?;
        let exports = Exports::find(module, world)?;
        let initialize = module.get_export_index(INITIALIZE);
        Some(Self { pre, exports: Arc::new(exports), initialize })
    }
}

impl Exports {
    fn find(module: &Module, world: &World) -> Option<Self> {
        let names = world.interfaces.and_then(|function, interface| {
            let name = function.name();
            Some(if interface.is_empty() { name.into() } else { format!("{interface}#{name}") })
        });
        let functions = names.and_then(|_, name| module.get_export_index(name));
        let post_return =
            |_, name: &String| module.get_export_index(&format!("{POST_RETURN}{name}"));
        functions.covers(&names).then_some(Self {
            memory: module.get_export_index(MEMORY)?,
            realloc: module.get_export_index(REALLOC)?,
            post_returns: names.and_then(post_return),
            functions,
            bytes_max: hostcall_bytes_max(world.shape),
        })
    }
}

impl Prepared for PreparedModule {
    fn start(&self, store: &mut Store<State>) -> wasmtime::Result<Box<dyn Guest>> {
        let instance = self.pre.instantiate(&mut *store)?;
        let exports = Arc::clone(&self.exports);
        let memory = instance.get_module_export(&mut *store, &exports.memory);
        let memory = memory
            .and_then(Extern::into_memory)
            .ok_or_else(|| format_err!("`{MEMORY}` is no memory"))?;
        let realloc = typed(&instance, store, &exports.realloc)?;
        let mut guest = FlatGuest { instance, memory, realloc, decide: None, exports };
        guest.decide = guest.find_decide(store)?;
        // From here on the guest may call what reads and writes its memory.
        store.data_mut().memory = Some(memory);
        if let Some(initialize) = &self.initialize {
            typed::<(), ()>(&guest.instance, store, initialize)?.call(store, ())?;
        }
        Ok(Box::new(guest))
    }
}

/// An instance of it.
struct FlatGuest {
    instance: Instance,
    memory: Memory,
    realloc: Realloc,
    /// Looked up once: it is called for each flow.
    decide: Option<Decide>,
    exports: Arc<Exports>,
}

/// The function that is called most.
struct Decide {
    function: TypedFunc<FlatFlow, u32>,
    post_return: Option<TypedFunc<u32, ()>>,
}

impl FlatGuest {
    fn find_decide(&self, store: &mut Store<State>) -> Answer<Option<Decide>> {
        let Some(function) = self.exports.functions.get(Function::Decide) else { return Ok(None) };
        let post_return = self.exports.post_returns.get(Function::Decide);
        Ok(Some(Decide {
            function: typed(&self.instance, store, function)?,
            post_return: post_return.map(|it| typed(&self.instance, store, it)).transpose()?,
        }))
    }

    /// Calls a function that returns nothing.
    fn tell<P: WasmParams>(
        &self,
        store: &mut Store<State>,
        function: Function,
        params: P,
    ) -> Answer<()> {
        self.function(store, function)?.call(store, params)
    }

    /// Calls a function that returns where its result lies, and reads that.
    fn ask<P: WasmParams, T>(
        &self,
        store: &mut Store<State>,
        (function, params): (Function, P),
        read: impl FnOnce(&View<'_>, u32) -> Answer<T>,
    ) -> Answer<T> {
        let at = self.function(store, function)?.call(&mut *store, params)?;
        let answer = read(&self.view(store), at)?;
        if let Some(post_return) = self.exports.post_returns.get(function) {
            typed::<u32, ()>(&self.instance, store, post_return)?.call(store, at)?;
        }
        Ok(answer)
    }

    fn function<P: WasmParams, R: WasmResults>(
        &self,
        store: &mut Store<State>,
        function: Function,
    ) -> Answer<TypedFunc<P, R>> {
        let export = self.exports.functions.get(function).ok_or_else(|| not_exported(function))?;
        typed(&self.instance, store, export)
    }

    fn heap<'a>(&'a self, store: &'a mut Store<State>) -> Heap<'a> {
        Heap { store, memory: self.memory, realloc: &self.realloc }
    }

    fn view<'a>(&self, store: &'a Store<State>) -> View<'a> {
        View { bytes: self.memory.data(store), bytes_max: self.exports.bytes_max }
    }
}

impl Guest for FlatGuest {
    fn configure(&self, store: &mut Store<State>, config: &str) -> Answer<Result<(), String>> {
        let config = self.heap(store).put_bytes(config.as_bytes())?;
        self.ask(store, (Function::Configure, config), |view, at| result(view, at, nothing))
    }

    fn endpoints_changed(&self, store: &mut Store<State>, list: &List) -> Answer<()> {
        let (at, length) = self.heap(store).put_endpoints(&list.endpoints)?;
        self.tell(store, Function::EndpointsChanged, (list.generation, at, length))
    }

    fn decide(&self, store: &mut Store<State>, flow: Flow) -> Answer<Decision> {
        let decide = self.decide.as_ref().ok_or_else(|| not_exported(Function::Decide))?;
        let at = decide.function.call(&mut *store, abi::flatten(&flow))?;
        let decision = self.view(store).decision(at)?;
        if let Some(post_return) = &decide.post_return {
            post_return.call(store, at)?;
        }
        Ok(decision)
    }

    fn build(&self, store: &mut Store<State>, list: &List) -> Answer<Result<Vec<u32>, String>> {
        let (at, length) = self.heap(store).put_endpoints(&list.endpoints)?;
        let params = (list.generation, at, length);
        self.ask(store, (Function::Build, params), |view, at| result(view, at, numbers))
    }

    fn weigh(&self, store: &mut Store<State>, now_ms: u64, samples: &[Sample]) -> Answer<Vec<u32>> {
        let (at, length) = self.heap(store).put_list(samples)?;
        self.ask(store, (Function::Weigh, (now_ms, at, length)), numbers)
    }

    fn feed(&self, store: &mut Store<State>, feed: &Feed<'_>) -> Answer<()> {
        let Feed { now_ms, samples, ended, missed } = *feed;
        let mut heap = self.heap(store);
        let samples = heap.put_list(samples)?;
        let ended = heap.put_list(ended)?;
        let params = (now_ms, samples.0, samples.1, ended.0, ended.1, missed);
        self.tell(store, Function::Feed, params)
    }

    fn snapshot(&self, store: &mut Store<State>) -> Answer<Vec<u8>> {
        self.ask(store, (Function::Snapshot, ()), bytes)
    }

    fn restore(&self, store: &mut Store<State>, state: &[u8]) -> Answer<Result<(), String>> {
        let state = self.heap(store).put_bytes(state)?;
        self.ask(store, (Function::Restore, state), |view, at| result(view, at, nothing))
    }

    fn config_schema(&self, store: &mut Store<State>) -> Answer<String> {
        self.ask(store, (Function::ConfigSchema, ()), string)
    }
}

fn typed<P: WasmParams, R: WasmResults>(
    instance: &Instance,
    store: &mut Store<State>,
    export: &ModuleExport,
) -> Answer<TypedFunc<P, R>> {
    let function = instance.get_module_export(&mut *store, export).and_then(Extern::into_func);
    function.ok_or_else(|| format_err!("an export is no function"))?.typed(store)
}
