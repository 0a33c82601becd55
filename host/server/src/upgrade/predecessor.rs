//! The old process, as the new one sees it.
//!
//! ```text
//!   greeting, estate ──▶ prepared ──▶ endpoints, doors, parts, whole ──▶ taken over ──▶ farewell
//!        from it           to it              from it                     to it        from it
//! ```
//!
//! Where it is gone or silent before the new process serves, the new one ends: the old one goes on, or
//! nobody has asked for anything.

use std::env;
use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use super::Farewell;
use super::estate::{Estate, Holding, Taken};
use super::launcher::VARIABLE;
use super::wire::{Kind, VERSION, Wire};
use crate::plan::{ListenerPlan, Plan, protocol_name};
use crate::problem::Problem;
use crate::sockets::Origin;

/// How long the old process may take to say what it has.
const ESTATE_PATIENCE: Duration = Duration::from_secs(60);
/// How long it may take to hand over, or to say farewell.
const HANDING_PATIENCE: Duration = Duration::from_secs(60);

/// The process that is to be taken over from.
#[derive(Debug)]
pub struct Predecessor {
    wire: Wire,
    estate: Estate,
}

impl Predecessor {
    /// Who has started this process to be taken over from, if somebody has.
    ///
    /// # Errors
    /// One line that says why that is impossible.
    pub fn from_environment() -> Result<Option<Self>, String> {
        if env::var_os(VARIABLE).is_none() {
            return Ok(None);
        }
        let stream = io::stdin().as_fd().try_clone_to_owned().map(UnixStream::from);
        let wire = stream.and_then(|stream| Wire::new(stream, ESTATE_PATIENCE));
        let wire = wire.map_err(|error| misused(&error))?;
        Self::meet(wire).map(Some)
    }

    fn meet(wire: Wire) -> Result<Self, String> {
        let greeting = wire.await_kind(Kind::Greeting).map_err(|unheard| misused(&unheard))?;
        if greeting.payload != VERSION.to_le_bytes() {
            let why = format!(
                "the new program (version {}) does not understand how the old one hands over; restart \
                 instead of upgrading",
                crate::VERSION
            );
            let _ = wire.send(Kind::Refused, why.as_bytes(), &[]);
            return Err(why);
        }
        let estate = wire.await_kind(Kind::Estate).map_err(|unheard| misused(&unheard))?;
        let estate = estate.read().map_err(|error| misused(&error))?;
        Ok(Self { wire, estate })
    }

    /// What it has.
    pub fn estate(&self) -> &Estate {
        &self.estate
    }

    /// Says that nothing comes of it, and why.
    pub fn refuse(&self, lines: &[String]) {
        // Whoever does not hear it sees this process end.
        let _ = self.wire.send(Kind::Refused, lines.join("\n").as_bytes(), &[]);
    }

    /// Says what is taken of it.
    pub(super) fn prepared(&mut self, taken: &Taken) -> io::Result<()> {
        self.wire.be_patient_for(HANDING_PATIENCE);
        self.wire.tell(Kind::Prepared, taken)
    }

    /// The way to it.
    pub(super) fn wire(&mut self) -> &mut Wire {
        &mut self.wire
    }

    /// Waits until the service manager knows of this process, or the old one is gone. Tells whether this
    /// one is to end too.
    pub fn await_farewell(mut self) -> bool {
        self.wire.be_patient_for(HANDING_PATIENCE);
        let farewell = self.wire.await_kind(Kind::Farewell);
        match farewell.and_then(|frame| Ok(frame.read::<Farewell>()?)) {
            Ok(farewell) => farewell.ends,
            Err(unheard) => {
                tracing::warn!(%unheard, "the process before has ended without a word");
                false
            }
        }
    }
}

fn misused(why: &dyn std::fmt::Display) -> String {
    format!("{VARIABLE} is set and nobody is there to take over from ({why}); unset it")
}

/// What of the estate this process has a use for, by its own numbers.
#[derive(Debug)]
pub struct Inheritance {
    /// By listener: who it was before.
    pub listeners: Vec<Option<Heirloom>>,
    /// Whether the admin socket is taken over.
    pub admin_socket: bool,
    /// Whether the socket for HTTP is.
    pub admin_http: bool,
}

/// A listener that is taken over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Heirloom {
    /// Its number in the old process.
    pub id: u16,
    /// The address that it really has.
    pub address: SocketAddr,
}

impl Inheritance {
    /// Sees what a plan has a use for.
    ///
    /// # Errors
    /// The plan is one that cannot take over.
    pub fn new(estate: Option<&Estate>, plan: &Plan) -> Result<Self, Vec<Problem>> {
        let Some(estate) = estate else { return Ok(Self::nothing(plan)) };
        let before = estate.workers;
        if before != plan.workers {
            let message = format!(
                "would be {} and the running process has {before}, whose sockets and flows need as many \
                 again; write workers = {before}, or restart instead of upgrading",
                plan.workers
            );
            return Err(vec![Problem::new("workers", message)]);
        }
        let mut left: Vec<_> = estate.listeners.iter().collect();
        let mut take = |listener: &ListenerPlan| {
            let place = left.iter().position(|holding| is_same(holding, listener))?;
            let Holding { id, address, .. } = *left.swap_remove(place);
            Some(Heirloom { id, address })
        };
        Ok(Self {
            listeners: plan.listeners.iter().map(&mut take).collect(),
            admin_socket: estate.admin_socket == plan.admin_socket,
            admin_http: plan.admin_http.is_some() && estate.admin_http == plan.admin_http,
        })
    }

    fn nothing(plan: &Plan) -> Self {
        let listeners = plan.listeners.iter().map(|_| None).collect();
        Self { listeners, admin_socket: false, admin_http: false }
    }

    /// Where each listener's sockets come from, if these were handed over at the start.
    pub fn origins(&self, handed: Vec<Vec<OwnedFd>>) -> Vec<Origin> {
        let origin = |(heirloom, handed): (&Option<Heirloom>, Vec<OwnedFd>)| match heirloom {
            Some(Heirloom { address, .. }) => Origin::Awaited(*address),
            None if handed.is_empty() => Origin::New,
            None => Origin::Handed(handed),
        };
        self.listeners.iter().zip(handed).map(origin).collect()
    }

    /// What is taken, as the old process knows it.
    pub(super) fn taken(&self) -> Taken {
        Taken {
            listeners: self.listeners.iter().flatten().map(|heirloom| heirloom.id).collect(),
            admin_socket: self.admin_socket,
            admin_http: self.admin_http,
        }
    }
}

/// Whether a listener is the one that there was, as in a reload: by protocol and address, and by name
/// where the kernel has chosen its port.
fn is_same(holding: &Holding, listener: &ListenerPlan) -> bool {
    let is_at =
        holding.protocol == protocol_name(listener.protocol) && holding.written == listener.address;
    is_at && (listener.address.port() != 0 || holding.name == listener.name)
}
