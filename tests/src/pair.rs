//! A pod that calls and a pod that serves, each with its sidecar.

use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};

use crate::labels::{CLIENT, SERVER, direction, field, metric};
use crate::stream::exchange;
use crate::{Failure, MeshOptions, Pod, Sidecar, Testbed, accept, policy};

/// A pod that calls and a pod that serves, each with its sidecar: the server is strict and lets
/// the client in; the client speaks mTLS to the server and expects its identity.
#[derive(Debug)]
pub struct Pair {
    /// The pod that calls.
    pub client: Pod,
    /// Its sidecar.
    pub caller: Sidecar,
    /// The pod that serves.
    pub server: Pod,
    /// Its sidecar.
    pub callee: Sidecar,
}

impl Pair {
    /// Makes both pods and meshes them.
    ///
    /// # Errors
    /// As [`Pod::mesh`].
    pub fn new(bed: &Testbed) -> Result<Self, Failure> {
        Self::with_env(bed, &[])
    }

    /// The same with further variables in the environment of both proxies.
    ///
    /// # Errors
    /// As [`Pod::mesh`].
    pub fn with_env(bed: &Testbed, env: &[(&str, &str)]) -> Result<Self, Failure> {
        let (server, client) = (bed.pod("srv")?, bed.pod("cli")?);
        Self::mesh(bed, client, server, env)
    }

    /// Meshes two pods that are there already.
    ///
    /// # Errors
    /// As [`Pod::mesh`].
    pub fn mesh(
        bed: &Testbed,
        client: Pod,
        server: Pod,
        env: &[(&str, &str)],
    ) -> Result<Self, Failure> {
        let with_env = |options: MeshOptions| {
            env.iter().fold(options, |options, (name, value)| options.env(name, value))
        };
        let serve = MeshOptions::new(policy::serve(&[CLIENT]), SERVER);
        let callee = server.mesh(bed, with_env(serve))?;
        let call = MeshOptions::new(policy::call(&server.addresses(), SERVER), CLIENT);
        let caller = client.mesh(bed, with_env(call))?;
        Ok(Self { client, caller, server, callee })
    }

    /// Opens one connection from the client to a listener in the server's pod: the two apps' ends.
    ///
    /// # Errors
    /// It does not arrive within 20 s.
    pub fn open(&self, listener: &TcpListener) -> Result<(TcpStream, TcpStream), Failure> {
        let client = self.client.connect(listener.local_addr()?)?;
        let server = accept(listener)?;
        Ok((client, server))
    }

    /// One connection from the client's app to the server's: a request and its FIN, the answer and
    /// its FIN, all of it checked.
    ///
    /// # Errors
    /// It is not served so; nothing is tried twice.
    pub fn exchange(&self, listener: &TcpListener) -> Result<(), Failure> {
        let (client, server) = self.open(listener)?;
        exchange(client, server)
    }

    /// A listener in the server's pod, on one of its addresses.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn listen(&self, address: IpAddr, port: u16) -> Result<TcpListener, Failure> {
        self.server.listen(SocketAddr::new(address, port))
    }

    /// Checks that the traffic so far went over mTLS: both sidecars have shaken hands, the
    /// server's log names the client, and nothing was refused.
    ///
    /// # Errors
    /// Telemetry cannot be read, or says otherwise.
    pub fn check_meshed(&self) -> Result<(), Failure> {
        for (sidecar, way) in
            [(&self.caller, direction::OUTBOUND), (&self.callee, direction::INBOUND)]
        {
            let results = sidecar.metrics()?.by(metric::HANDSHAKES, "result");
            let ok = [("direction", way), ("result", "ok")];
            if results.len() != 1 || sidecar.metric(metric::HANDSHAKES, &ok)? < 1.0 {
                return Err(Failure::Unexpected(format!("{way}: handshakes {results:?}")));
            }
        }
        self.callee
            .wait_logs("an mTLS connection of the client", 1, |line| {
                line.text(field::PEER) == CLIENT && line.text(field::TLS) == "mtls"
            })
            .map(drop)
    }
}
