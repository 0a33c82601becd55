//! Ending early, with everything that was started: signals only set a flag, which every wait looks at.
//!
//! They are blocked in all threads and in all processes that are started here, so that ^C does not end
//! those before what they hold is taken back. Those are killed in the end, which nobody can block.

use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::thread::{self, sleep};
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use nix::sys::signal::{SigSet, Signal};

static INTERRUPTED: AtomicBool = AtomicBool::new(false);

/// How often a wait looks.
const SLICE: Duration = Duration::from_millis(50);

/// Begins to listen; to be called while there is one thread.
pub(crate) fn listen() -> Result<()> {
    let signals: SigSet = [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP].into_iter().collect();
    signals.thread_block()?;
    thread::spawn(move || {
        if signals.wait().is_ok() {
            INTERRUPTED.store(true, Relaxed);
        }
    });
    Ok(())
}

/// Waits; fails if it is interrupted meanwhile.
pub(crate) fn pause(duration: Duration) -> Result<()> {
    pause_until(Instant::now() + duration)
}

/// The same until some time, which may be past.
pub(crate) fn pause_until(end: Instant) -> Result<()> {
    loop {
        ensure!(!INTERRUPTED.load(Relaxed), "interrupted");
        let left = end.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Ok(());
        }
        sleep(left.min(SLICE));
    }
}
