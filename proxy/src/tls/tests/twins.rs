//! Connections with the same keys: a handshake without chance, played again.
//!
//! Random numbers, key exchange and signatures are constants here, so a recorded
//! handshake that is shown to another fresh connection gives it the very keys of the
//! first. What follows can then be told to rustls and to our record layer alike.
//! Fuzzing uses this file too.

use std::sync::Arc;

use aws_lc_rs::aead::{AES_128_GCM, AES_256_GCM, Aad, CHACHA20_POLY1305};
use aws_lc_rs::aead::{LessSafeKey, Nonce, UnboundKey};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{Resumption, UnbufferedClientConnection};
use rustls::crypto::{
    ActiveKeyExchange, CryptoProvider, GetRandomFailed, SecureRandom, SharedSecret,
    SupportedKxGroup, aws_lc_rs as library,
};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::UnbufferedServerConnection;
use rustls::sign::{CertifiedKey, Signer, SigningKey, SingleCertAndKey};
use rustls::unbuffered::{ConnectionState, UnbufferedStatus};
use rustls::{
    ClientConfig, ClientConnection, Connection, ConnectionTrafficSecrets, DigitallySignedStruct,
    Error, ExtractedSecrets, NamedGroup, ServerConfig, ServerConnection, Side, SignatureAlgorithm,
    SignatureScheme, SupportedCipherSuite,
};

use crate::tls::records::Schedule;
use crate::tls::session::{Session, Unbuffered};

/// All suites of TLS 1.3 that rustls has.
pub(crate) const SUITES: [SupportedCipherSuite; 3] = [
    library::cipher_suite::TLS13_AES_128_GCM_SHA256,
    library::cipher_suite::TLS13_AES_256_GCM_SHA384,
    library::cipher_suite::TLS13_CHACHA20_POLY1305_SHA256,
];

/// Everything that is random or signed in a handshake, as a constant.
#[derive(Debug)]
struct Constant;

const PUBLIC: [u8; 32] = [9; 32];

impl SecureRandom for Constant {
    fn fill(&self, buf: &mut [u8]) -> Result<(), GetRandomFailed> {
        buf.fill(4);
        Ok(())
    }
}

impl SupportedKxGroup for Constant {
    fn start(&self) -> Result<Box<dyn ActiveKeyExchange>, Error> {
        Ok(Box::new(Self))
    }

    fn name(&self) -> NamedGroup {
        NamedGroup::X25519
    }
}

impl ActiveKeyExchange for Constant {
    fn complete(self: Box<Self>, _: &[u8]) -> Result<SharedSecret, Error> {
        Ok(SharedSecret::from(&[3; 32][..]))
    }

    fn pub_key(&self) -> &[u8] {
        &PUBLIC
    }

    fn group(&self) -> NamedGroup {
        NamedGroup::X25519
    }
}

impl SigningKey for Constant {
    fn choose_scheme(&self, _: &[SignatureScheme]) -> Option<Box<dyn Signer>> {
        Some(Box::new(Self))
    }

    fn algorithm(&self) -> SignatureAlgorithm {
        SignatureAlgorithm::ED25519
    }
}

impl Signer for Constant {
    fn sign(&self, _: &[u8]) -> Result<Vec<u8>, Error> {
        Ok(vec![5; 64])
    }

    fn scheme(&self) -> SignatureScheme {
        SignatureScheme::ED25519
    }
}

impl ServerCertVerifier for Constant {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(Error::General("TLS 1.3 alone".into()))
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        vec![SignatureScheme::ED25519]
    }
}

/// A handshake, and the configurations that made it.
pub(crate) struct Recorded {
    client: Arc<ClientConfig>,
    server: Arc<ServerConfig>,
    from_client: Vec<u8>,
    from_server: Vec<u8>,
    /// What the server sends when it has heard everything.
    pub(crate) tickets: Vec<u8>,
}

impl Recorded {
    /// Makes the handshake, with one suite.
    pub(crate) fn new(suite: SupportedCipherSuite) -> Self {
        Self::with_tickets(suite, 0)
    }

    /// Makes the handshake, behind which the server sends tickets.
    pub(crate) fn with_tickets(suite: SupportedCipherSuite, tickets: usize) -> Self {
        let provider = Arc::new(CryptoProvider {
            cipher_suites: vec![suite],
            kx_groups: vec![&Constant],
            secure_random: &Constant,
            ..library::default_provider()
        });
        let versions = [&rustls::version::TLS13];
        let mut client = ClientConfig::builder_with_provider(Arc::clone(&provider))
            .with_protocol_versions(&versions)
            .unwrap()
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(Constant))
            .with_no_client_auth();
        client.resumption = Resumption::disabled();
        client.enable_secret_extraction = true;
        let certificate = vec![CertificateDer::from(vec![1, 2, 3])];
        let key = SingleCertAndKey::from(CertifiedKey::new(certificate, Arc::new(Constant)));
        let mut server = ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(&versions)
            .unwrap()
            .with_no_client_auth()
            .with_cert_resolver(Arc::new(key));
        server.send_tls13_tickets = tickets;
        server.enable_secret_extraction = true;
        let (client, server) = (Arc::new(client), Arc::new(server));
        let (from_client, from_server, tickets) = (vec![], vec![], vec![]);
        let mut recorded = Self { client, server, from_client, from_server, tickets };
        let (mut client, mut server) = recorded.fresh();
        let hello = sent(&mut client);
        give(&mut server, &hello).unwrap();
        recorded.from_server = sent(&mut server);
        give(&mut client, &recorded.from_server).unwrap();
        let finished = sent(&mut client);
        give(&mut server, &finished).unwrap();
        assert!(!client.is_handshaking() && !server.is_handshaking());
        recorded.tickets = sent(&mut server);
        recorded.from_client = [hello, finished].concat();
        recorded
    }

    fn fresh(&self) -> (Connection, Connection) {
        let client = ClientConnection::new(Arc::clone(&self.client), name()).unwrap();
        let server = ServerConnection::new(Arc::clone(&self.server)).unwrap();
        (client.into(), server.into())
    }

    /// rustls, right after the handshake.
    pub(crate) fn rustls(&self, side: Side) -> Connection {
        let (client, server) = self.fresh();
        let (mut tls, heard) = match side {
            Side::Client => (client, &self.from_server),
            Side::Server => (server, &self.from_client),
        };
        sent(&mut tls);
        give(&mut tls, heard).unwrap();
        sent(&mut tls);
        assert!(!tls.is_handshaking());
        tls
    }

    fn unbuffered_client(&self) -> UnbufferedClientConnection {
        let mut tls = UnbufferedClientConnection::new(Arc::clone(&self.client), name()).unwrap();
        shake(&mut tls, &self.from_server);
        tls
    }

    fn unbuffered_server(&self) -> UnbufferedServerConnection {
        let mut tls = UnbufferedServerConnection::new(Arc::clone(&self.server)).unwrap();
        shake(&mut tls, &self.from_client);
        tls
    }

    /// Ours, right after the handshake.
    pub(crate) fn session(&self, side: Side) -> Session {
        match side {
            Side::Client => self.unbuffered_client().into_session(true).unwrap(),
            Side::Server => self.unbuffered_server().into_session(true).unwrap(),
        }
    }

    /// What [`Session`] is made from.
    pub(crate) fn secrets(&self, side: Side) -> (ExtractedSecrets, Schedule) {
        match side {
            Side::Client => {
                let made = self.unbuffered_client().dangerous_into_kernel_connection();
                let (secrets, kernel) = made.unwrap();
                (secrets, Schedule::Client(Box::new(kernel)))
            }
            Side::Server => {
                let made = self.unbuffered_server().dangerous_into_kernel_connection();
                let (secrets, kernel) = made.unwrap();
                (secrets, Schedule::Server(Box::new(kernel)))
            }
        }
    }

    /// A peer on `side` that sends what no good one would.
    pub(crate) fn forger(&self, side: Side) -> Forger {
        let (secrets, schedule) = self.secrets(side);
        let (aead, iv) = key(secrets.tx.1);
        Forger { aead, iv, sequence: secrets.tx.0, schedule }
    }
}

fn name() -> ServerName<'static> {
    ServerName::try_from("peer").unwrap()
}

/// What `tls` has to send.
pub(crate) fn sent(tls: &mut Connection) -> Vec<u8> {
    let mut out = Vec::new();
    while tls.wants_write() {
        tls.write_tls(&mut out).unwrap();
    }
    out
}

/// Shows `bytes` to `tls`, and gives the plaintext that comes of them before any error.
pub(crate) fn give(tls: &mut Connection, mut bytes: &[u8]) -> Result<Vec<u8>, (Vec<u8>, Error)> {
    use std::io::Read;
    let mut plain = Vec::new();
    while !bytes.is_empty() {
        if tls.read_tls(&mut bytes).unwrap() == 0 {
            break; // Nothing is taken behind a close_notify.
        }
        let processed = tls.process_new_packets();
        // The end of what is here shows as an error, a truncated stream does not.
        let _ = tls.reader().read_to_end(&mut plain);
        if let Err(e) = processed {
            return Err((plain, e));
        }
    }
    Ok(plain)
}

fn shake<C: Unbuffered>(tls: &mut C, heard: &[u8]) {
    let mut heard = heard.to_vec();
    loop {
        let UnbufferedStatus { discard, state, .. } = tls.process(&mut heard);
        match state.unwrap() {
            ConnectionState::EncodeTlsData(mut data) => {
                data.encode(&mut [0; 1 << 14]).unwrap();
            }
            ConnectionState::TransmitTlsData(data) => data.done(),
            ConnectionState::WriteTraffic(_) => return,
            state => panic!("not in a handshake: {state:?}"),
        }
        heard.drain(..discard);
    }
}

fn key(secrets: ConnectionTrafficSecrets) -> (LessSafeKey, [u8; 12]) {
    let (algorithm, key, iv) = match &secrets {
        ConnectionTrafficSecrets::Aes128Gcm { key, iv } => (&AES_128_GCM, key, iv),
        ConnectionTrafficSecrets::Aes256Gcm { key, iv } => (&AES_256_GCM, key, iv),
        ConnectionTrafficSecrets::Chacha20Poly1305 { key, iv } => (&CHACHA20_POLY1305, key, iv),
        _ => panic!("another suite"),
    };
    let key = UnboundKey::new(algorithm, key.as_ref()).unwrap();
    (LessSafeKey::new(key), iv.as_ref().try_into().unwrap())
}

/// Seals anything: any type, any length, any padding.
pub(crate) struct Forger {
    aead: LessSafeKey,
    iv: [u8; 12],
    sequence: u64,
    schedule: Schedule,
}

impl Forger {
    /// A record with this content and type, and so many zeros behind it.
    pub(crate) fn record(&mut self, kind: u8, content: &[u8], padding: usize) -> Vec<u8> {
        let mut inner = [content, &[kind]].concat();
        inner.resize(inner.len() + padding, 0);
        self.seal(inner)
    }

    /// A record with this inner plaintext (RFC 8446, 5.2), whatever it is.
    pub(crate) fn seal(&mut self, mut inner: Vec<u8>) -> Vec<u8> {
        let length = u16::try_from(inner.len() + 16).unwrap().to_be_bytes();
        let header = [23, 3, 3, length[0], length[1]];
        let mut nonce = u128::from_be_bytes([&[0; 4], &self.iv[..]].concat().try_into().unwrap());
        nonce ^= u128::from(self.sequence);
        self.sequence += 1;
        let nonce = Nonce::try_assume_unique_for_key(&nonce.to_be_bytes()[4..]).unwrap();
        self.aead.seal_in_place_append_tag(nonce, Aad::from(header), &mut inner).unwrap();
        [&header[..], &inner].concat()
    }

    /// A KeyUpdate with this request, in one record; from here on the next key seals.
    pub(crate) fn key_update(&mut self, request: u8) -> Vec<u8> {
        let record = self.record(22, &[24, 0, 0, 1, request], 0);
        self.next_key();
        record
    }

    /// The next key, without a word.
    pub(crate) fn next_key(&mut self) {
        let (sequence, secrets) = self.schedule.next_tx().unwrap();
        (self.aead, self.iv) = key(secrets);
        self.sequence = sequence;
    }
}

/// A NewSessionTicket (RFC 8446, 4.6.1) with a ticket of this many bytes, at least one.
pub(crate) fn ticket(len: u16) -> Vec<u8> {
    let len = usize::from(len.max(1));
    let ticket_len = u16::try_from(len).unwrap().to_be_bytes();
    let body_len = u32::try_from(4 + 4 + 2 + 2 + len + 2).unwrap().to_be_bytes();
    let mut message = [&[4], &body_len[1..], &[0, 0, 1, 0, 7, 7, 7, 7, 1, 1], &ticket_len].concat();
    message.resize(message.len() + len, 6);
    message.extend([0, 0]);
    message
}
