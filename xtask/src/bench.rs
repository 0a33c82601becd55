//! Runs the benchmarks, or the comparison with other balancers.

use anyhow::Result;

use crate::languages::Language;
use crate::workspace::{cargo, run as run_command};
use crate::{plugins, setup};

/// The filter that stands for the comparison of languages, and the test that makes it.
const LANGUAGES: &str = "languages";

#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// Compare with HAProxy, nginx and Envoy instead, over loopback.
    #[arg(long)]
    peers: bool,

    /// Only what has this in its name; `languages` compares policies in several languages.
    filter: Option<String>,

    /// What to pass on, after `--`.
    #[arg(last = true)]
    passed_on: Vec<String>,
}

pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    setup::run(&setup::Arguments { peers: arguments.peers })?;
    plugins::run(&plugins::Arguments::default())?;
    if arguments.filter.as_deref() == Some(LANGUAGES) {
        return languages();
    }
    let mut command = cargo();
    if arguments.peers {
        // The comparison starts the balancer as a process of its own.
        let build = ["build", "--release", "--locked", "--package", "pointsman"];
        run_command(cargo().args(build))?;
        command.args(["run", "--release", "--locked", "--package", "pointsman-benches"]);
        command.args(["--bin", "peers", "--"]);
    } else {
        command.args(["bench", "--locked", "--package", "pointsman-benches", "--"]);
    }
    run_command(command.args(&arguments.filter).args(&arguments.passed_on))
}

/// Prints what the same policy costs in each language.
fn languages() -> Result<()> {
    for language in Language::ALL {
        language.build(None, None)?;
    }
    let mut command = cargo();
    command.args(["test", "--release", "--locked", "--package", "pointsman-plugin"]);
    command.args(["--test", LANGUAGES, "--", "--ignored", "--nocapture"]);
    run_command(&mut command)
}
