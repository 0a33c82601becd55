//! The command line as its users meet it: what it prints, and how it exits.

mod support;

use std::fs;
use std::net::TcpListener;
use std::path::Path;
use std::process::{Command, Output};

use support::{Balancer, Endpoint, POINTSMAN, ask_once, eventually, plugins, root};
use tempfile::TempDir;

const GOOD: &str = r#"
[[listeners]]
name = "web"
address = "127.0.0.1:0"
cluster = "web"
[[clusters]]
name = "web"
endpoints = [{ address = "127.0.0.1:9001" }]
"#;

/// With a plugin; `PLUGIN` and `CONFIG` are to be replaced.
const WITH_PLUGIN: &str = r#"
[[listeners]]
name = "web"
address = "127.0.0.1:0"
cluster = "web"
[[clusters]]
name = "web"
policy = "mine"
endpoints = [{ address = "127.0.0.1:9001" }]
[[policies]]
name = "mine"
plugin = "PLUGIN"
config = CONFIG
"#;

fn pointsman(arguments: &[&str]) -> Output {
    Command::new(POINTSMAN).args(arguments).output().expect("the binary runs")
}

fn stderr(output: &Output) -> Vec<String> {
    String::from_utf8_lossy(&output.stderr).lines().map(str::to_owned).collect()
}

fn stdout(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn file(text: &str) -> (TempDir, String) {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("pointsman.toml");
    fs::write(&file, text).expect("the file is written");
    let name = file.to_str().expect("text").to_owned();
    (folder, name)
}

fn check(text: &str) -> Output {
    let (_folder, file) = file(text);
    pointsman(&["check", &file, "--plugins", plugins().to_str().expect("text")])
}

/// Exit code 2, and each line with the parts that are expected of it.
fn assert_refused(output: &Output, expected: &[&[&str]]) {
    let lines = stderr(output);
    assert_eq!(output.status.code(), Some(2), "{lines:#?}");
    assert_eq!(lines.len(), expected.len(), "{lines:#?}");
    for (line, parts) in lines.iter().zip(expected) {
        assert!(line.starts_with("error: "), "{line}");
        for part in *parts {
            assert!(line.contains(part), "{part} is not in {line}");
        }
    }
}

#[test]
fn every_example_passes_check() {
    let mut checked = 0;
    for entry in fs::read_dir(root().join("examples")).expect("the examples") {
        let path = entry.expect("an entry").path();
        if path.extension().is_none_or(|extension| extension != "toml") {
            continue;
        }
        let file = path.to_str().expect("text");
        let output = pointsman(&["check", file, "--plugins", plugins().to_str().expect("text")]);
        assert!(output.status.success(), "{file}: {:#?}", stderr(&output));
        checked += 1;
    }
    assert!(checked >= 8, "only {checked} examples were found");
}

#[test]
fn a_good_file_is_summed_up_in_one_line() {
    let output = check(GOOD);
    assert_eq!(output.status.code(), Some(0));
    assert!(stdout(&output).contains("good: 1 listener(s), 1 cluster(s), 1 endpoint(s)"));
}

#[test]
fn all_mistakes_of_a_file_are_told_at_once_in_its_order() {
    let folder = tempfile::tempdir().expect("a folder");
    let not_wasm = folder.path().join("not.wasm");
    fs::write(&not_wasm, "I am text").expect("a file");
    let text = format!(
        r#"
wokers = 2
drain_timeout_ms = "soon"
[admin]
http = "0.0.0.0:9900"
[[listeners]]
name = "web"
address = "localhost:80"
cluster = "wbe"
[[listeners]]
name = "web"
address = "127.0.0.1:0"
replies_expected = 1
cluster = "web"
[[clusters]]
name = "web"
policy = "p3c"
endpoints = []
[[policies]]
name = "p2c"
plugin = {not_wasm:?}
[[policies]]
name = "gone"
plugin = "gone.wasm"
"#
    );
    assert_refused(
        &check(&text),
        &[
            &[":2:1:", "wokers", "did you mean \"workers\"?"],
            &[":3:1:", "drain_timeout_ms", "write a whole number"],
            &[":5:1:", "admin.http", "use a loopback address"],
            &[":8:1:", "listeners[0].address", "\"localhost:80\" is no address"],
            &[":9:1:", "listeners[0].cluster", "did you mean \"web\"?"],
            &[":11:1:", "listeners[1].name", "\"web\" is already listeners[0].name"],
            &[":13:1:", "listeners[1].replies_expected", "write protocol = \"udp\""],
            &[":17:1:", "clusters[0].policy", "did you mean \"p2c\"?"],
            &[":18:1:", "clusters[0].endpoints", "there is none"],
            &[":21:1:", "policies[0].plugin", "not a WebAssembly file"],
            &[":24:1:", "policies[1].plugin", "there is no file \"gone.wasm\""],
        ],
    );
}

#[test]
fn what_is_wrong_with_a_file_of_endpoints_is_told_and_one_that_is_not_there_may_come() {
    let folder = tempfile::tempdir().expect("a folder");
    let endpoints = folder.path().join("web.toml");
    let text = format!(
        "[[listeners]]\nname = \"web\"\naddress = \"127.0.0.1:0\"\ncluster = \"web\"\n\
         [[clusters]]\nname = \"web\"\ndiscovery = {{ kind = \"file\", path = {endpoints:?} }}\n"
    );
    assert!(check(&text).status.success());
    let key = "clusters[0].discovery.path: ";
    fs::write(&endpoints, "endpoints = [{ adress = 1 }, { address = \"x\" }]").expect("a file");
    let first = format!("{}:1:16: endpoints[0].adress: ", endpoints.display());
    assert_refused(&check(&text), &[&[key, &first, "(and 1 more)"]]);
    fs::write(&endpoints, "endpoints = [{ address = \"[fe80::1]:80\" }]").expect("a file");
    assert_refused(&check(&text), &[&[key, "no address that can be connected to"]]);
    fs::write(&endpoints, "endpoints = [{ address = \"10.0.0.1:80\" }]").expect("a file");
    assert!(check(&text).status.success());
}

#[test]
fn a_file_that_is_not_there_or_no_toml_is_one_line() {
    assert_refused(
        &pointsman(&["check", "/no/such/file"]),
        &[&["/no/such/file", "cannot be read"]],
    );
    assert_refused(&check("[[listeners"), &[&[":1:"]]);
}

#[test]
fn a_plugin_is_tried_with_its_configuration() {
    let good = WITH_PLUGIN.replace("PLUGIN", "p2c.wasm").replace("CONFIG", "{ choices = 2 }");
    assert!(check(&good).status.success());
    let bad = WITH_PLUGIN.replace("PLUGIN", "p2c.wasm").replace("CONFIG", "{ choices = 99 }");
    assert_refused(&check(&bad), &[&["policies[0].config", "choices"]]);
}

#[test]
fn a_plugin_for_another_version_of_the_interface_is_refused_by_name() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("other.wasm");
    let mut bytes = fs::read(plugins().join("p2c.wasm")).expect("the plugin");
    // The version stands in the names of imports and exports; the lengths stay.
    let (ours, other) = (b"pointsman:policy/types@0.1.1", b"pointsman:policy/types@0.9.1");
    let mut changed = 0;
    for (ours, other) in [(&ours[..], &other[..]), (b"policy/host@0.1.1", b"policy/host@0.9.1")] {
        let mut at = 0;
        while let Some(found) = bytes[at..].windows(ours.len()).position(|window| window == ours) {
            bytes[at + found..at + found + ours.len()].copy_from_slice(other);
            at += found + ours.len();
            changed += 1;
        }
    }
    assert!(changed > 0, "the plugin names no version");
    fs::write(&path, bytes).expect("the file is written");
    let text = WITH_PLUGIN
        .replace("PLUGIN", path.to_str().expect("text"))
        .replace("CONFIG", "{ choices = 2 }");
    assert_refused(&check(&text), &[&["policies[0].plugin", "0.9.1", "0.1.1"]]);
}

#[test]
fn check_tells_machines_the_same() {
    let (_folder, good) = file(GOOD);
    let output = pointsman(&["check", &good, "--json"]);
    let verdict: serde_json::Value = serde_json::from_str(&stdout(&output)).expect("JSON");
    assert_eq!((verdict["good"].as_bool(), output.status.code()), (Some(true), Some(0)));

    let (_folder, bad) = file(&GOOD.replace("cluster = \"web\"", "cluster = \"x\""));
    let output = pointsman(&["check", &bad, "--json"]);
    let verdict: serde_json::Value = serde_json::from_str(&stdout(&output)).expect("JSON");
    assert_eq!((verdict["good"].as_bool(), output.status.code()), (Some(false), Some(2)));
    assert_eq!(verdict["problems"][0]["key"], "listeners[0].cluster");
    assert_eq!(verdict["problems"][0]["line"], 5);
}

/// A mistake as its line in the file is marked, or as it is told: line, key, and words.
type Mistake = (u64, String, String);

fn marked(text: &str) -> Vec<Mistake> {
    let lines = (1..).zip(text.lines());
    let marks = lines.filter_map(|(line, text)| Some((line, text.split_once("#! ")?.1)));
    let read = |(line, mark): (u64, &str)| {
        let (key, words) = mark.split_once(" | ").expect("a key and words");
        (line, key.to_owned(), words.to_owned())
    };
    marks.map(read).collect()
}

#[test]
fn every_planted_mistake_is_found_in_one_run_with_its_key_and_what_to_write() {
    let text = include_str!("mistakes.toml");
    let planted = marked(text);
    assert!(planted.len() >= 20);
    let (_folder, file) = file(text);
    let folder = plugins();
    let folder = folder.to_str().expect("text");
    let output = pointsman(&["check", &file, "--json", "--plugins", folder]);
    assert_eq!(output.status.code(), Some(2));
    let verdict: serde_json::Value = serde_json::from_str(&stdout(&output)).expect("JSON");
    let told: Vec<Mistake> = verdict["problems"]
        .as_array()
        .expect("a list")
        .iter()
        .map(|problem| {
            let text = |key: &str| problem[key].as_str().expect("text").to_owned();
            (problem["line"].as_u64().unwrap_or(0), text("key"), text("message"))
        })
        .collect();
    let finds = |(line, key, words): &Mistake| {
        let is_it = |told: &&Mistake| told.0 == *line && told.1 == *key;
        let found = told.iter().find(is_it);
        assert!(found.is_some_and(|told| told.2.contains(words)), "{line} {key}: {found:?}");
    };
    planted.iter().for_each(finds);
    assert_eq!(told.len(), planted.len(), "and nothing else: {told:#?}");
}

#[test]
fn a_program_is_told_of_an_error_as_json_with_the_same_exit_code() {
    for (arguments, code, words) in [
        (&["status", "--admin", "/no/such.sock"][..], 1, "start a balancer"),
        (&["flows", "show", "x"], 2, "x"),
        (&["policy", "swap", "web", "/no/file"], 2, "/no/file: cannot be read"),
        (&["policy", "inspect", "/no/file"], 2, "/no/file"),
        (&["status", "--nonsense"], 2, "--nonsense"),
    ] {
        let plain = pointsman(arguments);
        let json = pointsman(&[arguments, &["--json"]].concat());
        assert_eq!((plain.status.code(), json.status.code()), (Some(code), Some(code)));
        assert_eq!(stderr(&json), Vec::<String>::new());
        let told: serde_json::Value = serde_json::from_str(&stdout(&json)).expect("JSON");
        let error = told["error"].as_str().expect("what went wrong");
        assert!(error.contains(words), "{arguments:?}: {error}");
        assert!(stderr(&plain)[0].ends_with(error), "{arguments:?}: {:?}", stderr(&plain));
    }
}

#[test]
fn a_file_in_this_folder_is_told_where_its_plugins_were_looked_for() {
    let (folder, _) =
        file(&WITH_PLUGIN.replace("PLUGIN", "zebra-crossing.wasm").replace("CONFIG", "{}"));
    let mut command = Command::new(POINTSMAN);
    let output = command.args(["check", "pointsman.toml"]).current_dir(folder.path()).output();
    let lines = stderr(&output.expect("it runs"));
    assert!(lines[0].contains("zebra-crossing.wasm\" in ., "), "{lines:?}");
    assert!(lines[0].contains("`pointsman policy build`"), "{lines:?}");
}

#[test]
fn a_port_that_is_in_use_is_told_and_not_shared() {
    let taken = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = taken.local_addr().expect("its address").to_string();
    let (folder, config) = file(&GOOD.replace("127.0.0.1:0", &address));
    let socket = folder.path().join("admin.sock");
    let text = fs::read_to_string(&config).expect("the file");
    fs::write(&config, format!("{text}[admin]\nsocket = {socket:?}\n")).expect("the file");
    let output = pointsman(&["run", "--config", &config]);
    assert_refused(&output, &[&["web", &address, "choose another port"]]);
    assert!(!socket.exists());
}

#[test]
fn a_second_balancer_does_not_share_the_first_ones_port_or_socket() {
    let first = Balancer::start(GOOD);
    let address = first.address("web").to_string();
    let (_folder, config) = file(&GOOD.replace("127.0.0.1:0", &address));
    assert_refused(&pointsman(&["run", "--config", &config]), &[&[&address]]);

    let (_folder, config) = file(&format!("{GOOD}[admin]\nsocket = {:?}\n", first.socket()));
    let output = pointsman(&["run", "--config", &config]);
    assert_refused(&output, &[&["another balancer answers at"]]);
    assert!(first.socket().exists(), "it is left alone");
}

#[test]
fn tcp_and_udp_share_an_address_and_a_second_balancer_shares_neither() {
    let address = TcpListener::bind("127.0.0.1:0").and_then(|free| free.local_addr());
    let address = address.expect("a port").to_string();
    let udp = GOOD
        .replace("127.0.0.1:0", &address)
        .replace("name = \"web\"\naddress", "name = \"dns\"\nprotocol = \"udp\"\naddress");
    let both = udp.replace(
        "[[clusters]]",
        &format!("[[listeners]]\nname = \"web\"\naddress = \"{address}\"\ncluster = \"web\"\n[[clusters]]"),
    );
    let first = Balancer::start(&format!("workers = 2\n{both}"));
    assert_eq!(first.address("web"), first.address("dns"));
    let protocols: Vec<_> =
        first.status().listeners.into_iter().map(|listener| listener.protocol).collect();
    assert_eq!(protocols, ["udp", "tcp"]);
    let (_folder, config) = file(&udp);
    assert_refused(&pointsman(&["run", "--config", &config]), &[&["dns", &address]]);
}

#[test]
fn port_0_of_udp_is_one_port_for_all_workers() {
    let udp =
        GOOD.replace("address = \"127.0.0.1:0\"", "address = \"127.0.0.1:0\"\nprotocol = \"udp\"");
    let balancer = Balancer::start(&format!("workers = 3\n{udp}"));
    let port = balancer.address("web").port();
    let table = fs::read_to_string("/proc/net/udp").expect("the kernel's sockets");
    let here = format!("0100007F:{port:04X}");
    assert_eq!(table.lines().filter(|line| line.contains(&here)).count(), 3, "{table}");
}

#[test]
fn a_socket_left_behind_is_replaced_and_a_file_that_is_none_is_not() {
    let folder = tempfile::tempdir().expect("a folder");
    let stale = folder.path().join("stale.sock");
    drop(std::os::unix::net::UnixListener::bind(&stale).expect("a socket"));
    assert!(stale.exists());
    let text = format!("{GOOD}[admin]\nsocket = {stale:?}\n");
    let (_folder, config) = file(&text);
    let mut process =
        Command::new(POINTSMAN).args(["run", "--config", &config]).spawn().expect("runs");
    eventually("it answers", || pointsman::client::get(&stale, "/readyz").is_ok());
    process.kill().expect("it is killed");
    process.wait().expect("its end");

    let precious = folder.path().join("precious");
    fs::write(&precious, "x").expect("a file");
    let (_folder, config) = file(&format!("{GOOD}[admin]\nsocket = {precious:?}\n"));
    assert_refused(&pointsman(&["run", "--config", &config]), &[&["is no socket"]]);
    assert_eq!(fs::read_to_string(&precious).expect("the file"), "x");
}

#[test]
fn status_shows_what_the_balancer_did() {
    let endpoint = Endpoint::start();
    let balancer = Balancer::start(&GOOD.replace("127.0.0.1:9001", &endpoint.address.to_string()));
    ask_once(balancer.address("web")).expect("an answer");
    let socket = balancer.socket();
    let socket = socket.to_str().expect("text");
    let table = stdout(&pointsman(&["status", "--admin", socket]));
    for part in ["web", &endpoint.address.to_string(), "round-robin", "native 1", "serving"] {
        assert!(table.contains(part), "{part} is not in\n{table}");
    }
    let json = stdout(&pointsman(&["status", "--admin", socket, "--json"]));
    let status: serde_json::Value = serde_json::from_str(&json).expect("JSON");
    assert_eq!(status["listeners"][0]["flows_total"], 1);
}

#[test]
fn status_without_a_balancer_is_a_failure_that_says_what_to_do() {
    let output = pointsman(&["status", "--admin", "/no/such.sock"]);
    assert_eq!(output.status.code(), Some(1));
    let lines = stderr(&output);
    assert_eq!(lines.len(), 1, "{lines:?}");
    assert!(lines[0].contains("start a balancer"), "{lines:?}");
}

#[test]
fn the_admin_interface_answers_over_http_too() {
    let free = TcpListener::bind("127.0.0.1:0").expect("a port").local_addr().expect("it");
    let folder = tempfile::tempdir().expect("a folder");
    let socket = folder.path().join("admin.sock");
    let (_folder, config) =
        file(&format!("{GOOD}[admin]\nhttp = \"{free}\"\nsocket = {socket:?}\n"));
    let mut process =
        Command::new(POINTSMAN).args(["run", "--config", &config]).spawn().expect("runs");
    eventually("it answers", || http_get(free, "/readyz").contains("ready"));
    assert!(http_get(free, "/healthz").starts_with("HTTP/1.0 200"));
    assert!(http_get(free, "/metrics").contains("pointsman_build_info"));
    assert!(http_get(free, "/v1/status").contains("\"listeners\""));
    assert!(http_get(free, "/nothing").starts_with("HTTP/1.0 404"));
    assert_eq!(mode(&socket), 0o600);
    process.kill().expect("it is killed");
    process.wait().expect("its end");
}

fn http_get(address: std::net::SocketAddr, path: &str) -> String {
    use std::io::{Read, Write};

    let mut answer = String::new();
    if let Ok(mut stream) = std::net::TcpStream::connect(address) {
        let _ = write!(stream, "GET {path} HTTP/1.0\r\n\r\n");
        let _ = stream.read_to_string(&mut answer);
    }
    answer
}

fn mode(path: &Path) -> u32 {
    use std::os::unix::fs::PermissionsExt;

    fs::metadata(path).expect("the file").permissions().mode() & 0o777
}

#[test]
fn doctor_finds_io_uring_here() {
    let output = pointsman(&["doctor", "--json"]);
    let findings: serde_json::Value = serde_json::from_str(&stdout(&output)).expect("JSON");
    let find = |name: &str| {
        let mut all = findings.as_array().expect("a list").iter();
        all.find(|finding| finding["check"] == name).expect("the finding").clone()
    };
    for name in ["kernel", "io_uring"] {
        assert_eq!(find(name)["verdict"], "ok", "{findings}");
    }
    assert!(stdout(&pointsman(&["doctor"])).contains("VERDICT"));
}

#[test]
fn the_demo_ends_by_itself_with_a_readable_table() {
    let output = pointsman(&["demo", "--plugins", plugins().to_str().expect("text")]);
    let text = stdout(&output);
    assert!(output.status.success(), "{text}\n{:#?}", stderr(&output));
    for part in ["Policy p2c: 3000 flows", "Policy client-affinity: 3000 flows", "ENDPOINT"] {
        assert!(text.contains(part), "{part} is not in\n{text}");
    }
    assert!(text.contains("3000 Wasm calls for 3000 flows"), "{text}");
    assert!(text.contains("120 of 120 clients met the same endpoint every time"), "{text}");
}

#[test]
fn wrong_usage_exits_with_2() {
    assert_eq!(pointsman(&["run"]).status.code(), Some(2));
    assert_eq!(pointsman(&["fly"]).status.code(), Some(2));
    assert_eq!(pointsman(&["--version"]).status.code(), Some(0));
}
