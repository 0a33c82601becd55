//! One policy as the host runs it.

use crate::{Decision, Endpoints, Flow, Host, Policy, config};

/// A policy with the list of endpoints it was last given.
///
/// The host's calls end up here, and a unit test makes the same ones: it drives what the balancer
/// will drive.
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

    /// Gives the policy a new list of endpoints.
    pub fn endpoints_changed(&mut self, endpoints: Endpoints) {
        self.endpoints = endpoints;
        self.policy.endpoints_changed(&self.endpoints);
    }

    /// Asks the policy about one flow.
    pub fn decide(&mut self, flow: &Flow, host: &dyn Host) -> Decision {
        self.policy.decide(flow, &self.endpoints, host)
    }

    /// The policy itself.
    pub const fn policy(&self) -> &P {
        &self.policy
    }
}
