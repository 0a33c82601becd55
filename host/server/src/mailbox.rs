//! How the control thread speaks to a worker.
//!
//! A worker looks into its mailbox once per turn, between two batches of completions, so whatever
//! is posted takes effect at a point where no decision is half made. What a command replaces goes
//! back to the control thread: dropping a world or a plugin takes time that flows would wait for.

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, SyncSender, TrySendError, channel};
use std::time::Duration;

use pointsman_core::boundary::ListenerId;
use pointsman_core::handover::{HandedDecision, HandedFlow, HandedPort, TakenOver};
use pointsman_core::listing::EntryId;
use pointsman_core::policy::{OnSwap, Policy};
use pointsman_core::{ClusterId, FlowFacts, NewPolicy, Snapshot, Stats, Trial};
use pointsman_plugin::Engine;
use pointsman_ring::{RingStats, Waker};
use tokio::sync::{mpsc::UnboundedSender, oneshot};

use crate::flows::{Answer, Question};
use crate::sockets::WorkerSocket;
use crate::turns::Turns;

/// What a worker can be told.
pub enum Command {
    /// Act on this world from the next turn on.
    Apply(Arc<Snapshot>),
    /// The same after a reload.
    Renew(Box<Renewal>),
    /// Wake the others by these when it is their turn; by number.
    Meet(Arc<[Waker]>),
    /// Something about a cluster's policy.
    Policy(ClusterId, PolicyCommand),
    /// Tell what you have counted.
    Report(oneshot::Sender<Report>),
    /// Look for flows and kept decisions.
    Survey {
        /// Where, and for which.
        question: Question,
        /// Where to answer.
        reply: oneshot::Sender<Answer>,
    },
    /// End a flow, or give up a kept decision; tell whether it was there.
    Forget {
        /// Which.
        id: EntryId,
        /// Where to answer.
        reply: oneshot::Sender<bool>,
    },
    /// Give away the sockets, the flows of datagrams and the kept decisions, and go on without them.
    /// If nobody hears the answer, all of it is taken back at once.
    HandOver(oneshot::Sender<Handover>),
    /// Go on with what another process, or this worker before, has given away.
    TakeOver {
        /// What that is.
        handover: Box<Handover>,
        /// Where to tell what has become of it.
        reply: oneshot::Sender<Result<TakenOver, Unserved>>,
    },
    /// End at once, whatever is under way.
    Stop,
}

/// What a worker gives away so that another process can go on with it.
#[derive(Debug, Default)]
pub struct Handover {
    /// The sockets of listeners.
    pub sockets: Vec<(ListenerId, WorkerSocket)>,
    /// Upstream ports, with their sockets.
    pub ports: Vec<(HandedPort, OwnedFd)>,
    /// Flows of datagrams, in the order in which they are to be taken over.
    pub flows: Vec<HandedFlow>,
    /// Kept decisions.
    pub kept: Vec<HandedDecision>,
}

/// A worker cannot serve a listener that it was to take over.
#[derive(Debug, thiserror::Error)]
#[error("listener \"{listener}\" cannot be served: {told}")]
pub struct Unserved {
    /// Its name.
    pub listener: String,
    /// Why.
    pub told: String,
}

/// What a worker has counted.
#[derive(Debug, Clone)]
pub struct Report {
    /// Of flows.
    pub stats: Stats,
    /// Of its ring and buffers.
    pub ring: RingStats,
    /// Of its loop.
    pub turns: Turns,
}

/// A world after a reload, with what each worker is given of it for itself. All of it takes effect
/// together, between two turns.
pub struct Renewal {
    /// The world.
    pub snapshot: Arc<Snapshot>,
    /// Policies that begin with it.
    pub policies: Vec<NewPolicy>,
    /// The sockets of listeners that have come.
    pub sockets: Vec<(ListenerId, WorkerSocket)>,
    /// The plugins' engine, if there are plugins.
    pub engine: Option<Engine>,
}

/// What a worker can be told about a cluster's policy. Whoever asks waits on a thread of his own for
/// each answer, which is sent without waiting.
pub enum PolicyCommand {
    /// Exchange it for one that is ready to decide.
    Swap {
        /// The new one.
        policy: Box<dyn Policy>,
        /// What becomes of kept decisions.
        on_swap: OnSwap,
        /// Where the old one goes.
        reply: SyncSender<Swapped>,
    },
    /// Put another one on trial beside it, or end a trial.
    SetTrial {
        /// The one on trial.
        trial: Option<Trial>,
        /// Where the one before goes.
        reply: SyncSender<Option<Trial>>,
    },
    /// Tell what it would hand over to its successor.
    TakeState(SyncSender<Option<Vec<u8>>>),
    /// Tell which flows it was asked about lately.
    RecentFlows(SyncSender<Vec<FlowFacts>>),
}

/// That a worker has exchanged a policy.
pub struct Swapped {
    /// The one before.
    pub old: Box<dyn Policy>,
    /// How long the worker did nothing else.
    pub pause: Duration,
}

/// What a worker no longer needs.
pub enum Retired {
    /// A world.
    Snapshot(Arc<Snapshot>),
    /// A policy.
    Policy(Box<dyn Policy>),
    /// A policy that was on trial.
    Trial(Option<Trial>),
}

/// The worker's end.
pub struct Mailbox {
    commands: Receiver<Command>,
    retired: UnboundedSender<Retired>,
}

impl Mailbox {
    /// Makes a mailbox and the sender of commands to it; retired things go to `retired`.
    pub fn new(retired: UnboundedSender<Retired>) -> (Sender<Command>, Self) {
        let (sender, commands) = channel();
        (sender, Self { commands, retired })
    }

    /// Takes the next command, if there is one.
    pub fn take(&self) -> Option<Command> {
        self.commands.try_recv().ok()
    }

    /// Answers with something to be dropped by whoever asked, or else elsewhere.
    pub fn answer<T>(&self, reply: &SyncSender<T>, answer: T, retired: impl FnOnce(T) -> Retired) {
        if let Err(TrySendError::Full(unheard) | TrySendError::Disconnected(unheard)) =
            reply.try_send(answer)
        {
            self.retire(retired(unheard));
        }
    }

    /// Sends something back to be dropped elsewhere.
    pub fn retire(&self, retired: Retired) {
        // Fails only when the control thread has ended, and then nobody waits for this one.
        let _ = self.retired.send(retired);
    }
}

/// The control thread's end.
#[derive(Clone)]
pub struct Address {
    commands: Sender<Command>,
    waker: Waker,
}

impl Address {
    /// Joins the way commands take with the bell that announces them.
    pub fn new(commands: Sender<Command>, waker: Waker) -> Self {
        Self { commands, waker }
    }

    /// The bell alone.
    pub fn waker(&self) -> &Waker {
        &self.waker
    }

    /// Posts a command and wakes the worker. Tells whether the worker is still there.
    pub fn post(&self, command: Command) -> bool {
        let sent = self.commands.send(command).is_ok();
        self.waker.wake();
        sent
    }
}
