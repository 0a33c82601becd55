//! What is said of a swap.

use serde::{Deserialize, Serialize};

use super::short;

/// What a swap, a rollback or a promotion has done.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct SwapAnswer {
    /// Where.
    pub cluster: String,
    /// The policy whose module it is.
    pub policy: String,
    /// `swapped`, `rolled-back` or `rolled-back-by-itself`.
    pub outcome: String,
    /// Which of the cluster's policies decides from here on.
    pub generation: u64,
    /// `chooser`, `table` or `weights`.
    pub shape: String,
    /// The SHA-256 of the file that decides.
    pub digest: String,
    /// Workers.
    pub workers: usize,
    /// Those that have said that they have swapped.
    pub acknowledged: usize,
    /// From the file to the last acknowledgement.
    pub took_us: u64,
    /// The longest that a worker did nothing else.
    pub pause_max_ns: u64,
}

impl SwapAnswer {
    /// The answer for a person.
    pub fn to_line(&self) -> String {
        format!(
            "{}: {} by {} {} as generation {}; {} of {} worker(s) in {:.1} ms, longest pause \
             {:.1} µs\n",
            self.cluster,
            self.outcome,
            self.shape,
            short(&self.digest),
            self.generation,
            self.acknowledged,
            self.workers,
            self.took_us as f64 / 1e3,
            self.pause_max_ns as f64 / 1e3,
        )
    }

    /// Tells the log of it.
    pub(super) fn log(&self) {
        let Self { cluster, policy, outcome, generation, shape, acknowledged, .. } = self;
        let digest = short(&self.digest);
        if self.acknowledged < self.workers {
            tracing::warn!(
                %cluster, workers = self.workers, acknowledged,
                "a worker has not said that it has swapped"
            );
        }
        tracing::info!(
            %cluster, %policy, %outcome, generation, %shape, %digest, acknowledged,
            took_us = self.took_us, pause_max_ns = self.pause_max_ns, "policy swapped"
        );
    }
}
