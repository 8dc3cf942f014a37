//! Why a connection ended: the only source of the metric label, the log field
//! and the table in the documentation.

use crate::tunnel::Reason;

macro_rules! reasons {
    ($($(#[doc = $doc:literal])+ $variant:ident = $label:literal,)+) => {
        /// Why a connection ended.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum CloseReason {
            $($(#[doc = $doc])+ $variant,)+
        }

        impl CloseReason {
            /// Every reason, in the order of the documentation.
            pub const ALL: &'static [Self] = &[$(Self::$variant,)+];

            /// The metric label and log field.
            pub fn label(self) -> &'static str {
                match self { $(Self::$variant => $label,)+ }
            }

            /// One sentence for the documentation.
            pub fn meaning(self) -> &'static str {
                match self { $(Self::$variant => concat!($($doc),+).trim_ascii(),)+ }
            }
        }
    };
}

reasons! {
    /// Both sides ended their streams.
    Closed = "closed",
    /// One side reset the connection; the other side got a RST too.
    PeerReset = "peer_reset",
    /// A TLS peer ended the TCP stream without close_notify; the other side got a RST.
    Truncated = "truncated",
    /// A peer stopped acknowledging data or keepalive probes.
    PeerTimeout = "peer_timeout",
    /// A TLS record was bad after the handshake.
    TlsError = "tls_error",
    /// A peer broke the rules of the tunnel; `detail` says which.
    TunnelError = "tunnel_error",
    /// The TLS peer sent a fatal alert after the handshake, or its proxy refused the stream; `detail` has the alert or the reason.
    RefusedByPeer = "refused_by_peer",
    /// Another error of a socket.
    IoError = "io_error",
    /// Half-closed and silent for longer than `PILLION_HALF_CLOSE_TIMEOUT`.
    HalfCloseTimeout = "half_close_timeout",
    /// The policy denies this connection; `rule` names what decided.
    Denied = "denied",
    /// The policy, or the addresses of a name in it, changed while the connection was open, and now it is denied.
    PolicyChanged = "policy_changed",
    /// A port that wants mTLS got something else.
    PlaintextRefused = "plaintext_refused",
    /// The peer's certificate was refused; `detail` says which rule it breaks.
    CertificateRefused = "certificate_refused",
    /// The peer's certificate was revoked while the connection was open; `detail` has serial number and identity.
    Revoked = "revoked",
    /// The server's identity is none of the destination's `serverIdentities`.
    WrongIdentity = "wrong_identity",
    /// The TLS handshake failed for another reason; `detail` has it.
    HandshakeFailed = "handshake_failed",
    /// The TLS handshake was not done within `PILLION_HANDSHAKE_TIMEOUT`.
    HandshakeTimeout = "handshake_timeout",
    /// Too many handshakes were under way, or memory ran out by them, and this was one of the oldest.
    HandshakeShed = "handshake_shed",
    /// The first bytes on a permissive port did not come within `PILLION_DETECT_TIMEOUT`.
    DetectTimeout = "detect_timeout",
    /// The server or app refused the connection.
    ConnectRefused = "connect_refused",
    /// The connection was not made within `PILLION_CONNECT_TIMEOUT`.
    ConnectTimeout = "connect_timeout",
    /// There is no route to the server or app.
    ConnectUnreachable = "connect_unreachable",
    /// No local port or address was left to connect from.
    NoLocalPort = "no_local_port",
    /// The connection could not be made for another reason; `detail` has it.
    ConnectFailed = "connect_failed",
    /// A name of the policy may be this destination, and there is no answer that says; `detail` has the name.
    NameUnresolved = "name_unresolved",
    /// The kernel did not know the original destination.
    NoOriginalDst = "no_original_dst",
    /// Somebody dialled one of the proxy's own ports through the proxy; or, as the detail then says,
    /// our own connection to a server was redirected to us and is made again.
    SelfCall = "self_call",
    /// No usable certificate is loaded yet, or ours is expired, not valid yet or revoked.
    NoCertificate = "no_certificate",
    /// No policy is loaded yet.
    NoPolicy = "no_policy",
    /// `PILLION_MAX_CONNECTIONS` was reached.
    ConnectionLimit = "connection_limit",
    /// 85 % of the container's memory limit was used, and as many connections were open as then: raise the limit.
    MemoryLimit = "memory_limit",
    /// The proxy was told to stop, and the drain deadline passed.
    Shutdown = "shutdown",
    /// The connection's task panicked; please report it.
    Panic = "panic",
}

impl CloseReason {
    /// Whether the connection was served to its end as the two apps wanted.
    pub fn is_clean(self) -> bool {
        matches!(self, Self::Closed)
    }

    /// What the peer's proxy is told when a stream in a tunnel ends so.
    pub fn to_peer(self) -> Reason {
        match self {
            Self::Denied | Self::PlaintextRefused | Self::WrongIdentity => Reason::Denied,
            Self::CertificateRefused | Self::Revoked => Reason::CertificateRefused,
            Self::NoPolicy | Self::NoCertificate | Self::NameUnresolved => Reason::NotReady,
            Self::ConnectRefused => Reason::ConnectRefused,
            Self::ConnectTimeout => Reason::ConnectTimeout,
            Self::ConnectUnreachable => Reason::ConnectUnreachable,
            Self::ConnectFailed | Self::NoLocalPort | Self::NoOriginalDst => Reason::ConnectFailed,
            Self::PeerReset | Self::Truncated => Reason::PeerReset,
            Self::PeerTimeout => Reason::PeerTimeout,
            Self::HalfCloseTimeout => Reason::HalfCloseTimeout,
            Self::PolicyChanged => Reason::PolicyChanged,
            Self::ConnectionLimit | Self::MemoryLimit => Reason::ConnectionLimit,
            Self::Shutdown => Reason::Shutdown,
            Self::TunnelError | Self::TlsError => Reason::ProtocolError,
            _ => Reason::Other,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn labels_are_unique_snake_case() {
        let labels: BTreeSet<_> = CloseReason::ALL.iter().map(|r| r.label()).collect();
        assert_eq!(labels.len(), CloseReason::ALL.len());
        assert!(labels.iter().all(|l| l.bytes().all(|b| b.is_ascii_lowercase() || b == b'_')));
        assert!(CloseReason::ALL.iter().all(|r| r.meaning().ends_with('.')));
    }
}
