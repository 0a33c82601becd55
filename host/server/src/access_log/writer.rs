//! Writes the access log, in a task of its own: a disk that is full or a pipe that nobody reads holds
//! up nothing else.
//!
//! What cannot be written is lost and counted, and the next lines are tried all the same, so that a
//! log goes on by itself once there is room again.

use std::fs::File;
use std::io;
use std::os::unix::fs::{OpenOptionsExt, fchown};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};
use rustix::io::Errno;
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};
use tokio::sync::{Notify, oneshot};
use tokio::time::timeout;

use super::keeper::{LogKeeper, Order};
use super::syslog::Syslog;
use super::{BATCH_MAX, LogReader, LogSender, channel};
use crate::failure::Failure;
use crate::plan::{LogPlan, LogTarget, Plan};
use crate::privileges::RunAs;
use crate::problem::Problem;
use crate::runtime::{self, Appender};

/// How often it is written.
const TICK: Duration = Duration::from_millis(100);
/// How long it may take to write its last lines.
const END_MAX: Duration = Duration::from_secs(2);

/// The access log's parts, or nothing of it.
pub struct Log {
    /// For each worker.
    pub sender: Option<LogSender>,
    /// What writes it.
    pub writer: Option<LogWriter>,
    /// How it is changed.
    pub keeper: LogKeeper,
}

impl Log {
    /// Opens what the plan says.
    ///
    /// # Errors
    /// The file cannot be opened.
    pub async fn open(plan: &Plan) -> Result<Self, Failure> {
        let Some(log) = &plan.access_log else {
            return Ok(Self { sender: None, writer: None, keeper: LogKeeper::default() });
        };
        let cannot_open = |error: io::Error| {
            Failure::input(Problem::new("access_log.path", format!("cannot be opened: {error}")))
        };
        make_for(plan.run_as.as_ref(), log).map_err(cannot_open)?;
        let sink = Sink::open(log).await.map_err(cannot_open)?;
        let (sender, reader, dropped) = channel(plan, log);
        let (orders, taken) = unbounded_channel();
        let lost = Arc::clone(&dropped);
        let writer =
            LogWriter { reader, plan: log.clone(), sink, lost, fails: false, orders: taken };
        let keeper = LogKeeper { dropped, log: Some((Arc::clone(&sender.sample.share), orders)) };
        Ok(Self { sender: Some(sender), writer: Some(writer), keeper })
    }
}

/// Makes the file, if it is not there, the user's that the process is to become: it is opened again by
/// whoever follows it in an upgrade.
fn make_for(user: Option<&RunAs>, log: &LogPlan) -> io::Result<()> {
    let (Some(RunAs { user, group, .. }), LogTarget::File(path)) = (user, &log.target) else {
        return Ok(());
    };
    match File::options().append(true).create_new(true).open(path) {
        Ok(file) => fchown(file, Some(*user), Some(*group)),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        Err(error) => Err(error),
    }
}

/// Where lines go.
pub(super) enum Sink {
    /// The end of a file; whether what it ends with is the beginning of a line.
    File(Appender, bool),
    Syslog(Syslog),
}

impl Sink {
    /// Whether it could be opened.
    pub(super) fn try_out(log: &LogPlan) -> io::Result<()> {
        match &log.target {
            LogTarget::Syslog(_) | LogTarget::Stdout => Ok(()),
            LogTarget::File(path) => open_at_end(path).map(drop),
        }
    }

    /// Opens it on a thread of its own: the disk may hang.
    async fn open(log: &LogPlan) -> io::Result<Self> {
        Ok(match &log.target {
            LogTarget::Syslog(address) => Self::Syslog(Syslog::new(address.clone())),
            LogTarget::Stdout => Self::File(Appender::stdout()?, false),
            LogTarget::File(path) => {
                let path = path.clone();
                let file = runtime::aside("access-log-open", move || open_at_end(&path)).await??;
                Self::File(Appender::new(file), false)
            }
        })
    }
}

/// Opens a file to be made longer, which is made if it is not there. It may be a pipe; whoever opened
/// one like a file would wait until somebody reads there.
fn open_at_end(path: &Path) -> io::Result<File> {
    let without_waiting = OFlags::NONBLOCK.bits().cast_signed();
    let mut options = File::options();
    let opened = options.append(true).create(true).custom_flags(without_waiting).open(path);
    let file = opened.map_err(|error| match Errno::from_io_error(&error) {
        Some(Errno::NXIO) => {
            io::Error::new(error.kind(), "nobody reads this pipe; start its reader first")
        }
        _ => error,
    })?;
    // Writing may wait: a pipe takes little at a time.
    fcntl_setfl(&file, fcntl_getfl(&file)? - OFlags::NONBLOCK)?;
    Ok(file)
}

/// A log that is open.
pub struct LogWriter {
    reader: LogReader,
    plan: LogPlan,
    sink: Sink,
    lost: Arc<AtomicU64>,
    /// Whether the last lines were lost, which is told once.
    fails: bool,
    orders: UnboundedReceiver<Order>,
}

impl LogWriter {
    /// Writes what waits, ten times a second.
    pub fn start(mut self) -> LogTask {
        let (stop, mut stopped) = oneshot::channel();
        let (end, ended) = oneshot::channel();
        let reopen = Arc::new(Notify::new());
        let asked = Arc::clone(&reopen);
        runtime::spawn(async move {
            loop {
                tokio::select! {
                    _ = &mut stopped => break,
                    () = asked.notified() => self.reopen().await,
                    Some(order) = self.orders.recv() => self.follow(order).await,
                    () = tokio::time::sleep(TICK) => self.write().await,
                }
            }
            self.write().await;
            if let Sink::File(file, _) = self.sink {
                file.close().await;
            }
            // Nobody waits any more if it took too long.
            let _ = end.send(());
        });
        LogTask { stop, ended, reopen }
    }

    /// Goes by another plan. What waits is still written as it was.
    async fn follow(&mut self, order: Order) {
        self.write().await;
        let Order { names, plan } = order;
        self.reader.go_by(names, plan.format);
        let is_elsewhere = plan.target != self.plan.target;
        self.plan = plan;
        if is_elsewhere {
            match Sink::open(&self.plan).await {
                Ok(sink) => self.replace(sink).await,
                Err(error) => {
                    tracing::error!(%error, "cannot open the new access log; it stays where it is");
                }
            }
        }
    }

    async fn replace(&mut self, sink: Sink) {
        if let Sink::File(old, _) = std::mem::replace(&mut self.sink, sink) {
            old.close().await;
        }
    }

    /// Goes on in the file that has the log's name by now. What waits still goes into the old one.
    async fn reopen(&mut self) {
        self.write().await;
        match Sink::open(&self.plan).await {
            Ok(sink @ Sink::File(..)) => self.replace(sink).await,
            Ok(Sink::Syslog(_)) => {
                if let Sink::Syslog(syslog) = &mut self.sink {
                    syslog.reopen();
                }
            }
            Err(error) => {
                tracing::error!(%error, "cannot open the access log again; it stays as it is");
                return;
            }
        }
        tracing::info!("the access log is opened again");
    }

    /// Writes everything that waits.
    async fn write(&mut self) {
        loop {
            let (count, outcome) = match &mut self.sink {
                Sink::File(file, torn) => {
                    let lines = self.reader.lines();
                    if lines.is_empty() {
                        return;
                    }
                    append(file, torn, lines).await
                }
                Sink::Syslog(syslog) => {
                    let (sent, lost, outcome) = send_some(&self.reader, syslog);
                    if sent + lost == 0 {
                        return;
                    }
                    tokio::task::yield_now().await;
                    (lost, outcome)
                }
            };
            self.lost.fetch_add(count, Relaxed);
            self.tell(outcome);
        }
    }

    fn tell(&mut self, outcome: io::Result<()>) {
        match (outcome, self.fails) {
            (Err(error), false) => {
                tracing::error!(%error, "cannot write the access log; what is lost is counted");
                self.fails = true;
            }
            (Ok(()), true) => {
                tracing::info!("the access log is written again");
                self.fails = false;
            }
            _ => {}
        }
    }
}

/// Appends lines; tells how many are lost. A line that was torn by the last failure is ended first.
async fn append(file: &Appender, torn: &mut bool, lines: Vec<u8>) -> (u64, io::Result<()>) {
    let end_of_torn = usize::from(*torn);
    let mut bytes = Vec::with_capacity(lines.len() + end_of_torn);
    bytes.extend(torn.then_some(b'\n'));
    bytes.extend(lines);
    let whole = bytes.len();
    match file.append(bytes).await {
        Ok(()) => {
            *torn = false;
            (0, Ok(()))
        }
        Err((error, rest)) => {
            let is_untouched = rest.len() == whole;
            *torn |= !is_untouched;
            // The torn line was counted when it was torn.
            let counted = if is_untouched { end_of_torn } else { 0 };
            let ends = rest.iter().filter(|byte| **byte == b'\n').count();
            ((ends - counted) as u64, Err(error))
        }
    }
}

/// Sends a batch; tells how many were sent, and how many are lost, and why.
fn send_some(reader: &LogReader, syslog: &mut Syslog) -> (u64, u64, io::Result<()>) {
    let (mut sent, mut lost, mut outcome) = (0, 0, Ok(()));
    let mut line = Vec::new();
    for _ in 0..BATCH_MAX / 16 {
        line.clear();
        let Some(unix_ms) = reader.next(&mut line) else { break };
        match syslog.send(unix_ms, &line) {
            Ok(()) => sent += 1,
            Err(error) => {
                lost += 1;
                outcome = Err(error);
            }
        }
    }
    (sent, lost, outcome)
}

/// A writer at work.
pub struct LogTask {
    stop: oneshot::Sender<()>,
    ended: oneshot::Receiver<()>,
    reopen: Arc<Notify>,
}

impl LogTask {
    /// Has the file opened anew, after somebody has given it another name.
    pub fn reopen(&self) {
        self.reopen.notify_one();
    }

    /// Lets it write its last lines. Tells if it could, in reasonable time.
    pub async fn finish(self) -> bool {
        let _ = self.stop.send(());
        timeout(END_MAX, self.ended).await.is_ok()
    }
}
