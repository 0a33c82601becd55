//! Transitions, what they publish, and what they leave alone.

use std::path::Path;
use std::time::Duration;

use pointsman_core::ejection::{EjectionChange, EjectionReason};
use pointsman_core::policy::Table;

use super::*;
use crate::plan::{PluginFolders, resolve};

const TEXT: &str = r#"
[[listeners]]
name = "web"
address = "127.0.0.1:8080"
cluster = "web"

[[clusters]]
name = "web"
policy = "maglev"
endpoints = [{ address = "127.0.0.1:1" }, { address = "127.0.0.1:2" }]
health = { rise = 2, fall = 2 }

[[clusters]]
name = "other"
endpoints = [{ address = "127.0.0.1:3" }]
"#;

const WEB: ClusterId = ClusterId(0);

fn world_of(text: &str) -> World {
    let folders = PluginFolders::new(Path::new("x.toml"), &[]);
    let plan = resolve(&crate::config::read(text).config, &folders).expect("the test's plan");
    let addresses: Vec<_> = plan.listeners.iter().map(|listener| listener.address).collect();
    World::new(&plan, &addresses, [0; 2])
}

fn candidates_of(world: &mut World) -> Vec<u32> {
    let snapshot = world.publish();
    snapshot.clusters[0].candidates.endpoints.iter().map(|endpoint| endpoint.id.0).collect()
}

fn fail(world: &mut World, endpoint: u32) -> Option<Change> {
    let mut observe = || world.observe(WEB, EndpointId(endpoint), Observation::CheckFailed);
    observe().or_else(observe)
}

fn pass(world: &mut World, endpoint: u32) -> Option<Change> {
    let mut observe = || world.observe(WEB, EndpointId(endpoint), Observation::CheckPassed);
    observe().or_else(observe)
}

#[test]
fn an_endpoint_that_goes_down_is_no_candidate_until_it_comes_up() {
    let mut world = world_of(TEXT);
    assert_eq!(candidates_of(&mut world), [0, 1]);
    let change = fail(&mut world, 0).expect("a transition");
    assert_eq!(change.news, News::Health(Transition::WentDown));
    assert_eq!(change.address.port(), 1);
    assert_eq!(candidates_of(&mut world), [1]);
    let change = pass(&mut world, 0).expect("a transition");
    assert_eq!(change.news, News::Health(Transition::WentUp));
    assert_eq!(candidates_of(&mut world), [0, 1]);
}

#[test]
fn a_cluster_without_an_endpoint_that_is_up_fails_open() {
    let mut world = world_of(TEXT);
    fail(&mut world, 0);
    fail(&mut world, 1);
    assert_eq!(candidates_of(&mut world), [0, 1]);
}

#[test]
fn a_cluster_that_may_not_fail_open_has_no_candidates_then() {
    let mut world = world_of(&TEXT.replace("health", "fail_open = false\nhealth"));
    fail(&mut world, 0);
    fail(&mut world, 1);
    assert_eq!(candidates_of(&mut world), [0_u32; 0]);
}

#[test]
fn candidates_that_did_not_change_are_the_same_object() {
    let mut world = world_of(TEXT);
    let before = world.publish();
    fail(&mut world, 0);
    let after = world.publish();
    assert!(after.generation > before.generation);
    assert!(!Arc::ptr_eq(&before.clusters[0].candidates, &after.clusters[0].candidates));
    assert!(Arc::ptr_eq(&before.clusters[1].candidates, &after.clusters[1].candidates));
}

#[test]
fn counts_live_on_from_snapshot_to_snapshot() {
    let mut world = world_of(TEXT);
    let before = world.publish();
    before.clusters[0].endpoints[0].endpoint.load.on_flow_started();
    fail(&mut world, 1);
    let after = world.publish();
    assert_eq!(after.clusters[0].endpoints[0].endpoint.load.flows_active(), 1);
    assert_eq!(after.clusters[0].candidates.endpoints[0].load.flows_active(), 1);
}

#[test]
fn a_table_is_made_where_one_is_used_and_nowhere_else() {
    let snapshot = world_of(TEXT).publish();
    assert!(snapshot.clusters[0].candidates.table.is_some());
    assert!(snapshot.clusters[1].candidates.table.is_none());
}

#[test]
fn failed_connects_of_flows_take_an_endpoint_down() {
    let mut world = world_of(TEXT);
    let snapshot = world.publish();
    let load = &snapshot.clusters[0].endpoints[1].endpoint.load;
    load.on_connect_failed(Instant::ZERO);
    assert_eq!(world.look_at_flows(Instant::ZERO), []);
    load.on_connect_failed(Instant::ZERO);
    let changes = world.look_at_flows(Instant::ZERO);
    assert_eq!(changes.len(), 1);
    assert_eq!(changes[0].address.port(), 2);
    assert_eq!(candidates_of(&mut world), [0]);
}

#[test]
fn old_failures_are_not_held_against_an_endpoint_that_came_up() {
    let mut world = world_of(TEXT);
    let snapshot = world.publish();
    let load = &snapshot.clusters[0].endpoints[0].endpoint.load;
    load.on_connect_failed(Instant::ZERO);
    load.on_connect_failed(Instant::ZERO);
    assert_eq!(world.look_at_flows(Instant::ZERO).len(), 1);
    assert!(pass(&mut world, 0).is_some());
    assert_eq!(world.look_at_flows(Instant::ZERO), []);
    load.on_connect_failed(Instant::ZERO);
    assert_eq!(world.look_at_flows(Instant::ZERO), [], "one new failure is fewer than two");
    load.on_connect_failed(Instant::ZERO);
    assert_eq!(world.look_at_flows(Instant::ZERO).len(), 1);
}

#[test]
fn endpoints_that_nobody_checks_stay_up() {
    let mut world = world_of(TEXT);
    let snapshot = world.publish();
    for _ in 0..10 {
        snapshot.clusters[1].endpoints[0].endpoint.load.on_connect_failed(Instant::ZERO);
    }
    assert_eq!(world.look_at_flows(Instant::ZERO), []);
    assert_eq!(world.publish().clusters[1].candidates.endpoints.len(), 1);
}

#[test]
fn limits_over_all_workers_live_on_from_snapshot_to_snapshot() {
    let limits =
        "max_flows_per_client = 1\nnew_flows_per_second = 1\n\n[[clusters]]\nname = \"web\"";
    let mut world = world_of(&TEXT.replacen("\n[[clusters]]\nname = \"web\"", limits, 1));
    let (before, after) = (world.publish(), world.publish());
    let (before, after) = (&before.listeners[0], &after.listeners[0]);
    let client = "192.0.2.1".parse().expect("an address");
    assert!(before.flows_per_client.as_ref().expect("a limit").try_add(client));
    assert!(!after.flows_per_client.as_ref().expect("a limit").try_add(client));
    let now = Instant::from_millis(5_000);
    assert!(before.new_flow_rate.as_ref().expect("a limit").try_take(now));
    assert!(!after.new_flow_rate.as_ref().expect("a limit").try_take(now));
}

#[test]
fn what_is_not_limited_has_no_counts() {
    let snapshot = world_of(TEXT).publish();
    assert!(snapshot.listeners[0].flows_per_client.is_none());
    assert!(snapshot.listeners[0].new_flow_rate.is_none());
}

const AUTHOR: Author = Author(7);
const LIVE: (ClusterId, Role) = (WEB, Role::Live);

fn show(world: &mut World, needs: Needs, made: Option<Made>) {
    let made = made.map(|made| (world.base(WEB).generation, made));
    world.show(LIVE, Outlook { needs, author: Some(AUTHOR), made });
}

fn table_of(slots: &[u32]) -> Made {
    Made::Table(Table::new(slots.into(), 2).expect("a table"))
}

fn shown(world: &mut World) -> Arc<Candidates> {
    Arc::clone(&world.publish().clusters[0].candidates)
}

#[test]
fn a_table_that_was_made_is_shown_to_the_policy_alone() {
    let mut world = world_of(TEXT);
    show(&mut world, Needs::Table, Some(table_of(&[1, 1, 0])));
    let candidates = shown(&mut world);
    assert_eq!(candidates.table.as_ref().expect("a table").slots(), [1, 1, 0]);
    assert!(world.base(WEB).table.is_none());
    assert!(world.asks_a_guest(WEB));
    assert!(world.publish().clusters[0].trial.is_none());
}

#[test]
fn until_a_changed_list_has_its_table_the_old_one_stands_in_for_who_is_left() {
    let mut world = world_of(TEXT);
    show(&mut world, Needs::Table, Some(table_of(&[1, 1, 0])));
    world.publish();
    fail(&mut world, 0);
    let candidates = shown(&mut world);
    assert_eq!(candidates.table.as_ref().expect("a table").slots(), [0, 0, 0]);
    let of = candidates.generation;
    let made = Made::Table(Table::new([0].into(), 1).expect("a table"));
    assert!(world.take(LIVE, AUTHOR, (of, made)));
    let candidates = shown(&mut world);
    assert_eq!(candidates.table.as_ref().expect("a table").slots(), [0]);
    assert!(candidates.generation > of, "policies hear of it");
}

#[test]
fn what_was_made_for_other_endpoints_or_by_another_guest_is_not_taken() {
    let mut world = world_of(TEXT);
    show(&mut world, Needs::Table, None);
    let of = world.base(WEB).generation;
    assert!(!world.take(LIVE, Author(8), (of, table_of(&[0]))));
    assert!(!world.take((WEB, Role::Trial), AUTHOR, (of, table_of(&[0]))));
    fail(&mut world, 0);
    world.publish();
    assert!(!world.take(LIVE, AUTHOR, (of, table_of(&[0]))));
}

#[test]
fn weights_that_were_given_hold_for_endpoints_that_stay() {
    let mut world = world_of(TEXT);
    show(&mut world, Needs::Weights { maglev: true }, Some(Made::Weights(vec![5, 9])));
    let weights = |world: &mut World| {
        let candidates = shown(world);
        assert!(candidates.table.is_some(), "maglev goes by weights through its table");
        candidates.endpoints.iter().map(|endpoint| endpoint.weight).collect::<Vec<_>>()
    };
    assert_eq!(weights(&mut world), [5, 9]);
    fail(&mut world, 0);
    assert_eq!(weights(&mut world), [9]);
    pass(&mut world, 0);
    assert_eq!(weights(&mut world), [1, 9], "who comes back begins as configured");
    show(&mut world, Needs::Nothing, None);
    let candidates = shown(&mut world);
    assert!(Arc::ptr_eq(&candidates, &world.base(WEB)));
}

#[test]
fn one_on_trial_sees_a_list_of_its_own_until_it_is_hidden() {
    let mut world = world_of(TEXT);
    show(&mut world, Needs::Weights { maglev: false }, Some(Made::Weights(vec![5, 9])));
    world.show((WEB, Role::Trial), Outlook::plain(Needs::Nothing));
    let snapshot = world.publish();
    let trial = snapshot.clusters[0].trial.as_ref().expect("a view");
    assert_eq!(trial.endpoints[0].weight, 1);
    assert_eq!(snapshot.clusters[0].candidates.endpoints[0].weight, 5);
    world.hide(WEB);
    assert!(world.publish().clusters[0].trial.is_none());
}

#[test]
fn a_policy_that_needs_what_the_one_before_needed_is_shown_nothing_new() {
    let mut world = world_of(TEXT);
    assert!(world.shows(LIVE, &Outlook::plain(Needs::Maglev)));
    assert!(!world.shows(LIVE, &Outlook::plain(Needs::Nothing)));
    assert!(!world.shows((WEB, Role::Trial), &Outlook::plain(Needs::Maglev)));
    show(&mut world, Needs::Table, None);
    let other = Outlook { needs: Needs::Table, author: Some(Author(8)), made: None };
    assert!(!world.shows(LIVE, &other), "another guest makes another table");
}

const THREE: &str = r#"
[[listeners]]
name = "web"
address = "127.0.0.1:8080"
cluster = "web"

[[clusters]]
name = "web"
endpoints = [
  { address = "127.0.0.1:1" },
  { address = "127.0.0.1:2" },
  { address = "127.0.0.1:3", backup = true },
]
"#;

const PASSIVE: &str = "passive = { consecutive_failures = 2, base_ejection_ms = 1000 }";

fn break_flows(world: &World, endpoint: usize, flows: usize) {
    let load = &world.clusters[0].endpoints[endpoint].endpoint.load;
    (0..flows).for_each(|_| load.on_broken(Instant::ZERO));
}

fn footing(world: &World) -> Footing {
    world.snapshot().clusters[0].footing
}

#[test]
fn an_endpoint_whose_flows_fail_is_ejected_and_returns() {
    let mut world = world_of(&(THREE.to_owned() + PASSIVE));
    assert_eq!(candidates_of(&mut world), [0, 1]);
    break_flows(&world, 1, 2);
    let changes = world.look_at_flows(Instant::from_millis(100));
    let reason = EjectionReason::ConsecutiveFailures;
    let ejected = EjectionChange::Ejected { reason, lasting: Duration::from_secs(1) };
    assert_eq!(changes.len(), 1);
    assert_eq!((changes[0].address.port(), changes[0].news), (2, News::Ejection(ejected)));
    assert_eq!(candidates_of(&mut world), [0]);
    let state = &world.snapshot().clusters[0].endpoints[1];
    assert_eq!((state.up, state.ejected, state.ejections_total), (true, Some(reason), 1));
    assert_eq!(world.look_at_flows(Instant::from_millis(1_099)), []);
    let changes = world.look_at_flows(Instant::from_millis(1_100));
    assert_eq!(changes[0].news, News::Ejection(EjectionChange::Returned));
    assert_eq!(candidates_of(&mut world), [0, 1]);
}

#[test]
fn nobody_is_ejected_where_that_is_not_asked_for() {
    let mut world = world_of(THREE);
    break_flows(&world, 1, 100);
    assert_eq!(world.look_at_flows(Instant::from_millis(100)), []);
}

#[test]
fn backups_serve_while_no_other_endpoint_is_available() {
    let mut world = world_of(&(THREE.to_owned() + "health = { rise = 2, fall = 2 }"));
    fail(&mut world, 0);
    assert_eq!(candidates_of(&mut world), [1]);
    fail(&mut world, 1);
    assert_eq!(candidates_of(&mut world), [2]);
    assert_eq!(footing(&world), Footing::Backup);
    pass(&mut world, 0);
    assert_eq!(candidates_of(&mut world), [0]);
    assert_eq!(footing(&world), Footing::Sound);
}

#[test]
fn too_few_endpoints_that_are_available_mean_that_all_are_used() {
    let threshold = "panic_threshold_percent = 60\nhealth = { rise = 2, fall = 2 }";
    let mut world = world_of(&(THREE.to_owned() + threshold));
    fail(&mut world, 0);
    assert_eq!(candidates_of(&mut world), [0, 1]);
    assert_eq!(footing(&world), Footing::Panic);
}

fn at(ports: &[u16]) -> Vec<SocketAddr> {
    ports.iter().map(|port| SocketAddr::from(([127, 0, 0, 1], *port))).collect()
}

const ADD: EndpointChange = EndpointChange::Add { weight: 3, backup: false, flows_max: 0 };
const DRAIN: EndpointChange =
    EndpointChange::Set { weight: None, flows_max: None, draining: Some(true) };

fn change(world: &mut World, ports: &[u16], change: EndpointChange) -> Result<(), Vec<String>> {
    world.change_endpoints(WEB, &at(ports), change)
}

#[test]
fn an_endpoint_that_is_added_serves_once_a_check_has_passed() {
    let mut world = world_of(TEXT);
    change(&mut world, &[9], ADD).expect("it is added");
    assert_eq!(candidates_of(&mut world), [0, 1]);
    let mut observe = || world.observe(WEB, EndpointId(2), Observation::CheckPassed);
    assert_eq!(observe().expect("a transition").news, News::Health(Transition::WentUp));
    assert_eq!(candidates_of(&mut world), [0, 1, 2]);
    assert_eq!(shown(&mut world).endpoints[2].weight, 3);
}

#[test]
fn an_endpoint_that_nobody_checks_serves_when_it_is_added() {
    let mut world = world_of(THREE);
    change(&mut world, &[9], ADD).expect("it is added");
    assert_eq!(candidates_of(&mut world), [0, 1, 3]);
}

#[test]
fn who_stays_keeps_its_name_and_counts_when_another_is_removed() {
    let mut world = world_of(THREE);
    let stays = Arc::clone(&world.publish().clusters[0].endpoints[1].endpoint.load);
    change(&mut world, &[1], EndpointChange::Remove).expect("it is removed");
    assert_eq!(candidates_of(&mut world), [1]);
    let endpoint = &world.publish().clusters[0].endpoints[0].endpoint;
    assert_eq!(endpoint.id, EndpointId(1));
    assert!(Arc::ptr_eq(&endpoint.load, &stays));
    assert_eq!(world.observe(WEB, EndpointId(0), Observation::CheckFailed), None);
}

#[test]
fn one_that_was_removed_is_told_of_while_it_has_flows_and_comes_back_as_who_it_was() {
    let mut world = world_of(THREE);
    let load = Arc::clone(&world.publish().clusters[0].endpoints[0].endpoint.load);
    load.on_flow_started();
    change(&mut world, &[1], EndpointChange::Remove).expect("it is removed");
    assert_eq!(world.leaving()[0].len(), 1);
    change(&mut world, &[1], ADD).expect("it is added");
    assert_eq!(world.leaving()[0].len(), 0);
    let endpoint = world.publish().clusters[0].endpoints[0].endpoint.clone();
    assert_eq!((endpoint.id, endpoint.weight), (EndpointId(0), 3));
    assert!(Arc::ptr_eq(&endpoint.load, &load));

    change(&mut world, &[1], EndpointChange::Remove).expect("it is removed");
    load.on_flow_ended();
    assert_eq!(world.leaving()[0].len(), 0);
    change(&mut world, &[1], ADD).expect("it is added");
    assert_eq!(candidates_of(&mut world), [1, 3], "a number is given once");
}

#[test]
fn one_that_drains_gets_nothing_new_and_counts_as_up() {
    let mut world = world_of(THREE);
    change(&mut world, &[1], DRAIN).expect("it drains");
    assert_eq!(candidates_of(&mut world), [1]);
    let state = &world.snapshot().clusters[0].endpoints[0];
    assert_eq!((state.up, state.draining), (true, true));
    let undrain = EndpointChange::Set { weight: None, flows_max: None, draining: Some(false) };
    change(&mut world, &[1], undrain).expect("it serves");
    assert_eq!(candidates_of(&mut world), [0, 1]);
}

#[test]
fn another_weight_makes_another_list_for_this_cluster_alone() {
    let mut world = world_of(TEXT);
    let before = world.publish();
    let weight = EndpointChange::Set { weight: Some(7), flows_max: None, draining: None };
    change(&mut world, &[2], weight).expect("it weighs more");
    let after = world.publish();
    let weights = after.clusters[0].candidates.endpoints.iter().map(|endpoint| endpoint.weight);
    assert_eq!(weights.collect::<Vec<_>>(), [1, 7]);
    let tables = [&before, &after].map(|world| {
        world.clusters[0].candidates.table.as_ref().expect("a table").slots().to_vec()
    });
    assert_ne!(tables[0], tables[1], "the table goes by weights");
    assert!(Arc::ptr_eq(&before.clusters[1].candidates, &after.clusters[1].candidates));
}

#[test]
fn a_change_that_cannot_be_made_of_all_is_made_of_none_and_every_reason_is_told() {
    let mut world = world_of(THREE);
    let before = (candidates_of(&mut world), world.census());
    let heavy = EndpointChange::Set { weight: Some(0), flows_max: None, draining: None };
    for (ports, wanted, expected) in [
        (&[9, 1][..], ADD, vec!["has 127.0.0.1:1 already"]),
        (&[9, 0], ADD, vec!["port 0 cannot be connected to"]),
        (&[9, 9], ADD, vec!["127.0.0.1:9 is named twice"]),
        (&[1, 8, 9], DRAIN, vec!["has no endpoint 127.0.0.1:8", "has no endpoint 127.0.0.1:9"]),
        (&[1, 8], EndpointChange::Remove, vec!["has no endpoint 127.0.0.1:8"]),
        (&[1, 2, 3], EndpointChange::Remove, vec!["would have no endpoint left"]),
        (&[1], heavy, vec!["weight 0 is out of range; write 1 to 65535, or drain"]),
    ] {
        let problems = change(&mut world, ports, wanted).expect_err("it is refused");
        assert_eq!(problems.len(), expected.len(), "{problems:?}");
        for (problem, expected) in problems.iter().zip(expected) {
            assert!(problem.contains(expected), "{problem}");
        }
        assert_eq!((candidates_of(&mut world), world.census()), before);
    }
}

#[test]
fn no_more_endpoints_are_added_than_a_table_has_room_for() {
    let mut world = world_of(THREE);
    let many: Vec<_> = (0..crate::plan::ENDPOINTS_MAX as u32 - 2)
        .map(|n| SocketAddr::from(((0x0a00_0000 + n).to_be_bytes(), 80)))
        .collect();
    let problems = world.change_endpoints(WEB, &many, ADD).expect_err("there is no room");
    assert!(problems[0].ends_with("65536 is the most; remove others first"), "{problems:?}");
}

fn plan_of(text: &str) -> Plan {
    let folders = PluginFolders::new(Path::new("x.toml"), &[]);
    resolve(&crate::config::read(text).config, &folders).expect("the test's plan")
}

fn reload(world: &mut World, plan: &Plan) {
    world.reload(Instant::from_millis(1), plan, &[]);
}

#[test]
fn a_reload_keeps_who_stays_and_what_is_known_of_him() {
    let mut world = world_of(TEXT);
    fail(&mut world, 1);
    let before = world.publish();
    let other = Arc::clone(&before.clusters[1].candidates);
    let text = TEXT.replace("{ address = \"127.0.0.1:1\" }, ", "{ address = \"127.0.0.1:9\" }, ");
    before.clusters[0].endpoints[0].endpoint.load.on_flow_started();
    reload(&mut world, &plan_of(&text));
    let after = world.publish();
    let shown = |state: &EndpointState| (state.endpoint.id.0, state.up);
    let endpoints: Vec<_> = after.clusters[0].endpoints.iter().map(shown).collect();
    assert_eq!(endpoints, [(1, false), (2, false)], "who comes has to prove himself");
    let of = |snapshot: &Snapshot, place: usize| {
        Arc::clone(&snapshot.clusters[0].endpoints[place].endpoint.load)
    };
    assert!(Arc::ptr_eq(&of(&before, 1), &of(&after, 0)));
    assert!(Arc::ptr_eq(&other, &after.clusters[1].candidates), "nobody next door hears of it");
    assert_eq!(world.leaving()[0].len(), 1, "it has a flow yet");
}

#[test]
fn a_cluster_serves_until_no_listener_that_drains_needs_it_and_then_its_place_is_free() {
    let mut world = world_of(TEXT);
    let mut plan = plan_of(TEXT);
    plan.clusters[0].removed = true;
    plan.listeners[0].removed = true;
    reload(&mut world, &plan);
    let snapshot = world.publish();
    assert_eq!(snapshot.listeners[0].openness, Openness::Draining);
    assert_eq!(snapshot.clusters[0].endpoints.len(), 2, "who is in the backlog is to be served");
    assert!(!world.tidy(Instant::from_millis(1)), "workers have their sockets yet");
    let workers = snapshot.listeners[0].sockets_open.get();
    (0..workers).for_each(|_| snapshot.listeners[0].sockets_open.decrement());
    assert_eq!(world.places(), (vec![Place::Taken], vec![Place::Taken, Place::Taken]));
    assert!(world.tidy(Instant::from_millis(1)));
    let snapshot = world.publish();
    assert_eq!(snapshot.listeners[0].openness, Openness::Closed);
    assert!(snapshot.clusters[0].endpoints.is_empty());
    assert_eq!(world.places(), (vec![Place::Free], vec![Place::Free, Place::Taken]));

    // Whoever comes there has endpoints that nothing that was kept can name.
    plan.clusters[0] =
        ClusterPlan { name: "new".into(), removed: false, ..plan.clusters[0].clone() };
    reload(&mut world, &plan);
    let ids = world.publish();
    let ids: Vec<_> = ids.clusters[0].endpoints.iter().map(|it| it.endpoint.id.0).collect();
    assert_eq!(ids, [2, 3]);
}

#[test]
fn what_is_removed_has_as_long_as_a_drain() {
    let mut world = world_of(TEXT);
    let mut plan = plan_of(TEXT);
    plan.listeners[0].removed = true;
    reload(&mut world, &plan);
    let snapshot = world.publish();
    assert!(snapshot.listeners[0].flows_active.try_increment(9));
    let end = Instant::from_millis(1) + plan.drain_timeout;
    assert!(!world.tidy(Instant::from_nanos(end.as_nanos() - 1)));
    assert!(world.hold_places() && !world.hold_places(), "one reload at a time");
    assert!(!world.tidy(end), "a reload counts on it");
    world.let_go_of_places();
    assert!(world.tidy(end));
    assert_eq!(world.publish().listeners[0].openness, Openness::Closed);
    assert_eq!(world.places().0, [Place::Taken], "its flow has not ended");
}

#[test]
fn a_limit_that_changes_counts_on_and_one_that_is_new_begins() {
    let mut world = world_of(TEXT);
    let client = "192.0.2.1".parse().expect("an address");
    let with = |max: u32, v4: u8| {
        let more = format!("max_flows_per_client = {max}\nclient_prefix_v4 = {v4}\n");
        plan_of(&TEXT.replace("cluster = \"web\"", &format!("cluster = \"web\"\n{more}")))
    };
    let counts = |world: &mut World| world.publish().listeners[0].flows_per_client.clone();
    reload(&mut world, &with(2, 32));
    let first = counts(&mut world).expect("it is counted");
    assert!(first.try_add(client) && first.try_add(client) && !first.try_add(client));
    reload(&mut world, &with(3, 32));
    let second = counts(&mut world).expect("it is counted");
    assert!(Arc::ptr_eq(&first, &second) && second.try_add(client) && !second.try_add(client));
    reload(&mut world, &with(3, 24));
    let third = counts(&mut world).expect("it is counted");
    assert!(!Arc::ptr_eq(&second, &third), "other clients count as one");
    // Flows that are older than the count leave it where it is.
    third.remove(client);
    assert!((0..3).all(|_| third.try_add(client)) && !third.try_add(client));
    reload(&mut world, &plan_of(TEXT));
    assert!(counts(&mut world).is_none());
}

/// The weights that the policy sees.
fn weights(world: &mut World) -> Vec<u32> {
    shown(world).endpoints.iter().map(|endpoint| endpoint.weight).collect()
}

#[test]
fn a_share_grows_after_a_return_by_steps_and_not_at_the_start() {
    let slow = TEXT.replacen("policy", "slow_start_ms = 10000\npolicy", 1);
    let mut world = world_of(&slow);
    let at = Instant::from_millis;
    assert_eq!(weights(&mut world), [10, 10], "weights are in tenths");
    fail(&mut world, 0);
    pass(&mut world, 0);
    assert_eq!(weights(&mut world), [1, 10]);
    assert!(!world.grow(at(50_000)), "its time begins");
    assert!(!world.grow(at(51_999)));
    assert!(world.grow(at(55_000)));
    assert_eq!(weights(&mut world), [5, 10]);
    let state = &world.snapshot().clusters[0].endpoints[0];
    assert_eq!((state.endpoint.weight, state.growth.tenths()), (1, 5));
    assert!(world.grow(at(60_000)));
    let whole = shown(&mut world);
    assert!(!world.grow(at(99_000)));
    assert!(Arc::ptr_eq(&whole, &shown(&mut world)), "then nothing changes any more");
}

#[test]
fn a_share_grows_after_an_ejection_and_of_one_that_is_added() {
    let slow = THREE.replacen("endpoints", "slow_start_ms = 1000\nendpoints", 1);
    let mut world = world_of(&(slow + PASSIVE));
    break_flows(&world, 1, 2);
    world.look_at_flows(Instant::from_millis(100));
    assert_eq!(weights(&mut world), [10]);
    world.look_at_flows(Instant::from_millis(60_000));
    assert_eq!(weights(&mut world), [10, 1]);
    change(&mut world, &[9], ADD).expect("it is added");
    assert_eq!(weights(&mut world), [10, 1, 3]);
    let heavy = EndpointChange::Set { weight: Some(6_554), flows_max: None, draining: None };
    let problems = change(&mut world, &[9], heavy).expect_err("too much");
    assert_eq!(problems, ["weight 6554 is out of range; write 1 to 6553, or drain the endpoint"]);
}

#[test]
fn backups_are_not_left_alone() {
    let mut world = world_of(THREE);
    let own = own_ports(&world, false);
    let problems = change(&mut world, &own, EndpointChange::Remove).expect_err("a backup is left");
    assert_eq!(problems.len(), 1);
    assert!(problems[0].contains("would have backups alone, of nobody"), "{problems:?}");
    let backups = own_ports(&world, true);
    change(&mut world, &backups, EndpointChange::Remove).expect("those who serve are left");
}

fn own_ports(world: &World, backup: bool) -> Vec<u16> {
    let of = world.clusters[0].endpoints.iter().filter(|watched| watched.backup == backup);
    of.map(|watched| watched.endpoint.address.port()).collect()
}

#[test]
fn one_that_waits_for_its_first_check_is_neither_up_nor_down() {
    let mut world = world_of(TEXT);
    change(&mut world, &[9], ADD).expect("it is added");
    let state = |world: &World| {
        let state = &world.snapshot().clusters[0].endpoints[2];
        (state.up, state.unproven)
    };
    assert_eq!(state(&world), (false, true));
    world.observe(WEB, EndpointId(2), Observation::CheckFailed);
    assert_eq!(state(&world), (false, false));
}
