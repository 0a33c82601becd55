//! What the host does for a guest that is a core module: the same functions, by pointers.

use wasmtime::{Caller, Linker, Memory, Module, format_err};

use super::abi::{Stored, View, level_of};
use crate::bindings::{counters, host, signals, slots};
use crate::guest::Answer;
use crate::instance::State;
use crate::limits::HOSTCALL_BYTES_MAX;
use crate::world::our_interface;

/// Defines everything that a module imports, under the names and in the versions in which it does.
/// `None` if something is not of our interface.
pub(super) fn link(linker: &mut Linker<State>, module: &Module) -> Option<()> {
    // Nothing forbids a module to import a function twice.
    linker.allow_shadowing(true);
    for import in module.imports() {
        let interface = our_interface(import.module()).ok()??;
        let (module, name) = (import.module(), import.name());
        let linked = match (interface, name) {
            ("host", "log") => linker.func_wrap(module, name, log),
            ("host", "load") => linker.func_wrap(module, name, load),
            ("signals", "read") => linker.func_wrap(module, name, read),
            ("slots", "get") => linker.func_wrap(module, name, get),
            ("slots", "set") => linker.func_wrap(module, name, set),
            ("slots", "add") => linker.func_wrap(module, name, add),
            ("counters", "count") => linker.func_wrap(module, name, count),
            _ => return None,
        };
        linked.ok()?;
    }
    Some(())
}

fn log(mut caller: Caller<'_, State>, level: u32, at: u32, length: u32) -> Answer<()> {
    let (bytes, state) = memory_of(&caller)?.data_and_store_mut(&mut caller);
    let view = View { bytes, bytes_max: HOSTCALL_BYTES_MAX };
    let message = view.text(at, length)?.to_owned();
    host::Host::log(state, level_of(level)?, message);
    Ok(())
}

fn load(mut caller: Caller<'_, State>, endpoint: u32) -> u32 {
    host::Host::load(caller.data_mut(), endpoint)
}

fn read(mut caller: Caller<'_, State>, endpoint: u32, at: u32) -> Answer<()> {
    let (bytes, state) = memory_of(&caller)?.data_and_store_mut(&mut caller);
    let sample = signals::Host::read(state, endpoint);
    let place = at.is_multiple_of(signals::Sample::ALIGN).then_some(at as usize);
    let place = place.and_then(|at| bytes.get_mut(at..)?.get_mut(..signals::Sample::SIZE));
    sample.store(place.ok_or_else(|| format_err!("a sample has no place at {at}"))?);
    Ok(())
}

fn get(mut caller: Caller<'_, State>, endpoint: u32, slot: u32) -> u64 {
    slots::Host::get(caller.data_mut(), endpoint, slot)
}

fn set(mut caller: Caller<'_, State>, endpoint: u32, slot: u32, value: u64) {
    slots::Host::set(caller.data_mut(), endpoint, slot, value);
}

fn add(mut caller: Caller<'_, State>, endpoint: u32, slot: u32, value: u64) -> u64 {
    slots::Host::add(caller.data_mut(), endpoint, slot, value)
}

fn count(mut caller: Caller<'_, State>, counter: u32, by: u64) {
    counters::Host::count(caller.data_mut(), counter, by);
}

fn memory_of(caller: &Caller<'_, State>) -> Answer<Memory> {
    caller.data().memory.ok_or_else(|| format_err!("called before the module had started"))
}
