//! The `pointsman` binary; its parts are in the library.
#![forbid(unsafe_code)]

use std::process::ExitCode;

fn main() -> ExitCode {
    pointsman::cli::main()
}
