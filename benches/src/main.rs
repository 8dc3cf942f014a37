//! `pillion-bench`: Pillion beside other proxies, under the same loads.

use std::process::ExitCode;

fn main() -> ExitCode {
    pillion_benches::main()
}
