//! Files that change while they are watched: says when one has changed and is whole again.
//!
//! A file is known by its size, its time and its inode. Whoever watches looks at it every [`LOOK`]; one
//! that has changed is read only once it has stayed the same for a second, so that one which is still
//! being written is left alone.

use std::fs;
use std::io::{self, Read};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::OFlags;

/// Between two looks.
pub const LOOK: Duration = Duration::from_millis(500);
/// Looks for which a file must have stayed the same.
const LOOKS_STEADY: u32 = 2;

/// A file, and how it was at the last look.
#[derive(Debug)]
pub struct Settling {
    path: PathBuf,
    stamp: Option<Stamp>,
    /// Looks since it last changed; `None` once it has been dealt with.
    steady: Option<u32>,
}

/// What has become of a file that has changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Settled {
    /// It can be read.
    There,
    /// There is none any more.
    Gone,
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

impl Settling {
    /// A file that was read a moment ago. It may have changed between that and this, so that it
    /// settles once in any case.
    pub fn new(path: PathBuf) -> Self {
        Self { stamp: Stamp::of(&path), path, steady: Some(0) }
    }

    /// Looks at it; tells if it has just stayed the same, or been away, for long enough.
    pub fn look(&mut self) -> Option<Settled> {
        let stamp = Stamp::of(&self.path);
        let has_settled = self.has_settled(stamp);
        has_settled.then_some(if stamp.is_some() { Settled::There } else { Settled::Gone })
    }

    /// Has it settle once more: it could not be dealt with.
    pub fn again(&mut self) {
        self.steady = Some(0);
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

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
}

/// Reads a file, and one byte more than it may have at the most: what stands at a path may be anything.
///
/// # Errors
/// It cannot be read, or is no file.
pub fn read_at_most(path: &Path, bytes_max: u64) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    open(path)?.take(bytes_max + 1).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// Opens a file to read it, and nothing else: whoever opened a pipe would wait until somebody writes
/// there.
fn open(path: &Path) -> io::Result<fs::File> {
    let without_waiting = OFlags::NONBLOCK.bits().cast_signed();
    let file = fs::File::options().read(true).custom_flags(without_waiting).open(path)?;
    if !file.metadata()?.is_file() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "it is no file"));
    }
    Ok(file)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stamp(size: u64) -> Option<Stamp> {
        Some(Stamp { inode: 1, size, modified: (0, 0) })
    }

    fn settling() -> Settling {
        Settling { path: PathBuf::new(), stamp: stamp(1), steady: None }
    }

    #[test]
    fn a_file_is_read_once_it_has_stayed_the_same() {
        let mut file = settling();
        assert!(!file.has_settled(stamp(1)), "nothing has changed");
        assert!(!file.has_settled(stamp(2)));
        assert!(!file.has_settled(stamp(3)), "it is still being written");
        assert!(!file.has_settled(stamp(3)));
        assert!(file.has_settled(stamp(3)));
        assert!(!file.has_settled(stamp(3)), "it has been read");
    }

    #[test]
    fn a_file_that_is_gone_is_told_once_and_waited_for() {
        let mut file = settling();
        let told = (0..9).filter(|_| file.has_settled(None)).count();
        assert_eq!(told, 1);
        assert!(!file.has_settled(stamp(1)));
        assert!(!file.has_settled(stamp(1)));
        assert!(file.has_settled(stamp(1)));
    }
}
