//! What flows tell of a cluster's endpoints, and what follows from it.

use pointsman_core::Instant;
use pointsman_core::ejection::{EjectionChange, Subject};
use pointsman_core::eligibility::Footing;
use pointsman_core::health::Transition;

use super::{ClusterState, Watched};

/// What has become of an endpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum News {
    /// It came up or went down.
    Health(Transition),
    /// It was ejected, or has returned.
    Ejection(EjectionChange),
}

impl ClusterState {
    /// Takes in what workers have counted since the last look. Tells the news, by place.
    pub(super) fn look_at_flows(&mut self, now: Instant) -> Vec<(usize, News)> {
        let connects = self.endpoints.iter_mut().map(Watched::look_at_connects).enumerate();
        let news = |(place, transition): (usize, Option<Transition>)| {
            Some((place, News::Health(transition?)))
        };
        let mut news: Vec<_> = connects.filter_map(news).collect();
        let Some(ejector) = &mut self.ejector else { return news };
        let mut subjects: Vec<_> = self.endpoints.iter_mut().map(Watched::subject).collect();
        let changes = ejector.judge(now, &mut subjects).into_iter();
        news.extend(changes.map(|(place, change)| (place, News::Ejection(change))));
        news
    }

    /// Says how well the cluster can do what it is for, if that has changed.
    pub(super) fn stand_on(&mut self, footing: Footing) {
        if std::mem::replace(&mut self.footing, footing) == footing {
            return;
        }
        let (cluster, endpoints) = (&*self.name, self.base.len());
        match footing {
            Footing::Sound => tracing::info!(cluster, endpoints, "serves as it should"),
            Footing::Backup => {
                tracing::warn!(cluster, endpoints, "only backups are available: flows go to them");
            }
            Footing::Panic => tracing::warn!(
                cluster,
                endpoints,
                "too few endpoints are available: panics, flows go to all of them"
            ),
            Footing::FailOpen => tracing::warn!(
                cluster,
                endpoints,
                "no endpoint is available: fails open, flows go to all of them"
            ),
            Footing::Nobody => {
                tracing::warn!(cluster, "no endpoint is available: new flows are refused");
            }
        }
    }
}

impl Watched {
    fn subject(&mut self) -> Subject<'_> {
        let (outcomes, could_serve) =
            (self.endpoint.load.outcomes(), self.is_up() && !self.draining);
        Subject { ejection: &mut self.ejection, outcomes, could_serve }
    }
}
