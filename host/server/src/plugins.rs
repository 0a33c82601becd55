//! Plugin files to policies: compiled once, configured once per worker.

use std::fs;
use std::io;
use std::sync::Arc;

use pointsman_core::Candidates;
use pointsman_core::policy::{LeastFlows, Policy, RoundRobin, TablePolicy};
use pointsman_plugin::{
    Engine, EngineLimits, Governor, GuestPolicy, InstanceError, LogLevel, LogLine, Module, Place,
    PolicyCounts, PolicySettings, PolicyStats, Speaker,
};

use crate::plan::{Native, Plan, PluginId, PluginPlan, PolicyPlan};
use crate::problem::Problem;

/// Places for instances beyond one per policy and worker and its successor: some are being
/// replaced after a fault.
const INSTANCES_SPARE: usize = 16;

/// All plugins of a plan, compiled.
pub struct Plugins {
    /// Absent if there are no plugins: it starts threads and reserves address space.
    engine: Option<Engine>,
    loaded: Vec<Loaded>,
}

struct Loaded {
    key: String,
    module: Module,
    settings: Arc<PolicySettings>,
    fallback: Native,
    /// By worker.
    stats: Vec<Arc<PolicyStats>>,
}

impl Plugins {
    /// Compiles the plan's plugins from the contents of their files, in the plan's order.
    ///
    /// # Errors
    /// Whatever is wrong with any of them, each as a problem of its key.
    pub fn compile(plan: &Plan, files: Vec<io::Result<Vec<u8>>>) -> Result<Self, Vec<Problem>> {
        if plan.plugins.is_empty() {
            return Ok(Self { engine: None, loaded: Vec::new() });
        }
        let engine = Engine::new(limits(plan), Arc::new(write_line))
            .map_err(|error| vec![Problem::new("policies", error.to_string())])?;
        let mut loaded = Vec::new();
        let mut problems = Vec::new();
        for (plugin, bytes) in plan.plugins.iter().zip(files) {
            match load(&engine, plugin, bytes) {
                Ok(module) => loaded.push(Loaded::new(plugin, module, plan.workers)),
                Err(problem) => problems.push(problem),
            }
        }
        if !problems.is_empty() {
            return Err(problems);
        }
        Ok(Self { engine: Some(engine), loaded })
    }

    /// Compiles and configures every plugin once, to see what is wrong with it; `candidates` are
    /// what it is told of. A plugin that can be read is tried whatever is wrong with others.
    pub fn try_all(plan: &Plan, candidates: &[Option<Arc<Candidates>>]) -> Vec<Problem> {
        let mut problems = Vec::new();
        if plan.plugins.is_empty() {
            return problems;
        }
        let engine = match Engine::new(limits(plan), Arc::new(write_line)) {
            Ok(engine) => engine,
            Err(error) => return vec![Problem::new("policies", error.to_string())],
        };
        for (plugin, candidates) in plan.plugins.iter().zip(candidates) {
            let tried = load(&engine, plugin, fs::read(&plugin.file)).and_then(|module| {
                let loaded = Loaded::new(plugin, module, 1);
                candidates.as_ref().map(|candidates| loaded.instance(0, candidates)).transpose()
            });
            problems.extend(tried.err());
        }
        problems
    }

    /// The engine, if there is any plugin.
    pub fn engine(&self) -> Option<Engine> {
        self.engine.clone()
    }

    /// Makes one worker's instance of a policy.
    ///
    /// # Errors
    /// The plugin fails, or refuses its configuration.
    pub fn policy(
        &self,
        policy: PolicyPlan,
        worker: usize,
        candidates: &Arc<Candidates>,
    ) -> Result<Box<dyn Policy>, Problem> {
        match policy {
            PolicyPlan::Native(native) => Ok(make_native(native)),
            PolicyPlan::Plugin(id) => Ok(Box::new(self.loaded[id.0].instance(worker, candidates)?)),
        }
    }

    /// What one plugin has counted, over all workers.
    pub fn counts(&self, id: PluginId) -> PolicyCounts {
        let mut sum = PolicyCounts::default();
        for stats in &self.loaded[id.0].stats {
            sum.add(&stats.snapshot());
        }
        sum
    }
}

impl Loaded {
    fn new(plan: &PluginPlan, module: Module, workers: usize) -> Self {
        let settings = PolicySettings {
            decide_deadline: plan.decide_deadline,
            configure_deadline: plan.configure_deadline,
            memory_bytes_max: plan.memory_max_bytes,
            ..PolicySettings::new(&plan.name, &plan.config)
        };
        Self {
            key: plan.key.clone(),
            module,
            settings: Arc::new(settings),
            fallback: plan.fallback,
            stats: (0..workers).map(|_| Arc::default()).collect(),
        }
    }

    fn instance(&self, worker: usize, among: &Arc<Candidates>) -> Result<GuestPolicy, Problem> {
        let settings = Arc::clone(&self.settings);
        let place = Place {
            stats: Arc::clone(&self.stats[worker]),
            governor: Arc::new(Governor::new(100)),
            fallback: make_native(self.fallback),
            state: None,
        };
        GuestPolicy::new(&self.module, settings, place, among).map_err(|error| {
            let key = if matches!(error, InstanceError::Config(_)) { "config" } else { "plugin" };
            Problem::new(format!("{}.{key}", self.key), error.to_string())
        })
    }
}

fn limits(plan: &Plan) -> EngineLimits {
    let users = plan.clusters.iter().filter(|c| matches!(c.policy, PolicyPlan::Plugin(_))).count();
    let instances = users.max(1) * plan.workers * 2 + INSTANCES_SPARE;
    EngineLimits {
        instances_max: u32::try_from(instances).unwrap_or(u32::MAX),
        ..EngineLimits::default()
    }
}

fn load(engine: &Engine, plan: &PluginPlan, bytes: io::Result<Vec<u8>>) -> Result<Module, Problem> {
    let key = format!("{}.plugin", plan.key);
    let file = plan.file.display();
    let bytes =
        bytes.map_err(|error| Problem::new(&key, format!("cannot read \"{file}\": {error}")))?;
    engine
        .load(&bytes)
        .map_err(|error| Problem::new(&key, format!("\"{file}\" is refused: {error}")))
}

fn make_native(native: Native) -> Box<dyn Policy> {
    match native {
        Native::RoundRobin => Box::new(RoundRobin::new()),
        Native::LeastFlows => Box::new(LeastFlows::new()),
        Native::Maglev => Box::new(TablePolicy::new()),
    }
}

#[expect(clippy::needless_pass_by_value, reason = "the engine's sink takes lines by value")]
fn write_line(line: LogLine) {
    let policy = &*line.policy;
    let by = match line.speaker {
        Speaker::Guest => "plugin",
        Speaker::Host => "host",
    };
    let message = &line.message;
    match line.level {
        LogLevel::Error => tracing::error!(policy, by, "{message}"),
        LogLevel::Warn => tracing::warn!(policy, by, "{message}"),
        LogLevel::Info => tracing::info!(policy, by, "{message}"),
        LogLevel::Debug => tracing::debug!(policy, by, "{message}"),
    }
}
