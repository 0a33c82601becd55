//! Tells the service manager how it goes, as `sd_notify(3)` has it: one datagram per message.
//!
//! Whoever started the process says in its environment where to send them. A message that does not
//! arrive is nobody's loss but the manager's, so none is waited for.

use std::env;
use std::ffi::OsStr;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering::{Acquire, Release};
use std::time::{Duration, Instant};

use pointsman_ring::Clock;

/// A way to the service manager, if there is one.
#[derive(Debug, Clone, Default)]
pub struct Notifier {
    line: Option<Arc<Line>>,
}

#[derive(Debug)]
struct Line {
    socket: UnixDatagram,
    /// Whether another process speaks for the service.
    is_anothers: AtomicBool,
}

/// The manager's wish to hear from us again and again.
#[derive(Debug)]
pub struct Watchdog {
    notifier: Notifier,
    every: Option<Duration>,
    told: Instant,
}

impl Notifier {
    /// What the environment says.
    pub fn from_environment() -> Self {
        let socket = env::var_os("NOTIFY_SOCKET").and_then(|path| connect(&path));
        let line = |socket| Arc::new(Line { socket, is_anothers: AtomicBool::new(false) });
        Self { line: socket.map(line) }
    }

    /// Everything is bound, and all workers accept; or a reload is over.
    pub fn ready(&self) {
        self.send("READY=1");
    }

    /// A reload begins. The manager waits for [`ready`](Self::ready), and goes by the clock which of
    /// several is meant.
    pub fn reloading(&self) {
        let micros = Clock.now().as_nanos() / 1_000;
        self.send(&format!("RELOADING=1\nMONOTONIC_USEC={micros}"));
    }

    /// The process is to end.
    pub fn stopping(&self) {
        self.send("STOPPING=1");
    }

    /// This process is the service from here on, and the calling one says nothing any more: its end is
    /// nobody's concern.
    pub fn give_way_to(&self, process: u32) {
        self.send(&format!("MAINPID={process}"));
        self.line.iter().for_each(|line| line.is_anothers.store(true, Release));
    }

    fn send(&self, message: &str) {
        if let Some(line) = self.line.as_ref().filter(|line| !line.is_anothers.load(Acquire)) {
            let _ = line.socket.send(message.as_bytes());
        }
    }
}

impl Watchdog {
    /// What the environment says.
    pub fn from_environment(notifier: Notifier) -> Self {
        let number = |name: &str| env::var(name).ok()?.parse::<u64>().ok();
        let is_meant =
            number("WATCHDOG_PID").is_none_or(|pid| pid == u64::from(std::process::id()));
        let limit = number("WATCHDOG_USEC").filter(|micros| is_meant && *micros > 0);
        // Twice as often as it must be, as the manual advises.
        let every = limit.map(|micros| Duration::from_micros(micros / 2));
        Self { notifier, every, told: Instant::now() }
    }

    /// Time has passed: the control thread is alive.
    pub fn tick(&mut self) {
        if self.every.is_some_and(|every| self.told.elapsed() >= every) {
            self.told = Instant::now();
            self.notifier.send("WATCHDOG=1");
        }
    }
}

/// A path, or a name that begins with `@` and has no file.
fn connect(path: &OsStr) -> Option<UnixDatagram> {
    let address = match path.as_bytes().strip_prefix(b"@") {
        Some(name) => SocketAddr::from_abstract_name(name),
        None => SocketAddr::from_pathname(path),
    };
    let socket = UnixDatagram::unbound().ok()?;
    socket.set_nonblocking(true).ok()?;
    socket.connect_addr(&address.ok()?).ok()?;
    Some(socket)
}
