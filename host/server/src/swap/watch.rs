//! Swaps in files that have changed on disk.
//!
//! A thread looks at each watched file twice a second. What is refused is not tried again until it
//! changes.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread;

use pointsman_plugin::EngineLimits;

use super::compile::Excess;
use super::{File, Refusal, digest_of, short};
use crate::plan::PluginId;
use crate::service::Service;
use crate::settling::{LOOK, Settled, Settling, read_at_most};

/// Starts watching, if there is something to watch.
///
/// # Errors
/// The system refuses the thread.
pub fn start(service: &Arc<Service>) -> io::Result<()> {
    let plugins = service.plan().plugins.iter().enumerate();
    let watched = plugins.filter(|(_, plugin)| plugin.watch);
    let mut watched: Vec<_> = watched
        .map(|(place, plugin)| {
            let id = PluginId(place);
            let digest = service.plugins().first_module(id).digest().to_owned();
            Watched::new(id, plugin.file.clone(), digest)
        })
        .collect();
    if watched.is_empty() {
        return Ok(());
    }
    let service = Arc::clone(service);
    let body = move || loop {
        thread::sleep(LOOK);
        watched.iter_mut().for_each(|watched| watched.look(&service));
    };
    thread::Builder::new().name("policy-watch".into()).spawn(body).map(drop)
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
        if digest == self.digest {
            return;
        }
        let file = File { bytes, lift_quarantine: false };
        match super::swap(service, &service.clusters_of(self.plugin), &file) {
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
fn read(path: &Path) -> io::Result<Vec<u8>> {
    read_at_most(path, EngineLimits::default().module_bytes_max as u64)
}
