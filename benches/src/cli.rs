//! The command line.

use std::net::IpAddr;
use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};

use crate::error::Error;
use crate::stack::Programs;
use crate::{copy_proxy, load, run, serve, startup, syscalls};

/// Pillion beside other proxies, under the same loads: pods in network namespaces, the real
/// redirect rules, mTLS between the pods. `run`, `syscalls` and `startup` need root.
#[derive(Debug, Parser)]
#[command(name = "pillion-bench", version, about)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Measure all stacks under all loads; print tables, write bench.json and bench.svg.
    Run(RunOptions),
    /// Count the system calls of the proxies with strace, under a bulk load and small messages.
    Syscalls(SyscallOptions),
    /// Measure how long the proxy takes to be ready, and to end once nothing is open.
    Startup(StartupOptions),
    /// The server of the loads: a sink, a source, an echo and HTTP. It runs until it is killed.
    Serve {
        /// The address to listen on.
        #[arg(long)]
        on: IpAddr,
    },
    /// One load; prints what came of it as JSON.
    Load(load::Options),
    /// A plain transparent proxy, the measure of passthrough. It runs until it is killed.
    CopyProxy {
        /// The port for what this pod dials.
        #[arg(long, default_value_t = 15001)]
        outbound: u16,
        /// The port for what dials this pod.
        #[arg(long, default_value_t = 15006)]
        inbound: u16,
    },
}

/// What to measure, and where to write it.
#[derive(Debug, Clone, Args)]
pub(crate) struct RunOptions {
    /// The loads that the goals are about, in five minutes (the default).
    #[arg(long, conflicts_with = "full")]
    pub(crate) quick: bool,
    /// All loads, for longer.
    #[arg(long)]
    pub(crate) full: bool,
    /// The stacks, separated by commas; by default all whose programs are installed.
    #[arg(long, value_delimiter = ',')]
    pub(crate) stacks: Vec<String>,
    /// The loads, separated by commas; a name that ends in * stands for all that begin so.
    #[arg(long, value_delimiter = ',')]
    pub(crate) loads: Vec<String>,
    /// How often each load runs under each stack; the medians are reported.
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) rounds: Option<u32>,
    /// How long each load is measured, in seconds.
    #[arg(long, value_parser = seconds)]
    pub(crate) seconds: Option<f64>,
    /// Requests a second of the open loop; by default 70% of what the slowest stack with mTLS
    /// reaches in the closed loop.
    #[arg(long, value_parser = seconds)]
    pub(crate) rate: Option<f64>,
    /// Connections of the idle load.
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=20_000))]
    pub(crate) idle: Option<u32>,
    /// Where bench.json and bench.svg are written.
    #[arg(long, default_value = "target/bench")]
    pub(crate) out: PathBuf,
    #[command(flatten)]
    pub(crate) programs: Programs,
}

/// Whose system calls to count.
#[derive(Debug, Clone, Args)]
pub(crate) struct SyscallOptions {
    /// The stacks, separated by commas.
    #[arg(long, value_delimiter = ',', default_value = "pillion,envoy")]
    pub(crate) stacks: Vec<String>,
    /// How long each load runs, in seconds.
    #[arg(long, value_parser = seconds, default_value_t = 3.0)]
    pub(crate) seconds: f64,
    #[command(flatten)]
    pub(crate) programs: Programs,
}

/// How often to start the proxy.
#[derive(Debug, Clone, Args)]
pub(crate) struct StartupOptions {
    /// How often it is started and ended.
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) runs: u32,
}

/// A number above 0.
fn seconds(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(value) if value > 0.0 && value <= 1e6 => Ok(value),
        _ => Err("wanted a number above 0, at most 1000000".to_owned()),
    }
}

/// Reads the command line and does what it says.
///
/// # Errors
/// That of the command. A usage error ends the process.
pub(crate) fn run() -> Result<(), Error> {
    match Cli::parse().command {
        Command::Run(options) => run::run(&options),
        Command::Syscalls(options) => syscalls::run(&options),
        Command::Startup(options) => startup::run(&options),
        Command::Serve { on } => serve::run(on),
        Command::CopyProxy { outbound, inbound } => copy_proxy::run(outbound, inbound),
        Command::Load(options) => {
            let outcome = load::run(&options)?;
            let json = |source| Error::Json { what: "the outcome".to_owned(), source };
            println!("{}", serde_json::to_string(&outcome).map_err(json)?);
            Ok(())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str) -> Result<Cli, clap::Error> {
        Cli::try_parse_from(line.split_whitespace())
    }

    #[test]
    fn a_good_line_is_understood() {
        let line = "pillion-bench run --stacks direct,pillion --rounds 2 --seconds 0.5";
        let Command::Run(options) = parse(line).unwrap().command else { panic!("{line}") };
        assert_eq!(options.stacks, ["direct", "pillion"]);
        assert_eq!((options.rounds, options.seconds), (Some(2), Some(0.5)));
    }

    #[test]
    fn a_bad_line_is_refused_with_the_place() {
        for (line, named) in [
            ("pillion-bench", "Usage"),
            ("pillion-bench run --quick --full", "--full"),
            ("pillion-bench run --rounds 0", "--rounds"),
            ("pillion-bench run --seconds 0", "--seconds"),
            ("pillion-bench run --seconds nan", "--seconds"),
            ("pillion-bench run --idle 0", "--idle"),
            ("pillion-bench startup --runs 0", "--runs"),
            ("pillion-bench load http --to nowhere", "--to"),
            ("pillion-bench load carrots --to 127.0.0.1", "carrots"),
            ("pillion-bench serve", "--on"),
        ] {
            let message = parse(line).expect_err(line).to_string();
            assert!(message.contains(named), "{line}: {message}");
        }
    }
}
