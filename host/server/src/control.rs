//! The control thread of a running balancer.
//!
//! Everything that is not traffic ends here: what checks and workers have seen, signals, workers
//! that end, and things to be dropped. It never waits for a worker, and no worker ever waits for
//! it.

use std::io;
use std::os::fd::OwnedFd;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, anyhow};
use pointsman_core::ejection::EjectionChange;
use pointsman_core::health::{Observation, Transition};
use pointsman_core::{ClusterId, Instant, Snapshot};
use pointsman_ring::{Clock, may_be_transparent, raise_descriptor_limit};
use tokio::net::{TcpListener, UnixListener};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};
use tokio::time::{MissedTickBehavior, interval, timeout};

use crate::access_log::{self, Log, LogTask};
use crate::admin::{self, Doors};
use crate::assembly::{self, Channels, Outfit, Seated};
use crate::budget::{Budget, Supply};
use crate::config::Config;
use crate::discovery::{Discovery, Found};
use crate::failure::Failure;
use crate::inherited::Inherited;
use crate::logging;
use crate::mailbox::Retired;
use crate::notify::{Notifier, Watchdog};
use crate::plan::{Plan, protocol_name};
use crate::plugins::{Loaded, Plugins};
use crate::prober::{Prober, Seen};
use crate::problem::Problem;
use crate::random;
use crate::reload::{self, Source};
use crate::runtime;
use crate::service::{Parts, Service};
use crate::setup::Setup;
use crate::sockets::{self, AdminSocket, Entrance, Listening};
use crate::steering::{Steered, Steerer};
use crate::swap::{guard, watch};
use crate::upgrade::{self, Heir, Inheritance, Predecessor, Program, Succession};
use crate::worker::Ended;
use crate::world::{Change, News, Role, Unchanged, World};

/// How often failed connects are looked at.
const TICK: Duration = Duration::from_millis(100);
/// How long a worker may take to end after a drain is over before it is taken to be stuck.
const STUCK_AFTER: Duration = Duration::from_secs(5);
/// How long whoever is in at the admin interface may take to get his answer.
const ANSWERING_PATIENCE: Duration = Duration::from_secs(5);

/// What a balancer begins with.
pub struct Start {
    /// Where its configuration was read from.
    pub source: Source,
    /// As it was read.
    pub config: Config,
    /// What it says.
    pub plan: Plan,
    /// Sockets that whoever started the process has opened.
    pub inherited: Inherited,
    /// What it was started as.
    pub program: Program,
}

/// Runs a balancer until it is told to end. If there is one before it that it takes over from, that is
/// taken away once that is done: until then whoever fails had better tell it.
///
/// # Errors
/// It cannot start, or a worker broke.
pub async fn run(start: Start, predecessor: &mut Option<Predecessor>) -> Result<ExitCode, Failure> {
    // First of all: a signal that comes while starting must not be lost.
    let signals = Signals::new()?;
    let ready = Ready::new(start, predecessor.as_ref()).await?;
    let Ready { source, config, plan, program, budget, plugins, loaded, .. } = ready;
    let Ready { inheritance, mut listening, mut world, mut entrance, log, .. } = ready;
    let (retired_sender, retired) = unbounded_channel();
    let (ended_sender, ended) = unbounded_channel();
    let (seen_sender, seen) = unbounded_channel();
    let (steered_sender, steered) = unbounded_channel();
    let (left_sender, left) = unbounded_channel();
    // Who takes over begins with all its sockets at once.
    let own = if predecessor.is_some() { listening.set_aside() } else { Vec::new() };
    let outfit = Outfit {
        sockets: listening.sockets,
        policies: ready.seated.policies,
        engine: plugins.engine(),
        snapshot: world.publish(),
        budget: &budget,
        channels: Channels {
            retired: retired_sender,
            ended: ended_sender,
            log: log.sender.clone(),
        },
    };
    let fleet = assembly::start(&plan, outfit).await?;
    let heir = Heir {
        plan: &plan,
        inheritance: &inheritance,
        world: &mut world,
        fleet: &fleet,
        own,
        entrance: &mut entrance,
    };
    let succession = heir.succeed(predecessor.as_mut())?;
    tell_addresses(&world.snapshot());
    let (unix, admin_socket) = entrance.unix.context("the admin socket is nobody's")?;
    let parts = Parts {
        source,
        budget,
        plugins,
        steered: steered_sender,
        fleet,
        log: log.keeper,
        notifier: Notifier::from_environment(),
        program,
        doors: Doors::new(&unix, entrance.http.as_ref(), admin_socket.file())?,
        left: left_sender,
    };
    let setup = Setup { config, plan, loaded, seats: ready.seated.seats };
    let service = Arc::new(Service::new(parts, setup, world, succession.upgrades.clone()));
    begin(&service, ready.seated.steerers, (unix, entrance.http))?;
    say_ready(&service, predecessor.take(), &succession, &admin_socket);
    let control = Control {
        workers_left: service.fleet().len(),
        watchdog: Watchdog::from_environment(service.notifier().clone()),
        service,
        signals,
        prober: Prober::new(seen_sender),
        discovery: ready.discovery,
        seen,
        ended,
        retired,
        steered,
        left,
        log: log.writer.map(access_log::LogWriter::start),
        drain_until: None,
        has_left: false,
        admin_socket,
    };
    control.run().await
}

/// Everything that may fail has been done, but for the workers.
struct Ready {
    source: Source,
    config: Config,
    plan: Plan,
    program: Program,
    budget: Budget,
    plugins: Plugins,
    loaded: Vec<Arc<Loaded>>,
    inheritance: Inheritance,
    listening: Listening,
    world: World,
    discovery: Discovery,
    seated: Seated,
    entrance: Entrance,
    log: Log,
}

impl Ready {
    async fn new(start: Start, predecessor: Option<&Predecessor>) -> Result<Self, Failure> {
        let Start { source, config, mut plan, inherited, program } = start;
        let limit = raise_descriptor_limit().context("cannot raise the descriptor limit")?;
        let budget = Budget::divide(&mut plan, Supply::read(limit.1));
        let compiled = Plugins::compile(&plan, read_plugins(&plan).await);
        let (plugins, loaded) = compiled.map_err(Failure::Input)?;
        let estate = predecessor.map(Predecessor::estate);
        let inheritance = Inheritance::new(estate, &plan).map_err(Failure::Input)?;
        let handed = inherited.deal(&plan).map_err(Failure::Input)?;
        let origins = inheritance.origins(handed.listeners);
        let listening = sockets::listen(&plan, origins).map_err(Failure::input)?;
        let hash_key = [random::secret()?, random::secret()?];
        let mut world = World::new(&plan, &listening.addresses, hash_key);
        world.inherit(estate.map_or(&[], |estate| &estate.clusters));
        let discovery = Discovery::start(&plan, &mut world).await;
        let seated = assembly::seat(&plan, (&plugins, &loaded), &mut world);
        let seated = seated.map_err(Failure::Input)?;
        let entrance = Entrance {
            unix: match inheritance.admin_socket {
                true => None,
                false => Some(AdminSocket::open(&plan, handed.admin).map_err(Failure::input)?),
            },
            http: match inheritance.admin_http {
                true => None,
                false => open_http(&plan, handed.http).await?,
            },
        };
        let log = Log::open(&plan).await?;
        give_up_privileges(&plan)?;
        ask_for_transparency(&plan).map_err(Failure::input)?;
        Ok(Self {
            source,
            config,
            plan,
            program,
            budget,
            plugins,
            loaded,
            inheritance,
            listening,
            world,
            discovery,
            seated,
            entrance,
            log,
        })
    }
}

/// Sets what stands beside the workers to work.
fn begin(
    service: &Arc<Service>,
    steerers: Vec<(ClusterId, Steerer)>,
    (unix, http): (UnixListener, Option<TcpListener>),
) -> Result<(), Failure> {
    if service.plugins().engine().is_some() {
        service.start_steering()?;
    }
    for (cluster, steerer) in steerers {
        service.steer((cluster, Role::Live), Some(steerer));
    }
    watch::start(service)?;
    admin::serve_unix(unix, service);
    if let Some(http) = http {
        admin::serve_http(http, service).context("admin.http")?;
    }
    Ok(())
}

/// Says that everything works, once the service manager takes this process for the service.
fn say_ready(
    service: &Arc<Service>,
    predecessor: Option<Predecessor>,
    succession: &Succession,
    admin_socket: &AdminSocket,
) {
    let Some(mut predecessor) = predecessor else { return service.notifier().ready() };
    succession.tell(&mut predecessor);
    admin_socket.claim_file();
    let service = Arc::clone(service);
    runtime::spawn(async move {
        // Without a thread it is said earlier than the manager may want to hear it.
        let ends = runtime::aside("farewell", || predecessor.await_farewell()).await;
        service.notifier().ready();
        if ends.unwrap_or(false) {
            service.notifier().stopping();
            service.note_end();
        }
    });
}

/// Becomes whom the plan says. Everything that only root may bind is bound, and no worker has started.
fn give_up_privileges(plan: &Plan) -> Result<(), Failure> {
    let Some(run_as) = &plan.run_as else { return Ok(()) };
    run_as.become_it().map_err(|told| Failure::input(Problem::new("user", told)))?;
    tracing::info!(user = run_as.name, "has given up its privileges");
    Ok(())
}

/// Whether flows may leave from clients' addresses, where they are to.
pub(crate) fn ask_for_transparency(plan: &Plan) -> Result<(), Problem> {
    let wanted = plan.clusters.iter().position(|cluster| cluster.transparent);
    let (Some(place), Err(error)) = (wanted, may_be_transparent()) else { return Ok(()) };
    let advice = if plan.run_as.is_some() {
        "the key `user` gives that up: leave it out, and start as that user with CAP_NET_ADMIN"
    } else {
        "start with CAP_NET_ADMIN (AmbientCapabilities= in a unit), or leave it out"
    };
    let told = format!("flows may not leave from clients' addresses: {error}; {advice}");
    Err(Problem::new(format!("clusters[{place}].transparent"), told))
}

fn tell_addresses(snapshot: &Snapshot) {
    for listener in &snapshot.listeners {
        let protocol = protocol_name(listener.protocol);
        let (listener, address) = (&*listener.name, listener.address);
        tracing::info!(listener, %address, protocol, "accepts");
    }
}

async fn read_plugins(plan: &Plan) -> Vec<io::Result<Vec<u8>>> {
    let mut files = Vec::with_capacity(plan.plugins.len());
    for plugin in &plan.plugins {
        files.push(runtime::read(&plugin.file).await);
    }
    files
}

async fn open_http(plan: &Plan, handed: Option<OwnedFd>) -> Result<Option<TcpListener>, Failure> {
    let Some(address) = plan.admin_http else { return Ok(None) };
    if let Some(handed) = handed {
        let listener = std::net::TcpListener::from(handed);
        listener.set_nonblocking(true)?;
        return Ok(Some(TcpListener::from_std(listener)?));
    }
    match TcpListener::bind(address).await {
        Ok(listener) => Ok(Some(listener)),
        Err(error) => {
            Err(Failure::input(format!("admin.http: cannot listen on {address}: {error}")))
        }
    }
}

/// The signals that mean something.
struct Signals {
    terminate: Signal,
    interrupt: Signal,
    user1: Signal,
    user2: Signal,
    hangup: Signal,
}

impl Signals {
    fn new() -> io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            user1: signal(SignalKind::user_defined1())?,
            user2: signal(SignalKind::user_defined2())?,
            hangup: signal(SignalKind::hangup())?,
        })
    }

    /// The next one: its number.
    async fn next(&mut self) -> SignalKind {
        tokio::select! {
            _ = self.terminate.recv() => SignalKind::terminate(),
            _ = self.interrupt.recv() => SignalKind::interrupt(),
            _ = self.user1.recv() => SignalKind::user_defined1(),
            _ = self.user2.recv() => SignalKind::user_defined2(),
            _ = self.hangup.recv() => SignalKind::hangup(),
        }
    }
}

/// Logs what has become of an endpoint.
fn tell(cluster: &str, change: &Change) {
    let endpoint = change.address;
    match change.news {
        News::Health(Transition::WentUp) => tracing::info!(cluster, %endpoint, "endpoint is up"),
        News::Health(Transition::WentDown) => {
            let reason = change.reason.as_deref().unwrap_or("flows cannot connect");
            tracing::warn!(cluster, %endpoint, reason, "endpoint is down");
        }
        News::Ejection(EjectionChange::Ejected { reason, lasting }) => {
            let (reason, for_ms) = (reason.label(), lasting.as_millis());
            tracing::warn!(cluster, %endpoint, reason, for_ms, "endpoint is ejected");
        }
        News::Ejection(EjectionChange::Returned) => {
            tracing::info!(cluster, %endpoint, "endpoint is no longer ejected");
        }
    }
}

struct Control {
    service: Arc<Service>,
    signals: Signals,
    prober: Prober,
    discovery: Discovery,
    watchdog: Watchdog,
    seen: UnboundedReceiver<Seen>,
    ended: UnboundedReceiver<Ended>,
    retired: UnboundedReceiver<Retired>,
    steered: UnboundedReceiver<Steered>,
    left: UnboundedReceiver<()>,
    log: Option<LogTask>,
    workers_left: usize,
    drain_until: Option<Instant>,
    /// Whether another process has taken over.
    has_left: bool,
    admin_socket: AdminSocket,
}

impl Control {
    async fn run(mut self) -> Result<ExitCode, Failure> {
        let mut tick = interval(TICK);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        while self.workers_left > 0 {
            tokio::select! {
                Some(seen) = self.seen.recv() => self.on_seen(seen),
                found = self.discovery.next() => self.on_found(&found),
                Some(ended) = self.ended.recv() => self.on_ended(ended)?,
                Some(retired) = self.retired.recv() => drop(retired),
                Some(steered) = self.steered.recv() => self.on_steered(steered),
                Some(()) = self.left.recv() => self.on_left(),
                signal = self.signals.next() => {
                    if let Some(code) = self.on_signal(signal) {
                        self.leave(code);
                    }
                }
                _ = tick.tick() => self.on_tick()?,
            }
        }
        tracing::info!("every flow has ended");
        if self.has_left {
            // Whoever has asked for the other process is still to be answered.
            let _ = timeout(ANSWERING_PATIENCE, self.service.doors().emptied()).await;
        }
        if let Some(log) = self.log.take()
            && !log.finish().await
        {
            tracing::warn!("the access log takes nothing: its last lines are lost");
            self.leave(0);
        }
        Ok(ExitCode::SUCCESS)
    }

    /// Ends the process although something may still be under way that the runtime would wait for.
    fn leave(self, code: i32) -> ! {
        drop(self.admin_socket);
        logging::finish();
        std::process::exit(code)
    }

    fn on_seen(&self, seen: Seen) {
        let Seen { cluster, endpoint, failed } = seen;
        let observation =
            if failed.is_none() { Observation::CheckPassed } else { Observation::CheckFailed };
        let change = self.service.look(|world| world.observe(cluster, endpoint, observation));
        let change = change.map(|change| Change { reason: failed, ..change });
        self.publish(change.as_slice());
    }

    fn on_found(&self, found: &[Found]) {
        // Where nothing has changed there is nothing to publish.
        let _: Result<(), Unchanged> = self.service.try_change(|world| world.take_found(found));
    }

    fn on_tick(&mut self) -> anyhow::Result<()> {
        let now = Clock.now();
        // One world for all that is due.
        let (changes, is_due) = self.service.look(|world| {
            let changes = world.look_at_flows(now);
            (changes, world.tidy(now) | world.grow(now))
        });
        if is_due && changes.is_empty() {
            self.service.change(|_| {});
        }
        // Both at once: a reload replaces both.
        self.service.look(|world| self.prober.follow(&self.service.setup().plan, world));
        self.discovery.follow(&self.service.setup().plan);
        self.publish(&changes);
        guard::look_after(&self.service);
        self.watchdog.tick();
        self.drain_if_told();
        if self.drain_until.is_some_and(|until| Clock.now() > until + STUCK_AFTER) {
            return Err(anyhow!("{} worker(s) did not end after the drain", self.workers_left));
        }
        Ok(())
    }

    fn on_steered(&self, steered: Steered) {
        let Steered { place, by, of, made } = steered;
        if self.service.look(|world| world.take(place, by, (of, made))) {
            self.service.change(|_| {});
        }
    }

    fn publish(&self, changes: &[Change]) {
        let setup = self.service.setup();
        for change in changes {
            tell(&setup.plan.clusters[change.cluster.index()].name, change);
        }
        if !changes.is_empty() {
            self.service.change(|_| {});
        }
    }

    fn on_ended(&mut self, ended: Ended) -> anyhow::Result<()> {
        let number = ended.number;
        match ended.outcome {
            Ok(report) => {
                self.service.fleet().keep(number, report);
                self.workers_left -= 1;
                Ok(())
            }
            Err(error) => Err(anyhow!("worker {number} broke: {error}")),
        }
    }

    /// Does what a signal says. Tells with which code to end at once, if so.
    fn on_signal(&mut self, signal: SignalKind) -> Option<i32> {
        if signal == SignalKind::user_defined1() {
            self.log.iter().for_each(LogTask::reopen);
        } else if signal == SignalKind::user_defined2() {
            upgrade::on_signal(&self.service);
        } else if signal == SignalKind::hangup() {
            reload::on_signal(&self.service);
        } else {
            return self.on_end_signal(signal);
        }
        None
    }

    /// The first signal drains, as soon as that may begin. The second ends the process with the code that
    /// a shell gives to a process that the signal killed: 130 or 143.
    fn on_end_signal(&mut self, signal: SignalKind) -> Option<i32> {
        let is_first = self.service.note_end();
        if self.drain_until.is_some() || !is_first {
            tracing::warn!("second signal: ends at once");
            self.service.fleet().stop();
            return Some(128 + signal.as_raw_value());
        }
        self.service.notifier().stopping();
        self.drain_if_told();
        None
    }

    fn drain_if_told(&mut self) {
        let is_told = self.service.is_draining() && self.drain_until.is_none();
        if is_told && !self.service.is_drain_held() {
            self.drain();
        }
    }

    /// Another process has taken over. What has stayed here ends as in any drain.
    fn on_left(&mut self) {
        self.has_left = true;
        if self.drain_until.is_none() {
            self.drain();
        }
    }

    fn drain(&mut self) {
        let timeout = self.service.setup().plan.drain_timeout;
        let until = Clock.now() + timeout;
        self.drain_until = Some(until);
        tracing::info!(timeout_ms = timeout.as_millis(), "draining; a second signal ends at once");
        self.service.change(|world| world.drain(until));
    }
}
