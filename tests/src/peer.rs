//! A peer that the test itself is: its certificate is in order, and what it says inside TLS is
//! what the test makes it say.

use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::path::Path;

use pillion_certs::generation::{Offer, TlsGeneration};
use pillion_certs::load::{IdentityFiles, KeyExchange, SvidSource, load};
use rustls::pki_types::UnixTime;
use rustls::{ClientConnection, Connection, ServerConnection};

use crate::{Context, Failure};

/// The tunnel's frames, written out: the tests share no code with what they test.
pub mod frame {
    /// OPEN of an app at 192.0.2.1:8080.
    pub const OPEN: &[u8] = b"\x01\x00\x00\x06\xc0\x00\x02\x01\x1f\x90";
    /// FIN.
    pub const FIN: &[u8] = b"\x03\x00\x00\x00";
    /// GOAWAY.
    pub const GOAWAY: &[u8] = b"\x05\x00\x00\x00";
    /// RAW.
    pub const RAW: &[u8] = b"\x06\x00\x00\x00";

    /// DATA of at most 255 bytes.
    #[must_use]
    pub fn data(bytes: &[u8]) -> Vec<u8> {
        let length = u8::try_from(bytes.len()).unwrap_or(u8::MAX);
        [&[2, 0, 0, length], bytes].concat()
    }

    /// RESET with the code of a reason.
    #[must_use]
    pub fn reset(code: u8) -> Vec<u8> {
        vec![4, 0, 0, 1, code]
    }
}

/// How a TLS connection ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TlsEnd {
    /// `close_notify`.
    CloseNotify,
    /// FIN without `close_notify`.
    Truncated,
    /// RST.
    Reset,
}

/// One end of an mTLS connection.
#[derive(Debug)]
pub struct TlsPeer {
    socket: TcpStream,
    tls: Connection,
}

/// The identity in a directory that has `tls.crt`, `tls.key` and `ca.crt`.
///
/// # Errors
/// The files are not as they should be.
pub fn identity(directory: &Path) -> Result<TlsGeneration, Failure> {
    let svid =
        SvidSource::Files { cert: directory.join("tls.crt"), key: directory.join("tls.key") };
    let files = IdentityFiles {
        svid,
        ca: directory.join("ca.crt"),
        trust_bundles_dir: None,
        crl: None,
        trust_domain: None,
        key_exchange: KeyExchange::Classic,
    };
    load(&files, UnixTime::now()).map_err(|error| Failure::Unexpected(error.to_string()))
}

impl TlsPeer {
    /// The client's end, after a handshake that offered `pillion/1` and `istio`.
    ///
    /// # Errors
    /// The handshake fails.
    pub fn client(socket: TcpStream, identity: &TlsGeneration) -> Result<Self, Failure> {
        Self::client_that_offers(socket, identity, Offer::Tunnel)
    }

    /// The same with another offer.
    ///
    /// # Errors
    /// The handshake fails.
    pub fn client_that_offers(
        socket: TcpStream,
        identity: &TlsGeneration,
        offer: Offer,
    ) -> Result<Self, Failure> {
        let tls =
            ClientConnection::new(identity.client_config(offer), TlsGeneration::server_name());
        Self::shake_hands(socket, tls.map_err(failed)?.into())
    }

    /// The client's end again; when the server has shown its certificate, and before ours is
    /// shown, `meanwhile` is called.
    ///
    /// # Errors
    /// The handshake fails, or `meanwhile` does.
    pub fn hesitant_client(
        mut socket: TcpStream,
        identity: &TlsGeneration,
        meanwhile: impl FnOnce() -> Result<(), Failure>,
    ) -> Result<Self, Failure> {
        let tls = ClientConnection::new(
            identity.client_config(Offer::Tunnel),
            TlsGeneration::server_name(),
        );
        let mut tls = Connection::from(tls.map_err(failed)?);
        while tls.wants_write() {
            tls.write_tls(&mut socket)?;
        }
        while !tls.wants_write() {
            tls.read_tls(&mut socket)?;
            tls.process_new_packets().map_err(failed)?;
        }
        meanwhile()?;
        while tls.wants_write() {
            tls.write_tls(&mut socket)?;
        }
        Self::shake_hands(socket, tls)
    }

    /// A client's first flight, the `ClientHello` in its record.
    ///
    /// # Errors
    /// The identity makes no client.
    pub fn hello(identity: &TlsGeneration) -> Result<Vec<u8>, Failure> {
        let config = identity.client_config(Offer::Tunnel);
        let mut tls =
            ClientConnection::new(config, TlsGeneration::server_name()).map_err(failed)?;
        let mut hello = Vec::new();
        tls.write_tls(&mut hello)?;
        Ok(hello)
    }

    /// The server's end; when the client's first bytes are there, and before they are answered,
    /// `meanwhile` is called.
    ///
    /// # Errors
    /// The handshake fails, or `meanwhile` does.
    pub fn hesitant_server(
        mut socket: TcpStream,
        identity: &TlsGeneration,
        meanwhile: impl FnOnce() -> Result<(), Failure>,
    ) -> Result<Self, Failure> {
        let tls = ServerConnection::new(identity.server_config(true)).map_err(failed)?;
        let mut tls = Connection::from(tls);
        tls.read_tls(&mut socket)?;
        meanwhile()?;
        tls.process_new_packets().map_err(failed)?;
        while tls.wants_write() {
            tls.write_tls(&mut socket)?;
        }
        Self::shake_hands(socket, tls)
    }

    /// The server's end, after a handshake that takes `pillion/1` and `istio`.
    ///
    /// # Errors
    /// The handshake fails.
    pub fn server(socket: TcpStream, identity: &TlsGeneration) -> Result<Self, Failure> {
        let tls = ServerConnection::new(identity.server_config(true)).map_err(failed)?;
        Self::shake_hands(socket, tls.into())
    }

    fn shake_hands(mut socket: TcpStream, mut tls: Connection) -> Result<Self, Failure> {
        while tls.is_handshaking() {
            tls.complete_io(&mut socket).context(|| "the handshake of the test's peer")?;
        }
        Ok(Self { socket, tls })
    }

    /// The protocol that ALPN has chosen; empty when it has chosen none.
    #[must_use]
    pub fn protocol(&self) -> &[u8] {
        self.tls.alpn_protocol().unwrap_or_default()
    }

    /// Sends bytes in records.
    ///
    /// # Errors
    /// The connection is gone, or the other end does not read for 20 s.
    pub fn send(&mut self, bytes: &[u8]) -> Result<(), Failure> {
        let mut send = || {
            self.tls.writer().write_all(bytes)?;
            while self.tls.wants_write() {
                self.tls.write_tls(&mut self.socket)?;
            }
            Ok::<_, io::Error>(())
        };
        send().context(|| "the test's peer sends")
    }

    /// Sends bytes as they are, around TLS.
    ///
    /// # Errors
    /// As [`TlsPeer::send`].
    pub fn inject(&mut self, bytes: &[u8]) -> Result<(), Failure> {
        self.socket.write_all(bytes).context(|| "the test's peer injects")
    }

    /// Changes its key so many times, and says so (RFC 8446, 4.6.3).
    ///
    /// # Errors
    /// As [`TlsPeer::send`].
    pub fn update_keys(&mut self, times: u32) -> Result<(), Failure> {
        for _ in 0..times {
            self.tls.refresh_traffic_keys().map_err(failed)?;
            self.send(b"")?;
        }
        Ok(())
    }

    /// Sends `close_notify`.
    ///
    /// # Errors
    /// As [`TlsPeer::send`].
    pub fn close(&mut self) -> Result<(), Failure> {
        self.tls.send_close_notify();
        self.send(b"")
    }

    /// Reads so many bytes.
    ///
    /// # Errors
    /// Silence for 20 s, or the connection ends first.
    pub fn read_exactly(&mut self, length: usize) -> Result<Vec<u8>, Failure> {
        let mut bytes = vec![0; length];
        self.read_exact(&mut bytes).context(|| format!("the test's peer reads {length} bytes"))?;
        Ok(bytes)
    }

    /// Reads to the end, and says which end it was.
    ///
    /// # Errors
    /// Silence for 20 s, or a broken record.
    pub fn read_to_end(&mut self) -> Result<(Vec<u8>, TlsEnd), Failure> {
        let mut bytes = Vec::new();
        let end = match Read::read_to_end(self, &mut bytes) {
            Ok(_) => TlsEnd::CloseNotify,
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => TlsEnd::Truncated,
            Err(error) if error.kind() == io::ErrorKind::ConnectionReset => TlsEnd::Reset,
            Err(error) => return Err(error).context(|| "the test's peer reads to the end"),
        };
        Ok((bytes, end))
    }
}

impl Read for TlsPeer {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            match self.tls.reader().read(buffer) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                done => return done,
            }
            self.tls.read_tls(&mut self.socket)?;
            self.tls.process_new_packets().map_err(io::Error::other)?;
        }
    }
}

fn failed(error: rustls::Error) -> Failure {
    Failure::Unexpected(format!("TLS of the test's peer: {error}"))
}
