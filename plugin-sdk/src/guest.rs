//! The glue between the host's calls and an instance. Exists in the guest only.
//!
//! The bindings are generated from `wit/policy.wit`, one module for each world; the types that
//! worlds share are the chooser's. A world's exports are told to the host by the macro that exports
//! it, in the policy's crate, so a module says of itself what it exports and no more. `words`
//! translates their types to the ones that authors see, so that a policy and its tests know nothing
//! of the component model.

use std::cell::Cell;

use self::words::Imports;
use crate::{Decision, Endpoint, Endpoints, Feedback, Flow, Host, Instance, KeepsState, Level};
use crate::{Policy, Report, TableInstance, TablePolicy, WeightsInstance, WeightsPolicy};

mod words;

pub use wit_bindgen;

use self::chooser::pointsman::policy::types;

#[allow(missing_docs, unreachable_pub, unused_qualifications, clippy::all, clippy::pedantic)]
pub mod chooser {
    wit_bindgen::generate!({
        path: "wit",
        world: "chooser",
        pub_export_macro: true,
        export_macro_name: "export_bindings",
        default_bindings_module: "::pointsman_sdk::guest::chooser",
        runtime_path: "::pointsman_sdk::guest::wit_bindgen::rt",
    });
}

#[allow(missing_docs, unreachable_pub, unused_qualifications, clippy::all, clippy::pedantic)]
pub mod table {
    wit_bindgen::generate!({
        path: "wit",
        world: "table",
        with: {
            "pointsman:policy/types@0.1.1": crate::guest::chooser::pointsman::policy::types,
            "pointsman:policy/host@0.1.1": crate::guest::chooser::pointsman::policy::host,
            "pointsman:policy/signals@0.1.1": crate::guest::chooser::pointsman::policy::signals,
            "pointsman:policy/slots@0.1.1": crate::guest::chooser::pointsman::policy::slots,
            "pointsman:policy/counters@0.1.1": crate::guest::chooser::pointsman::policy::counters,
        },
        pub_export_macro: true,
        export_macro_name: "export_bindings",
        default_bindings_module: "::pointsman_sdk::guest::table",
        runtime_path: "::pointsman_sdk::guest::wit_bindgen::rt",
    });
}

#[allow(missing_docs, unreachable_pub, unused_qualifications, clippy::all, clippy::pedantic)]
pub mod weights {
    wit_bindgen::generate!({
        path: "wit",
        world: "weights",
        with: {
            "pointsman:policy/types@0.1.1": crate::guest::chooser::pointsman::policy::types,
            "pointsman:policy/host@0.1.1": crate::guest::chooser::pointsman::policy::host,
            "pointsman:policy/signals@0.1.1": crate::guest::chooser::pointsman::policy::signals,
            "pointsman:policy/slots@0.1.1": crate::guest::chooser::pointsman::policy::slots,
            "pointsman:policy/counters@0.1.1": crate::guest::chooser::pointsman::policy::counters,
        },
        pub_export_macro: true,
        export_macro_name: "export_bindings",
        default_bindings_module: "::pointsman_sdk::guest::weights",
        runtime_path: "::pointsman_sdk::guest::wit_bindgen::rt",
    });
}

#[allow(missing_docs, unreachable_pub, unused_qualifications, clippy::all, clippy::pedantic)]
pub mod feedback {
    wit_bindgen::generate!({
        path: "wit",
        world: "with-feedback",
        with: {
            "pointsman:policy/signals@0.1.1": crate::guest::chooser::pointsman::policy::signals,
        },
        generate_all,
        pub_export_macro: true,
        export_macro_name: "export_bindings",
        default_bindings_module: "::pointsman_sdk::guest::feedback",
        runtime_path: "::pointsman_sdk::guest::wit_bindgen::rt",
    });
}

#[allow(missing_docs, unreachable_pub, unused_qualifications, clippy::all, clippy::pedantic)]
pub mod state {
    wit_bindgen::generate!({
        path: "wit",
        world: "with-state",
        pub_export_macro: true,
        export_macro_name: "export_bindings",
        default_bindings_module: "::pointsman_sdk::guest::state",
        runtime_path: "::pointsman_sdk::guest::wit_bindgen::rt",
    });
}

#[allow(missing_docs, unreachable_pub, unused_qualifications, clippy::all, clippy::pedantic)]
pub mod config_schema {
    wit_bindgen::generate!({
        path: "wit",
        world: "with-schema",
        pub_export_macro: true,
        export_macro_name: "export_bindings",
        default_bindings_module: "::pointsman_sdk::guest::config_schema",
        runtime_path: "::pointsman_sdk::guest::wit_bindgen::rt",
    });
}

/// What the export macros implement: where the crate's one instance is.
pub trait Exported {
    /// The instance of the exported policy.
    type Instance: Served + 'static;

    /// Lends the slot that holds the instance.
    fn with<T>(f: impl FnOnce(&Slot<Self::Instance>) -> T) -> T;

    /// Calls the instance, if there is one.
    fn call<T>(f: impl FnOnce(&mut Self::Instance) -> T) -> Option<T> {
        Self::with(|slot| slot.call(f))
    }

    /// Makes the instance.
    fn configure(config: &str) -> Result<(), String> {
        report_panics();
        let instance = Box::leak(Box::new(Self::Instance::configure(config)?));
        Self::with(|slot| slot.0.set(Some(instance)));
        Ok(())
    }
}

/// An instance of whichever shape.
pub trait Served: Sized {
    /// Makes it from its config as JSON.
    fn configure(config: &str) -> Result<Self, String>;

    /// What it may be configured with.
    fn config_schema() -> String;
}

impl<P: Policy> Served for Instance<P> {
    fn configure(config: &str) -> Result<Self, String> {
        Self::configure(config)
    }

    fn config_schema() -> String {
        Self::config_schema()
    }
}

impl<P: TablePolicy> Served for TableInstance<P> {
    fn configure(config: &str) -> Result<Self, String> {
        Self::configure(config)
    }

    fn config_schema() -> String {
        Self::config_schema()
    }
}

impl<P: WeightsPolicy> Served for WeightsInstance<P> {
    fn configure(config: &str) -> Result<Self, String> {
        Self::configure(config)
    }

    fn config_schema() -> String {
        Self::config_schema()
    }
}

/// Holds the instance between two calls of the host.
///
/// A call takes it out and puts it back, which needs neither a borrow flag nor a panic for a
/// re-entrance that the component model rules out. The instance lives as long as the module's
/// memory, so nothing ever drops it, and a thread-local without a destructor is a plain static.
pub struct Slot<I: 'static>(Cell<Option<&'static mut I>>);

impl<I> Slot<I> {
    /// A slot before `configure`.
    #[must_use]
    pub const fn empty() -> Self {
        Self(Cell::new(None))
    }

    fn call<T>(&self, f: impl FnOnce(&mut I) -> T) -> Option<T> {
        let instance = self.0.take()?;
        let answer = f(instance);
        self.0.set(Some(instance));
        Some(answer)
    }
}

/// Sends a panic's message to the balancer's log before the trap; without it an author sees
/// nothing but `unreachable`.
fn report_panics() {
    std::panic::set_hook(Box::new(|panic| Imports.log(Level::Error, &panic.to_string())));
}

fn listed(generation: u64, endpoints: Vec<types::Endpoint>) -> Endpoints {
    let list = endpoints.into_iter().map(|e| Endpoint::new(e.address, e.weight)).collect();
    Endpoints::new(generation, list)
}

impl<E: Exported<Instance = Instance<P>>, P: Policy> chooser::Guest for E {
    fn configure(config: String) -> Result<(), String> {
        <E as Exported>::configure(&config)
    }

    fn endpoints_changed(generation: u64, endpoints: Vec<types::Endpoint>) {
        E::call(|it| it.endpoints_changed(listed(generation, endpoints)));
    }

    fn decide(flow: types::Flow) -> types::Decision {
        let flow = Flow::from(&flow);
        E::call(|it| it.decide(&flow, &Imports)).unwrap_or_else(Decision::defer).into()
    }
}

impl<E: Exported<Instance = TableInstance<P>>, P: TablePolicy> table::Guest for E {
    fn configure(config: String) -> Result<(), String> {
        <E as Exported>::configure(&config)
    }

    fn build(generation: u64, endpoints: Vec<types::Endpoint>) -> Result<Vec<u32>, String> {
        let endpoints = listed(generation, endpoints);
        let table = E::call(|it| it.build(&endpoints, &Imports));
        table.unwrap_or_else(|| Err("it was not configured".into()))
    }
}

impl<E: Exported<Instance = WeightsInstance<P>>, P: WeightsPolicy> weights::Guest for E {
    fn configure(config: String) -> Result<(), String> {
        <E as Exported>::configure(&config)
    }

    fn endpoints_changed(generation: u64, endpoints: Vec<types::Endpoint>) {
        E::call(|it| it.endpoints_changed(listed(generation, endpoints)));
    }

    fn tick(now_ms: u64, samples: Vec<words::Sample>) -> Vec<u32> {
        let samples: Vec<_> = samples.iter().map(Into::into).collect();
        E::call(|it| it.tick(now_ms, &samples, &Imports)).flatten().unwrap_or_default()
    }
}

impl<E, P> feedback::exports::pointsman::policy::feedback::Guest for E
where
    E: Exported<Instance = Instance<P>>,
    P: Feedback,
{
    fn tick(now_ms: u64, samples: Vec<words::Sample>, ended: Vec<words::Ended>, missed: u32) {
        let samples: Vec<_> = samples.iter().map(Into::into).collect();
        let ended: Vec<_> = ended.iter().map(Into::into).collect();
        let report = Report { now_ms, samples: &samples, ended: &ended, missed };
        E::call(|it| it.tick(&report, &Imports));
    }
}

impl<E> state::exports::pointsman::policy::state::Guest for E
where
    E: Exported,
    E::Instance: KeepsState,
{
    fn snapshot() -> Vec<u8> {
        E::call(|it| it.snapshot()).unwrap_or_default()
    }

    fn restore(state: Vec<u8>) -> Result<(), String> {
        E::call(|it| it.restore(&state)).unwrap_or_else(|| Err("it was not configured".into()))
    }
}

impl<E: Exported> config_schema::exports::pointsman::policy::schema::Guest for E {
    fn config_schema() -> String {
        E::Instance::config_schema()
    }
}
