//! Swaps in files that have changed on disk.
//!
//! A thread looks at each watched file twice a second, by its size, its time and its inode. A file
//! that has changed is read once it has stayed the same for a second, so that one which is still
//! being written is left alone; what is refused is not tried again until it changes.

use std::fs;
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering::AcqRel;
use std::thread;
use std::time::Duration;

use pointsman_core::ClusterId;
use pointsman_plugin::EngineLimits;

use super::compile::Excess;
use super::{File, Refusal, digest_of, short};
use crate::plan::PluginId;
use crate::service::Service;
use crate::setup::Setup;

/// Between two looks.
const LOOK: Duration = Duration::from_millis(500);
/// Looks for which a file must have stayed the same.
const LOOKS_STEADY: u32 = 2;

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
            known.as_ref().is_some_and(|it| it.plugin == id && it.file == plugin.file)
        };
        let known = before.iter_mut().find(is_it).and_then(Option::take);
        known.unwrap_or_else(|| {
            let digest = setup.loaded[id.0].module.digest().to_owned();
            Watched::new(id, plugin.file.clone(), digest)
        })
    });
    watched.collect()
}

/// A file, and how it was at the last look.
struct Watched {
    plugin: PluginId,
    file: PathBuf,
    stamp: Option<Stamp>,
    /// Looks since it last changed; `None` once it has been dealt with.
    steady: Option<u32>,
    /// What was read last.
    digest: String,
}

/// What differs when a file has changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Stamp {
    inode: u64,
    size: u64,
    modified: (i64, i64),
}

impl Stamp {
    /// `None` while there is no file, as between a removal and a copy.
    fn of(file: &Path) -> Option<Self> {
        let found = fs::metadata(file).ok()?;
        let modified = (found.mtime(), found.mtime_nsec());
        Some(Self { inode: found.ino(), size: found.size(), modified })
    }
}

impl Watched {
    fn new(plugin: PluginId, file: PathBuf, digest: String) -> Self {
        // It may have changed between its reading and this: the first steady look compares.
        Self { plugin, stamp: Stamp::of(&file), file, steady: Some(0), digest }
    }

    fn look(&mut self, service: &Service) {
        if self.has_settled(Stamp::of(&self.file)) {
            if self.stamp.is_none() {
                let file = self.file.display();
                tracing::warn!(%file, "the watched file is gone; its policy goes on without it");
                return;
            }
            match read(&self.file) {
                Ok(bytes) => self.on_bytes(service, bytes),
                Err(error) => {
                    tracing::warn!(file = %self.file.display(), %error, "cannot be read");
                    self.steady = Some(0);
                }
            }
        }
    }

    /// Whether it has just stayed the same, or been away, for long enough.
    fn has_settled(&mut self, stamp: Option<Stamp>) -> bool {
        if stamp != self.stamp {
            (self.stamp, self.steady) = (stamp, Some(0));
            return false;
        }
        let Some(steady) = &mut self.steady else { return false };
        *steady += 1;
        if *steady < LOOKS_STEADY {
            return false;
        }
        self.steady = None;
        true
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
            ) => self.steady = Some(0),
            Err(error) => {
                let (path, shown) = (self.file.display(), short(&digest));
                tracing::warn!(file = %path, digest = %shown, %error, "is not swapped in");
                self.digest = digest;
            }
            Ok(_) => self.digest = digest,
        }
    }
}

/// Reads a plugin, and no more than one may have: what stands at the path may be anything.
pub(super) fn read(path: &Path) -> io::Result<Vec<u8>> {
    if !fs::metadata(path)?.is_file() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "it is no file"));
    }
    let mut bytes = Vec::new();
    let bytes_max = EngineLimits::default().module_bytes_max as u64;
    fs::File::open(path)?.take(bytes_max + 1).read_to_end(&mut bytes)?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stamp(size: u64) -> Option<Stamp> {
        Some(Stamp { inode: 1, size, modified: (0, 0) })
    }

    fn watched() -> Watched {
        let steady = None;
        let (plugin, file) = (PluginId(0), PathBuf::new());
        Watched { plugin, file, stamp: stamp(1), steady, digest: String::new() }
    }

    #[test]
    fn a_file_is_read_once_it_has_stayed_the_same() {
        let mut watched = watched();
        assert!(!watched.has_settled(stamp(1)), "nothing has changed");
        assert!(!watched.has_settled(stamp(2)));
        assert!(!watched.has_settled(stamp(3)), "it is still being written");
        assert!(!watched.has_settled(stamp(3)));
        assert!(watched.has_settled(stamp(3)));
        assert!(!watched.has_settled(stamp(3)), "it has been read");
    }

    #[test]
    fn a_file_that_is_gone_is_told_once_and_waited_for() {
        let mut watched = watched();
        let told = (0..9).filter(|_| watched.has_settled(None)).count();
        assert_eq!(told, 1);
        assert!(!watched.has_settled(stamp(1)));
        assert!(!watched.has_settled(stamp(1)));
        assert!(watched.has_settled(stamp(1)));
    }
}
