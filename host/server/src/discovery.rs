//! Endpoints that are found instead of written: asks resolvers, and watches files.
//!
//! One task per cluster, for as long as its configuration asks for it, all on the control thread;
//! files are looked at by a thread, because a disk may hang. Nothing is decided here: what was found
//! goes to the control loop, which lets the world take it in as one change, or keeps what there was.
//!
//! ```text
//!   dns ── asker ──▶ resolvers        answer or failure
//!   file ─────────▶ disk      ──────────────────────────▶ world ──▶ snapshot, if it differs
//! ```

mod answer;
mod asker;
mod dns;
mod file;
mod pace;
mod standing;

use std::collections::BTreeMap;
use std::sync::Arc;

use pointsman_core::ClusterId;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::sync::oneshot;
use tokio::time::{Instant, timeout_at};

use crate::plan::{ClusterPlan, DiscoveryPlan, Plan, Source};
use crate::runtime;
use crate::world::{Unchanged, World};

pub use answer::{Answer, Failure, LeftOut, Outcome};
pub use file::mistake;
pub use standing::{Standing, Who};

use asker::Askers;
use file::{FileWatch, Watch};

/// Attempts that are taken in together.
const FOUND_MAX: usize = 1_000;

/// What came of one attempt to find a cluster's endpoints.
#[derive(Debug)]
pub struct Found {
    /// The cluster.
    pub cluster: ClusterId,
    /// What was attempted: the cluster may be found elsewhere by the time this is heard.
    pub plan: Arc<DiscoveryPlan>,
    /// What came of it.
    pub said: Result<Answer, Failure>,
}

/// Everybody who is looking for endpoints.
pub struct Discovery {
    finder: UnboundedSender<Found>,
    found: UnboundedReceiver<Found>,
    searches: BTreeMap<ClusterId, Search>,
    askers: Askers,
    files: FileWatch,
}

/// One cluster's search, which ends when this is dropped.
struct Search {
    plan: Arc<DiscoveryPlan>,
    _under_way: UnderWay,
}

/// What ends a search by being dropped.
enum UnderWay {
    Dns { _task: oneshot::Sender<()> },
    File { _watch: Watch },
}

impl Discovery {
    /// Starts the searches of a plan. Lets the world take in their first answers before there is
    /// traffic, for as long as each cluster says; whoever has none by then is served as soon as there
    /// is one.
    pub async fn start(plan: &Plan, world: &mut World) -> Self {
        let (finder, found) = unbounded_channel();
        let files = FileWatch::new(finder.clone());
        let (searches, askers) = (BTreeMap::new(), Askers::default());
        let mut discovery = Self { finder, found, searches, askers, files };
        discovery.follow(plan);
        discovery.await_first(plan, world).await;
        discovery
    }

    /// Starts the searches that the plan has and that are not under way, and ends the others.
    pub fn follow(&mut self, plan: &Plan) {
        let mut before = std::mem::take(&mut self.searches);
        for (cluster, plan) in (0..).map(ClusterId).zip(&plan.clusters) {
            let Some(plan) = plan.discovery.as_ref().filter(|_| !plan.removed) else { continue };
            let known = before.remove(&cluster).filter(|search| {
                Arc::ptr_eq(&search.plan, plan) || search.plan.as_ref() == plan.as_ref()
            });
            let search = known.unwrap_or_else(|| self.search(cluster, plan));
            self.searches.insert(cluster, search);
        }
        self.askers.forget_unused();
    }

    fn search(&mut self, cluster: ClusterId, plan: &Arc<DiscoveryPlan>) -> Search {
        let dns = match &plan.source {
            Source::File(path) => {
                let _watch = self.files.watch(cluster, plan, path);
                return Search { plan: Arc::clone(plan), _under_way: UnderWay::File { _watch } };
            }
            Source::Dns(dns) => dns,
        };
        let asker = self.askers.of(dns);
        let search = dns::search_for_ever(cluster, Arc::clone(plan), asker, self.finder.clone());
        let (_task, ended) = oneshot::channel::<()>();
        runtime::spawn(async {
            tokio::select! {
                () = search => {}
                _ = ended => {}
            }
        });
        Search { plan: Arc::clone(plan), _under_way: UnderWay::Dns { _task } }
    }

    async fn await_first(&mut self, plan: &Plan, world: &mut World) {
        let start = Instant::now();
        let clusters = (0..).map(ClusterId).zip(&plan.clusters);
        let until = |cluster: &ClusterPlan| Some(start + cluster.discovery.as_ref()?.start_timeout);
        // Whoever has endpoints has them from the process before.
        let has_nobody = |id: &ClusterId| world.targets(*id).next().is_none();
        let clusters = clusters.filter(|(id, _)| has_nobody(id));
        let mut awaited: BTreeMap<_, _> =
            clusters.filter_map(|(id, cluster)| Some((id, until(cluster)?))).collect();
        while let Some(until) = awaited.values().max().copied() {
            let Ok(found) = timeout_at(until, self.next()).await else { break };
            for found in &found {
                awaited.remove(&found.cluster);
            }
            // It is published before anybody could see it.
            let _: Result<(), Unchanged> = world.take_found(&found);
        }
        for cluster in awaited.keys() {
            let cluster = &*plan.clusters[cluster.index()].name;
            tracing::warn!(cluster, "starts without endpoints: there is no answer yet");
        }
    }

    /// What is found next, and what else has been by then: when resolvers come back, thousands of names
    /// may change, and each change of the world is a copy of all of it.
    pub async fn next(&mut self) -> Vec<Found> {
        let mut found = Vec::new();
        self.found.recv_many(&mut found, FOUND_MAX).await;
        found
    }
}
