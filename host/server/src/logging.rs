//! Log lines on their way to standard error.
//!
//! Whoever reads the log may stop reading: a pager that was suspended, a journal whose disk hangs. A
//! line that waits for that would hold up checks, signals and the admin interface, and a worker that
//! has something to tell would hold up its flows. So a line only ever goes into a bounded queue, and a
//! thread of its own writes it; what finds the queue full is lost and counted.

use std::io::{self, IsTerminal, Write};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, OnceLock};
use std::thread;
use std::time::{Duration, Instant};

use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::writer::BoxMakeWriter;

/// What is logged unless somebody says otherwise. Discovery tells what came of its questions, once; the
/// resolver's own lines come with each datagram, and whoever sends it may choose how many.
const LOGGED: &str = "info,hickory_net=off,hickory_resolver=off,hickory_proto=off";
/// Lines that may wait.
const WAITING_MAX: usize = 4_096;
/// How long the last lines may take before the process ends without them.
const END_MAX: Duration = Duration::from_secs(1);
const END_LOOK: Duration = Duration::from_millis(1);

/// The queue of this process, if it has one.
static LINES: OnceLock<Lines> = OnceLock::new();

/// Logs to standard error; `POINTSMAN_LOG` says how much, as in `debug` or `pointsman=trace`. What
/// serves is not to wait for whoever reads that.
pub fn start(serves: bool) {
    let filter =
        EnvFilter::try_from_env("POINTSMAN_LOG").unwrap_or_else(|_| EnvFilter::new(LOGGED));
    let queue = if serves { Lines::start(io::stderr()).ok() } else { None };
    let writer = match queue {
        Some(lines) => {
            let lines = LINES.get_or_init(|| lines);
            BoxMakeWriter::new(|| lines.clone())
        }
        None => BoxMakeWriter::new(io::stderr),
    };
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(writer)
        .with_ansi(io::stderr().is_terminal())
        .with_target(false)
        .init();
}

/// Waits until the lines so far are written, but not for ever: the process is about to end.
pub fn finish() {
    if let Some(lines) = LINES.get() {
        lines.finish();
    }
}

/// Lines that nobody has read in time.
pub fn lost() -> u64 {
    LINES.get().map_or(0, |lines| lines.counts.lost.load(Ordering::Relaxed))
}

/// Where lines are left, one with each write.
#[derive(Debug, Clone)]
struct Lines {
    queue: SyncSender<Vec<u8>>,
    counts: Arc<Counts>,
}

#[derive(Debug, Default)]
struct Counts {
    /// Lines that are not written yet.
    waiting: AtomicUsize,
    lost: AtomicU64,
}

impl Lines {
    fn start(to: impl Write + Send + 'static) -> io::Result<Self> {
        let (queue, lines) = sync_channel(WAITING_MAX);
        let counts = Arc::<Counts>::default();
        let counted = Arc::clone(&counts);
        let body = move || write_for_ever(&lines, &counted, to);
        thread::Builder::new().name("log".into()).spawn(body)?;
        Ok(Self { queue, counts })
    }

    fn finish(&self) {
        let give_up = Instant::now() + END_MAX;
        while self.counts.waiting.load(Ordering::Acquire) > 0 && Instant::now() < give_up {
            thread::sleep(END_LOOK);
        }
    }
}

impl Write for Lines {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        self.counts.waiting.fetch_add(1, Ordering::AcqRel);
        if self.queue.try_send(line.to_owned()).is_err() {
            self.counts.waiting.fetch_sub(1, Ordering::AcqRel);
            self.counts.lost.fetch_add(1, Ordering::Relaxed);
        }
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn write_for_ever(lines: &Receiver<Vec<u8>>, counts: &Counts, mut to: impl Write) {
    let mut told = 0;
    for line in lines {
        let is_written = to.write_all(&line).is_ok();
        counts.waiting.fetch_sub(1, Ordering::AcqRel);
        counts.lost.fetch_add(u64::from(!is_written), Ordering::Relaxed);
        let lost = counts.lost.load(Ordering::Relaxed);
        if is_written && lost > told {
            tracing::warn!(
                lines = lost - told,
                "the log was not read in time; lines of it are lost"
            );
            told = lost;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::{Sender, channel};

    use super::*;

    /// Hands on each line that it is given, and goes on when it may.
    struct Slow(Sender<Vec<u8>>, Receiver<()>);

    impl Write for Slow {
        fn write(&mut self, line: &[u8]) -> io::Result<usize> {
            self.0.send(line.to_owned()).map_err(io::Error::other)?;
            self.1.recv().map_err(io::Error::other)?;
            Ok(line.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_log_that_nobody_reads_costs_lines_that_are_counted_and_holds_up_nobody() {
        let (written, lines) = channel();
        let (turns, turn) = channel();
        let mut log = Lines::start(Slow(written, turn)).expect("a thread");
        log.write_all(b"first").expect("it is left");
        assert_eq!(lines.recv().expect("a line"), b"first");
        for number in 0..WAITING_MAX + 10 {
            log.write_all(number.to_string().as_bytes()).expect("it is left");
        }
        assert_eq!(log.counts.lost.load(Ordering::Relaxed), 10);
        (0..=WAITING_MAX).for_each(|_| turns.send(()).expect("a turn"));
        for number in 0..WAITING_MAX {
            assert_eq!(lines.recv().expect("a line"), number.to_string().into_bytes());
        }
        log.finish();
        assert_eq!(log.counts.waiting.load(Ordering::Relaxed), 0);
    }
}
