//! Listening sockets: accepting, running out of descriptors, and the orderly end.
//!
//! ```text
//!                 want of descriptors
//!   ┌─▶ accepting ──────────────────▶ resting ──┐
//!   └──────────────── later ────────────────────┘
//!          │ stop                       │ stop
//!          ▼                            ▼
//!      stopping ──── cancelled ───▶ draining ── backlog empty ──▶ ended
//! ```
//!
//! While the [ring holds](crate::hold), one that accepts or rests is *held*, and rests afterwards.
//!
//! A multishot accept ends when this process is out of descriptors. The kernel has not touched the
//! client then: it waits in the backlog, and the listener tries again a little later, so running
//! out of descriptors delays clients: here none is lost. From then on it accepts one by one, and
//! keeps a descriptor for each client's endpoint, until nobody waits any more.
//!
//! A socket may be shared with other rings. It is then accepted from one by one, so that each ring gets
//! its turn, and never blocks: that is a property of the socket, so one ring that made it block would
//! stop another in the middle of a turn.
//!
//! Closing a listening socket resets whoever is in its backlog, though these clients believe they
//! are connected. So a listener that stops first takes them all out, one accept at a time.

use std::io;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsRawFd, IntoRawFd, OwnedFd, RawFd};
use std::time::Duration;

use pointsman_core::Instant;
use pointsman_core::boundary::{Accepted, Completion, ListenerId};

use crate::hold::GivenListener;
use crate::ring::Event;
use crate::sys::{self, Clock};
use crate::token::Token;
use crate::{Ring, RingError};

/// More than a backlog usually holds.
const LAST_CLIENTS_MAX: u32 = 8_192;
const REST_MIN: Duration = Duration::from_millis(10);
const REST_MAX: Duration = Duration::from_millis(100);

/// All listeners of one ring.
#[derive(Debug)]
pub(crate) struct Listeners {
    slots: Vec<Option<Listener>>,
    /// Whether any listener is doing anything but accepting: the only thing a turn looks at.
    restless: bool,
}

#[derive(Debug)]
struct Listener {
    socket: TcpListener,
    /// Whether other rings accept from the socket too.
    shared: bool,
    state: State,
    /// Whether it accepts for the last time.
    ending: bool,
    /// Clients it takes out of its backlog when it ends, at most: new ones keep coming meanwhile.
    last_clients: u32,
    /// How long it rests next; the shortest rest, if it is not short of descriptors.
    rest: Duration,
    /// Whether it takes clients one by one, each only if there is a descriptor for its endpoint too:
    /// the kernel, left alone, would accept with the last descriptors whom nobody can then serve.
    sparing: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// The kernel has its accept.
    Armed,
    /// It tries again at this time.
    Resting { until: Instant },
    /// It takes out of its backlog what is there.
    Draining,
    /// The ring holds.
    Held,
}

impl Listeners {
    pub(crate) fn new(listeners_max: u16) -> Self {
        let slots = std::iter::repeat_with(|| None).take(usize::from(listeners_max)).collect();
        Self { slots, restless: false }
    }

    /// Takes a listening socket in; its accept must be armed.
    fn add(&mut self, id: ListenerId, socket: OwnedFd, shared: bool) -> io::Result<()> {
        match self.slots.get_mut(id.index()) {
            Some(slot @ None) => {
                let socket = TcpListener::from(socket);
                socket.set_nonblocking(shared)?;
                *slot = Some(Listener {
                    socket,
                    shared,
                    state: State::Armed,
                    ending: false,
                    last_clients: LAST_CLIENTS_MAX,
                    rest: REST_MIN,
                    sparing: false,
                });
                Ok(())
            }
            Some(Some(_)) => Err(io::Error::from_raw_os_error(libc::EEXIST)),
            None => Err(io::Error::from_raw_os_error(libc::ENOSPC)),
        }
    }

    /// Whether a number is taken.
    pub(crate) fn has(&self, id: ListenerId) -> bool {
        self.slots.get(id.index()).is_some_and(Option::is_some)
    }

    /// Whether there is a backlog to take from without the kernel telling.
    pub(crate) fn is_draining(&self) -> bool {
        self.restless && self.iter().any(|listener| listener.state == State::Draining)
    }

    fn iter(&self) -> impl Iterator<Item = &Listener> {
        self.slots.iter().flatten()
    }

    fn get(&mut self, id: ListenerId) -> Option<&mut Listener> {
        self.slots.get_mut(id.index())?.as_mut()
    }

    fn ids(&self) -> impl Iterator<Item = ListenerId> + use<> {
        (0..self.slots.len() as u16).map(ListenerId)
    }

    /// The earliest time at which a resting listener tries again.
    fn next_retry(&self) -> Option<Instant> {
        self.iter().filter_map(Listener::retry).min()
    }

    fn settle(&mut self) {
        let restless = self.iter().any(|listener| listener.state != State::Armed);
        self.restless = restless;
    }
}

impl Listener {
    fn retry(&self) -> Option<Instant> {
        match self.state {
            State::Resting { until } => Some(until),
            State::Armed | State::Draining | State::Held => None,
        }
    }

    /// Rests; true if it was not short of descriptors before.
    fn rest(&mut self, now: Instant) -> bool {
        let first = self.rest == REST_MIN;
        self.state = State::Resting { until: now + self.rest };
        self.rest = (self.rest * 2).min(REST_MAX);
        first
    }

    fn accept_with_a_spare(&self) -> io::Result<(TcpStream, SocketAddr)> {
        let spare = self.socket.try_clone()?;
        spare.set_nonblocking(true)?;
        self.socket.accept()
    }

    /// Lets the kernel wait for clients again: it does so at once only on a socket that blocks.
    fn let_wait(&self) -> io::Result<()> {
        if self.shared { Ok(()) } else { self.socket.set_nonblocking(false) }
    }

    fn descriptor(&self) -> RawFd {
        self.socket.as_raw_fd()
    }
}

impl Ring {
    pub(crate) fn add_listener(
        &mut self,
        id: ListenerId,
        socket: OwnedFd,
        shared: bool,
    ) -> Result<(), RingError> {
        let added = if self.datagrams.listens(id) {
            Err(io::Error::from_raw_os_error(libc::EEXIST))
        } else {
            self.listeners.add(id, socket, shared)
        };
        added.map_err(RingError::os("add a listener"))?;
        self.arm_listener(id);
        Ok(())
    }

    pub(crate) fn on_accept(&mut self, id: ListenerId, event: Event) -> Option<Completion> {
        let stalled = if event.more() { None } else { self.on_accept_end(id, event.result) };
        if !event.more() {
            self.on_request_over();
        }
        if event.result < 0 {
            return stalled;
        }
        if let Some(listener) = self.listeners.get(id) {
            listener.rest = REST_MIN;
        }
        let stream = sys::take_over(event.result);
        let client = stream.peer_addr().ok()?;
        Some(accepted(id, stream, client))
    }

    /// Goes on after a multishot accept has ended.
    fn on_accept_end(&mut self, id: ListenerId, result: i32) -> Option<Completion> {
        let listener = self.listeners.get(id)?;
        if listener.ending {
            listener.state = State::Draining;
            self.listeners.restless = true;
        } else if self.hold.active {
            listener.state = State::Held;
            self.listeners.restless = true;
        } else if result >= 0 || matches!(-result, libc::ECONNABORTED | libc::EINTR) {
            self.arm_listener(id);
        } else {
            return self.rest(id, -result);
        }
        None
    }

    fn rest(&mut self, id: ListenerId, errno: i32) -> Option<Completion> {
        self.listeners.restless = true;
        let listener = self.listeners.get(id)?;
        let first = listener.rest(Clock.now());
        let short = matches!(errno, libc::EMFILE | libc::ENFILE | libc::ENOBUFS | libc::ENOMEM);
        listener.sparing |= short;
        (first && short).then_some(Completion::AcceptStalled { listener: id })
    }

    /// Lets listeners that have rested try again; says when the next turn must come.
    pub(crate) fn retry_listeners(&mut self, deadline: Option<Instant>) -> Option<Instant> {
        if !self.listeners.restless {
            return deadline;
        }
        let now = Clock.now();
        for id in self.listeners.ids() {
            let Some(listener) = self.listeners.get(id) else { continue };
            if listener.retry().is_none_or(|until| now < until) {
                continue;
            }
            if listener.ending {
                listener.state = State::Draining;
            } else if listener.sparing {
                self.accept_sparingly(id, now);
            } else {
                self.arm_listener(id);
            }
        }
        self.listeners.settle();
        self.listeners.next_retry().into_iter().chain(deadline).min()
    }

    fn arm_listener(&mut self, id: ListenerId) {
        let Some(listener) = self.listeners.get(id) else { return };
        listener.state = State::Armed;
        let descriptor = listener.descriptor();
        if listener.shared {
            self.uring.accept_one(Token::Accept(id), descriptor);
        } else {
            self.uring.accept(Token::Accept(id), descriptor);
        }
    }

    /// Takes one client, if there are two descriptors: one is for its endpoint. The next one's turn
    /// comes when that has been used.
    fn accept_sparingly(&mut self, id: ListenerId, now: Instant) {
        let Some(listener) = self.listeners.get(id) else { return };
        let completion = match listener.accept_with_a_spare() {
            Ok((stream, client)) => {
                listener.rest = REST_MIN;
                listener.state = State::Resting { until: now };
                Some(accepted(id, stream, client))
            }
            // Nobody waits any more.
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                listener.sparing = listener.let_wait().is_err();
                self.arm_listener(id);
                None
            }
            Err(error) => match error.raw_os_error() {
                Some(libc::ECONNABORTED | libc::EINTR) | None => {
                    listener.state = State::Resting { until: now };
                    None
                }
                Some(errno) => self.rest(id, errno),
            },
        };
        self.pending.extend(completion);
    }

    pub(crate) fn stop_accepting(&mut self, id: ListenerId) {
        let Some(listener) = self.listeners.get(id) else {
            self.pending.push_back(Completion::AcceptEnded { listener: id });
            return;
        };
        if std::mem::replace(&mut listener.ending, true) {
            return;
        }
        match listener.state {
            State::Armed => self.uring.cancel(Token::Accept(id)),
            State::Resting { .. } | State::Draining | State::Held => {
                listener.state = State::Draining;
            }
        }
    }

    /// Takes back every accept that the kernel has, and tells how many these are. Listeners that end
    /// take out of their backlogs what is there all the same.
    pub(crate) fn hold_listeners(&mut self) -> u32 {
        let mut awaited = 0;
        for id in self.listeners.ids() {
            let Some(listener) = self.listeners.get(id) else { continue };
            match listener.state {
                State::Armed => {
                    awaited += 1;
                    self.uring.cancel(Token::Accept(id));
                }
                State::Resting { .. } if !listener.ending => listener.state = State::Held,
                _ => {}
            }
        }
        awaited
    }

    /// Accepts again on all listeners that wait for that.
    pub(crate) fn resume_listeners(&mut self) {
        for id in self.listeners.ids() {
            let Some(listener) = self.listeners.get(id) else { continue };
            if listener.state == State::Held {
                listener.state = State::Resting { until: Instant::ZERO };
                self.listeners.restless = true;
            }
        }
    }

    /// Takes the socket of a listener that is held, as it came.
    pub(crate) fn take_listener(&mut self, id: ListenerId) -> Option<GivenListener> {
        let is_held = self.listeners.get(id)?.state == State::Held;
        let listener = self.listeners.slots.get_mut(id.index())?.take_if(|_| is_held)?;
        self.listeners.settle();
        let _ = listener.let_wait();
        Some(GivenListener { socket: listener.socket.into(), shared: listener.shared })
    }

    /// Takes one client out of the backlog of a listener that ends.
    pub(crate) fn drain_listeners(&mut self) -> Option<Completion> {
        if !self.listeners.restless {
            return None;
        }
        for id in self.listeners.ids() {
            let completion = self.drain(id);
            if completion.is_some() {
                return completion;
            }
        }
        None
    }

    fn drain(&mut self, id: ListenerId) -> Option<Completion> {
        loop {
            let listener = self.listeners.get(id)?;
            if listener.state != State::Draining {
                return None;
            }
            if listener.last_clients == 0 {
                return Some(self.end(id));
            }
            listener.last_clients -= 1;
            let next =
                listener.socket.set_nonblocking(true).and_then(|()| listener.socket.accept());
            match next {
                Ok((stream, client)) => return Some(accepted(id, stream, client)),
                Err(error) => match error.raw_os_error() {
                    Some(libc::ECONNABORTED | libc::EINTR) => {}
                    Some(errno @ (libc::EMFILE | libc::ENFILE | libc::ENOBUFS | libc::ENOMEM)) => {
                        return self.rest(id, errno);
                    }
                    _ => return Some(self.end(id)),
                },
            }
        }
    }

    fn end(&mut self, id: ListenerId) -> Completion {
        self.listeners.slots[id.index()] = None;
        self.listeners.settle();
        Completion::AcceptEnded { listener: id }
    }
}

fn accepted(listener: ListenerId, stream: TcpStream, client: SocketAddr) -> Completion {
    let client = SocketAddr::new(client.ip().to_canonical(), client.port());
    Completion::Accepted { listener, socket: Accepted::new(stream.into_raw_fd()), client }
}
