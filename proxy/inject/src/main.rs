//! `pillion-inject`: the sidecar in Kubernetes manifests.

use std::io;
use std::process::ExitCode;

use pillion_inject::{cli, config};

fn main() -> ExitCode {
    // `--help`, `--version` and what clap cannot parse end here, the last with code 2.
    let matches = cli::command().get_matches();
    let (mut input, mut out) = (io::stdin().lock(), io::stdout().lock());
    ExitCode::from(cli::run(
        &matches,
        &config::environment(),
        &mut input,
        &mut out,
        &mut io::stderr().lock(),
    ))
}
