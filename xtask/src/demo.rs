//! Builds the plugins and the balancer, and shows it at work.

use std::os::unix::process::CommandExt;
use std::process::Command;

use anyhow::{Context, Result};

use crate::workspace::{cargo, plugins_dir, run as run_command, target_dir};
use crate::{plugins, setup};

#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// Leave it running until it is interrupted.
    #[arg(long)]
    keep: bool,
}

/// The demo takes this process's place: an interrupt reaches it and nobody in between.
pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    setup::run(&setup::Arguments::default())?;
    plugins::run(&plugins::Arguments::default())?;
    run_command(cargo().args(["build", "--release", "--locked", "--package", "pointsman"]))?;
    let mut demo = Command::new(target_dir().join("release/pointsman"));
    demo.arg("demo").arg("--plugins").arg(plugins_dir());
    if arguments.keep {
        demo.arg("--keep");
    }
    Err(demo.exec()).context("cannot start the balancer")
}
