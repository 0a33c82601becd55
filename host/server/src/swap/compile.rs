//! Compiling what somebody sent, first where it can do no harm.
//!
//! A file can be made so that compiling it takes hours and all memory. So a child process compiles
//! it first, under limits that the kernel keeps, and only what has passed there is compiled in this
//! process, on a thread that gives way to all others.

use std::fmt;
use std::fs;
use std::io::{self, Read, Write};
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, Command, ExitCode, ExitStatus, Stdio};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use pointsman_plugin::{Engine, EngineLimits, LoadError, Module, Profile};
use rustix::param::page_size;
use rustix::process::{Resource, Rlimit, Signal, nice, setrlimit};

use super::Refusal;
use crate::compiler::{Compiler, NICE};

/// The hidden subcommand.
pub const SUBCOMMAND: &str = "compile-plugin";
/// Its option for plugins of the profile of this name.
const COMPAT: &str = "--compat";
/// How much CPU compiling may take: a policy takes well under a second, a runtime of another
/// language some.
const CPU_MAX: Duration = Duration::from_secs(10);
/// How much memory it may take beyond what the program has anyway.
const MEMORY_MIB_MAX: u64 = 1024;
/// How long it may take where others want the CPU too.
const PATIENCE: Duration = Duration::from_secs(90);
/// Between two looks at the child.
const LOOK: Duration = Duration::from_millis(2);
/// The child has refused the file, and its output says why.
const REFUSED: u8 = 2;

/// What compiling took too much of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Excess {
    /// CPU.
    Cpu,
    /// Memory.
    Memory,
    /// Time on the wall.
    Time,
    /// It ended by this signal.
    Signal(i32),
    /// It ended in some other way.
    Unclear,
}

impl fmt::Display for Excess {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Cpu => write!(f, "takes more than {} s of CPU", CPU_MAX.as_secs()),
            Self::Memory => write!(f, "takes more than {MEMORY_MIB_MAX} MiB"),
            Self::Time => write!(f, "takes more than {} s", PATIENCE.as_secs()),
            Self::Signal(signal) => write!(f, "ends by signal {signal}"),
            Self::Unclear => write!(f, "fails without a word"),
        }
    }
}

/// Compiles it in a child process, to see that this can be done.
pub(super) fn in_child(profile: Profile, bytes: &[u8]) -> Result<(), Refusal> {
    let mut child = Command::new("/proc/self/exe")
        .arg(SUBCOMMAND)
        .args((profile == Profile::Compat).then_some(COMPAT))
        .env_clear()
        // One thread is what the limits are made for; each more would reserve memory of its own.
        .envs([("RAYON_NUM_THREADS", "1"), ("MALLOC_ARENA_MAX", "1")])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()?;
    let stdin = child.stdin.take();
    let status = thread::scope(|scope| {
        // A child that does not read what a pipe cannot hold must not hold its parent up. If it has
        // ended, its status says why.
        scope.spawn(|| stdin.map(|mut stdin| stdin.write_all(bytes)));
        wait(&mut child)
    })?;
    let Some(status) = status else { return Err(Refusal::Compile(Excess::Time)) };
    if status.success() {
        return Ok(());
    }
    let said = |pipe: Option<&mut dyn Read>| {
        let mut text = Vec::new();
        // A child that has ended says no more than a pipe holds.
        let _ = pipe.map(|pipe| pipe.read_to_end(&mut text));
        String::from_utf8_lossy(&text).trim().to_owned()
    };
    let refusal = said(child.stdout.as_mut().map(|pipe| pipe as &mut dyn Read));
    let cry = said(child.stderr.as_mut().map(|pipe| pipe as &mut dyn Read));
    Err(judge(status, refusal, &cry))
}

/// Waits for the end of it; where it takes too long it is ended, and that is `None`.
fn wait(child: &mut Child) -> io::Result<Option<ExitStatus>> {
    let give_up = Instant::now() + PATIENCE;
    while Instant::now() < give_up {
        if let Some(status) = child.try_wait()? {
            return Ok(Some(status));
        }
        thread::sleep(LOOK);
    }
    child.kill()?;
    child.wait()?;
    Ok(None)
}

/// What an end means. A program that gets no memory aborts, and says so.
fn judge(status: ExitStatus, refusal: String, cry: &str) -> Refusal {
    if status.code() == Some(REFUSED.into()) && !refusal.is_empty() {
        return Refusal::Refused(refusal);
    }
    let is_memory = cry.contains("memory allocation") || cry.contains("annot allocate memory");
    Refusal::Compile(match status.signal() {
        Some(signal) if signal == Signal::XCPU.as_raw() => Excess::Cpu,
        Some(signal) if signal == Signal::KILL.as_raw() => Excess::Cpu,
        _ if is_memory => Excess::Memory,
        Some(signal) => Excess::Signal(signal),
        None => Excess::Unclear,
    })
}

/// Compiles it in this process.
pub(super) fn here(
    compiler: &mut Compiler,
    engine: &Engine,
    bytes: &[u8],
) -> Result<Module, Refusal> {
    let compiled = compiler.compile(engine, bytes)?;
    Ok(compiled.ok_or(Refusal::Compile(Excess::Unclear))??)
}

/// The child: limits itself, compiles what it reads, and says what is wrong with it.
pub fn main(profile: Profile) -> ExitCode {
    match compile_limited(profile) {
        Ok(Ok(())) => ExitCode::SUCCESS,
        Ok(Err(refusal)) => {
            println!("{refusal}");
            ExitCode::from(REFUSED)
        }
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

fn compile_limited(profile: Profile) -> anyhow::Result<Result<(), LoadError>> {
    let limits = EngineLimits { instances_max: 1, ..EngineLimits::default() };
    // The engine reserves address space that is no memory, so it comes before the limit.
    let engine = Engine::new(limits, Arc::new(drop))?.of_profile(profile)?;
    limit(Resource::Core, 0)?;
    limit(Resource::Cpu, CPU_MAX.as_secs())?;
    limit(Resource::As, address_space_bytes()? + MEMORY_MIB_MAX * 1024 * 1024)?;
    nice(NICE)?;
    let mut bytes = Vec::new();
    io::stdin().take(limits.module_bytes_max as u64 + 1).read_to_end(&mut bytes)?;
    Ok(engine.load(&bytes).map(drop))
}

fn limit(resource: Resource, most: u64) -> io::Result<()> {
    let limit = Rlimit { current: Some(most), maximum: Some(most + 1) };
    Ok(setrlimit(resource, limit)?)
}

/// What this process has reserved so far.
fn address_space_bytes() -> anyhow::Result<u64> {
    let sizes = fs::read_to_string("/proc/self/statm")?;
    let pages: u64 = sizes.split(' ').next().unwrap_or_default().parse()?;
    Ok(pages * page_size() as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn judged(raw: i32, refusal: &str, cry: &str) -> String {
        judge(ExitStatus::from_raw(raw), refusal.to_owned(), cry).to_string()
    }

    #[test]
    fn each_end_of_the_child_is_told_for_what_it_is() {
        let end = "the file is refused: compiling it";
        let cases = [
            (Signal::XCPU.as_raw(), "", "takes more than 10 s of CPU"),
            (Signal::ABORT.as_raw(), "memory allocation of 7 bytes failed", "takes more than 1024"),
            (Signal::SEGV.as_raw(), "", "ends by signal 11"),
            (1 << 8, "", "fails without a word"),
        ];
        for (raw, cry, expected) in cases {
            let told = judged(raw, "", cry);
            assert!(told.starts_with(&format!("{end} {expected}")), "{told}");
        }
        assert_eq!(judged(2 << 8, "it is empty", ""), "the file is refused: it is empty");
    }
}
