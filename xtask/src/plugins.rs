//! Builds policies to WebAssembly components.
//!
//! cargo makes a core module that carries its component type in a custom section; `wit-component`
//! makes a component of it, and validates what it made.

use std::fs;
use std::io::BufReader;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};
use cargo_metadata::{Message, Metadata, MetadataCommand, PackageId};
use wit_component::ComponentEncoder;

use crate::guest::Compiler;
use crate::languages::Language;
use crate::workspace::{plugins_dir, root, shown};

/// A policy is a few decisions. Other people's may be larger, ours have no reason to be.
const SIZE_MAX_KIB: usize = 60;

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
    let mut command = compiler()?.build()?;
    command.arg("--locked");
    for package in metadata.packages.iter().filter(|it| it.manifest_path.starts_with(&folder)) {
        command.args(["--package", &package.name]);
    }
    let mut too_large = Vec::new();
    for module in build(&mut command)? {
        let name = module.name(&metadata)?;
        let size = module.encode(&plugins_dir().join(&name).with_extension("wasm"))?;
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

/// Builds one crate that is not of this workspace, and so does not have its profile either.
pub(crate) fn elsewhere(dir: &Path, out: Option<&Path>) -> Result<()> {
    let dir = dir.canonicalize().with_context(|| format!("no folder {}", dir.display()))?;
    let manifest = dir.join("Cargo.toml");
    let metadata = MetadataCommand::new().manifest_path(&manifest).no_deps().exec()?;
    let mut command = compiler()?.build()?;
    command.arg("--manifest-path").arg(&manifest);
    for setting in ["opt-level = 's'", "lto = true", "codegen-units = 1", "strip = true"] {
        command.arg("--config").arg(format!("profile.guest.{setting}"));
    }
    command.args(["--config", "profile.guest.inherits = 'release'"]);
    command.args(["--config", "profile.guest.panic = 'abort'"]);
    let modules = build(&mut command)?;
    let [module] = modules.as_slice() else {
        bail!("{} builds no single module: its [lib] needs `cdylib`", manifest.display());
    };
    let name = module.name(&metadata)?;
    let default = plugins_dir().join(&name).with_extension("wasm");
    let out = out.unwrap_or(&default);
    let size = module.encode(out)?;
    println!("{} {:.1} KiB", out.display(), size as f64 / 1024.0);
    Ok(())
}

fn compiler() -> Result<Compiler> {
    Compiler::find().context("no compiler for WebAssembly here; run `cargo xtask setup`")
}

/// A core module that cargo has built.
struct Module {
    package: PackageId,
    file: PathBuf,
}

/// Runs cargo and collects the modules it reports; what is fresh is reported as well.
fn build(command: &mut Command) -> Result<Vec<Module>> {
    command.arg("--message-format=json-render-diagnostics").stdout(Stdio::piped());
    let mut cargo = command.spawn().context("cannot start cargo")?;
    let stdout = cargo.stdout.take().context("cargo has no output")?;
    let mut modules = Vec::new();
    for message in Message::parse_stream(BufReader::new(stdout)) {
        if let Message::CompilerArtifact(artifact) = message? {
            let files = artifact.filenames.into_iter();
            let wasm = files.filter(|file| file.extension() == Some("wasm"));
            modules.extend(
                wasm.map(|file| Module { package: artifact.package_id.clone(), file: file.into() }),
            );
        }
    }
    if !cargo.wait()?.success() {
        bail!("`{}` failed", shown(command));
    }
    Ok(modules)
}

impl Module {
    fn name(&self, metadata: &Metadata) -> Result<String> {
        let package = metadata.packages.iter().find(|package| package.id == self.package);
        let package = package.with_context(|| format!("unknown package {}", self.package))?;
        Ok(package.name.to_string())
    }

    fn encode(&self, out: &Path) -> Result<usize> {
        encode(&self.file, out)
    }
}

/// Makes a component of a module, leaves it at `out` and returns its size. A file that would not
/// change is left alone, so that nothing which watches it is woken.
pub(crate) fn encode(module: &Path, out: &Path) -> Result<usize> {
    let bytes = fs::read(module)?;
    let component = ComponentEncoder::default()
        .validate(true)
        .module(&bytes)
        .and_then(ComponentEncoder::encode)
        .with_context(|| format!("{} is no policy", module.display()))?;
    if let Some(dir) = out.parent() {
        fs::create_dir_all(dir)?;
    }
    if fs::read(out).is_ok_and(|there| there == component) {
        return Ok(component.len());
    }
    fs::write(out, &component).with_context(|| format!("cannot write {}", out.display()))?;
    Ok(component.len())
}
