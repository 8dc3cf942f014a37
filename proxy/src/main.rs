//! The transparent mTLS sidecar. `pillion-proxy --help` says what it does.

use std::fmt::Write;
use std::process::ExitCode;

use clap::{CommandFactory, FromArgMatches};
use pillion_proxy::cli::{Cli, Command};
use pillion_proxy::config::VARIABLES;
use pillion_proxy::{cli, run};

fn main() -> ExitCode {
    let matches = Cli::command().after_long_help(variables()).get_matches();
    match Cli::from_arg_matches(&matches) {
        Err(e) => e.exit(),
        Ok(Cli { command: None | Some(Command::Run) }) => run::run(),
        Ok(Cli { command: Some(Command::Tool(tool)) }) => cli::run(&tool),
    }
}

/// The environment's table, for `--help`.
fn variables() -> String {
    let mut text = format!(
        "{}\n\nEnvironment of `run` (a bad value ends it with {}):\n",
        cli::EXAMPLES,
        pillion_proxy::config::EXIT_CONFIG
    );
    for v in VARIABLES {
        let default =
            if v.default.is_empty() { String::new() } else { format!(" [{}]", v.default) };
        // Writing to a string can't fail.
        let _ = writeln!(text, "  {}{default}\n      {}", v.name, v.meaning);
    }
    text
}
