//! Policies that are asked off the data path: those that make tables, and those that set weights.
//!
//! The control side calls them, takes what they answer into the next snapshot, and makes a new one
//! after a fault. No flow waits for them, so they have the longer deadline.

use core::fmt;
use std::sync::Arc;

use pointsman_core::policy::Table;
use pointsman_core::{Candidates, Endpoint, Instant};

use crate::error::{Fault, GuestFault, InstanceError};
use crate::instance::{Instance, Recipe};
use crate::limits::PolicySettings;
use crate::module::Module;
use crate::repair::make;
use crate::stats::PolicyStats;
use crate::world::Shape;

/// A plugin that makes lookup tables.
pub struct TableGuest(Instance);

impl TableGuest {
    /// Makes an instance and configures it. `state` is what a predecessor handed over; a plugin that
    /// hands nothing over takes nothing either.
    ///
    /// # Errors
    ///
    /// If the module is of another shape, if the guest fails, refuses its configuration or the
    /// state, or if no place for it is left.
    pub fn new(
        module: &Module,
        settings: Arc<PolicySettings>,
        stats: Arc<PolicyStats>,
        state: Option<&[u8]>,
    ) -> Result<Self, InstanceError> {
        module.expect(Shape::Table)?;
        let recipe = Arc::new(Recipe::new(module, settings, stats));
        make(&recipe, state).map(Self)
    }

    /// Makes the table for a list of endpoints, which must not be empty.
    ///
    /// # Errors
    ///
    /// If the guest fails, or what it makes is no table. It is not to be asked again then.
    pub fn build(&mut self, now: Instant, candidates: &Candidates) -> Result<Table, GuestFault> {
        // The guest may look at the endpoints for as long as it likes; the list's own table is not
        // among what it can see.
        let endpoints = candidates.endpoints.iter().map(Endpoint::clone).collect();
        let generation = candidates.generation;
        let among = Arc::new(Candidates { generation, endpoints, table: None });
        let built = self.0.build(now, &among);
        built.map_err(|fault| counted(&self.0, fault))
    }

    /// As for a [`GuestPolicy`](crate::GuestPolicy).
    #[must_use]
    pub fn fuel_used(&self) -> Option<u64> {
        self.0.fuel_used()
    }

    /// How large the guest's memory has become.
    #[must_use]
    pub fn memory_bytes(&self) -> usize {
        self.0.memory_bytes()
    }

    /// What it hands over to its successor, if it does such a thing.
    ///
    /// # Errors
    ///
    /// If the guest fails. It is not to be asked again then.
    pub fn state(&mut self) -> Result<Option<Vec<u8>>, GuestFault> {
        state_of(&mut self.0)
    }
}

/// A plugin that sets the weights of a native policy.
pub struct WeightsGuest(Instance);

impl WeightsGuest {
    /// As for [`TableGuest::new`].
    ///
    /// # Errors
    ///
    /// As there.
    pub fn new(
        module: &Module,
        settings: Arc<PolicySettings>,
        stats: Arc<PolicyStats>,
        state: Option<&[u8]>,
    ) -> Result<Self, InstanceError> {
        module.expect(Shape::Weights)?;
        let recipe = Arc::new(Recipe::new(module, settings, stats));
        make(&recipe, state).map(Self)
    }

    /// Asks for new weights, by index and 1 to 65,535 each; `None` if they stay as they are. The
    /// guest hears of a changed list first, which must not be empty.
    ///
    /// # Errors
    ///
    /// If the guest fails, or its answer is none. It is not to be asked again then, and the old
    /// weights hold.
    pub fn tick(
        &mut self,
        now: Instant,
        candidates: &Arc<Candidates>,
    ) -> Result<Option<Vec<u32>>, GuestFault> {
        self.0.weigh(now, candidates).map_err(|fault| counted(&self.0, fault))
    }

    /// As for a [`GuestPolicy`](crate::GuestPolicy).
    #[must_use]
    pub fn fuel_used(&self) -> Option<u64> {
        self.0.fuel_used()
    }

    /// How large the guest's memory has become.
    #[must_use]
    pub fn memory_bytes(&self) -> usize {
        self.0.memory_bytes()
    }

    /// What it hands over to its successor, if it does such a thing.
    ///
    /// # Errors
    ///
    /// If the guest fails. It is not to be asked again then.
    pub fn state(&mut self) -> Result<Option<Vec<u8>>, GuestFault> {
        state_of(&mut self.0)
    }
}

fn counted(instance: &Instance, fault: Fault) -> GuestFault {
    instance.recipe().stats.on_fault(fault.kind);
    fault.into()
}

fn state_of(instance: &mut Instance) -> Result<Option<Vec<u8>>, GuestFault> {
    let state = instance.snapshot();
    state.map_err(|fault| counted(instance, fault))
}

impl fmt::Debug for TableGuest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TableGuest").finish_non_exhaustive()
    }
}

impl fmt::Debug for WeightsGuest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("WeightsGuest").finish_non_exhaustive()
    }
}
