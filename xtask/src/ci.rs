//! Checks everything that CI checks, in the order of what fails fastest.

use std::time::Instant;

use anyhow::{Context, Result};

use crate::test;
use crate::workspace::{cargo, run as run_command};

pub(crate) fn run() -> Result<()> {
    step("format", || run_command(cargo().args(["fmt", "--all", "--check"])))?;
    step("lints", || {
        let clippy = ["clippy", "--workspace", "--all-targets", "--locked"];
        run_command(cargo().args(clippy).args(["--", "-D", "warnings"]))
    })?;
    step("documentation", || {
        let doc = ["doc", "--workspace", "--no-deps", "--locked"];
        run_command(cargo().args(doc).env("RUSTDOCFLAGS", "-D warnings"))
    })?;
    // Nothing is printed after the tests: who reads the output looks for cargo's own summary there.
    eprintln!("==> tests");
    test::run(&test::Arguments::default())
}

fn step(name: &str, check: impl FnOnce() -> Result<()>) -> Result<()> {
    eprintln!("==> {name}");
    let begun = Instant::now();
    check().with_context(|| format!("step `{name}`"))?;
    eprintln!("==> {name} took {:.0} s", begun.elapsed().as_secs_f64());
    Ok(())
}
