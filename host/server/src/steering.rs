//! The guests that decide on no flow themselves: they make tables, or say what endpoints weigh.
//!
//! They run on a thread of their own, so that one which is slow or broken holds up neither traffic
//! nor the control thread:
//!
//! ```text
//!   control thread                  policy-steering
//!   endpoints changed  ──Look────▶  build ──▶ Steered: a table      ──▶ World::take, published
//!                                   tick  ──▶ Steered: weights      ──▶
//!                                   fault ──▶ made anew later; what stood before stands in
//! ```

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, SyncSender, channel, sync_channel};
use std::thread;
use std::time::{Duration, Instant};

use pointsman_core::{Candidates, ClusterId, Generation};
use pointsman_plugin::{
    GuestFault, InstanceError, Module, PolicySettings, PolicyStats, TableGuest, WeightsGuest,
};
use pointsman_ring::Clock;
use tokio::sync::mpsc::UnboundedSender;

use crate::world::{Author, Made, Role};

/// How long the first attempt to make a guest anew waits; each next in a row waits twice as long.
const BACKOFF_MIN: Duration = Duration::from_millis(100);
/// The longest wait.
const BACKOFF_MAX: Duration = Duration::from_secs(5);
/// How long a guest's state is waited for: several of its deadlines.
const STATE_PATIENCE: Duration = Duration::from_secs(2);
/// Between looks where nothing is due.
const IDLE: Duration = Duration::from_secs(3600);

/// How many guests there have been; each gets a number, so that what one has made is not taken for
/// its successor's.
static AUTHORS: AtomicU64 = AtomicU64::new(0);

/// Which policy of which cluster.
pub type Place = (ClusterId, Role);

/// What a guest has made.
#[derive(Debug)]
pub struct Steered {
    /// For whom.
    pub place: Place,
    /// Which guest.
    pub by: Author,
    /// For which list of endpoints.
    pub of: Generation,
    /// What.
    pub made: Made,
}

/// The way to the thread.
pub struct Steering {
    orders: Sender<Order>,
}

enum Order {
    Seat(Place, Box<Steerer>),
    Vacate(Place),
    Look(ClusterId, Arc<Candidates>),
    State(ClusterId, SyncSender<Option<Vec<u8>>>),
}

impl Steering {
    /// Starts the thread; what guests make goes to `steered`.
    ///
    /// # Errors
    /// The system refuses the thread.
    pub fn start(steered: UnboundedSender<Steered>) -> io::Result<Self> {
        let (orders, taken) = channel();
        let mut bench = Bench { seats: Vec::new(), steered };
        let body = move || bench.run(&taken);
        thread::Builder::new().name("policy-steering".into()).spawn(body)?;
        Ok(Self { orders })
    }

    /// Puts a guest in its place; the one before is dropped there.
    pub fn seat(&self, place: Place, steerer: Steerer) {
        self.order(Order::Seat(place, Box::new(steerer)));
    }

    /// Drops the guest of a place, if there is one.
    pub fn vacate(&self, place: Place) {
        self.order(Order::Vacate(place));
    }

    /// Tells a cluster's guests of its endpoints, which may have changed.
    pub fn look(&self, cluster: ClusterId, candidates: Arc<Candidates>) {
        self.order(Order::Look(cluster, candidates));
    }

    /// What the guest of a cluster's live policy would hand over. Waits for it, so that this is
    /// nothing for the control thread.
    pub fn state(&self, cluster: ClusterId) -> Option<Vec<u8>> {
        let (reply, state) = sync_channel(1);
        self.order(Order::State(cluster, reply));
        state.recv_timeout(STATE_PATIENCE).ok().flatten()
    }

    fn order(&self, order: Order) {
        // Fails only if the thread is gone, and then tables and weights stay as they are.
        let _ = self.orders.send(order);
    }
}

/// What a guest of this sort is made from.
#[derive(Clone)]
pub struct Recipe {
    /// The module: of tables, or of weights.
    pub module: Module,
    /// What the guest is configured with.
    pub settings: Arc<PolicySettings>,
    /// Where its faults are counted.
    pub stats: Arc<PolicyStats>,
    /// How often it is asked for weights; `None` if it makes tables.
    pub tick: Option<Duration>,
}

/// A guest, and what it is to do next.
pub struct Steerer {
    author: Author,
    recipe: Recipe,
    /// `None` after a fault.
    guest: Option<Guest>,
    candidates: Arc<Candidates>,
    due: Instant,
    /// How often in a row it has failed.
    failures: u32,
    weights: Vec<u32>,
}

enum Guest {
    Table(TableGuest),
    Weights(WeightsGuest),
}

/// Why a guest has made nothing.
#[derive(Debug, thiserror::Error)]
pub enum SteerError {
    /// There is no guest.
    #[error(transparent)]
    Instance(#[from] InstanceError),
    /// It failed.
    #[error("the policy failed to make {what} ({fault}); see its log")]
    Fault {
        /// A table, or weights.
        what: &'static str,
        /// How.
        fault: GuestFault,
    },
}

impl Steerer {
    /// Makes a guest, and lets it make something for these endpoints at once.
    ///
    /// # Errors
    /// The guest fails, or refuses its configuration or its predecessor's state.
    pub fn start(
        recipe: Recipe,
        candidates: &Arc<Candidates>,
        state: Option<&[u8]>,
    ) -> Result<(Self, Option<Made>), SteerError> {
        let guest = Some(recipe.guest(state)?);
        let mut steerer = Self {
            author: Author(AUTHORS.fetch_add(1, Relaxed)),
            recipe,
            guest,
            candidates: Arc::clone(candidates),
            due: Instant::now(),
            failures: 0,
            weights: Vec::new(),
        };
        let made = steerer.make()?;
        Ok((steerer, made))
    }

    /// Its name among all guests.
    pub fn author(&self) -> Author {
        self.author
    }

    fn make(&mut self) -> Result<Option<Made>, SteerError> {
        self.due = Instant::now() + self.recipe.tick.unwrap_or(IDLE);
        if self.candidates.endpoints.is_empty() {
            return Ok(None);
        }
        let guest = match &mut self.guest {
            Some(guest) => guest,
            absent @ None => absent.insert(self.recipe.guest(None)?),
        };
        match guest {
            Guest::Table(guest) => {
                let table = guest.build(Clock.now(), &self.candidates);
                let what = "a table";
                table.map(Made::Table).map(Some).map_err(|fault| SteerError::Fault { what, fault })
            }
            Guest::Weights(guest) => {
                let weights = guest.tick(Clock.now(), &self.candidates);
                let what = "weights";
                let weights = weights.map_err(|fault| SteerError::Fault { what, fault })?;
                let weights = weights.filter(|weights| *weights != self.weights);
                if let Some(weights) = &weights {
                    self.weights.clone_from(weights);
                }
                Ok(weights.map(Made::Weights))
            }
        }
    }

    /// Does what is due. A guest that fails is made anew later, and later with each time.
    fn work(&mut self) -> Option<Made> {
        match self.make() {
            Ok(made) => {
                self.failures = 0;
                made
            }
            Err(error) => {
                let policy = &*self.recipe.settings.name;
                tracing::warn!(policy, %error, "what it made before stands in");
                self.give_up_guest();
                None
            }
        }
    }

    /// A guest that has failed is not entered again.
    fn give_up_guest(&mut self) {
        self.guest = None;
        self.due = Instant::now() + backoff(self.failures);
        self.failures = self.failures.saturating_add(1);
    }

    fn look(&mut self, candidates: &Arc<Candidates>) {
        if self.candidates.generation != candidates.generation {
            self.candidates = Arc::clone(candidates);
            self.weights.clear();
            // A guest that has failed waits for its time, whatever else happens.
            if self.guest.is_some() {
                self.due = Instant::now();
            }
        }
    }

    fn state(&mut self) -> Option<Vec<u8>> {
        let state = match self.guest.as_mut()? {
            Guest::Table(guest) => guest.state(),
            Guest::Weights(guest) => guest.state(),
        };
        state.inspect_err(|_| self.give_up_guest()).ok().flatten()
    }
}

impl Recipe {
    fn guest(&self, state: Option<&[u8]>) -> Result<Guest, InstanceError> {
        let (settings, stats) = (Arc::clone(&self.settings), Arc::clone(&self.stats));
        if self.tick.is_some() {
            WeightsGuest::new(&self.module, settings, stats, state).map(Guest::Weights)
        } else {
            TableGuest::new(&self.module, settings, stats, state).map(Guest::Table)
        }
    }
}

/// The guests, and where what they make goes.
struct Bench {
    seats: Vec<(Place, Box<Steerer>)>,
    steered: UnboundedSender<Steered>,
}

impl Bench {
    fn run(&mut self, orders: &Receiver<Order>) {
        loop {
            let due = self.seats.iter().map(|(_, steerer)| steerer.due).min();
            let wait = due.map_or(IDLE, |due| due.saturating_duration_since(Instant::now()));
            match orders.recv_timeout(wait) {
                Ok(order) => self.obey(order),
                Err(RecvTimeoutError::Timeout) => self.work(),
                Err(RecvTimeoutError::Disconnected) => return,
            }
        }
    }

    fn obey(&mut self, order: Order) {
        match order {
            Order::Seat(place, steerer) => {
                self.seats.retain(|(taken, _)| *taken != place);
                self.seats.push((place, steerer));
            }
            Order::Vacate(place) => self.seats.retain(|(taken, _)| *taken != place),
            Order::Look(cluster, candidates) => {
                for (_, steerer) in self.seats.iter_mut().filter(|(place, _)| place.0 == cluster) {
                    steerer.look(&candidates);
                }
            }
            Order::State(cluster, reply) => {
                let live = self.seats.iter_mut().find(|(at, _)| *at == (cluster, Role::Live));
                // Nobody waits for the answer any longer if this fails.
                drop(reply.try_send(live.and_then(|(_, steerer)| steerer.state())));
            }
        }
    }

    fn work(&mut self) {
        let now = Instant::now();
        for (place, steerer) in self.seats.iter_mut().filter(|(_, steerer)| steerer.due <= now) {
            let Some(made) = steerer.work() else { continue };
            let (by, of) = (steerer.author, steerer.candidates.generation);
            // Fails only when the control thread has ended.
            let _ = self.steered.send(Steered { place: *place, by, of, made });
        }
    }
}

/// How long to wait before a guest is made anew, after so many failures in a row before this one.
fn backoff(failures: u32) -> Duration {
    BACKOFF_MIN.saturating_mul(1 << failures.min(16)).min(BACKOFF_MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_wait_doubles_up_to_its_bound() {
        assert_eq!(backoff(0), BACKOFF_MIN);
        assert_eq!(backoff(1), BACKOFF_MIN * 2);
        assert_eq!(backoff(u32::MAX), BACKOFF_MAX);
    }
}
