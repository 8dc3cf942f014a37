//! The frames: one byte of type, three bytes of payload length, payload.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::ops::Deref;

/// Bytes before a payload: the type, and the payload's length in network byte order.
pub const HEADER_LEN: usize = 4;

/// The most plaintext that one TLS 1.3 record carries (RFC 8446, section 5.1).
pub const MAX_RECORD: usize = 16_384;

/// The longest payload of a DATA frame: header and payload fill exactly one TLS
/// record, so that a frame is sealed and opened where it lies.
pub const MAX_DATA: usize = MAX_RECORD - HEADER_LEN;

/// The longest payload of a frame other than DATA: OPEN with an IPv6 address.
pub(super) const MAX_SMALL: usize = 18;

macro_rules! codes {
    ($(#[doc = $about:literal])+ $name:ident {
        $($(#[doc = $doc:literal])+ $variant:ident = $code:literal $label:literal,)+
    }) => {
        $(#[doc = $about])+
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        #[repr(u8)]
        pub enum $name {
            $($(#[doc = $doc])+ $variant = $code,)+
        }

        impl $name {
            /// Every value, in the order of the codes.
            pub const ALL: &'static [Self] = &[$(Self::$variant,)+];

            /// The byte on the wire.
            pub const fn code(self) -> u8 {
                match self { $(Self::$variant => $code,)+ }
            }

            /// The value of a byte on the wire; none for a byte that has no meaning.
            pub const fn from_code(code: u8) -> Option<Self> {
                match code { $($code => Some(Self::$variant),)+ _ => None }
            }

            /// The name in the documentation and in logs.
            pub const fn label(self) -> &'static str {
                match self { $(Self::$variant => $label,)+ }
            }

            /// One sentence for the documentation.
            pub fn meaning(self) -> &'static str {
                match self { $(Self::$variant => concat!($($doc),+).trim_ascii(),)+ }
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(self.label())
            }
        }
    };
}

codes! {
    /// The type of a frame.
    Kind {
        /// The client begins a stream.
        Open = 1 "OPEN",
        /// Bytes of the stream.
        Data = 2 "DATA",
        /// The sender's direction of the stream has ended.
        Fin = 3 "FIN",
        /// The stream is aborted, and the tunnel with it.
        Reset = 4 "RESET",
        /// The server will take no further stream.
        GoAway = 5 "GOAWAY",
        /// What follows in this direction, up to close_notify, is the stream's bytes without frames.
        Raw = 6 "RAW",
    }
}

codes! {
    /// Why a stream was reset.
    Reason {
        /// None of the others; also what a receiver takes a code for that it does not know.
        Other = 0 "other",
        /// The policy of the sender denies the stream.
        Denied = 1 "denied",
        /// The sender has no policy or no certificate.
        NotReady = 2 "not_ready",
        /// The app refused the connection.
        ConnectRefused = 3 "connect_refused",
        /// The app did not take the connection in time.
        ConnectTimeout = 4 "connect_timeout",
        /// There is no route to the app.
        ConnectUnreachable = 5 "connect_unreachable",
        /// The connection to the app could not be made for another reason.
        ConnectFailed = 6 "connect_failed",
        /// The app at the sender's side reset its connection.
        PeerReset = 7 "peer_reset",
        /// The app at the sender's side stopped acknowledging.
        PeerTimeout = 8 "peer_timeout",
        /// Half-closed and silent for too long.
        HalfCloseTimeout = 9 "half_close_timeout",
        /// The policy was changed while the stream was open, and now denies it.
        PolicyChanged = 10 "policy_changed",
        /// The sender reached its limit of connections.
        ConnectionLimit = 11 "connection_limit",
        /// The sender stops.
        Shutdown = 12 "shutdown",
        /// The receiver broke a rule of this protocol.
        ProtocolError = 13 "protocol_error",
        /// The receiver's certificate is no longer accepted: it expired, or the trust bundles have changed.
        CertificateRefused = 14 "certificate_refused",
    }
}

/// What begins a frame of `kind` with a payload of `length` bytes. `length` is at
/// most [`MAX_DATA`]; more than the three bytes hold would be cut.
pub const fn header(kind: Kind, length: usize) -> [u8; HEADER_LEN] {
    debug_assert!(length <= MAX_DATA, "a payload that fits one record");
    let [.., a, b, c] = length.to_be_bytes();
    [kind.code(), a, b, c]
}

/// A whole frame other than DATA, ready to be written. It derefs to its bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Frame {
    kind: Kind,
    len: u8,
    bytes: [u8; HEADER_LEN + MAX_SMALL],
}

impl Frame {
    fn new(kind: Kind, parts: [&[u8]; 2]) -> Self {
        let mut frame = Self { kind, len: 0, bytes: [0; HEADER_LEN + MAX_SMALL] };
        let head = header(kind, parts.iter().map(|part| part.len()).sum());
        let all = head.iter().chain(parts.into_iter().flatten());
        for (place, byte) in frame.bytes.iter_mut().zip(all) {
            *place = *byte;
            frame.len += 1;
        }
        frame
    }

    /// Its type, for [`End::sent`](super::End::sent).
    pub const fn kind(&self) -> Kind {
        self.kind
    }
}

impl Deref for Frame {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        self.bytes.get(..usize::from(self.len)).unwrap_or_default()
    }
}

/// OPEN. `client` is the app connection's source; an IPv4 address that is written
/// as IPv6 (RFC 4291, section 2.5.5.2) is sent as what it is.
pub fn open(client: SocketAddr) -> Frame {
    let port = client.port().to_be_bytes();
    match client.ip().to_canonical() {
        IpAddr::V4(ip) => Frame::new(Kind::Open, [&ip.octets(), &port]),
        IpAddr::V6(ip) => Frame::new(Kind::Open, [&ip.octets(), &port]),
    }
}

/// FIN.
pub fn fin() -> Frame {
    Frame::new(Kind::Fin, [&[], &[]])
}

/// RESET. After it the sender ends the TCP connection with a RST.
pub fn reset(reason: Reason) -> Frame {
    Frame::new(Kind::Reset, [&[reason.code()], &[]])
}

/// GOAWAY.
pub fn goaway() -> Frame {
    Frame::new(Kind::GoAway, [&[], &[]])
}

/// RAW.
pub fn raw() -> Frame {
    Frame::new(Kind::Raw, [&[], &[]])
}

/// The address of an OPEN's payload; none if the length is neither of the two.
pub(super) fn client_of(payload: &[u8]) -> Option<SocketAddr> {
    let (ip, port) = payload.split_last_chunk::<2>()?;
    let ip = match ip.len() {
        4 => IpAddr::from(ip.first_chunk::<4>().copied()?),
        16 => IpAddr::from(ip.first_chunk::<16>().copied()?).to_canonical(),
        _ => return None,
    };
    Some(SocketAddr::new(ip, u16::from_be_bytes(*port)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    fn address(text: &str) -> SocketAddr {
        text.parse().unwrap()
    }

    #[test]
    fn every_frame_has_its_bytes() {
        let v4 = [1, 0, 0, 6, 192, 0, 2, 1, 0x1f, 0x90];
        assert_eq!(*open(address("192.0.2.1:8080")), v4);
        assert_eq!(*open(address("[::ffff:192.0.2.1]:8080")), v4);
        let v6 = [1, 0, 0, 18, 0x20, 1, 0xd, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 80];
        assert_eq!(*open(address("[2001:db8::1]:80")), v6);
        assert_eq!(*fin(), [3, 0, 0, 0]);
        assert_eq!(*reset(Reason::ConnectRefused), [4, 0, 0, 1, 3]);
        assert_eq!(*goaway(), [5, 0, 0, 0]);
        assert_eq!(*raw(), [6, 0, 0, 0]);
        assert_eq!(header(Kind::Data, MAX_DATA), [2, 0, 0x3f, 0xfc]);
    }

    #[test]
    fn a_full_data_frame_is_one_record() {
        assert_eq!(HEADER_LEN + MAX_DATA, 1 << 14);
    }

    #[test]
    fn addresses_come_back_and_other_lengths_do_not() {
        for text in ["192.0.2.1:8080", "[2001:db8::1]:80", "[::]:0", "0.0.0.0:65535"] {
            assert_eq!(client_of(&open(address(text))[HEADER_LEN..]), Some(address(text)));
        }
        let mut mapped = [0; 18];
        mapped[10..].copy_from_slice(&[0xff, 0xff, 192, 0, 2, 1, 0, 80]);
        assert_eq!(client_of(&mapped), Some(address("192.0.2.1:80")));
        for length in (0..32).filter(|length| ![6, 18].contains(length)) {
            assert_eq!(client_of(&vec![0; length]), None);
        }
    }

    #[test]
    fn codes_and_labels_are_unique_and_codes_come_back() {
        for kind in Kind::ALL {
            assert_eq!(Kind::from_code(kind.code()), Some(*kind));
        }
        for reason in Reason::ALL {
            assert_eq!(Reason::from_code(reason.code()), Some(*reason));
        }
        assert_eq!((Kind::from_code(0), Kind::from_code(7)), (None, None));
        let labels: BTreeSet<_> = Reason::ALL.iter().map(|r| r.label()).collect();
        assert_eq!(labels.len(), Reason::ALL.len());
        assert!(Reason::ALL.iter().all(|r| r.meaning().ends_with('.')));
        assert!(Kind::ALL.iter().all(|k| k.meaning().ends_with('.')));
    }
}
