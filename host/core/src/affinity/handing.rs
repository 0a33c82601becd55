//! Kept decisions go over to another process, or come from one.
//!
//! Who hands them over keeps them too: they may be wanted again, and end by themselves.

use core::net::SocketAddr;
use core::time::Duration;

use super::{Affinity, AffinityKey, Kept, KeptVerdict, millis};
use crate::handover::{HandedDecision, HandedKey, HandedVerdict};
use crate::listing::EntryKind;
use crate::snapshot::{ClusterId, EndpointId, PrefixLengths};
use crate::time::Instant;

/// Addresses as they are.
const WHOLE: PrefixLengths = PrefixLengths { v4: 32, v6: 128 };
/// A decision is copied; for a flow, which a step is meant for, there is more to be done.
const PLACES_PER_STEP: usize = 8;
/// No kept decision lives longer.
const LONGEST: Duration = Duration::from_millis(u32::MAX as u64);

impl Affinity {
    /// Tells of what is kept in some places, from `place` on, and worth something whoever decides next;
    /// `address_of` tells where an endpoint is, if it is still configured. There is nothing left if any of
    /// `steps` are.
    pub(crate) fn hand_over(
        &self,
        now: Instant,
        (place, steps): (&mut usize, &mut u32),
        address_of: impl Fn(ClusterId, EndpointId) -> Option<SocketAddr>,
    ) -> impl Iterator<Item = HandedDecision> {
        let end = self.table.places().min(*place + PLACES_PER_STEP * *steps as usize);
        let places = *place..end;
        *steps -= places.len().div_ceil(PLACES_PER_STEP) as u32;
        *place = end;
        places.filter_map(move |place| self.describe(now, place, &address_of))
    }

    fn describe(
        &self,
        now: Instant,
        place: usize,
        address_of: impl Fn(ClusterId, EndpointId) -> Option<SocketAddr>,
    ) -> Option<HandedDecision> {
        let (key, kept, expires) = self.table.at(now, place)?;
        let cluster = ClusterId(key.cluster);
        let floor = self.floors.get(cluster.index());
        if floor.is_some_and(|it| kept.policy_generation < it.flushed.max(it.stale)) {
            return None;
        }
        let EntryKind::Kept(shown) = self.entry(now, place)?.kind else { return None };
        let of_client = shown.client.map(HandedKey::Client);
        let verdict = match kept.verdict {
            KeptVerdict::Forward(id) => HandedVerdict::Forward(address_of(cluster, id)?),
            KeptVerdict::Reset => HandedVerdict::Reset,
            KeptVerdict::Drop => HandedVerdict::Drop,
        };
        let sliding = Duration::from_millis(kept.sliding_ttl_ms.into());
        Some(HandedDecision {
            cluster,
            whom: of_client.or(shown.key.map(HandedKey::Key))?,
            verdict,
            method: kept.method.into(),
            policy_generation: kept.policy_generation,
            remaining: expires.since(now),
            sliding: (!sliding.is_zero()).then_some(sliding),
        })
    }

    /// Keeps what another process has kept, unless something is kept here for the same flows. Tells
    /// whether it does.
    pub(crate) fn take_over(
        &mut self,
        now: Instant,
        handed: &HandedDecision,
        verdict: KeptVerdict,
    ) -> bool {
        let key = match handed.whom {
            HandedKey::Client(client) => AffinityKey::of_client(client, WHOLE, handed.cluster),
            HandedKey::Key(key) => AffinityKey::of_key(key, handed.cluster),
        };
        if self.known(now, &key).is_some() {
            return false;
        }
        let kept = Kept {
            verdict,
            method: handed.method.into(),
            policy_generation: handed.policy_generation,
            sliding_ttl_ms: handed.sliding.map_or(0, |ttl| millis(ttl).max(1)),
        };
        let expires = now + handed.remaining.min(LONGEST);
        let is_kept = self.table.insert(now, key, kept, expires).is_ok();
        if is_kept && let Some(board) = &self.board {
            board.put(now, key, kept, expires);
        }
        is_kept
    }
}
