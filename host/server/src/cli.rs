//! The command line: what can be asked for, and who does it.

use std::ffi::OsString;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, Parser, Subcommand};
use pointsman_plugin::Profile;
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::check::Checked;
use crate::config::Admin;
use crate::control::Start;
use crate::failure::Failure;
use crate::inherited::Inherited;
use crate::problem::Problem;
use crate::reload::{Answer, Source};
use crate::status::Status;
use crate::swap::compile;
use crate::upgrade::{self, Predecessor, Program, launcher};
use crate::{check, client, control, demo, doctor, logging, runtime};

mod author;
mod endpoint;
mod flows;
mod policy;

/// Longer than compiling a policy may take.
const RELOAD_PATIENCE: Duration = Duration::from_secs(180);
/// Longer than the longest `upgrade_timeout_ms`.
const UPGRADE_PATIENCE: Duration = Duration::from_secs(660);

/// The arguments.
#[derive(Debug, Parser)]
#[command(
    name = "pointsman",
    about = "A programmable load balancer: Wasm policies, an io_uring data path",
    version,
    disable_help_subcommand = true
)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run a balancer until a signal ends it (the first drains, the second ends at once).
    Run {
        /// The configuration.
        #[arg(long, value_name = "FILE")]
        config: PathBuf,
        #[command(flatten)]
        folders: Folders,
    },
    /// Tell everything that is wrong with a configuration.
    Check {
        /// The configuration.
        #[arg(value_name = "FILE")]
        file: PathBuf,
        #[command(flatten)]
        folders: Folders,
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
    /// Have a running balancer read its configuration again; nothing changes if anything is wrong.
    Reload(Asking),
    /// Start the program that lies where a running balancer's lay, and have it take over from that: sockets
    /// and flows go on, connections end where they are.
    Upgrade(Asking),
    /// Show what a running balancer is doing.
    Status(Asking),
    /// List live flows and kept decisions, look at one of them, or forget it.
    Flows(Box<flows::Flows>),
    /// Show a cluster's endpoints, and change them while it serves.
    #[command(subcommand)]
    Endpoint(endpoint::Endpoint),
    /// Write, build and test policies, see who decides for which cluster, and put others there.
    #[command(subcommand)]
    Policy(policy::Policy),
    /// Compile the plugin on standard input under limits: what a swap does before anything else.
    #[command(hide = true, name = compile::SUBCOMMAND)]
    CompilePlugin {
        /// It is one of `profile = "compat"`.
        #[arg(long)]
        compat: bool,
    },
    /// Start a program that takes over from the balancer on standard input.
    #[command(hide = true, name = launcher::SUBCOMMAND)]
    LaunchSuccessor {
        /// Its path, and its arguments.
        #[arg(required = true, last = true)]
        command: Vec<OsString>,
    },
    /// Tell whether this machine can run a balancer.
    Doctor {
        #[command(flatten)]
        folders: Folders,
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
    /// Start three endpoints and a balancer, send traffic through it and show what happened.
    Demo {
        #[command(flatten)]
        folders: Folders,
        /// Leave everything running until a signal ends it.
        #[arg(long)]
        keep: bool,
    },
}

/// Where plugins are looked for besides the usual places.
#[derive(Debug, Args)]
struct Folders {
    /// A folder to look for plugins in; can be given several times.
    #[arg(long = "plugins", value_name = "DIR")]
    folders: Vec<PathBuf>,
}

/// Who is asked, and how the answer is printed.
#[derive(Debug, Args)]
struct Asking {
    /// The balancer's admin socket, or its address, as in https://host:port.
    #[arg(long, value_name = "SOCKET", default_value = Admin::SOCKET_DEFAULT)]
    admin: PathBuf,
    /// For an address: the file with its token.
    #[arg(long, value_name = "FILE")]
    token_file: Option<PathBuf>,
    /// For an address with https: the certificates that vouch for it, in PEM.
    #[arg(long, value_name = "FILE")]
    ca_file: Option<PathBuf>,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

impl Asking {
    /// Does something to a path of the balancer, and gets the status code and body.
    fn send(
        &self,
        request: (&str, &str),
        body: &[u8],
        patience: Duration,
    ) -> anyhow::Result<client::Answer> {
        match self.admin.to_str().filter(|text| client::Remote::is_url(text)) {
            Some(url) => {
                let (token_file, ca_file) = (self.token_file.as_deref(), self.ca_file.as_deref());
                client::Remote { url, token_file, ca_file }.send(request, body, patience)
            }
            None => client::send_body(&self.admin, request, body, patience),
        }
    }
}

/// What a program is told in place of an answer.
#[derive(Serialize)]
struct Complaint {
    error: String,
}

/// Does what the command line asks for.
pub fn main() -> ExitCode {
    // Looked for by hand, because it also says how a command line is refused.
    let json = std::env::args_os().any(|argument| argument == "--json");
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) if json && error.use_stderr() => {
            let text = error.render().to_string();
            let line = text.lines().next().unwrap_or_default();
            let line = line.trim_start_matches("error: ").to_owned();
            return complain(&Failure::input(line), json);
        }
        Err(error) => error.exit(),
    };
    logging::start(matches!(cli.command, Command::Run { .. }));
    let outcome = dispatch(cli.command);
    logging::finish();
    outcome.unwrap_or_else(|failure| complain(&failure, json))
}

/// Tells a person on standard error, or a program on standard output, where it reads the answer.
fn complain(failure: &Failure, json: bool) -> ExitCode {
    if json {
        let complaint = Complaint { error: failure.lines().join("\n") };
        // A text can always be written as JSON.
        let _ = print_json(&complaint);
    } else {
        failure.lines().iter().for_each(|line| eprintln!("error: {line}"));
    }
    failure.code()
}

fn dispatch(command: Command) -> Result<ExitCode, Failure> {
    match command {
        Command::Run { config, folders } => run(&config, &folders.folders),
        Command::Check { file, folders, json } => check_file(&file, &folders.folders, json),
        Command::Reload(asking) => reload(&asking),
        Command::Upgrade(asking) => upgrade(&asking),
        Command::Status(asking) => status(&asking),
        Command::Flows(flows) => flows.run(),
        Command::Endpoint(endpoint) => endpoint.run(),
        Command::Policy(policy) => policy.run(),
        Command::CompilePlugin { compat } => {
            let profile = if compat { Profile::Compat } else { Profile::Strict };
            Ok(compile::main(profile))
        }
        Command::LaunchSuccessor { command } => Ok(launcher::main(&command)),
        Command::Doctor { folders, json } => examine(&folders.folders, json),
        Command::Demo { folders, keep } => demo::run(&folders.folders, keep),
    }
}

fn run(file: &Path, folders: &[PathBuf]) -> Result<ExitCode, Failure> {
    let mut predecessor = Predecessor::from_environment().map_err(Failure::input)?;
    let outcome = start(file, folders, &mut predecessor);
    if let (Err(failure), Some(predecessor)) = (&outcome, &predecessor) {
        predecessor.refuse(&failure.lines());
    }
    outcome
}

/// Runs a balancer, after the one that has started it if there is one.
fn start(
    file: &Path,
    folders: &[PathBuf],
    predecessor: &mut Option<Predecessor>,
) -> Result<ExitCode, Failure> {
    let program = Program::current();
    let inherited = Inherited::from_environment().map_err(Failure::input)?;
    let checked = check::read(file, folders).map_err(|failure| in_file(failure, file))?;
    let Checked { plan, document } = checked;
    let source = Source { file: file.to_owned(), folders: folders.to_vec() };
    let config = document.config.clone();
    if let Err(error) = pointsman_ring::probe().ring {
        return Err(Failure::Fault(error.into()));
    }
    let start = Start { source, config, plan, inherited, program };
    let begin = control::run(start, predecessor);
    runtime::start(begin).map_err(|failure| match failure {
        Failure::Input(problems) => in_file(Failure::Input(document.into_problems(problems)), file),
        fault @ Failure::Fault(_) => fault,
    })
}

/// Leads each problem with the file's name and the place in it.
pub(crate) fn in_file(failure: Failure, file: &Path) -> Failure {
    match failure {
        Failure::Input(problems) => Failure::Input(
            problems.iter().map(|problem| Problem::new("", problem.in_file(file))).collect(),
        ),
        fault @ Failure::Fault(_) => fault,
    }
}

/// What `check --json` prints.
#[derive(Serialize)]
struct Verdict<'a> {
    file: &'a Path,
    good: bool,
    problems: Vec<Place<'a>>,
}

#[derive(Serialize)]
struct Place<'a> {
    key: &'a str,
    line: Option<usize>,
    column: Option<usize>,
    message: &'a str,
}

impl<'a> From<&'a Problem> for Place<'a> {
    fn from(Problem { key, place, message }: &'a Problem) -> Self {
        let (line, column) = place.unzip();
        Self { key, line, column, message }
    }
}

fn check_file(file: &Path, folders: &[PathBuf], json: bool) -> Result<ExitCode, Failure> {
    let outcome = check::check(file, folders);
    if !json {
        let plan = outcome.map_err(|failure| in_file(failure, file))?;
        print(&format!("{}\n", check::summary(file, &plan)));
        return Ok(ExitCode::SUCCESS);
    }
    let problems = match &outcome {
        Err(Failure::Input(problems)) => problems.as_slice(),
        _ => &[],
    };
    print_json(&Verdict {
        file,
        good: outcome.is_ok(),
        problems: problems.iter().map(Place::from).collect(),
    })?;
    Ok(outcome.map_or_else(|failure| failure.code(), |_| ExitCode::SUCCESS))
}

fn reload(asking: &Asking) -> Result<ExitCode, Failure> {
    let (code, answer) = asking.send(("POST", "/v1/reload"), &[], RELOAD_PATIENCE)?;
    let answer: Answer = accepted(code, &answer)?;
    if asking.json {
        print_json(&answer)?;
    } else {
        print(&answer.to_text());
    }
    Ok(ExitCode::SUCCESS)
}

fn upgrade(asking: &Asking) -> Result<ExitCode, Failure> {
    let (code, answer) = asking.send(("POST", "/v1/upgrade"), &[], UPGRADE_PATIENCE)?;
    if code == 404 {
        return Err(anyhow::anyhow!("the balancer is too old to be upgraded: restart it").into());
    }
    let answer: upgrade::Answer = accepted(code, &answer)?;
    if asking.json {
        print_json(&answer)?;
    } else {
        print(&answer.to_text());
    }
    Ok(ExitCode::SUCCESS)
}

/// What the balancer says of a change that it was asked for; where it refuses, a line for each reason.
fn accepted<T: DeserializeOwned>(code: u16, answer: &str) -> Result<T, Failure> {
    match code {
        200 => Ok(policy::read(answer)?),
        422 => {
            let problem = |line: &str| Problem::new("", line);
            Err(Failure::Input(answer.lines().map(problem).collect()))
        }
        _ => Err(anyhow::anyhow!("{}", answer.trim()).into()),
    }
}

fn status(asking: &Asking) -> Result<ExitCode, Failure> {
    let (code, answer) = asking.send(("GET", "/v1/status"), &[], client::TIMEOUT)?;
    if code != 200 {
        return Err(anyhow::anyhow!("{}", answer.trim()).into());
    }
    let status: Status = serde_json::from_str(&answer)
        .map_err(|error| anyhow::anyhow!("the balancer is of another version: {error}"))?;
    if asking.json {
        print_json(&status)?;
    } else {
        print(&status.to_table());
    }
    Ok(ExitCode::SUCCESS)
}

fn examine(folders: &[PathBuf], json: bool) -> Result<ExitCode, Failure> {
    let findings = doctor::examine(folders);
    if json {
        print_json(&findings)?;
    } else {
        print(&doctor::to_table(&findings));
    }
    let fails = doctor::worst(&findings) == doctor::Verdict::Fail;
    Ok(if fails { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

fn print_json(value: &impl Serialize) -> anyhow::Result<()> {
    let text = serde_json::to_string_pretty(value)?;
    print(&format!("{text}\n"));
    Ok(())
}

/// A reader that has seen enough (`| head`) is no failure.
fn print(text: &str) {
    let _ = std::io::stdout().write_all(text.as_bytes());
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }
}
