//! What two processes say to each other while one takes over from the other.

use std::io::{IoSlice, IoSliceMut, Read, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;

use rustix::cmsg_space;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};

pub const GREETING: u8 = 1;
pub const ESTATE: u8 = 3;
pub const PREPARED: u8 = 4;
pub const SOCKETS: u8 = 7;
pub const WHOLE: u8 = 11;
pub const TAKEN_OVER: u8 = 12;
pub const FAREWELL: u8 = 13;

/// Descriptors that may come with a frame.
const DESCRIPTORS_MAX: usize = 253;
const HEAD_BYTES: usize = 6;

/// One end of it.
pub struct Channel {
    pub stream: UnixStream,
}

/// Something that was said.
pub struct Frame {
    pub kind: u8,
    pub payload: Vec<u8>,
    pub descriptors: Vec<OwnedFd>,
}

impl Channel {
    /// The way to the old process, for whoever was started to take over.
    pub fn on_stdin() -> Self {
        let stream = std::io::stdin().as_fd().try_clone_to_owned().expect("an end");
        Self { stream: stream.into() }
    }

    /// The same end once more.
    pub fn again(&self) -> Self {
        Self { stream: self.stream.try_clone().expect("an end") }
    }

    pub fn hear(&mut self) -> Frame {
        self.try_hear().expect("a frame")
    }

    pub fn say(&mut self, kind: u8, payload: &[u8]) {
        self.pass(&Frame { kind, payload: payload.to_vec(), descriptors: Vec::new() });
    }

    /// Says everything that comes here over there, after somebody has had a look at it.
    pub fn pass_all_to(&mut self, mut other: Self, mut look: impl FnMut(&mut Frame)) {
        while let Some(mut frame) = self.try_hear() {
            look(&mut frame);
            other.pass(&frame);
        }
        let _ = other.stream.shutdown(std::net::Shutdown::Both);
    }

    /// What is said next; `None` where nobody is there any more.
    fn try_hear(&mut self) -> Option<Frame> {
        let mut space = [MaybeUninit::uninit(); cmsg_space!(ScmRights(DESCRIPTORS_MAX))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let mut head = [0; HEAD_BYTES];
        let into = &mut [IoSliceMut::new(&mut head)];
        let came = recvmsg(&self.stream, into, &mut control, RecvFlags::CMSG_CLOEXEC).ok()?.bytes;
        if came == 0 {
            return None;
        }
        let mut descriptors = Vec::new();
        for message in control.drain() {
            if let RecvAncillaryMessage::ScmRights(came) = message {
                descriptors.extend(came);
            }
        }
        self.stream.read_exact(&mut head[came..]).ok()?;
        let [kind, _, length @ ..] = head;
        let mut payload = vec![0; u32::from_le_bytes(length) as usize];
        self.stream.read_exact(&mut payload).ok()?;
        Some(Frame { kind, payload, descriptors })
    }

    /// Says this, if anybody is there.
    fn pass(&mut self, frame: &Frame) {
        let Frame { kind, payload, descriptors } = frame;
        let length = u32::try_from(payload.len()).expect("it is short").to_le_bytes();
        let count = u8::try_from(descriptors.len()).expect("there are few");
        let head = [&[*kind, count], &length[..]].concat();
        let mut space = [MaybeUninit::uninit(); cmsg_space!(ScmRights(DESCRIPTORS_MAX))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        let descriptors: Vec<_> = descriptors.iter().map(AsFd::as_fd).collect();
        if !descriptors.is_empty() {
            control.push(SendAncillaryMessage::ScmRights(&descriptors));
        }
        let head = [IoSlice::new(&head)];
        if sendmsg(&self.stream, &head, &mut control, SendFlags::NOSIGNAL).is_ok() {
            // Whoever is gone by now hears nothing more.
            let _ = self.stream.write_all(payload);
        }
    }
}
