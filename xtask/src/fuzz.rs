//! Fuzzes the targets of `host/fuzz`.

use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::workspace::{cargo, output, root, run as run_command};

#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// The target; all are listed without it.
    target: Option<String>,

    /// When to stop.
    #[arg(long, default_value_t = 60, value_name = "N")]
    seconds: u32,
}

pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    if !root().join("host/fuzz").is_dir() {
        bail!("there is no host/fuzz");
    }
    cargo_fuzz_is_there()?;
    let Some(target) = &arguments.target else {
        return run_command(&mut fuzz("list"));
    };
    let time = format!("-max_total_time={}", arguments.seconds);
    run_command(fuzz("run").args([target, "--", &time]))
}

/// cargo-fuzz needs the sanitizers of a nightly compiler, so rustup's proxy is asked and not the
/// cargo that runs this.
fn fuzz(verb: &str) -> Command {
    let mut command = Command::new("cargo");
    command.args(["+nightly", "fuzz", verb]).current_dir(root().join("host"));
    for inherited in ["RUSTUP_TOOLCHAIN", "CARGO", "RUSTC", "RUSTDOC"] {
        command.env_remove(inherited);
    }
    command
}

fn cargo_fuzz_is_there() -> Result<()> {
    if output(&mut fuzz("--version")).is_some() {
        return Ok(());
    }
    run_command(cargo().args(["install", "--locked", "cargo-fuzz"])).context(
        "fuzzing needs cargo-fuzz, and a nightly toolchain: `rustup toolchain add nightly`",
    )
}
