//! What tests do to the bytes of strangers.

/// xorshift64 (Marsaglia, 2003).
pub(crate) struct Random(u64);

impl Random {
    pub(crate) const fn new(seed: u64) -> Self {
        Self(seed)
    }

    pub(crate) fn below(&mut self, bound: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 % bound as u64) as usize
    }

    pub(crate) fn byte(&mut self) -> u8 {
        self.below(256) as u8
    }
}

/// Shows what becomes of a sound message when it is cut off and a few of its bytes are replaced.
pub(crate) fn spoil(sample: &[u8], mut look: impl FnMut(&[u8])) {
    let mut random = Random::new(0x9e37_79b9_7f4a_7c15);
    for _ in 0..5_000 {
        let mut bytes = sample.to_vec();
        for _ in 0..random.below(4) {
            let place = random.below(bytes.len());
            bytes[place] = random.byte();
        }
        let length = random.below(2 * bytes.len());
        bytes.truncate(length.max(1));
        look(&bytes);
    }
}
