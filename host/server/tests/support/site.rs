//! A balancer whose program is exchanged while it runs.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::PathBuf;
use std::process::{Command, Output};
use std::sync::{Mutex, PoisonError};

use pointsman::client;
use pointsman::upgrade::Answer;
use rustix::process::{Pid, Signal, kill_process, test_kill_process};
use tempfile::TempDir;

use super::{Balancer, POINTSMAN, eventually};

/// A balancer whose program can be exchanged. All its processes end with it.
pub struct Site {
    pub balancer: Balancer,
    pub programs: TempDir,
    pub successors: Mutex<Vec<Pid>>,
}

impl Site {
    pub fn start(config: &str) -> Self {
        Self::start_with(config, &[])
    }

    pub fn start_with(config: &str, variables: &[(&str, &str)]) -> Self {
        let programs = tempfile::tempdir().expect("a folder");
        let program = programs.path().join("pointsman");
        symlink(POINTSMAN, &program).expect("a link");
        let mut command = Command::new(&program);
        command.envs(variables.iter().copied());
        let balancer = Balancer::launch_by(command, config);
        eventually("the balancer is ready", || client::get(&balancer.socket(), "/readyz").is_ok());
        Self { balancer, programs, successors: Mutex::default() }
    }

    pub fn program(&self) -> PathBuf {
        self.programs.path().join("pointsman")
    }

    /// Puts a script in the place of the program.
    pub fn install(&self, script: &str) {
        let new = self.programs.path().join("new");
        fs::write(&new, format!("#!/bin/sh\n{script}\n")).expect("a script");
        fs::set_permissions(&new, fs::Permissions::from_mode(0o755)).expect("it can be executed");
        fs::rename(&new, self.program()).expect("it is in its place");
    }

    /// Puts a test of these there, after a bit of script.
    pub fn install_this(&self, script: &str, test: &str) {
        let this = std::env::current_exe().expect("this test");
        self.install(&format!("{script}\nexec {this:?} --exact --ignored {test} >/dev/null 2>&1"));
    }

    /// Puts the program itself there again.
    pub fn restore(&self) {
        let new = self.programs.path().join("new");
        symlink(POINTSMAN, &new).expect("a link");
        fs::rename(&new, self.program()).expect("it is in its place");
    }

    pub fn configure(&self, config: &str) {
        let socket = self.balancer.socket();
        let text = format!("{config}\n[admin]\nsocket = {socket:?}\n");
        fs::write(self.balancer.path("pointsman.toml"), text).expect("the configuration");
    }

    pub fn ask_to_upgrade(&self) -> Output {
        let mut command = Command::new(POINTSMAN);
        command.args(["upgrade", "--json", "--admin"]).arg(self.balancer.socket());
        command.output().expect("the binary runs")
    }

    /// Has another process take over.
    pub fn upgrade(&self) -> Answer {
        let output = self.ask_to_upgrade();
        let said = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success(), "{said}");
        let answer: Answer = serde_json::from_str(&said).expect("an answer");
        self.successors.lock().expect("no test has failed").push(pid(answer.pid));
        assert_eq!(self.balancer.status().pid, answer.pid, "the new process answers");
        answer
    }

    /// No other process can take over; tells why.
    pub fn refuse(&self) -> String {
        let before = self.balancer.status().pid;
        let output = self.ask_to_upgrade();
        assert_eq!(output.status.code(), Some(2), "{output:?}");
        assert_eq!(self.balancer.status().pid, before, "the old process answers");
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        let complaint: serde_json::Value = serde_json::from_str(&said).expect("an error");
        complaint["error"].as_str().expect("its text").to_owned()
    }

    /// The process that answers.
    pub fn pid(&self) -> Pid {
        pid(self.balancer.status().pid)
    }
}

impl Drop for Site {
    fn drop(&mut self) {
        let successors = self.successors.lock().unwrap_or_else(PoisonError::into_inner);
        for pid in successors.iter() {
            let _ = kill_process(*pid, Signal::KILL);
        }
    }
}

pub fn parent_of(process: Pid) -> Pid {
    let path = format!("/proc/{}/status", process.as_raw_nonzero());
    let status = fs::read_to_string(path).expect("its status");
    let parent = status.lines().find_map(|line| line.strip_prefix("PPid:")).expect("a line");
    pid(parent.trim().parse().expect("a number"))
}

pub fn pid(number: u32) -> Pid {
    Pid::from_raw(number.try_into().expect("a number")).expect("a process")
}

pub fn has_ended(pid: Pid) -> bool {
    // One that nobody has waited for is at its end too.
    let stat = fs::read_to_string(format!("/proc/{}/stat", pid.as_raw_nonzero()));
    test_kill_process(pid).is_err() || stat.is_ok_and(|stat| stat.contains(") Z "))
}
