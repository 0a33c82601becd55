//! One endpoint, as a process of its own, so that it can be killed as endpoints are.
//!
//! Every answer names it: over TCP the path of the request comes back behind its number, over UDP
//! the datagram does. It ends when its standard input does, that is with whoever started it.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::thread::{self, sleep};
use std::time::Duration;

use anyhow::{Context, Result};

/// What is said when both sockets are open.
pub(crate) const READY: &str = "ready";

/// A request is no longer than this.
const REQUEST_BYTES: usize = 1_024;

/// How often it tries to get an address that the kernel has not taken back from who was killed.
const TRIES: u32 = 200;

/// Which endpoint, and where.
#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// What its answers call it.
    number: usize,
    /// Where it takes connections and datagrams.
    address: SocketAddr,
}

pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    let Arguments { number, address } = *arguments;
    let listener = bind(|| TcpListener::bind(address))?;
    let socket = bind(|| UdpSocket::bind(address))?;
    thread::spawn(move || accept(&listener, number));
    thread::spawn(move || echo(&socket, number));
    println!("{READY}");
    std::io::stdin().read_to_end(&mut Vec::new())?;
    Ok(())
}

fn bind<T>(bind: impl Fn() -> std::io::Result<T>) -> Result<T> {
    for _ in 1..TRIES {
        if let Ok(bound) = bind() {
            return Ok(bound);
        }
        sleep(Duration::from_millis(10));
    }
    bind().context("an endpoint cannot bind")
}

fn accept(listener: &TcpListener, number: usize) {
    for stream in listener.incoming().flatten() {
        // What cannot be served is closed; the client sees that.
        let serving = move || drop(serve(stream, number));
        let _ = thread::Builder::new().stack_size(64 << 10).spawn(serving);
    }
}

/// Answers requests until the client has no more, or asks for the end.
fn serve(mut stream: TcpStream, number: usize) -> std::io::Result<()> {
    stream.set_nodelay(true)?;
    let (mut request, mut filled) = ([0; REQUEST_BYTES], 0);
    loop {
        let arrived = stream.read(&mut request[filled..])?;
        filled += arrived;
        let text = String::from_utf8_lossy(&request[..filled]);
        if !text.ends_with("\r\n\r\n") {
            if arrived == 0 {
                return Ok(());
            }
            continue;
        }
        let is_last = text.contains("Connection: close");
        let body = format!("{number}{}", text.split(' ').nth(1).unwrap_or_default());
        let length = body.len();
        let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {length}\r\n\r\n");
        stream.write_all((head + &body).as_bytes())?;
        filled = 0;
        if is_last {
            return Ok(());
        }
    }
}

fn echo(socket: &UdpSocket, number: usize) {
    let mut bytes = [0; 2_048];
    bytes[0] = number as u8;
    loop {
        // An error here is somebody's who has gone away.
        if let Ok((length, client)) = socket.recv_from(&mut bytes[1..]) {
            let _ = socket.send_to(&bytes[..=length], client);
        }
    }
}
