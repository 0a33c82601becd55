//! A guest as a component: for what comes from other languages, or was made a component before.

use std::sync::Arc;

use wasmtime::component::{
    Component, ComponentExportIndex, ComponentNamedList, Instance, InstancePre, Lift, Lower,
    TypedFunc,
};
use wasmtime::{Store, format_err};

use crate::bindings::signals::Sample;
use crate::bindings::types::{Decision, Flow};
use crate::engine::Engine;
use crate::error::{LoadError, chain_of};
use crate::guest::{Answer, Feed, Guest, List, Prepared};
use crate::instance::State;
use crate::world::{ByFunction, Function, World};

/// A component whose imports are linked.
pub(crate) struct PreparedComponent {
    pre: InstancePre<State>,
    exports: Arc<ByFunction<ComponentExportIndex>>,
}

impl PreparedComponent {
    pub(crate) fn new(
        engine: &Engine,
        component: &Component,
        world: &World,
    ) -> Result<Self, LoadError> {
        let pre = engine.linker().instantiate_pre(component).map_err(|error| {
            LoadError::WrongType { name: "host".into(), reason: chain_of(&error) }
        })?;
        let exports = world.interfaces.and_then(|function, interface| {
            let inside = match interface.as_str() {
                "" => None,
                name => Some(component.get_export_index(None, name)?),
            };
            component.get_export_index(inside.as_ref(), function.name())
        });
        Ok(Self { pre, exports: Arc::new(exports) })
    }
}

impl Prepared for PreparedComponent {
    fn start(&self, store: &mut Store<State>) -> wasmtime::Result<Box<dyn Guest>> {
        let instance = self.pre.instantiate(&mut *store)?;
        let decide = self.exports.get(Function::Decide);
        let decide = decide.map(|index| instance.get_typed_func(&mut *store, index)).transpose()?;
        Ok(Box::new(ComponentGuest { instance, decide, exports: Arc::clone(&self.exports) }))
    }
}

/// An instance of it.
struct ComponentGuest {
    instance: Instance,
    /// Looked up once: it is called for each flow.
    decide: Option<TypedFunc<(Flow,), (Decision,)>>,
    exports: Arc<ByFunction<ComponentExportIndex>>,
}

impl ComponentGuest {
    fn call<P, R>(&self, store: &mut Store<State>, function: Function, params: P) -> Answer<R>
    where
        P: ComponentNamedList + Lower,
        R: ComponentNamedList + Lift + 'static,
    {
        let index = self.exports.get(function).ok_or_else(|| not_exported(function))?;
        let function = self.instance.get_typed_func::<P, R>(&mut *store, index)?;
        function.call(store, params)
    }
}

impl Guest for ComponentGuest {
    fn configure(&self, store: &mut Store<State>, config: &str) -> Answer<Result<(), String>> {
        let (configured,) = self.call(store, Function::Configure, (config,))?;
        Ok(configured)
    }

    fn endpoints_changed(&self, store: &mut Store<State>, list: &List) -> Answer<()> {
        let List { generation, endpoints } = list;
        self.call(store, Function::EndpointsChanged, (*generation, endpoints.as_slice()))
    }

    fn decide(&self, store: &mut Store<State>, flow: Flow) -> Answer<Decision> {
        let decide = self.decide.as_ref().ok_or_else(|| not_exported(Function::Decide))?;
        let (decision,) = decide.call(store, (flow,))?;
        Ok(decision)
    }

    fn build(&self, store: &mut Store<State>, list: &List) -> Answer<Result<Vec<u32>, String>> {
        let List { generation, endpoints } = list;
        let params = (*generation, endpoints.as_slice());
        let (built,) = self.call(store, Function::Build, params)?;
        Ok(built)
    }

    fn weigh(&self, store: &mut Store<State>, now_ms: u64, samples: &[Sample]) -> Answer<Vec<u32>> {
        let (weights,) = self.call(store, Function::Weigh, (now_ms, samples))?;
        Ok(weights)
    }

    fn feed(&self, store: &mut Store<State>, feed: &Feed<'_>) -> Answer<()> {
        let Feed { now_ms, samples, ended, missed } = *feed;
        self.call(store, Function::Feed, (now_ms, samples, ended, missed))
    }

    fn snapshot(&self, store: &mut Store<State>) -> Answer<Vec<u8>> {
        let (state,) = self.call(store, Function::Snapshot, ())?;
        Ok(state)
    }

    fn restore(&self, store: &mut Store<State>, state: &[u8]) -> Answer<Result<(), String>> {
        let (restored,) = self.call(store, Function::Restore, (state,))?;
        Ok(restored)
    }

    fn config_schema(&self, store: &mut Store<State>) -> Answer<String> {
        let (schema,) = self.call(store, Function::ConfigSchema, ())?;
        Ok(schema)
    }
}

/// What comes of asking a guest for what it does not export.
pub(crate) fn not_exported(function: Function) -> wasmtime::Error {
    format_err!("it does not export `{}`", function.name())
}
