//! Endpoints of datagrams that die, come back, and flap.

mod support;

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use std::thread;
use std::time::Duration;

use support::udp::{Asker, MUTE, Server, udp_config, unreachable};
use support::{Balancer, eventually};

const CLIENTS: usize = 20;
const CHECK: &str = "health = { interval_ms = 50, timeout_ms = 10000, rise = 1, fall = 2 }\n";

/// Two endpoints with half of the clients each, one of which then fails its checks.
struct Scene {
    dead: Server,
    alive: Server,
    balancer: Balancer,
    /// Clients of the one that looks dead, and the others.
    moved: Vec<Asker>,
    stayed: Vec<Asker>,
}

impl Scene {
    fn new(on_endpoint_down: &str) -> Self {
        let (mut dead, alive) = (Server::start(), Server::start());
        let keys = format!("on_endpoint_down = \"{on_endpoint_down}\"");
        let addresses = [dead.address, alive.address];
        let text = udp_config("workers = 2", &keys, "round-robin", &addresses);
        let balancer = Balancer::start(&(text + CHECK));
        let web = balancer.address("web");
        let (mut moved, mut stayed) = (Vec::new(), Vec::new());
        while moved.len() + stayed.len() < CLIENTS || moved.is_empty() || stayed.is_empty() {
            let asker = Asker::new("127.0.0.1", web);
            let is_dead = asker.ask(b"before") == dead.address;
            if is_dead { &mut moved } else { &mut stayed }.push(asker);
        }
        dead.look_dead();
        eventually("it is down", || !balancer.is_up(dead.address));
        Self { dead, alive, balancer, moved, stayed }
    }

    /// Every client asks once and new ones do too; returns whom the first met.
    fn ask(&self) -> Vec<SocketAddr> {
        for asker in &self.stayed {
            assert_eq!(asker.ask(b"undisturbed"), self.alive.address);
        }
        let newcomer = Asker::new("127.0.0.1", self.balancer.address("web"));
        assert_eq!(newcomer.ask(b"new"), self.alive.address);
        self.moved.iter().map(|asker| asker.ask(b"after")).collect()
    }

    fn flows(&self) -> f64 {
        (self.moved.len() + self.stayed.len()) as f64
    }
}

#[test]
fn flows_that_are_kept_stay_with_an_endpoint_that_looks_dead() {
    let scene = Scene::new("keep");
    assert!(scene.ask().iter().all(|met| *met == scene.dead.address));
    assert_eq!(scene.balancer.web("flows_total"), scene.flows() + 1.0);
    assert_eq!(scene.balancer.sum("pointsman_closes_total"), 0.0);
    assert_eq!(scene.balancer.web("reallocations_total"), 0.0);
}

#[test]
fn flows_are_reallocated_before_their_clients_send_again() {
    let scene = Scene::new("reallocate");
    let moved = scene.moved.len() as f64;
    eventually("all have moved", || scene.balancer.web("reallocations_total") == moved);
    assert!(scene.ask().iter().all(|met| *met == scene.alive.address));
    assert_eq!(scene.balancer.web("reallocations_total"), moved);
    assert_eq!(scene.balancer.web("flows_total"), scene.flows() + 1.0);
    assert_eq!(scene.balancer.sum("pointsman_closes_total"), 0.0);
    scene.balancer.assert_flows_add_up();
}

#[test]
fn flows_are_dropped_before_their_clients_send_again() {
    let scene = Scene::new("drop");
    let moved = scene.moved.len() as f64;
    eventually("all have ended", || scene.balancer.count("closes", "endpoint-down") == moved);
    assert_eq!(scene.balancer.web("flows_active"), scene.stayed.len() as f64);
    assert!(scene.ask().iter().all(|met| *met == scene.alive.address));
    assert_eq!(scene.balancer.web("flows_total"), scene.flows() + moved + 1.0);
    scene.balancer.assert_flows_add_up();
}

#[test]
fn an_endpoint_that_comes_back_gets_flows_again() {
    let Scene { dead, alive, balancer, moved, .. } = Scene::new("reallocate");
    let address = dead.address;
    drop(dead);
    let back = Server::start_at(address);
    eventually("it is up", || balancer.is_up(address));
    eventually("it gets a flow", || {
        Asker::new("127.0.0.1", balancer.address("web")).ask(b"new") == back.address
    });
    for asker in &moved {
        assert_eq!(asker.ask(b"old"), alive.address, "those that have moved stay");
    }
}

#[test]
fn the_only_endpoint_keeps_its_flows_when_the_cluster_fails_open() {
    for what in ["reallocate", "drop"] {
        let mut server = Server::start();
        let keys = format!("on_endpoint_down = \"{what}\"");
        let text = udp_config("workers = 1", &keys, "round-robin", &[server.address]);
        let balancer = Balancer::start(&(text + CHECK));
        let asker = Asker::new("127.0.0.1", balancer.address("web"));
        asker.ask(b"before");
        server.look_dead();
        eventually("it is down", || !balancer.is_up(server.address));
        asker.ask(b"after");
        assert_eq!(balancer.web("flows_total"), 1.0, "{what}");
    }
}

/// Asks again and again, whether there are answers or not; tells how many there were.
fn ask_until(ended: &AtomicBool, asker: &Asker) -> usize {
    let mut answers = 0;
    while !ended.load(SeqCst) {
        asker.send(b"hello");
        thread::sleep(Duration::from_millis(5));
        answers += usize::from(asker.answered(b"hello").is_some());
    }
    answers
}

#[test]
fn an_endpoint_that_flaps_disturbs_nobody_else_and_leaves_nothing_behind() {
    const FLAPS: usize = 30;
    for (what, ports) in [("reallocate", "shared"), ("drop", "per-flow"), ("drop", "shared")] {
        let (steady, first) = (Server::start(), Server::start());
        let flapping = first.address;
        let keys = format!(
            "on_endpoint_down = \"{what}\"\nidle_timeout_ms = 1000\nupstream_sockets = \"{ports}\""
        );
        let text = udp_config("workers = 2", &keys, "round-robin", &[steady.address, flapping]);
        let check = "health = { interval_ms = 20, timeout_ms = 10000, rise = 1, fall = 1 }\n";
        let balancer = Balancer::start(&(text + check));
        let web = balancer.address("web");
        let (ended, answers) = (AtomicBool::new(false), AtomicUsize::new(0));
        let askers: Vec<_> = (0..8).map(|_| Asker::new("127.0.0.1", web)).collect();
        thread::scope(|scope| {
            for asker in &askers {
                scope.spawn(|| answers.fetch_add(ask_until(&ended, asker), SeqCst));
            }
            let mut server = Some(first);
            for flap in 0..FLAPS {
                thread::sleep(Duration::from_millis(50));
                server = if flap % 2 == 0 { None } else { Some(Server::start_at(flapping)) };
            }
            ended.store(true, SeqCst);
            drop(server);
        });
        assert!(answers.load(SeqCst) > FLAPS, "{} answers", answers.load(SeqCst));
        eventually("it is down", || !balancer.is_up(flapping));
        for asker in &askers {
            while asker.answered(b"hello").is_some() {}
            assert_eq!(asker.insist(b"hello"), steady.address);
        }
        eventually("all flows have ended", || balancer.web("flows_active") == 0.0);
        balancer.assert_flows_add_up();
        assert_eq!(balancer.sum("pointsman_endpoint_flows_active"), 0.0);
        assert_eq!(balancer.sum("pointsman_flow_table_entries"), 0.0);
    }
}

/// Sends until there is an answer; each flow that ends for want of an endpoint is counted in
/// `failed`.
fn ask_over_failures(balancer: &Balancer, asker: &Asker, failed: &mut f64) -> SocketAddr {
    loop {
        asker.send(b"hello");
        let mut answer = None;
        eventually("an answer or a failure", || {
            answer = asker.answered(b"hello");
            answer.is_some() || balancer.count("closes", "connect-failed") > *failed
        });
        match answer {
            Some(endpoint) => return endpoint,
            None => *failed += 1.0,
        }
    }
}

#[test]
fn a_flow_whose_endpoint_is_unreachable_is_decided_again_at_the_next_datagram() {
    let ((_kept, dead), alive) = (unreachable(), Server::start());
    let keys = "upstream_sockets = \"per-flow\"";
    let text = udp_config("workers = 1", keys, "round-robin", &[dead, alive.address]);
    let balancer = Balancer::start(&text);
    let web = balancer.address("web");
    let askers: Vec<_> = (0..10).map(|_| Asker::new("127.0.0.1", web)).collect();
    let mut failed = 0.0;
    for asker in &askers {
        assert_eq!(ask_over_failures(&balancer, asker, &mut failed), alive.address);
    }
    assert!(failed >= 1.0);
    assert_eq!(balancer.count("closes", "connect-failed"), failed);
    assert_eq!(balancer.web("flows_total"), 10.0 + failed);
    assert_eq!(balancer.web("flows_active"), 10.0);
    assert_eq!(balancer.decisions("web", "native"), 10.0 + failed);
    eventually("each flow has a port", || balancer.sum("pointsman_upstream_ports") == 10.0);
}

#[test]
fn an_endpoint_that_flows_find_unreachable_goes_down_without_a_check() {
    let ((_kept, dead), alive) = (unreachable(), Server::start());
    let keys = "upstream_sockets = \"per-flow\"";
    let text = udp_config("workers = 1", keys, "round-robin", &[dead, alive.address]);
    let health = "health = { interval_ms = 600000000, fall = 3 }\n";
    let balancer = Balancer::start(&(text + health));
    let web = balancer.address("web");
    let mut failed = 0.0;
    eventually("it is down", || {
        let asker = Asker::new("127.0.0.1", web);
        assert_eq!(ask_over_failures(&balancer, &asker, &mut failed), alive.address);
        !balancer.is_up(dead)
    });
    assert!(failed >= 3.0);
    assert!(balancer.is_up(alive.address));
    for _ in 0..10 {
        let asker = Asker::new("127.0.0.1", web);
        assert_eq!(asker.ask(b"hello"), alive.address);
    }
}

#[test]
fn an_endpoint_that_was_unreachable_serves_when_it_is_back() {
    let (kept, address) = unreachable();
    let keys = "upstream_sockets = \"per-flow\"";
    let balancer = Balancer::start(&udp_config("workers = 1", keys, "round-robin", &[address]));
    let asker = Asker::new("127.0.0.1", balancer.address("web"));
    for failed in 1..=3 {
        asker.send(b"hello");
        let failed = f64::from(failed);
        eventually("it fails", || balancer.count("closes", "connect-failed") == failed);
    }
    drop(kept);
    let server = Server::start_at(address);
    assert_eq!(asker.ask(b"hello"), server.address);
    drop(server);
    // A flow that has been answered outlives its endpoint's absence.
    asker.send(b"hello");
    thread::sleep(Duration::from_millis(50));
    let server = Server::start_at(address);
    assert_eq!(asker.insist(b"hello"), server.address);
    assert_eq!(balancer.web("flows_total"), 4.0);
    assert_eq!(balancer.count("closes", "connect-failed"), 3.0);
}

#[test]
fn a_flow_s_own_port_is_closed_with_it() {
    let server = Server::start();
    let keys = "upstream_sockets = \"per-flow\"\nreplies_expected = 1\nidle_timeout_ms = 1000";
    let text = udp_config("workers = 2", keys, "round-robin", &[server.address]);
    let balancer = Balancer::start(&text);
    let before = balancer.settled_descriptors().len();
    let web = balancer.address("web");
    let askers: Vec<_> = (0..50).map(|_| Asker::new("127.0.0.1", web)).collect();
    for _ in 0..3 {
        askers.iter().for_each(|asker| _ = asker.ask(b"hello"));
    }
    askers.iter().for_each(|asker| asker.send(MUTE));
    eventually("all have ended", || {
        let ended = balancer.sum("pointsman_closes_total");
        ended == 200.0 && balancer.sum("pointsman_upstream_ports") == 0.0
    });
    assert_eq!(balancer.count("closes", "finished"), 150.0);
    assert_eq!(balancer.count("closes", "idle-timeout"), 50.0);
    eventually("the descriptors are closed", || balancer.settled_descriptors().len() == before);
}
