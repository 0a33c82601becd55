//! The access log as a reload changes it.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed};

use tokio::sync::mpsc::UnboundedSender;

use super::Sample;
use super::line::Names;
use super::writer::Sink;
use crate::plan::{LogPlan, Plan};
use crate::problem::Problem;

/// The control thread's hold on the log.
#[derive(Debug, Clone, Default)]
pub struct LogKeeper {
    pub(super) dropped: Arc<AtomicU64>,
    /// The share that is logged, and the way to whoever writes it; `None` if there is no log.
    pub(super) log: Option<(Arc<AtomicU32>, UnboundedSender<Order>)>,
}

/// What is written from here on, and where.
#[derive(Debug)]
pub(super) struct Order {
    pub(super) names: Names,
    pub(super) plan: LogPlan,
}

impl LogKeeper {
    /// Ended flows that the log had no room for.
    pub fn dropped(&self) -> u64 {
        self.dropped.load(Relaxed)
    }

    /// Whether a log could be written as a plan says.
    pub fn try_out(&self, plan: &Plan) -> Result<(), Problem> {
        let Some(log) = &plan.access_log else { return Ok(()) };
        Sink::try_out(log)
            .map_err(|error| Problem::new("access_log.path", format!("cannot be opened: {error}")))
    }

    /// Writes the log as a plan says from here on, and what ended before as it was.
    pub fn follow(&self, plan: &Plan) {
        let (Some((share, orders)), Some(log)) = (&self.log, &plan.access_log) else { return };
        share.store(Sample::millionths(log.sample), Relaxed);
        // Fails only when the process is about to end.
        let _ = orders.send(Order { names: Names::new(plan), plan: log.clone() });
    }
}
