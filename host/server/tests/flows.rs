//! `pointsman flows` beside a balancer with traffic: what it lists, shows and forgets.

mod support;

use std::collections::BTreeSet;
use std::process::{Command, Output};

use serde_json::Value;
use support::raw::{config, config_with_policy};
use support::{Balancer, Client, Endpoint, POINTSMAN, ask_once, eventually, plugins};

/// Runs `pointsman flows` with these arguments, separated by spaces.
fn flows(balancer: &Balancer, arguments: &str) -> Output {
    let mut command = Command::new(POINTSMAN);
    command.arg("flows").args(arguments.split_whitespace());
    command.arg("--admin").arg(balancer.socket()).output().expect("the binary runs")
}

fn json(balancer: &Balancer, arguments: &str) -> Value {
    let output = flows(balancer, &format!("{arguments} --json"));
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{text}{}", stderr(&output));
    serde_json::from_str(&text).expect("JSON")
}

fn listed(balancer: &Balancer, filters: &str) -> Vec<Value> {
    json(balancer, filters)["flows"].as_array().expect("a list").clone()
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_else(|| panic!("{value} is no text")).to_owned()
}

fn ids(flows: &[Value]) -> BTreeSet<String> {
    flows.iter().map(|flow| text(&flow["id"])).collect()
}

#[test]
fn a_live_flow_is_listed_and_shown_with_its_history() {
    let endpoint = Endpoint::start();
    let balancer = Balancer::start(&config("workers = 2", "", &[endpoint.address]));
    assert!(listed(&balancer, "").is_empty());
    let mut client = Client::connect(balancer.address("web")).expect("a flow");
    client.ask("hello").expect("an answer");

    let found = listed(&balancer, "--kind flow");
    assert_eq!(found.len(), 1, "{found:?}");
    let id = text(&found[0]["id"]);
    let shown = json(&balancer, &format!("show {id}"));
    for (fact, value) in [
        ("id", id.as_str()),
        ("kind", "flow"),
        ("listener", "web"),
        ("protocol", "tcp"),
        ("cluster", "web"),
        ("state", "established"),
        ("source", "native"),
        ("policy", "round-robin"),
        ("endpoint", &endpoint.address.to_string()),
        ("local", &balancer.address("web").to_string()),
    ] {
        assert_eq!(text(&shown[fact]), value, "{fact} of {shown}");
    }
    assert_eq!(shown["policy_generation"], 1);
    assert_eq!(shown["bytes_upstream"], 6);
    let table = flows(&balancer, "");
    let table = String::from_utf8_lossy(&table.stdout).into_owned();
    assert!(table.contains(&id) && table.contains("established"), "{table}");

    drop(client);
    eventually("the flow is gone", || listed(&balancer, "").is_empty());
    let output = flows(&balancer, &format!("show {id}"));
    assert_eq!(output.status.code(), Some(1));
    assert!(stderr(&output).contains("there is no flow"), "{}", stderr(&output));
}

#[test]
fn a_flow_that_is_forgotten_ends_and_its_neighbours_go_on() {
    let endpoint = Endpoint::start();
    let balancer = Balancer::start(&config("workers = 2", "", &[endpoint.address]));
    let web = balancer.address("web");
    let mut unlucky = Client::connect(web).expect("a flow");
    unlucky.ask("hello").expect("an answer");
    let id = text(&listed(&balancer, "")[0]["id"]);
    let mut others: Vec<_> = (0..5).map(|_| Client::connect(web).expect("a flow")).collect();
    others.iter_mut().for_each(|client| _ = client.ask("before").expect("an answer"));

    let output = flows(&balancer, &format!("forget {id}"));
    assert!(output.status.success(), "{}", stderr(&output));
    assert!(unlucky.is_ended());
    eventually("it is counted", || balancer.count("closes", "forgotten") == 1.0);
    others.iter_mut().for_each(|client| _ = client.ask("after").expect("an answer"));
    assert_eq!(listed(&balancer, "").len(), 5);

    let again = flows(&balancer, &format!("forget {id}"));
    assert_eq!(again.status.code(), Some(1));
    assert!(stderr(&again).contains("it has ended"), "{}", stderr(&again));
    assert_eq!(balancer.count("closes", "forgotten"), 1.0);
}

#[test]
fn pages_together_show_every_flow_once() {
    let endpoint = Endpoint::start();
    let balancer = Balancer::start(&config("workers = 2", "", &[endpoint.address]));
    let connect = |_| Client::connect(balancer.address("web")).expect("a flow");
    let mut clients: Vec<_> = (0..20).map(connect).collect();
    clients.iter_mut().for_each(|client| _ = client.ask("hello").expect("an answer"));
    let all = ids(&listed(&balancer, ""));
    assert_eq!(all.len(), 20);

    let (mut seen, mut page) = (Vec::new(), String::new());
    loop {
        let answer = json(&balancer, &format!("--limit 3 {page}"));
        let flows = answer["flows"].as_array().expect("a list");
        assert!(flows.len() <= 3, "{answer}");
        seen.extend(flows.iter().cloned());
        let Some(next) = answer["next"].as_str() else { break };
        page = format!("--page {next}");
    }
    assert_eq!(seen.len(), 20);
    assert_eq!(ids(&seen), all);
}

#[test]
fn filters_choose_among_the_flows() {
    let endpoints = [Endpoint::start(), Endpoint::start()];
    let addresses = endpoints.each_ref().map(|endpoint| endpoint.address);
    let balancer = Balancer::start(&config("workers = 1", "", &addresses));
    let connect = |_| Client::connect(balancer.address("web")).expect("a flow");
    let mut clients: Vec<_> = (0..4).map(connect).collect();
    clients.iter_mut().for_each(|client| _ = client.ask("hello").expect("an answer"));
    let count = |filters: &str| listed(&balancer, filters).len();
    assert_eq!(count(&format!("--endpoint {}", addresses[0])), 2);
    assert_eq!(count("--endpoint 127.0.0.1"), 4);
    assert_eq!(count("--client 127.0.0.0/8"), 4);
    assert_eq!(count("--client 10.0.0.0/8"), 0);
    assert_eq!(count("--listener web --cluster web --protocol tcp --state established"), 4);
    assert_eq!(count("--state closing"), 0);
    assert_eq!(count("--protocol udp"), 0);
    assert_eq!(count("--kind kept"), 0);
}

#[test]
fn a_kept_decision_is_listed_and_once_forgotten_the_policy_is_asked_again() {
    let endpoints = [Endpoint::start(), Endpoint::start()];
    let addresses = endpoints.each_ref().map(|endpoint| endpoint.address);
    let plugin = plugins().join("client-affinity.wasm");
    let text_of = config_with_policy("workers = 1", "", "sticky", &addresses);
    let balancer = Balancer::start(&format!(
        "{text_of}[[policies]]\nname = \"sticky\"\nplugin = {plugin:?}\n\
         config = {{ ttl_ms = 600000, sliding = true }}\ndecide_deadline_ms = 1000\n"
    ));
    let web = balancer.address("web");
    let endpoint = ask_once(web).expect("an answer");
    ask_once(web).expect("an answer");
    assert_eq!(balancer.decisions("web", "plugin"), 1.0);
    assert_eq!(balancer.decisions("web", "cache"), 1.0);

    let kept = listed(&balancer, "--kind kept --client 127.0.0.1");
    assert_eq!(kept.len(), 1, "{kept:?}");
    for (fact, value) in [
        ("kind", "kept"),
        ("cluster", "web"),
        ("scope", "client"),
        ("client", "127.0.0.1"),
        ("policy", "sticky"),
        ("endpoint", &endpoint.to_string()),
    ] {
        assert_eq!(text(&kept[0][fact]), value, "{fact} of {kept:?}");
    }
    assert_eq!(kept[0]["sliding"], true);
    assert!(kept[0]["expires_in_ms"].as_u64().is_some_and(|left| left <= 600_000));
    assert_eq!(listed(&balancer, &format!("--kind kept --endpoint {endpoint}")).len(), 1);

    let output = flows(&balancer, &format!("forget {}", text(&kept[0]["id"])));
    assert!(output.status.success(), "{}", stderr(&output));
    assert!(listed(&balancer, "--kind kept").is_empty());
    ask_once(web).expect("an answer");
    assert_eq!(balancer.decisions("web", "plugin"), 2.0);
}

#[test]
fn what_names_nothing_is_wrong_input() {
    let endpoint = Endpoint::start();
    let balancer = Balancer::start(&config("workers = 1", "", &[endpoint.address]));
    for (arguments, part) in [
        ("forget nonsense", "\"nonsense\" names no flow"),
        ("show 0-xyz", "\"0-xyz\" names no flow"),
        ("--listener wbe", "did you mean \"web\"?"),
        ("--client nobody", "client \"nobody\" is no address"),
        ("--limit 0", "no number above 0"),
        ("--page x", "names no page"),
    ] {
        let output = flows(&balancer, arguments);
        assert_eq!(output.status.code(), Some(2), "{arguments}: {}", stderr(&output));
        assert!(stderr(&output).contains(part), "{arguments}: {}", stderr(&output));
    }
    // Well written, and of nothing that there is.
    for id in [
        "99-0000000000000001",
        "0-0000000000000000",
        "0-3fffffffffffffff",
        "0-4000000000000001",
        "0-7fffffffffffffff",
        "0-bfffffffffffffff",
        "0-ffffffffffffffff",
    ] {
        for verb in ["show", "forget"] {
            let output = flows(&balancer, &format!("{verb} {id}"));
            assert_eq!(output.status.code(), Some(1), "{verb} {id}: {}", stderr(&output));
            assert!(stderr(&output).contains("there is no flow"), "{}", stderr(&output));
        }
        assert!(listed(&balancer, &format!("--page {id}")).is_empty());
    }
}

#[test]
fn whoever_comes_over_http_may_look_and_not_forget() {
    use std::io::{Read, Write};
    use std::net::{TcpListener, TcpStream};

    let endpoint = Endpoint::start();
    let free = TcpListener::bind("127.0.0.1:0").expect("a port").local_addr().expect("it");
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("pointsman.toml");
    let socket = folder.path().join("admin.sock");
    let text = config("workers = 1", "", &[endpoint.address]);
    let admin = format!("[admin]\nhttp = \"{free}\"\nsocket = {socket:?}\n");
    std::fs::write(&file, text + &admin).expect("the configuration is written");
    let mut process =
        Command::new(POINTSMAN).arg("run").arg("--config").arg(&file).spawn().expect("runs");
    let answer = |request: &str| {
        let mut answer = String::new();
        if let Ok(mut stream) = TcpStream::connect(free) {
            let _ = write!(stream, "{request} HTTP/1.0\r\n\r\n");
            let _ = stream.read_to_string(&mut answer);
        }
        answer
    };
    eventually("it answers", || answer("GET /readyz").contains("ready"));
    assert!(answer("GET /v1/flows").contains("\"flows\":[]"));
    let refused = answer("DELETE /v1/flows/0-0000000000000001");
    process.kill().expect("it is killed");
    process.wait().expect("its end");
    assert!(refused.starts_with("HTTP/1.0 405"), "{refused}");
}
