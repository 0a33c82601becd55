//! Fuzzes the targets of `host/fuzz`.

use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::workspace::{cargo, output, root, run as run_command};

/// Where the targets are, from the root.
const DIR: &str = "host/fuzz";

#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// The target; all are listed without it.
    target: Option<String>,

    /// When to stop.
    #[arg(long, default_value_t = 60, value_name = "N")]
    seconds: u32,
}

pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    if !root().join(DIR).is_dir() {
        bail!("there is no {DIR}");
    }
    cargo_fuzz_is_there()?;
    let Some(target) = &arguments.target else {
        return run_command(fuzz().args(["list", "--fuzz-dir", DIR]));
    };
    let time = format!("-max_total_time={}", arguments.seconds);
    run_command(fuzz().args(["run", "--fuzz-dir", DIR, target, "--", &time]))
}

/// cargo-fuzz needs the sanitizers of a nightly compiler, so rustup's proxy is asked and not the
/// cargo that runs this.
fn fuzz() -> Command {
    let mut command = Command::new("cargo");
    command.args(["+nightly", "fuzz"]).current_dir(root());
    for inherited in ["RUSTUP_TOOLCHAIN", "CARGO", "RUSTC", "RUSTDOC"] {
        command.env_remove(inherited);
    }
    command
}

fn cargo_fuzz_is_there() -> Result<()> {
    if output(fuzz().arg("--version")).is_some() {
        return Ok(());
    }
    run_command(cargo().args(["install", "--locked", "cargo-fuzz"])).context(
        "fuzzing needs cargo-fuzz, and a nightly toolchain: `rustup toolchain add nightly`",
    )
}
