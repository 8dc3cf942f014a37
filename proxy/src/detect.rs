//! Looks at a client's first bytes: is this TLS, and if so, is it meant for us?
//!
//! The parser reads a ClientHello (RFC 8446, 4.1.2) that may be spread over
//! several TLS records and arrive a byte at a time. It looks at the ALPN list
//! (RFC 7301) alone and judges nothing else: rustls parses the whole again.

/// What the bytes so far show.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hello {
    /// A ClientHello may still be coming.
    Incomplete,
    /// Not TLS.
    NotTls,
    /// A ClientHello; `mesh` when its ALPN list offers one of ours.
    Tls {
        /// Whether one of the mesh's protocols is offered.
        mesh: bool,
    },
}

/// The largest ClientHello that is looked at. Hybrid key shares make hellos of
/// about 1.8 KB; what is larger than this is no honest hello.
pub const MAX_HELLO: usize = 16 * 1024;

const RECORD_HANDSHAKE: u8 = 22;
const MESSAGE_CLIENT_HELLO: u8 = 1;
const EXTENSION_ALPN: u16 = 16;

/// Looks at all bytes that came so far. `mesh_protocols` are the ALPN names that
/// mark a connection as the mesh's own.
pub fn peek(bytes: &[u8], mesh_protocols: &[&[u8]]) -> Hello {
    match client_hello(bytes) {
        Step::Done(body) => Hello::Tls { mesh: offers(&body, mesh_protocols).unwrap_or(false) },
        Step::More if bytes.len() < MAX_HELLO => Hello::Incomplete,
        Step::More | Step::No => Hello::NotTls,
    }
}

enum Step {
    More,
    No,
    Done(Vec<u8>),
}

/// Joins the handshake records' payloads until the ClientHello is whole.
fn client_hello(bytes: &[u8]) -> Step {
    let mut message = Vec::new();
    let mut rest = Reader(bytes);
    loop {
        // Each check comes as soon as its byte is there, so that a client which
        // speaks plaintext is told apart by its first byte and never waited for.
        match rest.0 {
            [] => return Step::More,
            [first, ..] if *first != RECORD_HANDSHAKE => return Step::No,
            [_, major, ..] if *major != 3 => return Step::No,
            _ => {}
        }
        let Some(header) = rest.take(5) else { return Step::More };
        let Some(length) = Reader(header.get(3..).unwrap_or_default()).u16() else {
            return Step::No;
        };
        let length = usize::from(length);
        if length == 0 || length > 16 * 1024 {
            return Step::No;
        }
        let available = length.min(rest.0.len());
        message.extend_from_slice(rest.take(available).unwrap_or_default());
        if message.first().is_some_and(|kind| *kind != MESSAGE_CLIENT_HELLO) {
            return Step::No;
        }
        let mut reader = Reader(&message);
        if let Some(total) = reader.take(1).and_then(|_| reader.u24()) {
            if total > MAX_HELLO {
                return Step::No;
            }
            if let Some(body) = reader.take(total) {
                return Step::Done(body.to_vec());
            }
        }
        if available < length {
            return Step::More;
        }
    }
}

/// Whether the hello's ALPN extension names one of `protocols`; `None` when it is
/// malformed.
fn offers(body: &[u8], protocols: &[&[u8]]) -> Option<bool> {
    let mut hello = Reader(body);
    hello.take(2 + 32)?; // legacy_version, random
    hello.vector8()?; // legacy_session_id
    hello.vector16()?; // cipher_suites
    hello.vector8()?; // legacy_compression_methods
    let mut extensions = Reader(hello.vector16()?);
    while !extensions.0.is_empty() {
        let kind = extensions.u16()?;
        let mut data = Reader(extensions.vector16()?);
        if kind == EXTENSION_ALPN {
            let mut names = Reader(data.vector16()?);
            while !names.0.is_empty() {
                let name = names.vector8()?;
                if protocols.contains(&name) {
                    return Some(true);
                }
            }
        }
    }
    Some(false)
}

/// A cursor that never reads past the end.
struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, n: usize) -> Option<&'a [u8]> {
        let (head, tail) = self.0.split_at_checked(n)?;
        self.0 = tail;
        Some(head)
    }

    fn u8(&mut self) -> Option<u8> {
        self.take(1)?.first().copied()
    }

    fn u16(&mut self) -> Option<u16> {
        Some(u16::from_be_bytes(self.take(2)?.try_into().ok()?))
    }

    fn u24(&mut self) -> Option<usize> {
        let high = usize::from(self.u8()?);
        Some(high << 16 | usize::from(self.u16()?))
    }

    fn vector8(&mut self) -> Option<&'a [u8]> {
        let n = self.u8()?;
        self.take(n.into())
    }

    fn vector16(&mut self) -> Option<&'a [u8]> {
        let n = self.u16()?;
        self.take(n.into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;

    const MESH: &[&[u8]] = &[b"istio", b"pillion/1"];

    /// A ClientHello as rustls writes it.
    fn hello(alpn: &[&[u8]]) -> Vec<u8> {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let mut config = rustls::ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(rustls::RootCertStore::empty())
            .with_no_client_auth();
        config.alpn_protocols = alpn.iter().map(|p| p.to_vec()).collect();
        let name = "example.org".try_into().unwrap();
        let mut c = rustls::ClientConnection::new(Arc::new(config), name).unwrap();
        let mut bytes = Vec::new();
        c.write_tls(&mut bytes).unwrap();
        bytes
    }

    #[test]
    fn a_hello_is_seen_whole_and_no_sooner() {
        for (alpn, mesh) in [
            (&[][..], false),
            (&[b"h2".as_slice(), b"http/1.1"][..], false),
            (&[b"h2".as_slice(), b"istio"][..], true),
            (&[b"pillion/1".as_slice()][..], true),
            (&[b"istio2".as_slice(), b"isti"][..], false),
        ] {
            let bytes = hello(alpn);
            for n in 0..bytes.len() {
                assert_eq!(peek(&bytes[..n], MESH), Hello::Incomplete, "{n} of {}", bytes.len());
            }
            assert_eq!(peek(&bytes, MESH), Hello::Tls { mesh });
        }
    }

    #[test]
    fn a_hello_over_many_records_is_joined() {
        let bytes = hello(&[b"istio"]);
        let mut split = Vec::new();
        for byte in &bytes[5..] {
            split.extend_from_slice(&[22, 3, 1, 0, 1, *byte]);
        }
        assert_eq!(peek(&split, MESH), Hello::Tls { mesh: true });
        assert_eq!(peek(&split[..split.len() - 1], MESH), Hello::Incomplete);
    }

    #[test]
    fn plaintext_is_told_by_its_first_bytes() {
        for text in
            [&b"GET / HTTP/1.1\r\n"[..], b"SSH-2.0", b"\x00", b"\x80\x2e\x01\x00\x02", b"\x16\x02"]
        {
            assert_eq!(peek(text, MESH), Hello::NotTls, "{text:?}");
        }
        assert_eq!(peek(b"", MESH), Hello::Incomplete);
        assert_eq!(peek(b"\x16\x03", MESH), Hello::Incomplete);
    }

    #[test]
    fn what_only_looks_like_tls_is_not_waited_for() {
        // An empty record, one that is too long, another handshake message, a hello of 16 MiB.
        for bytes in [
            &[22, 3, 1, 0, 0][..],
            &[22, 3, 1, 0xff, 0xff, 1],
            &[22, 3, 1, 0, 4, 2, 0, 0, 0],
            &[22, 3, 1, 0, 4, 1, 0xff, 0xff, 0xff],
        ] {
            assert_eq!(peek(bytes, MESH), Hello::NotTls, "{bytes:?}");
        }
    }

    #[test]
    fn no_cut_and_no_flipped_byte_panics() {
        let bytes = hello(&[b"istio"]);
        for at in 0..bytes.len() {
            for value in [0, 1, 0x7f, 0xff] {
                let mut bad = bytes.clone();
                bad[at] = value;
                peek(&bad, MESH);
            }
        }
    }
}
