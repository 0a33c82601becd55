//! What the scenarios share: a real balancer process, small servers, and polling.
//!
//! Nothing here measures time. Whatever is awaited is polled until it is true, and given up long
//! after it should have been.
#![allow(dead_code, unreachable_pub, reason = "each scenario uses a part of it")]

use std::fs;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use pointsman::client;
use pointsman::status::Status;
use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

pub mod channel;
pub mod dns;
pub mod kernel;
pub mod policy;
pub mod raw;
pub mod udp;

/// Long after everything should have happened, on the slowest machine.
pub const GIVE_UP: Duration = Duration::from_secs(60);

/// The binary under test.
pub const POINTSMAN: &str = env!("CARGO_BIN_EXE_pointsman");

/// Polls until it is true.
pub fn eventually(what: &str, mut is_true: impl FnMut() -> bool) {
    let give_up = Instant::now() + GIVE_UP;
    while !is_true() {
        assert!(Instant::now() < give_up, "given up on: {what}");
        thread::sleep(Duration::from_millis(10));
    }
}

/// The workspace.
pub fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").canonicalize().expect("the workspace")
}

/// The folder with the plugins that `cargo xtask plugins` builds.
pub fn plugins() -> PathBuf {
    let target = std::env::var_os("CARGO_TARGET_DIR").map(PathBuf::from);
    let folders = target.into_iter().chain([root().join("target")]).map(|dir| dir.join("plugins"));
    let found = folders.into_iter().find(|folder| folder.join("p2c.wasm").is_file());
    found.expect("no plugins: run `cargo xtask plugins`")
}

/// A running balancer; it is killed when this is dropped.
pub struct Balancer {
    process: Child,
    folder: TempDir,
}

impl Balancer {
    /// Starts one and waits until it serves. The admin section is added to `config`; listeners had
    /// better have port 0.
    pub fn start(config: &str) -> Self {
        let mut balancer = Self::launch(config);
        balancer.await_start();
        balancer
    }

    /// The same for a process that may have no more descriptors than this.
    pub fn start_with_descriptors(config: &str, limit: u64) -> Self {
        let mut command = Command::new("sh");
        command.args(["-c", "ulimit -n \"$0\" && exec \"$@\"", &limit.to_string(), POINTSMAN]);
        let mut balancer = Self::launch_by(command, config);
        balancer.await_start();
        balancer
    }

    fn await_start(&mut self) {
        eventually("the balancer is ready", || {
            let ended = self.process.try_wait().expect("its state");
            assert!(ended.is_none(), "it ended: {ended:?}\n{}", self.log());
            client::get(&self.socket(), "/readyz").is_ok()
        });
    }

    /// Starts one without waiting for anything.
    pub fn launch(config: &str) -> Self {
        Self::launch_by(Command::new(POINTSMAN), config)
    }

    /// Starts one in the folder of its configuration, whose admin socket is `admin.sock` in
    /// `folder`, and waits until it serves.
    pub fn start_with_file(folder: TempDir, file: &Path) -> Self {
        let mut command = Command::new(POINTSMAN);
        command.current_dir(file.parent().expect("a folder"));
        let mut balancer = Self::spawn(command, folder, file);
        balancer.await_start();
        balancer
    }

    /// The same with more keys in the admin section.
    pub fn start_with_admin(config: &str, admin: &str) -> Self {
        let mut balancer = Self::launch_with(Command::new(POINTSMAN), config, admin);
        balancer.await_start();
        balancer
    }

    /// The same with something in its environment.
    pub fn start_with_environment(config: &str, variables: &[(&str, &str)]) -> Self {
        let mut command = Command::new(POINTSMAN);
        command.envs(variables.iter().copied());
        let mut balancer = Self::launch_by(command, config);
        balancer.await_start();
        balancer
    }

    /// The same with these sockets as its descriptors from 3 on, up to three of them, as a service manager
    /// hands them over.
    pub fn start_with_sockets(config: &str, sockets: Vec<OwnedFd>, names: &str) -> Self {
        let mut balancer = Self::launch_with_sockets(config, sockets, names);
        balancer.await_start();
        balancer
    }

    /// The same without waiting for anything.
    pub fn launch_with_sockets(config: &str, sockets: Vec<OwnedFd>, names: &str) -> Self {
        // They come as the standard streams of a shell, which alone knows its own number.
        const SHELL: &str = "exec 3<&0 4<&1 5<&2 </dev/null >\"$0\" 2>&1; \
                             LISTEN_PID=$$; export LISTEN_PID; exec \"$@\"";
        let folder = tempfile::tempdir().expect("a folder");
        let file = Self::configure(&folder, config, "");
        let mut command = Command::new("sh");
        command.args(["-c", SHELL]).arg(folder.path().join("log"));
        command.args([POINTSMAN, "run", "--config"]).arg(file);
        command.env("LISTEN_FDS", sockets.len().to_string()).env("LISTEN_FDNAMES", names);
        let mut streams = sockets.into_iter().map(Stdio::from);
        let mut next = || streams.next().unwrap_or_else(Stdio::null);
        command.stdin(next()).stdout(next()).stderr(next());
        Self { process: command.spawn().expect("the balancer starts"), folder }
    }

    /// Starts one by a command that ends with becoming it, without waiting for anything.
    pub fn launch_by(command: Command, config: &str) -> Self {
        Self::launch_with(command, config, "")
    }

    fn launch_with(command: Command, config: &str, admin: &str) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let file = Self::configure(&folder, config, admin);
        Self::spawn(command, folder, &file)
    }

    /// Writes its configuration, with an admin socket in the same folder.
    fn configure(folder: &TempDir, config: &str, admin: &str) -> PathBuf {
        let socket = folder.path().join("admin.sock");
        // Top-level keys come first in a file, so the section goes to the end.
        let socket = socket.to_str().expect("text");
        let config = format!("{config}\n[admin]\nsocket = {socket:?}\n{admin}");
        let file = folder.path().join("pointsman.toml");
        fs::write(&file, config).expect("the configuration is written");
        file
    }

    fn spawn(mut command: Command, folder: TempDir, file: &Path) -> Self {
        let log = fs::File::create(folder.path().join("log")).expect("a log");
        let process = command
            .arg("run")
            .arg("--config")
            .arg(file)
            .env("POINTSMAN_LOG", "info")
            .stdin(Stdio::null())
            .stdout(log.try_clone().expect("the log"))
            .stderr(log)
            .spawn()
            .expect("the balancer starts");
        Self { process, folder }
    }

    /// Its process.
    pub fn pid(&self) -> Pid {
        Pid::from_child(&self.process)
    }

    /// Its admin socket.
    pub fn socket(&self) -> PathBuf {
        self.folder.path().join("admin.sock")
    }

    /// A path in its folder, which is gone with it.
    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// What it has written so far.
    pub fn log(&self) -> String {
        fs::read_to_string(self.folder.path().join("log")).unwrap_or_default()
    }

    /// What it says of itself.
    pub fn status(&self) -> Status {
        let answer = client::get(&self.socket(), "/v1/status").expect("a status");
        serde_json::from_str(&answer).expect("a status")
    }

    /// Where a listener listens.
    pub fn address(&self, listener: &str) -> SocketAddr {
        let status = self.status();
        let found = status.listeners.iter().find(|found| found.name == listener);
        found.expect("the listener").address.parse().expect("an address")
    }

    /// Whether an endpoint of any cluster is up.
    pub fn is_up(&self, endpoint: SocketAddr) -> bool {
        let endpoint = endpoint.to_string();
        let status = self.status();
        let mut endpoints = status.clusters.iter().flat_map(|cluster| &cluster.endpoints);
        endpoints.find(|found| found.address == endpoint).expect("the endpoint").up
    }

    /// All its metrics.
    pub fn metrics(&self) -> String {
        client::get(&self.socket(), "/metrics").expect("metrics")
    }

    /// The value of one metric, labels and all, such as `pointsman_flows_total{listener="web"}`.
    pub fn metric(&self, name: &str) -> f64 {
        let metrics = self.metrics();
        let mut lines = metrics.lines().filter_map(|line| line.strip_prefix(name));
        let value = lines.find_map(|rest| rest.strip_prefix(' ')).unwrap_or_else(|| {
            panic!("there is no {name} in\n{metrics}");
        });
        value.parse().expect("a number")
    }

    /// Sends a signal.
    pub fn signal(&self, signal: Signal) {
        kill_process(self.pid(), signal).expect("the signal is sent");
    }

    /// Whether it has ended.
    pub fn has_ended(&mut self) -> bool {
        self.process.try_wait().expect("its state").is_some()
    }

    /// Waits until it has ended.
    pub fn await_end(&mut self) -> ExitStatus {
        eventually("the balancer ends", || self.has_ended());
        self.process.wait().expect("its exit status")
    }
}

impl Drop for Balancer {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
        if thread::panicking() {
            eprintln!("--- the balancer's log\n{}", self.log());
        }
    }
}

/// A server that answers every line with its address and the line, until the client has enough.
/// Dropping it closes the port and every connection.
pub struct Endpoint {
    /// Where it serves.
    pub address: SocketAddr,
    served: Arc<AtomicUsize>,
    ended: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Endpoint {
    /// Starts one on a free port.
    pub fn start() -> Self {
        Self::start_at("127.0.0.1:0".parse().expect("an address"))
    }

    /// Starts one at an address that must be free, or become so.
    pub fn start_at(address: SocketAddr) -> Self {
        let mut listener = None;
        eventually("the endpoint's port is free", || {
            listener = TcpListener::bind(address).ok();
            listener.is_some()
        });
        let listener = listener.expect("a listener");
        let address = listener.local_addr().expect("its address");
        let (served, ended) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicBool::new(false)));
        let counts = (Arc::clone(&served), Arc::clone(&ended));
        let thread = thread::spawn(move || accept(&listener, address, &counts));
        Self { address, served, ended, thread: Some(thread) }
    }

    /// Lines answered so far.
    pub fn served(&self) -> usize {
        self.served.load(SeqCst)
    }
}

impl Drop for Endpoint {
    fn drop(&mut self) {
        self.ended.store(true, SeqCst);
        // Gets the thread out of its accept. A test that has used up all descriptors has failed, and
        // is not to hang as well.
        if TcpStream::connect(self.address).is_ok()
            && let Some(thread) = self.thread.take()
        {
            let _ = thread.join();
        }
    }
}

fn accept(
    listener: &TcpListener,
    address: SocketAddr,
    (served, ended): &(Arc<AtomicUsize>, Arc<AtomicBool>),
) {
    let mut streams = Vec::new();
    for stream in listener.incoming().flatten() {
        if ended.load(SeqCst) {
            break;
        }
        streams.extend(stream.try_clone());
        let served = Arc::clone(served);
        thread::spawn(move || answer(stream, address, &served));
    }
    for stream in streams {
        let _ = stream.shutdown(std::net::Shutdown::Both);
    }
}

/// Serves one connection as an endpoint at this address does.
pub fn serve(stream: TcpStream, address: SocketAddr) {
    answer(stream, address, &AtomicUsize::new(0));
}

fn answer(stream: TcpStream, address: SocketAddr, served: &AtomicUsize) {
    let Ok(mut writer) = stream.try_clone() else { return };
    for line in BufReader::new(stream).lines().map_while(Result::ok) {
        served.fetch_add(1, SeqCst);
        if writeln!(writer, "{address} {line}").is_err() {
            break;
        }
    }
    // Another handle is kept to end the connection with the endpoint, so dropping ends nothing.
    let _ = writer.shutdown(std::net::Shutdown::Both);
}

/// A client with one connection.
pub struct Client {
    reader: BufReader<TcpStream>,
}

impl Client {
    /// Connects.
    pub fn connect(to: SocketAddr) -> io::Result<Self> {
        let stream = TcpStream::connect(to)?;
        stream.set_read_timeout(Some(GIVE_UP))?;
        Ok(Self { reader: BufReader::new(stream) })
    }

    /// Takes over a connection.
    pub fn of(stream: TcpStream) -> Self {
        stream.set_read_timeout(Some(GIVE_UP)).expect("a timeout");
        Self { reader: BufReader::new(stream) }
    }

    /// Sends a line; returns the endpoint that answered it.
    pub fn ask(&mut self, line: &str) -> io::Result<SocketAddr> {
        writeln!(self.reader.get_mut(), "{line}")?;
        let mut answer = String::new();
        self.reader.read_line(&mut answer)?;
        let (endpoint, echo) =
            answer.trim_end().split_once(' ').ok_or(io::ErrorKind::UnexpectedEof)?;
        assert_eq!(echo, line, "the line came back changed");
        endpoint.parse().map_err(io::Error::other)
    }

    /// Waits until the other side has ended the connection, in whatever way; false if it never
    /// does.
    pub fn is_ended(&mut self) -> bool {
        match self.reader.read(&mut [0; 1]) {
            Ok(count) => count == 0,
            Err(error) => error.kind() != io::ErrorKind::WouldBlock,
        }
    }
}

/// One connection, one line; returns the endpoint that answered.
pub fn ask_once(address: SocketAddr) -> io::Result<SocketAddr> {
    Client::connect(address)?.ask("who are you")
}
