//! What only root may have of the kernel: networks and disks of one's own. Elsewhere scenarios that need
//! them are skipped, but not in CI.

use std::env;
use std::process::Command;
use std::sync::mpsc::{Sender, channel};
use std::thread;

use nix::sched::{CloneFlags, unshare};

use super::GIVE_UP;

type Work = Box<dyn FnOnce() + Send>;

/// A thread with a network of its own, which does what it is told until this is dropped.
pub struct Namespace {
    /// Its number.
    pub thread: i32,
    work: Sender<Work>,
}

impl Namespace {
    /// Makes one without any link.
    pub fn new() -> Self {
        let (started, start) = channel();
        let (work, orders) = channel::<Work>();
        thread::spawn(move || {
            unshare(CloneFlags::CLONE_NEWNET).expect("a namespace");
            started.send(rustix::thread::gettid().as_raw_nonzero().get()).expect("a test");
            orders.into_iter().for_each(|work| work());
        });
        Self { thread: start.recv().expect("a thread"), work }
    }

    /// Does something there and waits for it.
    pub fn does<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> T {
        let (done, is_done) = channel();
        let work = move || done.send(work()).expect("somebody waits");
        self.work.send(Box::new(work)).expect("its thread");
        is_done.recv_timeout(GIVE_UP).expect("it is done")
    }
}

/// Runs a script that must succeed.
pub fn shell(script: &str, variables: &[(&str, String)]) {
    let mut command = Command::new("sh");
    command.args(["-ec", script]).envs(variables.iter().map(|(name, value)| (*name, value)));
    let output = command.output().expect("a shell");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

/// Whether networks can be made; it is asked on a thread that is not needed any more.
pub fn may_make_networks() -> bool {
    let tried = thread::spawn(|| {
        unshare(CloneFlags::CLONE_NEWNET).is_ok()
            && Command::new("ip").arg("link").output().is_ok_and(|output| output.status.success())
    });
    let may = tried.join().expect("an answer");
    may || skip("no network namespace can be made here, which takes root and the command `ip`")
}

/// Whether a process can have disks of its own.
pub fn may_mount() -> bool {
    let mut command = Command::new("unshare");
    command.args(["--mount", "mount", "-t", "tmpfs", "tmpfs", "/mnt"]);
    let may = command.output().is_ok_and(|output| output.status.success());
    may || skip("no disk can be made here, which takes root and the command `unshare`")
}

fn skip(why: &str) -> bool {
    assert!(env::var("CI").as_deref() != Ok("true"), "{why}");
    eprintln!("skipped: {why}");
    false
}
