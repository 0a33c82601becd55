//! The compiler that builds for `wasm32-unknown-unknown`.
//!
//! Two ways lead there. Where rustup has installed the target, plain cargo does it. Where the
//! target cannot be had, as on a machine that reaches package registries and nothing else, Debian's
//! `rustc-web` and `rust-web-src` carry a compiler and the sources of its standard library, which
//! cargo then builds too. That takes a minute once and is kept in the target folder.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use crate::workspace::{cargo, output, root, target_dir, which};

/// The target that plugins are built for: no operating system, hence no imports but the host's.
pub(crate) const TARGET: &str = "wasm32-unknown-unknown";

/// Where Debian's packages put the compiler, and the library sources beside it.
const DEBIAN_RUSTC: &str = "/usr/bin/rustc";
const DEBIAN_LIBRARY: &str = "/usr/lib/rustlib/src/rust/library";

/// What builds plugins on this machine.
#[derive(Debug)]
pub(crate) enum Compiler {
    /// The toolchain of this repository, with the target installed.
    Rustup,
    /// Debian's compiler, which builds the standard library from its sources.
    Debian {
        /// The linker.
        linker: PathBuf,
    },
}

impl Compiler {
    /// The compiler of this machine, if there is one. Asks the disk and never the network.
    pub(crate) fn find() -> Option<Self> {
        if sysroot()?.join("lib/rustlib").join(TARGET).is_dir() {
            return Some(Self::Rustup);
        }
        let has_sources = Path::new(DEBIAN_RUSTC).is_file() && Path::new(DEBIAN_LIBRARY).is_dir();
        has_sources.then(linker).flatten().map(|linker| Self::Debian { linker })
    }

    /// `cargo build` for the guest.
    pub(crate) fn build(&self) -> Result<Command> {
        let mut command = cargo();
        command.args(["build", "--lib", "--profile", "guest", "--target", TARGET]);
        command.arg("--target-dir").arg(target_dir().join("guest"));
        command.env("RUSTFLAGS", remapped_paths()?).env_remove("CARGO_ENCODED_RUSTFLAGS");
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
fn remapped_paths() -> Result<String> {
    let home = std::env::home_dir().context("this user has no home folder")?;
    let cargo_home = std::env::var_os("CARGO_HOME").map_or_else(|| home.join(".cargo"), Into::into);
    Ok(format!(
        "--remap-path-prefix={}=cargo --remap-path-prefix={}=.",
        cargo_home.display(),
        root().display()
    ))
}

/// The linker that rustup ships is of the compiler's own LLVM; Debian's `lld` is older, and serves.
fn linker() -> Option<PathBuf> {
    let host = format!("lib/rustlib/{}-unknown-linux-gnu/bin/rust-lld", std::env::consts::ARCH);
    let shipped = sysroot().map(|root| root.join(host)).filter(|file| file.is_file());
    shipped.or_else(|| which("wasm-ld"))
}

/// Where the toolchain of this repository is.
fn sysroot() -> Option<PathBuf> {
    output(Command::new("rustc").args(["--print", "sysroot"]).current_dir(root())).map(Into::into)
}
