//! Another process takes over from a running balancer: nobody is refused, nothing is lost, and where it
//! cannot, everything goes on as it was.

mod support;

use std::fs;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, UdpSocket};
use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixDatagram, UnixStream};
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use pointsman::client;
use rustix::process::{Pid, Signal, kill_process};
use support::channel::{Channel, ESTATE, FAREWELL, GREETING, PREPARED, SOCKETS, TAKEN_OVER, WHOLE};
use support::policy::{Traffic, policy, text};
use support::raw::config_with_policy;
use support::site::{Site, has_ended, parent_of, pid};
use support::udp::{Asker, Mirror, Server, udp_config};
use support::{Balancer, Client, Endpoint, GIVE_UP, POINTSMAN, ask_once, eventually, plugins};

/// One listener and one cluster, both named `web`.
fn web(top: &str, endpoints: &[SocketAddr]) -> String {
    support::raw::config(&format!("workers = 2\ndrain_timeout_ms = 3600000\n{top}"), "", endpoints)
}

/// The same for datagrams.
fn dns(top: &str, listener: &str, endpoints: &[SocketAddr]) -> String {
    let top = format!("workers = 2\ndrain_timeout_ms = 3600000\n{top}");
    udp_config(&top, listener, "round-robin", endpoints)
}

/// Who is reached, and from which address: what must not change as long as a flow lives.
fn path_of(asker: &Asker) -> String {
    asker.send(b"who am I");
    String::from_utf8(asker.receive()).expect("text")
}

#[test]
fn connections_end_where_they_are_and_new_ones_are_the_new_process() {
    let endpoint = Endpoint::start();
    let mut site = Site::start(&web("", &[endpoint.address]));
    let address = site.balancer.address("web");
    let mut old = Client::connect(address).expect("a connection");
    old.ask("before").expect("an answer");
    let answer = site.upgrade();
    assert_eq!((answer.version.as_str(), answer.flows_lost), (pointsman::VERSION, 0));
    for line in ["it", "goes", "on"] {
        assert_eq!(old.ask(line).expect("an answer"), endpoint.address);
    }
    assert!(!site.balancer.has_ended(), "it has a connection yet");
    assert_eq!(site.balancer.address("web"), address);
    let mut new = Client::connect(address).expect("a connection");
    new.ask("after").expect("an answer");
    assert_eq!(site.balancer.metric("pointsman_flows_total{listener=\"web\"}"), 1.0);
    assert_eq!(site.balancer.metric("pointsman_upgrades_total{outcome=\"applied\"}"), 1.0);

    drop(old);
    assert_eq!(site.balancer.await_end().code(), Some(0));
    assert_eq!(new.ask("still").expect("an answer"), endpoint.address);
    let successor = site.pid();
    kill_process(successor, Signal::TERM).expect("the signal is sent");
    eventually("new clients are refused", || Client::connect(address).is_err());
    new.ask("to the end").expect("an answer");
    drop(new);
    eventually("the new process ends", || has_ended(successor));
    assert!(!site.balancer.socket().exists(), "the file goes with the last process");
}

#[test]
fn nobody_is_refused_while_processes_follow_each_other() {
    let endpoint = Endpoint::start();
    let site = Site::start(&web("", &[endpoint.address]));
    let traffic = Traffic::start(site.balancer.address("web"), 4);
    let mut pids = vec![site.pid()];
    for _ in 0..5 {
        site.upgrade();
        pids.push(site.pid());
        let enough = endpoint.served() + 20;
        eventually("clients are served", || endpoint.served() > enough);
    }
    assert!(traffic.stop() >= 100);
    pids.dedup();
    assert_eq!(pids.len(), 6);
    for pid in &pids[..5] {
        eventually("old processes end", || has_ended(*pid));
    }
    assert_eq!(site.balancer.metric("pointsman_upgrades_total{outcome=\"applied\"}"), 5.0);
}

#[test]
fn flows_of_datagrams_keep_their_endpoint_and_the_port_that_it_knows_them_by() {
    let mirrors: Vec<_> = (0..3).map(|_| Mirror::start()).collect();
    let endpoints: Vec<_> = mirrors.iter().map(|mirror| mirror.address).collect();
    let site = Site::start(&dns("", "idle_timeout_ms = 3600000", &endpoints));
    let address = site.balancer.address("web");
    let askers: Vec<_> = (0..40).map(|_| Asker::new("127.0.0.1", address)).collect();
    let before: Vec<_> = askers.iter().map(path_of).collect();
    for round in 1..=3 {
        let answer = site.upgrade();
        assert_eq!((answer.flows, answer.flows_lost), (40, 0), "round {round}");
        let after: Vec<_> = askers.iter().map(path_of).collect();
        assert_eq!(after, before, "round {round}");
    }
    assert_eq!(site.balancer.metric("pointsman_flows_active{listener=\"web\"}"), 40.0);
}

#[test]
fn datagrams_that_are_sent_meanwhile_are_answered() {
    let server = Server::start();
    let site = Site::start(&dns("", "idle_timeout_ms = 3600000", &[server.address]));
    let address = site.balancer.address("web");
    let stop = Arc::new(AtomicBool::new(false));
    let client = |number: usize| {
        let stop = Arc::clone(&stop);
        thread::spawn(move || {
            let asker = Asker::new("127.0.0.1", address);
            let mut answered = 0_usize;
            while !stop.load(SeqCst) {
                // Panics if there is no answer for a long time.
                asker.ask(format!("{number} {answered}").as_bytes());
                answered += 1;
                if answered.is_multiple_of(50) {
                    // Newcomers wait as well as those who are there.
                    Asker::new("127.0.0.1", address).ask(b"first and last");
                }
            }
            answered
        })
    };
    let clients: Vec<_> = (0..4).map(client).collect();
    for _ in 0..5 {
        site.upgrade();
        let enough = server.served() + 100;
        eventually("datagrams are answered", || server.served() > enough);
    }
    stop.store(true, SeqCst);
    for client in clients {
        assert!(client.join().expect("every datagram is answered") > 0);
    }
}

#[test]
fn a_program_that_cannot_take_over_changes_nothing_and_why_is_told() {
    let (endpoint, mirror) = (Endpoint::start(), Mirror::start());
    let config = web("", &[endpoint.address]) + &second_listener("dns", "udp", mirror.address);
    let site = Site::start(&config);
    let (web, dns) = (site.balancer.address("web"), site.balancer.address("dns"));
    let asker = Asker::new("127.0.0.1", dns);
    let path = path_of(&asker);
    let mut connection = Client::connect(web).expect("a connection");
    let goes_on = |connection: &mut Client| {
        assert_eq!(connection.ask("on").expect("an answer"), endpoint.address);
        assert_eq!(ask_once(web).expect("an answer"), endpoint.address);
        assert_eq!(path_of(&asker), path);
        assert_ne!(path_of(&Asker::new("127.0.0.1", dns)), path);
    };

    fs::remove_file(site.program()).expect("it is there");
    let told = site.refuse();
    assert!(told.contains("cannot start") && told.contains("No such file"), "{told}");
    goes_on(&mut connection);
    site.install("exit 0");
    fs::set_permissions(site.program(), fs::Permissions::from_mode(0o644)).expect("its mode");
    let told = site.refuse();
    assert!(told.contains("Permission denied"), "{told}");
    goes_on(&mut connection);
    site.install("exit 3");
    let told = site.refuse();
    assert!(told.contains("has ended (exit status: 3) before it could take over"), "{told}");
    goes_on(&mut connection);
    site.install("kill -KILL $$");
    let told = site.refuse();
    assert!(told.contains("signal: 9"), "{told}");
    goes_on(&mut connection);
    site.install("echo nonsense >&0; exec cat >/dev/null");
    let told = site.refuse();
    assert!(told.contains("cannot be understood"), "{told}");
    goes_on(&mut connection);

    assert_eq!(site.balancer.metric("pointsman_upgrades_total{outcome=\"refused\"}"), 5.0);
    let last = site.balancer.status().last_upgrade.expect("it is shown");
    assert!(last.outcome == "refused" && last.problems[0].contains("cannot be understood"));
    site.restore();
    site.upgrade();
    goes_on(&mut connection);
}

/// Another listener with a cluster of its own, of this name.
fn second_listener(name: &str, protocol: &str, endpoint: SocketAddr) -> String {
    listener_at(name, protocol, "127.0.0.1:0".parse().expect("an address"), endpoint)
}

fn listener_at(name: &str, protocol: &str, address: SocketAddr, endpoint: SocketAddr) -> String {
    format!(
        "[[listeners]]\nname = \"{name}\"\naddress = \"{address}\"\nprotocol = \"{protocol}\"\n\
         cluster = \"{name}\"\n[[clusters]]\nname = \"{name}\"\n\
         endpoints = [{{ address = \"{endpoint}\" }}]\n"
    )
}

#[test]
fn a_program_that_says_nothing_is_ended_in_time() {
    let endpoint = Endpoint::start();
    let site = Site::start(&web("upgrade_timeout_ms = 200", &[endpoint.address]));
    let file = site.programs.path().join("pid");
    site.install(&format!("echo $$ > {file:?}.new; mv {file:?}.new {file:?}; exec sleep 3600"));
    let told = site.refuse();
    assert!(told.contains("within 200 ms") && told.contains("upgrade_timeout_ms"), "{told}");
    // It may have been ended before it could write.
    if let Ok(number) = fs::read_to_string(&file) {
        assert!(has_ended(pid(number.trim().parse().expect("a number"))));
    }
    assert_eq!(ask_once(site.balancer.address("web")).expect("an answer"), endpoint.address);
}

#[test]
fn a_file_with_mistakes_changes_nothing_and_each_is_told_with_its_place() {
    let endpoint = Endpoint::start();
    let good = web("", &[endpoint.address]);
    let site = Site::start(&good);
    let address = site.balancer.address("web");
    site.configure(&(good.clone() + "polcy = \"x\"\n[[policies]]\nname = \"p\"\n"));
    let told = site.refuse();
    assert!(told.contains("polcy") && told.contains("policies[0]"), "{told}");
    assert!(told.lines().all(|line| line.contains("pointsman.toml:")), "{told}");
    site.configure(&good.replace("workers = 2", "workers = 3"));
    let told = site.refuse();
    assert!(told.contains("workers: would be 3 and the running process has 2"), "{told}");
    let taken = TcpListener::bind("127.0.0.1:0").expect("a port");
    let taken_at = taken.local_addr().expect("its address");
    site.configure(&(good.clone() + &listener_at("more", "tcp", taken_at, endpoint.address)));
    let told = site.refuse();
    assert!(told.contains("listener \"more\"") && told.contains("in use"), "{told}");
    assert_eq!(ask_once(address).expect("an answer"), endpoint.address);
    site.configure(&good);
    site.upgrade();
    assert_eq!(ask_once(address).expect("an answer"), endpoint.address);
}

/// Not a test, but what a script becomes: it does as a new process does until everything is handed over
/// to it, and ends without a word.
#[test]
#[ignore = "is started by another test"]
fn a_successor_that_dies() {
    if std::env::var_os("POINTSMAN_TAKE_OVER").is_none() {
        return;
    }
    receive_everything();
    std::process::exit(7);
}

/// The same, but that it tells the old process to end, and then goes on with everything unless it is to
/// die.
#[test]
#[ignore = "is started by another test"]
fn a_successor_of_one_that_is_to_end() {
    let Ok(old) = std::env::var("OLD_PROCESS") else { return };
    let mut channel = receive_everything();
    kill_process(pid(old.parse().expect("a number")), Signal::TERM).expect("it is there");
    // Long enough to end, for a process without connections that does not know better.
    thread::sleep(Duration::from_millis(500));
    if std::env::var_os("DIES").is_some() {
        std::process::exit(7);
    }
    let there = serde_json::json!({ "version": "2", "flows": 0, "flows_lost": 0 });
    channel.say(TAKEN_OVER, there.to_string().as_bytes());
    let farewell = channel.hear();
    assert_eq!(farewell.kind, FAREWELL);
    let farewell: serde_json::Value = serde_json::from_slice(&farewell.payload).expect("words");
    fs::write(std::env::var("RESULT").expect("where to"), farewell["ends"].to_string())
        .expect("a file");
}

fn receive_everything() -> Channel {
    let mut channel = Channel::on_stdin();
    assert_eq!(channel.hear().kind, GREETING);
    let estate = channel.hear();
    assert_eq!(estate.kind, ESTATE);
    let estate: serde_json::Value = serde_json::from_slice(&estate.payload).expect("an estate");
    let listeners = estate["listeners"].as_array().expect("listeners").iter();
    let listeners: Vec<_> = listeners.map(|listener| listener["id"].clone()).collect();
    let taken = serde_json::json!({
        "listeners": listeners, "admin_socket": true, "admin_http": false,
    });
    channel.say(PREPARED, taken.to_string().as_bytes());
    while channel.hear().kind != WHOLE {}
    channel
}

/// Goes between the two processes, and gives the new one a file in the place of each socket of a listener.
#[test]
#[ignore = "is started by another test"]
fn a_thief_of_sockets() {
    if std::env::var_os("POINTSMAN_TAKE_OVER").is_none() {
        return;
    }
    let mut old = Channel::on_stdin();
    let (ours, theirs) = UnixStream::pair().expect("a pair");
    let arguments = std::env::var("ARGUMENTS").expect("those of the old process");
    let new =
        Command::new(POINTSMAN).args(arguments.split(' ')).stdin(OwnedFd::from(theirs)).spawn();
    let mut new = new.expect("the new process");
    let channel = Channel { stream: ours };
    let (mut answers, back) = (channel.again(), old.again());
    let answering = thread::spawn(move || answers.pass_all_to(back, |_| {}));
    old.pass_all_to(channel, |frame| {
        if frame.kind == SOCKETS {
            let file = || OwnedFd::from(fs::File::open("/dev/null").expect("it is there"));
            frame.descriptors.iter_mut().for_each(|descriptor| *descriptor = file());
        }
    });
    answering.join().expect("the answers");
    new.wait().expect("its end");
}

#[test]
fn a_new_process_that_cannot_serve_a_socket_leaves_all_to_the_old_one() {
    let mirror = Mirror::start();
    let site = Site::start(&udp_config("workers = 2", "", "round-robin", &[mirror.address]));
    let asker = Asker::new("127.0.0.1", site.balancer.address("web"));
    let path = path_of(&asker);
    site.install_this("export ARGUMENTS=\"$*\"", "a_thief_of_sockets");
    let told = site.refuse();
    assert!(told.contains("listener \"web\" cannot be served"), "{told}");
    assert_eq!(path_of(&asker), path);
    site.restore();
    site.upgrade();
    assert_eq!(path_of(&asker), path);
}

#[test]
fn whoever_ends_the_old_process_while_it_hands_over_ends_both_and_no_file_of_the_new_one() {
    let endpoint = Endpoint::start();
    let mut site = Site::start(&web("", &[endpoint.address]));
    let file = site.programs.path().join("result");
    let old = site.pid().as_raw_nonzero();
    site.install_this(
        &format!("export OLD_PROCESS={old} RESULT={file:?}"),
        "a_successor_of_one_that_is_to_end",
    );
    let output = site.ask_to_upgrade();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
    assert_eq!(site.balancer.await_end().code(), Some(0));
    assert!(site.balancer.socket().exists(), "it is the new one's");
    let told = || fs::read_to_string(&file).is_ok_and(|ends| ends == "true");
    eventually("the new one is told too", told);
}

#[test]
fn a_process_that_is_told_to_end_while_it_hands_over_drains_what_comes_back_to_it() {
    let (endpoint, mirror) = (Endpoint::start(), Mirror::start());
    let config = web("", &[endpoint.address]) + &second_listener("dns", "udp", mirror.address);
    let mut site = Site::start(&config);
    let asker = Asker::new("127.0.0.1", site.balancer.address("dns"));
    let path = path_of(&asker);
    let old = site.pid().as_raw_nonzero();
    site.install_this(
        &format!("export DIES=1 OLD_PROCESS={old}"),
        "a_successor_of_one_that_is_to_end",
    );
    let output = site.ask_to_upgrade();
    assert_eq!(output.status.code(), Some(2), "{output:?}");
    assert_eq!(path_of(&asker), path);
    eventually("it drains", || site.balancer.status().draining);
    assert_eq!(path_of(&asker), path);
    assert!(!site.balancer.has_ended(), "it has a flow yet");
}

#[test]
fn endpoints_that_the_old_process_finds_at_the_last_moment_keep_their_flows() {
    let (early, late) = (Mirror::start(), Mirror::start());
    let site = Site::start(
        "workers = 1\n[[listeners]]\nname = \"dns\"\naddress = \"127.0.0.1:0\"\nprotocol = \"udp\"\n\
         cluster = \"dns\"\n[[clusters]]\nname = \"dns\"\n\
         discovery = { kind = \"file\", path = \"found.toml\", start_timeout_ms = 1 }\n",
    );
    let write = |all: &[&Mirror]| {
        let all = all.iter().map(|it| format!("{{ address = \"{}\" }}, ", it.address));
        let (new, file) = (site.balancer.path("found.new"), site.balancer.path("found.toml"));
        fs::write(&new, format!("endpoints = [{}]", all.collect::<String>())).expect("a file");
        fs::rename(new, file).expect("it is in its place");
    };
    let count = || site.balancer.status().clusters[0].endpoints.len();
    write(&[&early]);
    eventually("it is found", || count() == 1);
    let [begun, go] = ["begun", "go"].map(|name| site.programs.path().join(name));
    site.install(&format!(
        "touch {begun:?}; until [ -e {go:?} ]; do sleep 0.01; done; exec {POINTSMAN:?} \"$@\""
    ));
    let dns = site.balancer.address("dns");
    let askers: Vec<_> = (0..4).map(|_| Asker::new("127.0.0.1", dns)).collect();
    let (answer, paths) = thread::scope(|scope| {
        let upgrade = scope.spawn(|| site.upgrade());
        eventually("the new one has been told who there is", || begun.exists());
        write(&[&early, &late]);
        eventually("there are two", || count() == 2);
        let paths: Vec<_> = askers.iter().map(path_of).collect();
        fs::write(&go, "").expect("a file");
        (upgrade.join().expect("the upgrade"), paths)
    });
    assert_eq!((answer.flows, answer.flows_lost), (4, 0));
    assert!(paths.iter().any(|path| path.starts_with(&late.address.to_string())));
    let after: Vec<_> = askers.iter().map(path_of).collect();
    assert_eq!(after, paths);
}

#[test]
fn a_process_that_dies_with_everything_in_its_hands_costs_nothing() {
    let (endpoint, mirrors) = (Endpoint::start(), [Mirror::start(), Mirror::start()]);
    let config = web("", &[endpoint.address])
        + &second_listener("one", "udp", mirrors[0].address)
        + &second_listener("other", "udp", mirrors[1].address);
    let site = Site::start(&config);
    let web = site.balancer.address("web");
    let askers: Vec<_> = (0..20)
        .map(|number| {
            let listener = if number % 2 == 0 { "one" } else { "other" };
            Asker::new("127.0.0.1", site.balancer.address(listener))
        })
        .collect();
    let paths: Vec<_> = askers.iter().map(path_of).collect();
    let traffic = Traffic::start(web, 2);
    site.install_this("", "a_successor_that_dies");
    for _ in 0..3 {
        let told = site.refuse();
        assert!(told.contains("has ended (exit status: 7)"), "{told}");
        let after: Vec<_> = askers.iter().map(path_of).collect();
        assert_eq!(after, paths);
        let enough = endpoint.served() + 20;
        eventually("clients are served", || endpoint.served() > enough);
    }
    assert!(traffic.stop() > 0);
    site.restore();
    let answer = site.upgrade();
    assert_eq!((answer.flows, answer.flows_lost), (20, 0));
    let after: Vec<_> = askers.iter().map(path_of).collect();
    assert_eq!(after, paths);
    assert_eq!(ask_once(web).expect("an answer"), endpoint.address);
}

#[test]
fn one_thing_at_a_time() {
    let endpoint = Endpoint::start();
    let plugin = plugins().join("p2c.wasm");
    let top = "workers = 2\nupgrade_timeout_ms = 600000";
    let config = config_with_policy(top, "", "p2c", &[endpoint.address]);
    let site = Site::start(&(config + &policy("p2c", &plugin, "")));
    let file = site.programs.path().join("pid");
    site.install(&format!("echo $$ > {file:?}.new; mv {file:?}.new {file:?}; exec sleep 3600"));
    let output = thread::scope(|scope| {
        let first = scope.spawn(|| site.ask_to_upgrade());
        eventually("the first is under way", || file.exists());
        let post = |path| client::send_body(&site.balancer.socket(), ("POST", path), &[], GIVE_UP);
        let answers = ["/v1/upgrade", "/v1/reload"].map(post);
        let swap = ["policy", "swap", "web", text(&plugin), "--admin"];
        let swap = Command::new(POINTSMAN).args(swap).arg(site.balancer.socket()).output();
        let served = ask_once(site.balancer.address("web"));
        // Whatever fails fails below, where nobody waits for the first any more.
        let number = fs::read_to_string(&file).expect("its number");
        let sleeper = pid(number.trim().parse().expect("a number"));
        kill_process(sleeper, Signal::KILL).expect("it is there");
        for answer in answers {
            let (code, told) = answer.expect("an answer");
            assert!(code == 409 && told.contains("is under way; ask again"), "{told}");
        }
        let told = String::from_utf8_lossy(&swap.expect("it runs").stderr).into_owned();
        assert!(told.contains("is being changed; ask again"), "{told}");
        assert_eq!(served.expect("an answer"), endpoint.address);
        first.join().expect("the first")
    });
    let told = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.code() == Some(2) && told.contains("signal: 9"), "{told}");
    site.restore();
    site.upgrade();
}

#[test]
fn what_an_operator_and_checks_have_said_of_endpoints_holds() {
    let (drained, dead, serves) = (Endpoint::start(), Endpoint::start(), Endpoint::start());
    let config = web("", &[drained.address, dead.address, serves.address])
        + "health = { kind = \"tcp\", interval_ms = 50, fast_interval_ms = 50, fall = 2, rise = 2 }\n";
    let site = Site::start(&config);
    let address = dead.address;
    drop(dead);
    eventually("it is found dead", || !site.balancer.is_up(address));
    let mut command = Command::new(POINTSMAN);
    command.args(["endpoint", "drain", "web", &drained.address.to_string(), "--admin"]);
    assert!(command.arg(site.balancer.socket()).output().expect("it runs").status.success());
    // The new process must know before it could find out.
    site.configure(&config.replace("interval_ms = 50", "interval_ms = 3600000"));
    site.upgrade();
    assert!(!site.balancer.is_up(address));
    for _ in 0..20 {
        assert_eq!(ask_once(site.balancer.address("web")).expect("an answer"), serves.address);
    }
    let status = site.balancer.status();
    let states: Vec<_> = status.clusters[0].endpoints.iter().map(|it| it.draining).collect();
    assert_eq!(states, [true, false, false]);
}

#[test]
fn listeners_that_the_new_file_does_not_have_drain_in_the_old_process() {
    let (endpoint, mirror) = (Endpoint::start(), Mirror::start());
    let old = web("", &[endpoint.address])
        + &second_listener("gone", "tcp", endpoint.address)
        + &second_listener("dns", "udp", mirror.address);
    let mut site = Site::start(&old);
    let gone = site.balancer.address("gone");
    let mut connection = Client::connect(gone).expect("a connection");
    connection.ask("before").expect("an answer");
    let asker = Asker::new("127.0.0.1", site.balancer.address("dns"));
    let path = path_of(&asker);
    site.configure(
        &(web("", &[endpoint.address]) + &second_listener("come", "tcp", endpoint.address)),
    );
    let answer = site.upgrade();
    assert_eq!((answer.flows, answer.flows_lost), (0, 0), "they stay where they are");
    let come = site.balancer.address("come");
    assert_eq!(ask_once(come).expect("an answer"), endpoint.address);
    eventually("nobody listens there", || Client::connect(gone).is_err());
    connection.ask("after").expect("an answer");
    assert_eq!(path_of(&asker), path);
    assert!(!site.balancer.has_ended());
    drop(connection);
    assert_eq!(path_of(&asker), path, "it is a flow of the old process yet");
    site.balancer.signal(Signal::TERM);
    site.balancer.await_end();
    assert_eq!(ask_once(come).expect("an answer"), endpoint.address);
}

#[test]
fn a_signal_upgrades_too_and_the_service_manager_hears_who_is_the_service() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("notify");
    let manager = UnixDatagram::bind(&path).expect("a manager");
    manager.set_read_timeout(Some(GIVE_UP)).expect("a timeout");
    let next = || {
        let mut bytes = [0; 256];
        let length = manager.recv(&mut bytes).expect("a message");
        String::from_utf8_lossy(&bytes[..length]).into_owned()
    };
    let endpoint = Endpoint::start();
    let variables = [("NOTIFY_SOCKET", path.to_str().expect("text"))];
    let mut site = Site::start_with(&web("", &[endpoint.address]), &variables);
    assert_eq!(next(), "READY=1");
    let old = site.pid();
    let mut client = Client::connect(site.balancer.address("web")).expect("a connection");
    client.ask("before").expect("an answer");
    site.balancer.signal(Signal::USR2);
    let main = next();
    let number = main.strip_prefix("MAINPID=").expect("the new process").parse().expect("a number");
    site.successors.lock().expect("no test has failed").push(pid(number));
    assert_eq!(next(), "READY=1");
    let parent = parent_of(pid(number));
    assert!(parent != old && !site.balancer.has_ended(), "the manager sees only its own end");
    drop(client);
    assert_eq!(site.pid(), pid(number));
    assert_ne!(site.pid(), old);
    assert_eq!(site.balancer.await_end().code(), Some(0));
    kill_process(pid(number), Signal::TERM).expect("the signal is sent");
    assert_eq!(next(), "STOPPING=1", "the old one has ended without a word");
}

#[test]
fn sockets_from_a_service_manager_go_over_too() {
    let (endpoint, mirror) = (Endpoint::start(), Mirror::start());
    let tcp = TcpListener::bind("127.0.0.1:0").expect("a port");
    let udp = UdpSocket::bind("127.0.0.1:0").expect("a port");
    let (web_at, dns_at) = (tcp.local_addr().expect("one"), udp.local_addr().expect("one"));
    let config = format!(
        "workers = 2\n{}{}",
        listener_at("web", "tcp", web_at, endpoint.address),
        listener_at("dns", "udp", dns_at, mirror.address)
    );
    // Fewer than there are workers: they share the one, and the other is one worker's.
    let sockets = vec![tcp.into(), udp.into()];
    let balancer = Balancer::start_with_sockets(&config, sockets, "web:dns");
    let programs = tempfile::tempdir().expect("a folder");
    let site = Site { balancer, programs, successors: Mutex::default() };
    let asker = Asker::new("127.0.0.1", dns_at);
    let path = path_of(&asker);
    let traffic = Traffic::start(web_at, 2);
    for _ in 0..3 {
        site.upgrade();
        assert_eq!(path_of(&asker), path);
        let enough = endpoint.served() + 10;
        eventually("clients are served", || endpoint.served() > enough);
    }
    assert!(traffic.stop() > 0);
}

#[test]
fn an_address_for_http_goes_over_as_well() {
    let endpoint = Endpoint::start();
    let http = TcpListener::bind("127.0.0.1:0").expect("a port").local_addr().expect("one");
    let site = Site::start(&web("", &[endpoint.address]));
    let admin = format!("[admin]\nsocket = {:?}\nhttp = \"{http}\"\n", site.balancer.socket());
    let file = site.balancer.path("pointsman.toml");
    fs::write(&file, web("", &[endpoint.address]) + &admin).expect("the configuration");
    for _ in 0..3 {
        // The first opens it, and the next ones take it over.
        site.upgrade();
        let mut stream = std::net::TcpStream::connect(http).expect("a connection");
        stream.set_read_timeout(Some(GIVE_UP)).expect("a timeout");
        write!(stream, "GET /v1/status HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
            .expect("it");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).expect("an answer");
        let number = site.balancer.status().pid;
        assert!(answer.contains(&format!("\"pid\":{number},")), "{answer}");
    }
}

#[test]
fn who_has_given_up_privileges_is_followed_by_somebody_without_them() {
    if !rustix::process::geteuid().is_root() {
        return;
    }
    let (endpoint, mirror) = (Endpoint::start(), Mirror::start());
    let logs = tempfile::tempdir().expect("a folder");
    fs::set_permissions(logs.path(), fs::Permissions::from_mode(0o755)).expect("its mode");
    let log = logs.path().join("access.log");
    let good = web("user = \"nobody\"", &[endpoint.address])
        + &second_listener("dns", "udp", mirror.address)
        + &format!("[access_log]\npath = {log:?}\n");
    let site = Site::start(&good);
    // As that user it must reach its program and its file.
    let readable = |path: &Path, mode| {
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).expect("its mode");
    };
    readable(site.programs.path(), 0o755);
    readable(&site.balancer.path("."), 0o755);
    let own = site.programs.path().join("copy");
    fs::hard_link(POINTSMAN, &own)
        .or_else(|_| fs::copy(POINTSMAN, &own).map(drop))
        .expect("the program in a place of its own");
    readable(&own, 0o755);
    fs::rename(&own, site.program()).expect("it is in its place");
    let asker = Asker::new("127.0.0.1", site.balancer.address("dns"));
    let path = path_of(&asker);
    for _ in 0..2 {
        site.upgrade();
        assert_eq!(path_of(&asker), path);
        assert_eq!(ask_once(site.balancer.address("web")).expect("an answer"), endpoint.address);
        let status = fs::read_to_string(format!("/proc/{}/status", site.balancer.status().pid));
        assert!(status.expect("it is there").contains("Uid:\t65534\t65534\t65534\t65534"));
    }
    let low = "127.0.0.1:1".parse().expect("an address");
    site.configure(&(good.clone() + &listener_at("low", "tcp", low, endpoint.address)));
    // Where everybody may bind low ports there is nothing to be refused.
    let first = fs::read_to_string("/proc/sys/net/ipv4/ip_unprivileged_port_start");
    if first.is_ok_and(|first| first.trim().parse::<u16>().is_ok_and(|first| first > 1)) {
        let told = site.refuse();
        assert!(told.contains("listener \"low\"") && told.contains("Permission denied"), "{told}");
    }
    assert_eq!(path_of(&asker), path);
    assert_eq!(ask_once(site.balancer.address("web")).expect("an answer"), endpoint.address);
    let lines = || fs::read_to_string(&log).expect("a log").lines().count();
    eventually("all of them have written it", || lines() >= 3);
}

/// Descriptors, and KiB that are resident.
fn footprint(pid: Pid) -> (usize, u64) {
    let process = format!("/proc/{}", pid.as_raw_nonzero());
    let descriptors = fs::read_dir(format!("{process}/fd")).expect("its descriptors").count();
    let status = fs::read_to_string(format!("{process}/status")).expect("its status");
    let resident = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("a line");
    let kib = resident.trim().trim_end_matches(" kB").parse().expect("a number");
    (descriptors, kib)
}

#[test]
fn after_twenty_upgrades_nothing_has_grown() {
    let (endpoint, mirror) = (Endpoint::start(), Mirror::start());
    let config = web("", &[endpoint.address]) + &second_listener("dns", "udp", mirror.address);
    let site = Site::start(&config);
    let (web, dns) = (site.balancer.address("web"), site.balancer.address("dns"));
    let askers: Vec<_> = (0..20).map(|_| Asker::new("127.0.0.1", dns)).collect();
    let paths: Vec<_> = askers.iter().map(path_of).collect();
    let mut second = (0, 0);
    let mut last = (0, 0);
    for number in 1..=20 {
        site.upgrade();
        assert_eq!(ask_once(web).expect("an answer"), endpoint.address);
        let after: Vec<_> = askers.iter().map(path_of).collect();
        assert_eq!(after, paths, "upgrade {number}");
        last = footprint(site.pid());
        if number == 1 {
            second = last;
        }
    }
    assert!(last.0 <= second.0 + 4, "descriptors: {second:?}, {last:?}");
    assert!(last.1 <= second.1 * 3 / 2, "memory: {second:?}, {last:?}");
}
