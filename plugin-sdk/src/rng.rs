//! Random numbers from a flow's random bits.

/// `SplitMix64` (Steele, Lea and Flood 2014): small, fast, and good for choices. Nothing secret may
/// rest on it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rng(u64);

impl Rng {
    /// A generator that starts from these bits.
    #[must_use]
    pub const fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// The next 64 bits.
    pub const fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut bits = self.0;
        bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        bits ^ (bits >> 31)
    }

    /// An index below `count`, each equally likely; 0 if `count` is 0.
    ///
    /// Multiplies and shifts instead of dividing (Lemire 2019); the bias of at most
    /// `count` / 2⁶⁴ is left in. The product is put together from halves, because WebAssembly has no
    /// 128-bit one, and of `count` only 32 bits are read, which is what an index has.
    pub const fn below(&mut self, count: usize) -> usize {
        let (bits, count) = (self.bits(), count as u64 & 0xffff_ffff);
        let low = (bits & 0xffff_ffff) * count;
        (((bits >> 32) * count + (low >> 32)) >> 32) as usize
    }

    /// A fraction from 0 up to but not including 1.
    pub const fn fraction(&mut self) -> f64 {
        (self.bits() >> 11) as f64 / (1_u64 << 53) as f64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_sequence_is_that_of_the_published_algorithm() {
        let mut rng = Rng::new(1_234_567);
        assert_eq!(rng.bits(), 6_457_827_717_110_365_317);
        assert_eq!(rng.bits(), 3_203_168_211_198_807_973);
    }

    #[test]
    fn every_index_below_the_count_comes_up_about_as_often() {
        let mut rng = Rng::new(1);
        let mut counts = [0; 5];
        for _ in 0..10_000 {
            counts[rng.below(5)] += 1;
        }
        assert!(counts.iter().all(|count| (1_850..2_150).contains(count)), "{counts:?}");
    }

    #[test]
    fn nothing_is_below_zero_and_no_fraction_reaches_one() {
        assert_eq!(Rng::new(3).below(0), 0);
        let mut rng = Rng::new(3);
        assert!((0..1_000).all(|_| (0.0..1.0).contains(&rng.fraction())));
    }
}
