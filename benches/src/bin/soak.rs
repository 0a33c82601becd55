//! A long day of a balancer in a few minutes: endpoints that are killed and that flap, drains, weights,
//! reloads, upgrades, and under all of them a load whose every request is accounted for.
//!
//! Endpoints are processes of their own, on loopback. Each phase prints one table; where only endpoints
//! are handled, HAProxy has its turns with the same load. What is claimed comes last, and the exit code
//! is 1 if a claim does not hold. Run it with `cargo xtask soak`.

#[path = "soak/balancers.rs"]
mod balancers;
#[path = "soak/claims.rs"]
mod claims;
#[path = "soak/endpoint.rs"]
mod endpoint;
#[path = "soak/endpoints.rs"]
mod endpoints;
#[path = "soak/interrupt.rs"]
mod interrupt;
#[path = "soak/judgement.rs"]
mod judgement;
#[path = "soak/load.rs"]
mod load;
#[path = "soak/phases.rs"]
mod phases;
#[path = "soak/table.rs"]
mod table;

use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use clap::{Parser, Subcommand};

use balancers::{Balancer, FLOW_IDLE, Gauges, Pointsman, start_haproxy};
use claims::Claims;
use endpoints::Endpoints;
use interrupt::pause;
use judgement::{Breach, Judge, Records};
use load::Load;
use phases::{Act, Phase, QUIET, Witness};
use table::Column;

/// After a load, until what it has left in a balancer is gone.
const SETTLING: Duration = Duration::from_secs(FLOW_IDLE.as_secs() + 2);
/// How long that may take at most.
const SETTLING_MAX: Duration = Duration::from_secs(60);
/// How long a balancer may keep what so many flows called for.
const COOLING: Duration = Duration::from_secs(25);
/// By how much the last quiet phase may hold more than the first.
const MEMORY_TOLERANCE: f64 = 0.10;
const MEMORY_TOLERANCE_BYTES: f64 = (4 << 20) as f64;
/// A check per endpoint and cluster may be under way.
const DESCRIPTORS_TOLERANCE: usize = 2 * endpoints::COUNT;

#[derive(Parser)]
struct Arguments {
    #[command(subcommand)]
    role: Option<Role>,

    /// Seconds of load in each phase, and in each run of one with several.
    #[arg(long, default_value_t = 60)]
    seconds: u64,

    /// Only phases with this in their name.
    #[arg(long)]
    phase: Option<String>,

    /// How often balancers take turns where they are compared.
    #[arg(long, default_value_t = 2)]
    rounds: u32,
}

#[derive(Subcommand)]
enum Role {
    /// One of the endpoints.
    #[command(hide = true)]
    Endpoint(endpoint::Arguments),
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let outcome = match &arguments.role {
        Some(Role::Endpoint(arguments)) => endpoint::run(arguments).map(|()| true),
        None => soak(&arguments),
    };
    match outcome {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn soak(arguments: &Arguments) -> Result<bool> {
    interrupt::listen()?;
    let folder = std::env::temp_dir().join(format!("pointsman-soak-{}", std::process::id()));
    std::fs::create_dir_all(&folder)?;
    let outcome = run(arguments, &folder);
    std::fs::remove_dir_all(&folder)?;
    outcome
}

fn run(arguments: &Arguments, folder: &Path) -> Result<bool> {
    let is_wanted = |phase: &&Phase| match &arguments.phase {
        Some(part) => phase.name.contains(part.as_str()),
        None => true,
    };
    let phases: Vec<_> = phases::ALL.iter().filter(is_wanted).collect();
    ensure!(!phases.is_empty(), "no phase has that in its name");
    let mut scene = Scene::new(arguments, folder)?;
    if phases.iter().any(|phase| phase.name == QUIET[0]) {
        scene.warm()?;
    }
    for phase in phases {
        scene.claims.begin(phase.name);
        scene.hold(phase)?;
    }
    scene.compare_quiet();
    Ok(scene.claims.print())
}

/// Everything that takes part.
struct Scene {
    duration: Duration,
    rounds: u32,
    folder: PathBuf,
    endpoints: Endpoints,
    pointsman: Pointsman,
    claims: Claims,
    with_wrk: bool,
    /// What the quiet phases have left.
    quiet: Vec<Gauges>,
}

impl Scene {
    fn new(arguments: &Arguments, folder: &Path) -> Result<Self> {
        let endpoints = Endpoints::start()?;
        let pointsman = Pointsman::start(folder, endpoints.addresses)?;
        let with_wrk = is_there("wrk");
        if !with_wrk {
            eprintln!("wrk is not installed and left out; cargo xtask setup --peers installs it");
        }
        let Arguments { seconds, rounds, .. } = *arguments;
        let duration = Duration::from_secs(seconds);
        let (folder, claims) = (folder.to_owned(), Claims::default());
        let quiet = Vec::new();
        Ok(Self { duration, rounds, folder, endpoints, pointsman, claims, with_wrk, quiet })
    }

    /// Fills what grows with the first load, so that it is no growth later.
    fn warm(&self) -> Result<()> {
        load::warm(self.pointsman.balancer.target.udp.context("pointsman takes no datagrams")?)?;
        pause(COOLING)
    }

    fn hold(&mut self, phase: &Phase) -> Result<()> {
        let columns = match phase.act {
            Act::Pointsman(act) => vec![self.run_alone(act)?],
            Act::Endpoints(act) => self.take_turns(act)?,
        };
        table::print(phase.name, &columns);
        if QUIET.contains(&phase.name) {
            self.quiet.extend(columns.iter().filter_map(|column| column.gauges));
        }
        Ok(())
    }

    /// Something is done with Pointsman, and no endpoint is away.
    fn run_alone(
        &mut self,
        act: fn(&mut Pointsman, &mut Witness<'_>) -> Result<String>,
    ) -> Result<Column> {
        let (log_from, load) = (self.log_length(), self.load());
        let (watch, claims, duration) = (&load.watch, &mut self.claims, self.duration);
        let note = act(&mut self.pointsman, &mut Witness { watch, claims, duration })?;
        let column = self.end(load, (note, log_from))?;
        let errors = column.tally.wrk.unwrap_or_default().errors;
        self.claims.note("wrk sees no error", errors == 0, || format!("{errors} errors"));
        Ok(column)
    }

    /// Both balancers, one after the other, again and again.
    fn take_turns(
        &mut self,
        act: fn(&mut Endpoints, Duration) -> Result<String>,
    ) -> Result<Vec<Column>> {
        let haproxy = start_haproxy(&self.folder, self.endpoints.addresses)?;
        let (mut columns, mut failed) = (Vec::new(), [0; 2]);
        for _ in 0..self.rounds {
            let (log_from, load) = (self.log_length(), self.load());
            let note = act(&mut self.endpoints, self.duration)?;
            let turns = [self.end(load, (note, log_from))?, self.run_beside(&haproxy, act)?];
            for (sum, column) in failed.iter_mut().zip(&turns) {
                *sum += column.verdict.failed_tcp();
            }
            columns.extend(turns);
        }
        let [ours, theirs] = failed;
        // Who is hit by a kill is chance: three standard deviations of that are no difference.
        let chance = 3.0 * ((ours + theirs) as f64).sqrt();
        let is_no_more = ours as f64 <= theirs as f64 + chance;
        self.claims.note("no more requests fail than with HAProxy", is_no_more, || {
            format!("{ours} with Pointsman, {theirs} with HAProxy")
        });
        Ok(columns)
    }

    /// HAProxy's turn.
    fn run_beside(
        &mut self,
        haproxy: &Balancer,
        act: fn(&mut Endpoints, Duration) -> Result<String>,
    ) -> Result<Column> {
        let load = Load::start(haproxy.target, &self.endpoints.outages, self.with_wrk);
        let note = act(&mut self.endpoints, self.duration)?;
        let tally = load.finish()?;
        pause(SETTLING)?;
        let (outages, endpoints) = (&self.endpoints.outages, self.endpoints.addresses);
        let verdict = Judge { outages, endpoints, records: None }.judge(&tally.failures);
        Ok(Column { balancer: haproxy.name, note, tally, verdict, gauges: None })
    }

    /// Ends a load on Pointsman, and judges what came of it.
    fn end(&mut self, load: Load, (note, log_from): (String, u64)) -> Result<Column> {
        let tally = load.finish()?;
        self.settle()?;
        let records = Records::read(&self.pointsman.access_log, log_from, &tally.failures)?;
        let (outages, endpoints) = (&self.endpoints.outages, self.endpoints.addresses);
        let verdict = Judge { outages, endpoints, records: Some(records) }.judge(&tally.failures);
        for (breach, claim) in Breach::CLAIMS {
            let charges = verdict.charges.iter().filter(|charge| charge.breach == breach);
            self.claims.note_all(claim, charges.map(|charge| charge.text.clone()));
        }
        let gauges = Some(self.pointsman.gauges().context("pointsman has ended")?);
        Ok(Column { balancer: self.pointsman.balancer.name, note, tally, verdict, gauges })
    }

    /// Waits until flows of datagrams are over, and who was taken over from has ended.
    fn settle(&mut self) -> Result<()> {
        let begun = Instant::now();
        pause(SETTLING)?;
        let is_settled = |pointsman: &mut Pointsman| {
            pointsman.balancer.reap();
            pointsman.balancer.processes() == [pointsman.process]
        };
        while !is_settled(&mut self.pointsman) && begun.elapsed() < SETTLING_MAX {
            pause(Duration::from_millis(200))?;
        }
        let processes = self.pointsman.balancer.processes();
        let process = self.pointsman.process;
        self.claims.note(
            "one process serves, and nobody else is left",
            processes == [process],
            || format!("{processes:?} run, {process} should: {}", self.pointsman.balancer.log()),
        );
        Ok(())
    }

    /// What it holds in the end beside what it held in the beginning.
    fn compare_quiet(&mut self) {
        let [first, .., last] = self.quiet[..] else { return };
        let [before, after] = [first, last].map(|it| it.memory_bytes as f64);
        let most = before * (1.0 + MEMORY_TOLERANCE) + MEMORY_TOLERANCE_BYTES;
        self.claims.note("memory is flat", after <= most, || {
            format!("{:.0} KiB first, {:.0} KiB last", before / 1024.0, after / 1024.0)
        });
        let [before, after] = [first, last].map(|it| it.descriptors);
        let are_flat = after <= before + DESCRIPTORS_TOLERANCE;
        self.claims
            .note("descriptors are flat", are_flat, || format!("{before} first, {after} last"));
    }

    fn load(&self) -> Load {
        Load::start(self.pointsman.balancer.target, &self.endpoints.outages, self.with_wrk)
    }

    fn log_length(&self) -> u64 {
        std::fs::metadata(&self.pointsman.access_log).map_or(0, |log| log.len())
    }
}

/// Whether a program can be started.
fn is_there(program: &str) -> bool {
    let mut command = Command::new(program);
    command.arg("--version").stdout(Stdio::null()).stderr(Stdio::null());
    command.status().is_ok()
}
