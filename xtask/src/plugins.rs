//! Builds policies to WebAssembly.
//!
//! cargo makes a core module that carries its interface in a custom section, and that is what the
//! host is given: it makes a component of it, and calls it without the component's wrapping.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use cargo_metadata::{Metadata, MetadataCommand};

use crate::guest::{self, Built, Compiler};
use crate::languages::Language;
use crate::workspace::{plugins_dir, root, target_dir};

/// A policy is a few decisions. Other people's may be larger, ours have no reason to be.
const SIZE_MAX_KIB: usize = 64;

#[derive(clap::Args, Default)]
pub(crate) struct Arguments {
    /// The folder of a policy's crate elsewhere, to build instead of those in `plugins/`.
    #[arg(long, value_name = "DIR")]
    manifest: Option<PathBuf>,

    /// The language it is written in, if that is not Rust; by default, what is built is the example
    /// in this language.
    #[arg(long)]
    language: Option<Language>,

    /// Where to leave it; `target/plugins/NAME.wasm` by default.
    #[arg(long, value_name = "FILE", requires = "manifest")]
    out: Option<PathBuf>,
}

pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    let out = arguments.out.as_deref();
    match (arguments.language, &arguments.manifest) {
        (Some(language), dir) => language.build(dir.as_deref(), out),
        (None, Some(dir)) => elsewhere(dir, out),
        (None, None) => ours(),
    }
}

/// Builds every crate in `plugins/`.
fn ours() -> Result<()> {
    let metadata = MetadataCommand::new().current_dir(root()).no_deps().exec()?;
    let folder = root().join("plugins");
    let mut command = compiler()?.build(root(), &target_dir().join("guest"))?;
    command.arg("--locked");
    for package in metadata.packages.iter().filter(|it| it.manifest_path.starts_with(&folder)) {
        command.args(["--package", &package.name]);
    }
    let mut too_large = Vec::new();
    for built in guest::run(&mut command)? {
        let name = name_of(&built, &metadata)?;
        let size = built.publish(&plugins_dir().join(&name).with_extension("wasm"))?;
        println!("{name:<20} {:>5.1} KiB", size as f64 / 1024.0);
        if size > SIZE_MAX_KIB * 1024 {
            too_large.push(name);
        }
    }
    if !too_large.is_empty() {
        bail!("over {SIZE_MAX_KIB} KiB: {}; a library slipped in", too_large.join(", "));
    }
    Ok(())
}

/// Builds one crate that is not of this workspace.
pub(crate) fn elsewhere(dir: &Path, out: Option<&Path>) -> Result<()> {
    let dir = dir.canonicalize().with_context(|| format!("no folder {}", dir.display()))?;
    let manifest = dir.join("Cargo.toml");
    let metadata = MetadataCommand::new().manifest_path(&manifest).no_deps().exec()?;
    let mut command = compiler()?.build(root(), &target_dir().join("guest"))?;
    command.arg("--manifest-path").arg(&manifest);
    let built = guest::run(&mut command)?;
    let [built] = built.as_slice() else {
        bail!("{} builds no single module: its [lib] needs `cdylib`", manifest.display());
    };
    let default = plugins_dir().join(name_of(built, &metadata)?).with_extension("wasm");
    let out = out.unwrap_or(&default);
    let size = built.publish(out)?;
    println!("{} {:.1} KiB", out.display(), size as f64 / 1024.0);
    Ok(())
}

fn compiler() -> Result<Compiler> {
    Compiler::find(root()).context("no compiler for WebAssembly here; run `cargo xtask setup`")
}

fn name_of(built: &Built, metadata: &Metadata) -> Result<String> {
    let package = metadata.packages.iter().find(|it| it.manifest_path == built.manifest);
    let package =
        package.with_context(|| format!("unknown package {}", built.manifest.display()))?;
    Ok(package.name.to_string())
}
