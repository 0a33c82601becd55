//! Hot swap: another module takes a policy's place, under load, and no flow hears of it.
//!
//! ```text
//!   bytes ─▶ not too large, not known as bad ─▶ compiled in a child, then here ─▶ rehearsed on
//!     recent flows ─▶ one ready instance per worker ══▶ posted ─▶ each swaps between two turns
//!                                                     point of no return
//! ```
//!
//! All of it or nothing: what fails before the double line is told to whoever asked, and nothing
//! has changed. Every walk runs on a thread of its own and may wait for workers, so the control
//! loop never does. A [`Claim`] keeps others off the seat meanwhile.
//!
//! A child process compiles first because compiling is the one thing here that no deadline bounds:
//! it is the proof that a file can be compiled with so much time and memory. What it makes is thrown
//! away: taking over machine code from anywhere would be a matter of trust, and is never done.

pub mod answer;
pub mod compile;
pub mod guard;
pub mod list;
mod rehearsal;
pub mod renew;
pub mod report;
pub mod trial;
pub mod watch;

use std::sync::Arc;
use std::time::{Duration, Instant};

use pointsman_core::ClusterId;
use pointsman_core::policy::OnSwap;
use pointsman_plugin::{EngineError, EngineLimits, Governor, LoadError, Module, Profile, Shape};
use sha2::{Digest, Sha256};

use crate::config;
use crate::crew::{Berth, Crew};
use crate::fleet::Silent;
use crate::mailbox::PolicyCommand;
use crate::plan::PluginPlan;
use crate::plugins::{Kit, Loaded, Plugins};
use crate::seat::{Candidate, Claim, Outcome, Seat, Sitter};
use crate::service::Service;
use crate::steering::SteerError;
use crate::world::{Needs, Role};

use answer::SwapAnswer;
use rehearsal::Failed;

/// Why nothing has changed.
#[derive(Debug, thiserror::Error)]
pub enum Refusal {
    /// There is no such cluster, or no policy of this name that is a plugin.
    #[error("no {what} is named \"{name}\"{hint}")]
    Unknown {
        /// What was looked for.
        what: &'static str,
        /// Its name.
        name: String,
        /// What it could have been.
        hint: String,
    },
    /// The cluster's policy is one of ours.
    #[error(
        "cluster \"{0}\" has a native policy; give it one of [[policies]] with a plugin and start \
         again"
    )]
    Native(String),
    /// What was asked for makes no sense.
    #[error("{0}")]
    Query(String),
    /// Somebody else changes the cluster's policy.
    #[error("the policy of cluster \"{0}\" is being changed; ask again")]
    Busy(String),
    /// The process is about to end.
    #[error("the balancer is draining; ask the one that comes after it")]
    Draining,
    /// The module has shown that it is bad.
    #[error(
        "{0} was taken out because of its faults; mend it, or try it again with policy swap \
         --lift-quarantine"
    )]
    Quarantined(String),
    /// It is no module for this host.
    #[error("the file is refused: {0}")]
    Load(#[from] LoadError),
    /// The child that compiled it has refused it, in these words.
    #[error("the file is refused: {0}")]
    Refused(String),
    /// Compiling it takes more than it may.
    #[error("the file is refused: compiling it {0}; build it smaller")]
    Compile(compile::Excess),
    /// It fails as soon as it is used.
    #[error("policy \"{policy}\": {error}")]
    Guest {
        /// The policy's name.
        policy: String,
        /// What its guest did.
        error: SteerError,
    },
    /// It fails with flows.
    #[error("policy \"{policy}\": {failed}")]
    Rehearsal {
        /// The policy's name.
        policy: String,
        /// How.
        failed: Failed,
    },
    /// There was no module before.
    #[error("cluster \"{0}\" has had one policy only; there is nothing to go back to")]
    NothingBefore(String),
    /// Nobody is on trial.
    #[error(
        "no policy is on trial in cluster \"{0}\"; begin with policy swap --shadow or --canary"
    )]
    NoTrial(String),
    /// Nothing is known of the one that is on trial.
    #[error(
        "the policy on trial in cluster \"{0}\" has not answered for a single flow, so nothing is \
         known of it; wait for flows, or let it decide all the same with policy promote --force"
    )]
    Untried(String),
    /// A worker says nothing.
    #[error("worker {0} does not answer; ask again")]
    Silent(usize),
    /// The system has no room for instances of its profile.
    #[error("{0}")]
    Engine(#[from] EngineError),
    /// The system has no thread or process.
    #[error("cannot start what it takes: {0}; try again")]
    System(#[from] std::io::Error),
}

impl From<Silent> for Refusal {
    fn from(Silent { number }: Silent) -> Self {
        Self::Silent(number)
    }
}

/// A plugin's file as somebody sent it.
#[derive(Debug, Clone)]
pub struct File {
    /// What is in it.
    pub bytes: Vec<u8>,
    /// Whether it is welcome although it was rolled back before.
    pub lift_quarantine: bool,
}

/// Puts a file in place of what decides for these clusters: in all of them, or in none.
///
/// # Errors
/// Nothing has changed.
pub fn swap(
    service: &Service,
    clusters: &[ClusterId],
    file: &File,
) -> Result<Vec<SwapAnswer>, Refusal> {
    let begun = Instant::now();
    let module = module_of(service, clusters, file)?;
    let walks = clusters.iter().map(|cluster| Walk::begin(service, *cluster));
    let walks = walks.collect::<Result<Vec<_>, _>>()?;
    let prepare = |walk: &Walk<'_>| walk.admits(&module).and_then(|()| walk.prepare(&module));
    let ready = walks.iter().map(prepare).collect::<Result<Vec<_>, _>>();
    let ready = ready.inspect_err(|_| walks.iter().for_each(Walk::on_refused))?;
    let walks = walks.iter().zip(ready);
    Ok(walks.map(|(walk, ready)| walk.publish(ready, Outcome::Swapped, begun)).collect())
}

/// Puts the module before back in its place.
///
/// # Errors
/// Nothing has changed.
pub fn roll_back(service: &Service, cluster: ClusterId) -> Result<SwapAnswer, Refusal> {
    let walk = Walk::begin(service, cluster)?;
    let bad = walk.seat().sitting().previous_if_quarantined();
    match bad {
        Some(digest) => {
            walk.on_refused();
            Err(Refusal::Quarantined(short(&digest).to_owned()))
        }
        None => walk.roll_back(Outcome::RolledBack),
    }
}

/// Lets the one that is on trial decide; if `force`, even if it has answered for no flow.
///
/// # Errors
/// Nothing has changed.
pub fn promote(service: &Service, cluster: ClusterId, force: bool) -> Result<SwapAnswer, Refusal> {
    let begun = Instant::now();
    let walk = Walk::begin(service, cluster)?;
    let shown = |on: &Candidate| (on.module.clone(), on.tally.counts().answered());
    let candidate = walk.seat().sitting().candidate.as_ref().map(shown);
    let (module, answered) = candidate.ok_or_else(|| Refusal::NoTrial(walk.cluster_name()))?;
    if answered == 0 && !force {
        return Err(Refusal::Untried(walk.cluster_name()));
    }
    let ready = walk.prepare(&module).inspect_err(|_| walk.on_refused())?;
    Ok(walk.publish(ready, Outcome::Swapped, begun))
}

/// What the file holds, compiled. The seats are not claimed for it: compiling may take long, and
/// meanwhile a seat may have to be given back to the module before.
fn module_of(service: &Service, to: &[ClusterId], file: &File) -> Result<Module, Refusal> {
    let setup = service.setup();
    let seats = || to.iter().map(|cluster| setup.seat(*cluster));
    if service.is_draining() {
        return Err(Refusal::Draining);
    }
    let mut profile = Profile::Strict;
    for seat in seats() {
        let plugin = seat.plugin.ok_or_else(|| Refusal::Native(seat.name.clone()))?;
        profile = setup.plan.plugin(plugin).profile;
    }
    let compile = |digest: String| {
        let begun_with = setup.loaded.iter().map(|loaded| &loaded.module);
        let mut known = begun_with.filter(|it| it.profile() == profile && it.digest() == digest);
        match known.next() {
            Some(module) => Ok(module.clone()),
            None => compile(service.plugins(), profile, &file.bytes, &digest),
        }
    };
    admit(seats(), file).and_then(compile).inspect_err(|_| {
        seats().for_each(|seat| seat.sitting().on_outcome(Outcome::Refused));
    })
}

/// The digest of a file, if it may be compiled at all.
fn admit<'a>(seats: impl Iterator<Item = &'a Arc<Seat>>, file: &File) -> Result<String, Refusal> {
    let (bytes, bytes_max) = (file.bytes.len(), EngineLimits::default().module_bytes_max);
    if bytes > bytes_max {
        return Err(LoadError::TooLarge { bytes, bytes_max }.into());
    }
    let digest = digest_of(&file.bytes);
    for seat in seats {
        let mut sitting = seat.sitting();
        if file.lift_quarantine {
            sitting.lift_quarantine(&digest);
        } else if sitting.is_quarantined(&digest) {
            return Err(Refusal::Quarantined(short(&digest).to_owned()));
        }
    }
    Ok(digest)
}

/// Compiles a file, one at a time; what was compiled before is not compiled again.
fn compile(
    plugins: &Plugins,
    profile: Profile,
    bytes: &[u8],
    digest: &str,
) -> Result<Module, Refusal> {
    let mut compiler = plugins.compiler();
    if let Some(module) = plugins.kept(profile, digest) {
        return Ok(module);
    }
    compile::in_child(profile, bytes)?;
    // A cluster with a plugin has been found, so there is an engine.
    let engine = plugins.engine().expect("plugins have an engine").of_profile(profile)?;
    let module = compile::here(&mut compiler, &engine, bytes)?;
    plugins.keep(&module);
    Ok(module)
}

/// The name of a file's contents: SHA-256 in hex.
pub fn digest_of(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// As much of a digest as a person compares.
pub fn short(digest: &str) -> &str {
    digest.get(..12).unwrap_or(digest)
}

/// One move at one cluster's seat.
struct Walk<'a> {
    service: &'a Service,
    cluster: ClusterId,
    /// The policy as it is configured.
    plan: PluginPlan,
    loaded: Arc<Loaded>,
    claim: Claim,
}

/// A crew that could take over.
struct Ready {
    module: Module,
    crew: Crew,
}

impl<'a> Walk<'a> {
    fn begin(service: &'a Service, cluster: ClusterId) -> Result<Self, Refusal> {
        let seat = service.seat(cluster);
        let name = || seat.name.clone();
        if service.is_draining() {
            return Err(Refusal::Draining);
        }
        let claim = seat.claim().ok_or_else(|| Refusal::Busy(name()))?;
        let setup = service.setup();
        // A reload may have put up another seat just before this one was claimed.
        if !Arc::ptr_eq(setup.seat(cluster), &seat) {
            return Err(Refusal::Busy(name()));
        }
        let plugin = seat.plugin.ok_or_else(|| Refusal::Native(name()))?;
        let plan = setup.plan.plugin(plugin).clone();
        Ok(Self { service, cluster, plan, loaded: Arc::clone(&setup.loaded[plugin.0]), claim })
    }

    fn seat(&self) -> &Arc<Seat> {
        &self.claim.seat
    }

    fn cluster_name(&self) -> String {
        self.seat().name.clone()
    }

    fn policy_name(&self) -> String {
        self.plan.name.clone()
    }

    fn kit(&self) -> &Kit {
        &self.loaded.kit
    }

    fn on_refused(&self) {
        self.seat().sitting().on_outcome(Outcome::Refused);
    }

    fn roll_back(&self, outcome: Outcome) -> Result<SwapAnswer, Refusal> {
        let begun = Instant::now();
        let previous = self.seat().sitting().previous.clone();
        let module = previous.ok_or_else(|| Refusal::NothingBefore(self.cluster_name()))?;
        // An older module need not understand what a newer one hands over, and is wanted all the
        // same.
        let ready = self.prepare(&module).or_else(|_| self.crew(&module, Vec::new()));
        let ready = ready.inspect_err(|_| self.on_refused())?;
        Ok(self.publish(ready, outcome, begun))
    }

    /// Refuses a module that has turned out to be bad while it was compiled.
    fn admits(&self, module: &Module) -> Result<(), Refusal> {
        let digest = module.digest();
        let is_bad = self.seat().sitting().is_quarantined(digest);
        if is_bad { Err(Refusal::Quarantined(short(digest).to_owned())) } else { Ok(()) }
    }

    /// Tries a module, and makes all that it takes for it to decide here.
    fn prepare(&self, module: &Module) -> Result<Ready, Refusal> {
        rehearsal::rehearse(self, module)?;
        self.crew(module, self.states(module)?)
    }

    /// The same for a module that is of another policy than the one before.
    fn prepare_without_state(&self, module: &Module) -> Result<Ready, Refusal> {
        rehearsal::rehearse(self, module)?;
        self.crew(module, Vec::new())
    }

    /// The same for a trial, which lives on what those that decide leave of their time.
    fn prepare_trial(&self, module: &Module) -> Result<Ready, Refusal> {
        rehearsal::rehearse(self, module)?;
        let governors = self.service.plugins().governors().iter();
        let yielding: Vec<_> = governors.map(|it| Arc::new(Governor::yielding(it))).collect();
        self.crew_with(&yielding, module, self.states(module)?)
    }

    fn crew(&self, module: &Module, states: Vec<Option<Vec<u8>>>) -> Result<Ready, Refusal> {
        self.crew_with(self.service.plugins().governors(), module, states)
    }

    fn crew_with(
        &self,
        governors: &[Arc<Governor>],
        module: &Module,
        states: Vec<Option<Vec<u8>>>,
    ) -> Result<Ready, Refusal> {
        let candidates = &self.service.look(|world| world.base(self.cluster));
        let crew = Crew::of(module, self.kit(), Berth { candidates, governors, states });
        let crew = crew.map_err(|error| self.refuse(error))?;
        Ok(Ready { module: module.clone(), crew })
    }

    fn refuse(&self, error: SteerError) -> Refusal {
        Refusal::Guest { policy: self.policy_name(), error }
    }

    /// What those that decide hand over to a module, if it is of their shape.
    fn states(&self, to: &Module) -> Result<Vec<Option<Vec<u8>>>, Refusal> {
        let live = self.seat().sitting().live.module.clone();
        let Some(live) = live.filter(|live| live.has_state() && live.shape() == to.shape()) else {
            return Ok(Vec::new());
        };
        if !to.has_state() {
            return Ok(Vec::new());
        }
        if live.shape() != Shape::Chooser {
            let steering = self.service.steering();
            return Ok(vec![steering.and_then(|steering| steering.state(self.cluster))]);
        }
        let told = self.service.fleet().tell_each(self.cluster, PolicyCommand::TakeState);
        let told = told.into_iter().map(|answer| answer.map(Option::flatten));
        Ok(told.collect::<Result<Vec<_>, _>>()?)
    }

    /// Lets a crew take over. From here on nothing fails: a worker that does not answer in time
    /// swaps when it gets to it.
    fn publish(&self, ready: Ready, outcome: Outcome, begun: Instant) -> SwapAnswer {
        let Ready { module, crew } = ready;
        let place = (self.cluster, Role::Live);
        // Whoever reads a table is not to find it gone, be it the old policy or the new one.
        let (first, last) = match crew.outlook.needs {
            Needs::Nothing => (None, Some(crew.outlook)),
            _ => (Some(crew.outlook), None),
        };
        first.into_iter().for_each(|outlook| self.service.show(place, outlook));
        let mut policies = crew.policies.into_iter();
        let on_swap = on_swap(self.plan.on_swap);
        let told = self.service.fleet().tell_each(self.cluster, |reply| {
            let policy = policies.next().expect("one policy per worker");
            PolicyCommand::Swap { policy, on_swap, reply }
        });
        // Dropping the old ones gives their instances to the thread that ends them.
        let pauses: Vec<_> =
            told.into_iter().filter_map(|answer| Some(answer.ok()??.pause)).collect();
        last.into_iter().for_each(|outlook| self.service.show(place, outlook));
        // A canary's flows stay with it until its successor, which may be itself, decides.
        trial::end(self.service, self.cluster);
        self.service.steer(place, crew.steerer);
        let pause_max = pauses.iter().max().copied().unwrap_or_default();
        let mut sitting = self.seat().sitting();
        let since = Instant::now();
        let sitter = Sitter {
            module: Some(module.clone()),
            counts: crew.counts,
            since,
            probation: (outcome == Outcome::Swapped).then_some(since),
        };
        sitting.try_out(None);
        sitting.seat(sitter, pause_max);
        sitting.on_outcome(outcome);
        let answer = SwapAnswer {
            cluster: self.cluster_name(),
            policy: self.policy_name(),
            outcome: outcome.label().to_owned(),
            generation: sitting.generation,
            shape: module.shape().to_string(),
            digest: module.digest().to_owned(),
            workers: self.service.fleet().len(),
            acknowledged: pauses.len(),
            took_us: micros(begun.elapsed()),
            pause_max_ns: u64::try_from(pause_max.as_nanos()).unwrap_or(u64::MAX),
        };
        drop(sitting);
        answer.log();
        answer
    }
}

fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}

const fn on_swap(on_swap: config::OnSwap) -> OnSwap {
    match on_swap {
        config::OnSwap::Keep => OnSwap::Keep,
        config::OnSwap::Revalidate => OnSwap::Revalidate,
        config::OnSwap::Flush => OnSwap::Flush,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_digest_is_the_one_that_sha256sum_prints() {
        let expected = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
        assert_eq!(digest_of(b""), expected);
        assert_eq!(short(expected), "e3b0c44298fc");
    }
}
