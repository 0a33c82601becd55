//! Runs every test.

use anyhow::Result;

use crate::languages::Language;
use crate::workspace::{cargo, run as run_command};
use crate::{plugins, released, setup};

#[derive(clap::Args, Default)]
pub(crate) struct Arguments {
    /// What to pass to the tests, such as a part of their names, after `--`.
    #[arg(last = true)]
    passed_on: Vec<String>,
}

/// The tests of host and server load real plugins, so those come first. cargo's own summary comes
/// last: CI reads it.
pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    setup::run(&setup::Arguments::default())?;
    plugins::run(&plugins::Arguments::default())?;
    released::build()?;
    for language in Language::ALL {
        // Its test says that it is skipped, and in CI fails.
        if let Err(error) = language.build(None, None) {
            eprintln!("warning: {error:#}");
        }
    }
    let mut command = cargo();
    command.args(["test", "--workspace", "--locked", "--no-fail-fast"]);
    if !arguments.passed_on.is_empty() {
        command.arg("--").args(&arguments.passed_on);
    }
    run_command(&mut command)
}
