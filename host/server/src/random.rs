//! Random bits from the kernel.

use std::io;

use rustix::rand::{GetRandomFlags, getrandom};

/// 64 random bits, fit for a secret.
///
/// # Errors
/// The kernel refuses, which a sandbox may cause.
pub fn secret() -> io::Result<u64> {
    let mut bytes = [0; 8];
    // The kernel never gives fewer than asked for if it is asked for at most 256 bytes.
    getrandom(&mut bytes, GetRandomFlags::empty())?;
    Ok(u64::from_ne_bytes(bytes))
}

/// A number from 0 to 1 without 1; 0.5 where the kernel has no randomness to give.
pub fn fraction() -> f64 {
    const STEPS: u64 = 1 << 32;
    secret().map_or(0.5, |bits| (bits % STEPS) as f64 / STEPS as f64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_differ() {
        assert_ne!(secret().expect("random bits"), secret().expect("random bits"));
    }

    #[test]
    fn a_fraction_is_below_one() {
        assert!((0..1000).all(|_| (0.0..1.0).contains(&fraction())));
    }
}
