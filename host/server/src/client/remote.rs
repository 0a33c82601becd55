//! Asks a balancer elsewhere, by its admin address.
//!
//! A token is sent to whom a trusted certificate names, to whoever shows one of the trusted ones, or
//! in the clear on this machine, and to nobody else.

use std::fs;
use std::io::{Read, Write};
use std::net::{TcpStream, ToSocketAddrs};
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, anyhow, bail, ensure};
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, ServerName};
use tokio_rustls::rustls::{ClientConnection, StreamOwned};

use super::{Answer, parse, trust};

/// A balancer's address, and what it takes to be answered.
#[derive(Debug, Clone, Copy)]
pub struct Remote<'a> {
    /// `https://host:port`, or `http://host:port` on this machine.
    pub url: &'a str,
    /// A file with the token.
    pub token_file: Option<&'a Path>,
    /// A file with the certificates that vouch for the balancer's.
    pub ca_file: Option<&'a Path>,
}

impl Remote<'_> {
    /// Whether it is an address, and not the path of a socket.
    pub fn is_url(text: &str) -> bool {
        text.starts_with("https://") || text.starts_with("http://")
    }

    /// Does something to a path, and gets the status code and body.
    ///
    /// # Errors
    /// Nobody answers, it is not who it should be, or it answers with what is not HTTP.
    pub fn send(
        &self,
        (method, path): (&str, &str),
        body: &[u8],
        patience: Duration,
    ) -> anyhow::Result<Answer> {
        let (is_tls, authority) = match self.url.split_once("://") {
            Some((scheme, rest)) => (scheme == "https", rest.trim_end_matches('/')),
            None => bail!("{} is no address; write https://host:port", self.url),
        };
        let (host, _) = authority
            .rsplit_once(':')
            .with_context(|| format!("{} has no port; write https://host:port", self.url))?;
        let host = host.trim_start_matches('[').trim_end_matches(']');
        let mut head = format!("{method} {path} HTTP/1.0\r\nHost: {authority}\r\n");
        head.push_str(&format!("Content-Length: {}\r\n", body.len()));
        let stream = connect(authority, patience)?;
        if let Some(file) = self.token_file {
            let is_here = stream.peer_addr()?.ip().is_loopback();
            ensure!(is_tls || is_here, "a token is not sent in the clear; write https://");
            let token = fs::read_to_string(file)
                .with_context(|| format!("{} cannot be read", file.display()))?;
            let token = token.trim();
            ensure!(token.bytes().all(|byte| byte.is_ascii_graphic()), "the token cannot be sent");
            head.push_str(&format!("Authorization: Bearer {token}\r\n"));
        }
        head.push_str("\r\n");
        let request = [head.as_bytes(), body].concat();
        let answer = if is_tls {
            exchange(StreamOwned::new(self.client(host)?, stream), &request)
        } else {
            exchange(stream, &request)
        };
        parse(&answer.with_context(|| format!("nobody answers at {}", self.url))?)
    }

    fn client(&self, host: &str) -> anyhow::Result<ClientConnection> {
        let advice = "give the certificates that vouch for it with --ca-file FILE";
        let file = self.ca_file.with_context(|| format!("nobody is trusted; {advice}"))?;
        let bad = |error| anyhow!("{} cannot be used: {error}; {advice}", file.display());
        let named = CertificateDer::pem_file_iter(file).map_err(bad)?;
        let named = named.collect::<Result<Vec<_>, _>>().map_err(bad)?;
        ensure!(!named.is_empty(), "{} holds no certificate; {advice}", file.display());
        let name = ServerName::try_from(host.to_owned())?;
        Ok(ClientConnection::new(trust::in_any_of(named)?, name)?)
    }
}

fn connect(authority: &str, patience: Duration) -> anyhow::Result<TcpStream> {
    let nobody = || format!("nobody answers at {authority}; is it the address of admin.http?");
    let mut addresses = authority.to_socket_addrs().with_context(nobody)?;
    let address = addresses.next().with_context(nobody)?;
    let stream = TcpStream::connect_timeout(&address, patience).with_context(nobody)?;
    stream.set_read_timeout(Some(patience))?;
    stream.set_write_timeout(Some(patience))?;
    Ok(stream)
}

fn exchange(mut stream: impl Read + Write, request: &[u8]) -> std::io::Result<String> {
    stream.write_all(request)?;
    stream.flush()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    Ok(answer)
}
