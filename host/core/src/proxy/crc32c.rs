//! The checksum of a header: CRC-32C (Castagnoli), as in RFC 4960 appendix B.

/// The polynomial, lowest bit first.
const POLYNOMIAL: u32 = 0x82f6_3b78;

const TABLE: [u32; 256] = table();

const fn table() -> [u32; 256] {
    let mut table = [0; 256];
    let mut byte = 0;
    while byte < 256 {
        let mut rest = byte as u32;
        let mut bit = 0;
        while bit < 8 {
            rest = (rest >> 1) ^ if rest & 1 == 1 { POLYNOMIAL } else { 0 };
            bit += 1;
        }
        table[byte] = rest;
        byte += 1;
    }
    table
}

/// A checksum of bytes that come one after the other.
#[derive(Debug, Clone, Copy)]
pub(super) struct Crc32c(u32);

impl Crc32c {
    pub(super) const NEW: Self = Self(u32::MAX);

    pub(super) fn add(&mut self, byte: u8) {
        self.0 = (self.0 >> 8) ^ TABLE[usize::from(self.0 as u8 ^ byte)];
    }

    pub(super) fn value(self) -> u32 {
        !self.0
    }

    /// The checksum of all of these.
    pub(super) fn of(bytes: &[u8]) -> u32 {
        let mut crc = Self::NEW;
        bytes.iter().for_each(|byte| crc.add(*byte));
        crc.value()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_checksum_is_the_one_of_the_standard() {
        assert_eq!(Crc32c::of(b"123456789"), 0xe306_9283);
        assert_eq!(Crc32c::of(&[0; 32]), 0x8a91_36aa, "RFC 3720 section B.4");
        assert_eq!(Crc32c::of(&[0xff; 32]), 0x62a8_ab43);
    }
}
