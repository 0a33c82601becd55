//! A plugin, compiled and checked.
//!
//! Everything that can be known before an instance exists is checked here, in the order in which an
//! author would want to hear of it: is it WebAssembly, is it for this host (imports, and with them
//! the interface's version), is it a policy (exports), do the types agree.

use core::fmt;
use core::fmt::Write as _;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use sha2::{Digest, Sha256};
use wasmtime::component::Component;
use wasmtime::component::types::{self, ComponentItem};
use wit_component::metadata::Bindgen;
use wit_component::{ComponentEncoder, StringEncoding};

use crate::bindings::{HOST_FUNCTIONS, PACKAGE};
use crate::compat::{self, Profile};
use crate::component::PreparedComponent;
use crate::engine::Engine;
use crate::error::{InstanceError, LoadError, reason_of};
use crate::flat::{PreparedModule, outline};
use crate::guest::Prepared;
use crate::instance;
use crate::log::one_line;
use crate::world::{Function, Shape, World, our_interface};

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
    prepared: Box<dyn Prepared>,
    facts: Facts,
    size_bytes: usize,
    digest: String,
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

    /// What it is asked for.
    #[must_use]
    pub fn shape(&self) -> Shape {
        self.shared.facts.world.shape
    }

    /// Whether it wants to hear of ended flows.
    #[must_use]
    pub fn has_feedback(&self) -> bool {
        self.shared.facts.world.has(Function::Feed)
    }

    /// Whether its instances hand over what they know.
    #[must_use]
    pub fn has_state(&self) -> bool {
        self.shared.facts.world.has(Function::Snapshot)
    }

    /// Whether it says what it may be configured with.
    #[must_use]
    pub fn has_schema(&self) -> bool {
        self.shared.facts.world.has(Function::ConfigSchema)
    }

    /// What it imports, as `interface#function`.
    #[must_use]
    pub fn imports(&self) -> &[String] {
        &self.shared.facts.imports
    }

    /// The JSON schema of its `config`, if it has one. Makes an instance to ask.
    ///
    /// # Errors
    ///
    /// If the guest fails, or no place for an instance is left.
    pub fn config_schema(&self) -> Result<Option<String>, InstanceError> {
        if self.has_schema() { instance::config_schema(self).map(Some) } else { Ok(None) }
    }

    /// What it may import beside the interface.
    #[must_use]
    pub fn profile(&self) -> Profile {
        self.shared.engine.profile()
    }

    /// The size of the file it was made from.
    #[must_use]
    pub fn size_bytes(&self) -> usize {
        self.shared.size_bytes
    }

    /// The SHA-256 of the file it was made from, in hexadecimal.
    #[must_use]
    pub fn digest(&self) -> &str {
        &self.shared.digest
    }

    pub(crate) fn engine(&self) -> &Engine {
        &self.shared.engine
    }

    /// Refuses to be used as what it is not.
    pub(crate) fn expect(&self, wanted: Shape) -> Result<(), InstanceError> {
        let found = self.shape();
        if found == wanted { Ok(()) } else { Err(InstanceError::Shape { wanted, found }) }
    }

    pub(crate) fn prepared(&self) -> &dyn Prepared {
        &*self.shared.prepared
    }

    fn compile(engine: &Engine, bytes: &[u8]) -> Result<Self, LoadError> {
        if !is_core_module(bytes)? {
            if engine.profile() == Profile::Strict {
                compat::find_wasi(bytes).map_or(Ok(()), |import| Err(unknown_import(&import)))?;
            }
            let Checked { facts, component } = Checked::new(engine, bytes)?;
            return Ok(Self::new(engine, bytes, facts, Box::new(component)));
        }
        // The encoder panics where a file ends early.
        wasmtime::Module::validate(engine.wasm(), bytes).map_err(invalid)?;
        let encoded = encode(bytes)?;
        if encoded.has_plain_text
            && let Some(outline) = outline(bytes)
        {
            let outline = encode(&outline)?.component;
            let Checked { facts, .. } = Checked::new(engine, &outline)?;
            let module = wasmtime::Module::from_binary(engine.wasm(), bytes).map_err(invalid)?;
            if let Some(module) = PreparedModule::new(engine, &module, &facts.world) {
                return Ok(Self::new(engine, bytes, facts, Box::new(module)));
            }
        }
        let Checked { facts, component } = Checked::new(engine, &encoded.component)?;
        Ok(Self::new(engine, bytes, facts, Box::new(component)))
    }

    fn new(engine: &Engine, bytes: &[u8], facts: Facts, prepared: Box<dyn Prepared>) -> Self {
        Self {
            shared: Arc::new(Shared {
                engine: engine.clone(),
                prepared,
                facts,
                size_bytes: bytes.len(),
                digest: hex(&Sha256::digest(bytes)),
            }),
        }
    }
}

/// What the types of a component say about it.
struct Facts {
    world: World,
    imports: Vec<String>,
}

/// A component that is a policy for this host.
struct Checked {
    facts: Facts,
    component: PreparedComponent,
}

impl Checked {
    fn new(engine: &Engine, binary: &[u8]) -> Result<Self, LoadError> {
        let component = Component::from_binary(engine.wasm(), binary).map_err(invalid)?;
        let ty = component.component_type();
        let imports = check_imports(engine, &ty)?;
        let world = World::of(engine.wasm(), &ty)?;
        let component = PreparedComponent::new(engine, &component, &world)?;
        Ok(Self { facts: Facts { world, imports }, component })
    }
}

#[expect(clippy::needless_pass_by_value, reason = "it is what an error is turned into")]
fn invalid(error: wasmtime::Error) -> LoadError {
    LoadError::Invalid(reason_of(&error))
}

impl fmt::Debug for Module {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Module")
            .field("shape", &self.shape())
            .field("size_bytes", &self.size_bytes())
            .finish_non_exhaustive()
    }
}

fn hex(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(bytes.len() * 2);
    for byte in bytes {
        let _ = write!(text, "{byte:02x}");
    }
    text
}

/// Whether a file is a core module; what is left is a component, or damaged.
fn is_core_module(bytes: &[u8]) -> Result<bool, LoadError> {
    if !bytes.starts_with(MAGIC) {
        return Err(LoadError::NotWasm(guess(bytes)));
    }
    Ok(bytes.get(4..8) == Some(CORE_MODULE))
}

/// A core module as a component.
struct Encoded {
    component: Vec<u8>,
    /// Whether all its texts are UTF-8.
    has_plain_text: bool,
}

/// Makes a component of a core module.
fn encode(bytes: &[u8]) -> Result<Encoded, LoadError> {
    let (stripped, bindgen) = wit_component::metadata::decode(bytes)
        .map_err(|error| LoadError::Invalid(one_line(&error.root_cause().to_string())))?;
    let encoded =
        ComponentEncoder::default().validate(true).module(bytes).and_then(ComponentEncoder::encode);
    match (encoded, stripped) {
        (Err(error), stripped) => Err(refusal(&format!("{error:#}"), stripped.is_some())),
        (Ok(_), None) => Err(LoadError::NoInterface),
        (Ok(component), Some(_)) => {
            Ok(Encoded { component, has_plain_text: has_plain_text(&bindgen) })
        }
    }
}

fn has_plain_text(module: &Bindgen) -> bool {
    let resolve = &module.resolve;
    let world = &resolve.worlds[module.world];
    let exports = world.exports.keys().flat_map(|key| {
        let of = |it: Function| module.metadata.export_encodings.get(resolve, key, it.name());
        Function::ALL.into_iter().filter_map(of)
    });
    let imports = world.imports.keys().flat_map(|key| {
        let of = |it: &&str| module.metadata.import_encodings.get(resolve, key, it);
        HOST_FUNCTIONS.iter().flat_map(|(_, names)| names.iter()).filter_map(of)
    });
    exports.chain(imports).all(|encoding| matches!(encoding, StringEncoding::UTF8))
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
    let missing = reason.split_once("failed to find export of ");
    let missing = missing.and_then(|(_, export)| quoted_after(export, "function `"));
    let function = missing.and_then(|name| Function::ALL.into_iter().find(|it| it.name() == name));
    match function {
        Some(function) => LoadError::MissingExport(function.name()),
        None if has_interface => LoadError::Invalid(one_line(reason)),
        None => LoadError::NoInterface,
    }
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

/// Lists what is imported, unless the host does not offer it.
fn check_imports(engine: &Engine, world: &types::Component) -> Result<Vec<String>, LoadError> {
    let wasm = engine.wasm();
    let stubs_wasi = engine.profile() == Profile::Compat;
    let mut imports = Vec::new();
    for (name, import) in world.imports(wasm) {
        let ComponentItem::ComponentInstance(interface) = import.ty else {
            return Err(unknown_import(name));
        };
        if stubs_wasi && compat::is_wasi(name) {
            let functions = functions_of(wasm, &interface);
            imports.extend(functions.map(|function| format!("{name}#{function}")));
            continue;
        }
        match our_interface(name)? {
            Some("types") => {}
            Some(ours) => imports.extend(check_host_functions(wasm, (name, ours), &interface)?),
            None => return Err(unknown_import(name)),
        }
    }
    Ok(imports)
}

fn check_host_functions(
    wasm: &wasmtime::Engine,
    (name, ours): (&str, &str),
    interface: &types::ComponentInstance,
) -> Result<Vec<String>, LoadError> {
    let known = HOST_FUNCTIONS.iter().find(|(interface, _)| *interface == ours);
    let (_, functions) = known.ok_or_else(|| unknown_import(name))?;
    let mut imports = Vec::new();
    for function in functions_of(wasm, interface) {
        let import = format!("{name}#{function}");
        if !functions.contains(&function) {
            return Err(unknown_import(&import));
        }
        imports.push(import);
    }
    Ok(imports)
}

fn functions_of<'a>(
    wasm: &'a wasmtime::Engine,
    interface: &'a types::ComponentInstance,
) -> impl Iterator<Item = &'a str> {
    let exports = interface.exports(wasm);
    exports.filter_map(|(name, item)| {
        matches!(item.ty, ComponentItem::ComponentFunc(_)).then_some(name)
    })
}
