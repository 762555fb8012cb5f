//! The binary: hands the arguments to `cli` and turns the result into an exit status. It knows nothing else.

use std::process::ExitCode;

fn main() -> ExitCode {
    pgsteer::cli::main()
}
