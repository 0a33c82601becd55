//! Plugin files to modules: compiled once, and kept compiled for as long as they may be wanted
//! again.

use std::collections::VecDeque;
use std::fs;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use pointsman_core::Candidates;
use pointsman_plugin::{
    Engine, EngineLimits, Governor, InstanceError, LogLevel, LogLine, Module, PolicySettings,
    Profile, Speaker,
};

use crate::compiler::Compiler;
use crate::crew::{Berth, Crew};
use crate::plan::{Native, Plan, PluginPlan, PolicyPlan};
use crate::problem::Problem;
use crate::steering::SteerError;

/// Places that each policy has in each worker: for the one that decides, for the one that is about
/// to, and for one on trial.
const INSTANCES_PER_POLICY: usize = 3;
/// Places for instances beyond those: some are being replaced after a fault, or tried.
const INSTANCES_SPARE: usize = 16;
/// Compiled modules that are kept although nobody uses them.
const MODULES_KEPT_MAX: usize = 4;

/// What plugins are compiled and run with, for as long as the process lives.
pub struct Plugins {
    /// Absent until there is a plugin: it starts threads and reserves address space.
    engine: OnceLock<Engine>,
    /// By worker.
    governors: Vec<Arc<Governor>>,
    kept: Mutex<VecDeque<Module>>,
    compiler: Mutex<Compiler>,
}

/// A policy, and the module that its file holds.
pub struct Loaded {
    /// What its instances are given.
    pub kit: Kit,
    /// What they are made of at first.
    pub module: Module,
}

/// What the instances of a policy are given, whichever module they are made of.
pub struct Kit {
    /// The policy's key in the configuration.
    pub key: String,
    /// Its configuration and its limits.
    pub settings: Arc<PolicySettings>,
    /// Who answers when a guest cannot, and whom weights steer.
    pub fallback: Native,
    /// How often a guest is asked for weights.
    pub tick: Duration,
}

impl Plugins {
    /// Compiles the plan's plugins from the contents of their files, in the plan's order.
    ///
    /// # Errors
    /// Whatever is wrong with any of them, each as a problem of its key.
    pub fn compile(
        plan: &Plan,
        files: Vec<io::Result<Vec<u8>>>,
    ) -> Result<(Self, Vec<Arc<Loaded>>), Vec<Problem>> {
        let plugins = Self {
            engine: OnceLock::new(),
            governors: governors(plan, plan.workers),
            kept: Mutex::default(),
            compiler: Mutex::default(),
        };
        let mut loaded = Vec::with_capacity(plan.plugins.len());
        if plan.plugins.is_empty() {
            return Ok((plugins, loaded));
        }
        let engine = plugins.engine_for(plan).map_err(|problem| vec![problem])?;
        let mut problems = Vec::new();
        for (plugin, bytes) in plan.plugins.iter().zip(files) {
            match load(&engine, plugin, bytes) {
                Ok(module) => loaded.push(Arc::new(Loaded { kit: Kit::new(plugin), module })),
                Err(problem) => problems.push(problem),
            }
        }
        if problems.is_empty() { Ok((plugins, loaded)) } else { Err(problems) }
    }

    /// The engine, which is started for this plan if there has been no plugin before.
    ///
    /// # Errors
    /// The system has no room for it.
    pub fn engine_for(&self, plan: &Plan) -> Result<Engine, Problem> {
        if let Some(engine) = self.engine.get() {
            return Ok(engine.clone());
        }
        let engine = engine(plan, self.governors.len())?;
        Ok(self.engine.get_or_init(|| engine).clone())
    }

    /// Compiles and configures every plugin once, to see what is wrong with it; `candidates` are
    /// what it is told of. A plugin that can be read is tried whatever is wrong with others.
    pub fn try_all(plan: &Plan, candidates: &[Option<Arc<Candidates>>]) -> Vec<Problem> {
        let mut problems = Vec::new();
        if plan.plugins.is_empty() {
            return problems;
        }
        let engine = match engine(plan, 1) {
            Ok(engine) => engine,
            Err(problem) => return vec![problem],
        };
        let governors = governors(plan, 1);
        for (plugin, candidates) in plan.plugins.iter().zip(candidates) {
            let tried = load(&engine, plugin, fs::read(&plugin.file)).and_then(|module| {
                let Some(candidates) = candidates else { return Ok(()) };
                let (kit, states) = (Kit::new(plugin), Vec::new());
                let berth = Berth { candidates, governors: &governors, states };
                Crew::of(&module, &kit, berth).map(drop).map_err(|error| kit.problem(&error))
            });
            problems.extend(tried.err());
        }
        problems
    }

    /// The engine, if there is any plugin.
    pub fn engine(&self) -> Option<Engine> {
        self.engine.get().cloned()
    }

    /// What plugins may take of each worker's core.
    pub fn governors(&self) -> &[Arc<Governor>] {
        &self.governors
    }

    /// Makes the policies that a cluster begins with.
    ///
    /// # Errors
    /// The plugin fails, or refuses its configuration.
    pub fn crew(
        &self,
        loaded: &[Arc<Loaded>],
        policy: PolicyPlan,
        candidates: &Arc<Candidates>,
    ) -> Result<Crew, Problem> {
        match policy {
            PolicyPlan::Native(native) => Ok(Crew::native(native, self.governors.len())),
            PolicyPlan::Plugin(id) => {
                let Loaded { kit, module } = &*loaded[id.0];
                let berth = Berth { candidates, governors: &self.governors, states: Vec::new() };
                Crew::of(module, kit, berth).map_err(|error| kit.problem(&error))
            }
        }
    }

    /// Waits until nobody else compiles: together they could take more memory than there is.
    pub fn compiler(&self) -> MutexGuard<'_, Compiler> {
        self.compiler.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The module of this digest, compiled for this profile, if it is still there.
    pub fn kept(&self, profile: Profile, digest: &str) -> Option<Module> {
        let is_it = |module: &&Module| module.profile() == profile && module.digest() == digest;
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        let place = kept.iter().position(|module| is_it(&module))?;
        let module = kept.remove(place)?;
        kept.push_back(module.clone());
        Some(module)
    }

    /// Keeps a module for the next time that it is wanted; the one that was not wanted for longest
    /// goes.
    pub fn keep(&self, module: &Module) {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        kept.retain(|it| (it.profile(), it.digest()) != (module.profile(), module.digest()));
        if kept.len() == MODULES_KEPT_MAX {
            kept.pop_front();
        }
        kept.push_back(module.clone());
    }
}

impl Kit {
    /// What a plan says of a plugin.
    pub fn new(plan: &PluginPlan) -> Self {
        let settings = PolicySettings {
            decide_deadline: plan.decide_deadline,
            configure_deadline: plan.configure_deadline,
            memory_bytes_max: plan.memory_max_bytes,
            ..PolicySettings::new(&plan.name, &plan.config)
        };
        Self {
            key: plan.key.clone(),
            settings: Arc::new(settings),
            fallback: plan.fallback,
            tick: plan.tick,
        }
    }

    /// What a guest has failed at, as a problem of the configuration.
    pub fn problem(&self, error: &SteerError) -> Problem {
        let is_config = matches!(error, SteerError::Instance(InstanceError::Config(_)));
        let key = if is_config { "config" } else { "plugin" };
        Problem::new(format!("{}.{key}", self.key), error.to_string())
    }
}

fn governors(plan: &Plan, workers: usize) -> Vec<Arc<Governor>> {
    (0..workers).map(|_| Arc::new(Governor::new(plan.plugin_cpu_percent))).collect()
}

fn engine(plan: &Plan, workers: usize) -> Result<Engine, Problem> {
    let users = plan.clusters.iter().filter(|c| matches!(c.policy, PolicyPlan::Plugin(_))).count();
    let instances = users.max(1) * workers * INSTANCES_PER_POLICY + INSTANCES_SPARE;
    let limits = EngineLimits {
        instances_max: u32::try_from(instances).unwrap_or(u32::MAX),
        ..EngineLimits::default()
    };
    Engine::new(limits, Arc::new(write_line))
        .map_err(|error| Problem::new("policies", error.to_string()))
}

fn load(engine: &Engine, plan: &PluginPlan, bytes: io::Result<Vec<u8>>) -> Result<Module, Problem> {
    let key = format!("{}.plugin", plan.key);
    let file = plan.file.display();
    let bytes =
        bytes.map_err(|error| Problem::new(&key, format!("cannot read \"{file}\": {error}")))?;
    let engine = engine.of_profile(plan.profile);
    let engine = engine.map_err(|error| Problem::new(&key, error.to_string()))?;
    engine
        .load(&bytes)
        .map_err(|error| Problem::new(&key, format!("\"{file}\" is refused: {error}")))
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
