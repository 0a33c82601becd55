//! What the datagrams of a load look like.
//!
//! A segment begins with a head: what kind of exchange it belongs to, and the number of that
//! exchange within its flow, so that what arrives late is told from what is awaited.

/// The bytes of a segment's head.
pub(crate) const HEAD: usize = 16;

/// The bytes of a single datagram of a round trip.
pub(crate) const SINGLE: usize = 64;

/// The bytes of each segment of a train, as a QUIC sender behind an ordinary link has them.
pub(crate) const SEGMENT: usize = 1_400;

/// The bytes of a train: as many segments as one segmented send takes.
pub(crate) const TRAIN: usize = 44 * SEGMENT;

/// The largest datagram or train that can arrive at once.
pub(crate) const LARGEST: usize = 65_536;

/// What a flow asks of the endpoint.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Kind {
    /// A datagram comes back as it is.
    RoundTrip,
    /// A train goes to the endpoint, and a head comes back when all of it has arrived.
    Upload,
    /// A small request goes to the endpoint, and a train comes back.
    Download,
}

impl Kind {
    const ALL: [Self; 3] = [Self::RoundTrip, Self::Upload, Self::Download];

    /// Writes the head of every segment.
    pub(crate) fn stamp(self, number: u64, bytes: &mut [u8]) {
        for segment in bytes.chunks_mut(SEGMENT) {
            segment[0] = self as u8;
            segment[8..HEAD].copy_from_slice(&number.to_le_bytes());
        }
    }

    /// Reads the head of the first segment.
    pub(crate) fn read(bytes: &[u8]) -> Option<(Self, u64)> {
        let head: &[u8; HEAD] = bytes.first_chunk()?;
        let kind = *Self::ALL.get(usize::from(head[0]))?;
        Some((kind, u64::from_le_bytes(*head.last_chunk()?)))
    }
}
