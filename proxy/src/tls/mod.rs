//! TLS: the handshake, and records after it. The one room of the proxy that names
//! rustls's connections.
//!
//! A handshake ends with a peer whose certificate was verified in full, or with
//! the reason why not. What ALPN says decides how the connection is used
//! afterwards: as a tunnel, or as one connection of the app whose close_notify is
//! its FIN.

mod handshake;
mod post_handshake;
mod records;
mod session;

use std::io;

use pillion_certs::generation::{ALPN_MESH, ALPN_TUNNEL};
use pillion_certs::refusal::PeerRefusal;
use pillion_certs::verify::refusal_of;
use rustls::AlertDescription;

use crate::telemetry::CloseReason;

pub use handshake::{Established, Says, accept, connect};
pub use session::{Found, Opened, Session};

/// The ALPN protocols by which a permissive port knows the mesh's own clients.
pub const MESH_PROTOCOLS: &[&[u8]] = &[ALPN_TUNNEL, ALPN_MESH];

/// Why a handshake failed.
#[derive(Debug, thiserror::Error)]
pub enum HandshakeError {
    /// The peer's certificate breaks a rule.
    #[error("{0}")]
    Refused(PeerRefusal),
    /// The server knows none of the protocols that were offered by ALPN, and says so instead of
    /// leaving the offer unanswered (RFC 7301, 3.2).
    #[error("the server takes none of our ALPN protocols")]
    NoProtocol,
    /// The peer has reset the connection.
    #[error("{0}")]
    Reset(String),
    /// Anything else: the peer's alert, a protocol error, a lost connection.
    #[error("{0}")]
    Failed(String),
}

impl HandshakeError {
    /// The label of `pillion_tls_handshakes_total{result}`.
    pub fn label(&self) -> &'static str {
        match self {
            Self::Refused(refusal) => refusal.label(),
            Self::NoProtocol => "no_protocol",
            Self::Reset(_) | Self::Failed(_) => "failed",
        }
    }

    /// The reason that the connection ends with.
    pub fn reason(&self) -> CloseReason {
        match self {
            Self::Refused(_) => CloseReason::CertificateRefused,
            Self::Reset(_) => CloseReason::PeerReset,
            Self::NoProtocol | Self::Failed(_) => CloseReason::HandshakeFailed,
        }
    }
}

impl From<rustls::Error> for HandshakeError {
    fn from(e: rustls::Error) -> Self {
        match refusal_of(&e) {
            Some(refusal) => Self::Refused(refusal),
            None if e == rustls::Error::AlertReceived(AlertDescription::NoApplicationProtocol) => {
                Self::NoProtocol
            }
            None => Self::Failed(e.to_string()),
        }
    }
}

impl From<io::Error> for HandshakeError {
    fn from(e: io::Error) -> Self {
        match classify(&e).0 {
            CloseReason::PeerReset => Self::Reset(e.to_string()),
            _ => Self::Failed(e.to_string()),
        }
    }
}

/// An error of TLS as one of the stream that it protects.
pub fn stream_error(e: rustls::Error) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, e)
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

#[cfg(test)]
pub(crate) mod tests;
