//! The stacks: two pods each, a server in one, and a proxy in both or in neither.
//!
//! All have the same rules from `pillion-init`, run as the user that these let pass, have two
//! workers, no access log, and certificates of the same authority.

mod envoy;
mod haproxy;
mod peer;
mod ztunnel;

use std::net::IpAddr;
use std::path::PathBuf;

use clap::Args;
use pillion_testbed::labels::{CLIENT, SERVER, port};
use pillion_testbed::{MeshOptions, Pod, Process, Sidecar, Testbed, policy};

use crate::error::{Context, Error};
use crate::wire;

/// The user that the redirect rules let pass.
const PROXY_USER: &str = "1337";

/// The peers' programs.
#[derive(Debug, Clone, Args)]
pub(crate) struct Programs {
    /// Envoy's binary; scripts/bench-setup puts it there.
    #[arg(long, default_value = "target/bench-tools/envoy")]
    envoy: PathBuf,
    /// HAProxy's binary, 2.6 or later.
    #[arg(long, default_value = "/usr/sbin/haproxy")]
    haproxy: PathBuf,
    /// ztunnel's binary, built with its feature `testing`; without it there is no such stack.
    #[arg(long, env = "ZTUNNEL")]
    ztunnel: Option<PathBuf>,
}

/// What carries the connections.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum StackKind {
    /// No rules and no proxy.
    Direct,
    /// Pillion, mTLS.
    Pillion,
    /// Pillion, plaintext on both sides.
    Passthrough,
    /// A plain copying proxy, plaintext.
    Copy,
    /// Envoy, mTLS.
    Envoy,
    /// HAProxy, mTLS.
    Haproxy,
    /// ztunnel, mTLS (HBONE).
    Ztunnel,
}

impl StackKind {
    /// All, in the report's order.
    pub(crate) const ALL: [Self; 7] = [
        Self::Direct,
        Self::Pillion,
        Self::Envoy,
        Self::Haproxy,
        Self::Ztunnel,
        Self::Passthrough,
        Self::Copy,
    ];

    /// The name, in the report and on the command line.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Direct => "direct",
            Self::Pillion => "pillion",
            Self::Passthrough => "passthrough",
            Self::Copy => "copy",
            Self::Envoy => "envoy",
            Self::Haproxy => "haproxy",
            Self::Ztunnel => "ztunnel",
        }
    }

    /// Whether it is another project's proxy with mTLS.
    pub(crate) fn is_peer(self) -> bool {
        matches!(self, Self::Envoy | Self::Haproxy | Self::Ztunnel)
    }

    /// Whether it carries mTLS.
    pub(crate) fn is_mtls(self) -> bool {
        self == Self::Pillion || self.is_peer()
    }

    /// The stacks that are named, or all whose programs are there; of those that are not, a line
    /// is printed.
    ///
    /// # Errors
    /// A name that no stack has, or a named stack whose program is missing.
    pub(crate) fn choose(named: &[String], programs: &Programs) -> Result<Vec<Self>, Error> {
        if named.is_empty() {
            let there = |stack: &Self| match stack.program(programs) {
                Ok(_) => true,
                Err(why) => {
                    eprintln!("without {}: {why}", stack.name());
                    false
                }
            };
            return Ok(Self::ALL.into_iter().filter(there).collect());
        }
        let known = || Self::ALL.map(Self::name).join(", ");
        let mut chosen = Vec::new();
        for name in named {
            let stack = Self::ALL.into_iter().find(|stack| stack.name() == name);
            let stack = stack.ok_or_else(|| Error::Unknown {
                kind: "stack",
                name: name.clone(),
                known: known(),
            })?;
            stack.program(programs)?;
            chosen.push(stack);
        }
        Ok(Self::ALL.into_iter().filter(|stack| chosen.contains(stack)).collect())
    }

    /// The program of a peer, as an absolute path; none of the others.
    fn program(self, programs: &Programs) -> Result<Option<PathBuf>, Error> {
        let path = match self {
            Self::Envoy => programs.envoy.clone(),
            Self::Haproxy => programs.haproxy.clone(),
            Self::Ztunnel => programs.ztunnel.clone().unwrap_or_else(|| PathBuf::from("$ZTUNNEL")),
            _ => return Ok(None),
        };
        let found = path.canonicalize().ok().filter(|path| path.is_file());
        found.map(Some).ok_or(Error::MissingPeer { stack: self.name(), path })
    }
}

/// A stack that runs. Dropping it ends its proxies and its server.
#[derive(Debug)]
pub(crate) struct Stack {
    pub(crate) kind: StackKind,
    /// The pod that loads run in.
    pub(crate) client: Pod,
    server: Pod,
    /// Where the server listens.
    pub(crate) address: IpAddr,
    /// The proxies' process ids: the client's, then the server's.
    pub(crate) pids: Vec<u32>,
    _server: Process,
    _proxies: Proxies,
}

/// The proxies of both pods, held for their lives.
#[derive(Debug)]
#[allow(dead_code, reason = "held: dropping one ends its process")]
enum Proxies {
    None,
    Sidecars(Box<[Sidecar; 2]>),
    Processes([Process; 2]),
}

impl Stack {
    /// Makes the pods, starts the server and the proxies, and waits until all listen.
    ///
    /// # Errors
    /// A binary is missing, or does not listen in time; the message has the end of its log.
    pub(crate) fn start(
        bed: &Testbed,
        kind: StackKind,
        programs: &Programs,
    ) -> Result<Self, Error> {
        let name = kind.name().get(..4).unwrap_or_else(|| kind.name());
        let (client, server) = (bed.pod(&format!("{name}-c"))?, bed.pod(&format!("{name}-s"))?);
        tune(&client)?;
        tune(&server)?;
        let (address, exe) = (server.v4(), std::env::current_exe().context("this program")?);
        let mut serve = server.daemon(&exe);
        serve.arg("serve").arg("--on").arg(address.to_string());
        let serving = server.spawn("serve", &mut serve)?;
        server.wait_for_port((address, wire::HTTP).into())?;
        let both = peer::Both { bed, client: &client, server: &server };
        let program = kind.program(programs)?.unwrap_or_default();
        let proxies = match kind {
            StackKind::Direct => Proxies::None,
            StackKind::Pillion => {
                sidecars(&both, [policy::call(&[address], SERVER), serve_mtls()])?
            }
            StackKind::Passthrough => {
                sidecars(&both, [policy::pass(), policy::serve_in_mode("disable")])?
            }
            StackKind::Copy => Proxies::Processes(both.start(|_, pod| {
                let mut command = pod.daemon_as(PROXY_USER, &exe);
                command.arg("copy-proxy");
                Ok(command)
            })?),
            StackKind::Envoy => Proxies::Processes(envoy::start(&both, &program)?),
            StackKind::Haproxy => Proxies::Processes(haproxy::start(&both, &program)?),
            StackKind::Ztunnel => Proxies::Processes(ztunnel::start(&both, &program)?),
        };
        let (pids, proxies) = match proxies {
            Proxies::Sidecars(mut sidecars) => {
                let pids = sidecars.each_mut().map(|sidecar| sidecar.process().pid()).to_vec();
                (pids, Proxies::Sidecars(sidecars))
            }
            Proxies::Processes(processes) => {
                (processes.each_ref().map(Process::pid).to_vec(), Proxies::Processes(processes))
            }
            Proxies::None => (Vec::new(), Proxies::None),
        };
        let stack =
            Self { kind, client, server, address, pids, _server: serving, _proxies: proxies };
        stack.check()?;
        // The switch was there to look at. What it costs to pass it is not the proxies'.
        stack.client.join_directly(&stack.server)?;
        Ok(stack)
    }

    /// One request, looked at on the wire: a proxy that was meant to encrypt and does not would
    /// win every comparison.
    fn check(&self) -> Result<(), Error> {
        use std::io::{Read, Write};
        let capture = self.server.capture("check")?;
        let mut stream = self.client.connect((self.address, wire::HTTP).into())?;
        let mut answer = vec![0; wire::ANSWER.len()];
        let what = || format!("the first request through {}", self.kind.name());
        stream.write_all(wire::REQUEST).context(what())?;
        stream.read_exact(&mut answer).context(what())?;
        let seen = capture.finish(&self.client)?;
        if seen.contains(wire::REQUEST) == self.kind.is_mtls() || answer != wire::ANSWER {
            let (stack, mtls) = (self.kind.name(), self.kind.is_mtls());
            return Err(Error::NotAsMeant { stack, mtls });
        }
        Ok(())
    }
}

fn serve_mtls() -> String {
    policy::serve(&[CLIENT])
}

/// Pillion in both pods, as it is shipped but for the access log, which the peers have off too.
fn sidecars(both: &peer::Both<'_>, policies: [String; 2]) -> Result<Proxies, Error> {
    let [call, serve] = policies;
    let options = |text, identity| {
        MeshOptions::new(text, identity)
            .env("PILLION_WORKERS", "2")
            .env("PILLION_ACCESS_LOG", "off")
    };
    let callee = both.server.mesh(both.bed, options(serve, SERVER))?;
    let caller = both.client.mesh(both.bed, options(call, CLIENT))?;
    Ok(Proxies::Sidecars(Box::new([caller, callee])))
}

/// Lets a pod open and close connections as fast as its proxy can: many ports, that are free
/// again soon. The ports that something listens on are no connection's.
fn tune(pod: &Pod) -> Result<(), Error> {
    let reserved = format!("{}-{},{}-{}", wire::SINK, wire::HTTP, port::ADMIN, port::HEALTH);
    let settings = [
        ("net/ipv4/ip_local_reserved_ports", reserved.as_str()),
        ("net/ipv4/ip_local_port_range", "1024 60999"),
        ("net/ipv4/tcp_tw_reuse", "1"),
        ("net/core/somaxconn", "16384"),
        ("net/netfilter/nf_conntrack_tcp_timeout_time_wait", "1"),
        ("net/netfilter/nf_conntrack_tcp_timeout_close", "1"),
    ];
    pod.enter(|| {
        for (name, value) in settings {
            let path = std::path::Path::new("/proc/sys").join(name);
            // Without connection tracking in the kernel there is nothing of it to tune.
            if path.exists() {
                pillion_testbed::Context::context(std::fs::write(&path, value), || name)?;
            }
        }
        Ok(())
    })?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn programs() -> Programs {
        let nowhere = PathBuf::from("/nonexistent/peer");
        Programs { envoy: nowhere.clone(), haproxy: nowhere, ztunnel: None }
    }

    #[test]
    fn stacks_come_in_the_reports_order() {
        let named = ["copy", "direct"].map(str::to_owned);
        let chosen = StackKind::choose(&named, &programs()).unwrap();
        assert_eq!(chosen, [StackKind::Direct, StackKind::Copy]);
    }

    #[test]
    fn a_missing_peer_is_left_out_unless_it_was_named() {
        let chosen = StackKind::choose(&[], &programs()).unwrap();
        assert!(!chosen.iter().any(|stack| stack.is_peer()), "{chosen:?}");
        let error = StackKind::choose(&["envoy".to_owned()], &programs()).unwrap_err();
        assert!(error.to_string().contains("bench-setup"), "{error}");
    }

    #[test]
    fn an_unknown_stack_is_an_error_with_the_known_ones() {
        let error = StackKind::choose(&["nginx".to_owned()], &programs()).unwrap_err();
        assert!(error.to_string().contains("nginx") && error.to_string().contains("envoy"));
    }
}
