//! Active health checks: connects to endpoints, again and again.
//!
//! One task per endpoint. Nothing is judged here: what a check saw goes to the control loop, which
//! feeds it to the core's `Health`.

use std::net::SocketAddr;
use std::time::Duration;

use pointsman_core::{ClusterId, EndpointId};
use tokio::net::TcpStream;
use tokio::sync::mpsc::UnboundedSender;
use tokio::time::{Instant, sleep_until, timeout};

use crate::plan::{CheckPlan, Plan};
use crate::{random, runtime};

/// What one check saw.
#[derive(Debug, Clone, Copy)]
pub struct Seen {
    /// The endpoint's cluster.
    pub cluster: ClusterId,
    /// The endpoint.
    pub endpoint: EndpointId,
    /// Whether it accepted a connection in time.
    pub passed: bool,
}

/// Starts checking every endpoint that is to be checked.
pub fn start(plan: &Plan, seen: &UnboundedSender<Seen>) {
    for (cluster, plan) in (0..).map(ClusterId).zip(&plan.clusters) {
        let Some(check) = plan.check else { continue };
        for (endpoint, place) in (0..).map(EndpointId).zip(&plan.endpoints) {
            let tell = Target { cluster, endpoint, address: place.address };
            runtime::spawn(tell.check_for_ever(check, seen.clone()));
        }
    }
}

struct Target {
    cluster: ClusterId,
    endpoint: EndpointId,
    address: SocketAddr,
}

impl Target {
    /// Begins somewhere in the first interval, so that a thousand endpoints are not checked at the
    /// same moment, then and ever after.
    async fn check_for_ever(self, check: CheckPlan, seen: UnboundedSender<Seen>) {
        let mut next = Instant::now() + check.interval.mul_f64(random::fraction());
        loop {
            sleep_until(next).await;
            let passed = accepts(self.address, check.timeout).await;
            let what = Seen { cluster: self.cluster, endpoint: self.endpoint, passed };
            if seen.send(what).is_err() {
                return;
            }
            next = (next + jittered(check.interval)).max(Instant::now());
        }
    }
}

/// The interval, give or take a tenth: checks that once fell together drift apart.
fn jittered(interval: Duration) -> Duration {
    interval.mul_f64(0.9 + 0.2 * random::fraction())
}

async fn accepts(address: SocketAddr, limit: Duration) -> bool {
    match timeout(limit, TcpStream::connect(address)).await {
        Ok(Ok(_)) => true,
        Ok(Err(error)) => {
            tracing::debug!(%address, %error, "check failed");
            false
        }
        Err(_) => {
            tracing::debug!(%address, "check took too long");
            false
        }
    }
}

#[cfg(test)]
mod tests {
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
    fn a_check_passes_where_somebody_listens_and_fails_where_nobody_does() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = listener.local_addr().expect("its address");
        runtime::start(async {
            assert!(accepts(address, Duration::from_secs(10)).await);
            drop(listener);
            assert!(!accepts(address, Duration::from_secs(10)).await);
        });
    }
}
