//! The endpoint for datagrams.
//!
//! It runs in the thread of the load rather than beside it: the core that both share then spends
//! nothing on switching between them, and the balancers are what is busy.

use std::collections::HashMap;
use std::io::{IoSlice, IoSliceMut};
use std::net::{SocketAddr, SocketAddrV4, UdpSocket};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};

use anyhow::{Context, Result};
use nix::errno::Errno;
use nix::sys::socket::sockopt::{RcvBuf, UdpGroSegment, UdpGsoSegment};
use nix::sys::socket::{MsgFlags, MultiHeaders, SockaddrIn, recvmmsg, sendmmsg, setsockopt};

use crate::network::Place;
use crate::wire::{HEAD, Kind, LARGEST, SEGMENT, TRAIN};

/// Datagrams or trains that are taken and answered in one system call.
const BATCH: usize = 64;

/// Room for what waits at a socket. The kernel gives what `net.core.rmem_max` allows.
const RECEIVE_BUFFER_BYTES: usize = 4 << 20;

/// An endpoint that sends back datagrams, takes trains and sends trains.
pub(crate) struct Reflector {
    socket: UdpSocket,
    address: SocketAddr,
    buffers: Vec<Vec<u8>>,
    uploads: HashMap<SocketAddrV4, Upload>,
    train: Vec<u8>,
}

/// A train that is arriving.
#[derive(Default)]
struct Upload {
    number: u64,
    bytes: usize,
}

/// What arrived in a buffer, or is to be sent from there.
struct Datagram {
    buffer: usize,
    bytes: usize,
    peer: SocketAddrV4,
}

impl Reflector {
    pub(crate) fn start(place: &Place) -> Result<Self> {
        let socket = place.enter(|| UdpSocket::bind((place.address, 0)))??;
        prepare(&socket)?;
        let address = socket.local_addr()?;
        let buffers = (0..BATCH).map(|_| vec![0; LARGEST]).collect();
        Ok(Self { socket, address, buffers, uploads: HashMap::new(), train: vec![0; TRAIN] })
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// Answers all that has arrived.
    pub(crate) fn serve(&mut self) -> Result<()> {
        loop {
            let arrived = self.receive()?;
            let is_all = arrived.len() < BATCH;
            let mut answers = Vec::with_capacity(arrived.len());
            for datagram in arrived {
                answers.extend(self.answer(datagram)?);
            }
            self.send(&answers)?;
            if is_all {
                return Ok(());
            }
        }
    }

    fn receive(&mut self) -> Result<Vec<Datagram>> {
        let mut headers = MultiHeaders::<SockaddrIn>::preallocate(BATCH, None);
        let mut slices: Vec<_> =
            self.buffers.iter_mut().map(|buffer| [IoSliceMut::new(buffer)]).collect();
        let (socket, flags) = (self.socket.as_raw_fd(), MsgFlags::MSG_DONTWAIT);
        let messages = match recvmmsg(socket, &mut headers, &mut slices, flags, None) {
            Ok(messages) => messages,
            Err(Errno::EAGAIN) => return Ok(Vec::new()),
            Err(error) => return Err(error).context("the endpoint cannot receive"),
        };
        let datagrams = messages.enumerate().filter_map(|(buffer, message)| {
            Some(Datagram { buffer, bytes: message.bytes, peer: message.address?.into() })
        });
        Ok(datagrams.collect())
    }

    /// What is to be sent back from the buffer that this arrived in.
    fn answer(&mut self, arrived: Datagram) -> Result<Option<Datagram>> {
        let Datagram { buffer, bytes, peer } = arrived;
        Ok(match Kind::read(&self.buffers[buffer][..bytes]) {
            Some((Kind::RoundTrip, _)) => Some(arrived),
            Some((Kind::Upload, number)) => self
                .is_uploaded(number, bytes, peer)
                .then_some(Datagram { buffer, bytes: HEAD, peer }),
            Some((Kind::Download, number)) => {
                Kind::Download.stamp(number, &mut self.train);
                self.socket.send_to(&self.train, peer).context("cannot send a train")?;
                None
            }
            None => None,
        })
    }

    /// Counts bytes of a train; tells whether they were its last.
    fn is_uploaded(&mut self, number: u64, bytes: usize, peer: SocketAddrV4) -> bool {
        let upload = self.uploads.entry(peer).or_default();
        if upload.number != number {
            *upload = Upload { number, bytes: 0 };
        }
        upload.bytes += bytes;
        upload.bytes == TRAIN
    }

    fn send(&self, answers: &[Datagram]) -> Result<()> {
        let mut headers = MultiHeaders::preallocate(answers.len(), None);
        let content = |it: &Datagram| [IoSlice::new(&self.buffers[it.buffer][..it.bytes])];
        let slices: Vec<_> = answers.iter().map(content).collect();
        let peers: Vec<_> = answers.iter().map(|it| Some(SockaddrIn::from(it.peer))).collect();
        let (socket, flags) = (self.socket.as_raw_fd(), MsgFlags::empty());
        // A short batch is made up for like any other loss.
        sendmmsg(socket, &mut headers, &slices, &peers, [], flags)
            .map(drop)
            .context("the endpoint cannot send")
    }
}

impl AsFd for Reflector {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// Lets a socket send and receive trains at once: anything longer than a segment goes out as one.
pub(crate) fn prepare(socket: &UdpSocket) -> Result<()> {
    setsockopt(socket, RcvBuf, &RECEIVE_BUFFER_BYTES)?;
    setsockopt(socket, UdpGroSegment, &true)?;
    setsockopt(socket, UdpGsoSegment, &i32::try_from(SEGMENT)?)?;
    Ok(())
}
