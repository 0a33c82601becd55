//! What one process tells the next of endpoints, and what the next makes of it.
//!
//! The file says who there is, as in a reload. What it cannot say is taken over by address: who is down,
//! drained or ejected, and how far a share has grown; and where endpoints are found, who they are until
//! this process has had an answer of its own.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use pointsman_core::Instant;
use pointsman_core::ejection::{Ejection, EjectionReason, EjectionRecord};
use pointsman_core::growth::Growth;
use pointsman_core::health::{Health, Observation};
use serde::{Deserialize, Serialize};

use super::discovered::Discovered;
use super::{ClusterState, Watched, World};
use crate::plan::EndpointPlan;

/// What is known of a cluster's endpoints.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ClusterLegacy {
    /// Its name.
    pub name: String,
    /// Where its endpoints are found, if they are not written.
    #[serde(default)]
    source: Option<String>,
    endpoints: Vec<EndpointLegacy>,
}

/// What is known of an endpoint. Instants are of the clock that all processes share, in nanoseconds.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct EndpointLegacy {
    address: SocketAddr,
    weight: u32,
    flows_max: u32,
    backup: bool,
    draining: bool,
    /// `None` if nobody checks it.
    up: Option<bool>,
    unproven: bool,
    growth_tenths: u32,
    #[serde(default)]
    growing_since: Option<u64>,
    #[serde(default)]
    ejected: Option<(String, u64)>,
    ejection_times: u32,
    ejection_forgotten_at: u64,
    ejections_total: u64,
}

impl World {
    /// What the next process needs to know, by [`ClusterId`](pointsman_core::ClusterId).
    pub fn bequeath(&self) -> Vec<ClusterLegacy> {
        self.clusters.iter().map(ClusterState::bequeath).collect()
    }

    /// Takes in what the process before has known. It may be told once more when that knows better.
    pub fn inherit(&mut self, legacies: &[ClusterLegacy]) {
        for legacy in legacies {
            let mut clusters = self.clusters.iter_mut();
            if let Some(cluster) = clusters.find(|it| !it.removed && *it.name == legacy.name) {
                self.census += u64::from(cluster.inherit(legacy));
            }
        }
    }
}

impl ClusterState {
    fn source(&self) -> Option<String> {
        self.discovered.as_ref().map(|Discovered { plan, .. }| plan.source.to_string())
    }

    fn bequeath(&self) -> ClusterLegacy {
        let endpoints = if self.removed { &[] } else { &*self.endpoints };
        ClusterLegacy {
            name: self.name.clone().into(),
            source: self.source(),
            endpoints: endpoints.iter().map(EndpointLegacy::of).collect(),
        }
    }

    /// Tells whether endpoints have come.
    fn inherit(&mut self, legacy: &ClusterLegacy) -> bool {
        let source = self.source();
        let has_answer = self.discovered.as_ref().is_none_or(Discovered::has_answer);
        let comes = source == legacy.source && !has_answer;
        if comes {
            let plans: Vec<_> = legacy.endpoints.iter().map(EndpointLegacy::plan).collect();
            self.replace(&plans);
        }
        let known: BTreeMap<_, _> = legacy.endpoints.iter().map(|it| (it.address, it)).collect();
        let judges = self.ejector.is_some();
        for watched in &mut self.endpoints {
            if let Some(legacy) = known.get(&watched.endpoint.address) {
                watched.inherit(legacy, judges);
            }
        }
        comes
    }
}

impl Watched {
    fn inherit(&mut self, legacy: &EndpointLegacy, judges: bool) {
        self.draining = legacy.draining;
        self.growth =
            Growth::resumed(legacy.growth_tenths, legacy.growing_since.map(Instant::from_nanos));
        if judges {
            self.ejection = Ejection::resumed(legacy.ejection());
        }
        let (Some(before), Some(up)) = (&self.health, legacy.up) else { return };
        let thresholds = before.thresholds();
        let mut health = Health::new(thresholds);
        if legacy.unproven {
            health = Health::unproven(thresholds);
        } else if !up {
            for _ in 0..thresholds.fall {
                health.observe(Observation::CheckFailed);
            }
        }
        self.health = Some(health);
    }
}

impl EndpointLegacy {
    fn of(watched: &Watched) -> Self {
        let EjectionRecord { current, times, forgotten_at, total } = watched.ejection.record();
        Self {
            address: watched.endpoint.address,
            weight: watched.endpoint.weight,
            flows_max: watched.endpoint.flows_max,
            backup: watched.backup,
            draining: watched.draining,
            up: watched.health.as_ref().map(Health::is_up),
            unproven: watched.health.as_ref().is_some_and(Health::is_unproven),
            growth_tenths: watched.growth.tenths(),
            growing_since: watched.growth.since().map(Instant::as_nanos),
            ejected: current.map(|(why, until)| (why.label().to_owned(), until.as_nanos())),
            ejection_times: times,
            ejection_forgotten_at: forgotten_at.as_nanos(),
            ejections_total: total,
        }
    }

    fn plan(&self) -> EndpointPlan {
        let Self { address, weight, backup, flows_max, .. } = *self;
        EndpointPlan { address, weight, backup, flows_max }
    }

    fn ejection(&self) -> EjectionRecord {
        let of = |(why, until): &(String, u64)| {
            let mut reasons = EjectionReason::ALL.into_iter();
            let reason = reasons.find(|reason| reason.label() == why)?;
            Some((reason, Instant::from_nanos(*until)))
        };
        EjectionRecord {
            current: self.ejected.as_ref().and_then(of),
            times: self.ejection_times,
            forgotten_at: Instant::from_nanos(self.ejection_forgotten_at),
            total: self.ejections_total,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::discovery::{Answer, Found, LeftOut};
    use crate::plan::{Plan, PluginFolders, resolve};
    use crate::world::{EndpointChange, Role};
    use pointsman_core::ClusterId;

    const WEB: ClusterId = ClusterId(0);

    fn plan(endpoints: &str, more: &str) -> Plan {
        let text = format!(
            "[[listeners]]\nname = \"a\"\naddress = \"127.0.0.1:1\"\ncluster = \"web\"\n\
             [[clusters]]\nname = \"web\"\n{endpoints}\n{more}"
        );
        resolve(&crate::config::read(&text).config, &PluginFolders::default()).expect("a plan")
    }

    fn world(plan: &Plan) -> World {
        World::new(plan, &[plan.listeners[0].address], [0; 2])
    }

    fn written(addresses: &[&str]) -> Plan {
        let each = addresses.iter().map(|it| format!("{{ address = \"{it}\" }}, "));
        let endpoints = format!("endpoints = [{}]", each.collect::<String>());
        plan(&endpoints, "health = { rise = 2, fall = 3 }")
    }

    /// Who is up and not drained, in order.
    fn serving(world: &World) -> Vec<String> {
        let snapshot = world.snapshot();
        let endpoints = snapshot.clusters[0].endpoints.iter();
        let serving = endpoints.filter(|it| it.up && !it.draining);
        serving.map(|it| it.endpoint.address.to_string()).collect()
    }

    /// What is told survives its way as text.
    fn told(world: &World) -> Vec<ClusterLegacy> {
        let text = serde_json::to_string(&world.bequeath()).expect("text");
        serde_json::from_str(&text).expect("a legacy")
    }

    #[test]
    fn who_is_down_or_drained_is_so_in_the_next_process_and_comes_back_as_before() {
        let three = written(&["10.0.0.1:1", "10.0.0.2:1", "10.0.0.3:1"]);
        let mut old = world(&three);
        let ids: Vec<_> = old.targets(WEB).map(|target| target.id).collect();
        for _ in 0..3 {
            old.observe(WEB, ids[0], Observation::CheckFailed);
        }
        let drain = EndpointChange::Set { weight: None, flows_max: None, draining: Some(true) };
        let address = "10.0.0.2:1".parse().expect("an address");
        old.change_endpoints(WEB, &[address], drain).expect("it is there");
        assert_eq!(serving(&old), ["10.0.0.3:1"]);

        let mut new = world(&written(&["10.0.0.4:1", "10.0.0.2:1", "10.0.0.1:1"]));
        new.inherit(&told(&old));
        new.inherit(&told(&old));
        assert_eq!(serving(&new), ["10.0.0.4:1"], "the file says who there is");
        assert_eq!(new.base(WEB).endpoints.len(), 3, "until it is published");
        let published = new.publish();
        assert_eq!(published.clusters[0].candidates.endpoints.len(), 1);
        let id = new.targets(WEB).find(|it| it.address.to_string() == "10.0.0.1:1").expect("it").id;
        assert!(new.observe(WEB, id, Observation::CheckPassed).is_none(), "one is not enough");
        assert!(new.observe(WEB, id, Observation::CheckPassed).is_some());
        assert!(
            new.shows(
                (WEB, Role::Live),
                &crate::world::Outlook::plain(crate::world::Needs::Nothing)
            )
        );
    }

    #[test]
    fn endpoints_that_were_found_serve_until_there_is_an_answer_of_its_own() {
        let found = |name: &str| {
            plan(&format!("discovery = {{ kind = \"dns\", name = \"{name}\", port = 80 }}"), "")
        };
        let mut old = world(&found("web.example"));
        let one = |weight| EndpointPlan {
            address: "10.0.0.1:80".parse().expect("an address"),
            weight,
            backup: false,
            flows_max: u32::MAX,
        };
        let hear = |world: &mut World, weight| {
            let plan =
                Arc::clone(&world.clusters[0].discovered.as_ref().expect("it is found").plan);
            let answer = Answer { endpoints: vec![one(weight)], left_out: LeftOut::default() };
            world.take_found(&[Found { cluster: WEB, plan, said: Ok(answer) }])
        };
        let weight = |world: &World| world.clusters[0].endpoints[0].endpoint.weight;
        let mut new = world(&found("web.example"));
        for told_by_the_old in [7, 8] {
            hear(&mut old, told_by_the_old).expect("it is news");
            new.inherit(&told(&old));
            assert_eq!(weight(&new), told_by_the_old);
        }
        hear(&mut new, 9).expect("it is news");
        new.inherit(&told(&old));
        assert_eq!(weight(&new), 9, "its own answer stays");
        let mut other = world(&found("other.example"));
        other.inherit(&told(&old));
        assert_eq!(other.targets(WEB).count(), 0, "they are to be found elsewhere");
    }
}
