//! The control thread's runtime: the only module that knows `tokio-uring`.
//!
//! Sockets, timers and signals of the control thread are tokio's; its files go through the ring of
//! `tokio-uring`, so that a slow disk stalls neither health checks nor the admin interface. Nothing
//! here is on the data path.

use std::fs::File as StdFile;
use std::future::Future;
use std::io;
use std::os::fd::AsFd;
use std::path::Path;
use std::thread;

use tokio::sync::oneshot;
use tokio_uring::fs::File;

/// Read at a time.
const CHUNK_BYTES: usize = 256 * 1024;
/// To the kernel: where the file's own position is.
const AT_POSITION: u64 = u64::MAX;

/// Runs a future on the calling thread, and everything it spawns, until it ends.
pub fn start<F: Future>(future: F) -> F::Output {
    tokio_uring::start(future)
}

/// Runs a future beside the others of this thread.
pub fn spawn(future: impl Future<Output = ()> + 'static) {
    tokio_uring::spawn(future);
}

/// Does what takes long on a thread of its own, which goes on even if nobody waits for it any more.
///
/// # Errors
/// The system refuses the thread, or it has panicked.
pub async fn aside<T: Send + 'static>(
    name: &str,
    work: impl FnOnce() -> T + Send + 'static,
) -> io::Result<T> {
    let (done, is_done) = oneshot::channel();
    let body = move || drop(done.send(work()));
    thread::Builder::new().name(name.to_owned()).spawn(body)?;
    is_done.await.map_err(|_| io::Error::other("it panicked, please report it"))
}

/// Reads a whole file.
///
/// # Errors
/// Whatever the kernel says.
pub async fn read(path: &Path) -> io::Result<Vec<u8>> {
    let file = File::open(path).await?;
    let mut bytes = Vec::new();
    let mut chunk = Vec::with_capacity(CHUNK_BYTES);
    loop {
        let (result, back) = file.read_at(chunk, bytes.len() as u64).await;
        chunk = back;
        let count = result?;
        if count == 0 {
            break;
        }
        bytes.extend_from_slice(&chunk[..count]);
    }
    file.close().await?;
    Ok(bytes)
}

/// A file that is only ever made longer.
pub struct Appender {
    file: File,
}

impl Appender {
    /// Goes on at the end of a file that was opened for that.
    pub fn new(file: StdFile) -> Self {
        Self { file: File::from_std(file) }
    }

    /// Standard output.
    ///
    /// # Errors
    /// It is closed.
    pub fn stdout() -> io::Result<Self> {
        Ok(Self::new(StdFile::from(io::stdout().as_fd().try_clone_to_owned()?)))
    }

    /// Appends all of `bytes`.
    ///
    /// # Errors
    /// Whatever the kernel says, with the bytes that are not written.
    pub async fn append(&self, bytes: Vec<u8>) -> Result<(), (io::Error, Vec<u8>)> {
        let mut rest = bytes;
        while !rest.is_empty() {
            let (result, back) = self.file.write_at(rest, AT_POSITION).submit().await;
            rest = back;
            match result {
                Ok(0) => return Err((io::ErrorKind::WriteZero.into(), rest)),
                Ok(count) => drop(rest.drain(..count)),
                Err(error) => return Err((error, rest)),
            }
        }
        Ok(())
    }

    /// Ends the file; the kernel is done with it afterwards.
    pub async fn close(self) {
        if let Err(error) = self.file.close().await {
            tracing::warn!(%error, "cannot close the access log");
        }
    }
}
