//! What is found replaces what there was, and disturbs nothing else.

use std::net::SocketAddr;
use std::path::Path;

use pointsman_core::health::Observation;
use pointsman_core::{ClusterId, EndpointState, Instant};

use super::*;
use crate::discovery::{Answer, Failure, LeftOut, Outcome};
use crate::plan::{PluginFolders, resolve};
use crate::world::EndpointChange;

const TEXT: &str = r#"
[[listeners]]
name = "web"
address = "127.0.0.1:8080"
cluster = "web"

[[clusters]]
name = "web"
policy = "maglev"
discovery = { kind = "dns", name = "web.test.", port = 80 }
health = { rise = 2, fall = 2 }

[[clusters]]
name = "other"
endpoints = [{ address = "127.0.0.1:3" }]
"#;

const WEB: ClusterId = ClusterId(0);

struct Scene {
    world: World,
    plan: Arc<DiscoveryPlan>,
}

impl Scene {
    fn new() -> Self {
        Self::of(TEXT)
    }

    fn of(text: &str) -> Self {
        let folders = PluginFolders::new(Path::new("x.toml"), &[]);
        let plan = resolve(&crate::config::read(text).config, &folders).expect("the test's plan");
        let world = World::new(&plan, &[plan.listeners[0].address], [0; 2]);
        let plan = Arc::clone(plan.clusters[0].discovery.as_ref().expect("it is found"));
        Self { world, plan }
    }

    fn hear(&mut self, said: Result<Answer, Failure>) -> Result<(), Unchanged> {
        let plan = Arc::clone(&self.plan);
        self.world.take_found(&[Found { cluster: WEB, plan, said }])
    }

    /// Hears of endpoints by the last byte of their addresses; the weights of those above 99 are 2.
    fn find(&mut self, hosts: &[u8]) -> Result<(), Unchanged> {
        let endpoints = self.plans(hosts);
        self.hear_of(endpoints)
    }

    fn hear_of(&mut self, endpoints: Vec<EndpointPlan>) -> Result<(), Unchanged> {
        let left_out = LeftOut::default();
        self.hear(Ok(Answer { endpoints, left_out }))
    }

    fn plans(&self, hosts: &[u8]) -> Vec<EndpointPlan> {
        let endpoints = hosts.iter().map(|host| EndpointPlan {
            address: address(*host),
            weight: if *host > 99 { 2 } else { 1 },
            backup: false,
            flows_max: u32::MAX,
        });
        endpoints.collect()
    }

    fn endpoints(&mut self) -> Vec<EndpointState> {
        self.world.publish().clusters[0].endpoints.to_vec()
    }

    fn hosts(&mut self) -> Vec<u8> {
        let last = |state: EndpointState| match state.endpoint.address {
            SocketAddr::V4(address) => address.ip().octets()[3],
            SocketAddr::V6(_) => 0,
        };
        self.endpoints().into_iter().map(last).collect()
    }

    fn change(&mut self, host: u8, change: EndpointChange) -> Result<(), Vec<String>> {
        self.world.change_endpoints(WEB, &[address(host)], change)
    }
}

fn address(host: u8) -> SocketAddr {
    SocketAddr::from(([10, 0, 0, host % 100], 80))
}

#[test]
fn nobody_is_there_until_somebody_is_found() {
    let mut scene = Scene::new();
    let snapshot = scene.world.publish();
    assert!(snapshot.clusters[0].candidates.endpoints.is_empty());
    let table = snapshot.clusters[0].candidates.table.as_ref();
    assert!(table.is_none_or(|table| table.slots().is_empty()));
    assert_eq!(scene.find(&[1, 2]), Ok(()));
    assert_eq!(scene.hosts(), [1, 2]);
}

#[test]
fn the_same_answer_in_another_order_changes_nothing() {
    let mut scene = Scene::new();
    assert_eq!(scene.find(&[1, 2, 3]), Ok(()));
    let (hosts, census) = (scene.hosts(), scene.world.census());
    assert_eq!(scene.find(&[3, 1, 2]), Err(Unchanged));
    assert_eq!((scene.hosts(), scene.world.census()), (hosts, census));
}

#[test]
fn who_stays_keeps_its_flows_its_health_and_its_drain() {
    let mut scene = Scene::new();
    scene.find(&[1, 2]).expect("a change");
    let ids = scene.endpoints().into_iter().map(|state| state.endpoint.id).collect::<Vec<_>>();
    scene.world.observe(WEB, ids[0], Observation::CheckPassed).expect("it is up");
    let drain = EndpointChange::Set { weight: None, flows_max: None, draining: Some(true) };
    scene.change(1, drain).expect("it drains");
    let load = Arc::clone(&scene.endpoints()[0].endpoint.load);

    scene.find(&[101, 3]).expect("a change");
    let after = scene.endpoints();
    assert_eq!(scene.hosts(), [1, 3]);
    let stays = &after[0];
    assert_eq!((stays.up, stays.draining, stays.endpoint.weight), (true, true, 2));
    assert!(Arc::ptr_eq(&stays.endpoint.load, &load));
    assert!(!after[1].up, "who comes while there is traffic has to pass a check first");
}

#[test]
fn what_is_found_later_grows_and_weighs_no_more_than_can_grow() {
    let text = TEXT.replacen("health", "slow_start_ms = 1000\nhealth", 1);
    let mut scene = Scene::of(&text);
    scene.find(&[1]).expect("a change");
    let mut plans = scene.plans(&[1, 2]);
    plans.iter_mut().for_each(|plan| (plan.weight, plan.flows_max) = (65_535, 7));
    scene.hear_of(plans).expect("a change");
    let ids: Vec<_> = scene.endpoints().iter().map(|state| state.endpoint.id).collect();
    for id in ids {
        scene.world.observe(WEB, id, Observation::CheckPassed);
    }
    let endpoints = scene.world.publish().clusters[0].candidates.endpoints.clone();
    let shares: Vec<_> = endpoints.iter().map(|it| (it.weight, it.flows_max)).collect();
    assert_eq!(shares, [(6_553, 7), (6_553, 7)], "both have a tenth yet");
}

#[test]
fn who_is_not_found_any_more_is_told_of_while_it_has_flows() {
    let mut scene = Scene::new();
    scene.find(&[1, 2]).expect("a change");
    let load = Arc::clone(&scene.endpoints()[0].endpoint.load);
    load.on_flow_started();
    scene.find(&[2]).expect("a change");
    assert_eq!(scene.world.leaving()[0].len(), 1);
    scene.find(&[1, 2]).expect("a change");
    assert!(Arc::ptr_eq(&scene.endpoints()[0].endpoint.load, &load), "it is who it was");
}

#[test]
fn those_who_serve_go_when_somebody_new_is_known_to_or_all_are_known_not_to() {
    for passes in [true, false] {
        let mut scene = Scene::of(&TEXT.replace("health", "fail_open = false\nhealth"));
        let candidates = |scene: &mut Scene| {
            let endpoints = scene.world.publish().clusters[0].candidates.endpoints.clone();
            endpoints.iter().map(|it| it.id).collect::<Vec<_>>()
        };
        scene.find(&[1]).expect("a change");
        let old = scene.endpoints()[0].endpoint.id;
        scene.world.observe(WEB, old, Observation::CheckPassed);
        scene.find(&[2, 3]).expect("a change");
        assert_eq!(candidates(&mut scene), [old], "nobody else has been checked");
        assert_eq!(scene.find(&[3, 2]), Err(Unchanged), "another answer changes nothing");
        let new = [1, 2].map(|place| scene.endpoints()[place].endpoint.id);
        scene.world.observe(WEB, new[0], Observation::CheckFailed);
        assert!(!scene.world.tidy(Instant::ZERO));
        assert_eq!(candidates(&mut scene), [old]);
        let seen = if passes { Observation::CheckPassed } else { Observation::CheckFailed };
        scene.world.observe(WEB, new[1], seen);
        assert!(scene.world.tidy(Instant::ZERO));
        let expected = if passes { vec![new[1]] } else { Vec::new() };
        assert_eq!(candidates(&mut scene), expected);
        assert_eq!(scene.hosts(), [2, 3]);
    }
}

#[test]
fn an_answer_that_comes_after_the_first_check_lets_those_go_who_have_served_so_far() {
    let mut scene = Scene::new();
    scene.find(&[1]).expect("a change");
    let old = scene.endpoints()[0].endpoint.id;
    scene.world.observe(WEB, old, Observation::CheckPassed);
    scene.find(&[2]).expect("a change");
    let new = scene.endpoints()[1].endpoint.id;
    scene.world.observe(WEB, new, Observation::CheckPassed);
    assert_eq!(scene.find(&[2]), Ok(()), "there is something to publish");
    assert_eq!(scene.hosts(), [2]);
}

#[test]
fn a_failure_keeps_everybody_unless_it_gives_them_up() {
    let mut scene = Scene::new();
    scene.find(&[1]).expect("a change");
    for outcome in [Outcome::NxDomain, Outcome::Empty, Outcome::Timeout, Outcome::Error] {
        assert_eq!(scene.hear(Err(Failure::new(outcome, "why"))), Err(Unchanged));
        assert_eq!(scene.hosts(), [1]);
    }
    let forgets = Failure { forgets: true, ..Failure::new(Outcome::NxDomain, "why") };
    assert_eq!(scene.hear(Err(forgets)), Ok(()));
    assert!(scene.hosts().is_empty());
    let (_, standing) = scene.world.standings()[0].clone().expect("a search");
    assert_eq!(standing.outcomes[Outcome::NxDomain as usize], 2);
    assert_eq!(standing.outcomes[Outcome::Answered as usize], 1);
    assert!(standing.failure.expect("a failure").forgets);
    assert!(scene.world.standings()[1].is_none());
}

#[test]
fn what_was_found_for_another_search_or_cluster_is_not_taken() {
    let mut scene = Scene::new();
    let other = DiscoveryPlan { endpoints_max: 5, ..scene.plan.as_ref().clone() };
    let own = std::mem::replace(&mut scene.plan, Arc::new(other));
    assert_eq!(scene.find(&[1]), Err(Unchanged));
    scene.plan = own;
    for cluster in [ClusterId(1), ClusterId(2)] {
        let said = Err(Failure { forgets: true, ..Failure::new(Outcome::NxDomain, "why") });
        let found = Found { cluster, plan: Arc::clone(&scene.plan), said };
        assert_eq!(scene.world.take_found(&[found]), Err(Unchanged));
    }
}

#[test]
fn what_discovery_says_is_not_contradicted_by_hand() {
    let mut scene = Scene::new();
    scene.find(&[1, 2]).expect("a change");
    let add = EndpointChange::Add { weight: 1, backup: false, flows_max: 0 };
    let weight = EndpointChange::Set { weight: Some(2), flows_max: None, draining: None };
    for (host, change) in [(3, add), (1, EndpointChange::Remove), (1, weight)] {
        let problems = scene.change(host, change).expect_err("it is refused");
        let expected = "cluster \"web\" takes its endpoints from dns web.test.:80; change them there, \
                        or drain and undrain them here";
        assert_eq!(problems, [expected]);
    }
}
