//! What each worker tells of its tables, its loop, its ring and its buffers.

use pointsman_ring::{BufferPool, BufferStats};

use super::Exposition;
use crate::mailbox::Report;
use crate::view::View;

pub(super) fn render(view: &View, text: &mut Exposition) {
    let mut each = |name, kind, help, of: &dyn Fn(&Report) -> u64| {
        text.family(name, kind, help);
        for (worker, report) in view.workers.iter().enumerate() {
            text.sample(name, &[("worker", &worker.to_string())], of(report));
        }
    };
    each(
        "pointsman_flow_table_entries",
        "gauge",
        "Kept decisions and flows of datagrams.",
        &|report| report.stats.flow_table_entries.into(),
    );
    each(
        "pointsman_upstream_ports",
        "gauge",
        "Ports open towards endpoints of datagrams.",
        &|report| report.stats.ports_open.into(),
    );
    each("pointsman_sessions", "gauge", "Connections that are served.", &|report| {
        report.stats.sessions_active.into()
    });
    each(
        "pointsman_completions_total",
        "counter",
        "What the kernel has told; divided by the turns, how much each system call was shared.",
        &|report| report.turns.completions(),
    );
    each("pointsman_ring_enters_total", "counter", "Times io_uring was entered.", &|report| {
        report.ring.enters_total
    });
    each(
        "pointsman_ring_overflows_total",
        "counter",
        "Times the kernel had more to tell than its queue holds; it was told later.",
        &|report| report.ring.overflows_total,
    );
    each(
        "pointsman_ring_requests",
        "gauge",
        "Requests that the kernel has and has not answered for good.",
        &|report| report.ring.in_flight.into(),
    );
    turns(view, text);
    buffers(view, text);
}

fn turns(view: &View, text: &mut Exposition) {
    let name = "pointsman_turn_seconds";
    text.family(
        name,
        "histogram",
        "Time between two waits of a worker, in which nothing else is served.",
    );
    for (worker, report) in view.workers.iter().enumerate() {
        let worker = worker.to_string();
        text.histogram(name, ("worker", &worker), report.turns.seconds());
        let seconds = report.turns.total().as_secs_f64();
        text.sample("pointsman_turn_seconds_sum", &[("worker", &worker)], seconds);
        text.sample("pointsman_turn_seconds_count", &[("worker", &worker)], report.turns.count());
    }
}

fn buffers(view: &View, text: &mut Exposition) {
    let mut each = |name, kind, help, of: &dyn Fn(&BufferStats) -> u64| {
        text.family(name, kind, help);
        for (worker, report) in view.workers.iter().enumerate() {
            for pool in BufferPool::ALL {
                let labels = [("worker", &*worker.to_string()), ("pool", pool.label())];
                text.sample(name, &labels, of(&report.ring.buffers[pool.index()]));
            }
        }
    };
    each("pointsman_buffers", "gauge", "Receive buffers there are.", &|pool| pool.count.into());
    each("pointsman_buffers_free", "gauge", "Receive buffers that nobody holds.", &|pool| {
        pool.free.into()
    });
    each(
        "pointsman_buffers_starved_total",
        "counter",
        "Times a socket had to wait for a receive buffer.",
        &|pool| pool.starved_total,
    );
}
