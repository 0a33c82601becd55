//! The new process, as the old one sees it.
//!
//! Until it has taken over it is a child that may be ended at any moment; whoever gives it up has ended it
//! for certain, so that two processes never serve the same flows.

use std::io::{self, ErrorKind};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use super::program::Program;
use super::wire::{Kind, Unheard, VERSION, Wire};

/// What tells a process that its standard input leads to the one that it is to take over from.
pub(super) const VARIABLE: &str = "POINTSMAN_TAKE_OVER";
/// What was said to this process alone.
const OURS_ALONE: [&str; 4] = ["LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES", "WATCHDOG_PID"];
/// How long a process that hangs up may take to end, and how often that is looked at.
const ENDING_PATIENCE: Duration = Duration::from_secs(1);
const LOOK: Duration = Duration::from_millis(2);

/// A process that is to take over. It is ended when this is dropped, unless it is let go.
#[derive(Debug)]
pub(super) struct Successor {
    child: Option<Child>,
    wire: Wire,
    patience: Duration,
}

impl Successor {
    /// Starts it; it may take so long to take over.
    pub(super) fn start(program: &Program, patience: Duration) -> Result<Self, String> {
        let shown = program.path.display();
        let start = || -> io::Result<Self> {
            let (ours, theirs) = UnixStream::pair()?;
            let mut command = Command::new(&program.path);
            command.args(&program.arguments).env(VARIABLE, "1");
            for name in OURS_ALONE {
                command.env_remove(name);
            }
            let child = command.stdin(Stdio::from(OwnedFd::from(theirs))).spawn()?;
            Ok(Self { child: Some(child), wire: Wire::new(ours, patience)?, patience })
        };
        let successor = start().map_err(|error| {
            format!("cannot start {shown}: {error}; put a program there that can be executed")
        })?;
        // If it is gone already, that shows when it is to answer.
        let _ = successor.wire.send(Kind::Greeting, &VERSION.to_le_bytes(), &[]);
        Ok(successor)
    }

    /// Its number.
    pub(super) fn id(&self) -> u32 {
        self.child.as_ref().map_or(0, Child::id)
    }

    /// The way to it.
    pub(super) fn wire(&mut self) -> &mut Wire {
        &mut self.wire
    }

    /// Whoever told this process to end did not know of the other one, and means that too.
    pub(super) fn terminate(&self) {
        if let Some(pid) =
            self.child.as_ref().and_then(|child| Pid::from_raw(child.id().cast_signed()))
        {
            // If it has ended already, that is what was wanted.
            let _ = kill_process(pid, Signal::TERM);
        }
    }

    /// It has taken over, and goes its own way.
    pub(super) fn let_go(mut self) {
        self.child = None;
    }

    /// Gives it up, for this reason. Tells why, in lines.
    pub(super) fn give_up(mut self, unheard: Unheard) -> String {
        let ended = match &unheard {
            Unheard::Broken(error) if error.kind() == ErrorKind::TimedOut => None,
            Unheard::Refused(_) | Unheard::Broken(_) => self.await_end(),
        };
        let error = match unheard {
            Unheard::Refused(why) => return why,
            Unheard::Broken(error) => error,
        };
        match (error.kind(), ended) {
            (ErrorKind::TimedOut, _) => format!(
                "the new process has not taken over within {} ms and is ended; see what it logs, or \
                 raise upgrade_timeout_ms",
                self.patience.as_millis()
            ),
            (_, Some(status)) => format!(
                "the new process has ended ({status}) before it could take over; see what it logs"
            ),
            _ => format!("the new process cannot be understood ({error}) and is ended"),
        }
    }

    /// How it has ended, if it does so soon.
    fn await_end(&mut self) -> Option<ExitStatus> {
        let give_up = Instant::now() + ENDING_PATIENCE;
        let child = self.child.as_mut()?;
        while Instant::now() < give_up {
            if let Ok(Some(status)) = child.try_wait() {
                return Some(status);
            }
            thread::sleep(LOOK);
        }
        None
    }
}

impl Drop for Successor {
    fn drop(&mut self) {
        if let Some(child) = &mut self.child {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}
