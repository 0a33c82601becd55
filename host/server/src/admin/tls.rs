//! TLS for the admin address.
//!
//! Whoever connects takes a descriptor that traffic could need, before anybody knows who it is. So
//! there are few such connections at a time, and none lasts.

use std::fmt;
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::time::{Sleep, sleep, timeout};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::server::TlsStream;

use super::token::refuse_if_others_read;
use crate::runtime;

/// Connections at a time.
const CONNECTIONS_MAX: usize = 64;
/// How long one may last. A swap takes less, and who wants more connects again.
const LIFE_MAX: Duration = Duration::from_secs(300);
/// How long a handshake may take.
const HANDSHAKE_MAX: Duration = Duration::from_secs(10);
/// Between two tries where the system has no descriptor.
const REST: Duration = Duration::from_millis(100);

/// A certificate and its key.
#[derive(Clone)]
pub struct TlsServer(Arc<ServerConfig>);

impl fmt::Debug for TlsServer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("TlsServer(secret)")
    }
}

/// What is wrong with the files of a certificate.
#[derive(Debug, PartialEq, Eq)]
pub enum TlsProblem {
    /// With the chain of certificates.
    Cert(String),
    /// With the key.
    Key(String),
}

impl TlsServer {
    /// Reads a chain of certificates and the key of the first, both in PEM.
    ///
    /// # Errors
    /// What is wrong with one of the files.
    pub fn read(cert: &Path, key: &Path) -> Result<Self, TlsProblem> {
        let bad = |error: &dyn fmt::Display| format!("cannot be used: {error}; write PEM files");
        let chain = CertificateDer::pem_file_iter(cert)
            .and_then(Iterator::collect::<Result<Vec<_>, _>>)
            .map_err(|error| TlsProblem::Cert(bad(&error)))?;
        if chain.is_empty() {
            return Err(TlsProblem::Cert("holds no certificate; write one in PEM".to_owned()));
        }
        refuse_if_others_read(key).map_err(TlsProblem::Key)?;
        let key =
            PrivateKeyDer::from_pem_file(key).map_err(|error| TlsProblem::Key(bad(&error)))?;
        let config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()
            .and_then(|builder| builder.with_no_client_auth().with_single_cert(chain, key));
        let mut config = config.map_err(|error| TlsProblem::Key(bad(&error)))?;
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(Self(Arc::new(config)))
    }
}

/// An address at which hands are shaken first.
pub(super) struct TlsListener {
    shaken: mpsc::Receiver<(Guest, SocketAddr)>,
    address: SocketAddr,
}

impl TlsListener {
    pub(super) fn start(listener: TcpListener, tls: &TlsServer) -> io::Result<Self> {
        let address = listener.local_addr()?;
        let (sender, shaken) = mpsc::channel(CONNECTIONS_MAX);
        let acceptor = TlsAcceptor::from(Arc::clone(&tls.0));
        let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
        runtime::spawn(async move {
            while let Ok(place) = Arc::clone(&places).acquire_owned().await {
                let accepted = tokio::select! {
                    accepted = listener.accept() => accepted,
                    // Nobody is let in any more.
                    () = sender.closed() => break,
                };
                let Ok((stream, peer)) = accepted else {
                    sleep(REST).await;
                    continue;
                };
                runtime::spawn(welcome(acceptor.clone(), (stream, peer), place, sender.clone()));
            }
        });
        Ok(Self { shaken, address })
    }
}

/// Shakes hands with somebody; who does not get that far is forgotten.
async fn welcome(
    acceptor: TlsAcceptor,
    (stream, peer): (TcpStream, SocketAddr),
    place: OwnedSemaphorePermit,
    shaken: mpsc::Sender<(Guest, SocketAddr)>,
) {
    if let Ok(Ok(stream)) = timeout(HANDSHAKE_MAX, acceptor.accept(stream)).await {
        let guest = Guest { stream, _place: place, end: Box::pin(sleep(LIFE_MAX)) };
        let _ = shaken.send((guest, peer)).await;
    }
}

impl axum::serve::Listener for TlsListener {
    type Io = Guest;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Guest, SocketAddr) {
        match self.shaken.recv().await {
            Some(next) => next,
            None => std::future::pending().await,
        }
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        Ok(self.address)
    }
}

/// A connection that has a place, for some time.
pub(super) struct Guest {
    stream: TlsStream<TcpStream>,
    _place: OwnedSemaphorePermit,
    end: Pin<Box<Sleep>>,
}

impl AsyncRead for Guest {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.end.as_mut().poll(context).is_ready() {
            return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
        }
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl AsyncWrite for Guest {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        if self.end.as_mut().poll(context).is_ready() {
            return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
        }
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}
