//! Random times, and random clients.

use crate::Rng;

/// How a random number is distributed.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Distribution {
    /// Always the same.
    Fixed(f64),
    /// Each number between the two is equally likely.
    Uniform {
        /// The smallest.
        min: f64,
        /// The largest.
        max: f64,
    },
    /// What comes without a memory: times between independent events.
    Exponential {
        /// The average.
        mean: f64,
    },
    /// A heavy tail: most are small, and a few are very large.
    Pareto {
        /// The smallest.
        min: f64,
        /// How fast the tail falls; there is an average above 1 and a variance above 2.
        shape: f64,
    },
}

impl Distribution {
    /// The next number.
    pub fn draw(&self, rng: &mut Rng) -> f64 {
        // Never 0, whose logarithm and inverse are infinite.
        let u = 1.0 - rng.fraction();
        match *self {
            Self::Fixed(value) => value,
            Self::Uniform { min, max } => max - u * (max - min),
            Self::Exponential { mean } => -mean * u.ln(),
            Self::Pareto { min, shape } => min / u.powf(1.0 / shape),
        }
    }
}

/// Clients by Zipf's law.
#[derive(Debug, Clone)]
pub(super) struct Clients {
    /// The share of each client and all before it.
    shares: Vec<f64>,
}

impl Clients {
    pub(super) fn new(count: usize, exponent: f64) -> Self {
        let mut sum = 0.0;
        let weights = (1..=count.max(1)).map(|rank| (rank as f64).powf(-exponent));
        let sums: Vec<f64> = weights
            .map(|weight| {
                sum += weight;
                sum
            })
            .collect();
        Self { shares: sums.into_iter().map(|part| part / sum).collect() }
    }

    pub(super) fn draw(&self, rng: &mut Rng) -> u32 {
        let u = rng.fraction();
        let client = self.shares.partition_point(|&share| share <= u).min(self.shares.len() - 1);
        u32::try_from(client).unwrap_or(u32::MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mean(distribution: Distribution) -> f64 {
        let mut rng = Rng::new(5);
        (0..100_000).map(|_| distribution.draw(&mut rng)).sum::<f64>() / 100_000.0
    }

    #[test]
    fn averages_are_those_of_the_distributions() {
        assert_eq!(mean(Distribution::Fixed(3.0)), 3.0);
        assert!((mean(Distribution::Uniform { min: 1.0, max: 3.0 }) - 2.0).abs() < 0.02);
        assert!((mean(Distribution::Exponential { mean: 5.0 }) - 5.0).abs() < 0.1);
        let pareto = Distribution::Pareto { min: 2.0, shape: 3.0 };
        assert!((mean(pareto) - 3.0).abs() < 0.05, "shape / (shape - 1) times the smallest");
    }

    #[test]
    fn the_second_client_is_half_as_busy_as_the_first() {
        let (clients, mut rng) = (Clients::new(100, 1.0), Rng::new(5));
        let mut counts = [0_u32; 100];
        (0..100_000).for_each(|_| counts[clients.draw(&mut rng) as usize] += 1);
        assert!((f64::from(counts[0]) / f64::from(counts[1]) - 2.0).abs() < 0.1);
        assert!(counts.iter().all(|&count| count > 0));
    }
}
