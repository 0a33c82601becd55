//! Whether a configuration can be used: reads it, looks everything up, and tries its plugins.
//!
//! What this accepts, a balancer starts with, but for what only the moment of starting shows: ports
//! in use, and the kernel's limits.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use pointsman_core::Candidates;

use crate::config::{self, Config, Document};
use crate::discovery;
use crate::failure::Failure;
use crate::plan::{Plan, PluginFolders, PluginId, PolicyPlan, Source, resolve_what_can_be};
use crate::plugins::Plugins;
use crate::problem::Problem;
use crate::settling::read_at_most;
use crate::world::World;

/// More than any configuration has.
const BYTES_MAX: u64 = 1 << 30;

/// A configuration whose keys and names are all right.
pub struct Checked {
    /// Everything looked up.
    pub plan: Plan,
    /// Its text, to find the places of problems that show later.
    pub document: Document,
}

/// Reads a file and looks everything up, without opening a plugin.
///
/// # Errors
/// All problems of the file, with their places in it.
pub fn read(file: &Path, folders: &[PathBuf]) -> Result<Checked, Failure> {
    let document = read_text(file)?;
    let folders = PluginFolders::new(file, folders);
    let (plan, problems) = resolve_what_can_be(&document.config, &folders);
    if problems.is_empty() && document.problems.is_empty() {
        return Ok(Checked { plan, document });
    }
    Err(Failure::Input(document.into_problems(problems)))
}

/// Reads again what a balancer was started with. What cannot change any more is not looked up again:
/// it may by now be beyond its reach.
///
/// # Errors
/// All problems of the file, with their places in it.
pub fn read_again(
    file: &Path,
    folders: &[PathBuf],
    settled: impl Fn(&Config, &Problem) -> bool,
) -> Result<Checked, Failure> {
    // Whoever starts a balancer may hand it a pipe; it cannot be read again.
    let document = text(read_at_most(file, BYTES_MAX))?;
    let folders = PluginFolders::new(file, folders);
    let (plan, mut problems) = resolve_what_can_be(&document.config, &folders);
    problems.retain(|problem| !settled(&document.config, problem));
    if problems.is_empty() && document.problems.is_empty() {
        return Ok(Checked { plan, document });
    }
    Err(Failure::Input(document.into_problems(problems)))
}

/// Reads a file and tries everything that can be tried without starting.
///
/// # Errors
/// All problems of the file, those of its plugins included.
pub fn check(file: &Path, folders: &[PathBuf]) -> Result<Plan, Failure> {
    let document = read_text(file)?;
    let folders = PluginFolders::new(file, folders);
    let (plan, mut problems) = resolve_what_can_be(&document.config, &folders);
    problems.extend(Plugins::try_all(&plan, &candidates(&plan)));
    problems.extend(files_of_endpoints(&plan));
    if problems.is_empty() && document.problems.is_empty() {
        return Ok(plan);
    }
    Err(Failure::Input(document.into_problems(problems)))
}

fn read_text(file: &Path) -> Result<Document, Failure> {
    text(fs::read(file))
}

fn text(read: io::Result<Vec<u8>>) -> Result<Document, Failure> {
    let bytes = read
        .map_err(|error| Failure::input(format!("cannot be read: {error}; give another file")))?;
    let text = String::from_utf8(bytes)
        .map_err(|_| Failure::input("is not UTF-8 text; save it as UTF-8".to_owned()))?;
    Ok(config::read(&text))
}

/// What is wrong with the files in which clusters find their endpoints.
fn files_of_endpoints(plan: &Plan) -> Vec<Problem> {
    let clusters = plan.clusters.iter().enumerate();
    let mistakes = clusters.filter_map(|(place, cluster)| {
        let discovery = cluster.discovery.as_ref()?;
        let Source::File(path) = &discovery.source else { return None };
        let told = discovery::mistake(path, discovery.endpoints_max)?;
        Some(Problem::new(format!("clusters[{place}].discovery.path"), told))
    });
    mistakes.collect()
}

/// For each plugin the endpoints of a cluster that uses it, or of any.
fn candidates(plan: &Plan) -> Vec<Option<Arc<Candidates>>> {
    let addresses: Vec<_> = plan.listeners.iter().map(|listener| listener.address).collect();
    let snapshot = World::new(plan, &addresses, [0; 2]).snapshot();
    let clusters = || {
        let all = plan.clusters.iter().zip(&snapshot.clusters);
        all.filter(|(_, cluster)| !cluster.candidates.endpoints.is_empty())
    };
    let of = |id: PluginId| {
        let user = clusters().find(|(plan, _)| plan.policy == PolicyPlan::Plugin(id));
        user.or_else(|| clusters().next()).map(|(_, cluster)| Arc::clone(&cluster.candidates))
    };
    (0..plan.plugins.len()).map(PluginId).map(of).collect()
}

/// What a file would start, in one line.
pub fn summary(file: &Path, plan: &Plan) -> String {
    let endpoints: usize = plan.clusters.iter().map(|cluster| cluster.endpoints.len()).sum();
    format!(
        "{}: good: {} listener(s), {} cluster(s), {endpoints} endpoint(s), {} plugin(s)",
        file.display(),
        plan.listeners.len(),
        plan.clusters.len(),
        plan.plugins.len()
    )
}
