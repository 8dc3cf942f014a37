//! TLS handshakes: the one room of the proxy that names rustls's types.
//!
//! A handshake ends with a peer whose certificate was verified in full, or with
//! the reason why not. What ALPN says decides how the connection is used
//! afterwards; for now there is one way, and it is what [`ALPN_MESH`] names: one
//! TLS connection is one app connection, and close_notify is its FIN.

use std::io;

use pillion_certs::generation::{ALPN_MESH, TlsGeneration};
use pillion_certs::refusal::PeerRefusal;
use pillion_certs::verify::{VerifiedPeer, refusal_of};
use tokio_rustls::{TlsAcceptor, TlsConnector};

use crate::net::{Leg, LegIo, Prefixed};
use crate::telemetry::CloseReason;

/// A terminated connection.
pub type ServerStream = tokio_rustls::server::TlsStream<Prefixed>;
/// An originated connection.
pub type ClientStream = tokio_rustls::client::TlsStream<Leg>;

/// The ALPN protocols by which a permissive port knows the mesh's own clients.
/// `pillion/1` is the tunnel of a later version: its clients offer `istio` too.
pub const MESH_PROTOCOLS: &[&[u8]] = &[ALPN_MESH, b"pillion/1"];

/// Why a handshake failed.
#[derive(Debug, thiserror::Error)]
pub enum HandshakeError {
    /// The peer's certificate breaks a rule.
    #[error("{0}")]
    Refused(PeerRefusal),
    /// Anything else: the peer's alert, a protocol error, a lost connection.
    #[error("{0}")]
    Failed(String),
}

impl HandshakeError {
    /// The label of `pillion_tls_handshakes_total{result}`.
    pub fn label(&self) -> &'static str {
        match self {
            Self::Refused(refusal) => refusal.label(),
            Self::Failed(_) => "failed",
        }
    }

    /// The reason that the connection ends with.
    pub fn reason(&self) -> CloseReason {
        match self {
            Self::Refused(_) => CloseReason::CertificateRefused,
            Self::Failed(_) => CloseReason::HandshakeFailed,
        }
    }
}

/// Terminates TLS. `mesh`: the client offered one of ours by ALPN; a client that
/// did not is not told about protocols that it never asked for.
///
/// # Errors
/// The client has got its alert by then, and a FIN.
pub async fn accept(
    io: Prefixed,
    mesh: bool,
    generation: &TlsGeneration,
) -> Result<(ServerStream, VerifiedPeer), HandshakeError> {
    let acceptor = TlsAcceptor::from(generation.server_config(mesh));
    match acceptor.accept(io).into_fallible().await {
        Ok(stream) => {
            let chain = stream.get_ref().1.peer_certificates();
            let peer = generation.verified_peer(chain).map_err(HandshakeError::Refused)?;
            Ok((stream, peer))
        }
        Err((e, mut io)) => {
            io.leg_mut().end_cleanly();
            Err(failure(&e))
        }
    }
}

/// Originates TLS over a connection that was just opened.
///
/// # Errors
/// The server has got its alert by then, and a FIN.
pub async fn connect(
    leg: Leg,
    generation: &TlsGeneration,
) -> Result<(ClientStream, VerifiedPeer), HandshakeError> {
    let connector = TlsConnector::from(generation.client_config());
    // SPIFFE peers are known by their id alone: no name is sent and none is checked.
    match connector.connect(TlsGeneration::server_name(), leg).into_fallible().await {
        Ok(stream) => {
            let chain = stream.get_ref().1.peer_certificates();
            let peer = generation.verified_peer(chain).map_err(HandshakeError::Refused)?;
            Ok((stream, peer))
        }
        Err((e, mut leg)) => {
            leg.end_cleanly();
            Err(failure(&e))
        }
    }
}

fn failure(e: &io::Error) -> HandshakeError {
    let tls = rustls_error(e);
    match tls.and_then(refusal_of) {
        Some(refusal) => HandshakeError::Refused(refusal),
        None => HandshakeError::Failed(tls.map_or_else(|| e.to_string(), ToString::to_string)),
    }
}

fn rustls_error(e: &io::Error) -> Option<&rustls::Error> {
    e.get_ref()?.downcast_ref::<rustls::Error>()
}

/// Why an established connection ended with `e`, and the error's own words.
pub fn classify(e: &io::Error) -> (CloseReason, Option<String>) {
    let reason = match rustls_error(e) {
        Some(rustls::Error::AlertReceived(_)) => CloseReason::RefusedByPeer,
        Some(_) => CloseReason::TlsError,
        None => match e.kind() {
            io::ErrorKind::ConnectionReset
            | io::ErrorKind::ConnectionAborted
            | io::ErrorKind::BrokenPipe
            | io::ErrorKind::NotConnected => CloseReason::PeerReset,
            io::ErrorKind::UnexpectedEof => CloseReason::Truncated,
            io::ErrorKind::TimedOut | io::ErrorKind::HostUnreachable => CloseReason::PeerTimeout,
            _ => CloseReason::IoError,
        },
    };
    (reason, Some(e.to_string()))
}

/// Which of two errors of one connection says more: a peer's alert explains the
/// reset that comes with it.
pub fn more_telling(one: io::Error, other: io::Error) -> io::Error {
    if rustls_error(&other).is_some() && rustls_error(&one).is_none() { other } else { one }
}

impl LegIo for ServerStream {
    fn leg_mut(&mut self) -> &mut Leg {
        self.get_mut().0.leg_mut()
    }
}

impl LegIo for ClientStream {
    fn leg_mut(&mut self) -> &mut Leg {
        self.get_mut().0
    }
}
