//! The binary: nothing leaks from the process, then the command line.

use std::process::ExitCode;

fn main() -> ExitCode {
    keyward::cli::keep_to_itself();
    keyward::cli::main()
}
