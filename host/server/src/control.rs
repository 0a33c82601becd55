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
use tokio::time::{MissedTickBehavior, interval};

use crate::access_log::{self, Log, LogTask};
use crate::admin;
use crate::assembly::{self, Channels, Outfit};
use crate::budget::{Budget, Supply};
use crate::config::Config;
use crate::discovery::{Discovery, Found};
use crate::failure::Failure;
use crate::inherited::Inherited;
use crate::mailbox::Retired;
use crate::notify::{Notifier, Watchdog};
use crate::plan::{Plan, protocol_name};
use crate::plugins::Plugins;
use crate::prober::{Prober, Seen};
use crate::problem::Problem;
use crate::random;
use crate::reload::{self, Source};
use crate::runtime;
use crate::service::{Parts, Service};
use crate::setup::Setup;
use crate::sockets::{self, AdminSocket};
use crate::steering::{Steered, Steerer};
use crate::swap::{guard, watch};
use crate::worker::Ended;
use crate::world::{Change, News, Role, Unchanged, World};

/// How often failed connects are looked at.
const TICK: Duration = Duration::from_millis(100);
/// How long a worker may take to end after a drain is over before it is taken to be stuck.
const STUCK_AFTER: Duration = Duration::from_secs(5);

/// Runs a balancer until it is told to end.
///
/// # Errors
/// It cannot start, or a worker broke.
pub async fn run(
    (source, config, mut plan): (Source, Config, Plan),
    inherited: Inherited,
) -> Result<ExitCode, Failure> {
    // First of all: a signal that comes while starting must not be lost.
    let signals = Signals::new()?;
    let (_, descriptors) = raise_descriptor_limit().context("cannot raise the descriptor limit")?;
    let budget = Budget::divide(&mut plan, Supply::read(descriptors));
    let compiled = Plugins::compile(&plan, read_plugins(&plan).await).map_err(Failure::Input)?;
    let (plugins, loaded) = compiled;
    let handed = inherited.deal(&plan).map_err(Failure::Input)?;
    let listening = sockets::listen(&plan, handed.listeners).map_err(Failure::input)?;
    let hash_key = [random::secret()?, random::secret()?];
    let mut world = World::new(&plan, &listening.addresses, hash_key);
    let discovery = Discovery::start(&plan, &mut world).await;
    let seated = assembly::seat(&plan, (&plugins, &loaded), &mut world).map_err(Failure::Input)?;
    let (unix, admin_socket) = AdminSocket::open(&plan, handed.admin).map_err(Failure::input)?;
    let http = open_http(&plan, handed.http).await?;
    let log = Log::open(&plan)?;
    give_up_privileges(&plan)?;
    ask_for_transparency(&plan).map_err(Failure::input)?;

    let (retired_sender, retired) = unbounded_channel();
    let (ended_sender, ended) = unbounded_channel();
    let (seen_sender, seen) = unbounded_channel();
    let (steered_sender, steered) = unbounded_channel();
    let snapshot = world.publish();
    let outfit = Outfit {
        sockets: listening.sockets,
        policies: seated.policies,
        engine: plugins.engine(),
        snapshot: Arc::clone(&snapshot),
        budget: &budget,
        channels: Channels {
            retired: retired_sender,
            ended: ended_sender,
            log: log.sender.clone(),
        },
    };
    let fleet = assembly::start(&plan, outfit).await?;
    tell_addresses(&snapshot);
    let parts = Parts {
        source,
        budget,
        plugins,
        steered: steered_sender,
        fleet,
        log: log.keeper,
        notifier: Notifier::from_environment(),
    };
    let setup = Setup { config, plan, loaded, seats: seated.seats };
    let service = Arc::new(Service::new(parts, setup, world));
    begin(&service, seated.steerers, (unix, http))?;
    let control = Control {
        workers_left: service.fleet().len(),
        watchdog: Watchdog::from_environment(service.notifier().clone()),
        service,
        signals,
        prober: Prober::new(seen_sender),
        discovery,
        seen,
        ended,
        retired,
        steered,
        log: log.writer.map(access_log::LogWriter::start),
        drain_until: None,
        admin_socket,
    };
    control.run().await
}

/// Sets what stands beside the workers to work, and says that everything does.
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
    admin::serve_unix(unix, Arc::clone(service));
    if let Some(http) = http {
        admin::serve_http(http, service).context("admin.http")?;
    }
    service.notifier().ready();
    Ok(())
}

/// Becomes whom the plan says. Everything that only root may bind is bound, and no worker has started.
fn give_up_privileges(plan: &Plan) -> Result<(), Failure> {
    let Some(run_as) = &plan.run_as else { return Ok(()) };
    run_as.become_it().map_err(|told| Failure::input(Problem::new("user", told)))?;
    tracing::info!(user = run_as.name, "has given up its privileges");
    Ok(())
}

/// Whether connections may leave from clients' addresses, where they are to.
pub(crate) fn ask_for_transparency(plan: &Plan) -> Result<(), Problem> {
    let wanted = plan.clusters.iter().position(|cluster| cluster.transparent);
    let (Some(place), Err(error)) = (wanted, may_be_transparent()) else { return Ok(()) };
    let advice = if plan.run_as.is_some() {
        "the key `user` gives that up: leave it out, and start as that user with CAP_NET_ADMIN"
    } else {
        "start with CAP_NET_ADMIN (AmbientCapabilities= in a unit), or leave it out"
    };
    let told = format!("connections may not leave from clients' addresses: {error}; {advice}");
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
    hangup: Signal,
}

impl Signals {
    fn new() -> io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            user1: signal(SignalKind::user_defined1())?,
            hangup: signal(SignalKind::hangup())?,
        })
    }

    /// The next one: its number.
    async fn next(&mut self) -> SignalKind {
        tokio::select! {
            _ = self.terminate.recv() => SignalKind::terminate(),
            _ = self.interrupt.recv() => SignalKind::interrupt(),
            _ = self.user1.recv() => SignalKind::user_defined1(),
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
            tracing::warn!(cluster, %endpoint, "endpoint is down");
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
    log: Option<LogTask>,
    workers_left: usize,
    drain_until: Option<Instant>,
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
                signal = self.signals.next() => {
                    if signal == SignalKind::user_defined1() {
                        self.log.iter().for_each(LogTask::reopen);
                        continue;
                    }
                    if signal == SignalKind::hangup() {
                        reload::on_signal(&self.service);
                        continue;
                    }
                    if let Some(code) = self.on_signal(signal) {
                        self.leave(code);
                    }
                }
                _ = tick.tick() => self.on_tick()?,
            }
        }
        tracing::info!("every flow has ended");
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
        std::process::exit(code)
    }

    fn on_seen(&self, seen: Seen) {
        let observation =
            if seen.passed { Observation::CheckPassed } else { Observation::CheckFailed };
        let change =
            self.service.look(|world| world.observe(seen.cluster, seen.endpoint, observation));
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

    /// The first signal drains. The second ends the process with the code that a shell gives to a
    /// process that the signal killed: 130 or 143.
    fn on_signal(&mut self, signal: SignalKind) -> Option<i32> {
        if self.drain_until.is_some() {
            tracing::warn!("second signal: ends at once");
            self.service.fleet().stop();
            return Some(128 + signal.as_raw_value());
        }
        let timeout = self.service.setup().plan.drain_timeout;
        let until = Clock.now() + timeout;
        self.drain_until = Some(until);
        self.service.notifier().stopping();
        tracing::info!(timeout_ms = timeout.as_millis(), "draining; a second signal ends at once");
        self.service.change(|world| world.drain(until));
        None
    }
}
