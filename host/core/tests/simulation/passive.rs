//! Who may be given new flows: the control thread's part, in small, and what must hold of it.
//!
//! Endpoints go up, down and into a drain by chance; ejections come of what the balancers have
//! counted. What the core chooses is held against a plain statement of the rules.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use pointsman_core::ejection::{
    Ejection, EjectionChange, EjectionReason, EjectionRules, Ejector, Subject, SuccessRateRule,
};
use pointsman_core::eligibility::{Eligibility, Footing};
use pointsman_core::growth::Growth;
use pointsman_core::policy::maglev;
use pointsman_core::{
    Candidates, Cluster, Endpoint, EndpointId, EndpointState, Generation, Instant, Snapshot,
};

use crate::rng::Rng;

/// What the control thread remembers of all clusters.
#[derive(Debug)]
pub(crate) struct Passive {
    clusters: Vec<Watch>,
}

#[derive(Debug)]
struct Watch {
    rules: EjectionRules,
    ejector: Ejector,
    ejections: BTreeMap<EndpointId, Ejection>,
    eligibility: Eligibility,
    slow_start: Duration,
    returns: BTreeMap<EndpointId, Return>,
    /// When somebody last looked at the clock.
    judged: Instant,
}

/// How an endpoint that was away is doing.
#[derive(Debug, Default)]
struct Return {
    is_away: bool,
    growth: Growth,
    /// When the clock was first looked at since it has come back, if it ever has.
    seen: Option<Option<Instant>>,
}

impl Passive {
    pub(crate) fn new(rng: &mut Rng, clusters: usize) -> Self {
        Self { clusters: (0..clusters).map(|_| Watch::new(rng)).collect() }
    }

    /// Looks at what has been counted; tells whether anybody was ejected or has returned.
    pub(crate) fn judge(&mut self, now: Instant, snapshot: &Snapshot) -> bool {
        let both = self.clusters.iter_mut().zip(&snapshot.clusters);
        both.fold(false, |changed, (watch, cluster)| {
            let grown = watch.grow(now);
            watch.judge(now, &cluster.endpoints) || grown || changed
        })
    }

    /// From here on another share of endpoints is too small.
    pub(crate) fn change_mind(&mut self, rng: &mut Rng) {
        self.clusters.iter_mut().for_each(|watch| watch.eligibility = eligibility(rng));
    }

    /// Says in a snapshot who is ejected, and who may be given new flows.
    pub(crate) fn choose(&mut self, snapshot: &mut Snapshot) {
        let generation = snapshot.generation;
        for (watch, cluster) in self.clusters.iter_mut().zip(&mut snapshot.clusters) {
            for state in &mut cluster.endpoints {
                let ejection = watch.ejections.get(&state.endpoint.id);
                state.ejected = ejection.and_then(Ejection::reason);
            }
            watch.follow_returns(&cluster.endpoints);
            let (footing, places) = watch.eligibility.choose(&cluster.endpoints);
            let chosen = places.iter().map(|place| &cluster.endpoints[*place].endpoint);
            cluster.footing = footing;
            let chosen: Box<[Endpoint]> = chosen.map(|endpoint| watch.weighed(endpoint)).collect();
            let of = |endpoint: &Endpoint| (endpoint.id, endpoint.flows_max, endpoint.weight);
            if !chosen.iter().map(of).eq(cluster.candidates.endpoints.iter().map(of)) {
                cluster.candidates = Arc::new(candidates(generation, chosen));
            }
            watch.assert_rightly_chosen(cluster);
        }
    }
}

impl Watch {
    fn new(rng: &mut Rng) -> Self {
        let rate = SuccessRateRule { flows_min: 2, endpoints_min: 2, deviations: 0.5 };
        let rules = EjectionRules {
            consecutive_failures: rng.pick(&[0, 1, 2, 5]),
            interval: Duration::from_millis(rng.pick(&[100, 1_000])),
            base: Duration::from_millis(rng.pick(&[50, 1_000])),
            longest: Duration::from_secs(3),
            percent_max: rng.pick(&[10, 50, 100]),
            success_rate: rng.chance(500).then_some(rate),
        };
        let ejector = Ejector::new(rules.clone());
        let slow_start = Duration::from_millis(rng.pick(&[0, 0, 500, 5_000]));
        let (ejections, returns) = Default::default();
        let (eligibility, judged) = (eligibility(rng), Instant::ZERO);
        Self { rules, ejector, ejections, eligibility, slow_start, returns, judged }
    }

    /// Takes note of endpoints that have come back.
    fn follow_returns(&mut self, states: &[EndpointState]) {
        for state in states {
            let known = self.returns.entry(state.endpoint.id).or_default();
            let is_away = !state.up || state.ejected.is_some();
            if std::mem::replace(&mut known.is_away, is_away) && !is_away {
                known.growth.restart(self.slow_start);
                known.seen = Some(None);
            }
        }
    }

    fn grow(&mut self, now: Instant) -> bool {
        self.judged = now;
        let mut grown = false;
        for known in self.returns.values_mut() {
            grown |= known.growth.advance(now, self.slow_start);
            known.seen = known.seen.map(|seen| seen.or(Some(now)));
        }
        grown
    }

    /// An endpoint as a policy sees it.
    fn weighed(&self, endpoint: &Endpoint) -> Endpoint {
        if self.slow_start.is_zero() {
            return endpoint.clone();
        }
        let known = &self.returns[&endpoint.id];
        let tenths = known.growth.tenths();
        let expected = known.seen.map_or(10, |seen| {
            let passed = self.judged.since(seen.unwrap_or(self.judged)).as_nanos() * 10;
            (passed / self.slow_start.as_nanos()).clamp(1, 10)
        });
        assert_eq!(u128::from(tenths), expected, "a share grows with time, and from a tenth");
        Endpoint { weight: endpoint.weight * tenths, ..endpoint.clone() }
    }

    fn judge(&mut self, now: Instant, states: &[EndpointState]) -> bool {
        self.ejections.retain(|id, _| states.iter().any(|state| state.endpoint.id == *id));
        for state in states {
            self.ejections.entry(state.endpoint.id).or_default();
        }
        let subjects = self.ejections.values_mut().zip(states).map(|(ejection, state)| Subject {
            ejection,
            outcomes: state.endpoint.load.outcomes(),
            could_serve: state.up && !state.draining,
        });
        let mut subjects: Vec<_> = subjects.collect();
        let changes = self.ejector.judge(now, &mut subjects);
        for (place, change) in &changes {
            if let EjectionChange::Ejected { reason, lasting } = change {
                self.assert_rightly_ejected(states, *place, (*reason, *lasting));
            }
        }
        !changes.is_empty()
    }

    /// The cluster can do without the endpoint, and its flows have failed.
    fn assert_rightly_ejected(
        &self,
        states: &[EndpointState],
        place: usize,
        (reason, lasting): (EjectionReason, Duration),
    ) {
        let is_ejected = |state: &EndpointState| self.ejections[&state.endpoint.id].reason();
        let ejected = states.iter().filter(|state| is_ejected(state).is_some()).count();
        let allowed = states.len() * self.rules.percent_max as usize / 100;
        assert!(ejected <= allowed.max(1), "{ejected} of {} are ejected", states.len());
        let serves =
            |state: &&EndpointState| state.up && !state.draining && is_ejected(state).is_none();
        assert!(states.iter().any(|state| serves(&state)), "nobody is left");
        assert!((self.rules.base..=self.rules.longest).contains(&lasting), "{lasting:?}");
        let failures = states[place].endpoint.load.outcomes().failures;
        let least = match reason {
            EjectionReason::ConsecutiveFailures => self.rules.consecutive_failures.max(1).into(),
            EjectionReason::SuccessRate => 1,
        };
        assert!(failures >= least, "{failures} failures are no reason");
    }

    /// Nobody who is ejected, down or a backup is given new flows, unless there are too few others.
    fn assert_rightly_chosen(&self, cluster: &Cluster) {
        let states = &cluster.endpoints;
        let is_sound =
            |state: &EndpointState| state.up && !state.draining && state.ejected.is_none();
        let own = || states.iter().filter(|state| !state.backup && !state.draining);
        let sound = own().filter(|state| is_sound(state)).count();
        let too_few =
            sound * 100 < own().count() * self.eligibility.panic_threshold_percent as usize;
        let backs_up = states.iter().any(|state| state.backup && is_sound(state));
        for state in states {
            let is_chosen = cluster.candidates.find(state.endpoint.id).is_some();
            let may = match (sound, is_sound(state)) {
                _ if state.draining => false,
                (1.., true) => !state.backup,
                (1.., false) => !state.backup && too_few,
                (0, true) => state.backup,
                (0, false) => {
                    let in_turn = !state.backup || own().count() == 0;
                    self.eligibility.fails_open && !backs_up && in_turn
                }
            };
            assert_eq!(is_chosen, may, "{state:?} of {:?}", cluster.footing);
        }
        let is_sound = cluster.footing == Footing::Sound;
        assert_eq!(is_sound, sound > 0 && !too_few, "{:?}", cluster.footing);
    }
}

fn eligibility(rng: &mut Rng) -> Eligibility {
    Eligibility {
        fails_open: rng.chance(700),
        panic_threshold_percent: rng.pick(&[0, 0, 50, 80, 100]),
    }
}

/// An endpoint that may have so many flows may have others now and then.
pub(crate) fn change_places(rng: &mut Rng, state: &mut EndpointState) {
    if state.endpoint.flows_max != u32::MAX && rng.chance(200) {
        state.endpoint.flows_max = rng.pick(&[1, 2, 4]);
    }
}

/// These endpoints, with the table of Maglev.
pub(crate) fn candidates(generation: Generation, endpoints: Box<[Endpoint]>) -> Candidates {
    let keys: Vec<(String, u32)> =
        endpoints.iter().map(|e| (e.address.to_string(), e.weight)).collect();
    let keys: Vec<(&str, u32)> = keys.iter().map(|(key, weight)| (&**key, *weight)).collect();
    Candidates { generation, endpoints, table: maglev::build(&keys, 251) }
}

/// All endpoints, of which none has gone wrong yet.
pub(crate) fn all_of(generation: Generation, states: &[EndpointState]) -> Candidates {
    let endpoints = states.iter().map(|state| state.endpoint.clone());
    candidates(generation, endpoints.collect())
}
