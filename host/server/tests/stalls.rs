//! What stands still beside the workers: the control thread, whoever reads the log, disks, and names
//! that files should have. Flows go on, new ones are served, and everything recovers by itself.

mod support;

use std::fs::{self, File};
use std::io::{ErrorKind, Read, Write};
use std::net::SocketAddr;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use nix::sys::ptrace;
use nix::sys::wait::{WaitPidFlag, waitpid};
use nix::unistd::Pid;
use rustix::fs::{CWD, FileType, Mode, OFlags, mknodat};
use rustix::process::Signal;
use serde_json::Value;
use support::kernel::may_mount;
use support::raw::{config, connect, rest};
use support::udp::{Asker, Server};
use support::{Balancer, Client, Endpoint, POINTSMAN, ask_once, eventually};

/// A pipe with a name, which the test may read and write.
struct Pipe {
    file: File,
}

impl Pipe {
    fn make(path: &Path) -> Self {
        mknodat(CWD, path, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).expect("a pipe");
        Self::open(path)
    }

    fn open(path: &Path) -> Self {
        let without_waiting = OFlags::NONBLOCK.bits().cast_signed();
        let mut options = File::options();
        let file = options.read(true).write(true).custom_flags(without_waiting).open(path);
        Self { file: file.expect("the pipe") }
    }

    /// From here on whoever writes waits.
    fn fill(&mut self) {
        while self.file.write(&[b'-'; 4096]).is_ok() {}
        while self.file.write(b"-").is_ok() {}
    }

    /// What is in it.
    fn read(&mut self) -> String {
        let (mut text, mut bytes) = (String::new(), [0; 4096]);
        while let Ok(count) = self.file.read(&mut bytes) {
            text += &String::from_utf8_lossy(&bytes[..count]);
        }
        text
    }
}

fn reload(balancer: &Balancer) -> Output {
    let mut command = Command::new(POINTSMAN);
    command.arg("reload").arg("--admin").arg(balancer.socket());
    command.output().expect("the binary runs")
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// An established flow, and one of an endpoint's answers by it.
fn flow(web: SocketAddr) -> Client {
    let mut client = Client::connect(web).expect("a connection");
    client.ask("before").expect("an answer");
    client
}

/// The flow that was there goes on, and new ones are served.
fn assert_serves(web: SocketAddr, established: &mut Client) {
    for line in ["it", "goes", "on"] {
        established.ask(line).expect("established flows go on");
        ask_once(web).expect("new flows are served");
    }
}

#[test]
fn a_log_that_nobody_reads_holds_up_nothing() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("log");
    let mut log = Pipe::make(&path);
    log.fill();
    let mut command = Command::new("sh");
    command.args(["-c", "exec \"$@\" 2>\"$0\""]).arg(&path).arg(POINTSMAN);
    let endpoint = Endpoint::start();
    let mut balancer =
        Balancer::launch_by(command, &config("workers = 2", "", &[endpoint.address]));
    eventually("it serves", || pointsman::client::get(&balancer.socket(), "/readyz").is_ok());
    let web = balancer.address("web");
    let mut client = flow(web);
    for reloads in 1..=3 {
        assert!(reload(&balancer).status.success());
        let applied = balancer.metric("pointsman_reloads_total{outcome=\"applied\"}");
        assert_eq!(applied, f64::from(reloads));
        assert_serves(web, &mut client);
    }
    let mut text = String::new();
    eventually("who reads again gets all of it", || {
        text += &log.read();
        text.contains("accepts") && text.matches("the configuration is reloaded").count() == 3
    });
    assert_eq!(balancer.metric("pointsman_log_lines_dropped_total"), 0.0);
    log.fill();
    drop(client);
    balancer.signal(Signal::TERM);
    assert_eq!(balancer.await_end().code(), Some(0), "its last lines hold up no end");
}

/// A balancer's control thread, which stands still until this is dropped. It is stopped as a debugger
/// does it, by the thread that lets it go.
struct Stopped {
    control: Pid,
}

impl Stopped {
    fn stop(balancer: &Balancer) -> Self {
        let control = Pid::from_raw(balancer.pid().as_raw_nonzero().get());
        ptrace::seize(control, ptrace::Options::empty()).expect("it can be stopped");
        ptrace::interrupt(control).expect("it is told to stop");
        waitpid(control, Some(WaitPidFlag::__WALL)).expect("it stops");
        Self { control }
    }

    /// The states of the process's threads: `t` is one that stands still.
    fn states(&self) -> String {
        let tasks = fs::read_dir(format!("/proc/{}/task", self.control)).expect("its threads");
        let state = |task: fs::DirEntry| {
            let stat = fs::read_to_string(task.path().join("stat")).ok()?;
            stat.rsplit_once(") ")?.1.chars().next()
        };
        tasks.flatten().filter_map(state).collect()
    }
}

impl Drop for Stopped {
    fn drop(&mut self) {
        ptrace::detach(self.control, None).expect("it goes on");
    }
}

/// An established flow of this endpoint.
fn flow_of(endpoint: &Endpoint, web: SocketAddr) -> Client {
    let mut found = None;
    eventually("the endpoint has a flow", || {
        let mut client = Client::connect(web).expect("a connection");
        let is_its = client.ask("before").expect("an answer") == endpoint.address;
        found = is_its.then_some(client);
        found.is_some()
    });
    found.expect("a flow")
}

#[test]
fn a_control_thread_that_stands_still_costs_no_flow() {
    let (one, two, server) = (Endpoint::start(), Endpoint::start(), Server::start());
    let folder = tempfile::tempdir().expect("a folder");
    let log = folder.path().join("access.log");
    let text = config("workers = 2", "max_flows = 12", &[one.address, two.address]);
    let health = "health = { interval_ms = 20, timeout_ms = 10000, rise = 1, fall = 1 }";
    let text = format!(
        "{text}\n{health}\n[[listeners]]\nname = \"dns\"\nprotocol = \"udp\"\n\
         address = \"127.0.0.1:0\"\ncluster = \"dns\"\n[[clusters]]\nname = \"dns\"\n\
         endpoints = [{{ address = \"{}\" }}]\n[access_log]\npath = {log:?}\n",
        server.address
    );
    let balancer = Balancer::start(&text);
    let (web, dns) = (balancer.address("web"), balancer.address("dns"));
    let (mut stays, mut ends) = (flow_of(&one, web), flow_of(&two, web));
    let asker = Asker::new("127.0.0.1", dns);
    asker.ask(b"before");
    eventually("only these flows are left", || balancer.web("flows_active") == 2.0);
    let before = balancer.web("flows_total");

    let stopped = Stopped::stop(&balancer);
    assert_eq!(stopped.states().matches('t').count(), 1, "it alone stands still");
    let gone = two.address;
    drop(two);
    assert!(ends.is_ended());
    drop(ends);
    for _ in 0..40 {
        assert_eq!(stays.ask("during").expect("established flows go on"), one.address);
        assert_eq!(ask_once(web).expect("a retry needs nobody else"), one.address);
        assert_eq!(asker.ask(b"during"), server.address);
        Asker::new("127.0.0.1", dns).ask(b"new");
    }
    let mut full = Vec::new();
    eventually("the listener is full", || {
        let mut client = Client::connect(web).expect("a connection");
        full.extend(client.ask("new").is_ok().then_some(client));
        full.len() == 11
    });
    assert_eq!(rest(&mut connect(web)), Err(ErrorKind::ConnectionReset));
    assert_eq!(stopped.states().matches('t').count(), 1);
    drop(stopped);

    drop(full);
    eventually("all flows have ended but one", || balancer.web("flows_active") == 1.0);
    assert_eq!(balancer.web("flows_total"), before + 51.0, "all that happened is counted");
    assert!(balancer.count("sheds", "flows-max") >= 1.0);
    eventually("and logged", || {
        let text = fs::read_to_string(&log).unwrap_or_default();
        text.matches("\"listener\":\"web\"").count() as f64 == before + 50.0
    });
    eventually("checks go on", || !balancer.is_up(gone));
    stays.ask("after").expect("the flow that was there goes on");
}

#[test]
fn a_configuration_that_is_a_pipe_is_refused_and_the_next_one_is_read() {
    let endpoint = Endpoint::start();
    let balancer = Balancer::start(&config("workers = 1", "", &[endpoint.address]));
    let web = balancer.address("web");
    let mut client = flow(web);
    let file = balancer.path("pointsman.toml");
    let text = fs::read(&file).expect("the configuration");
    fs::remove_file(&file).expect("it is taken away");
    let _pipe = Pipe::make(&file);
    let refused = reload(&balancer);
    assert_eq!(refused.status.code(), Some(2), "{}", said(&refused));
    assert!(said(&refused).contains("cannot be read: it is no file"), "{}", said(&refused));
    assert_serves(web, &mut client);
    fs::remove_file(&file).expect("it is taken away");
    fs::write(&file, text).expect("the configuration");
    let applied = reload(&balancer);
    assert!(applied.status.success(), "{}", said(&applied));
    assert_serves(web, &mut client);
}

#[test]
fn endpoints_whose_file_is_a_pipe_stay_and_those_of_the_next_file_are_taken() {
    let (one, two) = (Endpoint::start(), Endpoint::start());
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("web.toml");
    let written = |at: &Endpoint| format!("endpoints = [{{ address = \"{}\" }}]", at.address);
    fs::write(&file, written(&one)).expect("it is written");
    let text = config("workers = 1", "", &[]);
    let found = format!("discovery = {{ kind = \"file\", path = {file:?} }}");
    let balancer = Balancer::start(&text.replace("endpoints = []", &found));
    let web = balancer.address("web");
    let mut client = flow(web);
    fs::remove_file(&file).expect("it is taken away");
    let _pipe = Pipe::make(&file);
    let problem = || balancer.status().clusters[0].discovery.as_ref()?.problem.clone();
    eventually("that is told", || problem().is_some_and(|told| told.contains("it is no file")));
    assert_serves(web, &mut client);
    fs::remove_file(&file).expect("it is taken away");
    fs::write(&file, written(&two)).expect("it is written");
    eventually("the other serves", || ask_once(web).is_ok_and(|who| who == two.address));
    assert_eq!(client.ask("after").expect("an answer"), one.address);
}

fn with_log(path: &Path, endpoint: &Endpoint) -> String {
    let text = config("workers = 2", "", &[endpoint.address]);
    format!("{text}[access_log]\npath = {path:?}\n")
}

fn lost(balancer: &Balancer) -> f64 {
    balancer.metric("pointsman_access_log_dropped_total")
}

#[test]
fn an_access_log_that_is_a_pipe_without_a_reader_holds_up_nothing() {
    let folder = tempfile::tempdir().expect("a folder");
    let (path, away) = (folder.path().join("access.log"), folder.path().join("away.log"));
    let endpoint = Endpoint::start();
    let text = with_log(&path, &endpoint);
    let balancer = Balancer::start(&text);
    let web = balancer.address("web");
    let mut client = flow(web);
    fs::rename(&path, &away).expect("it is moved");
    mknodat(CWD, &path, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).expect("a pipe");
    balancer.signal(Signal::USR1);
    eventually("it stays where it is", || balancer.log().contains("nobody reads this pipe"));
    assert_serves(web, &mut client);
    let lines = || fs::read_to_string(&away).unwrap_or_default().lines().count();
    eventually("lines go where they went", || lines() == 3);

    let mut refused = Balancer::launch(&text);
    assert_eq!(refused.await_end().code(), Some(2), "{}", refused.log());
    let told = "access_log.path: cannot be opened: nobody reads this pipe; start its reader first";
    assert!(refused.log().contains(told), "{}", refused.log());

    let mut reader = Pipe::open(&path);
    balancer.signal(Signal::USR1);
    eventually("the pipe is the log", || {
        ask_once(web).expect("an answer");
        reader.read().contains("\"finished\"")
    });
    reader.fill();
    assert_serves(web, &mut client);
    drop(client);
    eventually("the flow is over", || balancer.web("flows_active") == 0.0);
    let mut text = String::new();
    eventually("what waited is written when it is read again", || {
        text += &reader.read();
        text.matches("\"finished\"").count() >= 4
    });
    assert_eq!(lost(&balancer), 0.0);
}

/// Where a process sees a path.
fn seen_by(balancer: &Balancer, path: &Path) -> PathBuf {
    let root = format!("/proc/{}/root", balancer.pid().as_raw_nonzero());
    Path::new(&root).join(path.strip_prefix("/").expect("an absolute path"))
}

#[test]
fn a_disk_that_fills_up_costs_lines_that_are_counted_until_there_is_room_again() {
    if !may_mount() {
        return;
    }
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("access.log");
    let endpoint = Endpoint::start();
    let mut command = Command::new("unshare");
    let script = "mount -t tmpfs -o size=64k tmpfs \"$0\" && exec \"$@\"";
    command.args(["--mount", "sh", "-c", script]).arg(folder.path()).arg(POINTSMAN);
    let balancer = Balancer::launch_by(command, &with_log(&path, &endpoint));
    eventually("it serves", || pointsman::client::get(&balancer.socket(), "/readyz").is_ok());
    let web = balancer.address("web");
    let mut client = flow(web);
    let (log, filler) = (seen_by(&balancer, &path), seen_by(&balancer, &path.with_extension("x")));
    let lines = || {
        let text = fs::read_to_string(&log).expect("the log");
        let lines = text.lines().filter(|line| serde_json::from_str::<Value>(line).is_ok());
        lines.count() as f64
    };
    ask_once(web).expect("an answer");
    eventually("a line is written", || lines() == 1.0);
    let mut file = File::create(&filler).expect("a file");
    while file.write(&[0; 512]).is_ok() {}

    let mut flows = 1.0;
    while lost(&balancer) < 20.0 {
        assert_serves(web, &mut client);
        flows += 3.0;
    }
    fs::remove_file(&filler).expect("it is removed");
    drop(file);
    eventually("the log goes on", || {
        ask_once(web).expect("an answer");
        flows += 1.0;
        balancer.log().contains("the access log is written again")
    });
    eventually("every flow has a line or is counted", || lines() + lost(&balancer) == flows);
    assert_eq!(balancer.log().matches("cannot write the access log").count(), 1, "told once");
    client.ask("after").expect("the flow that was there goes on");
}

#[test]
fn endpoints_are_not_blamed_for_descriptors_that_we_have_not() {
    let (endpoint, server) = (Endpoint::start(), Server::start());
    let keys = "on_endpoint_down = \"reset\"";
    let health = "health = { interval_ms = 20, timeout_ms = 10000, rise = 1, fall = 1 }";
    let text = config("workers = 2", keys, &[endpoint.address]) + "fail_open = false\n" + health;
    let text = format!(
        "{text}\n[[listeners]]\nname = \"dns\"\nprotocol = \"udp\"\nupstream_sockets = \"per-flow\"\n\
         address = \"127.0.0.1:0\"\ncluster = \"dns\"\n[[clusters]]\nname = \"dns\"\n\
         endpoints = [{{ address = \"{}\" }}]\n",
        server.address
    );
    let balancer = Balancer::start(&text);
    let (web, dns) = (balancer.address("web"), balancer.address("dns"));
    let mut client = flow(web);
    let (asker, late) = (Asker::new("127.0.0.1", dns), Asker::new("127.0.0.1", dns));
    asker.ask(b"before");
    balancer.limit_descriptors(Some(3));
    for _ in 0..50 {
        client.ask("during").expect("established flows go on");
        asker.ask(b"during");
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
    late.send(b"hello");
    assert!(rest(&mut connect(web)).is_err(), "there is nobody for him");
    balancer.limit_descriptors(None);
    eventually("new flows are served", || ask_once(web).is_ok());
    assert_eq!(late.insist(b"hello"), server.address);
    client.ask("after").expect("the flow that was there goes on");
    assert!(!balancer.log().contains("endpoint is down"), "{}", balancer.log());
    let refused = balancer.count("closes", "descriptors") + balancer.count("sheds", "descriptors");
    assert!(refused >= 1.0, "{}", balancer.metrics());
}
