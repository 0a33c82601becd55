//! How the interface's types are passed to a core module, and how they lie in its memory.
//!
//! From `design/mvp/CanonicalABI.md` of the Component Model: "Alignment" and "Element Size" for
//! where fields are, "Loading" and "Storing" for their form, "Flattening" for parameters. The
//! parameters of all functions fit into 16 flat ones. A result of more than one flat value lies in
//! memory, and its place is returned. What a guest is given, its `cabi_realloc` makes room for.
//!
//! Nothing that a guest says is believed: places and lengths are held against its memory, places
//! against the alignment of what lies there, cases against the number of cases, text against
//! UTF-8. An error here is an answer that is none, and the last that is heard of the guest.

use wasmtime::{Memory, Store, TypedFunc, ensure, format_err};

use crate::bindings::feedback::Ended;
use crate::bindings::signals::Sample;
use crate::bindings::types::{Decision, Endpoint, Flow};
use crate::bindings::{Scope, Verdict, host::Level};
use crate::guest::Answer;
use crate::instance::State;

/// A flow, flattened.
pub(super) type FlatFlow = (u32, u64, u64, u32, u64, u64, u32, u64, u32, u32, u64, u64);

pub(super) fn flatten(flow: &Flow) -> FlatFlow {
    (
        flow.protocol as u32,
        flow.client_high,
        flow.client_low,
        u32::from(flow.client_port),
        flow.local_high,
        flow.local_low,
        u32::from(flow.local_port),
        flow.key,
        flow.attempt,
        flow.avoid,
        flow.now_ms,
        flow.random,
    )
}

/// Old place, old size, alignment, new size; returns the new place.
pub(super) type Realloc = TypedFunc<(u32, u32, u32, u32), u32>;

/// A guest's memory, with room to be made for what it is given.
pub(super) struct Heap<'a> {
    pub(super) store: &'a mut Store<State>,
    pub(super) memory: Memory,
    pub(super) realloc: &'a Realloc,
}

/// Where a list lies, and how many elements it has.
type Placed = (u32, u32);

impl Heap<'_> {
    pub(super) fn put_bytes(&mut self, bytes: &[u8]) -> Answer<Placed> {
        let at = self.allocate(bytes.len(), 1)?;
        self.at(at, bytes.len())?.copy_from_slice(bytes);
        Ok((at, length(bytes.len())?))
    }

    pub(super) fn put_list<T: Stored>(&mut self, items: &[T]) -> Answer<Placed> {
        let size = items.len() * T::SIZE;
        let at = self.allocate(size, T::ALIGN)?;
        for (item, place) in items.iter().zip(self.at(at, size)?.chunks_exact_mut(T::SIZE)) {
            item.store(place);
        }
        Ok((at, length(items.len())?))
    }

    pub(super) fn put_endpoints(&mut self, endpoints: &[Endpoint]) -> Answer<Placed> {
        const SIZE: usize = 12;
        let list = self.allocate(endpoints.len() * SIZE, 4)?;
        for (place, endpoint) in endpoints.iter().enumerate() {
            let (at, length) = self.put_bytes(endpoint.address.as_bytes())?;
            let record = self.at(list, (place + 1) * SIZE)?;
            put_words(&mut record[place * SIZE..], &[at, length, endpoint.weight]);
        }
        Ok((list, length(endpoints.len())?))
    }

    fn allocate(&mut self, size: usize, align: u32) -> Answer<u32> {
        let at = self.realloc.call(&mut *self.store, (0, 0, align, length(size)?))?;
        ensure!(at.is_multiple_of(align), "`cabi_realloc` returned a place that is not aligned");
        Ok(at)
    }

    fn at(&mut self, at: u32, size: usize) -> Answer<&mut [u8]> {
        let bytes = self.memory.data_mut(&mut *self.store).get_mut(at as usize..);
        let bytes = bytes.and_then(|bytes| bytes.get_mut(..size));
        bytes.ok_or_else(|| format_err!("`cabi_realloc` returned a place outside of memory"))
    }
}

fn length(length: usize) -> Answer<u32> {
    u32::try_from(length).map_err(|_| format_err!("{length} are too many for a guest's memory"))
}

/// An element of a list that a guest is given.
pub(super) trait Stored {
    const SIZE: usize;
    const ALIGN: u32;

    /// Writes it to its place, which is of its size.
    fn store(&self, place: &mut [u8]);
}

impl Stored for Sample {
    const SIZE: usize = 40;
    const ALIGN: u32 = 4;

    fn store(&self, place: &mut [u8]) {
        let words = [
            self.flows_active,
            self.connecting,
            self.connect_us,
            self.connect_peak_us,
            self.connect_age_ms,
            self.first_byte_us,
            self.first_byte_peak_us,
            self.first_byte_age_ms,
            self.errors_ppm,
            self.errors_age_ms,
        ];
        put_words(place, &words);
    }
}

impl Stored for Ended {
    const SIZE: usize = 40;
    const ALIGN: u32 = 8;

    fn store(&self, place: &mut [u8]) {
        put_words(place, &[self.endpoint, self.outcome as u32, self.duration_ms]);
        place[16..24].copy_from_slice(&self.bytes_to_endpoint.to_le_bytes());
        place[24..32].copy_from_slice(&self.bytes_to_client.to_le_bytes());
        put_words(&mut place[32..], &[self.tag]);
    }
}

fn put_words(place: &mut [u8], words: &[u32]) {
    for (place, word) in place.chunks_exact_mut(4).zip(words) {
        place.copy_from_slice(&word.to_le_bytes());
    }
}

/// A guest's memory as it is after a call.
pub(super) struct View<'a> {
    pub(super) bytes: &'a [u8],
    /// The longest list or text that is taken from it.
    pub(super) bytes_max: usize,
}

impl View<'_> {
    pub(super) fn decision(&self, at: u32) -> Answer<Decision> {
        let record: &[u8; 36] = self.record(at)?;
        Ok(Decision {
            verdict: verdict_of(record[0])?,
            endpoint: word(record, 4),
            scope: scope_of(record[8])?,
            ttl_ms: word(record, 12),
            sliding: record[16] != 0,
            throttle_kib_s: word(record, 20),
            announce: record[24] != 0,
            idle_timeout_ms: word(record, 28),
            tag: word(record, 32),
        })
    }

    pub(super) fn text(&self, at: u32, length: u32) -> Answer<&str> {
        Ok(std::str::from_utf8(self.list(at, length, 1)?)?)
    }

    /// The bytes of a list whose elements have this size, and alignment.
    fn list(&self, at: u32, length: u32, size: u32) -> Answer<&[u8]> {
        let bytes = length as usize * size as usize;
        let bytes_max = self.bytes_max;
        ensure!(bytes <= bytes_max, "{bytes} bytes in one answer; at most {bytes_max} are taken");
        ensure!(at.is_multiple_of(size), "a list at a place that is not aligned");
        let list = self.bytes.get(at as usize..).and_then(|list| list.get(..bytes));
        list.ok_or_else(|| format_err!("a list outside of memory"))
    }

    fn record<const SIZE: usize>(&self, at: u32) -> Answer<&[u8; SIZE]> {
        ensure!(at.is_multiple_of(4), "an answer at a place that is not aligned");
        let record = self.bytes.get(at as usize..).and_then(|bytes| bytes.first_chunk());
        record.ok_or_else(|| format_err!("an answer outside of memory"))
    }
}

/// Reads a result whose failure is a text; `read` reads its success.
pub(super) fn result<T>(
    view: &View<'_>,
    at: u32,
    read: impl FnOnce(&View<'_>, u32) -> Answer<T>,
) -> Answer<Result<T, String>> {
    let record: &[u8; 12] = view.record(at)?;
    match record[0] {
        0 => read(view, at + 4).map(Ok),
        1 => string(view, at + 4).map(Err),
        case => Err(no_case(case, "result")),
    }
}

#[expect(clippy::unnecessary_wraps, reason = "it is one of several ways to read")]
pub(super) fn nothing(_view: &View<'_>, _at: u32) -> Answer<()> {
    Ok(())
}

pub(super) fn string(view: &View<'_>, at: u32) -> Answer<String> {
    let record: &[u8; 8] = view.record(at)?;
    view.text(word(record, 0), word(record, 4)).map(str::to_owned)
}

pub(super) fn bytes(view: &View<'_>, at: u32) -> Answer<Vec<u8>> {
    let record: &[u8; 8] = view.record(at)?;
    view.list(word(record, 0), word(record, 4), 1).map(<[u8]>::to_vec)
}

pub(super) fn numbers(view: &View<'_>, at: u32) -> Answer<Vec<u32>> {
    let record: &[u8; 8] = view.record(at)?;
    let list = view.list(word(record, 0), word(record, 4), 4)?;
    Ok(list.chunks_exact(4).map(|number| word(number, 0)).collect())
}

fn word(bytes: &[u8], at: usize) -> u32 {
    let mut word = [0; 4];
    word.copy_from_slice(&bytes[at..at + 4]);
    u32::from_le_bytes(word)
}

fn verdict_of(case: u8) -> Answer<Verdict> {
    match case {
        0 => Ok(Verdict::Forward),
        1 => Ok(Verdict::Reset),
        2 => Ok(Verdict::Drop),
        3 => Ok(Verdict::Defer),
        _ => Err(no_case(case, "verdict")),
    }
}

fn scope_of(case: u8) -> Answer<Scope> {
    match case {
        0 => Ok(Scope::Flow),
        1 => Ok(Scope::Client),
        2 => Ok(Scope::Key),
        3 => Ok(Scope::None),
        _ => Err(no_case(case, "scope")),
    }
}

pub(super) fn level_of(case: u32) -> Answer<Level> {
    match case {
        0 => Ok(Level::Error),
        1 => Ok(Level::Warn),
        2 => Ok(Level::Info),
        3 => Ok(Level::Debug),
        _ => Err(no_case(case, "level")),
    }
}

fn no_case(case: impl Into<u32>, of: &str) -> wasmtime::Error {
    format_err!("{} is no {of}", case.into())
}
