//! Asks a running balancer over its Unix socket, or elsewhere ([`Remote`]).
//!
//! One request per connection, in the oldest HTTP there is: the answer ends where the connection
//! ends.

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, anyhow, bail};

mod remote;
mod trust;

pub use remote::Remote;

/// Longer than the balancer waits for its slowest worker.
pub const TIMEOUT: Duration = Duration::from_secs(5);

/// Gets a path's body.
///
/// # Errors
/// Nobody answers, or not with success.
pub fn get(socket: &Path, path: &str) -> anyhow::Result<String> {
    let (code, body) = request(socket, path)?;
    if code != 200 {
        bail!("{path} answers {code}: {}", body.trim());
    }
    Ok(body)
}

/// Gets a path's status code and body.
///
/// # Errors
/// Nobody answers, or with what is not HTTP.
pub fn request(socket: &Path, path: &str) -> anyhow::Result<(u16, String)> {
    send(socket, "GET", path)
}

/// Does something to a path, and gets the status code and body.
///
/// # Errors
/// Nobody answers, or with what is not HTTP.
pub fn send(socket: &Path, method: &str, path: &str) -> anyhow::Result<(u16, String)> {
    send_body(socket, (method, path), &[], TIMEOUT)
}

/// The same with something to send, and with as much time as that needs.
///
/// # Errors
/// Nobody answers, or with what is not HTTP.
pub fn send_body(
    socket: &Path,
    request: (&str, &str),
    body: &[u8],
    patience: Duration,
) -> anyhow::Result<(u16, String)> {
    let answer = exchange(socket, request, body, patience).map_err(|error| {
        let advice = match error.kind() {
            io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => {
                "; start a balancer, or give its socket with --admin SOCKET"
            }
            io::ErrorKind::PermissionDenied => "; be the user that runs the balancer",
            _ => "",
        };
        anyhow!("nobody answers at {}: {error}{advice}", socket.display())
    })?;
    parse(&answer)
}

/// The status code and the body.
pub type Answer = (u16, String);

fn parse(answer: &str) -> anyhow::Result<Answer> {
    let (head, body) = answer.split_once("\r\n\r\n").context("the answer is not HTTP")?;
    let code = head.split(' ').nth(1).and_then(|code| code.parse().ok());
    Ok((code.context("the answer is not HTTP")?, body.to_owned()))
}

fn exchange(
    socket: &Path,
    (method, path): (&str, &str),
    body: &[u8],
    patience: Duration,
) -> io::Result<String> {
    let mut stream = UnixStream::connect(socket)?;
    stream.set_read_timeout(Some(patience))?;
    stream.set_write_timeout(Some(patience))?;
    let length = body.len();
    write!(stream, "{method} {path} HTTP/1.0\r\nContent-Length: {length}\r\n\r\n")?;
    stream.write_all(body)?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    Ok(answer)
}
