//! Maglev.

/// A lookup table.
#[derive(Debug)]
pub struct Table;
