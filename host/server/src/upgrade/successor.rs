//! The new process, as the old one sees it.
//!
//! Until it has taken over it may be ended at any moment; whoever gives it up has ended it for certain, so
//! that two processes never serve the same flows.

use std::fs;
use std::io::{self, ErrorKind};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::process::{Child, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Signal, pidfd_send_signal};

use super::launcher;
use super::program::Program;
use super::wire::{Kind, Unheard, VERSION, Wire, nonsense};

/// What was said to this process alone.
const OURS_ALONE: [&str; 4] = ["LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES", "WATCHDOG_PID"];
/// How long it may take to take over what workers have handed over. Nobody is served meanwhile that was
/// handed over, and sockets hold only so much.
const TAKING_PATIENCE: Duration = Duration::from_secs(30);
/// How long a process that refuses may take to end, and how often that is looked at.
const ENDING_PATIENCE: Duration = Duration::from_secs(1);
const LOOK: Duration = Duration::from_millis(2);
/// How long one that is killed may take to be dead: as long as the system does.
const DYING_PATIENCE: Duration = Duration::from_secs(30);

/// A process that is to take over. It is ended when this is dropped, unless it is let go.
#[derive(Debug)]
pub(super) struct Successor {
    /// Its parent, which ends with it.
    launcher: Child,
    /// Its number, and what signals reach it by, until it is let go.
    process: Option<(u32, OwnedFd)>,
    wire: Wire,
    patience: Duration,
    /// Whether it has what workers have handed over.
    is_taking: bool,
}

impl Successor {
    /// Starts it; it may take so long to take over.
    ///
    /// # Errors
    /// Why that is impossible, in lines.
    pub(super) fn start(program: &Program, patience: Duration) -> Result<Self, String> {
        let mut successor = Self::launch(program, patience)
            .map_err(|error| format!("cannot start another process: {error}; try again"))?;
        match successor.meet() {
            Ok(()) => Ok(successor),
            Err(unheard) => Err(successor.give_up(unheard)),
        }
    }

    fn launch(program: &Program, patience: Duration) -> io::Result<Self> {
        let (ours, theirs) = UnixStream::pair()?;
        let wire = Wire::new(ours, patience)?;
        let mut command = launcher::command(program);
        for name in OURS_ALONE {
            command.env_remove(name);
        }
        let launcher = command.stdin(Stdio::from(OwnedFd::from(theirs))).spawn()?;
        Ok(Self { launcher, process: None, wire, patience, is_taking: false })
    }

    fn meet(&mut self) -> Result<(), Unheard> {
        let frame = self.wire.await_kind(Kind::Started)?;
        let number = frame.read()?;
        let mut handles = frame.descriptors.into_iter();
        let handle = handles.next().ok_or_else(|| nonsense("a process that cannot be reached"))?;
        self.process = Some((number, handle));
        Ok(self.wire.send(Kind::Greeting, &VERSION.to_le_bytes(), &[])?)
    }

    /// Its number.
    pub(super) fn id(&self) -> u32 {
        self.process.as_ref().map_or(0, |(number, _)| *number)
    }

    /// The way to it.
    pub(super) fn wire(&mut self) -> &mut Wire {
        &mut self.wire
    }

    /// The way to it, by which it gets what workers have handed over.
    pub(super) fn begin_taking(&mut self) -> &mut Wire {
        self.is_taking = true;
        self.wire.be_patient_for(TAKING_PATIENCE);
        &mut self.wire
    }

    /// Leaves it to whoever this process belongs to. It cannot be given up any more.
    pub(super) fn disown(&mut self) {
        let _ = self.launcher.kill();
        let _ = self.launcher.wait();
    }

    /// It has taken over, and goes its own way.
    pub(super) fn let_go(mut self) {
        self.process = None;
    }

    /// Gives it up, for this reason. Tells why, in lines.
    pub(super) fn give_up(mut self, unheard: Unheard) -> String {
        match unheard {
            Unheard::Refused(why) => {
                // Whom it keeps from being served cannot wait for it.
                if !self.is_taking {
                    self.await_end();
                }
                why
            }
            Unheard::Broken(error) if error.kind() == ErrorKind::TimedOut => self.tell_timeout(),
            Unheard::Broken(error) => {
                let gone = [ErrorKind::BrokenPipe, ErrorKind::ConnectionReset];
                let is_gone = gone.contains(&error.kind());
                let words = is_gone.then(|| self.last_words()).flatten();
                words.unwrap_or_else(|| {
                    format!("the new process cannot be understood ({error}) and is ended")
                })
            }
        }
    }

    /// What one that is gone has said before, when nobody had asked.
    fn last_words(&self) -> Option<String> {
        match self.wire.await_kind(Kind::Refused) {
            Ok(frame) => Some(String::from_utf8_lossy(&frame.payload).into_owned()),
            Err(_) => None,
        }
    }

    fn tell_timeout(&self) -> String {
        if self.is_taking {
            return format!(
                "the new process has not gone on with what it was handed over within {} s and is ended; \
                 see what it logs",
                TAKING_PATIENCE.as_secs()
            );
        }
        format!(
            "the new process was not ready to take over within {} ms and is ended; see what it logs, or \
             raise upgrade_timeout_ms",
            self.patience.as_millis()
        )
    }

    /// Lets it end by itself, if it does so soon.
    fn await_end(&mut self) {
        let give_up = Instant::now() + ENDING_PATIENCE;
        while Instant::now() < give_up && matches!(self.launcher.try_wait(), Ok(None)) {
            thread::sleep(LOOK);
        }
    }
}

impl Drop for Successor {
    fn drop(&mut self) {
        if let Some((number, handle)) = &self.process {
            // If it has ended already, that is what was wanted.
            let _ = pidfd_send_signal(handle, Signal::KILL);
            let give_up = Instant::now() + DYING_PATIENCE;
            // The launcher would wait for it, but may have been ended by somebody else.
            while !is_dead(*number) && Instant::now() < give_up {
                thread::sleep(LOOK);
            }
        }
        self.disown();
    }
}

/// Whether a process runs no more, be it that nobody has waited for it yet.
fn is_dead(number: u32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{number}/stat"));
    let state =
        |stat: &str| stat.rsplit(") ").next().is_some_and(|rest| rest.starts_with(['Z', 'X']));
    stat.map_or(true, |stat| state(&stat))
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    #[test]
    fn a_process_is_dead_before_anybody_has_waited_for_it() {
        let mut child = Command::new("sleep").arg("3600").spawn().expect("a process");
        assert!(!is_dead(child.id()));
        child.kill().expect("it is there");
        while !is_dead(child.id()) {
            thread::sleep(LOOK);
        }
        child.wait().expect("its end");
        assert!(is_dead(child.id()));
    }
}
