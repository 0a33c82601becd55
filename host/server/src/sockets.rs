//! The sockets that others reach us by: listeners, and the admin socket.
//!
//! All of them are bound before any worker starts, so that a balancer either serves everything it
//! was told to or says why not and leaves nothing behind. Those that it was handed are taken as they
//! are.

use std::fs;
use std::io;
use std::net::{SocketAddr, TcpListener, UdpSocket};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileTypeExt, PermissionsExt, chown};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering::{Acquire, Release};

use pointsman_core::Protocol;
use pointsman_ring::{RingError, bind_tcp, bind_udp, prepare_tcp, prepare_udp};
use tokio::net::{TcpListener as TokioTcpListener, UnixListener};

use crate::plan::{ListenerPlan, Plan};

/// Connections that wait to be accepted, per worker and listener; the kernel lowers it to
/// `net.core.somaxconn`.
const BACKLOG: i32 = 4096;
/// What to do where the admin socket cannot be had.
const ADMIN_ADVICE: &str = "choose another admin.socket in the configuration";

/// The listeners' sockets.
#[derive(Debug)]
pub struct Listening {
    /// By listener: the address it really has.
    pub addresses: Vec<SocketAddr>,
    /// By worker, then by listener.
    pub sockets: Vec<Vec<Option<WorkerSocket>>>,
}

impl Listening {
    /// The sockets, which then are nobody's here.
    pub fn set_aside(&mut self) -> Vec<Vec<Option<WorkerSocket>>> {
        let nobodys = self.sockets.iter().map(|_| Vec::new()).collect();
        std::mem::replace(&mut self.sockets, nobodys)
    }
}

/// What one worker listens with for one listener.
#[derive(Debug)]
pub struct WorkerSocket {
    /// The socket.
    pub socket: OwnedFd,
    /// Whether other workers accept from it too.
    pub shared: bool,
}

/// The sockets of one listener.
#[derive(Debug)]
pub struct Opened {
    /// The address it really has.
    pub address: SocketAddr,
    /// By worker; nothing for those that do not listen for it.
    pub sockets: Vec<Option<WorkerSocket>>,
}

/// Where a listener's sockets come from.
#[derive(Debug)]
pub enum Origin {
    /// They are bound.
    New,
    /// Whoever started the process has opened them.
    Handed(Vec<OwnedFd>),
    /// They have this address, and come later.
    Awaited(SocketAddr),
}

/// Opens every listener, each as it is said.
///
/// # Errors
/// One line that names the listener and says what to do.
pub fn listen(plan: &Plan, origins: Vec<Origin>) -> Result<Listening, String> {
    let mut addresses = Vec::with_capacity(plan.listeners.len());
    let mut sockets: Vec<_> = (0..plan.workers).map(|_| Vec::new()).collect();
    for (place, (listener, origin)) in plan.listeners.iter().zip(origins).enumerate() {
        let opened = open(listener, origin, (place, plan.workers))
            .map_err(|error| format!("listener \"{}\": {error}", listener.name))?;
        addresses.push(opened.address);
        for (sockets, socket) in sockets.iter_mut().zip(opened.sockets) {
            sockets.push(socket);
        }
    }
    Ok(Listening { addresses, sockets })
}

/// Binds one listener once per worker, as [`listen`] does for all.
///
/// # Errors
/// One line that names the listener and says what to do.
pub fn listen_at(listener: &ListenerPlan, workers: usize) -> Result<Opened, String> {
    bind_all(listener, workers).map_err(|error| format!("listener \"{}\": {error}", listener.name))
}

/// Gets the sockets of one listener for so many workers. Its place among the listeners says which workers
/// begin where there are fewer sockets.
fn open(
    listener: &ListenerPlan,
    origin: Origin,
    (place, workers): (usize, usize),
) -> Result<Opened, RingError> {
    let handed = match origin {
        Origin::New => return bind_all(listener, workers),
        Origin::Awaited(address) => {
            return Ok(Opened { address, sockets: (0..workers).map(|_| None).collect() });
        }
        Origin::Handed(handed) => handed,
    };
    let address = listener.address;
    let taken = match listener.protocol {
        Protocol::Tcp => share(&handed, workers),
        Protocol::Udp => spread(handed, (place, workers)),
    };
    taken.map_err(|source| RingError::Bind { address, source })
}

/// Gives each worker one of these to accept from, to several the same if there are fewer: a connection
/// belongs to whoever accepts it.
fn share(handed: &[OwnedFd], workers: usize) -> io::Result<Opened> {
    let count = handed.len();
    handed.iter().try_for_each(prepare_tcp)?;
    let sockets = (0..workers).map(|worker| {
        let at = worker % count;
        let socket = handed[at].try_clone()?;
        Ok(Some(WorkerSocket { socket, shared: at + count < workers }))
    });
    let sockets = sockets.collect::<io::Result<_>>()?;
    let address = TcpListener::from(handed[0].try_clone()?).local_addr()?;
    Ok(Opened { address, sockets })
}

/// Gives each of these to one worker and no other: the datagrams of a flow must all come to the worker
/// that has the flow.
fn spread(handed: Vec<OwnedFd>, (place, workers): (usize, usize)) -> io::Result<Opened> {
    let address = UdpSocket::from(handed[0].try_clone()?).local_addr()?;
    let mut sockets: Vec<_> = (0..workers).map(|_| None).collect();
    let receive = handed.len();
    for (number, socket) in handed.into_iter().enumerate() {
        prepare_udp(&socket, &address)?;
        sockets[(place + number) % workers] = Some(WorkerSocket { socket, shared: false });
    }
    if receive < workers {
        let advice = "hand over as many sockets as there are workers, with ReusePort=yes";
        tracing::warn!(%address, receive, workers, advice, "not all workers receive datagrams");
    }
    Ok(Opened { address, sockets })
}

/// Binds a listener once per worker.
fn bind_all(listener: &ListenerPlan, workers: usize) -> Result<Opened, RingError> {
    let mut address = listener.address;
    refuse_if_taken(address, listener.protocol)?;
    let mut sockets = Vec::with_capacity(workers);
    for _ in 0..workers {
        let socket;
        (address, socket) = bind(address, listener.protocol)?;
        sockets.push(Some(WorkerSocket { socket, shared: false }));
    }
    Ok(Opened { address, sockets })
}

/// Binds one socket, and tells the address that it really has.
fn bind(address: SocketAddr, protocol: Protocol) -> Result<(SocketAddr, OwnedFd), RingError> {
    let (bound, socket) = match protocol {
        Protocol::Tcp => {
            let socket = TcpListener::from(bind_tcp(address, BACKLOG)?);
            (socket.local_addr(), OwnedFd::from(socket))
        }
        Protocol::Udp => {
            let socket = UdpSocket::from(bind_udp(address)?);
            (socket.local_addr(), OwnedFd::from(socket))
        }
    };
    Ok((bound.map_err(|source| RingError::Bind { address, source })?, socket))
}

/// The workers' sockets share a port, and would share it with those of another balancer too: each
/// would get half of the clients, and nobody would be told. A socket that does not share finds out.
fn refuse_if_taken(address: SocketAddr, protocol: Protocol) -> Result<(), RingError> {
    if address.port() == 0 {
        return Ok(());
    }
    let bound = match protocol {
        Protocol::Tcp => TcpListener::bind(address).map(drop),
        Protocol::Udp => UdpSocket::bind(address).map(drop),
    };
    bound.map_err(|source| RingError::Bind { address, source })
}

/// Where the admin interface is entered, as far as that is open.
#[derive(Debug)]
pub struct Entrance {
    /// The Unix socket.
    pub unix: Option<(UnixListener, AdminSocket)>,
    /// The address, if there is one.
    pub http: Option<TokioTcpListener>,
}

/// The Unix socket that the command line talks to; its file goes when this does, unless somebody else
/// has made it.
#[derive(Debug)]
pub struct AdminSocket {
    file: Option<AdminFile>,
}

/// The file of an [`AdminSocket`], as two processes share it for a moment.
#[derive(Debug, Clone)]
pub struct AdminFile {
    path: PathBuf,
    /// Whether it goes with this process.
    is_ours: Arc<AtomicBool>,
}

impl AdminFile {
    fn new(path: &Path, is_ours: bool) -> Self {
        Self { path: path.to_owned(), is_ours: Arc::new(AtomicBool::new(is_ours)) }
    }

    /// Another process has it from here on.
    pub fn pass_on(&self) {
        self.is_ours.store(false, Release);
    }
}

impl AdminSocket {
    /// Takes the socket that was handed over, or binds one.
    ///
    /// # Errors
    /// One line that says what to do.
    pub fn open(plan: &Plan, handed: Option<OwnedFd>) -> Result<(UnixListener, Self), String> {
        let Some(handed) = handed else { return Self::bind(plan) };
        Ok((listener_of(handed)?, Self { file: None }))
    }

    /// Takes over the socket from a process that has bound it as the plan says, with its file if that was
    /// its own. The file stays where this goes before it has been [claimed](Self::claim_file): then the
    /// other process goes on.
    ///
    /// # Errors
    /// One line that says what to do.
    pub fn take_over(
        plan: &Plan,
        handed: OwnedFd,
        owns_file: bool,
    ) -> Result<(UnixListener, Self), String> {
        let listener = listener_of(handed)?;
        if owns_file {
            restrict(plan)?;
        }
        let file = owns_file.then(|| AdminFile::new(&plan.admin_socket, false));
        Ok((listener, Self { file }))
    }

    /// Its file, unless somebody else has made it.
    pub fn file(&self) -> Option<AdminFile> {
        self.file.clone()
    }

    /// The process before has let go of the file.
    pub fn claim_file(&self) {
        self.file.iter().for_each(|file| file.is_ours.store(true, Release));
    }

    /// Binds the socket, for those whom the plan says. A file left behind by a balancer that is gone
    /// is replaced, one that somebody answers at is not.
    ///
    /// # Errors
    /// One line that says what to do.
    fn bind(plan: &Plan) -> Result<(UnixListener, Self), String> {
        let path = &*plan.admin_socket;
        let shown = path.display();
        remove_stale(path)?;
        let owner = plan.run_as.as_ref().map(|it| it.user);
        if let Some(folder) = path.parent()
            && !folder.exists()
        {
            fs::create_dir_all(folder).and_then(|()| chown(folder, owner, None)).map_err(
                |error| format!("cannot make {}: {error}; {ADMIN_ADVICE}", folder.display()),
            )?;
        }
        let listener = UnixListener::bind(path)
            .map_err(|error| format!("cannot listen on {shown}: {error}; {ADMIN_ADVICE}"))?;
        let socket = Self { file: Some(AdminFile::new(path, true)) };
        restrict(plan)?;
        Ok((listener, socket))
    }
}

/// Makes the admin socket's file theirs whom the plan says.
fn restrict(plan: &Plan) -> Result<(), String> {
    let path = &*plan.admin_socket;
    let owner = plan.run_as.as_ref().map(|it| it.user);
    let group = plan.admin.socket_group.or(plan.run_as.as_ref().map(|it| it.group));
    let mode = fs::Permissions::from_mode(plan.admin.socket_mode);
    chown(path, owner, group).and_then(|()| fs::set_permissions(path, mode)).map_err(|error| {
        let shown = path.display();
        format!("cannot restrict {shown} to its owner: {error}; {ADMIN_ADVICE}")
    })
}

fn listener_of(handed: OwnedFd) -> Result<UnixListener, String> {
    let listener = std::os::unix::net::UnixListener::from(handed);
    let listener = listener.set_nonblocking(true).and_then(|()| UnixListener::from_std(listener));
    listener.map_err(|error| format!("cannot take the admin socket: {error}"))
}

impl Drop for AdminSocket {
    fn drop(&mut self) {
        let file = self.file.as_ref().filter(|file| file.is_ours.load(Acquire));
        let _ = file.map(|file| fs::remove_file(&file.path));
    }
}

fn remove_stale(path: &Path) -> Result<(), String> {
    let shown = path.display();
    let Ok(found) = fs::symlink_metadata(path) else { return Ok(()) };
    if !found.file_type().is_socket() {
        return Err(format!("{shown} exists and is no socket; choose another admin.socket"));
    }
    match UnixStream::connect(path) {
        Ok(_) => Err(format!(
            "another balancer answers at {shown}; stop it, or choose another admin.socket"
        )),
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
            fs::remove_file(path).map_err(|error| format!("cannot remove stale {shown}: {error}"))
        }
        Err(error) => Err(format!("cannot tell whether {shown} is in use: {error}")),
    }
}
