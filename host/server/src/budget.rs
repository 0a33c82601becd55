//! How much of what a plan asks for the descriptors of this process allow.
//!
//! A session of TCP has two descriptors, whichever worker has it, so the listeners' limits bound
//! them over all workers. An upstream port has one, and every worker has its own ports. Where both
//! together are more than there are, each gets its share.

use crate::plan::{ListenerPlan, Plan};

/// Descriptors that are not for traffic: listeners, rings, checks, the admin interface.
const DESCRIPTORS_RESERVED: u64 = 256;
/// Fewer sessions, or ports of a listener, than this are no service.
const LEAST: u64 = 16;
/// A session's number must leave room for its two links in 32 bits.
const SESSIONS_MAX: u64 = 1 << 30;

/// What each worker may have.
#[derive(Debug, PartialEq, Eq)]
pub struct Budget {
    /// Sessions of TCP at a time.
    pub sessions_max: u32,
    /// Flows of datagrams at a time.
    pub datagram_flows_max: u32,
    /// Upstream ports at a time.
    pub ports_max: u32,
}

impl Budget {
    /// Divides the descriptors, and lowers the upstream ports of listeners that want more than
    /// their share: the balancer goes by what its listeners may open, and the ring has room for
    /// just that.
    pub fn divide(plan: &mut Plan, descriptors: u64) -> Self {
        let datagram_flows = flows(plan, true);
        let sessions = flows(plan, false);
        let ports = plan.workers as u64 * ports(plan);
        let wanted = sessions * 2 + ports;
        let possible = descriptors.saturating_sub(DESCRIPTORS_RESERVED);
        let share = |count: u64| count.min(part(count, possible, wanted));
        let sessions_possible = share(sessions).max(LEAST.min(sessions));
        if wanted > possible {
            tell(&Shortage { sessions, sessions_possible, ports, descriptors });
            for listener in plan.listeners.iter_mut().filter(|listener| listener.is_datagrams()) {
                let port_share = share(listener.datagrams.ports_max.into()).max(LEAST);
                let port_share = u32::try_from(port_share).unwrap_or(u32::MAX);
                listener.datagrams.ports_max = listener.datagrams.ports_max.min(port_share);
            }
        }
        // One more than the listeners may have, so that the listener's limit is what refuses a flow
        // and is named for it.
        Self {
            sessions_max: clamped((sessions_possible + 1).min(SESSIONS_MAX)),
            datagram_flows_max: clamped(datagram_flows),
            ports_max: clamped(self::ports(plan)),
        }
    }
}

struct Shortage {
    sessions: u64,
    sessions_possible: u64,
    ports: u64,
    descriptors: u64,
}

fn tell(shortage: &Shortage) {
    let Shortage { sessions: wanted, sessions_possible: possible, ports, descriptors } = *shortage;
    if possible < wanted {
        tracing::warn!(
            wanted,
            possible,
            descriptors,
            "fewer flows than max_flows are possible: raise the limit of open files (ulimit -n)"
        );
    }
    if ports > 0 {
        tracing::warn!(
            wanted = ports,
            descriptors,
            "fewer ports than upstream_ports_max are possible: raise the limit of open files \
             (ulimit -n)"
        );
    }
}

/// Flows that the listeners of datagrams, or the others, may have together.
fn flows(plan: &Plan, datagrams: bool) -> u64 {
    let listeners = plan.listeners.iter().filter(|found| found.is_datagrams() == datagrams);
    listeners.map(|listener| u64::from(listener.flows_max)).sum()
}

/// Upstream ports that one worker may have.
fn ports(plan: &Plan) -> u64 {
    let listeners = plan.listeners.iter().filter(|listener| ListenerPlan::is_datagrams(listener));
    listeners.map(|listener| u64::from(listener.datagrams.ports_max)).sum()
}

/// `count` reduced as `possible` to `wanted`.
fn part(count: u64, possible: u64, wanted: u64) -> u64 {
    let part = u128::from(count) * u128::from(possible) / u128::from(wanted.max(1));
    u64::try_from(part).unwrap_or(u64::MAX)
}

fn clamped(count: u64) -> u32 {
    u32::try_from(count).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::{PluginFolders, resolve};

    const TEXT: &str = r#"
workers = 2
[[listeners]]
name = "web"
address = "127.0.0.1:1"
cluster = "c"
max_flows = 1000
[[listeners]]
name = "dns"
address = "127.0.0.1:1"
protocol = "udp"
cluster = "c"
max_flows = 5000
upstream_ports_max = 2000
[[clusters]]
name = "c"
endpoints = [{ address = "127.0.0.1:9" }]
"#;

    fn divide(descriptors: u64) -> (Budget, u32) {
        let config = crate::config::read(TEXT).config;
        let mut plan = resolve(&config, &PluginFolders::default()).expect("the test's plan");
        let budget = Budget::divide(&mut plan, descriptors);
        (budget, plan.listeners[1].datagrams.ports_max)
    }

    #[test]
    fn with_descriptors_enough_everything_is_as_planned() {
        let (budget, ports) = divide(256 + 2 * 1000 + 2 * 2000);
        let all = Budget { sessions_max: 1001, datagram_flows_max: 5000, ports_max: 2000 };
        assert_eq!((budget, ports), (all, 2000));
    }

    #[test]
    fn short_of_descriptors_sessions_and_ports_shrink_alike() {
        let (budget, ports) = divide(256 + 1000 + 2000);
        let half = Budget { sessions_max: 501, datagram_flows_max: 5000, ports_max: 1000 };
        assert_eq!((budget, ports), (half, 1000));
    }

    #[test]
    fn almost_without_descriptors_there_is_still_a_service() {
        let (budget, ports) = divide(10);
        assert_eq!((budget.sessions_max, ports), (17, 16));
    }
}
