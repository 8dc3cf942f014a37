//! Wires everything together and runs until told to stop.

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize};
use std::time::Duration;

use nix::sys::prctl;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::{Notify, mpsc, oneshot};
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::admin::{self, Role, Source};
use crate::app_health::AppHealth;
use crate::config::{Config, EXIT_CONFIG, LogFormat, ProcessEnv};
use crate::control::{
    CPU_STAT, Readiness, Reload, Report, Resolver, Workers, memory_files, most_large_buffers,
    watch_memory, watch_throttling,
};
use crate::live::{Published, Shared};
use crate::net::{self, SourcePorts};
use crate::sandbox::Sandbox;
use crate::telemetry::{self, AccessLog, LogLimiter, Metrics};
use crate::worker::{self, Command, Listeners, Worker};

/// Exit code when the proxy can't start or go on for a reason outside its
/// configuration, such as a port that is taken (`EX_OSERR`, sysexits.h).
pub const EXIT_OS: u8 = 71;

/// Descriptors kept for what is no proxied connection: files, admin clients, the
/// runtimes themselves; probes of the app come on top.
const RESERVED_DESCRIPTORS: u64 = 256;

/// Resolve requests that may wait; a worker that finds the queue full waits for a place in it.
const RESOLVE_QUEUE: usize = 1024;

/// Files that are read after the start and that no variable names: by the resolver, by the watch
/// over the CPU quota, by whoever looks for ports to dial from, by aws-lc, which learns from a
/// device of some virtual machines that this one is a copy of another, and by the resolver's source
/// of random numbers, which does not find getrandom(2) in a static program. Those of the watch over
/// the memory depend on the control group.
const READ_BESIDE: &[&str] = &[
    "/etc/resolv.conf",
    "/etc/hosts",
    CPU_STAT[0],
    CPU_STAT[1],
    net::KERNEL_RANGE,
    "/dev/sysgenid",
    "/dev/random",
    "/dev/urandom",
];

/// How often a draining proxy looks whether it is done.
const DRAIN_POLL: Duration = Duration::from_millis(20);

type Failure = Box<dyn std::error::Error>;

/// Runs the proxy as the environment says; returns when it has stopped.
pub fn run() -> ExitCode {
    let (config, warnings) = match Config::from_env(&ProcessEnv) {
        Ok(read) => read,
        Err(errors) => {
            eprint!("{errors}");
            return ExitCode::from(EXIT_CONFIG);
        }
    };
    match start(config, &warnings) {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("pillion-proxy: {e}");
            ExitCode::from(EXIT_OS)
        }
    }
}

fn start(config: Config, warnings: &[String]) -> Result<(), Failure> {
    keep_out_of_core_dumps()?;
    // The time of the start is read once, before the sandbox has a word on it.
    let metrics = Metrics::new()?;
    let beside: Vec<_> = READ_BESIDE.iter().map(PathBuf::from).chain(memory_files()).collect();
    let sandbox = Sandbox::enter(&config, &beside)?;
    let log = telemetry::init_logging(&config.log, config.log_format == LogFormat::Json)?;
    for warning in warnings {
        tracing::warn!("{warning}");
    }
    let (resolve, resolve_requests) = mpsc::channel(RESOLVE_QUEUE);
    let shared = Arc::new(Shared {
        own_ports: config.own_ports(),
        metrics,
        access_log: AccessLog::new(config.access_log, log.writer()),
        published: Published::default(),
        open: AtomicUsize::new(0),
        first_open: Notify::new(),
        new_policy: Notify::new(),
        loads: (0..config.workers).map(|_| AtomicUsize::new(0)).collect(),
        max_connections: max_connections(&config)?,
        may_busy_poll: AtomicBool::new(true),
        most_large_buffers: most_large_buffers(config.workers),
        memory_room: AtomicUsize::new(usize::MAX),
        log_limiter: LogLimiter::default(),
        dials: Arc::default(),
        source_ports: source_ports(&config),
        resolve,
        config,
    });
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        // First of all: as a container's PID 1 an unhandled SIGTERM would be ignored.
        let mut signals = Signals::new()?;
        let listeners = bind_workers(&shared.config)?;
        let servers = bind_admin(&shared.config)?;
        let sandbox = sandbox.close()?;
        sandbox.log();
        let workers = worker::start(&shared, listeners)?;
        let inboxes = Workers(workers.iter().map(|w| w.commands.clone()).collect());
        let (readiness, app_health) =
            (Readiness::new(Arc::clone(&shared)), AppHealth::new(Arc::clone(&shared))?);
        let (share, tell) = (|| Arc::clone(&shared), || Arc::clone(&readiness));
        let report = Report::new(share(), inboxes.clone(), log, tell(), app_health, sandbox);
        serve_admin(servers, &(Arc::new(report) as Arc<dyn Source>));
        let resolver = Resolver::new(share(), inboxes.clone(), tell(), resolve_requests);
        let reload = Reload::new(share(), inboxes.clone(), tell());
        tokio::spawn(watch_throttling(Arc::clone(&shared)));
        tokio::spawn(watch_memory(Arc::clone(&shared), inboxes.clone()));
        tracing::info!(version = env!("CARGO_PKG_VERSION"), workers = workers.len(), "started");
        // The reloads and the resolver do not end before the signal comes.
        let result = tokio::select! {
            () = until_stopped(&shared, &mut signals, &inboxes) => Ok(()),
            () = any_ended(&workers) => Err("a worker has ended by a panic; the log has it".into()),
            ((), ()) = async { tokio::join!(reload.run(), resolver.run()) } => Ok(()),
        };
        stop(&shared, workers).await;
        result
    })
}

/// Where servers are dialled from. Without ports of our own that still works, less well: see
/// [`SourcePorts`].
fn source_ports(config: &Config) -> SourcePorts {
    let wanted = config.source_ports.clone();
    let kernels = net::kernel_range().unwrap_or_else(|e| {
        tracing::warn!("cannot read {}, so it is taken for 32768 to 60999: {e}", net::KERNEL_RANGE);
        32_768..=60_999
    });
    let ports = SourcePorts::new(wanted.clone(), &kernels);
    let (first, last) = (kernels.start(), kernels.end());
    match (wanted, ports.range()) {
        (None, _) => {}
        (Some(_), None) => tracing::warn!(
            "all of PILLION_SOURCE_PORTS are ports that the kernel gives to apps ({first} to {last}): \
             a few of their connections may be reset; name ports outside, or narrow \
             net.ipv4.ip_local_port_range of the pod"
        ),
        (Some(wanted), Some(range)) if wanted != *range => tracing::info!(
            first = range.start(),
            last = range.end(),
            "servers are dialled from fewer ports than PILLION_SOURCE_PORTS names: the kernel gives the others to apps"
        ),
        (Some(_), Some(_)) => {}
    }
    ports
}

/// A core dump would hold the private key. Without the dumpable flag the kernel writes none, also
/// where `core_pattern` is a program, which the limit does not hold back; and no process of the
/// same user may look into the memory (prctl(2), ptrace(2)).
fn keep_out_of_core_dumps() -> Result<(), Failure> {
    prctl::set_dumpable(false)?;
    setrlimit(Resource::RLIMIT_CORE, 0, 0)?;
    Ok(())
}

/// Binds every worker's listeners before the threads that accept from them are started: a port
/// which is taken stops the start before anything is served, and what comes after needs no port.
fn bind_workers(config: &Config) -> Result<Vec<Listeners>, Failure> {
    let inbound = bind_each("PILLION_INBOUND_LISTEN", &config.inbound_listen, config.workers)?;
    let outbound = bind_each("PILLION_OUTBOUND_LISTEN", &config.outbound_listen, config.workers)?;
    let sets = inbound.into_iter().zip(outbound);
    Ok(sets.map(|(inbound, outbound)| Listeners { inbound, outbound }).collect())
}

/// Binds every address once for each worker: the listeners of the first worker, of
/// the second, and so on. A proxy that could listen nowhere must not look ready.
fn bind_each(
    variable: &str,
    addresses: &[SocketAddr],
    workers: usize,
) -> Result<Vec<Vec<TcpListener>>, Failure> {
    let mut sets = Vec::new();
    sets.resize_with(workers, Vec::new);
    for addr in addresses {
        let bound = bind(variable, *addr, |addr| net::bind_shared(addr, workers))?;
        for (set, listener) in sets.iter_mut().zip(bound.into_iter().flatten()) {
            set.push(listener);
        }
    }
    if sets.iter().any(Vec::is_empty) {
        return Err(
            format!("no address of {variable} could be listened on: name an IPv4 one").into()
        );
    }
    Ok(sets)
}

/// Binds an address. A namespace without IPv6 has no IPv6 listener, and nothing can
/// arrive there; anything else that fails is an error.
fn bind<T>(
    variable: &str,
    addr: SocketAddr,
    bind: impl FnOnce(SocketAddr) -> io::Result<T>,
) -> Result<Option<T>, Failure> {
    match bind(addr) {
        Ok(bound) => Ok(Some(bound)),
        Err(e) if net::is_absent_family(addr, &e) => {
            tracing::info!(%addr, "no IPv6 here: not listening");
            Ok(None)
        }
        Err(e) => Err(format!("cannot listen on {addr} ({variable}): {e}").into()),
    }
}

/// The listeners of the three small servers.
fn bind_admin(config: &Config) -> Result<Vec<(Role, TcpListener)>, Failure> {
    let mut bound = Vec::new();
    for (role, variable, addresses) in [
        (Role::Health, "PILLION_HEALTH_LISTEN", &config.health_listen),
        (Role::Metrics, "PILLION_METRICS_LISTEN", &config.metrics_listen),
        (Role::Admin, "PILLION_ADMIN_LISTEN", &config.admin_listen),
    ] {
        for addr in addresses {
            bound.extend(bind(variable, *addr, net::bind)?.map(|listener| (role, listener)));
        }
    }
    Ok(bound)
}

fn serve_admin(bound: Vec<(Role, TcpListener)>, report: &Arc<dyn Source>) {
    for (role, listener) in bound {
        tokio::spawn(admin::serve(role, Arc::clone(report), listener));
    }
}

/// The signals that stop the proxy.
struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    fn new() -> io::Result<Self> {
        let terminate = signal(SignalKind::terminate())?;
        Ok(Self { terminate, interrupt: signal(SignalKind::interrupt())? })
    }

    async fn next(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}

/// Serves until SIGTERM or SIGINT, and on until nothing is open, the drain
/// deadline has passed, or a second signal comes. A native sidecar gets its
/// SIGTERM after the app has gone, so there is nothing to drain away from: new
/// connections are still served.
async fn until_stopped(shared: &Shared, signals: &mut Signals, workers: &Workers) {
    signals.next().await;
    workers.retire();
    let deadline = Instant::now() + shared.config.timeouts.drain;
    tracing::info!(open = shared.open_connections(), "told to stop; serving what is open");
    while shared.open_connections() > 0 {
        tokio::select! {
            () = signals.next() => break,
            () = tokio::time::sleep_until(deadline) => break,
            () = tokio::time::sleep(DRAIN_POLL) => {}
        }
    }
}

/// Resolves when a worker's thread has ended.
async fn any_ended(workers: &[Worker]) {
    let mut ended: JoinSet<()> = JoinSet::new();
    for worker in workers {
        let commands = worker.commands.clone();
        ended.spawn(async move { commands.closed().await });
    }
    ended.join_next().await;
}

/// Resets what is still open and ends the workers.
async fn stop(shared: &Shared, workers: Vec<Worker>) {
    let left = shared.open_connections();
    for worker in &workers {
        let (reply, done) = oneshot::channel();
        if worker.commands.send(Command::Reset(reply)).is_ok() {
            // A worker that has gone has nothing left to reset.
            let _ = tokio::time::timeout(Duration::from_secs(1), done).await;
        }
    }
    tracing::info!(reset = left, "stopped");
}

/// Raises the soft limit of descriptors to the hard one, and gives half of what
/// remains above a reserve to connections, because each takes two.
fn max_connections(config: &Config) -> Result<usize, Failure> {
    let configured = config.max_connections;
    // At most one run at each of the pod's addresses, which has rarely more than two, and whoever
    // waits for one.
    let probes = match config.app_probes.len() {
        0 => 0,
        some => u64::try_from(some.saturating_mul(2).saturating_add(admin::MAX_WAITING))?,
    };
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard)?;
    let possible = usize::try_from(hard.saturating_sub(RESERVED_DESCRIPTORS + probes) / 2)?.max(1);
    if let Some(wanted) = configured.filter(|wanted| *wanted > possible) {
        tracing::warn!(
            wanted,
            possible,
            "PILLION_MAX_CONNECTIONS is more than the descriptor limit allows"
        );
    }
    Ok(configured.map_or(possible, |wanted| wanted.min(possible)))
}
