//! Every developer command of Pointsman: `cargo xtask VERB`.
//!
//! CI calls nothing else, so what passes here passes there. One file per verb.
#![forbid(unsafe_code)]

mod bench;
mod ci;
mod demo;
mod fuzz;
#[path = "../../host/server/src/author/guest.rs"]
mod guest;
mod languages;
mod plugins;
mod released;
mod setup;
mod sim;
mod soak;
mod test;
mod workspace;

use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};

/// Every developer command of Pointsman.
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
struct Arguments {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// Installs what is missing on this machine to build everything.
    Setup(setup::Arguments),
    /// Builds the plugins and the balancer, and shows it at work.
    Demo(demo::Arguments),
    /// Runs every test.
    Test(test::Arguments),
    /// Checks everything that CI checks: format, lints, documentation, tests.
    Ci,
    /// Builds every policy in `plugins/`, or one from elsewhere, to a WebAssembly component.
    Plugins(plugins::Arguments),
    /// Runs the benchmarks, or the comparison with other balancers.
    Bench(bench::Arguments),
    /// Runs the simulation of the core, from a seed of one's choice.
    Sim(sim::Arguments),
    /// Puts the balancer under load while its endpoints are killed and it is reloaded and upgraded.
    Soak(soak::Arguments),
    /// Fuzzes one target, or lists them.
    Fuzz(fuzz::Arguments),
}

fn main() -> ExitCode {
    match run(Arguments::parse().verb) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(verb: Verb) -> Result<()> {
    match verb {
        Verb::Setup(arguments) => setup::run(&arguments),
        Verb::Demo(arguments) => demo::run(&arguments),
        Verb::Test(arguments) => test::run(&arguments),
        Verb::Ci => ci::run(),
        Verb::Plugins(arguments) => plugins::run(&arguments),
        Verb::Bench(arguments) => bench::run(&arguments),
        Verb::Sim(arguments) => sim::run(&arguments),
        Verb::Soak(arguments) => soak::run(&arguments),
        Verb::Fuzz(arguments) => fuzz::run(&arguments),
    }
}
