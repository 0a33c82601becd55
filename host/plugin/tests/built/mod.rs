//! Plugins that have been built before the tests run.
#![allow(dead_code, unreachable_pub, missing_docs, reason = "each test file uses its part")]

use std::env;
use std::fs;
use std::path::Path;

/// The bytes of `target/plugins/NAME.wasm`. Without them there is nothing to test: that is said, and
/// in CI, where everything is built, it is a failure.
pub fn plugin(name: &str) -> Option<Vec<u8>> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/plugins");
    let read = fs::read(folder.join(format!("{name}.wasm")));
    if let Err(error) = &read {
        let lack = format!("target/plugins/{name}.wasm: {error}; run `cargo xtask test`");
        assert!(env::var_os("CI").is_none(), "{lack}");
        eprintln!("skipped: {lack}");
    }
    read.ok()
}
