//! `pillion-certs`: makes an authority, issues SVIDs, and says what is wrong with a certificate.

mod cli;

use std::process::ExitCode;

use clap::Parser;

fn main() -> ExitCode {
    cli::run(&cli::Cli::parse())
}
