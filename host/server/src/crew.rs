//! Everything that one module becomes in one cluster: a policy for each worker, and beside them the
//! guest that makes tables or weights, if the module is of that shape.
//!
//! A crew is made whole before anything of it gets near traffic. Where one part of it cannot be
//! made, there is none.

use std::sync::Arc;

use pointsman_core::Candidates;
use pointsman_core::policy::{LeastFlows, Policy, RoundRobin, TablePolicy};
use pointsman_plugin::{
    Governor, GuestPolicy, InstanceError, Module, Place, PolicyCounts, PolicyStats, Shape,
};
use pointsman_ring::Clock;

use crate::plan::Native;
use crate::plugins::Kit;
use crate::steering::{Recipe, SteerError, Steerer};
use crate::world::{Needs, Outlook};

/// A cluster's policies, ready to decide.
pub struct Crew {
    /// By worker.
    pub policies: Vec<Box<dyn Policy>>,
    /// What they are to see.
    pub outlook: Outlook,
    /// The guest beside them.
    pub steerer: Option<Steerer>,
    /// What is counted of the module in this cluster.
    pub counts: Counts,
}

/// The live counters of one module in one cluster: one set per worker, or one for the guest beside
/// them.
#[derive(Debug, Clone, Default)]
pub struct Counts {
    stats: Vec<Arc<PolicyStats>>,
}

impl Counts {
    /// The sum of them.
    pub fn sum(&self) -> PolicyCounts {
        let mut sum = PolicyCounts::default();
        self.stats.iter().for_each(|stats| sum.add(&stats.snapshot()));
        sum
    }

    fn add(&mut self) -> Arc<PolicyStats> {
        let stats = Arc::new(PolicyStats::default());
        self.stats.push(Arc::clone(&stats));
        stats
    }
}

/// Where a crew is to serve, and what it takes over.
pub struct Berth<'a> {
    /// The cluster's endpoints.
    pub candidates: &'a Arc<Candidates>,
    /// What plugins may take of each worker's core; one per worker.
    pub governors: &'a [Arc<Governor>],
    /// What the predecessors hand over: by worker, or of the one guest beside them.
    pub states: Vec<Option<Vec<u8>>>,
}

impl Crew {
    /// One of our own policies.
    pub fn native(native: Native, workers: usize) -> Self {
        Self {
            policies: (0..workers).map(|_| make_native(native)).collect(),
            outlook: Outlook::plain(needs_of(native)),
            steerer: None,
            counts: Counts::default(),
        }
    }

    /// A plugin.
    ///
    /// # Errors
    /// An instance fails, refuses what it is given, or has no place.
    pub fn of(module: &Module, kit: &Kit, berth: Berth<'_>) -> Result<Self, SteerError> {
        let workers = berth.governors.len();
        match module.shape() {
            Shape::Chooser => Ok(Self::choosers(module, kit, berth)?),
            Shape::Table => {
                let policies = (0..workers).map(|_| make_native(Native::Maglev)).collect();
                Self::steered(module, kit, berth, (policies, Needs::Table, None))
            }
            Shape::Weights => {
                let policies = (0..workers).map(|_| make_native(kit.fallback)).collect();
                let needs = Needs::Weights { maglev: kit.fallback == Native::Maglev };
                Self::steered(module, kit, berth, (policies, needs, Some(kit.tick)))
            }
        }
    }

    fn choosers(module: &Module, kit: &Kit, berth: Berth<'_>) -> Result<Self, InstanceError> {
        let mut counts = Counts::default();
        let mut states = berth.states.into_iter();
        let mut policies: Vec<Box<dyn Policy>> = Vec::with_capacity(berth.governors.len());
        for governor in berth.governors {
            let place = Place {
                stats: counts.add(),
                governor: Arc::clone(governor),
                fallback: make_native(kit.fallback),
                state: states.next().flatten(),
                now: Clock.now(),
            };
            let settings = Arc::clone(&kit.settings);
            policies.push(Box::new(GuestPolicy::new(module, settings, place, berth.candidates)?));
        }
        let outlook = Outlook::plain(needs_of(kit.fallback));
        Ok(Self { policies, outlook, steerer: None, counts })
    }

    fn steered(
        module: &Module,
        kit: &Kit,
        berth: Berth<'_>,
        (policies, needs, tick): (Vec<Box<dyn Policy>>, Needs, Option<std::time::Duration>),
    ) -> Result<Self, SteerError> {
        let mut counts = Counts::default();
        let recipe = Recipe {
            module: module.clone(),
            settings: Arc::clone(&kit.settings),
            stats: counts.add(),
            tick,
        };
        let state = berth.states.into_iter().next().flatten();
        let (steerer, made) = Steerer::start(recipe, berth.candidates, state.as_deref())?;
        let made = made.map(|made| (berth.candidates.generation, made));
        let outlook = Outlook { needs, author: Some(steerer.author()), made };
        Ok(Self { policies, outlook, steerer: Some(steerer), counts })
    }
}

fn make_native(native: Native) -> Box<dyn Policy> {
    match native {
        Native::RoundRobin => Box::new(RoundRobin::new()),
        Native::LeastFlows => Box::new(LeastFlows::new()),
        Native::Maglev => Box::new(TablePolicy::new()),
    }
}

fn needs_of(native: Native) -> Needs {
    if native == Native::Maglev { Needs::Maglev } else { Needs::Nothing }
}
