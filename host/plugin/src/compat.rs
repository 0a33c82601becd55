//! Stubs of WASI, for guests that bring the runtime of their language along.
//!
//! Such a runtime asks for an environment, clocks and streams as it starts, whether the policy needs
//! them or not. Refusing it would be to refuse the language; giving it WASI would be to give a
//! policy files, sockets and a clock of its own, after which no decision could be replayed. So it
//! gets functions that answer at once, always the same, and touch nothing. They are made from the
//! component's own types: there is no description of WASI here to keep up with.
//!
//! | asked for | answered |
//! |---|---|
//! | anything not below | the zero of its type: empty, none, ok, 0, a handle to nothing |
//! | clocks | the time of the call, as the flow has it; 1 ms for a resolution |
//! | random numbers | a sequence that begins anew with each instance |
//! | output | taken and forgotten; always ready |
//! | input | at its end |
//! | exit | a trap |
//! | a package beside [`STUBBED`], such as sockets | a trap: no answer would be harmless |

use core::slice;

use wasmtime::component::types::{self, ComponentItem, Type};
use wasmtime::component::{Linker, LinkerInstance, Resource, ResourceAny, ResourceType, Val};
use wasmtime::{Result, StoreContextMut, bail};
use wit_component::DecodedWasm;

use crate::instance::State;
use crate::log::one_line;

/// What a guest is given beside the interface of policies.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Profile {
    /// Nothing.
    #[default]
    Strict,
    /// Stubs of what it imports of WASI, and room for the parts that a language's runtime is made
    /// of.
    Compat,
}

impl Profile {
    /// How many parts one component may be made of.
    pub(crate) const fn parts(self) -> Parts {
        match self {
            // The encoder makes three or four core modules of one, and a table for its imports.
            Self::Strict => Parts { core_instances: 8, memories: 1, tables: 4 },
            // A language's runtime is linked of libraries, the policy's glue and adapters of WASI,
            // some of them as components of their own, with a memory each.
            Self::Compat => Parts { core_instances: 64, memories: 4, tables: 8 },
        }
    }
}

/// The most parts that one component may be made of.
pub(crate) struct Parts {
    pub(crate) core_instances: u32,
    pub(crate) memories: u32,
    pub(crate) tables: u32,
}

/// The packages of which a call is answered.
const STUBBED: [&str; 5] = ["cli", "clocks", "filesystem", "io", "random"];
/// Values in one answer, among them random bytes. Each takes the host's memory before the guest has
/// it, and a type may name a million.
const VALUES_MAX: usize = 5000;
/// Handles that one guest may hold. They too take the host's memory.
const HANDLES_MAX: u32 = 1000;
/// What an output takes at a time.
const WRITE_BYTES_MAX: u64 = 4096;
/// What a clock says of itself.
const RESOLUTION_NS: u64 = 1_000_000;
/// Nanoseconds in a second.
const SECOND_NS: u64 = 1_000_000_000;

/// What the stubs remember of one guest.
#[derive(Debug, Default)]
pub(crate) struct Wasi {
    /// The state of the random sequence.
    random: u64,
    /// How many handles the guest holds.
    handles: u32,
}

impl Wasi {
    /// The next number of the sequence: `SplitMix64` (Steele, Lea and Flood 2014).
    fn random(&mut self) -> u64 {
        self.random = self.random.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut bits = self.random;
        bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        bits ^ (bits >> 31)
    }
}

/// What every handle of a stub names.
struct Nothing;

/// Whether an import, by its full name, is WASI's.
pub(crate) fn is_wasi(import: &str) -> bool {
    import.starts_with("wasi:")
}

/// The first interface of WASI that a component imports.
///
/// Looked for where there are no stubs, before anything is compiled: a runtime takes seconds, and
/// needs more parts than are allowed then, so that the compiler would complain of something else.
pub(crate) fn find_wasi(component: &[u8]) -> Option<String> {
    let Ok(DecodedWasm::Component(resolve, world)) = wit_component::decode(component) else {
        return None;
    };
    let imports = resolve.worlds[world].imports.keys();
    imports.map(|key| resolve.name_world_key(key)).find(|name| is_wasi(name))
}

/// Gives the linker a stub for everything that a component imports of WASI.
pub(crate) fn add_stubs(
    linker: &mut Linker<State>,
    wasm: &wasmtime::Engine,
    world: &types::Component,
) -> Result<()> {
    for (name, import) in world.imports(wasm).filter(|(name, _)| is_wasi(name)) {
        if let ComponentItem::ComponentInstance(interface) = import.ty {
            add_interface(&mut linker.instance(name)?, wasm, name, &interface)?;
        }
    }
    Ok(())
}

fn add_interface(
    stubs: &mut LinkerInstance<'_, State>,
    wasm: &wasmtime::Engine,
    name: &str,
    interface: &types::ComponentInstance,
) -> Result<()> {
    for (item, export) in interface.exports(wasm) {
        match export.ty {
            ComponentItem::ComponentFunc(_) => {
                let stub = Stub::of(name, item);
                stubs.func_new(item, move |mut store, function, given, answers| {
                    // A function has one result or none.
                    if let (Some(ty), Some(answer)) =
                        (function.results().next(), answers.first_mut())
                    {
                        *answer = stub.answer(&mut store, &ty, given)?;
                    } else {
                        stub.be_called()?;
                    }
                    give_back(&mut store, given)
                })?;
            }
            ComponentItem::Resource(_) => {
                stubs.resource(item, ResourceType::host::<Nothing>(), |mut store, _| {
                    let held = &mut store.data_mut().wasi.handles;
                    *held = held.saturating_sub(1);
                    Ok(())
                })?;
            }
            _ => {}
        }
    }
    Ok(())
}

/// Gives up the handles among what a guest has passed: the host keeps none, and a borrowed one would
/// otherwise count as kept.
fn give_back(store: &mut StoreContextMut<'_, State>, given: &[Val]) -> Result<()> {
    for value in given {
        match value {
            Val::Resource(handle) => handle.resource_drop(&mut *store)?,
            Val::List(values) | Val::Tuple(values) => give_back(store, values)?,
            Val::Record(fields) => {
                for (_, field) in fields {
                    give_back(store, slice::from_ref(field))?;
                }
            }
            Val::Option(Some(value))
            | Val::Variant(_, Some(value))
            | Val::Result(Ok(Some(value)) | Err(Some(value))) => {
                give_back(store, slice::from_ref(value))?;
            }
            _ => {}
        }
    }
    Ok(())
}

/// What one function does.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Stub {
    /// Answers with the zero of its type, but for numbers, which are this one.
    Number(u64),
    /// Answers with numbers of the random sequence, as many as it is asked for.
    Random,
    /// Answers with the time of the call.
    Now,
    /// Answers how finely the time is measured.
    Resolution,
    /// Answers that everything it is asked about is ready.
    AllReady,
    /// Answers that the stream is at its end.
    Closed,
    /// Traps, and says that this was called.
    Trap(String),
}

impl Stub {
    /// The stub of a function of `wasi:PACKAGE/INTERFACE@VERSION`.
    fn of(interface: &str, function: &str) -> Self {
        let path = interface.split_once('@').map_or(interface, |(path, _)| path);
        let path = path.strip_prefix("wasi:").unwrap_or(path);
        let package = path.split_once('/').map_or(path, |(package, _)| package);
        let is_input = function.starts_with("[method]input-stream.");
        match (path, function) {
            _ if !STUBBED.contains(&package) => Self::Trap(format!("{interface}#{function}")),
            ("cli/exit", _) => Self::Trap(format!("{interface}#{function}")),
            ("clocks/monotonic-clock" | "clocks/wall-clock", "now") => Self::Now,
            ("clocks/monotonic-clock" | "clocks/wall-clock", "resolution") => Self::Resolution,
            ("io/poll", "[method]pollable.ready") => Self::Number(1),
            ("io/poll", "poll") => Self::AllReady,
            ("io/streams", "[method]output-stream.check-write") => Self::Number(WRITE_BYTES_MAX),
            ("io/streams", "[method]input-stream.subscribe") => Self::Number(0),
            ("io/streams", _) if is_input => Self::Closed,
            _ if package == "random" => Self::Random,
            _ => Self::Number(0),
        }
    }

    /// Does what there is to do where nothing is answered.
    fn be_called(&self) -> Result<()> {
        match self {
            Self::Trap(name) => bail!("it called `{}`, which no policy has", one_line(name)),
            _ => Ok(()),
        }
    }

    fn answer(
        &self,
        store: &mut StoreContextMut<'_, State>,
        ty: &Type,
        given: &[Val],
    ) -> Result<Val> {
        self.be_called()?;
        let now = store.data().now.as_nanos();
        let mut maker = Maker { store, number: Some(0), list_length: 0, values: 0 };
        match self {
            Self::Number(number) => maker.number = Some(*number),
            Self::Random => {
                maker.number = None;
                maker.list_length = asked_for(given);
            }
            Self::Now => return maker.time(ty, now),
            Self::Resolution => return maker.time(ty, RESOLUTION_NS),
            Self::AllReady => return Ok(indices_of(given)),
            Self::Closed => return Ok(closed()),
            Self::Trap(_) => {}
        }
        maker.value(ty)
    }
}

/// The length that a function of random bytes was given.
fn asked_for(given: &[Val]) -> usize {
    match given {
        [Val::U64(length)] => usize::try_from(*length).unwrap_or(usize::MAX),
        _ => 0,
    }
}

/// The indices of a list: what `poll` answers where everything is ready.
fn indices_of(given: &[Val]) -> Val {
    let count = match given {
        [Val::List(list)] => u32::try_from(list.len()).unwrap_or(u32::MAX),
        _ => 0,
    };
    Val::List((0..count).map(Val::U32).collect())
}

/// The error of a stream that has come to its end.
fn closed() -> Val {
    Val::Result(Err(Some(Box::new(Val::Variant("closed".into(), None)))))
}

/// Makes one answer, of any type.
struct Maker<'a, 'b> {
    store: &'a mut StoreContextMut<'b, State>,
    /// What its numbers are; random if there is none.
    number: Option<u64>,
    /// How long its lists are.
    list_length: usize,
    /// How many values have been made.
    values: usize,
}

impl Maker<'_, '_> {
    /// A time as a number of nanoseconds, or as a record of seconds and nanoseconds.
    fn time(&mut self, ty: &Type, nanos: u64) -> Result<Val> {
        let Type::Record(record) = ty else {
            self.number = Some(nanos);
            return self.value(ty);
        };
        let mut fields = Vec::new();
        for field in record.fields() {
            let whole = field.name == "seconds";
            self.number = Some(if whole { nanos / SECOND_NS } else { nanos % SECOND_NS });
            fields.push((field.name.to_owned(), self.value(&field.ty)?));
        }
        Ok(Val::Record(fields))
    }

    /// The value of a type that stands for success, or for nothing at all.
    fn value(&mut self, ty: &Type) -> Result<Val> {
        self.values += 1;
        if self.values > VALUES_MAX {
            bail!("it asked for more than {VALUES_MAX} values at once");
        }
        Ok(match ty {
            Type::String => Val::String(String::new()),
            Type::Option(_) => Val::Option(None),
            Type::Map(_) => Val::Map(Vec::new()),
            Type::Flags(_) => Val::Flags(Vec::new()),
            Type::Enum(cases) => Val::Enum(cases.names().next().unwrap_or_default().into()),
            Type::List(list) => Val::List(self.values(&list.ty(), self.list_length)?),
            Type::FixedLengthList(list) => {
                Val::FixedLengthList(self.values(&list.ty(), list.len() as usize)?)
            }
            Type::Tuple(tuple) => {
                Val::Tuple(tuple.types().map(|ty| self.value(&ty)).collect::<Result<_>>()?)
            }
            Type::Record(record) => {
                let field =
                    |field: types::Field<'_>| Ok((field.name.to_owned(), self.value(&field.ty)?));
                Val::Record(record.fields().map(field).collect::<Result<_>>()?)
            }
            Type::Variant(variant) => match variant.cases().next() {
                Some(case) => Val::Variant(case.name.to_owned(), self.boxed(case.ty)?),
                None => bail!("a variant without a case"),
            },
            Type::Result(result) => Val::Result(Ok(self.boxed(result.ok())?)),
            Type::Own(_) => Val::Resource(self.handle()?),
            Type::Borrow(_) | Type::Future(_) | Type::Stream(_) | Type::ErrorContext => {
                bail!("it wants a value that only a real WASI could give")
            }
            number => self.number_of(number),
        })
    }

    fn values(&mut self, ty: &Type, count: usize) -> Result<Vec<Val>> {
        (0..count).map(|_| self.value(ty)).collect()
    }

    fn boxed(&mut self, ty: Option<Type>) -> Result<Option<Box<Val>>> {
        ty.map(|ty| self.value(&ty).map(Box::new)).transpose()
    }

    fn handle(&mut self) -> Result<ResourceAny> {
        let held = &mut self.store.data_mut().wasi.handles;
        if *held == HANDLES_MAX {
            bail!("it holds {HANDLES_MAX} handles and wants more; it should drop them");
        }
        *held += 1;
        Resource::<Nothing>::new_own(0).try_into_resource_any(&mut *self.store)
    }

    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_possible_wrap,
        clippy::cast_precision_loss,
        reason = "a number that does not fit is cut down to one that does"
    )]
    fn number_of(&mut self, ty: &Type) -> Val {
        let number = self.number.unwrap_or_else(|| self.store.data_mut().wasi.random());
        match ty {
            Type::Bool => Val::Bool(number % 2 == 1),
            Type::S8 => Val::S8(number as i8),
            Type::U8 => Val::U8(number as u8),
            Type::S16 => Val::S16(number as i16),
            Type::U16 => Val::U16(number as u16),
            Type::S32 => Val::S32(number as i32),
            Type::U32 => Val::U32(number as u32),
            Type::S64 => Val::S64(number as i64),
            Type::Float32 => Val::Float32(number as f32),
            Type::Float64 => Val::Float64(number as f64),
            Type::Char => Val::Char(char::from(number as u8)),
            _ => Val::U64(number),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_has_no_harmless_answer_traps() {
        for (interface, function) in [
            ("wasi:cli/exit@0.2.12", "exit"),
            ("wasi:sockets/tcp-create-socket@0.2.12", "create-tcp-socket"),
            ("wasi:http/outgoing-handler@0.2.0", "handle"),
        ] {
            let trap = Stub::Trap(format!("{interface}#{function}"));
            assert_eq!(Stub::of(interface, function), trap);
        }
    }

    #[test]
    fn the_version_of_an_interface_does_not_matter() {
        for version in ["@0.2.0", "@0.2.12", "@0.3.0-rc", ""] {
            let interface = format!("wasi:clocks/monotonic-clock{version}");
            assert_eq!(Stub::of(&interface, "now"), Stub::Now);
        }
    }
}
