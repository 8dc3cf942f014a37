//! The side-by-side load benchmark `pillion-bench`. Micro-benchmarks live in benches/.
//!
//! One binary plays every part: `run` makes the pods and starts the stacks, `serve` is the
//! application in the server's pod, `load` is the one in the client's pod, and `copy-proxy` is
//! the plain proxy that passthrough is compared with.

mod cli;
mod copy_proxy;
mod error;
mod goals;
mod interrupt;
mod load;
mod plan;
mod report;
mod run;
mod serve;
mod stack;
mod startup;
mod stats;
mod syscalls;
mod usage;
mod wire;

use std::process::ExitCode;

/// Runs the command line of this process. A usage error ends it with 2, as clap does; any other
/// error is printed to standard error and gives 1.
#[must_use]
pub fn main() -> ExitCode {
    match cli::run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("pillion-bench: {error}");
            ExitCode::FAILURE
        }
    }
}
