//! `syscalls`: strace counts what the proxies ask of the kernel.

use std::collections::BTreeMap;
use std::time::Duration;

use nix::sys::signal::Signal;
use pillion_testbed::{Process, wait_until};

use crate::cli::SyscallOptions;
use crate::error::Error;
use crate::interrupt::Interrupt;
use crate::plan::{self, Load, Unit};
use crate::report::summary::digits;
use crate::run::{Pace, one, testbed};
use crate::stack::{Stack, StackKind};

/// The loads that are looked at: bulk, small messages, new connections.
const LOADS: [&str; 3] = ["bulk-up-1", "http-32", "churn-16"];
/// How long strace may take to attach or to print.
const LIMIT: Duration = Duration::from_secs(10);
/// A call that is rarer than this share of all is not shown.
const RARE: f64 = 0.002;

/// Counts and prints, in Markdown.
///
/// # Errors
/// A stack can't be started, or strace is not installed.
pub(crate) fn run(options: &SyscallOptions) -> Result<(), Error> {
    let loads = plan::choose(1, false, &LOADS.map(str::to_owned))?;
    let kinds = StackKind::choose(&options.stacks, &options.programs)?;
    let interrupt = Interrupt::listen()?;
    for load in &loads {
        for kind in kinds.iter().filter(|kind| **kind != StackKind::Direct) {
            interrupt.check()?;
            eprintln!("counting: {} under {}", load.name, kind.name());
            // A fresh stack each time: nothing of an earlier load is still in its books.
            let bed = testbed()?;
            let stack = Stack::start(&bed, *kind, &options.programs)?;
            let (calls, units) = count(&stack, load, options.seconds, &interrupt)?;
            print(&stack, load, &calls, units);
        }
    }
    Ok(())
}

type Calls = BTreeMap<String, u64>;

fn count(
    stack: &Stack,
    load: &Load,
    seconds: f64,
    interrupt: &Interrupt,
) -> Result<(Calls, u64), Error> {
    let mut straces = Vec::new();
    for pid in &stack.pids {
        let mut command = stack.client.daemon("strace");
        command.args(["-c", "-f", "-p", &pid.to_string()]);
        straces.push(stack.client.spawn("strace", &mut command)?);
    }
    for (strace, pid) in straces.iter().zip(&stack.pids) {
        wait_until("strace to attach", LIMIT, || Ok(traced(*pid)?.then_some(())))
            .map_err(|failure| table_error(stack, strace, &failure.to_string()))?;
    }
    let pace = Pace { seconds, warm_up: 0.0, rate: 1000.0 };
    let outcome = one(stack, load, pace, interrupt)?;
    let mut calls = Calls::new();
    for mut strace in straces {
        strace.signal(Signal::SIGINT)?;
        strace.wait(LIMIT)?;
        let printed = strace.stderr()?;
        let found = parse(&printed);
        if found.is_empty() {
            return Err(table_error(stack, &strace, "no table"));
        }
        for (name, count) in found {
            *calls.entry(name).or_default() += count;
        }
    }
    if outcome.units_in_all == 0 {
        return Err(Error::NoWork { load: load.name.clone(), stack: stack.kind.name() });
    }
    Ok((calls, outcome.units_in_all))
}

/// Whether all threads of a process have a tracer (proc(5), TracerPid).
fn traced(pid: u32) -> Result<bool, pillion_testbed::Failure> {
    for task in std::fs::read_dir(format!("/proc/{pid}/task"))? {
        let status = std::fs::read_to_string(task?.path().join("status"))?;
        if status.contains("TracerPid:\t0\n") {
            return Ok(false);
        }
    }
    Ok(true)
}

fn table_error(stack: &Stack, strace: &Process, why: &str) -> Error {
    let output = format!("{why}: {}", strace.stderr().unwrap_or_default());
    Error::Strace { stack: stack.kind.name(), output }
}

/// Reads strace's table: the fourth column is the number of calls, the last the name.
fn parse(text: &str) -> Calls {
    let rows = text.lines().skip_while(|line| !line.starts_with("------")).skip(1);
    let rows = rows.take_while(|line| !line.starts_with("------"));
    let row = |line: &str| {
        let words: Vec<_> = line.split_whitespace().collect();
        let calls = words.get(3)?.parse().ok()?;
        Some(((*words.last()?).to_owned(), calls))
    };
    rows.filter_map(row).collect()
}

fn print(stack: &Stack, load: &Load, calls: &Calls, units: u64) {
    let (per, unit) = match load.unit() {
        Unit::Byte => (units as f64 / 1e6, "MB"),
        Unit::Connection => (units as f64, "connection"),
        _ => (units as f64, "request"),
    };
    let all: u64 = calls.values().sum();
    println!("| {}, {} | calls a {unit}, pair |\n|---|---|", load.name, stack.kind.name());
    let mut rows: Vec<_> = calls.iter().collect();
    rows.sort_by_key(|(_, count)| std::cmp::Reverse(**count));
    for (name, count) in rows {
        if *count as f64 >= all as f64 * RARE {
            println!("| {name} | {} |", digits(*count as f64 / per));
        }
    }
    println!("| all | {} |\n", digits(all as f64 / per));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_is_read_with_and_without_errors() {
        let calls = parse(
            "strace: Process 7 attached with 2 threads\n\
             % time     seconds  usecs/call     calls    errors syscall\n\
             ------ ----------- ----------- --------- --------- ----------------\n\
             \x2060.00    0.000600           3       200           sendto\n\
             \x2040.00    0.000400           4       100        33 recvfrom\n\
             ------ ----------- ----------- --------- --------- ----------------\n\
             100.00    0.001000           3       300        33 total\n",
        );
        assert_eq!(calls, Calls::from([("sendto".to_owned(), 200), ("recvfrom".to_owned(), 100)]));
        assert!(parse("strace: attach: no such process\n").is_empty());
    }
}
