//! The binary: core dumps off, then the command line.

use std::process::ExitCode;

fn main() -> ExitCode {
    keyward::cli::switch_core_dumps_off();
    keyward::cli::main()
}
