//! What is said about and by guests, on its way to the log.
//!
//! A log can block: its reader may be slow, its disk full. So a line only ever goes into a bounded
//! queue, and a thread of its own hands it to the sink. Three things are cut to size on the way: a
//! line's length, its control characters (a guest could forge other lines with a line break), and
//! the number of lines per second.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::time::Instant;

/// How many bytes of a line are kept.
pub(crate) const LINE_BYTES_MAX: usize = 1024;
/// How many lines one policy on one worker may write per second.
const LINES_PER_SECOND: u64 = 100;
/// How many lines may wait for the sink.
const QUEUE_LINES_MAX: usize = 1024;

/// Where the lines end up. Called on a thread that has nothing else to do; it may block.
pub type LogSink = Arc<dyn Fn(LogLine) + Send + Sync>;

/// A line for the log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogLine {
    /// The policy's name.
    pub policy: Arc<str>,
    /// Who wrote it.
    pub speaker: Speaker,
    /// How much it matters.
    pub level: LogLevel,
    /// One line, at most 1 KiB.
    pub message: String,
}

/// Who wrote a line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Speaker {
    /// The plugin, about whatever it likes. Not to be trusted.
    Guest,
    /// The host, about the plugin.
    Host,
}

/// How much a line matters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum LogLevel {
    /// Something is broken.
    Error,
    /// Something is odd.
    Warn,
    /// Something is so.
    Info,
    /// Something is of interest to its author.
    Debug,
}

/// Makes the bounded queue between guests and the sink.
pub(crate) fn queue() -> (SyncSender<LogLine>, Receiver<LogLine>) {
    sync_channel(QUEUE_LINES_MAX)
}

/// Hands lines to the sink until nobody can write any more.
pub(crate) fn run(lines: &Receiver<LogLine>, sink: &LogSink) {
    while let Ok(line) = lines.recv() {
        sink(line);
    }
}

/// Counts the lines of the second that is under way.
#[derive(Debug)]
pub(crate) struct LogBudget {
    origin: Instant,
    /// The second in the high half, its lines in the low half.
    spent: AtomicU64,
}

impl LogBudget {
    pub(crate) fn new() -> Self {
        Self { origin: Instant::now(), spent: AtomicU64::new(0) }
    }

    /// Takes one line from the budget; false if there is none left.
    pub(crate) fn take(&self) -> bool {
        self.take_at(self.origin.elapsed().as_secs())
    }

    fn take_at(&self, second: u64) -> bool {
        let spend = |spent: u64| {
            let lines = if spent >> 32 == second { spent & 0xffff_ffff } else { 0 };
            (lines < LINES_PER_SECOND).then_some((second << 32) | (lines + 1))
        };
        self.spent.fetch_update(Relaxed, Relaxed, spend).is_ok()
    }
}

/// Makes one harmless line of any text.
pub(crate) fn one_line(text: &str) -> String {
    let end = text.floor_char_boundary(LINE_BYTES_MAX);
    let mut line: String =
        text[..end].chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    line.truncate(line.trim_end().len());
    if end < text.len() {
        line.push('…');
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_has_so_many_lines_and_the_next_has_them_again() {
        let budget = LogBudget::new();
        let spent = (0..1000).filter(|_| budget.take_at(7)).count();
        assert_eq!(spent as u64, LINES_PER_SECOND);
        assert!(budget.take_at(8));
    }

    #[test]
    fn a_line_cannot_forge_another() {
        assert_eq!(one_line("a\nerror: b\x1b[2J\n"), "a error: b [2J");
    }

    #[test]
    fn a_long_line_is_cut_between_characters() {
        let line = one_line(&"ä".repeat(LINE_BYTES_MAX));
        assert_eq!(line.chars().count(), LINE_BYTES_MAX / 2 + 1);
        assert!(line.ends_with('…'));
    }
}
