//! One policy as the host runs it.
//!
//! The host's calls end up here, and a unit test makes the same ones: it drives what the balancer
//! will drive. There is one type for each shape of a policy.

use crate::{Decision, Endpoints, Feedback, Flow, Host, KeepsState, Policy, Report, Sample};
use crate::{TablePolicy, WeightsPolicy, config, schema};

/// A [`Policy`] with the list of endpoints it was last given.
#[derive(Debug)]
pub struct Instance<P> {
    policy: P,
    endpoints: Endpoints,
}

impl<P: Policy> Instance<P> {
    /// Makes the policy from its config as JSON; `null` is the default.
    ///
    /// # Errors
    ///
    /// If the config does not fit [`Policy::Config`], or the policy refuses it.
    pub fn configure(config: &str) -> Result<Self, String> {
        let policy = P::new(config::parse(config)?)?;
        Ok(Self { policy, endpoints: Endpoints::default() })
    }

    /// What it may be configured with, as a JSON schema.
    #[must_use]
    pub fn config_schema() -> String {
        schema::of::<P::Config>()
    }

    /// Gives the policy a new list of endpoints.
    pub fn endpoints_changed(&mut self, endpoints: Endpoints) {
        self.endpoints = endpoints;
        self.policy.endpoints_changed(&self.endpoints);
    }

    /// Asks the policy about one flow.
    pub fn decide(&mut self, flow: &Flow, host: &dyn Host) -> Decision {
        self.policy.decide(flow, &self.endpoints, host)
    }

    /// Tells the policy what became of its flows.
    pub fn tick(&mut self, report: &Report<'_>, host: &dyn Host)
    where
        P: Feedback,
    {
        self.policy.tick(report, &self.endpoints, host);
    }

    /// The policy itself.
    pub const fn policy(&self) -> &P {
        &self.policy
    }
}

/// A [`TablePolicy`] as the host runs it.
#[derive(Debug)]
pub struct TableInstance<P> {
    policy: P,
}

impl<P: TablePolicy> TableInstance<P> {
    /// As [`Instance::configure`].
    ///
    /// # Errors
    ///
    /// If the config does not fit [`TablePolicy::Config`], or the policy refuses it.
    pub fn configure(config: &str) -> Result<Self, String> {
        Ok(Self { policy: P::new(config::parse(config)?)? })
    }

    /// What it may be configured with, as a JSON schema.
    #[must_use]
    pub fn config_schema() -> String {
        schema::of::<P::Config>()
    }

    /// Asks the policy for its table.
    ///
    /// # Errors
    ///
    /// If the policy has none for this list.
    pub fn build(&mut self, endpoints: &Endpoints, host: &dyn Host) -> Result<Vec<u32>, String> {
        self.policy.build(endpoints, host)
    }

    /// The policy itself.
    pub const fn policy(&self) -> &P {
        &self.policy
    }
}

/// A [`WeightsPolicy`] with the list of endpoints it was last given.
#[derive(Debug)]
pub struct WeightsInstance<P> {
    policy: P,
    endpoints: Endpoints,
}

impl<P: WeightsPolicy> WeightsInstance<P> {
    /// As [`Instance::configure`].
    ///
    /// # Errors
    ///
    /// If the config does not fit [`WeightsPolicy::Config`], or the policy refuses it.
    pub fn configure(config: &str) -> Result<Self, String> {
        let policy = P::new(config::parse(config)?)?;
        Ok(Self { policy, endpoints: Endpoints::default() })
    }

    /// What it may be configured with, as a JSON schema.
    #[must_use]
    pub fn config_schema() -> String {
        schema::of::<P::Config>()
    }

    /// Gives the policy a new list of endpoints.
    pub fn endpoints_changed(&mut self, endpoints: Endpoints) {
        self.endpoints = endpoints;
        self.policy.endpoints_changed(&self.endpoints);
    }

    /// Asks the policy for its weights.
    pub fn tick(&mut self, now_ms: u64, samples: &[Sample], host: &dyn Host) -> Option<Vec<u32>> {
        self.policy.tick(now_ms, samples, &self.endpoints, host)
    }

    /// The policy itself.
    pub const fn policy(&self) -> &P {
        &self.policy
    }
}

impl<P: KeepsState> KeepsState for Instance<P> {
    fn snapshot(&self) -> Vec<u8> {
        self.policy.snapshot()
    }

    fn restore(&mut self, state: &[u8]) -> Result<(), String> {
        self.policy.restore(state)
    }
}

impl<P: KeepsState> KeepsState for TableInstance<P> {
    fn snapshot(&self) -> Vec<u8> {
        self.policy.snapshot()
    }

    fn restore(&mut self, state: &[u8]) -> Result<(), String> {
        self.policy.restore(state)
    }
}

impl<P: KeepsState> KeepsState for WeightsInstance<P> {
    fn snapshot(&self) -> Vec<u8> {
        self.policy.snapshot()
    }

    fn restore(&mut self, state: &[u8]) -> Result<(), String> {
        self.policy.restore(state)
    }
}
