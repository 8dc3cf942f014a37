//! The command line: `check`, `explain`, `diff` and `schema` on the code that the proxy itself runs
//! on, and `ready`, which asks a running one.

mod connections;
mod diff;
mod ready;

use std::collections::HashSet;
use std::io::{self, Write};
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand, ValueEnum};
use pillion_certs::spiffe::{SpiffeId, TrustDomain};
use pillion_policy::{
    Compiled, Diagnostic, Explained, HostTable, InboundConn, MAX_FILE_BYTES, Policy,
};
use serde_json::json;

use crate::config::ProcessEnv;

pub use diff::DiffArgs;
pub use ready::{EXIT_NOT_READY, ReadyArgs};

/// The file is good, the connection would be let through, or nothing changes.
pub const EXIT_OK: u8 = 0;
/// The file has errors, or warnings under `--strict`; or two files are too large to compare.
pub const EXIT_BAD_FILE: u8 = 1;
/// The command line is wrong, or a file can't be read.
pub const EXIT_USAGE: u8 = 2;
/// `explain`: the connection would be refused, or an open one would end.
pub const EXIT_DENIED: u8 = 3;

/// `diff`: something changes.
pub const EXIT_CHANGED: u8 = 4;

/// Why no identity can be judged without knowing our own trust domain.
const UNKNOWN_DOMAIN: &str = "a file without trustDomains accepts peers of our own trust domain; \
                              say which one that is with --trust-domain";

/// What `--help` ends with.
pub const EXAMPLES: &str = "\
Examples:
  pillion-proxy                                     run, configured by PILLION_* variables
  pillion-proxy check -f policy.yaml --strict       in CI: warnings fail too
  pillion-proxy explain -f policy.yaml --trust-domain cluster.local \\
      --source 10.244.1.7 --identity spiffe://cluster.local/ns/shop/sa/frontend --port 8080
  pillion-proxy explain -f new.yaml --trust-domain cluster.local --admin 127.0.0.1:15000
                                                    which open connections it would end
  pillion-proxy diff policy.yaml new.yaml --trust-domain cluster.local
                                                    which connections a change lets in or out
  pillion-proxy ready                               for a container's health check: 0 or 1
  pillion-proxy schema > policy.schema.json         for an editor

Exit codes: 0 good, allowed, unchanged or ready, 1 a file has errors, or the proxy is not ready, 2 usage,
3 explain: denied, or some would end, 4 diff: something changes.";

/// Transparent mTLS sidecar proxy: without a command it runs; the others look at a policy file,
/// or ask a proxy that runs.
#[derive(Debug, Parser)]
#[command(name = "pillion-proxy", version, about, after_help = EXAMPLES)]
pub struct Cli {
    /// What to do; without it, `run`.
    #[command(subcommand)]
    pub command: Option<Command>,
}

/// What the binary can do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run the proxy (the default). It is configured by PILLION_* environment variables.
    Run,
    /// The commands beside the proxy.
    #[command(flatten)]
    Tool(Tool),
}

/// Commands that need no certificate.
#[derive(Debug, Subcommand)]
pub enum Tool {
    /// Check a policy file: every error at once, each with its line and its cure.
    Check(CheckArgs),
    /// Tell what the policy does with one connection, and why each other rule doesn't decide.
    Explain(ExplainArgs),
    /// Tell which connections fare otherwise by another policy file.
    Diff(DiffArgs),
    /// Print the JSON Schema of the policy file.
    Schema,
    /// Ask the proxy that runs in this pod whether it is ready: for a container's health check. Its
    /// address is that of PILLION_HEALTH_LISTEN.
    Ready(ReadyArgs),
}

/// Options of `check`.
#[derive(Debug, Args)]
pub struct CheckArgs {
    /// The policy file.
    #[arg(short, long)]
    file: PathBuf,
    /// Our own trust domain: completes `namespace/service-account`, and is the default of
    /// trustDomains. Without it, neither is checked.
    #[arg(long)]
    trust_domain: Option<TrustDomain>,
    /// Take warnings for errors.
    #[arg(long)]
    strict: bool,
    /// How to print what was found.
    #[arg(short, long, value_enum, default_value_t = Output::Text)]
    output: Output,
}

/// A form of output.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Output {
    /// For people.
    Text,
    /// One JSON object.
    Json,
}

/// Options of `explain`.
#[derive(Debug, Args)]
pub struct ExplainArgs {
    /// The policy file.
    #[arg(short, long)]
    file: PathBuf,
    /// Judge the connections that are open now instead of one: the answer of the admin endpoint
    /// GET /connections, from a file, or from standard input if this is "-".
    #[arg(long, value_name = "FILE", conflicts_with_all = ["admin", "source", "identity", "port", "dest", "host"])]
    connections: Option<PathBuf>,
    /// The same, asked of the running proxy's admin server, 127.0.0.1:15000 for example.
    #[arg(long, value_name = "ADDRESS", conflicts_with_all = ["source", "identity", "port", "dest", "host"])]
    admin: Option<SocketAddr>,
    /// Inbound is a peer that calls this pod, outbound a call by this pod's application.
    #[arg(long, value_enum, default_value_t = Direction::Inbound)]
    direction: Direction,
    /// Inbound: the peer's address.
    #[arg(long, required_unless_present_any = ["dest", "connections", "admin"], conflicts_with_all = ["dest", "host"])]
    source: Option<IpAddr>,
    /// Inbound: the peer's SPIFFE ID; leave it out for plaintext.
    #[arg(long, conflicts_with_all = ["dest", "host"])]
    identity: Option<SpiffeId>,
    /// The port: inbound, the one that the workload listens on.
    #[arg(long, value_parser = clap::value_parser!(u16).range(1..), required_unless_present_any = ["connections", "admin"])]
    port: Option<u16>,
    /// Outbound: the destination's address.
    #[arg(long, required_if_eq("direction", "outbound"))]
    dest: Option<IpAddr>,
    /// Outbound: a name that has the address at present; may be repeated.
    #[arg(long, num_args = 1..)]
    host: Vec<String>,
    /// Our own trust domain; needed where the file has `namespace/service-account`.
    #[arg(long)]
    trust_domain: Option<TrustDomain>,
    /// How to print the answer.
    #[arg(short, long, value_enum, default_value_t = Output::Text)]
    output: Output,
}

/// Which way a connection goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Direction {
    /// To this pod.
    Inbound,
    /// From this pod.
    Outbound,
}

/// Runs a command on standard output and standard error.
#[must_use]
pub fn run(tool: &Tool) -> ExitCode {
    // Printed only once the code is known: no reader can change it.
    let (mut out, mut err) = (Vec::new(), Vec::new());
    let Ok(mut code) = execute(tool, &mut out, &mut err) else {
        return ExitCode::from(EXIT_USAGE);
    };
    let (mut stdout, mut stderr) = (io::stdout().lock(), io::stderr().lock());
    let printed = [stderr.write_all(&err), stdout.write_all(&out).and_then(|()| stdout.flush())];
    for error in printed.into_iter().filter_map(Result::err) {
        // A reader that went away (`| head`) has seen what it wanted.
        if error.kind() != io::ErrorKind::BrokenPipe {
            code = EXIT_USAGE;
        }
    }
    ExitCode::from(code)
}

/// Runs a command; the result is its exit code.
///
/// # Errors
/// Only when `out` or `err` can't be written to.
pub fn execute(tool: &Tool, out: &mut dyn Write, err: &mut dyn Write) -> io::Result<u8> {
    match tool {
        Tool::Check(args) => check(args, out, err),
        Tool::Explain(args) => explain(args, out, err),
        Tool::Diff(args) => diff::run(args, out, err),
        Tool::Ready(args) => ready::run(args, &ProcessEnv, out, err),
        Tool::Schema => {
            writeln!(out, "{:#}", pillion_policy::json_schema())?;
            Ok(EXIT_OK)
        }
    }
}

fn read(path: &Path, err: &mut dyn Write) -> io::Result<Option<String>> {
    use io::Read;
    // One byte more than is taken: `load` tells of the size, and a device has no end.
    let limit = u64::try_from(MAX_FILE_BYTES).unwrap_or(u64::MAX).saturating_add(1);
    let mut text = Vec::new();
    let file = std::fs::File::open(path);
    match file.and_then(|file| file.take(limit).read_to_end(&mut text)) {
        Err(error) => {
            writeln!(err, "{}: can't be read: {error}", path.display())?;
            Ok(None)
        }
        Ok(_) => match pillion_policy::text(&path.display().to_string(), text) {
            Ok(text) => Ok(Some(text)),
            Err(error) => {
                writeln!(err, "{error}")?;
                Ok(None)
            }
        },
    }
}

fn check(args: &CheckArgs, out: &mut dyn Write, err: &mut dyn Write) -> io::Result<u8> {
    let Some(text) = read(&args.file, err)? else { return Ok(EXIT_USAGE) };
    let name = args.file.display().to_string();
    let loaded = pillion_policy::load(&name, &text, args.trust_domain.as_ref());
    let good = matches!(&loaded, Ok(c) if !args.strict || c.warnings.is_empty());
    if args.output == Output::Json {
        let (found, left_out) = match &loaded {
            Ok(compiled) => (compiled.warnings.as_slice(), compiled.warnings_left_out),
            Err(errors) => (errors.as_slice(), errors.left_out()),
        };
        let found: Vec<_> = found.iter().map(json_of).collect();
        let report = json!({"file": name, "ok": good, "diagnostics": found, "leftOut": left_out});
        writeln!(out, "{report:#}")?;
    } else {
        match &loaded {
            Err(errors) => writeln!(err, "{errors}")?,
            Ok(Compiled { policy, warnings, warnings_left_out }) => {
                for warning in warnings {
                    writeln!(err, "{warning}")?;
                }
                if *warnings_left_out > 0 {
                    writeln!(err, "and {warnings_left_out} more warnings")?;
                }
                if good {
                    let (rules, destinations) = (policy.rules(), policy.destinations());
                    writeln!(
                        out,
                        "{name}: ok: policy {}, {} rules, {} destinations, hash {}",
                        policy.name(),
                        rules.len(),
                        destinations.len(),
                        policy.hash()
                    )?;
                }
            }
        }
    }
    Ok(if good { EXIT_OK } else { EXIT_BAD_FILE })
}

fn json_of(found: &Diagnostic) -> serde_json::Value {
    json!({
        "severity": found.kind.severity().as_str(),
        "kind": found.kind.slug(),
        "line": found.line,
        "column": found.column,
        "message": found.message,
    })
}

/// The names that `--host` says have the destination's address.
struct Named(HashSet<String>);

impl HostTable for Named {
    fn contains(&self, host: &str, _: IpAddr) -> bool {
        self.0.contains(host)
    }
}

/// Whether a destination has this host. Names have no case.
fn lists(policy: &Policy, host: &str) -> bool {
    policy.hosts().iter().any(|listed| listed.eq_ignore_ascii_case(host))
}

/// A policy file that can be asked about identities; the errors are printed, and the exit code is
/// theirs.
fn load(
    path: &Path,
    own: Option<&TrustDomain>,
    err: &mut dyn Write,
) -> io::Result<Result<Policy, u8>> {
    let Some(text) = read(path, err)? else { return Ok(Err(EXIT_USAGE)) };
    let name = path.display().to_string();
    let policy = match pillion_policy::load(&name, &text, own) {
        Ok(compiled) => compiled.policy,
        Err(errors) => {
            writeln!(err, "{errors}")?;
            return Ok(Err(EXIT_BAD_FILE));
        }
    };
    if own.is_none() && policy.needs_own_trust_domain() {
        let why = "the file has identities of the form namespace/service-account; say which trust \
                   domain they are of with --trust-domain";
        writeln!(err, "{name}: {why}")?;
        return Ok(Err(EXIT_USAGE));
    }
    Ok(Ok(policy))
}

fn explain(args: &ExplainArgs, out: &mut dyn Write, err: &mut dyn Write) -> io::Result<u8> {
    let policy = match load(&args.file, args.trust_domain.as_ref(), err)? {
        Ok(policy) => policy,
        Err(code) => return Ok(code),
    };
    let (from, answers) = match (&args.connections, args.admin) {
        (Some(path), _) => (path.display().to_string(), connections::from_file(path)),
        (None, Some(admin)) => (admin.to_string(), connections::from_admin(admin)),
        (None, None) => return explain_one(args, &policy, out, err),
    };
    match answers {
        Ok(answers) => connections::judge(&policy, &answers, args.output, out, err),
        Err(error) => {
            writeln!(err, "{from}: the connections can't be read: {error}")?;
            Ok(EXIT_USAGE)
        }
    }
}

fn explain_one(
    args: &ExplainArgs,
    policy: &Policy,
    out: &mut dyn Write,
    err: &mut dyn Write,
) -> io::Result<u8> {
    if args.identity.is_some() && policy.trust_domains().is_empty() {
        writeln!(err, "{UNKNOWN_DOMAIN}")?;
        return Ok(EXIT_USAGE);
    }
    // The proxy makes mapped addresses plain at its edge, and this is the edge of the command.
    let explained = match (args.direction, args.source, args.dest, args.port) {
        (Direction::Inbound, Some(source), _, Some(port)) => policy.explain_inbound(&InboundConn {
            source: source.to_canonical(),
            port,
            identity: args.identity.as_ref(),
        }),
        (Direction::Outbound, _, Some(dest), Some(port)) => {
            let hosts = args.host.iter().map(|host| host.to_ascii_lowercase());
            let hosts = Named(hosts.collect());
            for host in args.host.iter().filter(|host| !lists(policy, host)) {
                writeln!(err, "warning: no destination has the host {host:?}: it changes nothing")?;
            }
            policy.explain_outbound(dest.to_canonical(), port, &hosts)
        }
        _ => {
            writeln!(err, "inbound needs --source, outbound needs --dest")?;
            return Ok(EXIT_USAGE);
        }
    };
    match args.output {
        Output::Text => print(&explained, out)?,
        Output::Json => writeln!(out, "{:#}", json_of_explained(&explained))?,
    }
    Ok(if explained.verdict == "deny" { EXIT_DENIED } else { EXIT_OK })
}

fn json_of_explained(explained: &Explained) -> serde_json::Value {
    let Explained { verdict, rule, why, shadow, lines } = explained;
    let shadow = shadow.as_ref().map(|shadow| {
        json!({"verdict": if shadow.allow { "allow" } else { "deny" }, "rule": &*shadow.rule})
    });
    let lines = lines.iter().map(|line| {
        json!({
            "name": &*line.name, "line": line.line, "action": line.action,
            "decides": line.decides, "why": line.why,
        })
    });
    let lines: Vec<_> = lines.collect();
    json!({"verdict": verdict, "rule": &**rule, "why": why, "reported": shadow, "rules": lines})
}

fn print(explained: &Explained, out: &mut dyn Write) -> io::Result<()> {
    let Explained { verdict, rule, why, shadow, lines } = explained;
    writeln!(out, "{verdict}  by {rule}: {why}")?;
    if let Some(shadow) = shadow {
        let would = if shadow.allow { "allow" } else { "deny" };
        writeln!(out, "reported: would {would}, by {}", shadow.rule)?;
    }
    let width = lines.iter().map(|line| line.name.len()).max().unwrap_or(0);
    for line in lines {
        let mark = if line.decides { '>' } else { ' ' };
        let (name, action, at) = (&line.name, line.action, line.line);
        writeln!(out, "{mark} {name:width$}  {action:11}  line {at:<4} {}", line.why)?;
    }
    Ok(())
}
