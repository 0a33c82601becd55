//! The path of a policy's author: from an empty folder to a file that a balancer takes.
//!
//! ```text
//!   policy new ──▶ a crate, with the SDK in it ──▶ policy build ──▶ NAME.wasm ──▶ policy test
//!                                                                       └──────▶ policy inspect
//! ```
//!
//! Nothing here needs a balancer that runs, or a copy of this repository: the SDK's sources are part
//! of the program.

pub mod build;
pub mod conformance;
pub mod guest;
pub mod inspect;
pub mod scaffold;
