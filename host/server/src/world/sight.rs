//! How a policy sees a cluster's endpoints: as they are, or with a table or weights of its own.
//!
//! What a guest makes takes it a moment, and the endpoints do not wait for it: until it has
//! answered for a changed list, what it made for the list before stands in, as far as that goes.

use std::sync::Arc;

use pointsman_core::policy::{Table, maglev};
use pointsman_core::{Candidates, Endpoint, Generation};

/// What a policy needs to see beside the endpoints.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Needs {
    /// Nothing.
    Nothing,
    /// Maglev's table.
    Maglev,
    /// A table that a guest makes.
    Table,
    /// Weights that a guest gives.
    Weights {
        /// Whether the policy that goes by them reads Maglev's table, which is made of weights.
        maglev: bool,
    },
}

impl Needs {
    /// Whether there is a guest that has to hear of changed endpoints.
    pub fn a_guest(self) -> bool {
        matches!(self, Self::Table | Self::Weights { .. })
    }
}

/// What a guest has made for a list of endpoints.
#[derive(Debug)]
pub enum Made {
    /// A table over them.
    Table(Table),
    /// What each is to weigh.
    Weights(Vec<u32>),
}

/// Names the guest that something was made by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Author(pub u64);

/// What is to be outlook to a policy.
#[derive(Debug)]
pub struct Outlook {
    /// What it needs.
    pub needs: Needs,
    /// The guest that makes it, if one does.
    pub author: Option<Author>,
    /// What it has made so far, and for which list of endpoints.
    pub made: Option<(Generation, Made)>,
}

impl Outlook {
    /// What no guest has a part in.
    pub const fn plain(needs: Needs) -> Self {
        Self { needs, author: None, made: None }
    }
}

/// One policy's view.
#[derive(Debug)]
pub(super) struct Sight {
    pub(super) needs: Needs,
    pub(super) author: Option<Author>,
    pub(super) candidates: Arc<Candidates>,
}

impl Sight {
    /// The view of a policy that is new. Without anything made for these endpoints, Maglev's table
    /// stands in, or the configured weights.
    pub(super) fn new(outlook: Outlook, base: &Arc<Candidates>, generation: Generation) -> Self {
        let Outlook { needs, author, made } = outlook;
        let made = made.filter(|(of, _)| *of == base.generation).map(|(_, made)| made);
        let candidates = match (needs, made) {
            (Needs::Nothing, _) => Arc::clone(base),
            (Needs::Maglev, _) => with_table(base, table(&base.endpoints), generation),
            (Needs::Table, Some(Made::Table(made))) => with_table(base, Some(made), generation),
            (Needs::Table, _) => {
                with_table(base, table(&base.endpoints).map(Table::standing_in), generation)
            }
            (Needs::Weights { maglev }, Some(Made::Weights(weights))) => {
                with_weights(base, &weights, maglev, generation)
            }
            (Needs::Weights { maglev }, _) => with_weights(base, &[], maglev, generation),
        };
        Self { needs, author, candidates }
    }

    /// The endpoints have changed.
    pub(super) fn follow(&mut self, base: &Arc<Candidates>, generation: Generation) {
        let old = Arc::clone(&self.candidates);
        let outlook = Outlook { needs: self.needs, author: self.author, made: None };
        *self = Self::new(outlook, base, generation);
        match self.needs {
            Needs::Nothing | Needs::Maglev => {}
            Needs::Table => {
                if let Some(table) = stand_in(&old, &self.candidates) {
                    self.candidates = with_table(base, Some(table), generation);
                }
            }
            Needs::Weights { maglev } => {
                let weight = |endpoint: &Endpoint| find(&old, endpoint).map_or(0, |old| old.weight);
                let weights: Vec<_> = base.endpoints.iter().map(weight).collect();
                self.candidates = with_weights(base, &weights, maglev, generation);
            }
        }
    }
}

fn with_table(base: &Candidates, table: Option<Table>, generation: Generation) -> Arc<Candidates> {
    Arc::new(Candidates { generation, endpoints: base.endpoints.clone(), table })
}

/// An endpoint without a weight, or with none, keeps the configured one.
fn with_weights(
    base: &Candidates,
    weights: &[u32],
    maglev: bool,
    generation: Generation,
) -> Arc<Candidates> {
    let mut endpoints = base.endpoints.clone();
    for (endpoint, &weight) in endpoints.iter_mut().zip(weights).filter(|(_, weight)| **weight > 0)
    {
        endpoint.weight = weight;
    }
    let table = maglev.then(|| table(&endpoints)).flatten();
    Arc::new(Candidates { generation, endpoints, table })
}

/// Maglev's table over these endpoints.
fn table(endpoints: &[Endpoint]) -> Option<Table> {
    let keys: Vec<_> = endpoints.iter().map(|endpoint| endpoint.address.to_string()).collect();
    let weights = endpoints.iter().map(|endpoint| endpoint.weight);
    let weighted: Vec<_> = keys.iter().map(String::as_str).zip(weights).collect();
    maglev::build(&weighted, maglev::DEFAULT_SIZE)
}

/// The table there was, with Maglev's choice for whoever belonged to an endpoint that is gone.
fn stand_in(old: &Candidates, new: &Candidates) -> Option<Table> {
    let (old_table, maglev) = (old.table.as_ref()?, new.table.as_ref()?);
    let places: Vec<Option<u32>> = old
        .endpoints
        .iter()
        .map(|endpoint| {
            let place = new.endpoints.iter().position(|new| new.id == endpoint.id)?;
            u32::try_from(place).ok()
        })
        .collect();
    let slot =
        |(hash, old): (u64, &u32)| places[*old as usize].unwrap_or_else(|| maglev.lookup(hash).0);
    let slots = (0..).zip(old_table.slots()).map(slot).collect();
    Table::new(slots, new.endpoints.len()).map(Table::standing_in)
}

fn find<'a>(among: &'a Candidates, endpoint: &Endpoint) -> Option<&'a Endpoint> {
    among.endpoints.iter().find(|other| other.id == endpoint.id)
}
