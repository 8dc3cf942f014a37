//! Pods whose programs run in containers, as a kubelet runs them: one container keeps the network
//! namespace, the others share it.
//!
//! The engine is the one that `DOCKER_HOST` names, which `scripts/docker-local` starts. It has no
//! network of its own; a pod is plugged into the testbed's switch, as every other.

use std::process::Command;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::{Context, Failure, Finished, Pod, complete, finish, wait_until};

/// How long a container may take to start.
const LIMIT: Duration = Duration::from_secs(20);

/// What a container of production may, which is nothing: no capability, no file to write, no
/// program that gains rights, and the engine's default seccomp filter (Kubernetes calls it
/// `RuntimeDefault`).
pub const CONFINED: [&str; 4] =
    ["--cap-drop=ALL", "--read-only", "--security-opt=no-new-privileges", "--pids-limit=64"];

/// A container. Dropping it removes it, whatever runs in it.
#[derive(Debug)]
pub struct Container {
    name: String,
}

fn docker(words: &[&str]) -> Command {
    let mut command = Command::new("docker");
    command.args(words);
    command
}

impl Container {
    /// Starts a container with the engine's `options`; `words` are the arguments of the image's
    /// entry point.
    ///
    /// # Errors
    /// The engine refuses.
    pub(crate) fn start(
        name: String,
        image: &str,
        options: &[&str],
        words: &[&str],
    ) -> Result<Self, Failure> {
        let mut command = docker(&["run", "--detach", "--name", &name]);
        command.args(options).arg(image).args(words);
        // Made before it is started: one that cannot start is removed, too.
        let container = Self { name };
        complete(&mut command)?;
        Ok(container)
    }

    /// A field of what the engine knows of it, as a Go template.
    ///
    /// # Errors
    /// The engine does not know it.
    pub fn inspect(&self, field: &str) -> Result<String, Failure> {
        let asked = complete(&mut docker(&["inspect", "--format", field, &self.name]))?;
        Ok(asked.trim().to_owned())
    }

    /// The process id of its first program, as the host sees it.
    ///
    /// # Errors
    /// It does not run.
    pub fn pid(&self) -> Result<Pid, Failure> {
        let pid = self.inspect("{{.State.Pid}}")?.parse().ok().filter(|pid| *pid > 0);
        pid.map(Pid::from_raw)
            .ok_or_else(|| Failure::Unexpected(format!("{} does not run", self.name)))
    }

    /// A line of `/proc/<pid>/status` of its first program, proc_pid_status(5).
    ///
    /// # Errors
    /// It does not run, or there is no such line.
    pub fn status(&self, name: &str) -> Result<String, Failure> {
        let path = format!("/proc/{}/status", self.pid()?);
        let text = std::fs::read_to_string(&path).context(|| path.clone())?;
        let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
        line.map(|value| value.trim().to_owned())
            .ok_or_else(|| Failure::Unexpected(format!("no {name} in {path}")))
    }

    /// Runs a program in it to its end.
    ///
    /// # Errors
    /// The engine cannot be started.
    pub fn exec(&self, words: &[&str]) -> Result<Finished, Failure> {
        let mut command = docker(&["exec", &self.name]);
        finish(command.args(words))
    }

    /// What it has printed, on both outputs.
    ///
    /// # Errors
    /// The engine does not know it.
    pub fn printed(&self) -> Result<String, Failure> {
        let logs = finish(&mut docker(&["logs", &self.name]))?;
        Ok(logs.stdout + &logs.stderr)
    }

    /// Sends its first program a signal.
    ///
    /// # Errors
    /// It does not run.
    pub fn signal(&self, signal: Signal) -> Result<(), Failure> {
        kill(self.pid()?, signal).context(|| format!("{signal} to {}", self.name))
    }

    /// Whether it runs.
    ///
    /// # Errors
    /// The engine does not know it.
    pub fn runs(&self) -> Result<bool, Failure> {
        Ok(self.inspect("{{.State.Running}}")? == "true")
    }

    /// Changes its configuration while it runs, docker-container-update(1).
    ///
    /// # Errors
    /// The engine refuses.
    pub fn update(&self, options: &[&str]) -> Result<(), Failure> {
        complete(docker(&["update"]).args(options).arg(&self.name)).map(drop)
    }

    /// Starts it once more, after its end.
    ///
    /// # Errors
    /// The engine refuses.
    pub fn start_again(&self) -> Result<(), Failure> {
        complete(&mut docker(&["start", &self.name])).map(drop)
    }

    /// Waits for its end, and returns its exit code.
    ///
    /// # Errors
    /// It has not ended within `limit`.
    pub fn wait(&self, limit: Duration) -> Result<i32, Failure> {
        wait_until(&format!("the end of {}", self.name), limit, || {
            if self.runs()? {
                return Ok(None);
            }
            let code = self.inspect("{{.State.ExitCode}}")?;
            Ok(code.parse().ok())
        })
    }
}

impl Drop for Container {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let printed = self.printed().unwrap_or_default();
            println!("--- {}\n{}", self.name, crate::exec::tail(&printed));
        }
        // The next start of the engine removes what is left here.
        let _ = complete(&mut docker(&["rm", "--force", &self.name]));
    }
}

impl Pod {
    /// Starts a container in this pod's network namespace.
    ///
    /// # Errors
    /// The pod has no container that keeps its namespace, or the engine refuses.
    pub fn container(
        &self,
        name: &str,
        image: &str,
        options: &[&str],
        words: &[&str],
    ) -> Result<Container, Failure> {
        let network = format!("--network=container:{}", keeper(self));
        let options = [&[network.as_str()], options].concat();
        Container::start(format!("{}-{name}", self.namespace()), image, &options, words)
    }
}

/// The name of the container that keeps a pod's namespace.
fn keeper(pod: &Pod) -> String {
    format!("{}-pause", pod.namespace())
}

/// The container that keeps a pod's namespace, as the kubelet's pause container does.
pub(crate) fn keep(pod: &Pod, image: &str) -> Result<Container, Failure> {
    let sysctl = if pod.has_v6() { "0" } else { "1" };
    let v6 = format!("--sysctl=net.ipv6.conf.all.disable_ipv6={sysctl}");
    let options = ["--network=none", v6.as_str(), "--init", "--entrypoint=sleep"];
    let container = Container::start(keeper(pod), image, &options, &["infinity"])?;
    wait_until("the namespace of a pod", LIMIT, || Ok(container.runs()?.then_some(())))?;
    Ok(container)
}
