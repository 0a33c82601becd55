//! Builds the policies of `examples/policies`, which are written in other languages than Rust.
//!
//! Tools are installed for this work tree alone where that is possible, in versions that are
//! pinned, so that a policy builds next year as it does today.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use clap::ValueEnum;

use crate::guest;
use crate::setup::install;
use crate::workspace::{plugins_dir, root, run, target_dir, which};

/// What of the interface the policies implement.
const WORLD: &str = "chooser";
/// The stack of a policy in C. It lies below everything else, so that an overflow traps.
const C_STACK_BYTES: u32 = 16 << 10;

/// A language that a policy can be written in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Language {
    /// C, by clang, without a C library.
    C,
    /// JavaScript, by componentize-qjs, together with an interpreter.
    #[value(alias = "js")]
    Javascript,
}

impl Language {
    pub(crate) const ALL: [Self; 2] = [Self::C, Self::Javascript];

    const fn name(self) -> &'static str {
        match self {
            Self::C => "c",
            Self::Javascript => "javascript",
        }
    }

    /// The example in this language.
    fn example(self) -> PathBuf {
        root().join("examples/policies").join(self.name())
    }

    /// Where what it needs to build is kept.
    fn workshop(self) -> PathBuf {
        target_dir().join("languages").join(self.name())
    }

    /// Installs what builds it, unless that is there.
    pub(crate) fn set_up(self) -> Result<()> {
        match self {
            Self::C => set_up_c(),
            Self::Javascript => set_up_javascript(&self.workshop()),
        }
    }

    /// Builds a policy, by default the example, and leaves it at `out`, by default among the
    /// plugins.
    pub(crate) fn build(self, dir: Option<&Path>, out: Option<&Path>) -> Result<()> {
        let example = self.example();
        let dir = dir.unwrap_or(&example);
        let default = plugins_dir().join(format!("p2c-{}.wasm", self.name()));
        let out = out.unwrap_or(&default);
        let workshop = self.workshop();
        fs::create_dir_all(&workshop)?;
        self.set_up()?;
        let size = match self {
            Self::C => build_c(dir, &workshop, out)?,
            Self::Javascript => build_javascript(dir, &workshop, out)?,
        };
        println!("{} {:.1} KiB", out.display(), size as f64 / 1024.0);
        Ok(())
    }
}

fn wit() -> PathBuf {
    root().join("plugin-sdk/wit")
}

fn set_up_c() -> Result<()> {
    let tools = [("clang", "clang"), ("wasm-ld", "lld")];
    let missing: Vec<_> = tools.iter().filter(|(tool, _)| which(tool).is_none()).collect();
    if missing.is_empty() {
        return Ok(());
    }
    install(&missing.iter().map(|(_, package)| *package).collect::<Vec<_>>())
}

/// Compiles every source of the folder, with the glue that was generated from the interface.
fn build_c(dir: &Path, workshop: &Path, out: &Path) -> Result<usize> {
    let shared = Language::C.example();
    let [glue, library] = ["generated", "freestanding"].map(|name| shared.join(name));
    let mut sources = sources(dir, "c")?;
    sources.extend([".c", "_component_type.o"].map(|end| glue.join(format!("{WORLD}{end}"))));
    let module = workshop.join("policy.wasm");
    let mut clang = Command::new("clang");
    clang.args(["--target=wasm32-unknown-unknown", "-mbulk-memory", "-ffreestanding", "-nostdlib"]);
    clang.args(["-std=c17", "-Os", "-flto", "-Wall", "-Wextra", "-Werror"]);
    for includes in [dir, &glue, &library] {
        clang.arg("-I").arg(includes);
    }
    clang.args(["-Wl,--no-entry", "-Wl,--strip-all", "-Wl,--stack-first"]);
    clang.arg(format!("-Wl,-z,stack-size={C_STACK_BYTES}"));
    run(clang.args(sources).arg("-o").arg(&module))?;
    guest::publish(&module, out)
}

/// Installs the package of the example's lock file, in the workshop.
fn set_up_javascript(workshop: &Path) -> Result<()> {
    let lock = "package-lock.json";
    let wanted = fs::read(Language::Javascript.example().join(lock))?;
    if componentizer(workshop).is_file()
        && fs::read(workshop.join(lock)).is_ok_and(|there| there == wanted)
    {
        return Ok(());
    }
    if which("npm").is_none() {
        install(&["nodejs", "npm"])?;
    }
    fs::create_dir_all(workshop)?;
    for file in ["package.json", lock] {
        fs::copy(Language::Javascript.example().join(file), workshop.join(file))?;
    }
    println!("installing componentize-qjs to {}", workshop.display());
    let mut npm = Command::new("npm");
    npm.args(["ci", "--no-audit", "--no-fund", "--silent"]).current_dir(workshop);
    run(&mut npm)
}

fn componentizer(workshop: &Path) -> PathBuf {
    workshop.join("node_modules/componentize-qjs/bin/componentize-qjs")
}

/// Puts the policy and an interpreter that has read it into one component.
fn build_javascript(dir: &Path, workshop: &Path, out: &Path) -> Result<usize> {
    if let Some(folder) = out.parent() {
        fs::create_dir_all(folder)?;
    }
    let mut node = Command::new("node");
    node.arg(componentizer(workshop)).args(["--sync", "--minify", "--world", WORLD]);
    node.arg("--wit").arg(wit()).arg("--js").arg(dir.join("policy.js")).arg("--output").arg(out);
    let made = node.output().context("cannot start node")?;
    if !made.status.success() {
        bail!("componentize-qjs failed: {}", String::from_utf8_lossy(&made.stderr).trim());
    }
    Ok(usize::try_from(fs::metadata(out)?.len())?)
}

/// The files of a folder with this extension, in the order of their names.
fn sources(dir: &Path, extension: &str) -> Result<Vec<PathBuf>> {
    let entries = fs::read_dir(dir).with_context(|| format!("no folder {}", dir.display()))?;
    let paths = entries.map(|entry| entry.map(|entry| entry.path()));
    let mut paths = paths.collect::<Result<Vec<_>, _>>()?;
    paths.retain(|path| path.extension().is_some_and(|it| it == extension));
    paths.sort();
    Ok(paths)
}
