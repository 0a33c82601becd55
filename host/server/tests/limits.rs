//! What happens where something ends: descriptors, flows, and what many flows leave behind.

mod support;

use std::io::ErrorKind;
use std::net::IpAddr;

use support::raw::{Ends, Origin, config, connect, connect_from, rest};
use support::{Balancer, Client, Endpoint, eventually};

/// A balancer that may have this many descriptors more than it has without clients. The limit holds
/// from its start, because the kernel notes it when an accept is armed.
fn with_descriptors_left(config: &str, count: usize) -> Balancer {
    let open = Balancer::start(config).settled_descriptors();
    let limit = (0..).filter(|number| !open.contains(number)).nth(count).expect("a number");
    Balancer::start_with_descriptors(config, limit)
}

/// Uses up all descriptors, has more clients wait meanwhile, and then ends those who were first.
/// Returns how many of those who waited are served.
fn run_out_of_descriptors(balancer: &Balancer) -> usize {
    let web = balancer.address("web");
    balancer.settled_descriptors();
    let connect = |_| Client::connect(web).expect("a connection");
    let mut established: Vec<_> = (0..4).map(connect).collect();
    for client in &mut established {
        client.ask("before").expect("an answer");
    }
    let mut waiting: Vec<_> = (0..4).map(connect).collect();
    for _ in 0..50 {
        for client in &mut established {
            client.ask("meanwhile").expect("established flows go on");
        }
    }
    drop(established);
    waiting.iter_mut().filter_map(|client| client.ask("after").ok()).count()
}

#[test]
fn without_descriptors_established_flows_go_on_and_none_ends_without_a_named_reason() {
    let endpoint = Endpoint::start();
    let balancer = with_descriptors_left(&config("workers = 1", "", &[endpoint.address]), 8);
    let served = run_out_of_descriptors(&balancer);
    eventually("all flows have ended", || balancer.web("flows_active") == 0.0);
    let mut late = Client::connect(balancer.address("web")).expect("a connection");
    late.ask("afterwards").expect("whoever comes then is served");
    assert_eq!(balancer.count("closes", "finished"), 4.0 + served as f64);
    assert_eq!(balancer.count("closes", "descriptors"), 4.0 - served as f64);
    assert!(balancer.count("sheds", "descriptors") >= 1.0, "the want is counted");
}

#[test]
fn descriptors_that_come_free_serve_a_client_who_waits() {
    let endpoint = Endpoint::start();
    let balancer = with_descriptors_left(&config("workers = 1", "", &[endpoint.address]), 8);
    let web = balancer.address("web");
    balancer.settled_descriptors();
    let connect = |_| Client::connect(web).expect("a connection");
    let mut established: Vec<_> = (0..4).map(connect).collect();
    established.iter_mut().for_each(|client| _ = client.ask("before").expect("an answer"));
    let mut waiting: Vec<_> = (0..4).map(connect).collect();
    established.pop();
    waiting[0].ask("after").expect("the first who waited is served");
}

#[test]
fn a_flow_without_a_descriptor_for_its_endpoint_is_reset_under_that_name() {
    let endpoint = Endpoint::start();
    let balancer = Balancer::start(&config("workers = 1", "", &[endpoint.address]));
    let web = balancer.address("web");
    let mut old = Client::connect(web).expect("a connection");
    old.ask("before").expect("an answer");
    let open = balancer.settled_descriptors();
    // One is left, which the client itself takes.
    let last = (0..).find(|number| !open.contains(number)).expect("a number");
    balancer.limit_descriptors(Some(last + 1));
    assert_eq!(rest(&mut connect(web)), Err(ErrorKind::ConnectionReset));
    old.ask("meanwhile").expect("established flows go on");
    balancer.limit_descriptors(None);
    eventually("it is counted", || balancer.count("closes", "descriptors") == 1.0);
    Client::connect(web).expect("a connection").ask("after").expect("new flows are served");
}

#[test]
fn a_listener_that_is_full_sheds_the_new_and_keeps_the_old() {
    let endpoint = Endpoint::start();
    for workers in [1, 2] {
        let top = format!("workers = {workers}");
        let balancer = Balancer::start(&config(&top, "max_flows = 3", &[endpoint.address]));
        let web = balancer.address("web");
        let mut old: Vec<_> = (0..3).map(|_| Client::connect(web).expect("a flow")).collect();
        old.iter_mut().for_each(|client| _ = client.ask("before").expect("an answer"));
        for _ in 0..5 {
            assert_eq!(rest(&mut connect(web)), Err(ErrorKind::ConnectionReset));
        }
        old.iter_mut().for_each(|client| _ = client.ask("after").expect("an answer"));
        eventually("the shed are counted", || balancer.count("sheds", "flows-max") == 5.0);
        assert_eq!(balancer.web("flows_active"), 3.0);
        assert_eq!(balancer.web("flows_total"), 3.0);

        old.pop();
        eventually("there is room again", || balancer.web("flows_active") == 2.0);
        Client::connect(web).expect("a flow").ask("new").expect("an answer");
    }
}

/// Another address of this machine.
fn other(last: u8) -> IpAddr {
    IpAddr::from([127, 0, 0, last])
}

#[test]
fn the_most_specific_network_decides_who_may_come() {
    let endpoint = Endpoint::start();
    let access = "deny = [\"127.0.0.0/29\"]\nallow = [\"127.0.0.0/24\", \"127.0.0.5\"]";
    let balancer = Balancer::start(&config("workers = 2", access, &[endpoint.address]));
    let web = balancer.address("web");
    for (last, is_allowed) in [(1, false), (5, true), (7, false), (8, true)] {
        let mut client = connect_from(other(last), web);
        if is_allowed {
            Client::of(client).ask("hello").expect("an answer");
        } else {
            assert_eq!(rest(&mut client), Err(ErrorKind::ConnectionReset), "{last}");
        }
    }
    let outside = &mut connect_from(IpAddr::from([127, 0, 1, 1]), web);
    assert_eq!(rest(outside), Err(ErrorKind::ConnectionReset), "nobody else is allowed");
    eventually("they are counted", || balancer.count("sheds", "not-allowed") == 3.0);
    assert_eq!(balancer.web("flows_total"), 2.0);
}

#[test]
fn a_client_has_no_more_connections_than_it_may_over_all_workers() {
    let endpoint = Endpoint::start();
    let limit = "max_flows_per_client = 3";
    let balancer = Balancer::start(&config("workers = 2", limit, &[endpoint.address]));
    let web = balancer.address("web");
    let mut old: Vec<_> = (0..3).map(|_| Client::of(connect_from(other(2), web))).collect();
    old.iter_mut().for_each(|client| _ = client.ask("before").expect("an answer"));
    for _ in 0..4 {
        let refused = &mut connect_from(other(2), web);
        assert_eq!(rest(refused), Err(ErrorKind::ConnectionReset));
    }
    Client::of(connect_from(other(3), web)).ask("another client").expect("an answer");
    assert_eq!(balancer.count("sheds", "client-flows-max"), 4.0);
    old.iter_mut().for_each(|client| _ = client.ask("after").expect("an answer"));
    drop(old);
    eventually("they have ended", || balancer.web("flows_active") == 0.0);
    Client::of(connect_from(other(2), web)).ask("new").expect("there is room again");
}

#[test]
fn a_client_that_comes_too_often_is_shed_and_others_are_not() {
    let endpoint = Endpoint::start();
    let limit = "new_flows_per_second_per_client = 1";
    let balancer = Balancer::start(&config("workers = 2", limit, &[endpoint.address]));
    let web = balancer.address("web");
    eventually("it is shed", || {
        drop(connect_from(other(2), web));
        balancer.count("sheds", "client-new-flow-rate") >= 3.0
    });
    Client::of(connect_from(other(3), web)).ask("another client").expect("an answer");
}

#[test]
fn all_listeners_together_have_no_more_flows_than_they_may() {
    let endpoint = Endpoint::start();
    let second = "[[listeners]]\nname = \"second\"\naddress = \"127.0.0.1:0\"\ncluster = \"web\"\n";
    let text = config("workers = 2\nmax_flows = 4", "", &[endpoint.address]);
    let balancer = Balancer::start(&format!("{text}{second}"));
    let listeners = [balancer.address("web"), balancer.address("second")];
    let both = listeners.iter().cycle().take(4);
    let mut old: Vec<_> = both.map(|to| Client::connect(*to).expect("a flow")).collect();
    old.iter_mut().for_each(|client| _ = client.ask("before").expect("an answer"));
    for to in listeners {
        assert_eq!(rest(&mut connect(to)), Err(ErrorKind::ConnectionReset));
    }
    eventually("they are counted", || balancer.count("sheds", "all-flows-max") == 1.0);
    old.iter_mut().for_each(|client| _ = client.ask("after").expect("an answer"));
    old.pop();
    eventually("one has ended", || balancer.metrics().contains("active{listener=\"second\"} 1"));
    Client::connect(listeners[0]).expect("a flow").ask("new").expect("there is room again");
}

#[test]
fn two_thousand_flows_leave_nothing_behind() {
    let origin = Origin::start();
    // Few buffers, or the memory would grow until each has been used once.
    let top = "workers = 1\nbuffers = { small = 64, bulk = 4 }\nflow_table_entries = 64";
    let balancer = Balancer::start(&config(top, "", &[origin.address()]));
    let web = balancer.address("web");
    let descriptors = balancer.settled_descriptors();
    cycle(&origin, web, 500);
    let memory = balancer.resident_kib();
    cycle(&origin, web, 1_500);

    eventually("all flows have ended", || balancer.web("flows_active") == 0.0);
    assert_eq!(balancer.web("flows_total"), 2_000.0);
    assert_eq!(balancer.decisions("web", "native"), 2_000.0);
    eventually("all descriptors are closed", || balancer.descriptors() == descriptors);
    let grown = balancer.resident_kib().saturating_sub(memory);
    assert!(grown < 1024, "1500 flows have left {grown} KiB");
}

fn cycle(origin: &Origin, web: std::net::SocketAddr, flows: usize) {
    for number in 0..flows {
        let mut ends = origin.open(web);
        ends.exchange().expect("the flow works");
        let Ends { client, server } = ends;
        // Either side ends first.
        if number % 2 == 0 {
            drop(client);
        } else {
            drop(server);
        }
    }
}
