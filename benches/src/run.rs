//! `run`: all loads under all stacks, several times over.

use std::fs;
use std::process::Command;
use std::time::{Duration, Instant};

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use pillion_testbed::{Testbed, wait_until};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use crate::cli::RunOptions;
use crate::error::{Context, Error, write};
use crate::interrupt::Interrupt;
use crate::load::{Kind, Outcome};
use crate::plan::{self, CLOSED_LOOP, Load, Unit};
use crate::report::summary::{Metric, Sample, Summary, digits, readable};
use crate::report::{chart, json, table};
use crate::stack::{Stack, StackKind};

/// How many files every process of a run may have open, where the machine lets it: the idle
/// connections are two sockets each in a proxy.
const DESCRIPTORS: u64 = 65_536;
/// The open loop's rate, as a share of what the slowest stack reaches.
const OPEN_LOOP_SHARE: f64 = 0.7;
/// How long idle connections settle before memory is looked at.
const SETTLE: f64 = 3.0;
/// A load that has not ended so long after it should have is hung.
const GRACE: Duration = Duration::from_secs(90);

/// How a load is run.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Pace {
    pub(crate) seconds: f64,
    pub(crate) warm_up: f64,
    /// The open loop's requests a second.
    pub(crate) rate: f64,
}

/// Runs everything and writes the report.
///
/// # Errors
/// A pod, a stack or a load can't be started, or somebody interrupts the run; the pods go then.
/// A load that goes badly is no error: its failures are in the report.
pub(crate) fn run(options: &RunOptions) -> Result<(), Error> {
    let idle = options.idle.unwrap_or(if options.full { 4000 } else { 1000 });
    let loads = plan::choose(idle, options.full, &options.loads)?;
    let stacks = StackKind::choose(&options.stacks, &options.programs)?;
    let interrupt = Interrupt::listen()?;
    fs::create_dir_all(&options.out).context(options.out.display().to_string())?;
    let bed = testbed()?;
    let stacks = start(&bed, &stacks, options, &interrupt)?;
    let mut run = Summary {
        date: now(),
        machine: machine(),
        stacks: stacks.iter().map(|stack| stack.kind).collect(),
        loads,
        rounds: options.rounds.unwrap_or(3),
        seconds: options.seconds.unwrap_or(if options.full { 4.0 } else { 1.7 }),
        rate: options.rate,
        samples: Vec::new(),
    };
    let all = options.full || !options.loads.is_empty();
    rounds(&mut run, &stacks, all, &interrupt)?;
    let text = table::markdown(&run);
    write(&options.out.join("bench.json"), &format!("{:#}\n", json::document(&run)))?;
    write(&options.out.join("bench.svg"), &chart::svg(&run))?;
    println!("{text}");
    eprintln!("written: bench.json and bench.svg in {}", options.out.display());
    Ok(())
}

/// A switch for the pods. Programs that are started from now on may open many files.
///
/// # Errors
/// Not root, or the kernel refuses.
pub(crate) fn testbed() -> Result<Testbed, Error> {
    let bed = Testbed::new(Some(false))?;
    // Only the soft limit, which needs no privilege: a container may forbid to raise the hard one.
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).context("the limit of open files")?;
    let most = DESCRIPTORS.min(hard);
    setrlimit(Resource::RLIMIT_NOFILE, most, hard).context("the limit of open files")?;
    Ok(bed)
}

fn start(
    bed: &Testbed,
    kinds: &[StackKind],
    options: &RunOptions,
    interrupt: &Interrupt,
) -> Result<Vec<Stack>, Error> {
    let mut stacks = Vec::new();
    for kind in kinds {
        interrupt.check()?;
        eprintln!("starting {}", kind.name());
        stacks.push(Stack::start(bed, *kind, &options.programs)?);
    }
    Ok(stacks)
}

/// All rounds. In each, all stacks come under a load before the next load: what else the machine
/// does at a time meets them alike.
fn rounds(
    run: &mut Summary,
    stacks: &[Stack],
    all: bool,
    interrupt: &Interrupt,
) -> Result<(), Error> {
    let begun = Instant::now();
    let (loads, rounds) = (run.loads.clone(), run.rounds);
    for round in 1..=rounds {
        for load in &loads {
            // Memory is that of proxies that have done nothing else yet.
            if load.kind == Kind::Idle && round > 1 {
                continue;
            }
            if load.kind == Kind::HttpOpen && run.rate.is_none() {
                run.rate = open_loop_rate(run);
            }
            for stack in stacks.iter().filter(|stack| load.suits(stack.kind, all)) {
                interrupt.check()?;
                let outcome = one(stack, load, pace(run, load), interrupt)?;
                progress(begun, round, rounds, stack.kind, load, &outcome);
                let (stack, load) = (stack.kind, load.name.clone());
                run.samples.push(Sample { round, stack, load, outcome });
            }
        }
    }
    Ok(())
}

fn pace(run: &Summary, load: &Load) -> Pace {
    let warm_up = (run.seconds / 4.0).min(0.5);
    let rate = run.rate.unwrap_or(1000.0);
    match load.kind {
        Kind::Idle => Pace { seconds: 0.2, warm_up: SETTLE.min(run.seconds * 2.0), rate },
        _ => Pace { seconds: run.seconds, warm_up, rate },
    }
}

/// Of the closed loops so far, a share of the slowest one's rate: every stack can keep it up.
fn open_loop_rate(run: &Summary) -> Option<f64> {
    let rates = run.stacks.iter().filter(|stack| stack.is_mtls()).filter_map(|stack| {
        let clean = run.failures(CLOSED_LOOP, *stack) == 0;
        run.figure(CLOSED_LOOP, *stack, Metric::Throughput).filter(|_| clean)
    });
    rates.reduce(f64::min).map(|slowest| (slowest * OPEN_LOOP_SHARE).round())
}

/// One load under one stack, in the client's pod.
///
/// # Errors
/// The load can't run, or is interrupted.
pub(crate) fn one(
    stack: &Stack,
    load: &Load,
    pace: Pace,
    interrupt: &Interrupt,
) -> Result<Outcome, Error> {
    let mut command = command(stack, load, pace)?;
    let mut process = stack.client.spawn("load", &mut command)?;
    let limit = GRACE + Duration::from_secs_f64(pace.seconds + pace.warm_up);
    let what = format!("the end of {} under {}", load.name, stack.kind.name());
    let ended = wait_until(&what, limit, || {
        Ok(if interrupt.is_set() { Some(None) } else { process.ended()?.map(Some) })
    })?;
    let status = ended.ok_or(Error::Interrupted)?;
    if !status.success() {
        return Err(Error::Load {
            load: load.name.clone(),
            stack: stack.kind.name(),
            code: status.code().unwrap_or(-1),
            output: process.stderr()?,
        });
    }
    serde_json::from_str(&process.stdout()?).map_err(|source| Error::Json { what, source })
}

fn command(stack: &Stack, load: &Load, pace: Pace) -> Result<Command, Error> {
    use clap::ValueEnum;
    let kind = load.kind.to_possible_value();
    let kind = kind.as_ref().map_or("", |value| value.get_name());
    let mut command = stack.client.daemon(std::env::current_exe().context("this program")?);
    command.args(["load", kind, "--to", &stack.address.to_string()]);
    for (name, value) in [
        ("--connections", load.connections.to_string()),
        ("--size", load.size.to_string()),
        ("--rate", pace.rate.to_string()),
        ("--seconds", pace.seconds.to_string()),
        ("--warm-up", pace.warm_up.to_string()),
    ] {
        command.args([name, &value]);
    }
    if !stack.pids.is_empty() {
        let pids: Vec<_> = stack.pids.iter().map(u32::to_string).collect();
        command.args(["--watch", &pids.join(",")]);
    }
    Ok(command)
}

/// A line for the person who waits.
fn progress(
    begun: Instant,
    round: u32,
    rounds: u32,
    stack: StackKind,
    load: &Load,
    outcome: &Outcome,
) {
    let wanted = match load.unit() {
        Unit::Held => [Metric::BaseMemory, Metric::MemoryPerUnit],
        _ => [Metric::Throughput, Metric::Cpu],
    };
    let mut line = format!(
        "{:4} s  round {round}/{rounds}  {:<14} {:<12}",
        begun.elapsed().as_secs(),
        load.name,
        stack.name()
    );
    for metric in wanted {
        if let Some(value) = metric.of(outcome) {
            let (value, unit) = readable(metric, load.unit(), value);
            line.push_str(&format!("  {:>8} {unit}", digits(value)));
        }
    }
    if let Some(why) = &outcome.failure {
        line.push_str(&format!("  {} FAILURES: {why}", outcome.failures));
    }
    eprintln!("{line}");
}

/// Now, without the fraction that nobody reads.
pub(crate) fn now() -> String {
    let now = OffsetDateTime::now_utc();
    now.replace_nanosecond(0).unwrap_or(now).format(&Rfc3339).unwrap_or_default()
}

/// What there is to know of the machine, and nothing that names it.
pub(crate) fn machine() -> String {
    let processors = std::thread::available_parallelism().map_or(0, std::num::NonZero::get);
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let version = kernel.split(['-', '\n']).next().unwrap_or_default();
    format!("{processors} processors ({}), Linux {version}", std::env::consts::ARCH)
}
