//! `policy build`: a crate to a `.wasm` file.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, anyhow};

use super::guest::{self, Compiler};
use crate::failure::Failure;

/// What was built.
#[derive(Debug)]
pub struct Policy {
    /// Where it is.
    pub file: PathBuf,
    /// Its size.
    pub bytes: usize,
}

/// Builds the crate in this folder, to `out` or to its name beside its manifest.
///
/// # Errors
/// If there is no crate or no compiler, or if what was built is no policy.
pub fn build(dir: &Path, out: Option<&Path>) -> Result<Policy, Failure> {
    let name = package_name(dir)?;
    let dir = dir.canonicalize().with_context(|| format!("no folder {}", dir.display()))?;
    let compiler = Compiler::find(&dir).ok_or_else(|| {
        anyhow!(
            "no compiler for WebAssembly here; run `rustup target add {}`, or install Debian's \
             rustc-web, rust-web-src and lld",
            guest::TARGET
        )
    })?;
    let mut command = compiler.build(&dir, &dir.join("target/guest"))?;
    let built = guest::run(&mut command)?;
    // What it depends on may be plugins of their own.
    let manifest = dir.join("Cargo.toml");
    let built = built.iter().find(|built| built.manifest == manifest).ok_or_else(|| {
        Failure::input(format!("{name} builds no module; its [lib] needs crate-type `cdylib`"))
    })?;
    let file = out.map_or_else(|| dir.join(&name).with_extension("wasm"), Path::to_owned);
    let bytes = built.publish(&file)?;
    Ok(Policy { file, bytes })
}

/// The name in the folder's manifest.
fn package_name(dir: &Path) -> Result<String, Failure> {
    let file = dir.join("Cargo.toml");
    let text = fs::read_to_string(&file).map_err(|error| {
        let make = "`pointsman policy new NAME` makes a crate";
        Failure::input(format!("cannot read {}: {error}; {make}", file.display()))
    })?;
    let manifest: toml::Table =
        text.parse().map_err(|error| Failure::input(format!("{}: {error}", file.display())))?;
    let name = manifest.get("package").and_then(|it| it.get("name")).and_then(toml::Value::as_str);
    let missing = || Failure::input(format!("{} is the manifest of no package", file.display()));
    name.map(str::to_owned).ok_or_else(missing)
}
