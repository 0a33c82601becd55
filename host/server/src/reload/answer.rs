//! What came of reloads, for a person and for a program.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

use super::Refused;
use crate::config::Config;

/// What a reload has changed.
#[derive(Debug, Serialize, Deserialize)]
pub struct Answer {
    /// Which world is published.
    pub generation: u64,
    /// How long it took to read, prepare and publish.
    pub took_us: u64,
    /// Listeners, by name.
    pub listeners: Changed,
    /// Clusters, by name.
    pub clusters: Changed,
    /// Policies, by name; those that clusters got anew are among the changed ones.
    pub policies: Changed,
}

/// What of one sort has changed.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Changed {
    /// Not there before.
    pub added: Vec<String>,
    /// No longer there.
    pub removed: Vec<String>,
    /// Another than before.
    pub changed: Vec<String>,
}

/// What can come of a reload.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// The file is gone by.
    Applied,
    /// Something is wrong, and nothing has changed.
    Refused,
}

impl Outcome {
    /// All of them, in the order of their numbers.
    pub const ALL: [Self; 2] = [Self::Applied, Self::Refused];

    /// The value of the metric's `outcome` label.
    pub const fn label(self) -> &'static str {
        match self {
            Self::Applied => "applied",
            Self::Refused => "refused",
        }
    }
}

/// What came of all reloads so far.
#[derive(Debug, Clone, Default)]
pub struct Reloads {
    /// How many, by [`Outcome`].
    pub outcomes: [u64; Outcome::ALL.len()],
    /// The last one.
    pub last: Option<Last>,
}

/// The last reload.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Last {
    /// When, in milliseconds since 1970.
    pub at_unix_ms: u64,
    /// `applied` or `refused`.
    pub outcome: String,
    /// The world that it published, if it did.
    #[serde(default)]
    pub generation: Option<u64>,
    /// Why it was refused: one line each.
    #[serde(default)]
    pub problems: Vec<String>,
}

impl Reloads {
    pub(super) fn note(&mut self, outcome: &Result<Answer, Refused>) {
        let (result, generation, problems) = match outcome {
            Ok(answer) => (Outcome::Applied, Some(answer.generation), Vec::new()),
            Err(refused) => {
                let lines = refused.to_string().lines().map(str::to_owned).collect();
                (Outcome::Refused, None, lines)
            }
        };
        self.outcomes[result as usize] += 1;
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let at_unix_ms = u64::try_from(now.as_millis()).unwrap_or(u64::MAX);
        let outcome = result.label().to_owned();
        self.last = Some(Last { at_unix_ms, outcome, generation, problems });
    }
}

impl Answer {
    pub(super) fn new(generation: u64, took: Duration, changed: [Changed; 3]) -> Self {
        let [listeners, clusters, policies] = changed;
        let took_us = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        Self { generation, took_us, listeners, clusters, policies }
    }

    fn sorts(&self) -> [(&'static str, &Changed); 3] {
        [("listener", &self.listeners), ("cluster", &self.clusters), ("policy", &self.policies)]
    }

    /// One line for each thing that has changed, for a person.
    pub fn to_text(&self) -> String {
        let mut text = String::new();
        for (sort, changed) in self.sorts() {
            let verbs = [
                ("is added", &changed.added),
                ("is removed", &changed.removed),
                ("is changed", &changed.changed),
            ];
            for (verb, names) in verbs {
                text.extend(names.iter().map(|name| format!("{sort} \"{name}\" {verb}\n")));
            }
        }
        let took = Duration::from_micros(self.took_us).as_secs_f64() * 1000.0;
        text + &format!("reloaded in {took:.1} ms: generation {}\n", self.generation)
    }

    pub(super) fn log(&self) {
        let (generation, took_us) = (self.generation, self.took_us);
        let [listeners, clusters, policies] = self.sorts().map(|(_, changed)| changed.count());
        tracing::info!(
            generation,
            took_us,
            listeners,
            clusters,
            policies,
            "the configuration is reloaded"
        );
    }
}

impl Changed {
    fn between<T: PartialEq>(
        old: impl Iterator<Item = (String, T)>,
        new: impl Iterator<Item = (String, T)>,
    ) -> Self {
        let mut before: BTreeMap<_, _> = old.collect();
        let mut changed = Self::default();
        for (name, it) in new {
            match before.remove(&name) {
                None => changed.added.push(name),
                Some(was) if was != it => changed.changed.push(name),
                Some(_) => {}
            }
        }
        changed.removed = before.into_keys().collect();
        changed
    }

    fn count(&self) -> usize {
        self.added.len() + self.removed.len() + self.changed.len()
    }
}

/// Listeners, clusters and policies that differ. `renewed` policies do even if their sections are the
/// same, because their files have changed.
pub(super) fn changes(old: &Config, new: &Config, renewed: &[String]) -> [Changed; 3] {
    let name = |name: &Option<String>| name.clone().unwrap_or_default();
    let listeners = |config: &Config| {
        let all = config.listeners.clone().into_iter();
        all.map(|it| (name(&it.name), it)).collect::<Vec<_>>().into_iter()
    };
    let clusters = |config: &Config| {
        let all = config.clusters.clone().into_iter();
        all.map(|it| (name(&it.name), it)).collect::<Vec<_>>().into_iter()
    };
    let policies = |config: &Config| {
        let all = config.policies.clone().into_iter();
        all.map(|it| (name(&it.name), it)).collect::<Vec<_>>().into_iter()
    };
    let mut of_policies = Changed::between(policies(old), policies(new));
    for name in renewed {
        let is_known = |names: &Vec<String>| names.contains(name);
        let is_defined = new.policies.iter().any(|it| it.name.as_ref() == Some(name));
        let known = [&of_policies.added, &of_policies.changed].into_iter().any(is_known);
        if is_defined && !known {
            of_policies.changed.push(name.clone());
        }
    }
    [
        Changed::between(listeners(old), listeners(new)),
        Changed::between(clusters(old), clusters(new)),
        of_policies,
    ]
}
