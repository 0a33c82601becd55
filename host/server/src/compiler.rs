//! The thread on which plugins that come while there is traffic are compiled.
//!
//! It gives way to all others, and stays for the next time: a new thread each time would be given one of
//! several heaps, and each would keep what compiling once needed.

use std::io;
use std::sync::mpsc::{Receiver, Sender, SyncSender, channel, sync_channel};
use std::thread;

use pointsman_plugin::{Engine, LoadError, Module};
use rustix::process::nice;

/// How far compiling steps back: workers come first, and where they are busy it gets a tenth.
pub const NICE: i32 = 10;

/// What can be had of the thread, which starts when it is first needed.
#[derive(Debug, Default)]
pub struct Compiler {
    jobs: Option<Sender<Job>>,
}

#[derive(Debug)]
struct Job {
    engine: Engine,
    bytes: Vec<u8>,
    done: SyncSender<Result<Module, LoadError>>,
}

impl Compiler {
    /// Compiles a file, and waits for it. `None` if the compiler has panicked.
    ///
    /// # Errors
    /// The system refuses the thread.
    pub fn compile(
        &mut self,
        engine: &Engine,
        bytes: &[u8],
    ) -> io::Result<Option<Result<Module, LoadError>>> {
        let (done, is_done) = sync_channel(1);
        let job = Job { engine: engine.clone(), bytes: bytes.to_vec(), done };
        let jobs = match self.jobs.take() {
            Some(jobs) => jobs,
            None => start()?,
        };
        let outcome = jobs.send(job).ok().and_then(|()| is_done.recv().ok());
        self.jobs = outcome.is_some().then_some(jobs);
        Ok(outcome)
    }
}

fn start() -> io::Result<Sender<Job>> {
    let (jobs, to_do) = channel();
    let body = move || work(&to_do);
    thread::Builder::new().name("policy-compile".into()).spawn(body)?;
    Ok(jobs)
}

fn work(jobs: &Receiver<Job>) {
    // Where this is refused the thread competes with others as an equal.
    let _ = nice(NICE);
    for Job { engine, bytes, done } in jobs {
        // Whoever asked waits for it.
        let _ = done.send(engine.load(&bytes));
    }
}
