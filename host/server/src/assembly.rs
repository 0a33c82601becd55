//! From a plan to running workers: sizes, secrets, sockets, policies, threads.

use std::sync::Arc;

use anyhow::{Context, anyhow};
use pointsman_core::policy::Policy;
use pointsman_core::{BalancerConfig, Board, ClusterId, Snapshot};
use pointsman_plugin::Engine;
use pointsman_ring::RingConfig;
use tokio::sync::mpsc::UnboundedSender;
use tokio::sync::oneshot;

use crate::access_log::LogSender;
use crate::budget::Budget;
use crate::cores::Core;
use crate::crew::Crew;
use crate::fleet::Fleet;
use crate::mailbox::{Address, Mailbox, Retired};
use crate::plan::{ClusterPlan, Plan, PolicyPlan};
use crate::plugins::{Loaded, Plugins};
use crate::problem::Problem;
use crate::random;
use crate::seat::Seat;
use crate::sockets::WorkerSocket;
use crate::steering::Steerer;
use crate::worker::{self, Ended, Parts};
use crate::world::{Role, World};

/// Where workers send what is not an answer.
pub struct Channels {
    /// What they no longer need.
    pub retired: UnboundedSender<Retired>,
    /// How they ended.
    pub ended: UnboundedSender<Ended>,
    /// Ended flows, if anybody wants them.
    pub log: Option<LogSender>,
}

/// What workers are given besides their sizes.
pub struct Outfit<'a> {
    /// The listeners' sockets, by worker.
    pub sockets: Vec<Vec<Option<WorkerSocket>>>,
    /// By worker, then by cluster.
    pub policies: Vec<Vec<Box<dyn Policy>>>,
    /// The plugins' engine, if there are plugins.
    pub engine: Option<Engine>,
    /// The world at the start.
    pub snapshot: Arc<Snapshot>,
    /// How much of everything each may have.
    pub budget: &'a Budget,
    /// Where they send things.
    pub channels: Channels,
}

/// Starts all workers, and returns once every one of them accepts.
///
/// # Errors
/// A thread, a ring or memory cannot be had.
pub async fn start(plan: &Plan, outfit: Outfit<'_>) -> anyhow::Result<Fleet> {
    let Outfit { sockets, policies, engine, snapshot, budget, channels } = outfit;
    budget.warn();
    let sizes = Sizes::new(plan, budget, channels.log.is_some())?;
    let cores = Core::allowed();
    let mut addresses = Vec::with_capacity(plan.workers);
    for (number, (sockets, policies)) in sockets.into_iter().zip(policies).enumerate() {
        let (commands, mailbox) = Mailbox::new(channels.retired.clone());
        let parts = Parts {
            number,
            core: cores.get(number % cores.len().max(1)).copied(),
            ring: sizes.ring,
            balancer: BalancerConfig {
                worker: number,
                seed: random::secret()?,
                ..sizes.balancer.clone()
            },
            snapshot: Arc::clone(&snapshot),
            policies,
            sockets,
            engine: engine.clone(),
            mailbox,
            log: channels.log.clone(),
        };
        let (started, answer) = oneshot::channel();
        worker::spawn(parts, started, channels.ended.clone())
            .with_context(|| format!("cannot start worker {number}"))?;
        let waker = answer
            .await
            .map_err(|_| anyhow!("worker {number} ended before it had begun"))?
            .map_err(|error| anyhow!("worker {number} cannot start: {error}"))?;
        addresses.push(Address::new(commands, waker));
    }
    Ok(Fleet::new(addresses))
}

/// The policies of all clusters as they begin.
pub struct Seated {
    /// By worker, then by cluster.
    pub policies: Vec<Vec<Box<dyn Policy>>>,
    /// By cluster.
    pub seats: Vec<Arc<Seat>>,
    /// The guests that make tables and weights.
    pub steerers: Vec<(ClusterId, Steerer)>,
}

/// Makes every worker's policies, and shows the world what they need to see.
///
/// # Errors
/// A plugin fails, or refuses its configuration; each plugin is told once.
pub fn seat(
    plan: &Plan,
    (plugins, loaded): (&Plugins, &[Arc<Loaded>]),
    world: &mut World,
) -> Result<Seated, Vec<Problem>> {
    let mut seated = Seated {
        policies: (0..plan.workers).map(|_| Vec::with_capacity(plan.clusters.len())).collect(),
        seats: Vec::with_capacity(plan.clusters.len()),
        steerers: Vec::new(),
    };
    let mut problems: Vec<Problem> = Vec::new();
    for (id, cluster) in (0..).map(ClusterId).zip(&plan.clusters) {
        match plugins.crew(loaded, cluster.policy, &world.base(id)) {
            Ok(crew) => seated.take(id, cluster, crew, (loaded, &mut *world)),
            Err(problem) if problems.contains(&problem) => {}
            Err(problem) => problems.push(problem),
        }
    }
    if problems.is_empty() { Ok(seated) } else { Err(problems) }
}

impl Seated {
    fn take(
        &mut self,
        id: ClusterId,
        cluster: &ClusterPlan,
        crew: Crew,
        (loaded, world): (&[Arc<Loaded>], &mut World),
    ) {
        let Crew { policies, outlook, steerer, counts } = crew;
        for (worker, policy) in self.policies.iter_mut().zip(policies) {
            worker.push(policy);
        }
        world.show((id, Role::Live), outlook);
        self.steerers.extend(steerer.map(|steerer| (id, steerer)));
        let plugin = match cluster.policy {
            PolicyPlan::Native(_) => None,
            PolicyPlan::Plugin(plugin) => Some(plugin),
        };
        let module = plugin.map(|plugin| loaded[plugin.0].module.clone());
        self.seats.push(Arc::new(Seat::new(&cluster.name, plugin, module, counts)));
    }
}

/// How large each worker is.
struct Sizes {
    ring: RingConfig,
    balancer: BalancerConfig,
}

impl Sizes {
    fn new(plan: &Plan, budget: &Budget, record_flows: bool) -> anyhow::Result<Self> {
        let board_key = [random::secret()?, random::secret()?];
        Ok(Self {
            ring: RingConfig {
                links_max: budget.sessions_max * 2,
                listeners_max: budget.listeners_max,
                ports_max: budget.ports_max,
                buffers: plan.pools,
                datagram_buffers: plan.datagram_buffers,
            },
            balancer: BalancerConfig {
                worker: 0,
                sessions_max: budget.sessions_max,
                datagram_flows_max: budget.datagram_flows_max,
                flow_table_entries_max: plan.flow_table_entries,
                board: (plan.workers > 1)
                    .then(|| Arc::new(Board::new(plan.flow_table_entries, board_key))),
                pools: plan.pools,
                hash_key: [random::secret()?, random::secret()?],
                seed: 0,
                record_flows,
            },
        })
    }
}
