//! The bytes of a connection, whatever chunks they came in.

/// A position in a sequence of chunks, some of which may be empty.
pub(super) struct Cursor<'a, I> {
    chunk: &'a [u8],
    later: I,
}

impl<'a, I: Iterator<Item = &'a [u8]>> Cursor<'a, I> {
    pub(super) fn new(chunks: I) -> Self {
        Self { chunk: &[], later: chunks }
    }

    /// The next bytes: `bytes_max` of them, or fewer where a chunk ends, but at least one. None
    /// when all have been read.
    pub(super) fn piece(&mut self, bytes_max: usize) -> Option<&'a [u8]> {
        while self.chunk.is_empty() {
            self.chunk = self.later.next()?;
        }
        let (piece, rest) = self.chunk.split_at(bytes_max.min(self.chunk.len()));
        self.chunk = rest;
        Some(piece)
    }

    pub(super) fn byte(&mut self) -> Option<u8> {
        self.piece(1)?.first().copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_end_where_chunks_do_and_are_never_empty() {
        let chunks: [&[u8]; 5] = [b"", b"abc", b"", b"", b"d"];
        let mut cursor = Cursor::new(chunks.into_iter());
        assert_eq!(cursor.byte(), Some(b'a'));
        assert_eq!(cursor.piece(9), Some(&b"bc"[..]));
        assert_eq!(cursor.piece(9), Some(&b"d"[..]));
        assert_eq!(cursor.piece(9), None);
        assert_eq!(cursor.byte(), None);
    }
}
