//! Endpoints that are found under names and in files while the balancer serves.

mod support;

use std::collections::BTreeSet;
use std::fs;
use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;

use hickory_resolver::proto::rr::RecordType;
use pointsman::status::{Cluster, Discovery};
use support::dns::{Mood, NameServer, host, hosts, service};
use support::policy::Traffic;
use support::{Balancer, Client, Endpoint, POINTSMAN, ask_once, eventually, plugins};

/// Endpoints with one port and different addresses, as the hosts of one name have.
fn on_one_port<const N: usize>() -> [Endpoint; N] {
    let first = Endpoint::start_at("127.0.0.11:0".parse().expect("an address"));
    let port = first.address.port();
    let mut all = vec![first];
    for last in 12..12 + N as u8 - 1 {
        all.push(Endpoint::start_at(SocketAddr::from(([127, 0, 0, last], port))));
    }
    all.try_into().ok().expect("as many as were started")
}

fn config(policy: &str, discovery: &str) -> String {
    format!(
        "workers = 2\nplugin_cpu_percent = 100\n[[listeners]]\nname = \"web\"\n\
         address = \"127.0.0.1:0\"\ncluster = \"web\"\n[[clusters]]\nname = \"web\"\n\
         policy = \"{policy}\"\ndiscovery = {{ {discovery} }}\n"
    )
}

fn by_name(server: &NameServer, port: u16, more: &str) -> String {
    let resolver = server.address;
    let discovery = format!(
        "kind = \"dns\", name = \"web.test\", port = {port}, resolvers = [\"{resolver}\"], \
         refresh_min_ms = 20, timeout_ms = 400, retry_max_ms = 50{more}"
    );
    config("round-robin", &discovery)
}

fn who_answers(address: SocketAddr) -> BTreeSet<SocketAddr> {
    (0..20).filter_map(|_| ask_once(address).ok()).collect()
}

fn cluster(balancer: &Balancer) -> Cluster {
    balancer.status().clusters.into_iter().next().expect("a cluster")
}

fn search(balancer: &Balancer) -> Discovery {
    cluster(balancer).discovery.expect("a search")
}

fn attempts(balancer: &Balancer, outcome: &str) -> f64 {
    let labels = format!("cluster=\"web\",outcome=\"{outcome}\"");
    balancer.metric(&format!("pointsman_discovery_attempts_total{{{labels}}}"))
}

/// What `pointsman endpoint` with these arguments says, and its exit code.
fn endpoint(balancer: &Balancer, arguments: &[&str]) -> (Option<i32>, String) {
    let mut command = Command::new(POINTSMAN);
    command.arg("endpoint").args(arguments).arg("--admin").arg(balancer.socket());
    let output = command.output().expect("the binary runs");
    (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
}

#[test]
fn whoever_has_the_name_serves_and_who_loses_it_keeps_its_flows() {
    let [one, two, three] = on_one_port();
    let server = NameServer::start();
    server.set("web.test", hosts(&[one.address, two.address]));
    let balancer = Balancer::start(&by_name(&server, one.address.port(), ""));
    let web = balancer.address("web");
    assert_eq!(cluster(&balancer).endpoints.len(), 2, "the start waits for the first answer");
    eventually("both serve", || who_answers(web).len() == 2);
    let mut clients = (0..20).map(|_| Client::connect(web).expect("a connection"));
    let mut client = clients
        .find_map(|mut client| {
            (client.ask("who").expect("an answer") == one.address).then_some(client)
        })
        .expect("a flow");

    server.set("web.test", hosts(&[two.address, three.address]));
    let after = BTreeSet::from([two.address, three.address]);
    eventually("the others serve", || who_answers(web) == after);
    assert_eq!(client.ask("still").expect("an answer"), one.address);
    let shown = cluster(&balancer).endpoints;
    let removed: Vec<_> = shown.iter().filter(|it| it.removed).map(|it| &it.address).collect();
    assert_eq!(removed, [&one.address.to_string()]);
    drop(client);
    eventually("it is forgotten", || cluster(&balancer).endpoints.len() == 2);
    assert!((balancer.metric("pointsman_discovery_endpoints{cluster=\"web\"}") - 2.0).abs() < 0.1);
    assert!(balancer.metric("pointsman_discovery_age_seconds{cluster=\"web\"}") >= 0.0);
}

#[test]
fn the_order_of_answers_disturbs_nothing() {
    let [one, two, three] = on_one_port();
    let server = NameServer::start();
    server.set("web.test", hosts(&[one.address, two.address, three.address]));
    let balancer = Balancer::start(&by_name(&server, one.address.port(), ""));
    let before = balancer.status().generation;
    server.await_questions(10);
    assert_eq!(balancer.status().generation, before);
}

#[test]
fn without_answers_the_last_endpoints_serve_and_a_new_answer_is_taken_when_it_comes() {
    let [one, two] = on_one_port();
    let server = NameServer::start();
    server.set("web.test", hosts(&[one.address]));
    let balancer = Balancer::start(&by_name(&server, one.address.port(), ""));
    let web = balancer.address("web");
    let mut established = Client::connect(web).expect("a connection");
    assert_eq!(established.ask("before").expect("an answer"), one.address);
    let load = Traffic::start(web, 2);
    let bad: [(&str, &dyn Fn()); 5] = [
        ("error", &|| server.set_mood(Mood::ServFail)),
        ("timeout", &|| server.set_mood(Mood::Silent)),
        ("nxdomain", &|| server.remove("web.test")),
        ("empty", &|| server.set("web.test", Vec::new())),
        ("error", &|| server.set_mood(Mood::Babbles)),
    ];
    for (place, (outcome, go_bad)) in bad.into_iter().enumerate() {
        let before = attempts(&balancer, outcome);
        go_bad();
        eventually(outcome, || attempts(&balancer, outcome) > before + 1.0);
        let shown = search(&balancer);
        assert_eq!(shown.state, "failing", "{shown:?}");
        assert!(shown.problem.is_some_and(|problem| problem.starts_with("web.test.")));
        assert_eq!(ask_once(web).expect("an answer"), [&one, &two][place % 2].address);
        assert_eq!(established.ask("during").expect("an answer"), one.address);

        server.set_mood(Mood::Answers);
        let next = [&two, &one][place % 2].address;
        server.set("web.test", hosts(&[next]));
        eventually("the new answer is taken", || who_answers(web) == BTreeSet::from([next]));
        assert_eq!(search(&balancer).state, "found");
    }
    assert!(load.stop() > 0, "there was traffic, and no flow failed");
    let log = balancer.log();
    assert_eq!(log.matches("endpoints are not found; the last stay").count(), 5, "{log}");
    assert_eq!(log.matches("endpoints are found again").count(), 5, "{log}");
}

#[test]
fn the_balancer_starts_without_dns_and_serves_once_there_is_an_answer() {
    let moods = [(Mood::Silent, "timeout"), (Mood::ServFail, "error"), (Mood::Answers, "nxdomain")];
    for (mood, outcome) in moods {
        let [one] = on_one_port();
        let server = NameServer::start();
        server.set_mood(mood);
        let balancer =
            Balancer::start(&by_name(&server, one.address.port(), ", start_timeout_ms = 50"));
        let web = balancer.address("web");
        assert!(cluster(&balancer).endpoints.is_empty());
        let waited = balancer.log().contains("starts without endpoints");
        assert!(waited || outcome != "timeout", "{}", balancer.log());
        assert!(ask_once(web).is_err());
        eventually("the flow has ended with a reason", || {
            let closes = "pointsman_closes_total{listener=\"web\",reason=\"no-endpoint\"}";
            balancer.metric(closes) >= 1.0
        });
        eventually("it is told", || search(&balancer).state == "absent");
        eventually("it is counted", || attempts(&balancer, outcome) >= 1.0);
        server.set("web.test", hosts(&[one.address]));
        server.set_mood(Mood::Answers);
        eventually("it serves", || ask_once(web).is_ok_and(|who| who == one.address));
    }
}

#[test]
fn those_who_serve_go_on_until_those_who_come_in_their_place_have_been_checked() {
    let [one, two] = on_one_port();
    let server = NameServer::start();
    server.set("web.test", hosts(&[one.address]));
    // Nobody is known to serve before the checks of all have come this far.
    let health = "fail_open = false\nhealth = { interval_ms = 50, rise = 2, fall = 2 }\n";
    let balancer = Balancer::start(&(by_name(&server, one.address.port(), "") + health));
    let web = balancer.address("web");
    eventually("it serves", || ask_once(web).is_ok());
    let mut established = Client::connect(web).expect("a connection");
    assert_eq!(established.ask("before").expect("an answer"), one.address);
    let refused = balancer.count("closes", "no-endpoint");
    let load = Traffic::start(web, 2);
    for (place, next) in [&two, &one].repeat(2).into_iter().enumerate() {
        server.set("web.test", hosts(&[next.address]));
        let only = BTreeSet::from([next.address]);
        eventually("the other alone serves", || who_answers(web) == only);
        assert_eq!(established.ask("during").expect("an answer"), one.address, "{place}");
    }
    assert!(load.stop() > 0, "there was traffic, and no flow failed");
    assert_eq!(balancer.count("closes", "no-endpoint"), refused);
}

#[test]
fn plugins_of_every_shape_wait_for_the_first_endpoint() {
    let [one, two] = on_one_port();
    let server = NameServer::start();
    server.set_mood(Mood::Silent);
    server.set("web.test", hosts(&[one.address, two.address]));
    for plugin in ["p2c", "maglev", "latency-weights"] {
        server.set_mood(Mood::Silent);
        let file = plugins().join(format!("{plugin}.wasm"));
        let policy = format!("\n[[policies]]\nname = \"guest\"\nplugin = {file:?}\n");
        let text = by_name(&server, one.address.port(), ", start_timeout_ms = 0");
        let text = text.replace("policy = \"round-robin\"", "policy = \"guest\"") + &policy;
        let balancer = Balancer::start(&text);
        let web = balancer.address("web");
        assert!(ask_once(web).is_err(), "{plugin}");
        server.set_mood(Mood::Answers);
        eventually(plugin, || cluster(&balancer).endpoints.len() == 2);
        eventually(plugin, || {
            ask_once(web).is_ok() && cluster(&balancer).decisions.keys().any(|it| it != "fallback")
        });
        let faults = balancer.status().policies.remove(0).faults;
        assert!(faults.is_empty(), "{plugin}: {faults:?}");
    }
}

#[test]
fn services_have_ports_weights_and_backups() {
    let (heavy, light, spare) = (Endpoint::start(), Endpoint::start(), Endpoint::start());
    let server = NameServer::start();
    let of = |priority, weight, endpoint: &Endpoint| {
        service(priority, weight, endpoint.address.port(), "host.test.")
    };
    server.set("host.test", hosts(&[heavy.address]));
    server.set("_web._tcp.test", vec![of(1, 3, &heavy), of(1, 1, &light), of(2, 9, &spare)]);
    let discovery = format!(
        "kind = \"srv\", name = \"_web._tcp.test\", resolvers = [\"{}\"], refresh_min_ms = 20",
        server.address
    );
    let text = config("round-robin", &discovery).replace("workers = 2", "workers = 1");
    let balancer = Balancer::start(&text);
    let web = balancer.address("web");
    let shown = cluster(&balancer).endpoints;
    let find = |of: &Endpoint| {
        let address = of.address.to_string();
        shown.iter().find(|it| it.address == address).map(|it| (it.weight, it.backup))
    };
    let found = [&heavy, &light, &spare].map(find);
    assert_eq!(found, [Some((3, false)), Some((1, false)), Some((9, true))]);
    let answers: Vec<_> = (0..40).map(|_| ask_once(web).expect("an answer")).collect();
    assert_eq!(answers.iter().filter(|who| **who == heavy.address).count(), 30);

    server.set("_web._tcp.test", vec![of(5, 0, &spare), of(6, 1, &light)]);
    eventually("the spare one serves", || who_answers(web) == BTreeSet::from([spare.address]));
    server.remove("host.test");
    eventually("no address is told", || search(&balancer).state == "failing");
    assert_eq!(ask_once(web).expect("an answer"), spare.address);
}

#[test]
fn a_target_that_cannot_be_asked_about_keeps_its_endpoint_and_holds_up_no_other() {
    let [one, two, three] = on_one_port();
    let server = NameServer::start();
    let port = one.address.port();
    let of = |target| service(1, 1, port, target);
    server.set("a.test", hosts(&[one.address]));
    server.set("b.test", hosts(&[two.address]));
    server.set("_web._tcp.test", vec![of("a.test."), of("b.test.")]);
    let discovery = format!(
        "kind = \"srv\", name = \"_web._tcp.test\", resolvers = [\"{}\"], refresh_min_ms = 20",
        server.address
    );
    let balancer = Balancer::start(&config("round-robin", &discovery));
    let web = balancer.address("web");
    eventually("both serve", || who_answers(web).len() == 2);
    server.fail("a.test", RecordType::A);
    server.set("b.test", hosts(&[three.address]));
    let after = BTreeSet::from([one.address, three.address]);
    eventually("the other has another", || who_answers(web) == after);
    server.await_questions(10);
    assert_eq!(who_answers(web), after);
    server.set("_web._tcp.test", vec![of("b.test.")]);
    eventually("it goes with its name", || who_answers(web) == BTreeSet::from([three.address]));
}

#[test]
fn the_family_says_which_addresses_count() {
    let server = NameServer::start();
    let host = |text: &str| host(text.parse().expect("an address"));
    server.set("web.test", vec![host("127.0.0.11"), host("::1")]);
    let found = |family: &str| {
        let balancer = Balancer::start(&by_name(&server, 1, &format!(", family = \"{family}\"")));
        let endpoints = cluster(&balancer).endpoints;
        endpoints.into_iter().map(|endpoint| endpoint.address).collect::<Vec<_>>()
    };
    let (v4, v6) = ("127.0.0.11:1", "[::1]:1");
    assert_eq!(found("prefer-ipv4"), [v4]);
    assert_eq!(found("prefer-ipv6"), [v6]);
    assert_eq!(found("both"), [v4, v6]);
    server.set("web.test", vec![host("::1")]);
    assert_eq!(found("prefer-ipv4"), [v6], "the other counts where there is none");
    assert_eq!(found("both"), [v6]);
    assert!(found("ipv4").is_empty());
    assert_eq!(found("ipv6"), [v6]);
}

#[test]
fn flows_do_not_move_to_the_other_family_because_nobody_can_tell_of_the_preferred_one() {
    let [one] = on_one_port();
    let server = NameServer::start();
    let other = host("::1".parse().expect("an address"));
    server.set("web.test", vec![host(one.address.ip()), other]);
    let balancer = Balancer::start(&by_name(&server, one.address.port(), ""));
    server.fail("web.test", RecordType::A);
    eventually("that is told", || search(&balancer).state == "failing");
    server.await_questions(5);
    assert_eq!(who_answers(balancer.address("web")), BTreeSet::from([one.address]));
    assert_eq!(cluster(&balancer).endpoints.len(), 1);
}

#[test]
fn no_flow_fails_while_answers_change() {
    let [stays, one, two] = on_one_port();
    let server = NameServer::start();
    server.set("web.test", hosts(&[stays.address]));
    let balancer = Balancer::start(&by_name(&server, stays.address.port(), ""));
    let web = balancer.address("web");
    let mut client = Client::connect(web).expect("a connection");
    assert_eq!(client.ask("before").expect("an answer"), stays.address);
    let load = Traffic::start(web, 4);
    for addresses in [&[stays.address, one.address][..], &[two.address, stays.address]].repeat(10) {
        server.set("web.test", hosts(addresses));
        server.await_questions(2);
    }
    server.set("web.test", hosts(&[stays.address]));
    assert!(load.stop() > 0, "there was traffic");
    assert_eq!(client.ask("after").expect("an answer"), stays.address);
    eventually("everybody is forgotten", || cluster(&balancer).endpoints.len() == 1);
}

#[test]
fn an_answer_that_does_not_fit_a_datagram_is_fetched_by_tcp() {
    let [one] = on_one_port();
    let server = NameServer::start();
    server.set("web.test", hosts(&[one.address]));
    server.set_mood(Mood::Truncates);
    let text =
        by_name(&server, one.address.port(), "").replace("timeout_ms = 400", "timeout_ms = 9000");
    let balancer = Balancer::start(&text);
    let web = balancer.address("web");
    eventually("it serves", || ask_once(web).is_ok_and(|who| who == one.address));
    assert!(server.asked_by_tcp() > 0);
}

#[test]
fn the_ttl_says_when_to_ask_again() {
    let [one] = on_one_port();
    let server = NameServer::start();
    server.set("web.test", hosts(&[one.address]));
    server.set_ttl(86_400);
    let balancer = Balancer::start(&by_name(&server, one.address.port(), ""));
    let asked = server.asked();
    for _ in 0..50 {
        ask_once(balancer.address("web")).expect("an answer");
    }
    assert_eq!(server.asked(), asked, "an answer of a day is asked for once a minute at most");

    let often = by_name(&server, one.address.port(), ", refresh_max_ms = 30");
    let _balancer = Balancer::start(&often);
    server.await_questions(5);
}

#[test]
fn addresses_that_mean_nothing_and_those_beyond_the_most_are_left_out() {
    let [one, two, three] = on_one_port();
    let server = NameServer::start();
    let mut records = hosts(&[three.address, two.address, one.address]);
    for useless in ["0.0.0.0", "224.0.0.1", "255.255.255.255"] {
        records.push(host(useless.parse().expect("an address")));
    }
    server.set("web.test", records);
    let balancer = Balancer::start(&by_name(&server, one.address.port(), ", max_endpoints = 2"));
    server.await_questions(10);
    let shown: Vec<_> = cluster(&balancer).endpoints.into_iter().map(|it| it.address).collect();
    assert_eq!(shown, [one.address.to_string(), two.address.to_string()]);
    for (reason, each) in [("unusable", 3.0), ("excess", 1.0)] {
        let labels = format!("cluster=\"web\",reason=\"{reason}\"");
        let count = balancer.metric(&format!("pointsman_discovery_left_out_total{{{labels}}}"));
        assert!(count >= each && (count % each).abs() < f64::EPSILON, "{reason}: {count}");
    }
    let told = balancer.log().matches("a part of the answer is not used").count();
    assert_eq!(told, 1, "{}", balancer.log());
}

#[test]
fn a_name_that_is_denied_for_long_enough_loses_its_endpoints_where_that_is_wanted() {
    let [one] = on_one_port();
    let server = NameServer::start();
    server.set("web.test", hosts(&[one.address]));
    let balancer =
        Balancer::start(&by_name(&server, one.address.port(), ", forget_after_ms = 100"));
    let web = balancer.address("web");
    let mut client = Client::connect(web).expect("a connection");
    assert_eq!(client.ask("before").expect("an answer"), one.address);
    server.remove("web.test");
    eventually("they are given up", || search(&balancer).state == "absent");
    eventually("nobody serves", || ask_once(web).is_err());
    assert_eq!(client.ask("after").expect("an answer"), one.address);
    server.set("web.test", hosts(&[one.address]));
    eventually("it serves", || ask_once(web).is_ok_and(|who| who == one.address));
}

#[test]
fn a_drained_endpoint_stays_so_and_what_was_found_is_not_changed_by_hand() {
    let [one, two, three] = on_one_port();
    let server = NameServer::start();
    server.set("web.test", hosts(&[one.address, two.address]));
    let balancer = Balancer::start(&by_name(&server, one.address.port(), ""));
    let web = balancer.address("web");
    let name = one.address.to_string();
    assert_eq!(endpoint(&balancer, &["drain", "web", &name]).0, Some(0));
    server.set("web.test", hosts(&[one.address, two.address, three.address]));
    let after = BTreeSet::from([two.address, three.address]);
    eventually("the others serve", || who_answers(web) == after);
    server.await_questions(5);
    assert_eq!(who_answers(web), after);
    for arguments in [
        &["add", "web", "127.0.0.1:1"][..],
        &["remove", "web", &name],
        &["weight", "web", &name, "5"],
    ] {
        let (code, said) = endpoint(&balancer, arguments);
        assert_eq!(code, Some(2), "{said}");
        assert!(said.contains("takes its endpoints from dns web.test:"), "{said}");
    }
    assert_eq!(endpoint(&balancer, &["undrain", "web", &name]).0, Some(0));
    eventually("all serve", || who_answers(web).len() == 3);
}

/// Puts a file in the place of another at one moment.
fn replace(file: &Path, text: &str) {
    let new = file.with_extension("new");
    fs::write(&new, text).expect("it is written");
    fs::rename(new, file).expect("it is put in place");
}

fn written(endpoints: &[&Endpoint]) -> String {
    let each = endpoints.iter().map(|it| format!("{{ address = \"{}\" }}", it.address));
    format!("endpoints = [{}]\n", each.collect::<Vec<_>>().join(", "))
}

#[test]
fn a_file_of_endpoints_is_followed_and_a_broken_one_is_told_and_left_alone() {
    let (one, two) = (Endpoint::start(), Endpoint::start());
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("web.toml");
    fs::write(&file, written(&[&one])).expect("it is written");
    let balancer =
        Balancer::start(&config("round-robin", &format!("kind = \"file\", path = {file:?}")));
    let web = balancer.address("web");
    let mut client = Client::connect(web).expect("a connection");
    assert_eq!(client.ask("before").expect("an answer"), one.address);

    replace(&file, &written(&[&two]));
    eventually("the other serves", || who_answers(web) == BTreeSet::from([two.address]));
    assert_eq!(client.ask("after").expect("an answer"), one.address);

    fs::write(&file, "endpoints = [\n  { address = \"127.0.0.1:1\", wieght = 2 },\n]\n")
        .expect("it is written");
    eventually("the mistake is told", || search(&balancer).state == "failing");
    let problem = search(&balancer).problem.expect("a problem");
    let place = format!("{}:2:30: endpoints[0].wieght: ", file.display());
    assert!(problem.starts_with(&place), "{problem}");
    assert!(problem.ends_with("did you mean \"weight\"?"), "{problem}");
    assert!(balancer.log().contains(&place), "{}", balancer.log());
    assert_eq!(who_answers(web), BTreeSet::from([two.address]));

    fs::write(&file, written(&[&one, &two])).expect("it is written in place");
    eventually("both serve", || who_answers(web).len() == 2);
    fs::remove_file(&file).expect("it is removed");
    eventually("that is told", || search(&balancer).state == "failing");
    assert_eq!(who_answers(web).len(), 2);
    replace(&file, &written(&[&one]));
    eventually("the file counts again", || who_answers(web) == BTreeSet::from([one.address]));
    assert!(attempts(&balancer, "answered") >= 4.0 && attempts(&balancer, "invalid") >= 1.0);
}

#[test]
fn the_balancer_starts_before_its_file_of_endpoints_is_there() {
    let one = Endpoint::start();
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("web.toml");
    let balancer = Balancer::start(&config("maglev", &format!("kind = \"file\", path = {file:?}")));
    let web = balancer.address("web");
    assert!(ask_once(web).is_err());
    replace(&file, &written(&[&one]));
    eventually("it serves", || ask_once(web).is_ok_and(|who| who == one.address));
}

/// Has the balancer go by another configuration.
fn reload(balancer: &Balancer, config: &str) {
    let socket = balancer.socket();
    let text = format!("{config}\n[admin]\nsocket = {socket:?}\n");
    replace(&balancer.path("pointsman.toml"), &text);
    let mut command = Command::new(POINTSMAN);
    let output = command.arg("reload").arg("--admin").arg(&socket).output();
    let output = output.expect("the binary runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn a_reload_leaves_a_search_alone_that_it_does_not_change() {
    let [one] = on_one_port();
    let server = NameServer::start();
    server.set("web.test", hosts(&[one.address]));
    server.set_ttl(86_400);
    let text = by_name(&server, one.address.port(), "");
    let text = text.replace("127.0.0.1:0\"", &format!("{}\"", Endpoint::start().address));
    let balancer = Balancer::start(&text);
    let web = balancer.address("web");
    let mut client = Client::connect(web).expect("a connection");
    assert_eq!(client.ask("before").expect("an answer"), one.address);
    let (asked, before) = (server.asked(), search(&balancer).attempts);
    let other = text.replace("workers = 2", "workers = 2\ndrain_timeout_ms = 5000");
    for text in [&other, &text] {
        reload(&balancer, text);
        assert_eq!(ask_once(web).expect("an answer"), one.address);
        assert_eq!(search(&balancer).attempts, before);
    }
    assert_eq!(client.ask("after").expect("an answer"), one.address);
    assert_eq!(server.asked(), asked);
}

#[test]
fn a_reload_has_endpoints_found_elsewhere_and_those_before_serve_until_there_is_an_answer() {
    let [one, two, three] = on_one_port();
    let server = NameServer::start();
    server.set("web.test", hosts(&[one.address]));
    let text = by_name(&server, one.address.port(), "");
    let text = text.replace("127.0.0.1:0\"", &format!("{}\"", Endpoint::start().address));
    let balancer = Balancer::start(&text);
    let web = balancer.address("web");
    let load = Traffic::start(web, 2);

    reload(&balancer, &text.replace("web.test", "other.test"));
    eventually("the other name is asked for", || search(&balancer).state == "absent");
    assert_eq!(who_answers(web), BTreeSet::from([one.address]));
    server.set("other.test", hosts(&[two.address]));
    eventually("the other serves", || who_answers(web) == BTreeSet::from([two.address]));

    let (head, _) = text.split_once("discovery").expect("a discovery");
    reload(&balancer, &format!("{head}{}", written(&[&three])));
    assert_eq!(who_answers(web), BTreeSet::from([three.address]));
    assert!(cluster(&balancer).discovery.is_none());
    server.set("other.test", hosts(&[one.address]));
    eventually("nobody asks any more", || {
        let asked = server.asked();
        (0..5).all(|_| !who_answers(web).is_empty() && server.asked() == asked)
    });
    assert_eq!(who_answers(web), BTreeSet::from([three.address]));

    let file = balancer.path("web.toml");
    reload(&balancer, &format!("{head}discovery = {{ kind = \"file\", path = \"web.toml\" }}\n"));
    assert_eq!(who_answers(web), BTreeSet::from([three.address]));
    replace(&file, &written(&[&one]));
    eventually("the file counts", || who_answers(web) == BTreeSet::from([one.address]));
    assert!(load.stop() > 0, "there was traffic, and no flow failed");
}
