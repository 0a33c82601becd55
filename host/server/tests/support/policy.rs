//! What scenarios of swaps share: the command `policy`, and traffic that goes on meanwhile.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use pointsman::client;
use pointsman::swap::answer::SwapAnswer;
use pointsman::swap::list::{Listed, PolicyList};
use pointsman::swap::report::TrialReport;
use serde::de::DeserializeOwned;

use super::{Balancer, GIVE_UP, POINTSMAN, ask_once};

/// A `[[policies]]` of this plugin.
pub fn policy(name: &str, plugin: &Path, more: &str) -> String {
    format!("[[policies]]\nname = \"{name}\"\nplugin = {plugin:?}\n{more}\n")
}

impl Balancer {
    /// Runs `pointsman policy` with this balancer.
    pub fn policy(&self, arguments: &[&str]) -> Output {
        let mut command = Command::new(POINTSMAN);
        command.arg("policy").args(arguments).arg("--admin").arg(self.socket());
        command.output().expect("the binary runs")
    }

    /// The same, which must succeed, and its answer as a program reads it.
    pub fn policy_json<T: DeserializeOwned>(&self, arguments: &[&str]) -> T {
        let output = self.policy(&[arguments, &["--json"]].concat());
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{arguments:?}: {said}");
        serde_json::from_slice(&output.stdout).expect("an answer")
    }

    /// Swaps a file in for the cluster `web`.
    pub fn swap(&self, file: &Path) -> SwapAnswer {
        let answers: Vec<SwapAnswer> = self.policy_json(&["swap", "web", text(file)]);
        answers.into_iter().next().expect("an answer for the cluster")
    }

    /// Begins a trial of a file in the cluster `web`.
    pub fn try_out(&self, file: &Path, way: &[&str]) -> TrialReport {
        self.policy_json(&[&["swap", "web", text(file)], way].concat())
    }

    /// What must be refused: the exit code and the one line of it.
    pub fn refusal(&self, arguments: &[&str]) -> (i32, String) {
        let output = self.policy(arguments);
        let said = String::from_utf8_lossy(&output.stderr);
        let lines: Vec<_> = said.lines().collect();
        assert_eq!(lines.len(), 1, "{arguments:?}: {said}");
        let line = lines[0].strip_prefix("error: ").expect("an error").to_owned();
        assert!(!line.ends_with('.'), "{line}");
        (output.status.code().expect("an exit code"), line)
    }

    /// Who decides for the cluster `web`.
    pub fn listed(&self) -> Listed {
        let answer = client::get(&self.socket(), "/v1/policies").expect("a list");
        let list: PolicyList = serde_json::from_str(&answer).expect("a list");
        list.policies.into_iter().find(|listed| listed.cluster == "web").expect("the cluster")
    }

    /// How often a swap of the cluster `web` has come to this.
    pub fn swaps(&self, outcome: &str) -> f64 {
        let labels = format!("cluster=\"web\",outcome=\"{outcome}\"");
        self.metric(&format!("pointsman_swaps_total{{{labels}}}"))
    }

    /// Sends a file by HTTP, with as much time as a swap may take.
    pub fn post(&self, path: &str, body: &[u8]) -> (u16, String) {
        client::send_body(&self.socket(), ("POST", path), body, GIVE_UP * 3).expect("an answer")
    }
}

/// A path as an argument.
pub fn text(path: &Path) -> &str {
    path.to_str().expect("text")
}

/// Writes a plugin beside the balancer's other files.
pub fn write(folder: &Path, name: &str, bytes: &[u8]) -> PathBuf {
    let file = folder.join(name);
    fs::write(&file, bytes).expect("the plugin is written");
    file
}

/// Between two flows of one client.
const PAUSE: Duration = Duration::from_millis(5);

/// Clients that connect, ask and leave, one after another, until they are told to stop.
pub struct Traffic {
    stop: Arc<AtomicBool>,
    clients: Vec<JoinHandle<usize>>,
}

impl Traffic {
    /// Starts some; each panics at the first error.
    pub fn start(to: std::net::SocketAddr, clients: usize) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let client = |_| {
            let stop = Arc::clone(&stop);
            thread::spawn(move || {
                let mut flows = 0;
                while !stop.load(SeqCst) {
                    ask_once(to).expect("every flow is served");
                    flows += 1;
                    // The kernel keeps the ports of ended connections for a minute.
                    thread::sleep(PAUSE);
                }
                flows
            })
        };
        Self { clients: (0..clients).map(client).collect(), stop }
    }

    /// How many flows there were.
    pub fn stop(self) -> usize {
        self.stop.store(true, SeqCst);
        self.clients.into_iter().map(|client| client.join().expect("no flow failed")).sum()
    }
}
