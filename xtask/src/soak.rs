//! Runs the soak: a balancer under load while endpoints are killed, files reloaded, processes replaced.

use anyhow::Result;

use crate::workspace::{cargo, run as run_command};
use crate::{plugins, setup};

#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// Seconds of load in each phase.
    #[arg(long, value_name = "N")]
    seconds: Option<u64>,

    /// Only phases with this in their name.
    #[arg(long, value_name = "NAME")]
    phase: Option<String>,

    /// What to pass on, after `--`.
    #[arg(last = true)]
    passed_on: Vec<String>,
}

pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    setup::run(&setup::Arguments { peers: true })?;
    plugins::run(&plugins::Arguments::default())?;
    // The soak starts the balancer as a process of its own.
    run_command(cargo().args(["build", "--release", "--locked", "--package", "pointsman"]))?;
    let mut command = cargo();
    command.args(["run", "--release", "--locked", "--package", "pointsman-benches"]);
    command.args(["--bin", "soak", "--"]);
    if let Some(seconds) = arguments.seconds {
        command.args(["--seconds", &seconds.to_string()]);
    }
    if let Some(phase) = &arguments.phase {
        command.args(["--phase", phase]);
    }
    run_command(command.args(&arguments.passed_on))
}
