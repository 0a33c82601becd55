//! A policy for the interface 0.1.0, written against its bare bindings.
//!
//! It uses everything that the interface had: what the host gives is logged or answered, and every
//! field of a decision is set. It is never changed.

use std::cell::Cell;
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};

use crate::pointsman::policy::host::{self, Level};
use crate::pointsman::policy::types::{Scope, Verdict};

wit_bindgen::generate!({ path: "../policy.wit", world: "chooser" });

struct LeastLoaded;

export!(LeastLoaded);

static ENDPOINT_COUNT: AtomicU32 = AtomicU32::new(0);

thread_local! {
    static GENERATION: Cell<u64> = const { Cell::new(0) };
}

impl Guest for LeastLoaded {
    fn configure(config: String) -> Result<(), String> {
        if config.contains("refuse") {
            return Err(format!("refused as asked: {config}"));
        }
        host::log(Level::Info, &format!("configured with {config}"));
        Ok(())
    }

    fn endpoints_changed(generation: u64, endpoints: Vec<Endpoint>) {
        GENERATION.set(generation);
        ENDPOINT_COUNT.store(endpoints.len() as u32, Relaxed);
        for Endpoint { address, weight } in endpoints {
            host::log(Level::Warn, &format!("generation {generation}: {address} weighs {weight}"));
        }
    }

    fn decide(flow: Flow) -> Decision {
        let endpoints = (0..ENDPOINT_COUNT.load(Relaxed)).filter(|&index| index != flow.avoid);
        let Some(endpoint) = endpoints.min_by_key(|&index| host::load(index)) else {
            host::log(Level::Error, "nothing is left");
            return decision(Verdict::Defer, 0, 0);
        };
        host::log(Level::Debug, &format!("{flow:?}"));
        decision(Verdict::Forward, endpoint, GENERATION.get() as u32)
    }
}

fn decision(verdict: Verdict, endpoint: u32, tag: u32) -> Decision {
    Decision {
        verdict,
        endpoint,
        scope: Scope::Client,
        ttl_ms: 7000,
        sliding: true,
        throttle_kib_s: 64,
        announce: true,
        idle_timeout_ms: 9000,
        tag,
    }
}
