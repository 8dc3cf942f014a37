//! What the peer does wrong, as errors of the stream.

use std::io;

use crate::telemetry::CloseReason;
use crate::tls;
use crate::tunnel::{Reason, Violation};

/// A broken rule of the tunnel, as an error of the stream.
pub(super) fn violation(v: Violation) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, TunnelError(v))
}

/// RESET, as an error of the stream.
pub fn reset_by(reason: Reason) -> io::Error {
    io::Error::new(io::ErrorKind::ConnectionReset, ResetByPeer(reason))
}

/// A peer that breaks the tunnel's rules.
#[derive(Debug, thiserror::Error)]
#[error("the peer breaks the tunnel's rules: {0}")]
struct TunnelError(Violation);

/// A peer that aborts a stream.
#[derive(Debug, thiserror::Error)]
#[error("the peer's proxy reset the stream: {0}")]
struct ResetByPeer(Reason);

/// Why an established connection ended with `e`, and the error's own words.
pub fn classify(e: &io::Error) -> (CloseReason, Option<String>) {
    let inner = e.get_ref();
    let reason = if inner.is_some_and(|e| e.is::<TunnelError>()) {
        CloseReason::TunnelError
    } else if let Some(ResetByPeer(reason)) = inner.and_then(|e| e.downcast_ref()) {
        match reason {
            Reason::Denied | Reason::CertificateRefused | Reason::PolicyChanged => {
                CloseReason::RefusedByPeer
            }
            _ => CloseReason::PeerReset,
        }
    } else {
        return tls::classify(e);
    };
    (reason, Some(e.to_string()))
}

/// Which of two errors of one connection says more: what the peer said explains the
/// reset that comes with it.
pub fn more_telling(one: io::Error, other: io::Error) -> io::Error {
    let tells = |e: &io::Error| e.get_ref().is_some();
    if tells(&other) && !tells(&one) { other } else { one }
}
