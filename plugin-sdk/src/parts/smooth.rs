//! Smooth weighted round robin.
//!
//! nginx's construction (`ngx_http_upstream_round_robin.c`): at each pick every endpoint is owed its
//! weight more, the one that is owed most (the first of several) takes the turn, and pays the sum of
//! the weights for it. Weights 5, 1, 1 give `a a b a c a a`: as even as the weights allow, where
//! counting down would give `a a a a a b c`.

use crate::{Endpoint, Endpoints};

/// Whose turn it is.
///
/// Turns belong to addresses, so a new list of endpoints changes nothing for those that stay.
#[derive(Debug, Clone, Default)]
pub struct SmoothOrder {
    /// One per endpoint, in the order of the list.
    turns: Vec<Turn>,
}

#[derive(Debug, Clone)]
struct Turn {
    address: String,
    weight: i64,
    /// Over all endpoints the sum changes only with the list, and none is further from zero than
    /// the weights' sum.
    owed: i64,
}

impl SmoothOrder {
    /// Takes over a new list of endpoints. One that joins starts even.
    pub fn follow(&mut self, endpoints: &Endpoints) {
        let mut begin = 0;
        let turns = endpoints.iter().map(|endpoint| {
            let found = self.position(endpoint, begin);
            begin = found.map_or(begin, |index| index + 1);
            let owed = found.map_or(0, |index| self.turns[index].owed);
            Turn { address: endpoint.address().to_owned(), weight: endpoint.weight().into(), owed }
        });
        self.turns = turns.collect();
    }

    /// Replaces the weights, by index.
    pub fn set_weights(&mut self, weights: &[u32]) {
        for (turn, &weight) in self.turns.iter_mut().zip(weights) {
            turn.weight = weight.into();
        }
    }

    /// The index whose turn it is, among those that `may` take one.
    pub fn next(&mut self, may: impl Fn(usize) -> bool) -> Option<usize> {
        let mut sum = 0;
        let mut next: Option<(usize, &mut Turn)> = None;
        for (index, turn) in self.turns.iter_mut().enumerate().filter(|(index, _)| may(*index)) {
            turn.owed += turn.weight;
            sum += turn.weight;
            if next.as_ref().is_none_or(|(_, other)| turn.owed > other.owed) {
                next = Some((index, turn));
            }
        }
        let (index, turn) = next?;
        turn.owed -= sum;
        Some(index)
    }

    /// Where an endpoint was in the last list. A new list mostly keeps the order of the old one, so
    /// the search begins after what was found last.
    fn position(&self, endpoint: &Endpoint, begin: usize) -> Option<usize> {
        let mut indices = (begin..self.turns.len()).chain(0..begin);
        indices.find(|&index| self.turns[index].address == endpoint.address())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: &str = "10.0.0.1:80";
    const B: &str = "10.0.0.2:80";
    const C: &str = "[2001:db8::3]:80";

    fn order<const N: usize>(list: [(&str, u32); N]) -> SmoothOrder {
        let mut order = SmoothOrder::default();
        order.follow(&Endpoints::from(list));
        order
    }

    fn picks(order: &mut SmoothOrder, count: usize) -> Vec<usize> {
        (0..count).map(|_| order.next(|_| true).unwrap()).collect()
    }

    #[test]
    fn weights_five_one_one_give_the_published_sequence() {
        let picks = picks(&mut order([(A, 5), (B, 1), (C, 1)]), 14);
        assert_eq!(picks, [0, 0, 1, 0, 2, 0, 0, 0, 0, 1, 0, 2, 0, 0]);
    }

    #[test]
    fn turns_follow_the_address_and_not_the_index() {
        let mut order = order([(A, 1), (B, 1), (C, 1)]);
        assert_eq!(picks(&mut order, 1), [0]);
        order.follow(&Endpoints::from([(C, 1), (B, 1), (A, 1)]));
        assert_eq!(picks(&mut order, 2), [0, 1], "A has had its turn");
    }

    #[test]
    fn who_may_not_take_a_turn_loses_nothing() {
        let mut order = order([(A, 5), (B, 1), (C, 1)]);
        let picks: Vec<_> = (0..4).map(|_| order.next(|index| index != 0)).collect();
        assert_eq!(picks, [Some(1), Some(2), Some(1), Some(2)]);
        assert_eq!(order.turns[0].owed, 0);
        assert_eq!(order.next(|_| false), None);
    }

    #[test]
    fn other_weights_take_effect_at_the_next_turn() {
        let mut order = order([(A, 1), (B, 1)]);
        order.set_weights(&[3, 1]);
        assert_eq!(picks(&mut order, 8).iter().filter(|&&pick| pick == 0).count(), 6);
    }

    #[test]
    fn what_is_owed_stays_bounded_under_the_largest_weights() {
        let mut order = order([(A, u32::MAX), (B, u32::MAX), (C, 1)]);
        picks(&mut order, 10_000);
        let owed = order.turns.iter().map(|turn| turn.owed);
        assert_eq!(owed.clone().sum::<i64>(), 0);
        assert!(owed.map(i64::abs).all(|owed| owed <= 2 * i64::from(u32::MAX) + 1));
    }
}
