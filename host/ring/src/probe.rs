//! What this machine offers to a ring, for `pointsman doctor`.
//!
//! A kernel's version says little about what a sandbox or a distribution has done to it, so each
//! ability is tried, not looked up: the credit of a receive over a pair of sockets, end to end.

use std::io::{self, Write};
use std::os::fd::IntoRawFd;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use pointsman_core::boundary::{Accepted, Completion, Link, Op, Pool, PoolSizes, ReceiveEnd};

use crate::ring::Features;
use crate::sys::{self, Clock};
use crate::{DescriptorLimit, Ring, RingConfig, RingError, descriptor_limit};

/// What the kernel can do beyond what a ring needs. Everything works without these, at more cost.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RingFeatures {
    /// Receives stop by themselves when their credit is used up. Otherwise they are paused one
    /// by one, and take in more than their credit meanwhile.
    pub credit: bool,
    /// Several buffers are sent without a message header.
    pub vectorized_send: bool,
    /// Waits end at a time instead of after a duration.
    pub absolute_timeout: bool,
}

impl From<Features> for RingFeatures {
    fn from(features: Features) -> Self {
        Self {
            credit: features.credit,
            vectorized_send: features.vectorized,
            absolute_timeout: features.absolute,
        }
    }
}

/// What was found.
#[derive(Debug)]
pub struct Probe {
    /// The kernel's release, for example `6.18.0`.
    pub kernel: String,
    /// What a ring can do here, or why there is none.
    pub ring: Result<RingFeatures, RingError>,
    /// Whether a receive was seen to stop when its credit was used up.
    pub credit_works: bool,
    /// How many descriptors may be open.
    pub descriptors: io::Result<DescriptorLimit>,
}

/// Tries out what a ring needs, on the calling thread, in a few milliseconds.
#[must_use]
pub fn probe() -> Probe {
    let config = RingConfig {
        links_max: 2,
        listeners_max: 0,
        ports_max: 0,
        buffers: PoolSizes { small: 16, bulk: 1 },
        datagram_buffers: 0,
    };
    let mut ring = Ring::new(&config);
    let credit_works = ring.as_mut().is_ok_and(|ring| test_credit(ring).unwrap_or(false));
    Probe {
        kernel: sys::kernel_release(),
        ring: ring.map(|ring| ring.features()),
        credit_works,
        descriptors: descriptor_limit(),
    }
}

/// Offers more bytes than the credit; true if the subscription stops, and not much later.
fn test_credit(ring: &mut Ring) -> io::Result<bool> {
    let (ours, mut theirs) = UnixStream::pair()?;
    let (link, pool, credit) = (Link::from_index(0), Pool::Small, Pool::Small.buffer_bytes());
    theirs.write_all(&vec![0; 4 * credit as usize])?;
    let socket = Accepted::new(ours.into_raw_fd());
    ring.submit([Op::Adopt { link, socket }, Op::Receive { link, pool, credit }].into_iter());
    let deadline = Clock.now() + Duration::from_secs(1);
    let mut received = 0;
    while Clock.now() < deadline {
        ring.wait(Some(deadline))?;
        let completions: Vec<_> = ring.reap(16).collect();
        for completion in completions {
            match completion {
                Completion::Received { buffer, .. } => {
                    received += buffer.len();
                    ring.submit(std::iter::once(Op::Recycle { buffer }));
                }
                Completion::ReceiveEnded { end, .. } => {
                    return Ok(end == ReceiveEnd::Paused && received < 2 * credit);
                }
                _ => {}
            }
        }
    }
    Ok(false)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_probe_agrees_with_itself() {
        let probe = probe();
        let features = probe.ring.expect("io_uring, which these tests need");
        assert_eq!(probe.credit_works, features.credit);
        assert!(probe.descriptors.expect("limit").hard > 0);
    }
}
