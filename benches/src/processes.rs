//! Programs that comparisons and soaks start, and what they tell: shared by everything in `bin/`.

use std::fs;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

/// Where `cargo xtask` leaves plugins and peers, whatever cargo's own target folder is.
#[must_use]
pub fn target() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../target")
}

/// Where Pointsman lies that was built as this program was.
///
/// # Errors
/// If this program does not know where it lies itself.
pub fn pointsman() -> Result<PathBuf> {
    Ok(std::env::current_exe()?.with_file_name("pointsman"))
}

/// What starts ours with this configuration.
///
/// # Errors
/// As [`pointsman`].
pub fn run_pointsman(config: &Path) -> Result<Vec<String>> {
    let (binary, plugins) = (pointsman()?, target().join("plugins"));
    let words = [binary.as_path(), Path::new("run"), Path::new("--config"), config];
    let words = words.into_iter().chain([Path::new("--plugins"), &plugins]);
    Ok(words.map(|word| word.display().to_string()).collect())
}

/// Asks the admin socket for something, as in `("POST", "/v1/reload")`, and gives back the answer
/// with its head.
///
/// # Errors
/// If nobody answers there.
pub fn ask(socket: &Path, (method, path): (&str, &str), body: &[u8]) -> Result<String> {
    let mut stream = UnixStream::connect(socket)?;
    let length = body.len();
    write!(stream, "{method} {path} HTTP/1.0\r\nContent-Length: {length}\r\n\r\n")?;
    stream.write_all(body)?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    Ok(answer)
}

/// Memory that is a process' own: resident and not shared.
///
/// # Errors
/// If there is no such process.
pub fn memory_bytes(process: u32) -> Result<u64> {
    let file = format!("/proc/{process}/smaps_rollup");
    let rollup = fs::read_to_string(&file).with_context(|| format!("cannot read {file}"))?;
    let of_lines = |name: &str| -> u64 {
        let lines = rollup.lines().filter(|line| line.starts_with(name));
        lines.filter_map(|line| line.split_whitespace().nth(1)?.parse::<u64>().ok()).sum()
    };
    Ok((of_lines("Private_Clean:") + of_lines("Private_Dirty:")) * 1024)
}

/// The number that stands before `mark`, as in the report of wrk.
#[must_use]
pub fn number_before(text: &str, mark: &str) -> Option<f64> {
    text.split_once(mark)?.0.split_whitespace().last()?.parse().ok()
}

/// All of wrk's socket errors together, and its answers that were not a success.
#[must_use]
pub fn socket_errors(text: &str) -> u64 {
    let bad = |line: &&str| line.contains("Socket errors:") || line.contains("Non-2xx");
    let lines = text.lines().filter(bad).flat_map(|line| line.split([' ', ',']));
    lines.filter_map(|word| word.parse::<u64>().ok()).sum()
}
