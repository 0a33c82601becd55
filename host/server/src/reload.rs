//! The configuration is read again while the balancer serves.
//!
//! ```text
//!   file ─▶ read, looked up ─▶ nothing that only a start can change ─▶ places ─▶ sockets bound,
//!     policies compiled and tried ══▶ one setup, one world ─▶ each worker takes it between two turns
//!                              point of no return
//! ```
//!
//! All of it or nothing: what fails before the double line is told to whoever asked, and nothing has
//! changed. What is in the old file and in the new one is not disturbed: it keeps its place, and with
//! that its flows, counts, kept decisions and checks.

mod answer;
mod fixed;
mod places;

pub use answer::{Answer, Changed, Last, Outcome, Reloads};

use std::path::PathBuf;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use pointsman_core::boundary::ListenerId;
use pointsman_core::policy::{OnSwap, Policy};
use pointsman_core::{ClusterId, NewPolicy, Snapshot};
use pointsman_plugin::Engine;
use pointsman_ring::{Clock, descriptor_limit};

use crate::budget::{Budget, Supply};
use crate::check::{self, Checked};
use crate::cli::in_file;
use crate::config::Config;
use crate::control::ask_for_transparency;
use crate::failure::Failure;
use crate::mailbox::Renewal;
use crate::plan::Plan;
use crate::plugins::Loaded;
use crate::problem::Problem;
use crate::runtime;
use crate::service::Service;
use crate::setup::Setup;
use crate::sockets::{self, Opened, WorkerSocket};
use crate::swap::renew::{self, Leaving, Renewed};
use crate::swap::watch;
use crate::world::{Role, World};
use places::Placed;

/// How long workers may take to close sockets, and how often that is looked at.
const CLOSING_PATIENCE: Duration = Duration::from_secs(1);
const CLOSING_LOOK: Duration = Duration::from_millis(1);

/// Where the configuration is read from.
#[derive(Debug)]
pub struct Source {
    /// The file.
    pub file: PathBuf,
    /// Where its plugins are looked for besides the usual places.
    pub folders: Vec<PathBuf>,
}

/// Why nothing has changed.
#[derive(Debug, thiserror::Error)]
pub enum Refused {
    /// Everything that is wrong with the file, or that a reload cannot do: one line each.
    #[error("{}", .0.join("\n"))]
    Problems(Vec<String>),
    /// Somebody else has asked for the same.
    #[error("another reload or an upgrade is under way; ask again")]
    Busy,
    /// The process is about to end.
    #[error("the balancer is draining; start another one")]
    Draining,
    /// The system has no thread for it.
    #[error("cannot start what it takes: {0}; try again")]
    System(#[from] std::io::Error),
}

/// Reloads on a thread of its own, because that compiles and waits for workers.
///
/// # Errors
/// Nothing has changed.
pub async fn aside(service: Arc<Service>) -> Result<Answer, Refused> {
    runtime::aside("reload", move || reload(&service)).await?
}

/// Reloads because a signal says so: what comes of it is logged.
pub fn on_signal(service: &Arc<Service>) {
    let service = Arc::clone(service);
    runtime::spawn(async {
        // What it says otherwise is logged where it is found out.
        if let Err(refused @ (Refused::Busy | Refused::System(_))) = aside(service).await {
            tracing::error!(error = %refused, "the configuration is not reloaded");
        }
    });
}

/// Reads the configuration again and goes by it.
///
/// # Errors
/// Nothing has changed.
pub fn reload(service: &Arc<Service>) -> Result<Answer, Refused> {
    let Some(_turn) = Turn::take(service) else { return Err(Refused::Busy) };
    service.notifier().reloading();
    let outcome = if service.is_draining() { Err(Refused::Draining) } else { walk(service) };
    service.reloads().note(&outcome);
    match &outcome {
        Ok(answer) => answer.log(),
        Err(refused) => refused.to_string().lines().for_each(|line| {
            tracing::error!("the configuration is not reloaded: {line}");
        }),
    }
    service.notifier().ready();
    outcome
}

/// That nobody else reloads or upgrades, and that places stay as they are.
pub(crate) struct Turn<'a> {
    service: &'a Service,
}

impl<'a> Turn<'a> {
    pub(crate) fn take(service: &'a Service) -> Option<Self> {
        let is_free = service.look(World::hold_places);
        is_free.then(|| Self { service })
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        self.service.look(World::let_go_of_places);
    }
}

fn walk(service: &Arc<Service>) -> Result<Answer, Refused> {
    let begun = Instant::now();
    let old = service.setup();
    let Source { file, folders } = service.source();
    let is_settled = |new: &Config, problem: &Problem| fixed::is_settled(&old.config, new, problem);
    let told = |failure| Refused::Problems(in_file(failure, file).lines());
    let Checked { plan, document } = check::read_again(file, folders, is_settled).map_err(told)?;
    let config = document.config.clone();
    let prepared = Prepared::new(service, &old, (&config, plan));
    let prepared =
        prepared.map_err(|problems| told(Failure::Input(document.into_problems(problems))))?;
    let changed = answer::changes(&old.config, &config, &prepared.renewed_names());
    let generation = prepared.publish(service, config);
    // It is the thread that is missing, and without it files are only not watched.
    if let Err(error) = watch::start(service) {
        tracing::error!(%error, "files of plugins are not watched");
    }
    Ok(Answer::new(generation, begun.elapsed(), changed))
}

/// Everything that takes long or may fail has been done.
struct Prepared {
    plan: Plan,
    loaded: Vec<Arc<Loaded>>,
    old: Arc<Setup>,
    /// Listeners that come.
    opened: Vec<(ListenerId, Opened)>,
    renewed: Vec<Renewed>,
    /// Clusters that leave.
    leaving: Vec<Leaving>,
}

impl Prepared {
    fn new(
        service: &Service,
        old: &Arc<Setup>,
        (config, mut plan): (&Config, Plan),
    ) -> Result<Self, Vec<Problem>> {
        let problems = fixed::problems(&old.config, config, service.budget());
        if !problems.is_empty() {
            return Err(problems);
        }
        ask_for_transparency(&plan).map_err(|problem| vec![problem])?;
        let descriptors = descriptor_limit().map_or(u64::MAX, |limit| limit.soft);
        Budget::divide(&mut plan, Supply::read(descriptors)).warn_beyond(service.budget());
        await_closing(service);
        let Placed { plan, opened, founded } =
            places::keep(&old.plan, plan, &service.look(World::places));
        fixed::refuse_too_many(&plan, service.budget())?;
        service.log().try_out(&plan).map_err(|problem| vec![problem])?;
        let opened = listen(&plan, &opened).map_err(|problem| vec![problem])?;
        let loaded = renew::load(service, old, &plan)?;
        let change = renew::Change {
            service,
            old,
            plan: &plan,
            loaded: &loaded,
            founded: &renew::candidates(&plan, &founded),
        };
        let (renewed, leaving) = change.prepare()?;
        if service.plugins().engine().is_some() {
            let system = |error: std::io::Error| vec![Problem::new("", error.to_string())];
            service.start_steering().map_err(system)?;
        }
        Ok(Self { plan, loaded, old: Arc::clone(old), opened, renewed, leaving })
    }

    /// The policies that decide from here on and did not before.
    fn renewed_names(&self) -> Vec<String> {
        let policies = self.renewed.iter().map(|it| &self.plan.clusters[it.cluster.index()]);
        policies.map(|cluster| cluster.policy_name.clone()).collect()
    }

    /// Nothing fails from here on.
    fn publish(self, service: &Service, config: Config) -> u64 {
        let Self { plan, loaded, old, opened, renewed, leaving } = self;
        leaving.iter().for_each(|leaving| leaving.end_trial(service));
        renewed.iter().for_each(|renewed| renewed.end_trial(service));
        let mut seats = old.seats.clone();
        for renewed in &renewed {
            let (place, seat) = (renewed.cluster.index(), renewed.seat(&plan));
            match seats.get_mut(place) {
                Some(taken) => *taken = seat,
                None => seats.push(seat),
            }
        }
        let addresses: Vec<_> = opened.iter().map(|(id, opened)| (*id, opened.address)).collect();
        let mut renewals = Renewals::new(service, opened);
        let (mut outlooks, mut guests, mut claims) = (Vec::new(), Vec::new(), Vec::new());
        for Renewed { cluster, crew, on_swap, claim, .. } in renewed {
            renewals.add((cluster, on_swap), crew.policies);
            outlooks.push((cluster, crew.outlook));
            guests.push((cluster, crew.steerer));
            claims.push(claim);
        }
        service.log().follow(&plan);
        let change = |world: &mut World, setup: &Setup| {
            world.reload(Clock.now(), &setup.plan, &addresses);
            for (cluster, outlook) in outlooks {
                world.show((cluster, Role::Live), outlook);
            }
        };
        let setup = Setup { config, plan, loaded, seats };
        let generation = service.adopt(setup, change, |snapshot| renewals.with(snapshot));
        for (cluster, guest) in guests {
            service.steer((cluster, Role::Live), guest);
        }
        generation.0
    }
}

/// Listeners that an earlier reload has closed give up their sockets at the next turn of each worker.
/// Whoever comes to the same address is not to find it taken because that is about to happen.
fn await_closing(service: &Service) {
    let give_up = Instant::now() + CLOSING_PATIENCE;
    while service.look(|world| world.is_closing()) && Instant::now() < give_up {
        thread::sleep(CLOSING_LOOK);
    }
}

/// Binds the listeners that come.
fn listen(plan: &Plan, opened: &[ListenerId]) -> Result<Vec<(ListenerId, Opened)>, Problem> {
    let listen = |id: &ListenerId| {
        let listener = &plan.listeners[id.index()];
        sockets::listen_at(listener, plan.workers).map(|opened| (*id, opened))
    };
    opened.iter().map(listen).collect::<Result<_, String>>().map_err(|told| Problem::new("", told))
}

/// What each worker is given for itself.
struct Renewals {
    shares: Vec<Share>,
    engine: Option<Engine>,
}

/// What is one worker's.
#[derive(Default)]
struct Share {
    policies: Vec<NewPolicy>,
    sockets: Vec<(ListenerId, WorkerSocket)>,
}

impl Renewals {
    fn new(service: &Service, opened: Vec<(ListenerId, Opened)>) -> Self {
        let mut shares: Vec<Share> = Vec::new();
        shares.resize_with(service.fleet().len(), Share::default);
        for (id, Opened { sockets, .. }) in opened {
            for (share, socket) in shares.iter_mut().zip(sockets) {
                share.sockets.extend(socket.map(|socket| (id, socket)));
            }
        }
        Self { shares, engine: service.plugins().engine() }
    }

    fn add(
        &mut self,
        (cluster, on_swap): (ClusterId, Option<OnSwap>),
        policies: Vec<Box<dyn Policy>>,
    ) {
        for (share, policy) in self.shares.iter_mut().zip(policies) {
            share.policies.push(NewPolicy { cluster, policy, on_swap });
        }
    }

    fn with(self, snapshot: &Arc<Snapshot>) -> Vec<Renewal> {
        let Self { shares, engine } = self;
        let renewal = |Share { policies, sockets }| {
            let (snapshot, engine) = (Arc::clone(snapshot), engine.clone());
            Renewal { snapshot, policies, sockets, engine }
        };
        shares.into_iter().map(renewal).collect()
    }
}
