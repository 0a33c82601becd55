//! The sockets of the admin interface, through which people are let in until another process does.
//!
//! Closing them is not the end: whoever is in already gets his answer, above all he who has asked for the
//! other process.

use std::convert::Infallible;
use std::future::Future;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use axum::serve::Listener;
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::{mpsc, watch};

use crate::sockets::AdminFile;

/// Every way into the admin interface.
pub struct Doors {
    copies: Mutex<Option<Copies>>,
    /// Whether they are to be closed.
    closing: watch::Sender<bool>,
    open: Mutex<Open>,
    guests: Mutex<Guests>,
}

/// Doors that are open. Nothing is ever sent: the channel ends when nobody has its beginning any more.
struct Open {
    handle: Option<Sender<Infallible>>,
    shut: Receiver<Infallible>,
}

/// Whether somebody may be in, in the same way.
struct Guests {
    pass: Option<mpsc::Sender<Infallible>>,
    gone: Option<mpsc::Receiver<Infallible>>,
}

/// The sockets, for whoever comes next.
struct Copies {
    unix: OwnedFd,
    http: Option<OwnedFd>,
    file: Option<AdminFile>,
}

impl Doors {
    /// Those with these sockets, and the Unix socket's file if this process has made it.
    ///
    /// # Errors
    /// There are no descriptors left.
    pub fn new(
        unix: &UnixListener,
        http: Option<&TcpListener>,
        file: Option<AdminFile>,
    ) -> io::Result<Self> {
        let unix = unix.as_fd().try_clone_to_owned()?;
        let http = http.map(|http| http.as_fd().try_clone_to_owned()).transpose()?;
        let (handle, shut) = channel();
        let (pass, gone) = mpsc::channel(1);
        Ok(Self {
            copies: Mutex::new(Some(Copies { unix, http, file })),
            closing: watch::Sender::new(false),
            open: Mutex::new(Open { handle: Some(handle), shut }),
            guests: Mutex::new(Guests { pass: Some(pass), gone: Some(gone) }),
        })
    }

    /// Whether this process has made the Unix socket's file.
    pub fn owns_file(&self) -> bool {
        lock(&self.copies).as_ref().is_some_and(|copies| copies.file.is_some())
    }

    /// The Unix socket's file is another process' from here on.
    pub fn pass_file_on(&self) {
        let copies = lock(&self.copies);
        copies.iter().filter_map(|copies| copies.file.as_ref()).for_each(AdminFile::pass_on);
    }

    /// The sockets once more: the Unix socket and, if there is one, that for HTTP.
    ///
    /// # Errors
    /// They are closed, or there are no descriptors left.
    pub fn copies(&self) -> io::Result<(OwnedFd, Option<OwnedFd>)> {
        let copies = lock(&self.copies);
        let copies = copies.as_ref().ok_or(io::ErrorKind::NotConnected)?;
        let http = copies.http.as_ref().map(OwnedFd::try_clone).transpose()?;
        Ok((copies.unix.try_clone()?, http))
    }

    /// Opens one: the listener to be served at, when to stop, and what is to be kept as long as there may
    /// be guests.
    pub(super) fn open<L: Listener>(
        &self,
        listener: L,
    ) -> (Door<L>, impl Future<Output = ()> + Send + use<L>, Option<mpsc::Sender<Infallible>>) {
        let handle = lock(&self.open).handle.clone();
        let guests = lock(&self.guests).pass.clone();
        let mut closing = self.closing.subscribe();
        let closed = async move {
            let _ = closing.wait_for(|is_closing| *is_closing).await;
        };
        (Door { listener, _handle: handle }, closed, guests)
    }

    /// Lets nobody in from here on. Returns when that is so, or after this time. Not for the control
    /// thread, which closes them.
    pub fn close(&self, patience: Duration) {
        lock(&self.copies).take();
        lock(&self.guests).pass.take();
        self.closing.send_replace(true);
        let mut open = lock(&self.open);
        open.handle.take();
        let _ = open.shut.recv_timeout(patience);
    }

    /// Waits, after they were closed, until nobody is in any more.
    pub async fn emptied(&self) {
        let gone = lock(&self.guests).gone.take();
        if let Some(mut gone) = gone {
            gone.recv().await;
        }
    }
}

/// A listener that is one of the [`Doors`] until it is dropped.
pub(super) struct Door<L> {
    listener: L,
    _handle: Option<Sender<Infallible>>,
}

impl<L: Listener> Listener for Door<L> {
    type Io = L::Io;
    type Addr = L::Addr;

    async fn accept(&mut self) -> (L::Io, L::Addr) {
        self.listener.accept().await
    }

    fn local_addr(&self) -> io::Result<L::Addr> {
        self.listener.local_addr()
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
