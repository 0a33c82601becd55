//! The sockets that others reach us by: listeners, and the admin socket.
//!
//! All of them are bound before any worker starts, so that a balancer either serves everything it
//! was told to or says why not and leaves nothing behind.

use std::fs;
use std::io;
use std::net::{SocketAddr, TcpListener, UdpSocket};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileTypeExt, PermissionsExt, chown};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use pointsman_core::Protocol;
use pointsman_ring::{RingError, bind_tcp, bind_udp};
use tokio::net::UnixListener;

use crate::plan::{ListenerPlan, Plan};

/// Connections that wait to be accepted, per worker and listener; the kernel lowers it to
/// `net.core.somaxconn`.
const BACKLOG: i32 = 4096;

/// The listeners' sockets.
#[derive(Debug)]
pub struct Listening {
    /// By listener: the address it really has.
    pub addresses: Vec<SocketAddr>,
    /// By worker, then by listener.
    pub sockets: Vec<Vec<OwnedFd>>,
}

/// Binds every listener once per worker.
///
/// # Errors
/// One line that names the listener and says what to do.
pub fn listen(plan: &Plan) -> Result<Listening, String> {
    let mut addresses = Vec::with_capacity(plan.listeners.len());
    let mut sockets: Vec<_> = (0..plan.workers).map(|_| Vec::new()).collect();
    for listener in &plan.listeners {
        let (address, own) = listen_at(listener, plan.workers)?;
        addresses.push(address);
        for (sockets, socket) in sockets.iter_mut().zip(own) {
            sockets.push(socket);
        }
    }
    Ok(Listening { addresses, sockets })
}

/// Binds one listener once per worker: the address that it really has, and a socket for each.
///
/// # Errors
/// One line that names the listener and says what to do.
pub fn listen_at(
    listener: &ListenerPlan,
    workers: usize,
) -> Result<(SocketAddr, Vec<OwnedFd>), String> {
    let mut address = listener.address;
    let said = |error: RingError| format!("listener \"{}\": {error}", listener.name);
    refuse_if_taken(address, listener.protocol).map_err(said)?;
    let mut sockets = Vec::with_capacity(workers);
    for _ in 0..workers {
        let socket;
        (address, socket) = bind(address, listener.protocol).map_err(said)?;
        sockets.push(socket);
    }
    Ok((address, sockets))
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

/// The Unix socket that the command line talks to; its file goes when this does.
#[derive(Debug)]
pub struct AdminSocket {
    path: PathBuf,
}

impl AdminSocket {
    /// Binds the socket, for those whom the plan says. A file left behind by a balancer that is gone
    /// is replaced, one that somebody answers at is not.
    ///
    /// # Errors
    /// One line that says what to do.
    pub fn bind(plan: &Plan) -> Result<(UnixListener, Self), String> {
        let path = &*plan.admin_socket;
        let shown = path.display();
        remove_stale(path)?;
        let advice = "choose another admin.socket in the configuration";
        let owner = plan.run_as.as_ref().map(|it| it.user);
        if let Some(folder) = path.parent()
            && !folder.exists()
        {
            fs::create_dir_all(folder)
                .and_then(|()| chown(folder, owner, None))
                .map_err(|error| format!("cannot make {}: {error}; {advice}", folder.display()))?;
        }
        let listener = UnixListener::bind(path)
            .map_err(|error| format!("cannot listen on {shown}: {error}; {advice}"))?;
        let socket = Self { path: path.to_owned() };
        let group = plan.admin.socket_group.or(plan.run_as.as_ref().map(|it| it.group));
        chown(path, owner, group)
            .and_then(|()| {
                fs::set_permissions(path, fs::Permissions::from_mode(plan.admin.socket_mode))
            })
            .map_err(|error| format!("cannot restrict {shown} to its owner: {error}; {advice}"))?;
        Ok((listener, socket))
    }
}

impl Drop for AdminSocket {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.path);
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
