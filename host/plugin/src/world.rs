//! Which of the interface's worlds a component implements.
//!
//! Nothing in a component says which world it was built for, so its exports are looked at: one
//! function of each world is in no other. What a policy may export beside its world (`feedback`,
//! `state`, `schema`) is taken if it is there, whole and of the right types.

use core::fmt;

use wasmtime::component::types::{Component, ComponentFunc, ComponentInstance, ComponentItem};

use crate::bindings::{PACKAGE, VERSION, feedback, signals, types as guest};
use crate::error::{LoadError, chain_of};
use crate::log::one_line;

/// What a policy is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Shape {
    /// A decision on each new flow.
    Chooser,
    /// A lookup table for each list of endpoints.
    Table,
    /// Weights for the cluster's native policy, on a tick.
    Weights,
}

impl Shape {
    /// All shapes.
    pub const ALL: [Self; 3] = [Self::Chooser, Self::Table, Self::Weights];

    /// The name of its world.
    #[must_use]
    pub const fn label(self) -> &'static str {
        match self {
            Self::Chooser => "chooser",
            Self::Table => "table",
            Self::Weights => "weights",
        }
    }

    /// The function that no other world has, and by which it is known.
    const fn mark(self) -> Function {
        match self {
            Self::Chooser => Function::Decide,
            Self::Table => Function::Build,
            Self::Weights => Function::Weigh,
        }
    }

    /// Whether its world hears of endpoints by themselves.
    const fn hears_of_endpoints(self) -> bool {
        !matches!(self, Self::Table)
    }
}

impl fmt::Display for Shape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.label())
    }
}

/// A function that a guest may export.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Function {
    Configure,
    EndpointsChanged,
    Decide,
    Build,
    Weigh,
    Feed,
    Snapshot,
    Restore,
    ConfigSchema,
}

impl Function {
    pub(crate) const ALL: [Self; 9] = [
        Self::Configure,
        Self::EndpointsChanged,
        Self::Decide,
        Self::Build,
        Self::Weigh,
        Self::Feed,
        Self::Snapshot,
        Self::Restore,
        Self::ConfigSchema,
    ];

    /// Its name where it is exported.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Configure => "configure",
            Self::EndpointsChanged => "endpoints-changed",
            Self::Decide => "decide",
            Self::Build => "build",
            Self::Weigh | Self::Feed => "tick",
            Self::Snapshot => "snapshot",
            Self::Restore => "restore",
            Self::ConfigSchema => "config-schema",
        }
    }

    /// The interface that it is exported in; `None` for the world itself.
    const fn interface(self) -> Option<&'static str> {
        match self {
            Self::Feed => Some("feedback"),
            Self::Snapshot | Self::Restore => Some("state"),
            Self::ConfigSchema => Some("schema"),
            _ => None,
        }
    }

    fn check(self, function: &ComponentFunc, world: &Component) -> Result<(), LoadError> {
        let world = &world.instance_type();
        let checked = match self {
            Self::Configure => function.typecheck::<(&str,), (Result<(), String>,)>(world),
            Self::EndpointsChanged => function.typecheck::<(u64, &[guest::Endpoint]), ()>(world),
            Self::Decide => function.typecheck::<(guest::Flow,), (guest::Decision,)>(world),
            Self::Build => {
                function.typecheck::<(u64, &[guest::Endpoint]), (Result<Vec<u32>, String>,)>(world)
            }
            Self::Weigh => function.typecheck::<(u64, &[signals::Sample]), (Vec<u32>,)>(world),
            Self::Feed => {
                function.typecheck::<(u64, &[signals::Sample], &[feedback::Ended], u32), ()>(world)
            }
            Self::Snapshot => function.typecheck::<(), (Vec<u8>,)>(world),
            Self::Restore => function.typecheck::<(&[u8],), (Result<(), String>,)>(world),
            Self::ConfigSchema => function.typecheck::<(), (String,)>(world),
        };
        checked.map_err(|error| LoadError::WrongType {
            name: self.name().into(),
            reason: chain_of(&error),
        })
    }
}

/// For each [`Function`] something, or nothing where the guest does not export it.
pub(crate) struct ByFunction<T>([Option<T>; Function::ALL.len()]);

impl<T> ByFunction<T> {
    pub(crate) fn get(&self, function: Function) -> Option<&T> {
        self.0[function as usize].as_ref()
    }

    /// Looks up something for each function that is there.
    pub(crate) fn and_then<U>(&self, find: impl Fn(Function, &T) -> Option<U>) -> ByFunction<U> {
        ByFunction(Function::ALL.map(|function| find(function, self.get(function)?)))
    }

    /// Whether there is something for every function that the other has something for.
    pub(crate) fn covers<U>(&self, other: &ByFunction<U>) -> bool {
        Function::ALL.iter().all(|&it| self.get(it).is_some() || other.get(it).is_none())
    }
}

impl<T> Default for ByFunction<T> {
    fn default() -> Self {
        Self([const { None }; Function::ALL.len()])
    }
}

/// What a component exports.
pub(crate) struct World {
    pub(crate) shape: Shape,
    /// The interface that each function is in, as the guest spells it; empty for the world itself.
    pub(crate) interfaces: ByFunction<String>,
}

impl World {
    pub(crate) fn of(wasm: &wasmtime::Engine, component: &Component) -> Result<Self, LoadError> {
        let mut interfaces = ByFunction::default();
        for function in Function::ALL {
            let Some((interface, ty)) = find(wasm, component, function)? else { continue };
            function.check(&ty, component)?;
            interfaces.0[function as usize] = Some(interface);
        }
        let world = Self { shape: shape_of(&interfaces)?, interfaces };
        world.check()?;
        Ok(world)
    }

    pub(crate) fn has(&self, function: Function) -> bool {
        self.interfaces.get(function).is_some()
    }

    fn check(&self) -> Result<(), LoadError> {
        let shape = self.shape;
        let hears = shape.hears_of_endpoints();
        let wanted = [(Function::Configure, true), (Function::EndpointsChanged, hears)];
        for (function, is_wanted) in wanted {
            if is_wanted && !self.has(function) {
                return Err(LoadError::MissingExport(function.name()));
            }
        }
        if self.has(Function::Feed) && shape != Shape::Chooser {
            return Err(LoadError::NoFeedback(shape));
        }
        Ok(())
    }
}

fn shape_of(interfaces: &ByFunction<String>) -> Result<Shape, LoadError> {
    let is_marked = |shape: &Shape| interfaces.get(shape.mark()).is_some();
    let mut shapes = Shape::ALL.into_iter().filter(is_marked);
    match (shapes.next(), shapes.next()) {
        (Some(shape), None) => Ok(shape),
        (Some(one), Some(other)) => Err(LoadError::SeveralShapes(one, other)),
        (None, _) => Err(LoadError::NoShape),
    }
}

/// The function, and the interface that it is in, if the guest exports it.
fn find(
    wasm: &wasmtime::Engine,
    component: &Component,
    function: Function,
) -> Result<Option<(String, ComponentFunc)>, LoadError> {
    let name = function.name();
    let Some(wanted) = function.interface() else {
        let export = component.get_export(wasm, name).map(|export| export.ty);
        let Some(ComponentItem::ComponentFunc(ty)) = export else { return Ok(None) };
        return Ok(Some((String::new(), ty)));
    };
    let Some((interface, exported)) = find_interface(wasm, component, wanted)? else {
        return Ok(None);
    };
    match exported.get_export(wasm, name).map(|export| export.ty) {
        Some(ComponentItem::ComponentFunc(ty)) => Ok(Some((interface, ty))),
        _ => Err(LoadError::MissingExport(name)),
    }
}

fn find_interface(
    wasm: &wasmtime::Engine,
    component: &Component,
    wanted: &str,
) -> Result<Option<(String, ComponentInstance)>, LoadError> {
    for (name, export) in component.exports(wasm) {
        let ComponentItem::ComponentInstance(interface) = export.ty else { continue };
        if our_interface(name)? == Some(wanted) {
            return Ok(Some((name.into(), interface)));
        }
    }
    Ok(None)
}

/// The interface's bare name if it is one of our package, in a version that we speak.
pub(crate) fn our_interface(name: &str) -> Result<Option<&str>, LoadError> {
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

    #[test]
    fn functions_are_found_at_their_own_places() {
        for (place, function) in Function::ALL.into_iter().enumerate() {
            assert_eq!(function as usize, place);
        }
    }
}
