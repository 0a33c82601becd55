//! Active health checks: asks endpoints whether they serve, again and again.
//!
//! One task per endpoint, for as long as there is that endpoint. Nothing is judged here: what a check
//! saw goes to the control loop, which feeds it to the core's `Health`.

pub mod check;
pub mod tls;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use pointsman_core::{ClusterId, EndpointId};
use tokio::sync::mpsc::UnboundedSender;
use tokio::sync::oneshot;
use tokio::time::{Instant, sleep_until};

use crate::plan::{CheckPlan, Plan};
use crate::world::{self, World};
use crate::{random, runtime};

/// What one check saw.
#[derive(Debug, Clone)]
pub struct Seen {
    /// The endpoint's cluster.
    pub cluster: ClusterId,
    /// The endpoint.
    pub endpoint: EndpointId,
    /// What was wrong, if it did not answer as it should, in time.
    pub failed: Option<String>,
}

/// Everybody who is checking.
pub struct Prober {
    seen: UnboundedSender<Seen>,
    /// The census at which endpoints were last looked at.
    census: Option<u64>,
    tasks: BTreeMap<(ClusterId, EndpointId), Task>,
}

/// Somebody who checks one endpoint.
struct Task {
    /// How.
    check: Arc<CheckPlan>,
    /// It ends when this is dropped.
    _end: oneshot::Sender<()>,
}

impl Prober {
    /// Checks nobody yet; what checks see goes to `seen`.
    pub fn new(seen: UnboundedSender<Seen>) -> Self {
        Self { seen, census: None, tasks: BTreeMap::new() }
    }

    /// Starts checking the endpoints that have come, or are to be checked otherwise, and lets go of
    /// those that have gone.
    pub fn follow(&mut self, plan: &Plan, world: &World) {
        if self.census.replace(world.census()) == Some(world.census()) {
            return;
        }
        let mut gone = std::mem::take(&mut self.tasks);
        for (cluster, plan) in (0..).map(ClusterId).zip(&plan.clusters) {
            let Some(check) = &plan.check else { continue };
            for target in world.targets(cluster) {
                let name = (cluster, target.id);
                let known = gone.remove(&name).filter(|task| Arc::ptr_eq(&task.check, check));
                let task = known.unwrap_or_else(|| self.start(cluster, &target, check));
                self.tasks.insert(name, task);
            }
        }
    }

    fn start(&self, cluster: ClusterId, target: &world::Target, check: &Arc<CheckPlan>) -> Task {
        let port = check.port.unwrap_or(target.address.port());
        let address = SocketAddr::new(target.address.ip(), port);
        let checked = Target { cluster, endpoint: target.id, address, was_up: target.up };
        let checks = checked.check_for_ever(Arc::clone(check), self.seen.clone());
        let (end, ended) = oneshot::channel::<()>();
        runtime::spawn(async {
            tokio::select! {
                () = checks => {}
                _ = ended => {}
            }
        });
        Task { check: Arc::clone(check), _end: end }
    }
}

struct Target {
    cluster: ClusterId,
    endpoint: EndpointId,
    address: SocketAddr,
    was_up: bool,
}

impl Target {
    /// Begins somewhere in the first interval, so that a thousand endpoints are not checked at the
    /// same moment, then and ever after; but one that is waited for is checked at once.
    async fn check_for_ever(self, plan: Arc<CheckPlan>, seen: UnboundedSender<Seen>) {
        let wait = if self.was_up { random::fraction() } else { 0.0 };
        let mut next = Instant::now() + plan.interval.mul_f64(wait);
        let mut doubt = Doubt { is_down: !self.was_up, ..Doubt::default() };
        loop {
            sleep_until(next).await;
            let mut interval = plan.interval;
            if let Some(checked) = self.check(&plan).await {
                let passed = checked.is_ok();
                let failed = checked.err().map(|error| error.to_string());
                let what = Seen { cluster: self.cluster, endpoint: self.endpoint, failed };
                if seen.send(what).is_err() {
                    return;
                }
                if doubt.after(passed, &plan) {
                    interval = plan.fast_interval;
                }
            }
            next = (next + jittered(interval)).max(Instant::now());
        }
    }

    /// `None` if it could not be asked, for want of something of our own.
    async fn check(&self, plan: &CheckPlan) -> Option<Result<(), check::Failed>> {
        let checked = plan.check.run((self.address, plan.proxy), plan.timeout).await;
        if let Err(error) = &checked {
            tracing::debug!(address = %self.address, %error, "check failed");
            if error.is_ours(&self.address) {
                return None;
            }
        }
        Some(checked)
    }
}

/// Whether the last checks speak against what is believed of an endpoint: then the next ones follow
/// faster, until it is certain.
#[derive(Debug, Default)]
struct Doubt {
    is_down: bool,
    contradictions: u32,
}

impl Doubt {
    /// Takes in a check; tells whether there is doubt.
    fn after(&mut self, passed: bool, plan: &CheckPlan) -> bool {
        self.contradictions = if passed == self.is_down { self.contradictions + 1 } else { 0 };
        let needed = if self.is_down { plan.thresholds.rise } else { plan.thresholds.fall };
        if self.contradictions >= needed {
            *self = Self { is_down: !self.is_down, contradictions: 0 };
        }
        self.contradictions > 0
    }
}

/// The interval, give or take a tenth: checks that once fell together drift apart.
fn jittered(interval: Duration) -> Duration {
    interval.mul_f64(0.9 + 0.2 * random::fraction())
}

#[cfg(test)]
mod tests {
    use pointsman_core::health::Thresholds;

    use super::*;

    #[test]
    fn an_interval_varies_by_a_tenth() {
        let interval = Duration::from_millis(1000);
        for _ in 0..1000 {
            let jittered = jittered(interval).as_millis();
            assert!((900..=1100).contains(&jittered), "{jittered}");
        }
    }

    #[test]
    fn checks_follow_faster_until_it_is_certain_what_they_mean() {
        let plan = CheckPlan {
            check: check::Check::Tcp,
            proxy: None,
            port: None,
            interval: Duration::from_secs(2),
            fast_interval: Duration::from_millis(500),
            timeout: Duration::from_secs(1),
            thresholds: Thresholds { rise: 2, fall: 3 },
            written: crate::config::Health::default(),
        };
        let mut doubt = Doubt::default();
        let passed = [true, false, true, false, false, false, false, true, true, true];
        let doubts = passed.map(|passed| doubt.after(passed, &plan));
        let expected = [false, true, false, true, true, false, false, true, false, false];
        assert_eq!(doubts, expected);
    }
}
