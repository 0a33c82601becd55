//! Swaps in files that have changed on disk.
//!
//! A thread looks at each watched file twice a second. What is refused is not tried again until it
//! changes.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering::AcqRel;
use std::thread;

use pointsman_core::ClusterId;
use pointsman_plugin::EngineLimits;

use super::compile::Excess;
use super::{File, Refusal, digest_of, short};
use crate::plan::PluginId;
use crate::service::Service;
use crate::settling::{LOOK, Settled, Settling, read_at_most};
use crate::setup::Setup;

/// Starts watching, if there is something to watch and nobody does. From then on whatever the
/// configuration says is watched, as long as the process lives.
///
/// # Errors
/// The system refuses the thread.
pub fn start(service: &Arc<Service>) -> io::Result<()> {
    let setup = service.setup();
    let wanted = setup.plan.plugins.iter().any(|plugin| plugin.watch && !plugin.removed);
    if !wanted || service.is_watching.swap(true, AcqRel) {
        return Ok(());
    }
    let service = Arc::clone(service);
    let body = move || {
        let mut watched = follow(Vec::new(), &setup);
        let mut seen = setup;
        loop {
            thread::sleep(LOOK);
            let setup = service.setup();
            if !Arc::ptr_eq(&setup, &seen) {
                watched = follow(watched, &setup);
                seen = setup;
            }
            watched.iter_mut().for_each(|watched| watched.look(&service));
        }
    };
    thread::Builder::new().name("policy-watch".into()).spawn(body).map(drop)
}

/// What is to be watched; what was watched before goes on as it was.
fn follow(before: Vec<Watched>, setup: &Setup) -> Vec<Watched> {
    let mut before: Vec<_> = before.into_iter().map(Some).collect();
    let plugins = (0..).map(PluginId).zip(&setup.plan.plugins);
    let watched = plugins.filter(|(_, plugin)| plugin.watch && !plugin.removed);
    let watched = watched.map(|(id, plugin)| {
        let is_it = |known: &&mut Option<Watched>| {
            known.as_ref().is_some_and(|it| it.plugin == id && it.file.path() == plugin.file)
        };
        let known = before.iter_mut().find(is_it).and_then(Option::take);
        known.unwrap_or_else(|| {
            let digest = setup.loaded[id.0].module.digest().to_owned();
            Watched::new(id, plugin.file.clone(), digest)
        })
    });
    watched.collect()
}

/// A plugin's file.
struct Watched {
    plugin: PluginId,
    file: Settling,
    /// What was read last.
    digest: String,
}

impl Watched {
    fn new(plugin: PluginId, file: PathBuf, digest: String) -> Self {
        Self { plugin, file: Settling::new(file), digest }
    }

    fn look(&mut self, service: &Service) {
        let Some(settled) = self.file.look() else { return };
        let file = self.file.path().display();
        if settled == Settled::Gone {
            tracing::warn!(%file, "the watched file is gone; its policy goes on without it");
            return;
        }
        match read(self.file.path()) {
            Ok(bytes) => self.on_bytes(service, bytes),
            Err(error) => {
                tracing::warn!(%file, %error, "cannot be read");
                self.file.again();
            }
        }
    }

    fn on_bytes(&mut self, service: &Service, bytes: Vec<u8>) {
        let digest = digest_of(&bytes);
        let setup = service.setup();
        let users = setup.clusters_of(self.plugin);
        let decides = |cluster: &ClusterId| setup.seat(*cluster).is_decided_by(&digest);
        // A reload may have read it already.
        if digest == self.digest || users.iter().all(decides) {
            self.digest = digest;
            return;
        }
        let file = File { bytes, lift_quarantine: false };
        match super::swap(service, &users, &file) {
            // Whoever changes the policy is done soon, and the machine is not always so busy.
            Err(
                Refusal::Busy(_)
                | Refusal::Silent(_)
                | Refusal::System(_)
                | Refusal::Engine(_)
                | Refusal::Compile(Excess::Time),
            ) => self.file.again(),
            Err(error) => {
                let (path, shown) = (self.file.path().display(), short(&digest));
                tracing::warn!(file = %path, digest = %shown, %error, "is not swapped in");
                self.digest = digest;
            }
            Ok(_) => self.digest = digest,
        }
    }
}

/// Reads a plugin, and no more than one may have.
pub(super) fn read(path: &Path) -> io::Result<Vec<u8>> {
    read_at_most(path, EngineLimits::default().module_bytes_max as u64)
}
