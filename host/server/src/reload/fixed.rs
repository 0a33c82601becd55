//! What only a start can change: what was set aside then, and who the process is.

use crate::budget::Budget;
use crate::config::{Config, Listener, Protocol};
use crate::plan::Plan;
use crate::problem::Problem;

/// Everything in the new file that a running balancer cannot become.
pub(super) fn problems(old: &Config, new: &Config, budget: &Budget) -> Vec<Problem> {
    let (was, is) = (&old.buffers, &new.buffers);
    let (had, has) = (&old.admin, &new.admin);
    let settings = [
        ("workers", old.workers != new.workers),
        ("flow_table_entries", old.flow_table_entries != new.flow_table_entries),
        ("plugin_cpu_percent", old.plugin_cpu_percent != new.plugin_cpu_percent),
        ("user", old.user != new.user),
        ("group", old.group != new.group),
        ("buffers.small", was.small != is.small),
        ("buffers.bulk", was.bulk != is.bulk),
        ("buffers.datagrams", was.datagrams != is.datagrams),
        ("admin.socket", had.socket != has.socket),
        ("admin.socket_mode", had.socket_mode != has.socket_mode),
        ("admin.socket_group", had.socket_group != has.socket_group),
        ("admin.http", had.http != has.http),
        ("admin.token_file", had.token_file != has.token_file),
        ("admin.tls", had.tls != has.tls),
    ];
    let changed = settings.into_iter().filter(|(_, changed)| *changed);
    let mut problems: Vec<_> = changed
        .map(|(key, _)| Problem::new(key, "cannot change while it runs; restart to change it"))
        .collect();
    if old.access_log.is_some() != new.access_log.is_some() {
        let message = "the log is turned on and off by a restart only; restart to change it";
        problems.push(Problem::new("access_log", message));
    }
    for (place, listener) in new.listeners.iter().enumerate() {
        let key = |name: &str| format!("listeners[{place}].{name}");
        if listener.protocol == Protocol::Udp && budget.datagram_flows_max == 0 {
            let message = "the first listener of datagrams needs memory that is set aside at the \
                           start; restart to add it";
            problems.push(Problem::new(key("protocol"), message));
        }
        let before = old.listeners.iter().find(|old| is_same(old, listener));
        if before.is_some_and(|old| old.segmentation_offload != listener.segmentation_offload) {
            let message = "is a setting of sockets that are open; restart to change it";
            problems.push(Problem::new(key("segmentation_offload"), message));
        }
    }
    problems
}

fn is_same(old: &Listener, new: &Listener) -> bool {
    (old.protocol, &old.address) == (new.protocol, &new.address)
}

/// Whether a problem is about something that cannot change and has not, but can no longer be looked
/// up: a file that only whoever started the process may read.
pub(super) fn is_settled(old: &Config, new: &Config, problem: &Problem) -> bool {
    let key = &*problem.key;
    (key.starts_with("admin.") && old.admin == new.admin)
        || (matches!(key, "user" | "group") && (&old.user, &old.group) == (&new.user, &new.group))
}

/// Refuses more listeners than there are places for, those that leave included.
pub(super) fn refuse_too_many(plan: &Plan, budget: &Budget) -> Result<(), Vec<Problem>> {
    let most = budget.listeners_max;
    if plan.listeners.len() <= usize::from(most) {
        return Ok(());
    }
    let message = format!(
        "there would be more than {most}, with those that still drain; wait for these, or \
         restart to add more"
    );
    Err(vec![Problem::new("listeners", message)])
}
