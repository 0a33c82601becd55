//! What two balancers say to each other: frames with descriptors, over a pair of Unix sockets.
//!
//! ```text
//!   kind │ descriptors │ bytes, little endian │ payload …        the descriptors come with the head
//!     1  │      1      │          4           │
//! ```
//!
//! The head, [`Kind::Greeting`] and [`Kind::Refused`] are the same in all versions of what is said, so that
//! two that do not understand each other can still say so.

use std::collections::VecDeque;
use std::io::{self, ErrorKind, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use rustix::cmsg_space;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};
use serde::Serialize;
use serde::de::DeserializeOwned;

/// The version of everything that is said after the greeting.
pub(super) const VERSION: u32 = 1;

/// Descriptors that the kernel passes on with one message.
pub(super) const DESCRIPTORS_MAX: usize = 253;
/// More than any frame has: what claims to be longer is no frame.
const FRAME_BYTES_MAX: usize = 64 * 1024 * 1024;
const HEAD_BYTES: usize = 6;

/// What a frame is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Kind {
    /// The first of all, from the old process: which version it speaks.
    Greeting = 1,
    /// The new process cannot take over; the payload is why, in lines of text.
    Refused = 2,
    /// What there is to be taken over.
    Estate = 3,
    /// Everything that may fail has been done; which of it the new process takes.
    Prepared = 4,
    /// What is known of endpoints at the moment of handing over.
    Endpoints = 5,
    /// The admin interface's sockets.
    Doors = 6,
    /// A worker's sockets of listeners.
    Sockets = 7,
    /// A worker's ports towards endpoints.
    Ports = 8,
    /// A worker's flows of datagrams.
    Flows = 9,
    /// A worker's kept decisions.
    Kept = 10,
    /// All has been handed over.
    Whole = 11,
    /// The new process serves.
    TakenOver = 12,
    /// The service manager knows of the new process.
    Farewell = 13,
    /// The new process runs, but has said nothing yet: its number, and a descriptor of it.
    Started = 14,
}

impl Kind {
    const ALL: [Self; 14] = [
        Self::Greeting,
        Self::Refused,
        Self::Estate,
        Self::Prepared,
        Self::Endpoints,
        Self::Doors,
        Self::Sockets,
        Self::Ports,
        Self::Flows,
        Self::Kept,
        Self::Whole,
        Self::TakenOver,
        Self::Farewell,
        Self::Started,
    ];

    fn of(number: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| *kind as u8 == number)
    }
}

/// Something that was said.
#[derive(Debug)]
pub(super) struct Frame {
    /// What it is.
    pub(super) kind: Kind,
    /// What it says.
    pub(super) payload: Vec<u8>,
    /// What came with it.
    pub(super) descriptors: Vec<OwnedFd>,
}

impl Frame {
    /// Reads the payload of a frame that is told as JSON.
    ///
    /// # Errors
    /// It is something else.
    pub(super) fn read<T: DeserializeOwned>(&self) -> io::Result<T> {
        serde_json::from_slice(&self.payload).map_err(|error| nonsense(&error.to_string()))
    }
}

/// One end of it.
#[derive(Debug)]
pub(super) struct Wire {
    stream: UnixStream,
    /// When whatever is said or awaited must be over.
    until: Instant,
}

impl Wire {
    /// An end at which everything must be over in this time.
    ///
    /// # Errors
    /// It is no socket.
    pub(super) fn new(stream: UnixStream, patience: Duration) -> io::Result<Self> {
        stream.set_nonblocking(false)?;
        Ok(Self { stream, until: Instant::now() + patience })
    }

    /// Whatever follows must be over in this time.
    pub(super) fn be_patient_for(&mut self, patience: Duration) {
        self.until = Instant::now() + patience;
    }

    /// Says something that is told as JSON.
    ///
    /// # Errors
    /// The other end is gone, or does not listen.
    pub(super) fn tell(&self, kind: Kind, it: &impl Serialize) -> io::Result<()> {
        self.send(kind, &serde_json::to_vec(it)?, &[])
    }

    /// Says something; at most [`DESCRIPTORS_MAX`] descriptors go with it.
    ///
    /// # Errors
    /// The other end is gone, or does not listen.
    pub(super) fn send(
        &self,
        kind: Kind,
        payload: &[u8],
        descriptors: &[BorrowedFd<'_>],
    ) -> io::Result<()> {
        let bytes = u32::try_from(payload.len()).map_err(io::Error::other)?;
        let count = u8::try_from(descriptors.len()).map_err(io::Error::other)?;
        let mut frame = Vec::with_capacity(HEAD_BYTES + payload.len());
        frame.extend([kind as u8, count]);
        frame.extend(bytes.to_le_bytes());
        frame.extend(payload);
        let sent = self.send_some(&frame, descriptors)?;
        let mut rest = &frame[sent..];
        while !rest.is_empty() {
            rest = &rest[self.send_some(rest, &[])?..];
        }
        Ok(())
    }

    fn send_some(&self, bytes: &[u8], descriptors: &[BorrowedFd<'_>]) -> io::Result<usize> {
        self.stream.set_write_timeout(Some(self.left()?))?;
        let mut space = [MaybeUninit::uninit(); cmsg_space!(ScmRights(DESCRIPTORS_MAX))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        if !descriptors.is_empty() {
            control.push(SendAncillaryMessage::ScmRights(descriptors));
        }
        again(|| {
            sendmsg(&self.stream, &[IoSlice::new(bytes)], &mut control, SendFlags::NOSIGNAL)
                .map_err(io::Error::from)
        })
    }

    /// Awaits what is said next.
    ///
    /// # Errors
    /// The other end is gone (`UnexpectedEof`), silent (`TimedOut`), or talks nonsense.
    pub(super) fn receive(&self) -> io::Result<Frame> {
        let mut came = VecDeque::new();
        let mut head = [0; HEAD_BYTES];
        self.receive_all(&mut head, &mut came)?;
        let [kind, count, bytes @ ..] = head;
        let bytes = u32::from_le_bytes(bytes) as usize;
        let kind = Kind::of(kind).ok_or_else(|| nonsense("a frame of no known kind"))?;
        if bytes > FRAME_BYTES_MAX {
            return Err(nonsense("a frame that is too long"));
        }
        let mut payload = vec![0; bytes];
        self.receive_all(&mut payload, &mut came)?;
        if came.len() != usize::from(count) {
            // The kernel drops those for which this process has no room.
            return Err(io::Error::other("descriptors got lost: there may be no more of them"));
        }
        Ok(Frame { kind, payload, descriptors: came.into() })
    }

    /// Awaits something of this kind; a refusal, which may come at any time, is an error whose text it is.
    ///
    /// # Errors
    /// As with [`Self::receive`], or something else has come.
    pub(super) fn await_kind(&self, kind: Kind) -> Result<Frame, Unheard> {
        let frame = self.receive()?;
        match frame.kind {
            found if found == kind => Ok(frame),
            Kind::Refused => {
                Err(Unheard::Refused(String::from_utf8_lossy(&frame.payload).into_owned()))
            }
            _ => Err(nonsense("a frame out of order").into()),
        }
    }

    fn receive_all(
        &self,
        mut into: &mut [u8],
        descriptors: &mut VecDeque<OwnedFd>,
    ) -> io::Result<()> {
        while !into.is_empty() {
            let count = self.receive_some(into, descriptors)?;
            if count == 0 {
                return Err(ErrorKind::UnexpectedEof.into());
            }
            into = &mut into[count..];
        }
        Ok(())
    }

    fn receive_some(
        &self,
        into: &mut [u8],
        descriptors: &mut VecDeque<OwnedFd>,
    ) -> io::Result<usize> {
        self.stream.set_read_timeout(Some(self.left()?))?;
        let mut space = [MaybeUninit::uninit(); cmsg_space!(ScmRights(DESCRIPTORS_MAX))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let count = again(|| {
            let into = &mut [IoSliceMut::new(into)];
            let received = recvmsg(&self.stream, into, &mut control, RecvFlags::CMSG_CLOEXEC)?;
            Ok(received.bytes)
        })?;
        for message in control.drain() {
            if let RecvAncillaryMessage::ScmRights(came) = message {
                descriptors.extend(came);
            }
        }
        Ok(count)
    }

    /// How much time is left, and more than none.
    fn left(&self) -> io::Result<Duration> {
        let left = self.until.saturating_duration_since(Instant::now());
        if left.is_zero() { Err(ErrorKind::TimedOut.into()) } else { Ok(left) }
    }
}

impl AsFd for Wire {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }
}

/// Why what was awaited has not come.
#[derive(Debug, thiserror::Error)]
pub(super) enum Unheard {
    /// The other end cannot; these are its words.
    #[error("{0}")]
    Refused(String),
    /// It is gone, silent, or talks nonsense.
    #[error(transparent)]
    Broken(#[from] io::Error),
}

/// Until no signal comes between. A socket whose time is over says that it would block.
fn again<T>(mut call: impl FnMut() -> io::Result<T>) -> io::Result<T> {
    loop {
        match call() {
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                return Err(ErrorKind::TimedOut.into());
            }
            other => return other,
        }
    }
}

/// Something that no balancer says.
pub(super) fn nonsense(what: &str) -> io::Error {
    io::Error::new(ErrorKind::InvalidData, what)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;
    use std::thread;

    fn pair() -> (Wire, Wire) {
        let (one, other) = UnixStream::pair().expect("a pair");
        let wire = |stream| Wire::new(stream, Duration::from_secs(60)).expect("an end");
        (wire(one), wire(other))
    }

    #[test]
    fn what_is_longer_than_a_socket_holds_arrives_whole_with_its_descriptors_in_order() {
        let (one, other) = pair();
        let payload: Vec<u8> = (0..3_000_000_u32).map(|at| at as u8).collect();
        let sockets: Vec<_> = (0..DESCRIPTORS_MAX)
            .map(|_| std::net::UdpSocket::bind("127.0.0.1:0").expect("a socket"))
            .collect();
        let addresses: Vec<_> = sockets.iter().map(|it| it.local_addr().expect("one")).collect();
        let sent = payload.clone();
        let sender = thread::spawn(move || {
            let descriptors: Vec<_> = sockets.iter().map(AsFd::as_fd).collect();
            one.send(Kind::Ports, &sent, &descriptors).expect("it is sent");
            one.send(Kind::Whole, &[], &[]).expect("it is sent");
        });
        let frame = other.receive().expect("a frame");
        assert!(frame.kind == Kind::Ports && frame.payload == payload);
        let came = frame.descriptors.into_iter().map(std::net::UdpSocket::from);
        let came: Vec<_> = came.map(|it| it.local_addr().expect("one")).collect();
        assert_eq!(came, addresses);
        assert_eq!(other.receive().expect("a frame").kind, Kind::Whole);
        sender.join().expect("the sender");
        let gone = other.receive().expect_err("nobody is there");
        assert_eq!(gone.kind(), ErrorKind::UnexpectedEof);
    }

    #[test]
    fn who_says_nothing_is_not_waited_for_for_ever() {
        let (_one, mut other) = pair();
        other.be_patient_for(Duration::from_millis(1));
        assert_eq!(other.receive().expect_err("silence").kind(), ErrorKind::TimedOut);
    }

    #[test]
    fn nonsense_is_refused_and_needs_no_memory() {
        for bytes in [[99, 0, 0, 0, 0, 0], [Kind::Whole as u8, 0, 255, 255, 255, 255]] {
            let (one, other) = pair();
            (&one.stream).write_all(&bytes).expect("it is sent");
            assert_eq!(other.receive().expect_err("nonsense").kind(), ErrorKind::InvalidData);
        }
        let (one, other) = pair();
        (&one.stream).write_all(&[Kind::Whole as u8, 3, 0, 0, 0, 0]).expect("it is sent");
        assert!(other.receive().expect_err("three are missing").to_string().contains("got lost"));
    }

    #[test]
    fn a_refusal_is_heard_whatever_was_awaited() {
        let (one, other) = pair();
        one.send(Kind::Refused, b"no", &[]).expect("it is sent");
        let Err(Unheard::Refused(why)) = other.await_kind(Kind::Prepared) else {
            panic!("it is a refusal");
        };
        assert_eq!(why, "no");
    }
}
