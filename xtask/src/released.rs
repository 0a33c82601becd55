//! Builds the guests of released interfaces.
//!
//! Every version of the interface that was released has a policy here as its author would have
//! written it then. A test runs each on the host as it is.

use std::fs;

use anyhow::Result;

use crate::plugins;
use crate::workspace::{plugins_dir, root};

/// Builds `plugin-sdk/released/VERSION/guest` to `released-VERSION.wasm`, for each version.
pub(crate) fn build() -> Result<()> {
    for version in fs::read_dir(root().join("plugin-sdk/released"))? {
        let version = version?;
        let name = format!("released-{}.wasm", version.file_name().to_string_lossy());
        plugins::elsewhere(&version.path().join("guest"), Some(&plugins_dir().join(name)))?;
    }
    Ok(())
}
