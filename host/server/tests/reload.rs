//! The configuration is read again while the balancer serves.

mod support;

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::process::{Command, Output};
use std::thread;

use pointsman::client;
use pointsman::reload::Answer;
use pointsman::status::{Listener, Status};
use rustix::process::Signal;
use support::policy::Traffic;
use support::udp::{Asker, Server};
use support::{Balancer, Client, Endpoint, POINTSMAN, ask_once, eventually, plugins};

/// An address at which nobody listens by the time it is needed.
fn free_address() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").expect("a port").local_addr().expect("its address")
}

/// The same for datagrams.
fn free_udp_address() -> SocketAddr {
    UdpSocket::bind("127.0.0.1:0").expect("a port").local_addr().expect("its address")
}

fn listener(name: &str, address: SocketAddr, cluster: &str, more: &str) -> String {
    format!(
        "[[listeners]]\nname = \"{name}\"\naddress = \"{address}\"\ncluster = \"{cluster}\"\n{more}\n"
    )
}

fn cluster(name: &str, endpoints: &[SocketAddr], more: &str) -> String {
    let mut text = format!("[[clusters]]\nname = \"{name}\"\n{more}\nendpoints = [");
    for address in endpoints {
        let _ = write!(text, "{{ address = \"{address}\" }}, ");
    }
    text + "]\n"
}

/// One listener and one cluster, both named `web`.
fn web(address: SocketAddr, endpoints: &[SocketAddr]) -> String {
    format!("workers = 2\n{}{}", listener("web", address, "web", ""), cluster("web", endpoints, ""))
}

impl Balancer {
    /// Puts another configuration in the place of the one there is.
    fn write(&self, config: &str) {
        let socket = self.socket();
        let text = format!("{config}\n[admin]\nsocket = {socket:?}\n");
        // Whoever reads it meanwhile sees one of the two.
        let new = self.path("pointsman.toml.new");
        fs::write(&new, text).expect("the configuration is written");
        fs::rename(&new, self.path("pointsman.toml")).expect("it is in its place");
    }

    fn ask_to_reload(&self, more: &[&str]) -> Output {
        let mut command = Command::new(POINTSMAN);
        command.arg("reload").args(more).arg("--admin").arg(self.socket());
        command.output().expect("the binary runs")
    }

    /// Goes by another configuration, which must be good.
    fn reload(&self, config: &str) -> Answer {
        self.write(config);
        let output = self.ask_to_reload(&["--json"]);
        let said = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success(), "{said}");
        serde_json::from_str(&said).expect("an answer")
    }

    /// Refuses another configuration; tells why.
    fn refuse(&self, config: &str) -> String {
        self.write(config);
        let output = self.ask_to_reload(&[]);
        assert_eq!(output.status.code(), Some(2), "{output:?}");
        String::from_utf8_lossy(&output.stderr).into_owned()
    }

    fn listener(&self, name: &str) -> Option<Listener> {
        self.status().listeners.into_iter().find(|listener| listener.name == name)
    }
}

fn start(config: &str) -> Balancer {
    Balancer::start(config)
}

fn who_answers(address: SocketAddr) -> BTreeSet<SocketAddr> {
    (0..20).filter_map(|_| ask_once(address).ok()).collect()
}

#[test]
fn endpoints_come_and_go_by_a_reload_and_established_flows_stay_where_they_are() {
    let (old, new) = (Endpoint::start(), Endpoint::start());
    let address = free_address();
    let balancer = start(&web(address, &[old.address]));
    let mut client = Client::connect(address).expect("a connection");
    assert_eq!(client.ask("before").expect("an answer"), old.address);

    let answer = balancer.reload(&web(address, &[old.address, new.address]));
    assert_eq!(answer.clusters.changed, ["web"]);
    assert!(answer.listeners.changed.is_empty() && answer.policies.changed.is_empty());
    eventually("both serve", || who_answers(address).len() == 2);

    balancer.reload(&web(address, &[new.address]));
    eventually("the new one serves", || who_answers(address) == BTreeSet::from([new.address]));
    assert_eq!(client.ask("after").expect("an answer"), old.address);
    let status = balancer.status();
    let left = status.clusters[0].endpoints.iter().find(|one| one.removed).expect("it is shown");
    assert_eq!((left.address.parse(), left.flows_active), (Ok(old.address), 1));

    // Who comes back before its flows have ended is who it was.
    balancer.reload(&web(address, &[new.address, old.address]));
    let status = balancer.status();
    assert!(status.clusters[0].endpoints.iter().all(|endpoint| !endpoint.removed));
    let of_old = status.clusters[0].endpoints.iter().find(|one| one.flows_active == 1);
    assert_eq!(of_old.expect("its flow").address.parse(), Ok(old.address));
    assert_eq!(client.ask("again").expect("an answer"), old.address);
}

#[test]
fn a_file_with_mistakes_changes_nothing_and_each_is_told_with_its_key_and_place() {
    let endpoint = Endpoint::start();
    let address = free_address();
    let good = web(address, &[endpoint.address]);
    let balancer = start(&good);
    let before = balancer.status().generation;
    let other = free_address();
    let bad = good
        .replace("name = \"web\"\n\nendpoints", "name = \"web\"\npolcy = \"x\"\nendpoints")
        + &listener("more", other, "wbe", "max_flows = 0");
    let told = balancer.refuse(&bad);
    for part in [
        "clusters[0].polcy",
        "did you mean \"policy\"?",
        "listeners[1].cluster",
        "did you mean \"web\"?",
        "listeners[1].max_flows",
    ] {
        assert!(told.contains(part), "{part} is not in\n{told}");
    }
    let places = told.lines().filter(|line| line.contains("pointsman.toml:"));
    assert_eq!((places.count(), told.lines().count()), (3, 3), "{told}");
    assert!(ask_once(other).is_err(), "nothing of it has taken effect");
    assert_eq!(ask_once(address).expect("an answer"), endpoint.address);

    let status = balancer.status();
    assert_eq!(status.generation, before);
    let last = status.last_reload.expect("it is remembered");
    assert_eq!((&*last.outcome, last.problems.len()), ("refused", 3));
    let count = |outcome| {
        balancer.metric(&format!("pointsman_reloads_total{{outcome=\"{outcome}\"}}")) as u64
    };
    assert_eq!((count("refused"), count("applied")), (1, 0));
    assert_eq!(balancer.metric("pointsman_last_reload_successful") as u64, 0);

    let answer = balancer.reload(&good);
    assert_eq!(balancer.status().last_reload.expect("it").generation, Some(answer.generation));
    assert_eq!((count("refused"), count("applied")), (1, 1));
    assert_eq!(balancer.metric("pointsman_last_reload_successful") as u64, 1);
}

#[test]
fn a_file_that_is_gone_is_told_in_the_log_where_a_signal_has_asked() {
    let endpoint = Endpoint::start();
    let address = free_address();
    let balancer = start(&web(address, &[endpoint.address]));
    fs::remove_file(balancer.path("pointsman.toml")).expect("it is gone");
    balancer.signal(Signal::HUP);
    eventually("it is told", || balancer.log().contains("the configuration is not reloaded"));
    assert_eq!(ask_once(address).expect("an answer"), endpoint.address);
}

#[test]
fn what_only_a_start_can_change_is_refused_by_its_key() {
    let endpoint = Endpoint::start();
    let address = free_address();
    let text = web(address, &[endpoint.address]);
    let balancer = start(&text);
    let told = balancer.refuse(
        &(text
            .replace("workers = 2", "workers = 3\nflow_table_entries = 5\nplugin_cpu_percent = 7")
            + "[buffers]\nsmall = 128\n[access_log]\npath = \"-\"\n"),
    );
    for key in
        ["workers", "flow_table_entries", "plugin_cpu_percent", "buffers.small", "access_log"]
    {
        let line = told.lines().find(|line| line.contains(&format!(": {key}: ")));
        assert!(line.is_some_and(|line| line.contains("restart to change it")), "{key}:\n{told}");
    }
    assert_eq!(told.lines().count(), 5, "{told}");
    let first_of_datagrams = text + &listener("dns", address, "web", "protocol = \"udp\"");
    let told = balancer.refuse(&first_of_datagrams);
    assert!(told.contains("listeners[1].protocol") && told.contains("restart to add it"), "{told}");
}

/// Two configurations that differ in everything a reload can change.
fn two(addresses: [SocketAddr; 4], endpoints: &[SocketAddr], dns: &[SocketAddr]) -> [String; 2] {
    let [web, dns_address, other, moved] = addresses;
    let stable = |more: &str| {
        listener("web", web, "web", more)
            + &listener("dns", dns_address, "dns", "protocol = \"udp\"")
    };
    let all = cluster("web", endpoints, "policy = \"round-robin\"");
    let fewer = cluster("web", &endpoints[1..], "policy = \"least-flows\"\nhealth = {}");
    let one = format!(
        "workers = 2\n{}{}{}{all}{}",
        stable("max_flows = 5000"),
        listener("other", other, "other", ""),
        listener("moved", other_port(moved), "web", ""),
        cluster("other", endpoints, "") + &cluster("dns", dns, "policy = \"maglev\""),
    );
    let another = format!(
        "workers = 2\nmax_flows = 9000\n{}{}{fewer}{}",
        stable("max_flows = 4000\nallow = [\"127.0.0.0/8\"]\nnew_flows_per_second = 100000"),
        listener("moved", moved, "web", ""),
        cluster("dns", dns, "policy = \"maglev\"\nfail_open = false"),
    );
    [one, another]
}

/// The same address on another of this machine's interfaces.
fn other_port(address: SocketAddr) -> SocketAddr {
    SocketAddr::new([127, 0, 0, 2].into(), address.port())
}

#[test]
fn reloads_under_load_cost_no_flow_no_answer_and_no_descriptor() {
    let endpoints: Vec<_> = (0..3).map(|_| Endpoint::start()).collect();
    let servers: Vec<_> = (0..2).map(|_| Server::start()).collect();
    let addresses: Vec<_> = endpoints.iter().map(|endpoint| endpoint.address).collect();
    let dns: Vec<_> = servers.iter().map(|server| server.address).collect();
    let at = [free_address(), free_udp_address(), free_address(), free_address()];
    let configs = two(at, &addresses, &dns);
    let balancer = start(&configs[0]);
    let askers: Vec<_> = (0..8).map(|_| Asker::new("127.0.0.1", at[1])).collect();
    let answered: Vec<_> = askers.iter().map(|asker| asker.ask(b"first")).collect();
    // What there will be is there after the first rounds.
    (0..4).for_each(|round| drop(balancer.reload(&configs[(round + 1) % 2])));
    let descriptors = balancer.settled_descriptors().len();
    let mut established: Vec<_> = (0..8)
        .map(|_| {
            let mut client = Client::connect(at[0]).expect("a connection");
            let endpoint = client.ask("first").expect("an answer");
            (client, endpoint)
        })
        .collect();
    let traffic = Traffic::start(at[0], 4);
    for round in 0..40 {
        let config = &configs[(round + 1) % 2];
        if round % 4 == 3 {
            let before = balancer.status().reloads["applied"];
            balancer.write(config);
            balancer.signal(Signal::HUP);
            eventually("it is reloaded", || balancer.status().reloads["applied"] > before);
        } else {
            balancer.reload(config);
        }
        for (client, endpoint) in &mut established {
            assert_eq!(client.ask("more").expect("an answer"), *endpoint, "round {round}");
        }
        for (asker, endpoint) in askers.iter().zip(&answered) {
            assert_eq!(asker.ask(b"more"), *endpoint, "round {round}");
        }
    }
    assert!(traffic.stop() > 100);
    let status = balancer.status();
    assert_eq!(status.reloads["applied"], 44, "{:?}", status.last_reload);
    let web = balancer.listener("web").expect("the listener");
    assert_eq!((web.flows_active, web.sheds.len(), web.drops.len()), (8, 0, 0), "{web:?}");
    assert!(web.closes.keys().eq(["finished"]), "{web:?}");
    drop(established);
    assert!(balancer.settled_descriptors().len() <= descriptors, "descriptors are not flat");
}

#[test]
fn what_a_reload_does_not_name_goes_on_as_if_there_had_been_none() {
    let endpoints: Vec<_> = (0..3).map(|_| Endpoint::start()).collect();
    let addresses: Vec<_> = endpoints.iter().map(|endpoint| endpoint.address).collect();
    let (address, other) = (free_address(), free_address());
    let text = web(address, &addresses).replace("workers = 2", "workers = 1");
    let balancer = start(&text);
    let with_other = text.clone() + &listener("other", other, "web", "");
    // In round robin whoever answered first answers fourth; one more or less would show.
    let turns: Vec<_> = (0..3).map(|_| ask_once(address).expect("an answer")).collect();
    for round in 0..10 {
        balancer.reload(if round % 2 == 0 { &with_other } else { &text });
        assert_eq!(ask_once(address).expect("an answer"), turns[round % 3], "round {round}");
    }
    let web = balancer.listener("web").expect("the listener");
    assert_eq!(web.flows_total, 13);
}

#[test]
fn a_drain_by_an_operator_is_kept_and_the_weight_is_the_file_s() {
    let (one, other) = (Endpoint::start(), Endpoint::start());
    let address = free_address();
    let text = web(address, &[one.address, other.address]);
    let balancer = start(&text);
    let path = "/v1/clusters/web/endpoints";
    let body =
        format!("{{\"addresses\": [\"{}\"], \"draining\": true, \"weight\": 9}}", one.address);
    let (code, said) =
        client::send_body(&balancer.socket(), ("PATCH", path), body.as_bytes(), support::GIVE_UP)
            .expect("an answer");
    assert_eq!(code, 200, "{said}");
    balancer.reload(&text);
    let status = balancer.status();
    let found =
        status.clusters[0].endpoints.iter().find(|it| it.address.parse() == Ok(one.address));
    let found = found.expect("the endpoint");
    assert_eq!((found.draining, found.weight), (true, 1));
    assert_eq!(who_answers(address), BTreeSet::from([other.address]));
}

#[test]
fn a_listener_comes_by_a_reload_and_goes_by_another_and_its_flows_go_on() {
    let endpoint = Endpoint::start();
    let (address, other) = (free_address(), free_address());
    let text = web(address, &[endpoint.address]);
    let with_other = text.clone() + &listener("other", other, "web", "");
    let balancer = start(&text);
    assert!(ask_once(other).is_err());
    let answer = balancer.reload(&with_other);
    assert_eq!(answer.listeners.added, ["other"]);
    let mut client = Client::connect(other).expect("a connection");
    assert_eq!(client.ask("before").expect("an answer"), endpoint.address);

    let answer = balancer.reload(&text);
    assert_eq!(answer.listeners.removed, ["other"]);
    eventually("nobody is let in", || TcpStream::connect(other).is_err());
    assert_eq!(client.ask("after").expect("an answer"), endpoint.address);
    let left = balancer.listener("other").expect("it has a flow");
    assert!(left.removed && left.flows_active == 1, "{left:?}");
    assert!(balancer.metric("pointsman_flows_active{listener=\"other\"}") > 0.5);
    drop(client);
    eventually("it is gone", || balancer.listener("other").is_none());
    assert!(!balancer.metrics().contains("listener=\"other\""));

    balancer.reload(&with_other);
    assert_eq!(ask_once(other).expect("an answer"), endpoint.address);
}

#[test]
fn flows_of_a_listener_that_is_removed_have_as_long_as_a_drain() {
    let endpoint = Endpoint::start();
    let (address, other) = (free_address(), free_address());
    let text = format!("drain_timeout_ms = 200\n{}", web(address, &[endpoint.address]));
    let balancer = start(&(text.clone() + &listener("other", other, "web", "")));
    let mut client = Client::connect(other).expect("a connection");
    client.ask("before").expect("an answer");
    let mut stays = Client::connect(address).expect("a connection");
    stays.ask("before").expect("an answer");
    balancer.reload(&text);
    assert!(client.is_ended());
    assert!(stays.ask("after").is_ok());
    eventually("it is gone", || balancer.listener("other").is_none());
    assert!(balancer.log().contains("listener is closed"));
}

#[test]
fn a_listener_that_moves_to_another_address_is_the_same_to_whoever_counts() {
    let endpoint = Endpoint::start();
    let (first, second) = (free_address(), free_address());
    let balancer = start(&web(first, &[endpoint.address]));
    let mut client = Client::connect(first).expect("a connection");
    client.ask("before").expect("an answer");
    for (round, address) in [second, first, second].into_iter().enumerate() {
        balancer.reload(&web(address, &[endpoint.address]));
        assert_eq!(ask_once(address).expect("an answer"), endpoint.address);
        let status = balancer.status();
        assert_eq!(status.listeners.len(), 1, "round {round}");
        assert_eq!(status.listeners[0].address.parse(), Ok(address));
        assert_eq!(status.listeners[0].flows_total, 2 + round as u64);
        assert!(client.ask("during").is_ok());
    }
    eventually("it is not let in twice", || TcpStream::connect(first).is_err());
}

#[test]
fn a_listener_of_datagrams_that_is_removed_goes_on_for_the_flows_it_has() {
    let server = Server::start();
    let (address, other) = (free_udp_address(), free_udp_address());
    let of = |name: &str, address| listener(name, address, "dns", "protocol = \"udp\"");
    let dns = cluster("dns", &[server.address], "");
    let text = format!("workers = 2\n{}{dns}", of("dns", address));
    let with_other = format!("{text}{}", of("other", other));
    let balancer = start(&with_other);
    let known: Vec<_> = (0..8).map(|_| Asker::new("127.0.0.1", other)).collect();
    known.iter().for_each(|asker| assert_eq!(asker.ask(b"before"), server.address));

    balancer.reload(&text);
    let stranger = Asker::new("127.0.0.1", other);
    eventually("strangers are refused", || {
        stranger.send(b"let me in");
        let left = balancer.listener("other").expect("it has flows");
        left.sheds.contains_key("draining")
    });
    known.iter().for_each(|asker| assert_eq!(asker.ask(b"after"), server.address));
    assert!(balancer.listener("other").is_some_and(|left| left.removed));

    // Wanted again, it has never left: its flows are the same, and others may come.
    balancer.reload(&with_other);
    assert_eq!(stranger.insist(b"let me in"), server.address);
    known.iter().for_each(|asker| assert_eq!(asker.ask(b"again"), server.address));
    let back = balancer.listener("other").expect("it is back");
    assert!(!back.removed && back.flows_active == 9, "{back:?}");
}

#[test]
fn datagrams_of_a_listener_that_was_closed_go_to_the_one_that_comes_after_it() {
    let server = Server::start();
    let (address, other) = (free_udp_address(), free_udp_address());
    let of = |name: &str, at| listener(name, at, "dns", "protocol = \"udp\"\nidle_timeout_ms = 50");
    let text =
        format!("workers = 2\n{}{}", of("dns", address), cluster("dns", &[server.address], ""));
    let with_other = format!("{text}{}", of("other", other));
    let balancer = start(&text);
    let descriptors = balancer.descriptors().len();
    for round in 0..3 {
        balancer.reload(&with_other);
        let asker = Asker::new("127.0.0.1", other);
        assert_eq!(asker.insist(b"hello"), server.address, "round {round}");
        balancer.reload(&text);
        eventually("it is closed", || balancer.listener("other").is_none());
    }
    // Nobody waits for it to be closed: its address is free when it is wanted again.
    for round in 0..20 {
        balancer.reload(&with_other);
        let asker = Asker::new("127.0.0.1", other);
        assert_eq!(asker.insist(b"hello"), server.address, "round {round}");
        drop(asker);
        balancer.reload(&text);
    }
    eventually("its sockets and ports are closed", || balancer.descriptors().len() <= descriptors);
}

#[test]
fn settings_of_a_listener_change_in_place_and_established_flows_do_not_notice() {
    let endpoint = Endpoint::start();
    let address = free_address();
    let text = web(address, &[endpoint.address]);
    let with =
        |more: &str| text.replace("cluster = \"web\"\n", &format!("cluster = \"web\"\n{more}\n"));
    let balancer = start(&text);
    let mut client = Client::connect(address).expect("a connection");
    client.ask("before").expect("an answer");
    let sheds = |reason: &str| {
        balancer.listener("web").expect("it").sheds.get(reason).copied().unwrap_or(0)
    };
    for (more, reason) in [
        ("deny = [\"127.0.0.1\"]", "not-allowed"),
        ("max_flows = 1", "flows-max"),
        ("new_flows_per_second = 1", "new-flow-rate"),
        ("new_flows_per_second_per_client = 1", "client-new-flow-rate"),
    ] {
        let before = sheds(reason);
        let answer = balancer.reload(&with(more));
        assert_eq!(answer.listeners.changed, ["web"]);
        eventually(reason, || {
            let _ = ask_once(address);
            sheds(reason) > before
        });
        assert!(client.ask("during").is_ok(), "{more}");
    }
    let before = balancer.reload(&with("max_flows_per_client = 1")).generation;
    // The flow that is older than the limit is not counted by it; another one is.
    let mut second = Client::connect(address).expect("a connection");
    assert!(second.ask("second").is_ok());
    eventually("a third is one too many", || {
        let _ = ask_once(address);
        sheds("client-flows-max") > 0
    });
    drop((client, second));
    eventually("who has none may come", || ask_once(address).is_ok());
    assert!(balancer.reload(&text).generation > before);
    assert_eq!(who_answers(address).len(), 1);
    assert!(balancer.listener("web").is_some_and(|web| web.flows_total > 5));
}

#[test]
fn a_listener_begins_to_ask_for_headers_and_endpoints_begin_to_get_them() {
    let endpoint = Endpoint::start();
    let address = free_address();
    let with = |inbound: &str, outbound: &str| {
        let listener = listener("web", address, "web", inbound);
        format!("workers = 2\n{listener}{}", cluster("web", &[endpoint.address], outbound))
    };
    let balancer = start(&with("", ""));
    let mut before = Client::connect(address).expect("a connection");
    before.ask("plain").expect("an answer");
    balancer.reload(&with("proxy_protocol = { trusted = [\"127.0.0.0/8\"] }", ""));
    assert!(ask_once(address).is_err(), "who does not say for whom he comes is refused");
    let mut stream = TcpStream::connect(address).expect("a connection");
    stream.write_all(b"PROXY TCP4 192.0.2.1 192.0.2.9 4000 80\r\n").expect("it is sent");
    assert_eq!(Client::of(stream).ask("announced").expect("an answer"), endpoint.address);
    balancer.reload(&with("", "proxy_protocol = { version = \"v1\" }"));
    let mut line = String::new();
    let mut stream = TcpStream::connect(address).expect("a connection");
    stream.write_all(b"last\n").expect("it is sent");
    BufReader::new(stream).read_line(&mut line).expect("an answer");
    assert!(line.contains("PROXY TCP4 127.0.0.1"), "{line}");
    assert_eq!(before.ask("still plain").expect("an answer"), endpoint.address);
}

#[test]
fn a_listener_turns_to_another_cluster_and_its_flows_stay_with_the_one_before() {
    let (first, second) = (Endpoint::start(), Endpoint::start());
    let address = free_address();
    let clusters = cluster("web", &[first.address], "") + &cluster("new", &[second.address], "");
    let to = |name: &str| format!("workers = 2\n{}{clusters}", listener("web", address, name, ""));
    let balancer = start(&to("web"));
    let mut client = Client::connect(address).expect("a connection");
    assert_eq!(client.ask("before").expect("an answer"), first.address);
    balancer.reload(&to("new"));
    assert_eq!(who_answers(address), BTreeSet::from([second.address]));
    assert_eq!(client.ask("after").expect("an answer"), first.address);
    let shown: Status = balancer.status();
    let of_web = shown.clusters.iter().find(|cluster| cluster.name == "web").expect("it");
    assert_eq!(of_web.endpoints[0].flows_active, 1);

    // The cluster goes, and with it nothing that is under way.
    let alone = format!(
        "workers = 2\n{}{}",
        listener("web", address, "new", ""),
        cluster("new", &[second.address], "")
    );
    let answer = balancer.reload(&alone);
    assert_eq!(answer.clusters.removed, ["web"]);
    assert_eq!(client.ask("still").expect("an answer"), first.address);
    let left = balancer.status().clusters.into_iter().find(|cluster| cluster.name == "web");
    assert!(left.expect("it has a flow").removed);
    drop(client);
    eventually("it is gone", || balancer.status().clusters.len() == 1);
}

#[test]
fn checks_begin_and_end_and_change_with_the_file() {
    let (good, bad) = (Endpoint::start(), free_address());
    let address = free_address();
    let with = |more: &str| {
        format!(
            "workers = 2\n{}{}",
            listener("web", address, "web", ""),
            cluster("web", &[good.address, bad], more)
        )
    };
    let balancer = start(&with(""));
    assert!(balancer.is_up(bad), "nobody checks it");
    let fast = "interval_ms = 20, fall = 2";
    balancer.reload(&with(&format!("health = {{ kind = \"tcp\", {fast} }}")));
    eventually("it is found down", || !balancer.is_up(bad));
    assert!(balancer.is_up(good.address));
    // The good one speaks no HTTP.
    balancer.reload(&with(&format!("health = {{ kind = \"http\", {fast} }}")));
    assert!(!balancer.is_up(bad), "what is believed stays");
    eventually("it is found down", || !balancer.is_up(good.address));
    balancer.reload(&with(""));
    assert!(balancer.is_up(bad) && balancer.is_up(good.address), "nobody checks them");
}

/// One worker, and a cluster that may have so many flows and lets others wait.
fn limited(
    address: SocketAddr,
    by: &str,
    [own, other]: [SocketAddr; 2],
    limits: [u32; 2],
) -> String {
    let [flows, waiting] = limits;
    let endpoint = format!("endpoints = [{{ address = \"{own}\", max_flows = {flows} }}]");
    let queue = format!("queue = {{ max_flows = {waiting}, timeout_ms = 600000 }}");
    format!(
        "workers = 1\n{}[[clusters]]\nname = \"web\"\n{queue}\n{endpoint}\n{}",
        listener("web", address, by, ""),
        cluster("other", &[other], "")
    )
}

#[test]
fn limits_and_queues_change_with_the_file_and_whoever_waits_goes_where_his_listener_does() {
    let (own, other) = (Endpoint::start(), Endpoint::start());
    let (address, endpoints) = (free_address(), [own.address, other.address]);
    let balancer = start(&limited(address, "web", endpoints, [1, 9]));
    let ask = move || -> std::io::Result<(SocketAddr, Client)> {
        let mut client = Client::connect(address)?;
        Ok((client.ask("who")?, client))
    };
    let waiting = || balancer.metric("pointsman_cluster_queue_flows{cluster=\"web\"}");
    let wait = |count: f64| {
        let asking = thread::spawn(ask);
        eventually("it waits", || waiting() == count);
        asking
    };
    let first = ask().expect("it is served");
    let (second, third) = (wait(1.0), wait(2.0));

    balancer.reload(&limited(address, "web", endpoints, [2, 1]));
    let second = second.join().expect("no panic").expect("it is served");
    assert_eq!((first.0, second.0, waiting()), (own.address, own.address, 1.0));
    assert!(ask().is_err(), "one may wait, and one does");

    balancer.reload(&limited(address, "other", endpoints, [2, 1]));
    let third = third.join().expect("no panic").expect("it is served");
    assert_eq!((third.0, waiting()), (other.address, 0.0));

    // Its place in the line before is nobody's now, and those places are as they were.
    balancer.reload(&limited(address, "web", endpoints, [2, 1]));
    let fourth = wait(1.0);
    drop(second);
    assert_eq!(fourth.join().expect("no panic").expect("it is served").0, own.address);
}

fn with_policy(address: SocketAddr, endpoints: &[SocketAddr], policies: &str) -> String {
    let policy = if policies.is_empty() { "" } else { "policy = \"own\"" };
    format!(
        "workers = 2\nplugin_cpu_percent = 100\n{}{}{policies}",
        listener("web", address, "web", ""),
        cluster("web", endpoints, policy)
    )
}

#[test]
fn a_policy_changes_with_its_section_or_its_file_and_stays_if_the_new_one_is_bad() {
    let endpoint = Endpoint::start();
    let address = free_address();
    let text = |policies: &str| with_policy(address, &[endpoint.address], policies);
    let balancer = start(&text(""));
    let file = balancer.path("own.wasm");
    let own = |more: &str| format!("[[policies]]\nname = \"own\"\nplugin = {file:?}\n{more}\n");
    fs::copy(plugins().join("p2c.wasm"), &file).expect("a plugin");

    // The first plugin of this process.
    let answer = balancer.reload(&text(&own("")));
    assert_eq!((answer.clusters.changed.len(), &*answer.policies.added[0]), (1, "own"));
    assert_eq!(ask_once(address).expect("an answer"), endpoint.address);
    let decides = || balancer.status().clusters[0].decisions.get("plugin").copied().unwrap_or(0);
    assert!(decides() >= 1);
    let first = balancer.listed();
    let generation = balancer.status().clusters[0].policy_generation;

    // Nothing of it has changed.
    assert!(balancer.reload(&text(&own(""))).policies.changed.is_empty());
    assert_eq!(balancer.listed().generation, first.generation);

    let told = balancer.refuse(&text(&own("config = { choices = \"many\" }")));
    assert!(told.contains("policies[0].plugin"), "{told}");
    fs::write(&file, b"\0asm nonsense").expect("it is written");
    let told = balancer.refuse(&text(&own("")));
    assert!(told.contains("policies[0].plugin") && told.contains("refused"), "{told}");
    assert_eq!(balancer.listed().digest, first.digest);

    fs::copy(plugins().join("round-robin.wasm"), &file).expect("a plugin");
    let answer = balancer.reload(&text(&own("")));
    assert_eq!(answer.policies.changed, ["own"]);
    let second = balancer.listed();
    assert_ne!(second.digest, first.digest);
    assert_eq!(second.previous, first.digest, "it can be rolled back");
    assert_eq!(balancer.status().clusters[0].policy_generation, generation + 1);
    let before = decides();
    assert_eq!(ask_once(address).expect("an answer"), endpoint.address);
    assert!(decides() > before);

    balancer.reload(&text(""));
    assert_eq!(balancer.listed().shape, "native");
    assert_eq!(ask_once(address).expect("an answer"), endpoint.address);
}

#[test]
fn the_access_log_names_who_has_come_and_goes_where_the_file_says() {
    let endpoint = Endpoint::start();
    let (address, other) = (free_address(), free_address());
    let text = web(address, &[endpoint.address]);
    let folder = tempfile::tempdir().expect("a folder");
    let [first, second] = ["first.log", "second.log"].map(|name| folder.path().join(name));
    let logged = |text: &str, file: &std::path::Path, format: &str| {
        format!("{text}[access_log]\npath = {file:?}\nformat = \"{format}\"\n")
    };
    let balancer = start(&logged(&text, &first, "json"));
    ask_once(address).expect("an answer");
    let read = |file: &std::path::Path| fs::read_to_string(file).unwrap_or_default();
    eventually("it is logged", || read(&first).contains("\"listener\":\"web\""));
    let more =
        text + &listener("other", other, "extra", "") + &cluster("extra", &[endpoint.address], "");
    balancer.reload(&logged(&more, &second, "text"));
    ask_once(other).expect("an answer");
    eventually("it is logged elsewhere", || read(&second).contains("other"));
    assert!(read(&second).contains("extra") && !read(&second).contains('{'));
    let nowhere = folder.path().join("none/log");
    let told = balancer.refuse(&logged(&more, &nowhere, "text"));
    assert!(told.contains("access_log.path"), "{told}");
}
