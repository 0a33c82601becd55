//! Decides.
#![no_std]
#![forbid(unsafe_code)]
extern crate alloc;

pub mod boundary;
pub mod policy;
mod snapshot;
mod time;

pub use snapshot::*;
pub use time::Instant;
