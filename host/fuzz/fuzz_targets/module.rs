//! No bytes are a plugin that brings the host down: they are a policy, or an error of one line.
#![no_main]

use std::sync::{Arc, LazyLock};

use libfuzzer_sys::fuzz_target;
use pointsman_plugin::{Engine, EngineLimits};

/// One for the whole run, since each reserves address space and threads.
static ENGINE: LazyLock<Engine> = LazyLock::new(|| {
    let limits = EngineLimits { instances_max: 1, ..EngineLimits::default() };
    Engine::new(limits, Arc::new(|_| {})).expect("an engine")
});

fuzz_target!(|bytes: &[u8]| {
    if let Err(error) = ENGINE.load(bytes) {
        assert_eq!(error.to_string().lines().count(), 1, "{error}");
    }
});
