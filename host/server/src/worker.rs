//! A worker: one thread, one ring, one balancer, and the loop that joins them.
//!
//! ```text
//!            ops                        completions
//!   ┌───────────────▶ Ring (kernel) ─────────────────┐
//!   │                                                ▼
//!   └──────────────────────────────────────────── Balancer ◀── mailbox, between two turns
//! ```
//!
//! No executor, no futures, no locks. Everything that takes long (compiling, resolving, dropping a
//! world, writing logs) is done by the control thread.

mod handing;

use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::thread;

use pointsman_core::boundary::{Completion, ListenerId, Ops};
use pointsman_core::policy::Policy;
use pointsman_core::{Balancer, BalancerConfig, ClusterId, Instant, Listener, Protocol, Snapshot};
use pointsman_plugin::Engine;
use pointsman_ring::{Clock, Ring, RingConfig, RingError, Waker, prefer_large_pages};
use tokio::sync::{mpsc::UnboundedSender, oneshot};

use crate::access_log::LogSender;
use crate::cores::Core;
use crate::mailbox::{
    Command, Handover, Mailbox, PolicyCommand, Renewal, Report, Retired, Swapped,
};
use crate::sockets::WorkerSocket;
use crate::turns::Turns;

/// Completions per turn: enough to share a system call among many, few enough that a turn stays
/// well below a millisecond and the mailbox is looked at often.
const REAP_MAX: usize = 128;
/// Guests run on a worker's stack, up to 256 KiB of it.
const STACK_BYTES: usize = 4 * 1024 * 1024;

/// Everything a worker is made of that can be made on another thread.
pub struct Parts {
    /// Which one, from 0.
    pub number: usize,
    /// Where it runs, if that could be found out.
    pub core: Option<Core>,
    /// How large its ring is.
    pub ring: RingConfig,
    /// How large its balancer is.
    pub balancer: BalancerConfig,
    /// The world at the start.
    pub snapshot: Arc<Snapshot>,
    /// By cluster.
    pub policies: Vec<Box<dyn Policy>>,
    /// Listening sockets, by listener; none where others listen for it.
    pub sockets: Vec<Option<WorkerSocket>>,
    /// The plugins' engine, if there are plugins.
    pub engine: Option<Engine>,
    /// Where commands come from.
    pub mailbox: Mailbox,
    /// Where ended flows are told, if anywhere.
    pub log: Option<LogSender>,
}

/// How a worker ended.
#[derive(Debug)]
pub struct Ended {
    /// Which one.
    pub number: usize,
    /// What it had counted, or what broke it.
    pub outcome: Result<Report, String>,
}

/// Says that a worker accepts, and how it is woken; or why it cannot start.
pub type Started = oneshot::Sender<Result<Waker, String>>;

/// Starts a worker on a thread of its own. It always says how it ended, even if it panics.
///
/// # Errors
/// The system refuses the thread.
pub fn spawn(parts: Parts, started: Started, ended: UnboundedSender<Ended>) -> io::Result<()> {
    let number = parts.number;
    let body = move || {
        let outcome = catch_unwind(AssertUnwindSafe(|| start_and_run(parts, started)));
        let outcome = outcome.unwrap_or_else(|panic| Err(describe(&*panic)));
        // Fails only when the control thread has ended, and then the process is about to.
        let _ = ended.send(Ended { number, outcome });
    };
    thread::Builder::new()
        .name(format!("worker-{number}"))
        .stack_size(STACK_BYTES)
        .spawn(body)
        .map(drop)
}

fn start_and_run(parts: Parts, started: Started) -> Result<Report, String> {
    let mut worker = match Worker::new(parts) {
        Ok(worker) => worker,
        Err(error) => {
            let _ = started.send(Err(error.clone()));
            return Err(error);
        }
    };
    let _ = started.send(Ok(worker.ring.waker()));
    worker.run().map_err(|error| format!("its ring broke: {error}"))?;
    Ok(worker.report())
}

fn describe(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
    let text = text.or_else(|| panic.downcast_ref::<String>().cloned());
    format!("it panicked: {}", text.unwrap_or_else(|| "without words".to_owned()))
}

struct Worker {
    ring: Ring,
    balancer: Balancer,
    completions: Vec<Completion>,
    ops: Ops,
    clock: Clock,
    mailbox: Mailbox,
    /// All workers, once all of them have started.
    others: Arc<[Waker]>,
    log: Option<LogSender>,
    /// Who waits for what this worker has, until it can be given away.
    heir: Option<oneshot::Sender<Handover>>,
    turns: Turns,
    told_to_stop: bool,
}

impl Worker {
    fn new(parts: Parts) -> Result<Self, String> {
        if let Some(core) = parts.core
            && let Err(error) = core.pin_this_thread()
        {
            tracing::warn!(worker = parts.number, %error, "cannot be pinned to a core");
        }
        if let Some(engine) = &parts.engine {
            engine.prepare_thread();
        }
        let mut ring = Ring::new(&parts.ring).map_err(|error| error.to_string())?;
        let listeners = (0..).map(ListenerId).zip(&parts.snapshot.listeners);
        for ((id, listener), socket) in listeners.zip(parts.sockets) {
            let Some(socket) = socket else { continue };
            listen(&mut ring, (id, listener), socket).map_err(|error| error.to_string())?;
        }
        let balancer = Balancer::new(&parts.balancer, parts.snapshot, parts.policies);
        balancer.tables().for_each(prefer_large_pages);
        if parts.number == 0 {
            let [flows_bytes, kept_bytes] = balancer.tables_bytes();
            tracing::info!(
                datagram_flows_max = parts.balancer.datagram_flows_max,
                flows_bytes,
                kept_max = parts.balancer.flow_table_entries_max,
                kept_bytes,
                "tables of each worker, when they are full"
            );
        }
        Ok(Self {
            ring,
            balancer,
            completions: Vec::with_capacity(REAP_MAX),
            ops: Ops::with_capacity(REAP_MAX * Balancer::OPS_PER_COMPLETION_MAX),
            clock: Clock,
            mailbox: parts.mailbox,
            others: Arc::new([]),
            log: parts.log,
            heir: None,
            turns: Turns::default(),
            told_to_stop: false,
        })
    }

    fn run(&mut self) -> io::Result<()> {
        let (mut begun, mut completions) = (self.clock.now(), 0);
        while !self.stopped() {
            self.ring.submit(self.ops.drain());
            self.turns.on_turn(self.clock.now().since(begun), completions);
            self.ring.wait(self.balancer.next_timeout())?;
            let now = self.clock.now();
            self.completions.extend(self.ring.reap(REAP_MAX));
            (begun, completions) = (now, self.completions.len());
            self.balancer.look_ahead(&self.completions);
            for completion in self.completions.drain(..) {
                self.balancer.handle(now, completion, &mut self.ring, &mut self.ops);
            }
            self.balancer.handle_timeout(now, &mut self.ops);
            self.call_others();
            self.take_commands(now);
            self.tell_ended_flows();
        }
        // The last turn may have refused clients.
        self.ring.submit(self.ops.drain());
        Ok(())
    }

    fn report(&self) -> Report {
        Report { stats: self.balancer.stats().clone(), ring: self.ring.stats(), turns: self.turns }
    }

    fn stopped(&self) -> bool {
        self.told_to_stop || self.balancer.is_drained()
    }

    /// Wakes the workers whose flows are the next to have a place.
    fn call_others(&mut self) {
        for worker in self.balancer.take_calls() {
            if let Some(other) = self.others.get(worker) {
                other.wake();
            }
        }
    }

    fn take_commands(&mut self, now: Instant) {
        if self.is_still_handing_over(now) {
            return;
        }
        while let Some(command) = self.mailbox.take() {
            match command {
                Command::Apply(snapshot) => {
                    let old = self.balancer.apply(now, snapshot, &mut self.ops);
                    self.mailbox.retire(Retired::Snapshot(old));
                }
                Command::Renew(renewal) => self.renew(now, *renewal),
                Command::Meet(others) => self.others = others,
                Command::Policy(cluster, command) => self.on_policy_command(cluster, command),
                Command::Report(reply) => {
                    // Nobody listens any more if the answer took too long.
                    let _ = reply.send(self.report());
                }
                Command::Survey { question, reply } => {
                    let _ = reply.send(question.put_to(now, &self.balancer));
                    return self.take_the_rest_soon();
                }
                Command::Forget { id, reply } => {
                    let _ = reply.send(self.balancer.forget(now, id, &mut self.ops));
                    return self.take_the_rest_soon();
                }
                Command::HandOver(heir) => return self.begin_handing_over(heir),
                Command::TakeOver { handover, reply } => {
                    let _ = reply.send(self.take_over(now, *handover));
                }
                Command::Stop => self.told_to_stop = true,
            }
        }
    }

    fn renew(&mut self, now: Instant, renewal: Renewal) {
        let Renewal { snapshot, policies, sockets, engine } = renewal;
        if let Some(engine) = engine {
            engine.prepare_thread();
        }
        let world = Arc::clone(&snapshot);
        let (old, policies) = self.balancer.renew(now, snapshot, policies, &mut self.ops);
        self.mailbox.retire(Retired::Snapshot(old));
        policies.into_iter().for_each(|policy| self.mailbox.retire(Retired::Policy(policy)));
        for (id, socket) in sockets {
            let listener = &world.listeners[id.index()];
            // It ends all the same, like that of a worker that has no socket for it.
            if let Err(error) = listen(&mut self.ring, (id, listener), socket) {
                tracing::error!(listener = &*listener.name, %error, "cannot be listened on");
            }
        }
        self.mailbox.retire(Retired::Snapshot(world));
    }

    fn on_policy_command(&mut self, cluster: ClusterId, command: PolicyCommand) {
        match command {
            PolicyCommand::Swap { policy, on_swap, reply } => {
                let begun = self.clock.now();
                let old = self.balancer.swap_policy(cluster, policy, on_swap);
                let swapped = Swapped { old, pause: self.clock.now().since(begun) };
                self.mailbox.answer(&reply, swapped, |swapped| Retired::Policy(swapped.old));
            }
            PolicyCommand::SetTrial { trial, reply } => {
                let old = self.balancer.set_trial(cluster, trial);
                self.mailbox.answer(&reply, old, Retired::Trial);
            }
            // Nobody waits for these answers any longer if they took too long.
            PolicyCommand::TakeState(reply) => {
                let _ = reply.try_send(self.balancer.policy_state(cluster));
            }
            PolicyCommand::RecentFlows(reply) => {
                let _ = reply.try_send(self.balancer.recent_flows(cluster).to_vec());
            }
        }
    }

    /// After a command that takes some time: whatever else waits is taken in the next turn, which
    /// begins at once, so that many such commands cannot hold up traffic together.
    fn take_the_rest_soon(&self) {
        self.ring.waker().wake();
    }

    fn tell_ended_flows(&mut self) {
        if let Some(log) = &self.log {
            log.offer(self.balancer.take_records());
        }
    }
}

fn listen(
    ring: &mut Ring,
    (id, listener): (ListenerId, &Listener),
    WorkerSocket { socket, shared }: WorkerSocket,
) -> Result<(), RingError> {
    match listener.protocol {
        Protocol::Tcp if shared => ring.listen_shared(id, socket),
        Protocol::Tcp => ring.listen(id, socket),
        Protocol::Udp => ring.listen_datagrams(id, socket, listener.datagrams.offload),
    }
}

#[cfg(test)]
mod tests {
    use pointsman_core::boundary::PoolSizes;
    use tokio::sync::mpsc::unbounded_channel;

    use super::*;
    use crate::view::tests::plan;
    use crate::world::World;

    /// A worker without the policies that its world needs, which is a bug that panics.
    fn broken_parts(mailbox: Mailbox) -> Parts {
        let plan = plan();
        let pools = PoolSizes { small: 16, bulk: 4 };
        let snapshot = World::new(&plan, &[plan.listeners[0].address], [0; 2]).snapshot();
        Parts {
            number: 7,
            core: None,
            ring: RingConfig {
                links_max: 2,
                listeners_max: 1,
                ports_max: 0,
                buffers: pools,
                datagram_buffers: 0,
            },
            balancer: BalancerConfig {
                worker: 7,
                sessions_max: 1,
                datagram_flows_max: 0,
                flow_table_entries_max: 1,
                board: None,
                pools,
                hash_key: [0; 2],
                seed: 0,
                record_flows: false,
            },
            snapshot,
            policies: Vec::new(),
            sockets: Vec::new(),
            engine: None,
            mailbox,
            log: None,
        }
    }

    #[test]
    fn a_worker_that_panics_is_heard_of() {
        let (retired, _retired) = unbounded_channel();
        let (_commands, mailbox) = Mailbox::new(retired);
        let (started, answer) = oneshot::channel();
        let (ended, mut endings) = unbounded_channel();
        spawn(broken_parts(mailbox), started, ended).expect("a thread");
        assert!(answer.blocking_recv().is_err(), "it never says that it has started");
        let ending = endings.blocking_recv().expect("it says how it ended");
        assert_eq!(ending.number, 7);
        assert!(ending.outcome.expect_err("it failed").contains("panicked"));
    }
}
