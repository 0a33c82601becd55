//! What policies are made of.
//!
//! Each part is an algorithm with a published rule, pure and on its own: it knows addresses, weights
//! and numbers, and leaves what is done with them to the policy.

mod average;
mod bucket;
mod hash;
mod maglev;
mod rendezvous;
mod smooth;

pub use average::Average;
pub use bucket::TokenBucket;
pub use hash::{hash_address, xxh64};
pub use maglev::{MAGLEV_SIZE, maglev};
pub use rendezvous::Rendezvous;
pub use smooth::SmoothOrder;
