//! From a plan to running workers: sizes, secrets, sockets, policies, threads.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use anyhow::{Context, anyhow};
use pointsman_core::policy::Policy;
use pointsman_core::{BalancerConfig, Board, Snapshot};
use pointsman_plugin::Engine;
use pointsman_ring::{RingConfig, raise_descriptor_limit};
use tokio::sync::mpsc::UnboundedSender;
use tokio::sync::oneshot;

use crate::access_log::LogSender;
use crate::cores::Core;
use crate::fleet::Fleet;
use crate::mailbox::{Address, Mailbox, Retired};
use crate::plan::Plan;
use crate::plugins::Plugins;
use crate::problem::Problem;
use crate::random;
use crate::worker::{self, Ended, Parts};

/// Descriptors that are not for sessions: listeners, rings, checks, the admin interface.
const DESCRIPTORS_RESERVED: u64 = 256;
/// Fewer sessions than this are no service.
const SESSIONS_MIN: u64 = 16;

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
pub struct Outfit {
    /// The listeners' sockets, by worker.
    pub sockets: Vec<Vec<OwnedFd>>,
    /// By worker, then by cluster.
    pub policies: Vec<Vec<Box<dyn Policy>>>,
    /// The plugins' engine, if there are plugins.
    pub engine: Option<Engine>,
    /// The world at the start.
    pub snapshot: Arc<Snapshot>,
    /// Where they send things.
    pub channels: Channels,
}

/// Starts all workers, and returns once every one of them accepts.
///
/// # Errors
/// A thread, a ring or memory cannot be had.
pub async fn start(plan: &Plan, outfit: Outfit) -> anyhow::Result<Fleet> {
    let Outfit { sockets, policies, engine, snapshot, channels } = outfit;
    let sizes = Sizes::new(plan, channels.log.is_some())?;
    let cores = Core::allowed();
    let mut addresses = Vec::with_capacity(plan.workers);
    for (number, (sockets, policies)) in sockets.into_iter().zip(policies).enumerate() {
        let (commands, mailbox) = Mailbox::new(channels.retired.clone());
        let parts = Parts {
            number,
            core: cores.get(number % cores.len().max(1)).copied(),
            ring: sizes.ring,
            balancer: BalancerConfig { seed: random::secret()?, ..sizes.balancer.clone() },
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

/// Makes every worker's policies.
///
/// # Errors
/// A plugin fails, or refuses its configuration; each plugin is told once.
pub fn policies(
    plan: &Plan,
    plugins: &Plugins,
    snapshot: &Snapshot,
) -> Result<Vec<Vec<Box<dyn Policy>>>, Vec<Problem>> {
    let mut all = Vec::with_capacity(plan.workers);
    let mut problems: Vec<Problem> = Vec::new();
    for worker in 0..plan.workers {
        let mut policies = Vec::with_capacity(plan.clusters.len());
        for (cluster, state) in plan.clusters.iter().zip(&snapshot.clusters) {
            match plugins.policy(cluster.policy, worker, &state.candidates) {
                Ok(policy) => policies.push(policy),
                Err(problem) if problems.contains(&problem) => {}
                Err(problem) => problems.push(problem),
            }
        }
        all.push(policies);
        if !problems.is_empty() {
            return Err(problems);
        }
    }
    Ok(all)
}

/// How large each worker is.
struct Sizes {
    ring: RingConfig,
    balancer: BalancerConfig,
}

impl Sizes {
    fn new(plan: &Plan, record_flows: bool) -> anyhow::Result<Self> {
        let sessions_max = sessions_max(plan)?;
        let board_key = [random::secret()?, random::secret()?];
        Ok(Self {
            ring: RingConfig {
                links_max: sessions_max * 2,
                listeners_max: u16::try_from(plan.listeners.len())?,
                buffers: plan.pools,
            },
            balancer: BalancerConfig {
                sessions_max,
                datagram_flows_max: 0,
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

/// As many as the listeners may have together, and as the descriptors allow: a session has two.
fn sessions_max(plan: &Plan) -> anyhow::Result<u32> {
    let (_, descriptors) = raise_descriptor_limit().context("cannot raise the descriptor limit")?;
    let wanted: u64 = plan.listeners.iter().map(|listener| u64::from(listener.flows_max)).sum();
    let possible = (descriptors.saturating_sub(DESCRIPTORS_RESERVED) / 2).max(SESSIONS_MIN);
    if possible < wanted {
        tracing::warn!(
            wanted,
            possible,
            descriptors,
            "fewer flows than max_flows are possible: raise the limit of open files (ulimit -n)"
        );
    }
    // One more than the listeners may have, so that the listener's limit is what refuses a flow and
    // is named for it. A session's number must leave room for its two links in 32 bits.
    Ok(u32::try_from(wanted.min(possible) + 1).unwrap_or(u32::MAX).min(1 << 30))
}
