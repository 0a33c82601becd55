//! Runs the simulation of the core.
//!
//! A seed fixes everything that happens, so a failure is repeated by its seed.

use anyhow::Result;

use crate::workspace::{cargo, run as run_command};

#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// Run this seed alone.
    #[arg(long, conflicts_with_all = ["seeds", "mutants"])]
    seed: Option<u64>,

    /// Run this many seeds.
    #[arg(long, value_name = "COUNT", conflicts_with = "mutants")]
    seeds: Option<u64>,

    /// Break the core on purpose, one way after another, and see each break caught.
    #[arg(long)]
    mutants: bool,
}

pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    let mut command = cargo();
    command.args(["test", "--release", "--locked", "--package", "pointsman-core"]);
    command.args(["--test", "simulation", "--"]);
    if let Some(seed) = arguments.seed {
        command.env("POINTSMAN_SIM_SEED", seed.to_string());
    }
    if let Some(count) = arguments.seeds {
        command.env("POINTSMAN_SIM_SEEDS", count.to_string());
    }
    if arguments.mutants {
        command.env("POINTSMAN_SIM_MUTANTS", "1").args(["--ignored", "mutants"]);
    }
    run_command(command.arg("--nocapture"))
}
