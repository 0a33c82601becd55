//! No text is a configuration that brings the program down: it is a plan, or problems that can be
//! shown.
#![no_main]

use libfuzzer_sys::fuzz_target;
use pointsman::config;
use pointsman::plan::{PluginFolders, resolve_what_can_be};

fuzz_target!(|text: &str| {
    let document = config::read(text);
    let (_, later) = resolve_what_can_be(&document.config, &PluginFolders::default());
    for problem in document.into_problems(later) {
        assert!(!problem.to_string().is_empty());
    }
});
