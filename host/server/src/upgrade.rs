//! Another program takes the place of this one, and no flow is lost.
//!
//! ```text
//!   old    starts it ──▶ estate ─────────────────▶ workers hand over ─▶ sends it all ─────▶ drains
//!                           │                          ▲                    │           ▲
//!   new                     ▼                          │                    ▼           │
//!          reads, plans, compiles, binds what is new ─▶ prepared    workers take over ──▶ serves
//!                                                                              point of no return
//! ```
//!
//! The new process is started by the path that the old one was started by, with the same arguments, and
//! reads the same file. It takes over the sockets of listeners and of the admin interface, and the flows
//! of datagrams with the ports that they have towards endpoints. What clients send meanwhile waits in the
//! sockets. Connections stay with the old process until they have ended.
//!
//! Whatever fails before the new process serves, the old one has its workers take back what they have
//! handed over, and goes on as if nobody had asked.

mod answer;
mod estate;
pub mod launcher;
mod layout;
mod luggage;
mod predecessor;
mod program;
mod succession;
mod successor;
mod wire;

pub use answer::{Answer, Last, Outcome, Upgrades};
pub use predecessor::{Inheritance, Predecessor};
pub use program::Program;
pub use succession::{Heir, Succession};

use std::process;
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use crate::mailbox::Handover;
use crate::reload::Turn;
use crate::runtime;
use crate::seat::Claim;
use crate::service::Service;
use estate::{Estate, Taken};
use successor::Successor;
use wire::{Kind, Unheard};

/// How long it may take until nobody is let in at the admin interface any more.
const CLOSING_PATIENCE: Duration = Duration::from_secs(1);

/// Why this process goes on as it was.
#[derive(Debug, thiserror::Error)]
pub enum Refused {
    /// The new process could not take over: one line for each reason.
    #[error("{}", .0.join("\n"))]
    Failed(Vec<String>),
    /// Somebody else has asked for the same, or for a reload.
    #[error("a reload or another upgrade is under way; ask again")]
    Busy,
    /// This cluster is given another policy.
    #[error("cluster \"{0}\": a swap is under way; ask again")]
    SwapUnderWay(String),
    /// A container ends with its first process, whoever else there is.
    #[error("the balancer is process 1, with which everything here ends; start another container")]
    FirstProcess,
    /// The process is about to end.
    #[error("the balancer is draining; start another one")]
    Draining,
    /// The system has no thread for it.
    #[error("cannot start what it takes: {0}; try again")]
    System(#[from] std::io::Error),
}

/// What the new process says when it serves.
#[derive(Debug, Serialize, Deserialize)]
struct TakenOver {
    /// Its version.
    version: String,
    /// Flows of datagrams that go on there.
    flows: u64,
    /// Flows of datagrams that its configuration, or its room, has no place for.
    flows_lost: u64,
}

/// The last that the old process says.
#[derive(Debug, Serialize, Deserialize)]
struct Farewell {
    /// Whether the new one is to end too.
    ends: bool,
}

/// Upgrades on a thread of its own, because that waits for the new process.
///
/// # Errors
/// This process goes on as it was.
pub async fn aside(service: Arc<Service>) -> Result<Answer, Refused> {
    runtime::aside("upgrade", move || upgrade(&service)).await?
}

/// Upgrades because a signal says so: what comes of it is logged.
pub fn on_signal(service: &Arc<Service>) {
    let service = Arc::clone(service);
    runtime::spawn(async {
        // What it says otherwise is logged where it is found out.
        if let Err(refused @ (Refused::Busy | Refused::System(_))) = aside(service).await {
            tracing::error!(error = %refused, "no other process takes over");
        }
    });
}

/// Starts what lies where this program lay and has it take over.
///
/// # Errors
/// This process goes on as it was.
pub fn upgrade(service: &Arc<Service>) -> Result<Answer, Refused> {
    let Some(_turn) = Turn::take(service) else { return Err(Refused::Busy) };
    let outcome = if service.is_draining() { Err(Refused::Draining) } else { walk(service) };
    match &outcome {
        Ok(answer) => answer.log(),
        Err(refused) => {
            service.upgrades().note_refusal(refused);
            refused.to_string().lines().for_each(|line| {
                tracing::error!("no other process has taken over: {line}");
            });
        }
    }
    outcome
}

fn walk(service: &Arc<Service>) -> Result<Answer, Refused> {
    let begun = Instant::now();
    if process::id() == 1 {
        return Err(Refused::FirstProcess);
    }
    let _claims = claim_seats(service)?;
    let failed = |why: String| Refused::Failed(why.lines().map(str::to_owned).collect());
    let program = service.program();
    let patience = service.setup().plan.upgrade_timeout;
    let mut successor = Successor::start(program, patience).map_err(failed)?;
    let pid = successor.id();
    tracing::info!(pid, program = %program.path.display(), "another process prepares to take over");
    let taken = match prepare(&mut successor, service) {
        Ok(taken) => taken,
        Err(unheard) => return Err(failed(successor.give_up(unheard))),
    };
    let _held = service.hold_drain();
    if service.is_draining() {
        return Err(Refused::Draining);
    }
    let handed = match service.fleet().hand_over() {
        Ok(handed) => handed,
        Err(silent) => return Err(failed(silent.to_string())),
    };
    match hand_over(&mut successor, service, (&handed, &taken)) {
        Ok(there) => {
            finish(service, successor, (handed, taken));
            Ok(Answer::new(pid, there, begun.elapsed()))
        }
        Err(unheard) => {
            // Two processes never serve the same flows: the other one is gone when this is told.
            let why = successor.give_up(unheard);
            take_back(service, handed);
            Err(failed(why))
        }
    }
}

/// Whoever is swapped in now would be gone with this process.
fn claim_seats(service: &Service) -> Result<Vec<Claim>, Refused> {
    let setup = service.setup();
    let seats = setup.seated().map(|(_, seat)| seat);
    seats.map(|seat| seat.claim().ok_or_else(|| Refused::SwapUnderWay(seat.name.clone()))).collect()
}

/// Has the new process do everything that may take long or fail.
fn prepare(successor: &mut Successor, service: &Service) -> Result<Taken, Unheard> {
    let wire = successor.wire();
    wire.tell(Kind::Estate, &Estate::of(service))?;
    Ok(wire.await_kind(Kind::Prepared)?.read()?)
}

/// Sends what workers have handed over, and waits until the new process serves.
fn hand_over(
    successor: &mut Successor,
    service: &Service,
    (handed, taken): (&[Handover], &Taken),
) -> Result<TakenOver, Unheard> {
    let wire = successor.begin_taking();
    wire.tell(Kind::Endpoints, &service.look(|world| world.bequeath()))?;
    let (unix, http) = service.doors().copies()?;
    luggage::send_doors(wire, &unix, http.as_ref())?;
    for (worker, handed) in (0..).zip(handed) {
        luggage::send(wire, worker, handed, &taken.listeners)?;
    }
    if service.is_draining() {
        return Err(Unheard::Refused(Refused::Draining.to_string()));
    }
    wire.send(Kind::Whole, &[], &[])?;
    Ok(wire.await_kind(Kind::TakenOver)?.read()?)
}

/// The other process serves. What it has not taken stays here, and is drained with the rest.
fn finish(service: &Service, mut successor: Successor, (handed, taken): (Vec<Handover>, Taken)) {
    if taken.admin_socket {
        service.doors().pass_file_on();
    }
    // A service manager cares for the new process only if that is its child when it hears of it.
    successor.disown();
    service.notifier().give_way_to(successor.id());
    service.doors().close(CLOSING_PATIENCE);
    // Whoever told this process to end did not know of the other one, and means that too.
    let farewell = Farewell { ends: service.is_draining() };
    // Whoever does not hear it has ended, and then there is nobody to tell.
    let _ = successor.wire().tell(Kind::Farewell, &farewell);
    successor.let_go();
    let left = handed.into_iter().map(|handed| luggage::without(handed, &taken.listeners));
    take_back(service, left.collect());
    service.leave();
}

/// Workers go on with what they have handed over.
fn take_back(service: &Service, handed: Vec<Handover>) {
    if let Err(error) = service.fleet().take_over(handed) {
        tracing::error!(%error, "what was handed over is not all taken back");
    }
}
