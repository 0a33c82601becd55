//! What an author implements: one of the three shapes of a policy, and what it may do besides.

use serde::de::DeserializeOwned;

use crate::{Decision, Endpoints, Flow, Host, Report, Sample};

/// What allocates new flows to endpoints, one by one: the shape called `chooser`.
///
/// Exported by [`export!`](crate::export).
pub trait Policy: Sized + 'static {
    /// What the policy's `config` in the balancer's configuration is read as;
    /// [`NoConfig`](crate::NoConfig) if there is nothing to set.
    ///
    /// The default stands in where the configuration says nothing. A key that is not a field of
    /// this type is refused by name, with the fields that there are.
    type Config: DeserializeOwned + Default;

    /// Makes the policy from its config.
    ///
    /// # Errors
    ///
    /// Says in one line what is wrong with the config; the operator reads it.
    fn new(config: Self::Config) -> Result<Self, String>;

    /// Learns of a new list of endpoints. The list is handed to [`decide`](Self::decide) as well,
    /// so only a policy that keeps something per endpoint needs this.
    ///
    /// An endpoint may sit at another index than before; its address stays.
    fn endpoints_changed(&mut self, _endpoints: &Endpoints) {}

    /// Decides on one new flow, or again on one whose endpoint could not be reached (see
    /// [`Flow::avoid`]).
    fn decide(&mut self, flow: &Flow, endpoints: &Endpoints, host: &dyn Host) -> Decision;
}

/// What decides on all flows in advance: the shape called `table`.
///
/// It is asked once for each list of endpoints, off the data path; every flow after that costs one
/// look into the table. Exported by [`export_table!`](crate::export_table).
pub trait TablePolicy: Sized + 'static {
    /// As [`Policy::Config`].
    type Config: DeserializeOwned + Default;

    /// Makes the policy from its config.
    ///
    /// # Errors
    ///
    /// Says in one line what is wrong with the config; the operator reads it.
    fn new(config: Self::Config) -> Result<Self, String>;

    /// Makes the lookup table for a list of endpoints: 1 to 1,048,576 indices into it. A flow goes
    /// to the entry at the hash of its application key, or of its client's address, modulo the
    /// table's length.
    ///
    /// # Errors
    ///
    /// Says in one line why there is no table for this list. The cluster's fallback then serves.
    fn build(&mut self, endpoints: &Endpoints, host: &dyn Host) -> Result<Vec<u32>, String>;
}

/// What steers the balancer's own weighted policy: the shape called `weights`.
///
/// It is asked several times a second, off the data path. Exported by
/// [`export_weights!`](crate::export_weights).
pub trait WeightsPolicy: Sized + 'static {
    /// As [`Policy::Config`].
    type Config: DeserializeOwned + Default;

    /// Makes the policy from its config.
    ///
    /// # Errors
    ///
    /// Says in one line what is wrong with the config; the operator reads it.
    fn new(config: Self::Config) -> Result<Self, String>;

    /// As [`Policy::endpoints_changed`]. The weights are the configured ones.
    fn endpoints_changed(&mut self, _endpoints: &Endpoints) {}

    /// Says what each endpoint is to weigh from now on, by index, 1 to 65,535 each; `None` leaves
    /// everything as it is. `samples` is by endpoint too.
    fn tick(
        &mut self,
        now_ms: u64,
        samples: &[Sample],
        endpoints: &Endpoints,
        host: &dyn Host,
    ) -> Option<Vec<u32>>;
}

/// A [`Policy`] that hears what became of its flows: `export!(P: feedback)`.
pub trait Feedback: Policy {
    /// Called several times a second, between flows, whether any have ended or not.
    fn tick(&mut self, report: &Report<'_>, endpoints: &Endpoints, host: &dyn Host);
}

/// A policy of any shape that hands over what it knows when a newer version takes its place:
/// `export!(P: state)`.
pub trait KeepsState {
    /// What is to be handed over; at most 64 KiB. Its first byte is well spent on a version.
    fn snapshot(&self) -> Vec<u8>;

    /// Takes over from a predecessor, which may be an older version of the policy or another one,
    /// before the first endpoints are known.
    ///
    /// # Errors
    ///
    /// Says in one line why it cannot; the operator reads it, and nothing is swapped. A policy that
    /// can do without starts anew instead.
    fn restore(&mut self, state: &[u8]) -> Result<(), String>;
}
