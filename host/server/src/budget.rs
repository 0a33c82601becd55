//! How much of what a plan asks for this system allows.
//!
//! A session of TCP has two descriptors, whichever worker has it, so the listeners' limits bound
//! them over all workers. An upstream port has one, and every worker has its own ports. Where both
//! together are more than there are, each gets its share.
//!
//! Upstream ports are also local ports, of which the system gives out some 28,000 to all its
//! processes. A worker that finds none left would live on what the others happen to have left it.

use std::fs;

use crate::plan::{ListenerPlan, Plan};

/// The first and the last port that the system gives to who names none.
const LOCAL_PORTS: &str = "/proc/sys/net/ipv4/ip_local_port_range";
/// The share of those that other processes, and our own checks, are left: one in so many.
const LOCAL_PORTS_LEFT: u64 = 8;

/// Descriptors that are not for traffic: listeners, rings, checks, the admin interface.
const DESCRIPTORS_RESERVED: u64 = 256;
/// Fewer sessions, or ports of a listener, than this are no service.
const LEAST: u64 = 16;
/// Places for listeners that a reload may add, or that leave and have not ended yet.
const LISTENERS_SPARE: usize = 256;
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
    /// Listeners at a time, with those that leave.
    pub listeners_max: u16,
    /// What there are too few descriptors for.
    shortage: Option<Shortage>,
    /// Upstream ports over all workers: how many are wanted, and how many the system has, if that is
    /// less.
    local_ports: Option<(u64, u64)>,
}

/// What there is to be divided.
#[derive(Debug, Clone, Copy)]
pub struct Supply {
    /// Descriptors of this process.
    pub descriptors: u64,
    /// Local ports that the system gives out.
    pub local_ports: u64,
}

impl Supply {
    /// With so many descriptors, and the local ports that the system says it has.
    pub fn read(descriptors: u64) -> Self {
        let range = fs::read_to_string(LOCAL_PORTS).ok();
        let local_ports = range.as_deref().and_then(ports_in).unwrap_or(u64::MAX);
        Self { descriptors, local_ports }
    }
}

/// How many ports lie in a range that is told by its ends.
fn ports_in(range: &str) -> Option<u64> {
    let mut ends = range.split_whitespace().map(str::parse::<u64>);
    let (first, last) = (ends.next()?.ok()?, ends.next()?.ok()?);
    Some((last + 1).saturating_sub(first))
}

impl Budget {
    /// Divides the supply, and lowers the upstream ports of listeners that want more than their
    /// share: the balancer goes by what its listeners may open, and the ring has room for just that.
    pub fn divide(plan: &mut Plan, supply: Supply) -> Self {
        let local_ports = divide_local_ports(plan, supply.local_ports);
        let descriptors = supply.descriptors;
        let datagram_flows = flows(plan, true);
        let sessions = flows(plan, false);
        let ports = plan.workers as u64 * ports(plan);
        let wanted = sessions * 2 + ports;
        let possible = descriptors.saturating_sub(DESCRIPTORS_RESERVED);
        let share = |count: u64| count.min(part(count, possible, wanted));
        let sessions_possible = share(sessions).max(LEAST.min(sessions));
        if wanted > possible {
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
            listeners_max: u16::try_from(plan.listeners.len() + LISTENERS_SPARE)
                .unwrap_or(u16::MAX),
            shortage: (wanted > possible).then_some(Shortage {
                sessions: (sessions, sessions_possible),
                ports: (ports, plan.workers as u64 * self::ports(plan)),
                descriptors,
            }),
            local_ports,
        }
    }

    /// Tells of what a reload wants and the start has made no room for.
    pub fn warn_beyond(&self, start: &Self) {
        let sorts = [
            ("connections", self.sessions_max, start.sessions_max),
            ("datagrams", self.datagram_flows_max, start.datagram_flows_max),
        ];
        for (of, wanted, possible) in sorts.into_iter().filter(|(_, wanted, had)| wanted > had) {
            tracing::warn!(
                of,
                wanted,
                possible,
                "fewer flows than max_flows are possible: restart to make room for more"
            );
        }
    }

    /// Tells of what will not be possible.
    pub fn warn(&self) {
        // The default wants all that a system has, so this is news and no warning.
        if let Some((wanted, possible)) = self.local_ports {
            tracing::info!(
                wanted,
                possible,
                "fewer ports than upstream_ports_max are possible: workers share what \
                 net.ipv4.ip_local_port_range has"
            );
        }
        let Some(shortage) = &self.shortage else { return };
        let Shortage { sessions, ports, descriptors } = *shortage;
        if let (wanted, possible) = sessions
            && possible < wanted
        {
            tracing::warn!(
                wanted,
                possible,
                descriptors,
                "fewer flows than max_flows are possible: raise the limit of open files (ulimit -n)"
            );
        }
        if let (wanted, possible) = ports
            && possible < wanted
        {
            tracing::warn!(
                wanted,
                possible,
                descriptors,
                "fewer ports than upstream_ports_max are possible: raise the limit of open files \
                 (ulimit -n)"
            );
        }
    }
}

/// What is wanted and what is possible, over all workers.
#[derive(Debug, PartialEq, Eq)]
struct Shortage {
    sessions: (u64, u64),
    ports: (u64, u64),
    descriptors: u64,
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

/// Lowers the upstream ports of listeners to their share of the system's. Tells how many are wanted
/// and how many are possible, if they are more.
fn divide_local_ports(plan: &mut Plan, local_ports: u64) -> Option<(u64, u64)> {
    let wanted = plan.workers as u64 * ports(plan);
    let possible = local_ports - local_ports / LOCAL_PORTS_LEFT;
    if wanted <= possible {
        return None;
    }
    for listener in plan.listeners.iter_mut().filter(|listener| listener.is_datagrams()) {
        let count = listener.datagrams.ports_max;
        let share = part(count.into(), possible, wanted).max(LEAST);
        listener.datagrams.ports_max = count.min(clamped(share));
    }
    Some((wanted, plan.workers as u64 * ports(plan)))
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
        divide_supply(Supply { descriptors, local_ports: 65_536 })
    }

    fn divide_supply(supply: Supply) -> (Budget, u32) {
        let config = crate::config::read(TEXT).config;
        let mut plan = resolve(&config, &PluginFolders::default()).expect("the test's plan");
        let budget = Budget::divide(&mut plan, supply);
        (budget, plan.listeners[1].datagrams.ports_max)
    }

    #[test]
    fn with_descriptors_enough_everything_is_as_planned() {
        let (budget, ports) = divide(256 + 2 * 1000 + 2 * 2000);
        let all = Budget {
            sessions_max: 1001,
            datagram_flows_max: 5000,
            ports_max: 2000,
            listeners_max: 2 + 256,
            shortage: None,
            local_ports: None,
        };
        assert_eq!((budget, ports), (all, 2000));
    }

    #[test]
    fn short_of_descriptors_sessions_and_ports_shrink_alike() {
        let descriptors = 256 + 1000 + 2000;
        let (budget, ports) = divide(descriptors);
        let shortage = Shortage { sessions: (1000, 500), ports: (4000, 2000), descriptors };
        let half = Budget {
            sessions_max: 501,
            datagram_flows_max: 5000,
            ports_max: 1000,
            listeners_max: 2 + 256,
            shortage: Some(shortage),
            local_ports: None,
        };
        assert_eq!((budget, ports), (half, 1000));
    }

    #[test]
    fn almost_without_descriptors_there_is_still_a_service() {
        let (budget, ports) = divide(10);
        assert_eq!((budget.sessions_max, ports), (17, 16));
    }

    #[test]
    fn no_more_ports_are_opened_than_the_system_gives_out() {
        let (budget, ports) = divide_supply(Supply { descriptors: 1 << 20, local_ports: 1600 });
        assert_eq!((budget.ports_max, ports), (700, 700), "two workers leave one port in eight");
        assert_eq!(budget.local_ports, Some((4000, 1400)));
        let (budget, ports) = divide_supply(Supply { descriptors: 1 << 20, local_ports: 4572 });
        assert_eq!((budget.local_ports, ports), (None, 2000));
    }

    #[test]
    fn a_range_of_ports_has_both_its_ends() {
        assert_eq!(ports_in("32768\t60999\n"), Some(28_232));
        assert_eq!(ports_in("5000 5000"), Some(1));
        assert_eq!(ports_in("6000 5000"), Some(0));
        assert_eq!(ports_in("nonsense"), None);
    }
}
