//! Small HTTP servers that say who they are.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::thread;
use std::time::Duration;

/// A server on a loopback port, for as long as the process lives.
#[derive(Debug)]
pub(super) struct Endpoint {
    pub(super) address: SocketAddr,
    /// How long it takes to answer.
    pub(super) work: Duration,
}

impl Endpoint {
    /// Starts one; it answers every request with its address.
    pub(super) fn start(work: Duration) -> io::Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let address = listener.local_addr()?;
        thread::Builder::new().name("endpoint".to_owned()).spawn(move || {
            for stream in listener.incoming().flatten() {
                let serve = move || serve(stream, address, work);
                // A client whose thread cannot be had sees its connection close.
                let _ = thread::Builder::new().spawn(serve);
            }
        })?;
        Ok(Self { address, work })
    }
}

/// Clients that leave early (health checks do) are no error.
fn serve(mut stream: TcpStream, address: SocketAddr, work: Duration) {
    let mut request = [0; 1024];
    if !matches!(stream.read(&mut request), Ok(1..)) {
        return;
    }
    thread::sleep(work);
    let body = format!("{address}\n");
    let _ = write!(
        stream,
        "HTTP/1.1 200 OK\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}",
        body.len()
    );
}
