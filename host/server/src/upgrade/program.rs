//! Which program this process is, so that whatever lies in its place later can be started.

use std::env;
use std::ffi::OsString;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf, absolute};

/// The file that is executed; where it lies may lie another one by now.
const EXECUTED: &str = "/proc/self/exe";

/// A program with its arguments.
#[derive(Debug, Clone)]
pub struct Program {
    /// The path that it was started by. Links in it are followed anew each time, because an operator may
    /// change what they lead to instead of the file.
    pub path: PathBuf,
    /// Its arguments.
    pub arguments: Vec<OsString>,
}

impl Program {
    /// The one that this process is. To be asked before somebody may have put another in its place.
    pub fn current() -> Self {
        let mut arguments = env::args_os();
        let called = PathBuf::from(arguments.next().unwrap_or_default());
        let folders = env::var_os("PATH").unwrap_or_default();
        let executed = fs::metadata(EXECUTED).map(|it| (it.dev(), it.ino())).ok();
        let is_it =
            |path: &PathBuf| fs::metadata(path).map(|it| (it.dev(), it.ino())).ok() == executed;
        let found = candidates(&called, &folders).into_iter().find(is_it);
        let path = found.or_else(|| env::current_exe().ok()).unwrap_or(called);
        Self { path, arguments: arguments.collect() }
    }
}

/// What a command of this name may have started.
fn candidates(called: &Path, folders: &OsString) -> Vec<PathBuf> {
    let is_path = called.components().count() > 1;
    if is_path {
        return absolute(called).into_iter().collect();
    }
    env::split_paths(folders).filter_map(|folder| absolute(folder.join(called)).ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_is_found_by_the_path_it_was_called_by() {
        let folders = OsString::from("/usr/local/bin:/usr/bin");
        let found = candidates(Path::new("pointsman"), &folders);
        assert_eq!(found, ["/usr/local/bin/pointsman", "/usr/bin/pointsman"].map(PathBuf::from));
        let found = candidates(Path::new("/opt/current/pointsman"), &folders);
        assert_eq!(found, [PathBuf::from("/opt/current/pointsman")]);
        let found = candidates(Path::new("./pointsman"), &folders);
        assert!(found.len() == 1 && found[0].is_absolute());
    }

    #[test]
    fn this_process_finds_itself() {
        let program = Program::current();
        let executed = fs::metadata(EXECUTED).expect("it is there");
        assert_eq!(fs::metadata(program.path).expect("it is there").ino(), executed.ino());
    }
}
