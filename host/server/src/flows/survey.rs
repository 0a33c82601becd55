//! Looking at what workers keep, a bounded number of places at a time.

use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, Instant};

use pointsman_core::Balancer;
use pointsman_core::listing::{Cursor, Entry};

use super::{Filter, PageToken};
use crate::fleet::{Fleet, Silent};

/// Places that a worker looks at for one question: some hundred microseconds, in which its flows
/// wait.
const PLACES_MAX: u32 = 4_096;

/// What a worker is asked.
#[derive(Debug)]
pub struct Question {
    /// Where to begin.
    pub from: Cursor,
    /// What to look for.
    pub filter: Arc<Filter>,
    /// How many to stop at.
    pub matches_max: usize,
}

/// What a worker has found.
#[derive(Debug, Default)]
pub struct Answer {
    /// Those that match.
    pub entries: Vec<Entry>,
    /// Where to go on, or `None` at the end.
    pub next: Option<Cursor>,
}

impl Question {
    /// Looks at the next places. A place holds one entry at most, so by never looking at more
    /// places than matches are still wanted it finds no more than those.
    pub fn put_to(&self, now: pointsman_core::Instant, balancer: &Balancer) -> Answer {
        let mut entries = Vec::new();
        let mut at = self.from;
        let mut places_left = PLACES_MAX;
        while places_left > 0 && entries.len() < self.matches_max {
            let wanted = u32::try_from(self.matches_max - entries.len()).unwrap_or(u32::MAX);
            let steps = places_left.min(wanted);
            let next = balancer.survey(now, at, steps, &mut |entry| {
                if self.filter.matches(&entry) {
                    entries.push(entry);
                }
            });
            let Some(next) = next else { return Answer { entries, next: None } };
            at = next;
            places_left -= steps;
        }
        Answer { entries, next: Some(at) }
    }
}

/// What a walk over workers has found.
#[derive(Debug, Default)]
pub struct Found {
    /// Each with its worker's number.
    pub entries: Vec<(usize, Entry)>,
    /// Where to go on, or `None` at the end.
    pub next: Option<PageToken>,
}

/// Asks these workers, one after another, until there are `limit` matches, all has been looked at,
/// or `patience` is over. A worker that has ended keeps nothing.
///
/// # Errors
/// A worker does not answer.
pub async fn walk(
    fleet: &Fleet,
    filter: &Arc<Filter>,
    (from, workers): (PageToken, Range<usize>),
    limit: usize,
    patience: Duration,
) -> Result<Found, Silent> {
    let began = Instant::now();
    let mut entries = Vec::new();
    let mut at = from;
    while workers.contains(&at.worker) {
        if entries.len() >= limit || began.elapsed() >= patience {
            return Ok(Found { entries, next: Some(at) });
        }
        let filter = Arc::clone(filter);
        let question = Question { from: at.from, filter, matches_max: limit - entries.len() };
        let answer = fleet.survey(at.worker, question).await?.unwrap_or_default();
        entries.extend(answer.entries.into_iter().map(|entry| (at.worker, entry)));
        at = match answer.next {
            Some(from) => PageToken { from, ..at },
            None => PageToken { worker: at.worker + 1, from: Cursor::default() },
        };
    }
    Ok(Found { entries, next: None })
}
