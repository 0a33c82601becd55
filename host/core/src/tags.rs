//! What the hash tables have in common: tags of eight bits, sixteen of which are compared at once.
//!
//! The layout is that of Folly's F14 (Bronson and Shi 2019): a group has fewer places than sixteen,
//! and keeps beside their tags how many entries that wanted it lie in a later group.

/// The tag of a place without an entry.
pub(crate) const EMPTY: u8 = 0;

/// The places whose tag is `tag`, lowest first, among the first `PLACES`. A byte that agrees becomes
/// zero, and only a zero byte keeps its high bit clear in the sum.
#[inline]
pub(crate) fn matches<const PLACES: usize>(tags: [u8; 16], tag: u8) -> impl Iterator<Item = usize> {
    const LOW_BITS: u128 = u128::from_le_bytes([0x7f; 16]);
    let differing = u128::from_le_bytes(tags) ^ u128::from_le_bytes([tag; 16]);
    let sum = (differing & LOW_BITS) + LOW_BITS;
    let mut agreeing = !(sum | differing | LOW_BITS) & (u128::MAX >> (8 * (16 - PLACES)));
    core::iter::from_fn(move || {
        let place = (agreeing != 0).then(|| agreeing.trailing_zeros() as usize / 8);
        agreeing &= agreeing.wrapping_sub(1);
        place
    })
}

/// Eight bits of the hash that the group does not depend on, never `EMPTY`.
#[inline]
pub(crate) fn tag_of(hash: u64) -> u8 {
    (hash as u8).max(EMPTY + 1)
}

/// The group an entry belongs to first: the upper half of the hash, scaled.
#[inline]
pub(crate) fn home(hash: u64, groups: usize) -> usize {
    (((hash >> 32) * groups as u64) >> 32) as usize
}
