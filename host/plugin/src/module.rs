//! A plugin, compiled and checked.
//!
//! Everything that can be known before an instance exists is checked here, in the order in which an
//! author would want to hear of it: is it WebAssembly, is it for this host (imports, and with them
//! the interface's version), is it a policy (exports), do the types agree.

use core::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use wasmtime::component::types::{self, ComponentItem};
use wasmtime::component::{Component, ComponentNamedList, Lift, Lower};
use wit_component::ComponentEncoder;

use crate::bindings::{ChooserPre, HOST_FUNCTIONS, PACKAGE, VERSION, types as guest};
use crate::compat::{self, Profile};
use crate::engine::Engine;
use crate::error::{LoadError, chain_of, reason_of};
use crate::instance::State;
use crate::log::one_line;

/// The four bytes that every WebAssembly file begins with.
const MAGIC: &[u8] = b"\0asm";
/// The version and layer of a core module.
const CORE_MODULE: &[u8] = &[1, 0, 0, 0];

/// A plugin that is ready to be instantiated. Cheap to clone.
#[derive(Clone)]
pub struct Module {
    shared: Arc<Shared>,
}

struct Shared {
    engine: Engine,
    pre: ChooserPre<State>,
    size_bytes: usize,
}

impl Module {
    pub(crate) fn load(engine: &Engine, bytes: &[u8]) -> Result<Self, LoadError> {
        let bytes_max = engine.limits().module_bytes_max;
        if bytes.len() > bytes_max {
            return Err(LoadError::TooLarge { bytes: bytes.len(), bytes_max });
        }
        // Neither the encoder nor the compiler should panic, whatever they are given; but what they
        // are given here is anybody's, and the process serves others.
        let load = AssertUnwindSafe(|| Self::compile(engine, bytes));
        catch_unwind(load).unwrap_or_else(|_| {
            Err(LoadError::Invalid("the compiler panicked, please report it".into()))
        })
    }

    /// The size of the file it was made from.
    #[must_use]
    pub fn size_bytes(&self) -> usize {
        self.shared.size_bytes
    }

    pub(crate) fn engine(&self) -> &Engine {
        &self.shared.engine
    }

    pub(crate) fn pre(&self) -> &ChooserPre<State> {
        &self.shared.pre
    }

    fn compile(engine: &Engine, bytes: &[u8]) -> Result<Self, LoadError> {
        let encoded = encode(bytes)?;
        let binary = encoded.as_deref().unwrap_or(bytes);
        let component = Component::from_binary(engine.wasm(), binary)
            .map_err(|error| LoadError::Invalid(reason_of(&error)))?;
        let world = component.component_type();
        check_imports(engine, &world)?;
        check_exports(engine.wasm(), &world)?;
        let pre = engine
            .linker_for(&world)
            .and_then(|linker| linker.instantiate_pre(&component))
            .and_then(ChooserPre::new);
        let pre = pre.map_err(|error| LoadError::WrongType {
            name: "host".into(),
            reason: chain_of(&error),
        })?;
        let size_bytes = bytes.len();
        Ok(Self { shared: Arc::new(Shared { engine: engine.clone(), pre, size_bytes }) })
    }
}

impl fmt::Debug for Module {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let size_bytes = &self.shared.size_bytes;
        f.debug_struct("Module").field("size_bytes", size_bytes).finish_non_exhaustive()
    }
}

/// Makes a component of a core module; `None` if it is one already.
fn encode(bytes: &[u8]) -> Result<Option<Vec<u8>>, LoadError> {
    if !bytes.starts_with(MAGIC) {
        return Err(LoadError::NotWasm(guess(bytes)));
    }
    if bytes.get(4..8) != Some(CORE_MODULE) {
        return Ok(None);
    }
    let (stripped, _) = wit_component::metadata::decode(bytes)
        .map_err(|error| LoadError::Invalid(one_line(&error.root_cause().to_string())))?;
    let encoded =
        ComponentEncoder::default().validate(true).module(bytes).and_then(ComponentEncoder::encode);
    match (encoded, stripped) {
        (Err(error), stripped) => Err(refusal(&format!("{error:#}"), stripped.is_some())),
        (Ok(_), None) => Err(LoadError::NoInterface),
        (Ok(component), Some(_)) => Ok(Some(component)),
    }
}

/// Says what a file that is not WebAssembly might be.
fn guess(bytes: &[u8]) -> &'static str {
    match std::str::from_utf8(bytes) {
        _ if bytes.is_empty() => "empty",
        _ if bytes.starts_with(b"\x7fELF") => "a native program",
        Ok(text) if text.trim_start().starts_with("(module") => "its text form",
        Ok(_) => "a text",
        Err(_) => "something else",
    }
}

/// Puts the encoder's refusal in our words. It names imports as `module::field`.
fn refusal(reason: &str, has_interface: bool) -> LoadError {
    if let Some(import) = quoted_after(reason, "failed to resolve import `") {
        let is_ours = import.starts_with(PACKAGE);
        return if is_ours && !has_interface {
            LoadError::NoInterface
        } else {
            unknown_import(import)
        };
    }
    for export in EXPORTS {
        if reason.contains(&format!("failed to find export of function `{export}`")) {
            return LoadError::MissingExport(export);
        }
    }
    if has_interface { LoadError::Invalid(one_line(reason)) } else { LoadError::NoInterface }
}

fn quoted_after<'a>(text: &'a str, before: &str) -> Option<&'a str> {
    let (_, rest) = text.split_once(before)?;
    rest.split_once('`').map(|(name, _)| name)
}

fn unknown_import(name: &str) -> LoadError {
    let name = one_line(name);
    if name.starts_with("wasi:") || name.starts_with("wasi_") {
        LoadError::Wasi(name)
    } else {
        LoadError::UnknownImport(name)
    }
}

/// Finds the first import that the host does not offer.
fn check_imports(engine: &Engine, world: &types::Component) -> Result<(), LoadError> {
    let wasm = engine.wasm();
    for (name, import) in world.imports(wasm) {
        if engine.profile() == Profile::Compat && compat::is_wasi(name) {
            continue;
        }
        let ComponentItem::ComponentInstance(interface) = import.ty else {
            return Err(unknown_import(name));
        };
        match our_interface(name)? {
            Some("types") => {}
            Some(ours) => check_host_functions(wasm, (name, ours), &interface)?,
            None => return Err(unknown_import(name)),
        }
    }
    Ok(())
}

/// The interface's bare name if it is one of our package, in a version that we speak.
fn our_interface(name: &str) -> Result<Option<&str>, LoadError> {
    let Some((package, rest)) = name.split_once('/') else { return Ok(None) };
    if package != PACKAGE {
        return Ok(None);
    }
    let (interface, version) = rest.split_once('@').unwrap_or((rest, "?"));
    if series(version) == series(VERSION) {
        Ok(Some(interface))
    } else {
        Err(LoadError::Version(one_line(version)))
    }
}

/// What of a version must be equal for two to be compatible, below 1.0: all but the last number.
fn series(version: &str) -> &str {
    version.rsplit_once('.').map_or(version, |(series, _)| series)
}

fn check_host_functions(
    wasm: &wasmtime::Engine,
    (name, ours): (&str, &str),
    interface: &types::ComponentInstance,
) -> Result<(), LoadError> {
    let known = HOST_FUNCTIONS.iter().find(|(interface, _)| *interface == ours);
    let (_, functions) = known.ok_or_else(|| unknown_import(name))?;
    for (function, item) in interface.exports(wasm) {
        let is_function = matches!(item.ty, ComponentItem::ComponentFunc(_));
        if is_function && !functions.contains(&function) {
            return Err(unknown_import(&format!("{name}#{function}")));
        }
    }
    Ok(())
}

/// What the world exports.
const EXPORTS: [&str; 3] = ["configure", "endpoints-changed", "decide"];

fn check_exports(wasm: &wasmtime::Engine, world: &types::Component) -> Result<(), LoadError> {
    let [configure, endpoints_changed, decide] = EXPORTS;
    check_export::<(&str,), (Result<(), String>,)>(wasm, world, configure)?;
    check_export::<(u64, &[guest::Endpoint]), ()>(wasm, world, endpoints_changed)?;
    check_export::<(guest::Flow,), (guest::Decision,)>(wasm, world, decide)
}

fn check_export<P, R>(
    wasm: &wasmtime::Engine,
    world: &types::Component,
    name: &'static str,
) -> Result<(), LoadError>
where
    P: ComponentNamedList + Lower,
    R: ComponentNamedList + Lift,
{
    let export = world.get_export(wasm, name).map(|export| export.ty);
    let Some(ComponentItem::ComponentFunc(function)) = export else {
        return Err(LoadError::MissingExport(name));
    };
    function
        .typecheck::<P, R>(&world.instance_type())
        .map_err(|error| LoadError::WrongType { name: name.into(), reason: chain_of(&error) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_patch_release_of_the_interface_is_spoken_and_the_next_is_not() {
        assert_eq!(our_interface("pointsman:policy/host@0.1.7"), Ok(Some("host")));
        assert_eq!(
            our_interface("pointsman:policy/host@0.2.0"),
            Err(LoadError::Version("0.2.0".into()))
        );
        assert_eq!(our_interface("elsewhere:policy/host@0.2.0"), Ok(None));
    }
}
