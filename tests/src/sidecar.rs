//! A pod's sidecar: the redirect rules, the certificates, the policy and the proxy.

use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use nix::sys::signal::Signal;

use crate::exec::tail;
use crate::labels::{field, metric, port};
use crate::testbed::give_to;
use crate::volume::publish;
use crate::{
    Context, Failure, LogLine, MemoryGroup, Metrics, Pod, Process, Settings, Testbed, complete,
    http, wait_until,
};

/// The user that the redirect rules let pass.
const PROXY_USER: u32 = 1337;

/// How long a proxy may take to become ready, and anything else to be seen in its telemetry.
const LIMIT: Duration = Duration::from_secs(30);

/// Where a sidecar's certificates come from.
#[derive(Debug, Clone)]
pub enum CertificateSource {
    /// Issued by the mesh's authority.
    Mesh,
    /// Copied from a directory that has `tls.crt`, `tls.key` and `ca.crt`.
    Directory(PathBuf),
}

/// What a sidecar is made of.
#[derive(Debug, Clone)]
pub struct MeshOptions {
    /// The text of the policy file.
    pub policy: String,
    /// The SPIFFE id that its certificate carries.
    pub identity: String,
    /// Where its certificate comes from.
    pub certificates: CertificateSource,
    /// The file with key and chain, where these are one.
    key_and_chain: Option<PathBuf>,
    /// Further environment of the proxy.
    pub env: Vec<(String, String)>,
    /// Whether the environment names files of certificates.
    files: bool,
    /// What is in the pod when the proxy starts.
    present: Present,
    /// The program that the proxy is started through, and its arguments.
    launcher: Vec<String>,
}

/// Which files are there when the proxy starts.
#[derive(Debug, Clone, Copy)]
struct Present {
    policy: bool,
    certificates: bool,
}

impl MeshOptions {
    /// A sidecar of the mesh with a policy and an identity.
    #[must_use]
    pub fn new(policy: String, identity: &str) -> Self {
        Self {
            policy,
            identity: identity.to_owned(),
            certificates: CertificateSource::Mesh,
            key_and_chain: None,
            env: Vec::new(),
            files: true,
            present: Present { policy: true, certificates: true },
            launcher: Vec::new(),
        }
    }

    /// The same with one more variable in the proxy's environment.
    #[must_use]
    pub fn env(mut self, name: &str, value: &str) -> Self {
        self.env.push((name.to_owned(), value.to_owned()));
        self
    }

    /// The same with certificates from a directory.
    #[must_use]
    pub fn certificates_from(mut self, directory: PathBuf) -> Self {
        self.certificates = CertificateSource::Directory(directory);
        self
    }

    /// The same with key and chain in one file.
    #[must_use]
    pub fn bundle_file(mut self, file: &Path) -> Self {
        self.key_and_chain = Some(file.to_owned());
        self
    }

    /// The same with no policy file at the start; [`Sidecar::set_policy`] brings it.
    #[must_use]
    pub fn without_policy(mut self) -> Self {
        self.present.policy = false;
        self
    }

    /// The same without the variables that name files of certificates.
    #[must_use]
    pub fn without_files(mut self) -> Self {
        self.files = false;
        self.without_certificates()
    }

    /// The same with no certificate files at the start; [`Sidecar::issue`] brings them.
    #[must_use]
    pub fn without_certificates(mut self) -> Self {
        self.present.certificates = false;
        self
    }

    /// The same with a resolv.conf of the proxy's own, as a container has; no other program sees
    /// it.
    #[must_use]
    pub fn resolv_conf(mut self, file: &Path) -> Self {
        let mount = "mount --bind \"$0\" /etc/resolv.conf && exec \"$@\"";
        let words = ["unshare", "--mount", "--", "sh", "-c", mount];
        self.launcher.extend(words.map(str::to_owned));
        self.launcher.push(file.display().to_string());
        self
    }

    /// The same in a cgroup with a memory limit.
    #[must_use]
    pub fn memory(self, group: &MemoryGroup) -> Self {
        let entrance = group.entrance().display().to_string();
        self.through("echo $$ > \"$0\" && exec \"$@\"", &entrance)
    }

    /// The same with a standard output that somebody else than the test has.
    #[must_use]
    pub fn stdout(self, to: Stdout) -> Self {
        match to {
            // Open for both, so that there is a reader, who does not read.
            Stdout::Blocked(fifo) => {
                self.through("exec 3<>\"$0\"; exec \"$@\" >&3 3>&-", &fifo.display().to_string())
            }
            // The reader has gone before anything is written.
            Stdout::Broken => self.through("exec \"$@\" > >(exec true)", "bash"),
            Stdout::Closed => self.through("exec \"$@\" >&-", "bash"),
        }
    }

    /// The same through a line of bash, whose `$0` is given.
    fn through(mut self, line: &str, zero: &str) -> Self {
        self.launcher.extend(["bash", "-c", line, zero].map(str::to_owned));
        self
    }

    /// The same with core dumps of any size allowed.
    #[must_use]
    pub fn core_dumps(mut self) -> Self {
        self.launcher.extend(["prlimit", "--core=unlimited:unlimited"].map(str::to_owned));
        self
    }

    /// The same with so many file descriptors at most, soft and hard.
    #[must_use]
    pub fn descriptors(mut self, most: u32) -> Self {
        let limit = format!("--nofile={most}:{most}");
        self.launcher.extend(["prlimit".to_owned(), limit]);
        self
    }
}

/// What is wrong with a standard output.
#[derive(Debug, Clone)]
pub enum Stdout {
    /// A named pipe, which is made already, that nobody reads.
    Blocked(PathBuf),
    /// A pipe whose reader has gone.
    Broken,
    /// None at all.
    Closed,
}

/// A pod's sidecar. Dropping it kills the proxy; the rules stay until the pod goes.
#[derive(Debug)]
pub struct Sidecar {
    pod: Pod,
    options: MeshOptions,
    process: Process,
    generation: u32,
}

impl Pod {
    /// Installs the redirect rules and starts the proxy, and waits until it is ready.
    ///
    /// # Errors
    /// A binary is missing or fails, or the proxy is not ready within 30 s.
    pub fn mesh(&self, bed: &Testbed, options: MeshOptions) -> Result<Sidecar, Failure> {
        let mut sidecar = self.mesh_unready(bed, options)?;
        sidecar.wait_ready()?;
        Ok(sidecar)
    }

    /// Installs the redirect rules and starts the proxy, and waits for nothing.
    ///
    /// # Errors
    /// A binary is missing or fails.
    pub fn mesh_unready(&self, bed: &Testbed, options: MeshOptions) -> Result<Sidecar, Failure> {
        self.lay_out(bed, &options)?;
        complete(&mut self.init()?)?;
        let process = start(self, &options)?;
        Ok(Sidecar { pod: self.clone(), options, process, generation: 0 })
    }

    /// Writes the policy and the certificates, and returns the folders they are in.
    ///
    /// # Errors
    /// `pillion-certs` fails, or the files cannot be written.
    pub fn lay_out(
        &self,
        bed: &Testbed,
        options: &MeshOptions,
    ) -> Result<(PathBuf, PathBuf), Failure> {
        let (policy, tls) = (policy_directory(self), tls_directory(self));
        for directory in [&policy, &tls] {
            fs::create_dir_all(directory).context(|| directory.display().to_string())?;
        }
        if options.present.policy {
            publish_policy(self, &options.policy)?;
        }
        if options.present.certificates {
            let from = match &options.certificates {
                CertificateSource::Directory(directory) => directory.clone(),
                CertificateSource::Mesh => {
                    let name = format!("{}-issued.0", self.name());
                    bed.issue(&bed.ca()?, &options.identity, &name)?
                }
            };
            publish_certificates(self, &from)?;
        }
        Ok((policy, tls))
    }

    /// `pillion-init` in this pod, as root; arguments may follow.
    ///
    /// # Errors
    /// The binary is missing.
    pub fn init(&self) -> Result<Command, Failure> {
        Ok(self.command(self.settings().binary("pillion-init")?))
    }
}

impl Sidecar {
    /// Asks a health endpoint: the status, and what it says is pending.
    ///
    /// # Errors
    /// No answer.
    pub fn health(&self, path: &str) -> Result<(u16, String), Failure> {
        http::get(&self.pod, local(port::HEALTH), path)
    }

    /// The proxy's process.
    pub fn process(&mut self) -> &mut Process {
        &mut self.process
    }

    /// Waits until the proxy says that it is ready.
    ///
    /// # Errors
    /// It ends first, or is not ready within 30 s; the message has the end of its log.
    pub fn wait_ready(&mut self) -> Result<(), Failure> {
        let (pod, process) = (&self.pod, &mut self.process);
        let health = local(port::HEALTH);
        let mut pending = String::from("no answer");
        let ready = wait_until("a ready proxy", LIMIT, || {
            if let Some(status) = process.ended()? {
                return Err(Failure::Unexpected(format!("the proxy ended with {status}")));
            }
            // Refused until the listener is there.
            let Ok((status, body)) = http::get(pod, health, "/healthz/ready") else {
                return Ok(None);
            };
            pending = format!("{status} {body}");
            Ok((status == 200).then_some(()))
        });
        ready.map_err(|failure| {
            let printed = [process.stdout(), process.stderr()].map(Result::unwrap_or_default);
            Failure::Unexpected(format!(
                "pod {}: {failure} ({})\n{}",
                pod.name(),
                pending.trim_end(),
                tail(&printed.concat())
            ))
        })
    }

    /// Scrapes the proxy's metrics.
    ///
    /// # Errors
    /// No answer, or one that is not in the text format.
    pub fn metrics(&self) -> Result<Metrics, Failure> {
        let (status, body) = http::get(&self.pod, local(port::METRICS), "/metrics")?;
        if status != 200 {
            return Err(Failure::Unexpected(format!("/metrics: {status} {body}")));
        }
        Metrics::parse(&body)
    }

    /// The sum of the series of a metric that carry all of `labels`; 0 when there is none.
    ///
    /// # Errors
    /// As [`Sidecar::metrics`].
    pub fn metric(&self, name: &str, labels: &[(&str, &str)]) -> Result<f64, Failure> {
        Ok(self.metrics()?.sum(name, labels))
    }

    /// Waits until a metric has a value.
    ///
    /// # Errors
    /// It has another after 30 s; the message says which.
    pub fn wait_metric(
        &self,
        name: &str,
        labels: &[(&str, &str)],
        wanted: f64,
    ) -> Result<(), Failure> {
        let mut seen = 0.0;
        let waited = wait_until(name, LIMIT, || {
            seen = self.metric(name, labels)?;
            Ok(((seen - wanted).abs() < 0.5).then_some(()))
        });
        waited.map_err(|failure| {
            Failure::Unexpected(format!(
                "pod {}: {name}{labels:?} is {seen}, wanted {wanted}: {failure}",
                self.pod.name()
            ))
        })
    }

    /// Waits until no connection is open.
    ///
    /// # Errors
    /// One is, after 30 s.
    pub fn wait_idle(&self) -> Result<(), Failure> {
        self.wait_metric(metric::OPEN, &[], 0.0)
    }

    /// The access log of the proxy that runs now.
    ///
    /// # Errors
    /// Its output cannot be read.
    pub fn log_lines(&self) -> Result<Vec<LogLine>, Failure> {
        let printed = [self.process.stdout()?, self.process.stderr()?].concat();
        Ok(LogLine::all(&printed))
    }

    /// What the proxy that runs now has said of itself, where it holds `part`.
    ///
    /// # Errors
    /// Its output cannot be read.
    pub fn messages(&self, part: &str) -> Result<Vec<LogLine>, Failure> {
        let said = LogLine::messages(&self.process.stdout()?).into_iter();
        Ok(said.filter(|line| line.text(field::MESSAGE).contains(part)).collect())
    }

    /// Waits until the proxy has said something.
    ///
    /// # Errors
    /// It has not after 30 s.
    pub fn wait_message(&self, part: &str) -> Result<Vec<LogLine>, Failure> {
        wait_until(&format!("pod {}: \"{part}\"", self.pod.name()), LIMIT, || {
            let said = self.messages(part)?;
            Ok((!said.is_empty()).then_some(said))
        })
    }

    /// Waits for `count` lines of the access log that `wanted` picks, and returns those there are.
    ///
    /// # Errors
    /// Fewer after 30 s; the message names `what`.
    pub fn wait_logs(
        &self,
        what: &str,
        count: usize,
        wanted: impl Fn(&LogLine) -> bool,
    ) -> Result<Vec<LogLine>, Failure> {
        let what = format!("pod {}: {count} log lines of {what}", self.pod.name());
        wait_until(&what, LIMIT, || {
            let lines: Vec<_> = self.log_lines()?.into_iter().filter(&wanted).collect();
            Ok((lines.len() >= count).then_some(lines))
        })
    }

    /// Replaces the policy file in one step, as a ConfigMap's update does.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn set_policy(&self, text: &str) -> Result<(), Failure> {
        publish_policy(&self.pod, text)
    }

    /// The same, and waits until it is in force.
    ///
    /// # Errors
    /// It is not within 30 s.
    pub fn load_policy(&self, text: &str) -> Result<(), Failure> {
        let hash = || Ok::<_, Failure>(self.metrics()?.by(metric::POLICY, "hash"));
        let before = hash()?;
        self.set_policy(text)?;
        wait_until("the new policy", LIMIT, || Ok((hash()? != before).then_some(())))
    }

    /// Replaces the certificates, in one step, by new ones of the same identity.
    ///
    /// # Errors
    /// `pillion-certs` fails, or the files cannot be written.
    pub fn issue(&mut self, bed: &Testbed) -> Result<(), Failure> {
        let name = format!("{}-issued.{}", self.pod.name(), self.generation.saturating_add(1));
        let from = bed.issue(&bed.ca()?, &self.options.identity, &name)?;
        self.publish(&from)
    }

    /// Replaces the certificates, in one step, by those in a directory that has `tls.crt`,
    /// `tls.key` and `ca.crt`.
    ///
    /// # Errors
    /// The files cannot be written.
    pub fn publish(&mut self, from: &Path) -> Result<(), Failure> {
        self.generation = self.generation.saturating_add(1);
        publish_certificates(&self.pod, from)
    }

    /// Waits until the certificates have been loaded, or refused, once more than `before` says.
    ///
    /// # Errors
    /// They have not after 30 s.
    pub fn wait_load(&self, good: bool, before: f64) -> Result<(), Failure> {
        wait_until("a load of certificates", LIMIT, || {
            Ok((self.loads(good)? > before + 0.5).then_some(()))
        })
    }

    /// How often certificates have been loaded, or refused.
    ///
    /// # Errors
    /// As [`Sidecar::metrics`].
    pub fn loads(&self, good: bool) -> Result<f64, Failure> {
        let metrics = self.metrics()?;
        let ok = metrics.sum(metric::CERTIFICATE_RELOADS, &[("result", "ok")]);
        let all = metrics.sum(metric::CERTIFICATE_RELOADS, &[]);
        Ok(if good { ok } else { all - ok })
    }

    /// Sends SIGTERM and returns the exit code.
    ///
    /// # Errors
    /// The proxy has not ended within `limit`.
    pub fn stop(&mut self, limit: Duration) -> Result<i32, Failure> {
        self.process.signal(Signal::SIGTERM)?;
        self.process.wait(limit)
    }

    /// Kills the proxy as the out-of-memory killer does. The rules stay.
    ///
    /// # Errors
    /// It does not end.
    pub fn kill9(&mut self) -> Result<(), Failure> {
        self.process.signal(Signal::SIGKILL)?;
        self.process.wait(LIMIT).map(drop)
    }

    /// Starts the proxy again after its end, and waits until it is ready.
    ///
    /// # Errors
    /// As [`Pod::mesh`].
    pub fn restart(&mut self) -> Result<(), Failure> {
        self.start_again()?;
        self.wait_ready()
    }

    /// Starts the proxy again after its end, and waits for nothing.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn start_again(&mut self) -> Result<(), Failure> {
        self.process = start(&self.pod, &self.options)?;
        Ok(())
    }
}

fn local(port: u16) -> SocketAddr {
    SocketAddr::new(Ipv4Addr::LOCALHOST.into(), port)
}

fn policy_directory(pod: &Pod) -> PathBuf {
    pod.path("policy")
}

fn tls_directory(pod: &Pod) -> PathBuf {
    pod.path("tls")
}

fn start(pod: &Pod, options: &MeshOptions) -> Result<Process, Failure> {
    let user = PROXY_USER.to_string();
    let tls = tls_directory(pod);
    let proxy = pod.settings().binary("pillion-proxy")?;
    let mut command = pod.daemon_through(&options.launcher, &user, proxy);
    command
        .env("PILLION_POLICY_FILE", policy_directory(pod).join("policy.yaml"))
        .env("PILLION_ACCESS_LOG", "all")
        .env("PILLION_LOG_FORMAT", "json");
    if options.files {
        command.env("PILLION_TLS_CA_FILE", tls.join("ca.crt"));
        match &options.key_and_chain {
            Some(file) => command.env("PILLION_TLS_BUNDLE_FILE", file),
            None => command
                .env("PILLION_TLS_CERT_FILE", tls.join("tls.crt"))
                .env("PILLION_TLS_KEY_FILE", tls.join("tls.key")),
        };
    }
    if let Some(engine) = pod.settings().tls_engine() {
        command.env("PILLION_TLS_ENGINE", engine);
    }
    Settings::hide(&mut command);
    command.envs(options.env.iter().map(|(name, value)| (name, value)));
    pod.spawn("proxy", &mut command)
}

fn publish_policy(pod: &Pod, text: &str) -> Result<(), Failure> {
    publish(&policy_directory(pod), |fresh| {
        fs::write(fresh.join("policy.yaml"), text).context(|| "policy.yaml".to_owned())
    })
}

fn publish_certificates(pod: &Pod, from: &Path) -> Result<(), Failure> {
    publish(&tls_directory(pod), |fresh| {
        for file in ["tls.crt", "tls.key", "ca.crt"] {
            fs::copy(from.join(file), fresh.join(file)).context(|| file)?;
        }
        give_to(PROXY_USER, fresh)
    })
}
