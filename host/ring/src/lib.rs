//! Performs: `io_uring` and sockets for the Pointsman load balancer.
//!
//! The balancer decides and this crate acts: it turns [`Op`]s into kernel requests and kernel
//! events into [`Completion`]s, and knows nothing of clusters, policies or flows. A worker's turn
//! is three calls on one [`Ring`], of which only the middle one waits, and enters the kernel for
//! streams; datagrams are sent on the spot:
//!
//! ```text
//!   ops ──▶ submit ──▶ wait ──▶ reap ──▶ completions
//!           (fill      (one     (drain
//!            the SQ)    enter)   the CQ)
//! ```
//!
//! Why a crate of its own: everything that can corrupt memory is here, in three files. The rule
//! that keeps it safe is one sentence: *no buffer and no socket is released while the kernel may
//! still use it.* Buffers live in mappings that outlive the ring ([`buffers`]); a link's socket is
//! closed only when nothing of it is in flight ([`socket`]); and dropping a ring cancels
//! everything, waits, and leaks the mappings on purpose should the kernel not answer ([`ring`]).
//!
//! [`Op`]: pointsman_core::boundary::Op
//! [`Completion`]: pointsman_core::boundary::Completion
//! [`buffers`]: mod@buffers
//! [`socket`]: mod@socket
//! [`ring`]: mod@ring
#![deny(unsafe_code)]
#![allow(rustdoc::private_intra_doc_links)]

mod buffers;
mod datagram;
mod error;
mod forward;
mod hold;
mod listener;
mod message;
mod perform;
mod probe;
mod reap;
mod ring;
mod socket;
mod stats;
mod sys;
mod token;
mod wake;

pub use error::RingError;
pub use hold::GivenListener;
pub use perform::{Ring, RingConfig};
pub use probe::{Probe, RingFeatures, probe};
pub use reap::Reap;
pub use stats::{BufferPool, BufferStats, RingStats};
pub use sys::{
    Clock, DescriptorLimit, bind_tcp, bind_udp, descriptor_limit, has_source_for,
    may_be_transparent, prefer_large_pages, prepare_tcp, prepare_udp, raise_descriptor_limit,
    take_inherited,
};
pub use wake::Waker;
