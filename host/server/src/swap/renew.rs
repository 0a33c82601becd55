//! Policies that a reload has made necessary: of clusters that are new, and of those that have
//! another policy than before, or the same one of another file or with other settings.
//!
//! Each goes the way of a swap (compiled in a child, tried, one instance for each worker) before
//! anything of the reload is published. What an operator has swapped in by himself stays unless the
//! policy's section or its file has changed since they were read last.

use std::sync::Arc;
use std::time::{Duration, Instant};

use pointsman_core::policy::OnSwap;
use pointsman_core::{Candidates, ClusterId};
use pointsman_plugin::Module;

use super::{Refusal, Walk, compile, digest_of, on_swap, trial, watch};
use crate::crew::Crew;
use crate::plan::{Plan, PluginId, PluginPlan, PolicyPlan};
use crate::plugins::{Kit, Loaded};
use crate::problem::Problem;
use crate::seat::{Claim, Outcome, Seat, Sitter};
use crate::service::Service;
use crate::setup::Setup;
use crate::world::World;

/// A policy that is ready to decide.
pub struct Renewed {
    /// Where.
    pub cluster: ClusterId,
    /// What it consists of.
    pub crew: Crew,
    /// What becomes of kept decisions; `None` if the cluster is new.
    pub on_swap: Option<OnSwap>,
    module: Option<Module>,
    policy: PolicyPlan,
    /// The seat that it takes over, for as long as nobody else is to change it.
    pub claim: Option<Claim>,
}

/// The modules of a plan's plugins. One whose file is as it was is not compiled again.
///
/// # Errors
/// What is wrong with any of them, each as a problem of its key.
pub fn load(service: &Service, old: &Setup, plan: &Plan) -> Result<Vec<Arc<Loaded>>, Vec<Problem>> {
    let (mut loaded, mut problems) = (Vec::with_capacity(plan.plugins.len()), Vec::new());
    for (id, plugin) in (0..).map(PluginId).zip(&plan.plugins) {
        let before = old.loaded.get(id.0);
        match (before, plugin.removed) {
            (Some(before), true) => loaded.push(Arc::clone(before)),
            _ => match load_one(service, old, plan, plugin) {
                Ok(module) => loaded.push(Arc::new(Loaded { kit: Kit::new(plugin), module })),
                Err(problem) => problems.push(problem),
            },
        }
    }
    if problems.is_empty() { Ok(loaded) } else { Err(problems) }
}

fn load_one(
    service: &Service,
    old: &Setup,
    plan: &Plan,
    plugin: &PluginPlan,
) -> Result<Module, Problem> {
    let key = format!("{}.plugin", plugin.key);
    let file = plugin.file.display();
    let bytes = watch::read(&plugin.file)
        .map_err(|error| Problem::new(&key, format!("cannot read \"{file}\": {error}")))?;
    let digest = digest_of(&bytes);
    let mut known = old.loaded.iter().map(|loaded| &loaded.module);
    let is_it = |it: &&Module| it.profile() == plugin.profile && it.digest() == digest;
    if let Some(module) = known.find(is_it) {
        return Ok(module.clone());
    }
    service.plugins().engine_for(plan)?;
    compile(service.plugins(), plugin.profile, &bytes, &digest)
        .map_err(|refusal| Problem::new(&key, format!("\"{file}\": {refusal}")))
}

/// What a reload goes from, and where to.
pub struct Change<'a> {
    /// The balancer.
    pub service: &'a Service,
    /// What it goes by.
    pub old: &'a Setup,
    /// What it is to go by.
    pub plan: &'a Plan,
    /// Its plugins.
    pub loaded: &'a [Arc<Loaded>],
    /// The endpoints of clusters that are new, as they will be at first.
    pub founded: &'a [(ClusterId, Arc<Candidates>)],
}

impl Change<'_> {
    /// Makes every policy that is needed, and claims the seats of clusters that get another one or
    /// leave.
    ///
    /// # Errors
    /// A policy fails, refuses its configuration, or is being changed by somebody else.
    pub fn prepare(&self) -> Result<(Vec<Renewed>, Vec<Leaving>), Vec<Problem>> {
        let (mut renewed, mut leaving, mut problems) = (Vec::new(), Vec::new(), Vec::new());
        for id in (0..self.plan.clusters.len()).map(|place| ClusterId(place as u16)) {
            let prepared = match self.founded.iter().find(|(founded, _)| *founded == id) {
                Some((_, candidates)) => self.found(id, candidates).map(Some),
                None if self.leaves(id) => self.claim(id).map(|claim| {
                    leaving.push(Leaving { cluster: id, claim });
                    None
                }),
                None if self.is_unchanged(id) => Ok(None),
                None => self.renew(id).map(Some),
            };
            match prepared {
                Ok(prepared) => renewed.extend(prepared),
                Err(problem) if problems.contains(&problem) => {}
                Err(problem) => problems.push(problem),
            }
        }
        if problems.is_empty() { Ok((renewed, leaving)) } else { Err(problems) }
    }

    fn policy(&self, id: ClusterId) -> PolicyPlan {
        self.plan.clusters[id.index()].policy
    }

    fn leaves(&self, id: ClusterId) -> bool {
        self.plan.clusters[id.index()].removed && !self.old.plan.clusters[id.index()].removed
    }

    fn is_unchanged(&self, id: ClusterId) -> bool {
        if self.plan.clusters[id.index()].removed {
            return true;
        }
        match (self.old.plan.clusters[id.index()].policy, self.policy(id)) {
            (PolicyPlan::Native(old), PolicyPlan::Native(new)) => old == new,
            (PolicyPlan::Plugin(old), PolicyPlan::Plugin(new)) => {
                let digest = self.loaded[new.0].module.digest();
                old == new
                    && self.old.plan.plugin(old).makes_alike(self.plan.plugin(new))
                    && (self.old.loaded[old.0].module.digest() == digest
                        || self.old.seat(id).is_decided_by(digest))
            }
            _ => false,
        }
    }

    fn claim(&self, id: ClusterId) -> Result<Claim, Problem> {
        let seat = self.old.seat(id);
        seat.claim().ok_or_else(|| Problem::new("", Refusal::Busy(seat.name.clone()).to_string()))
    }

    /// The first policy of a cluster.
    fn found(&self, cluster: ClusterId, among: &Arc<Candidates>) -> Result<Renewed, Problem> {
        let policy = self.policy(cluster);
        let crew = self.service.plugins().crew(self.loaded, policy, among)?;
        let module = match policy {
            PolicyPlan::Native(_) => None,
            PolicyPlan::Plugin(PluginId(place)) => Some(self.loaded[place].module.clone()),
        };
        Ok(Renewed { cluster, crew, on_swap: None, module, policy, claim: None })
    }

    /// Another policy than a cluster has.
    fn renew(&self, cluster: ClusterId) -> Result<Renewed, Problem> {
        let (policy, claim) = (self.policy(cluster), self.claim(cluster)?);
        let PolicyPlan::Plugin(PluginId(place)) = policy else {
            let among = self.service.look(|world| world.base(cluster));
            let crew = self.service.plugins().crew(self.loaded, policy, &among)?;
            let (on_swap, claim) = (Some(OnSwap::Keep), Some(claim));
            return Ok(Renewed { cluster, crew, on_swap, module: None, policy, claim });
        };
        let plan = self.plan.plugin(PluginId(place)).clone();
        let key = format!("{}.plugin", plan.key);
        let loaded = Arc::clone(&self.loaded[place]);
        let module = loaded.module.clone();
        let on_swap = Some(on_swap(plan.on_swap));
        let is_same = claim.seat.plugin == Some(PluginId(place));
        let walk = Walk { service: self.service, cluster, plan, loaded, claim };
        let ready = walk.admits(&module).and_then(|()| match is_same {
            true => walk.prepare(&module),
            false => walk.prepare_without_state(&module),
        });
        let crew = ready
            .inspect_err(|_| walk.on_refused())
            .map_err(|refusal| Problem::new(key, refusal.to_string()))?
            .crew;
        let claim = Some(walk.claim);
        Ok(Renewed { cluster, crew, on_swap, module: Some(module), policy, claim })
    }
}

/// A cluster that is no longer in the file.
pub struct Leaving {
    cluster: ClusterId,
    claim: Claim,
}

impl Leaving {
    /// Nobody is on trial in a cluster that leaves: another may have its place one day.
    pub fn end_trial(&self, service: &Service) {
        end_trial(service, self.cluster, &self.claim);
    }
}

fn end_trial(service: &Service, cluster: ClusterId, claim: &Claim) {
    trial::end(service, cluster);
    claim.seat.sitting().try_out(None);
}

impl Renewed {
    /// Nobody is on trial beside a policy that goes.
    pub fn end_trial(&self, service: &Service) {
        if let Some(claim) = &self.claim {
            end_trial(service, self.cluster, claim);
        }
    }

    /// The seat that it takes.
    pub fn seat(&self, plan: &Plan) -> Arc<Seat> {
        let plugin = match self.policy {
            PolicyPlan::Native(_) => None,
            PolicyPlan::Plugin(plugin) => Some(plugin),
        };
        let before = self.claim.as_ref().map(|claim| &claim.seat);
        if let Some(seat) = before.filter(|seat| plugin.is_some() && seat.plugin == plugin) {
            let since = Instant::now();
            let sitter = Sitter {
                module: self.module.clone(),
                counts: self.crew.counts.clone(),
                since,
                probation: Some(since),
            };
            let mut sitting = seat.sitting();
            sitting.seat(sitter, Duration::ZERO);
            sitting.on_outcome(Outcome::Swapped);
            return Arc::clone(seat);
        }
        let name = &plan.clusters[self.cluster.index()].name;
        let seat = Seat::new(name, plugin, self.module.clone(), self.crew.counts.clone());
        if let Some(before) = before {
            seat.sitting().generation = before.sitting().generation + 1;
        }
        Arc::new(seat)
    }
}

impl PluginPlan {
    /// Whether instances are made the same way, if the module is the same.
    fn makes_alike(&self, other: &Self) -> bool {
        let made = |plan: &Self| {
            let deadlines = (plan.decide_deadline, plan.configure_deadline, plan.tick);
            (plan.profile, plan.config.clone(), plan.fallback, plan.memory_max_bytes, deadlines)
        };
        made(self) == made(other)
    }
}

/// Endpoints of clusters that are new, as a policy that begins sees them.
pub fn candidates(plan: &Plan, founded: &[ClusterId]) -> Vec<(ClusterId, Arc<Candidates>)> {
    // A world has room for what its limits count, which is not made for nothing.
    if founded.is_empty() {
        return Vec::new();
    }
    let addresses: Vec<_> = plan.listeners.iter().map(|listener| listener.address).collect();
    let world = World::new(plan, &addresses, [0; 2]);
    founded.iter().map(|cluster| (*cluster, world.base(*cluster))).collect()
}
