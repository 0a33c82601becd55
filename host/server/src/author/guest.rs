//! Building a policy's crate for `wasm32-unknown-unknown`.
//!
//! Two ways lead there. Where rustup has installed the target, plain cargo does it. Where the
//! target cannot be had, as on a machine that reaches package registries and nothing else, Debian's
//! `rustc-web` and `rust-web-src` carry a compiler and the sources of its standard library, which
//! cargo then builds too. That takes a minute once and is kept in the target folder.
//!
//! The developer commands of this repository include this file by its path: they build policies
//! before there is a balancer to do it.

use std::env;
use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};
use serde_json::Value;
use wit_component::{ComponentEncoder, StringEncoding, embed_component_metadata, metadata};

/// The target that plugins are built for: no operating system, hence no imports but the host's.
pub(crate) const TARGET: &str = "wasm32-unknown-unknown";

/// Where Debian's packages put the compiler, and the library sources beside it.
const DEBIAN_RUSTC: &str = "/usr/bin/rustc";
const DEBIAN_LIBRARY: &str = "/usr/lib/rustlib/src/rust/library";

/// Fast and free of names: what a decision costs is paid for each flow, and optimised for size it is
/// half as much again. A crate need not have this profile for itself.
const PROFILE: [&str; 7] = [
    "inherits = 'release'",
    "opt-level = 3",
    "lto = true",
    "codegen-units = 1",
    "panic = 'abort'",
    "strip = true",
    "debug = false",
];

/// What builds plugins on this machine.
#[derive(Debug)]
pub(crate) enum Compiler {
    /// The toolchain that is in use, with the target installed.
    Rustup,
    /// Debian's compiler, which builds the standard library from its sources.
    Debian {
        /// The linker.
        linker: PathBuf,
    },
}

impl Compiler {
    /// The compiler of this machine for crates in this folder, if there is one. Asks the disk and
    /// never the network.
    pub(crate) fn find(dir: &Path) -> Option<Self> {
        let sysroot = sysroot(dir)?;
        if sysroot.join("lib/rustlib").join(TARGET).is_dir() {
            return Some(Self::Rustup);
        }
        let has_sources = Path::new(DEBIAN_RUSTC).is_file() && Path::new(DEBIAN_LIBRARY).is_dir();
        let linker = has_sources.then(|| linker(&sysroot)).flatten()?;
        Some(Self::Debian { linker })
    }

    /// `cargo build` for the guest, in this folder.
    pub(crate) fn build(&self, dir: &Path, target_dir: &Path) -> Result<Command> {
        let mut command = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
        command.current_dir(dir);
        command.args(["build", "--lib", "--profile", "guest", "--target", TARGET]);
        command.args(["--message-format", "json-render-diagnostics"]);
        command.arg("--target-dir").arg(target_dir);
        for setting in PROFILE {
            command.arg("--config").arg(format!("profile.guest.{setting}"));
        }
        command.env("RUSTFLAGS", remapped_paths(dir)?).env_remove("CARGO_ENCODED_RUSTFLAGS");
        if let Self::Debian { linker } = self {
            command
                .arg("-Zbuild-std=std,panic_abort")
                .env("RUSTC", DEBIAN_RUSTC)
                .env("RUSTC_BOOTSTRAP", "1")
                .env("CARGO_TARGET_WASM32_UNKNOWN_UNKNOWN_LINKER", linker);
        }
        Ok(command)
    }
}

/// A panic message carries the path of its source. Without these flags that would be a path of
/// whoever built the plugin, and no two machines would build the same bytes.
fn remapped_paths(dir: &Path) -> Result<String> {
    let home = env::home_dir().context("this user has no home folder")?;
    let cargo_home = env::var_os("CARGO_HOME").map_or_else(|| home.join(".cargo"), Into::into);
    Ok(format!(
        "--remap-path-prefix={}=cargo --remap-path-prefix={}=.",
        cargo_home.display(),
        dir.display()
    ))
}

/// The linker that rustup ships is of the compiler's own LLVM; Debian's `lld` is older, and serves.
fn linker(sysroot: &Path) -> Option<PathBuf> {
    let host = format!("lib/rustlib/{}-unknown-linux-gnu/bin/rust-lld", env::consts::ARCH);
    let shipped = sysroot.join(host);
    if shipped.is_file() {
        return Some(shipped);
    }
    let path = env::var_os("PATH")?;
    env::split_paths(&path).map(|dir| dir.join("wasm-ld")).find(|file| file.is_file())
}

/// Where the toolchain is that builds crates in this folder.
fn sysroot(dir: &Path) -> Option<PathBuf> {
    let mut rustc = Command::new("rustc");
    let output = rustc.args(["--print", "sysroot"]).current_dir(dir).output().ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    output.status.success().then(|| text.trim().into())
}

/// A core module that cargo has built.
#[derive(Debug)]
pub(crate) struct Built {
    /// The manifest of its crate.
    pub(crate) manifest: PathBuf,
    file: PathBuf,
}

/// Runs a command of [`Compiler::build`] and collects the modules it reports; what is fresh is
/// reported as well.
pub(crate) fn run(command: &mut Command) -> Result<Vec<Built>> {
    let mut cargo = command.stdout(Stdio::piped()).spawn().context("cannot start cargo")?;
    let stdout = cargo.stdout.take().context("cargo has no output")?;
    let mut built = Vec::new();
    for line in BufReader::new(stdout).lines() {
        let message: Value =
            serde_json::from_str(&line?).context("cargo speaks another language")?;
        built.extend(module_of(&message));
    }
    if !cargo.wait()?.success() {
        bail!("cargo could not build it");
    }
    Ok(built)
}

/// The module that a message of cargo's tells of, if it does.
fn module_of(message: &Value) -> Option<Built> {
    if message["reason"] != "compiler-artifact" {
        return None;
    }
    let files = message["filenames"].as_array()?.iter().filter_map(Value::as_str);
    let file =
        files.map(PathBuf::from).find(|file| file.extension().is_some_and(|it| it == "wasm"));
    Some(Built { manifest: message["manifest_path"].as_str()?.into(), file: file? })
}

impl Built {
    /// Leaves it at `out`: see [`publish`].
    pub(crate) fn publish(&self, out: &Path) -> Result<usize> {
        publish(&self.file, out)
    }
}

/// Leaves the module at `out`, if it is a policy, and returns its size. A file that would not
/// change is left alone, so that nothing which watches it is woken.
pub(crate) fn publish(module: &Path, out: &Path) -> Result<usize> {
    let published = united(&fs::read(module)?)
        .and_then(|module| {
            ComponentEncoder::default().validate(true).module(&module)?.encode()?;
            Ok(module)
        })
        .with_context(|| format!("{} is no policy", module.display()))?;
    if let Some(dir) = out.parent() {
        fs::create_dir_all(dir)?;
    }
    if fs::read(out).is_ok_and(|there| there == published) {
        return Ok(published.len());
    }
    fs::write(out, &published).with_context(|| format!("cannot write {}", out.display()))?;
    Ok(published.len())
}

/// The module with one section that tells its interface. The SDK's bindings leave one for each part
/// of the interface, used or not, which is more than some policies' code.
fn united(module: &[u8]) -> Result<Vec<u8>> {
    let (stripped, told) = metadata::decode(module)?;
    let mut module = stripped.context("it does not tell its interface; does it call `export!`?")?;
    embed_component_metadata(&mut module, &told.resolve, told.world, StringEncoding::UTF8, false)?;
    Ok(module)
}
