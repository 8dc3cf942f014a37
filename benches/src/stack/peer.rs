//! What the peers' stacks have in common: rules, certificates and processes.

use std::fs;
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use pillion_testbed::labels::{CLIENT, SERVER, port};
use pillion_testbed::{Failure, Pod, Process, Testbed, complete, wait_until};

use crate::error::{Context, Error, write};

/// How long a proxy may take to listen.
const LIMIT: Duration = Duration::from_secs(15);

/// Which pod a proxy is in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Side {
    /// The pod that calls.
    Client,
    /// The pod that serves.
    Server,
}

impl Side {
    /// The SPIFFE id of the pod's certificate.
    pub(super) fn identity(self) -> &'static str {
        match self {
            Self::Client => CLIENT,
            Self::Server => SERVER,
        }
    }
}

/// The two pods of a stack.
#[derive(Debug)]
pub(super) struct Both<'a> {
    pub(super) bed: &'a Testbed,
    pub(super) client: &'a Pod,
    pub(super) server: &'a Pod,
}

/// A pod's certificate files, which the proxy's user may read.
#[derive(Debug)]
pub(super) struct Certificates {
    pub(super) chain: PathBuf,
    pub(super) key: PathBuf,
    pub(super) ca: PathBuf,
    /// The chain and the key in one file.
    pub(super) both: PathBuf,
}

impl Both<'_> {
    /// Installs the rules in both pods and starts what `command` gives; waits until both listen.
    pub(super) fn start(
        &self,
        command: impl Fn(Side, &Pod) -> Result<Command, Error>,
    ) -> Result<[Process; 2], Error> {
        self.start_with(&[], command)
    }

    /// The same with further arguments to `pillion-init`.
    pub(super) fn start_with(
        &self,
        rules: &[String],
        command: impl Fn(Side, &Pod) -> Result<Command, Error>,
    ) -> Result<[Process; 2], Error> {
        let one = |side, pod: &Pod| -> Result<Process, Error> {
            complete(pod.init()?.args(rules))?;
            let mut process = pod.spawn("proxy", &mut command(side, pod)?)?;
            wait_for_listeners(pod, &mut process)?;
            Ok(process)
        };
        Ok([one(Side::Client, self.client)?, one(Side::Server, self.server)?])
    }

    /// Issues a pod's certificate: the same authority, lifetime and key type as the sidecar's.
    pub(super) fn certificates(&self, side: Side, pod: &Pod) -> Result<Certificates, Error> {
        let from =
            self.bed.issue(&self.bed.ca()?, side.identity(), &format!("{}-peer", pod.name()))?;
        let file = |name: &str| from.join(name);
        let (chain, key, ca) = (file("tls.crt"), file("tls.key"), file("ca.crt"));
        let both = file("both.pem");
        let read = |path: &PathBuf| fs::read_to_string(path).context(path.display().to_string());
        write(&both, &format!("{}{}", read(&chain)?, read(&key)?))?;
        let user = super::PROXY_USER.parse().ok();
        for path in [&from, &chain, &key, &ca, &both] {
            chown(path, user, user).context(path.display().to_string())?;
        }
        let private = fs::Permissions::from_mode(0o600);
        fs::set_permissions(&both, private).context(both.display().to_string())?;
        Ok(Certificates { chain, key, ca, both })
    }
}

/// Waits until both redirect targets are listened on.
///
/// # Errors
/// The proxy ends first, or does not listen in time; the message has the end of what it printed.
fn wait_for_listeners(pod: &Pod, process: &mut Process) -> Result<(), Failure> {
    let waited = wait_until("a proxy that listens", LIMIT, || {
        if let Some(status) = process.ended()? {
            return Err(Failure::Unexpected(format!("the proxy ended with {status}")));
        }
        let listed = complete(pod.command("ss").args(["-Hltn"]))?;
        let listens = |port: u16| listed.contains(&format!(":{port} "));
        Ok((listens(port::OUTBOUND) && listens(port::INBOUND)).then_some(()))
    });
    waited.map_err(|failure| {
        let printed = [process.stdout(), process.stderr()].map(Result::unwrap_or_default).concat();
        let end: Vec<_> = printed.lines().rev().take(20).collect();
        let end: Vec<_> = end.into_iter().rev().collect();
        Failure::Unexpected(format!("pod {}: {failure}\n{}", pod.name(), end.join("\n")))
    })
}
