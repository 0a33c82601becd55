//! Maglev.
use alloc::boxed::Box;

/// A lookup table.
#[derive(Debug)]
pub struct Table {
    slots: Box<[u32]>,
}
impl Table {
    /// The size used unless another is configured.
    pub const DEFAULT_SIZE: u32 = 65_537;
    /// Builds the table over `(key, weight)` of each candidate, in the candidates' order; `key` is `ip:port`. `size` must be prime and larger than the number of endpoints, else `None`.
    #[must_use]
    pub fn build(endpoints: &[(&str, u32)], size: u32) -> Option<Self> { let _ = (endpoints, size); None }
}
