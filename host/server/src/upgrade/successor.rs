//! The new process, as the old one sees it.
//!
//! Until it has taken over it may be ended at any moment; whoever gives it up has ended it for certain, so
//! that two processes never serve the same flows.

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

    /// Whoever told this process to end did not know of the other one, and means that too.
    pub(super) fn terminate(&self) {
        self.signal(Signal::TERM);
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

    fn signal(&self, signal: Signal) {
        if let Some((_, handle)) = &self.process {
            // If it has ended already, that is what was wanted.
            let _ = pidfd_send_signal(handle, signal);
        }
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
                format!("the new process cannot be understood ({error}) and is ended")
            }
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
        self.signal(Signal::KILL);
        if self.process.is_none() {
            let _ = self.launcher.kill();
        }
        let _ = self.launcher.wait();
    }
}
