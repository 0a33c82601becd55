//! Starts the new process for the old one, and is its parent until that lets go of it.
//!
//! A service manager waits only for its own children to end, and sees only of those how. A child of the
//! old process would be neither drained by a stop of the service nor started anew when it fails. With the
//! launcher between them it falls to the manager as soon as the launcher is ended, while the old process
//! still drains: what daemons fork twice for.

use std::ffi::OsString;
use std::io;
use std::os::fd::AsFd;
use std::path::Path;
use std::process::{Child, Command, ExitCode, Stdio};
use std::time::Duration;

use rustix::process::{Pid, PidfdFlags, pidfd_open};

use super::program::Program;
use super::wire::{Kind, Wire};

/// The command of this program that is the launcher.
pub const SUBCOMMAND: &str = "launch-successor";
/// What tells a process that its standard input leads to the one that it is to take over from.
pub(super) const VARIABLE: &str = "POINTSMAN_TAKE_OVER";
/// How long the old process may take to hear something; there is always room for it.
const PATIENCE: Duration = Duration::from_secs(60);

/// What starts a program. Its standard input must lead to the old process.
pub(super) fn command(program: &Program) -> Command {
    // The program that runs, whatever lies in its place by now.
    let mut command = Command::new("/proc/self/exe");
    command.args([SUBCOMMAND, "--"]).arg(&program.path).args(&program.arguments);
    command
}

/// Starts a program, and tells the old process of its beginning and its end.
pub fn main(command: &[OsString]) -> ExitCode {
    let outcome = match command {
        [program, arguments @ ..] => launch(Path::new(program), arguments),
        [] => Err(io::Error::other("no program is named")),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}; this is for pointsman itself to call");
            ExitCode::FAILURE
        }
    }
}

fn launch(program: &Path, arguments: &[OsString]) -> io::Result<()> {
    let stdin = || io::stdin().as_fd().try_clone_to_owned();
    let mut wire = Wire::new(stdin()?.into(), PATIENCE)?;
    let mut command = Command::new(program);
    command.args(arguments).env(VARIABLE, "1").stdin(Stdio::from(stdin()?));
    let mut child = match command.spawn() {
        Ok(child) => child,
        Err(error) => {
            let program = program.display();
            let why = format!(
                "cannot start {program}: {error}; put a program there that can be executed"
            );
            return wire.send(Kind::Refused, why.as_bytes(), &[]);
        }
    };
    if let Err(error) = tell_of(&child, &wire) {
        child.kill()?;
        child.wait()?;
        let why = format!("cannot tell which process is the new one: {error}; try again");
        return wire.send(Kind::Refused, why.as_bytes(), &[]);
    }
    let status = child.wait()?;
    let why =
        format!("the new process has ended ({status}) before it could take over; see what it logs");
    wire.be_patient_for(PATIENCE);
    wire.send(Kind::Refused, why.as_bytes(), &[])
}

fn tell_of(child: &Child, wire: &Wire) -> io::Result<()> {
    let handle = pidfd_open(Pid::from_child(child), PidfdFlags::empty())?;
    wire.send(Kind::Started, &serde_json::to_vec(&child.id())?, &[handle.as_fd()])
}
