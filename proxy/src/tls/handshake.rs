//! The handshake, through rustls's unbuffered interface.
//!
//! Its buffers are ours, so nothing that came with the last flight is lost when a
//! record layer of our own takes over: rustls is given one record at a time, and
//! what it has not been given stays ciphertext.

use std::ops::RangeInclusive;

use pillion_certs::generation::{ALPN_TUNNEL, Offer, TlsGeneration};
use pillion_certs::verify::VerifiedPeer;
use rustls::client::UnbufferedClientConnection;
use rustls::pki_types::CertificateDer;
use rustls::server::UnbufferedServerConnection;
use rustls::unbuffered::{ConnectionState, UnbufferedStatus};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::config::TlsEngine;
use crate::net::Leg;

use super::HandshakeError;
use super::session::{Session, Unbuffered, encode, record_length};

/// Ciphertext of one flight that is held at most: a message may have 64 KiB
/// (rustls's limit), and each record of it a header.
const MAX_FLIGHT: usize = 80 * 1024;

/// change_cipher_spec, alert, handshake, application_data (RFC 8446, 5.1).
const CONTENT_TYPES: RangeInclusive<u8> = 20..=23;

/// Room for a flight without ML-KEM and with a short chain; it grows.
const FIRST_READ: usize = 2 * 1024;

/// Is told bytes before they are sent.
pub type Says<'a> = &'a dyn Fn(&[u8]);

/// What a handshake made.
#[derive(Debug)]
pub struct Established {
    /// For the records from here on.
    pub session: Session,
    /// Who the peer is.
    pub peer: VerifiedPeer,
    /// Whether the two agreed on the tunnel.
    pub tunnel: bool,
    /// Ciphertext that came behind the handshake.
    pub rest: Vec<u8>,
}

/// Terminates TLS. `seen` was read from `leg` before. `mesh`: the client offered one
/// of our protocols by ALPN; a client that did not is not told about protocols that it
/// never asked for.
///
/// # Errors
/// The client has got its alert by then, and will get a FIN.
pub async fn accept(
    leg: &mut Leg,
    seen: Vec<u8>,
    mesh: bool,
    generation: &TlsGeneration,
    engine: TlsEngine,
) -> Result<Established, HandshakeError> {
    let tls = UnbufferedServerConnection::new(generation.server_config(mesh))?;
    Box::pin(shake_hands(leg, tls, Flight::new(seen), generation, engine)).await
}

/// Originates TLS over a connection that was just opened. `says` is told the ClientHello before it
/// is sent.
///
/// # Errors
/// The server has got its alert by then, and will get a FIN.
pub async fn connect(
    leg: &mut Leg,
    offer: Offer,
    generation: &TlsGeneration,
    engine: TlsEngine,
    says: Says<'_>,
) -> Result<Established, HandshakeError> {
    // SPIFFE peers are known by their id alone: no name is sent and none is checked.
    let config = generation.client_config(offer);
    let tls = UnbufferedClientConnection::new(config, TlsGeneration::server_name())?;
    let flight = Flight { says: Some(says), ..Flight::new(Vec::new()) };
    Box::pin(shake_hands(leg, tls, flight, generation, engine)).await
}

/// What is asked of either side's connection when the handshake is done.
trait Shaken: Unbuffered {
    fn certificates(&self) -> Option<&[CertificateDer<'static>]>;
    fn alpn(&self) -> Option<&[u8]>;
}

impl Shaken for UnbufferedClientConnection {
    fn certificates(&self) -> Option<&[CertificateDer<'static>]> {
        self.peer_certificates()
    }

    fn alpn(&self) -> Option<&[u8]> {
        self.alpn_protocol()
    }
}

impl Shaken for UnbufferedServerConnection {
    fn certificates(&self) -> Option<&[CertificateDer<'static>]> {
        self.peer_certificates()
    }

    fn alpn(&self) -> Option<&[u8]> {
        self.alpn_protocol()
    }
}

async fn shake_hands<C: Shaken>(
    leg: &mut Leg,
    mut tls: C,
    mut flight: Flight<'_>,
    generation: &TlsGeneration,
    engine: TlsEngine,
) -> Result<Established, HandshakeError> {
    let result = flight.exchange(leg, &mut tls).await;
    let verified = result.and_then(|()| {
        generation.verified_peer(tls.certificates()).map_err(HandshakeError::Refused)
    });
    let peer = match verified {
        Ok(peer) => peer,
        Err(e) => {
            send_alert(leg, &mut tls, flight.shown()).await;
            leg.end_cleanly();
            return Err(e);
        }
    };
    let tunnel = tls.alpn() == Some(ALPN_TUNNEL);
    let session = tls.into_session(engine == TlsEngine::Records)?;
    Ok(Established { session, peer, tunnel, rest: flight.bytes })
}

/// The peer's bytes, of which the first `given` have been shown to rustls and not yet
/// been dealt with: parts of a message that goes over several records.
struct Flight<'a> {
    bytes: Vec<u8>,
    given: usize,
    /// To be told what is sent first.
    says: Option<Says<'a>>,
}

enum Next {
    Ask,
    GiveMore,
    Done,
}

impl Flight<'_> {
    fn new(bytes: Vec<u8>) -> Self {
        Self { bytes, given: 0, says: None }
    }

    fn shown(&mut self) -> &mut [u8] {
        self.bytes.get_mut(..self.given).unwrap_or_default()
    }

    async fn exchange<C: Unbuffered>(
        &mut self,
        leg: &mut Leg,
        tls: &mut C,
    ) -> Result<(), HandshakeError> {
        let mut out = Vec::new();
        loop {
            let UnbufferedStatus { discard, state, .. } = tls.process(self.shown());
            let next = match state {
                Err(e) => Err(e.into()),
                Ok(ConnectionState::EncodeTlsData(mut data)) => {
                    encode(&mut out, &mut data)?;
                    Ok(Next::Ask)
                }
                Ok(ConnectionState::TransmitTlsData(data)) => {
                    if let Some(says) = self.says.take() {
                        says(&out);
                    }
                    leg.write_all(&std::mem::take(&mut out)).await?;
                    data.done();
                    Ok(Next::Ask)
                }
                Ok(ConnectionState::BlockedHandshake) if discard == 0 => Ok(Next::GiveMore),
                Ok(ConnectionState::BlockedHandshake) => Ok(Next::Ask),
                Ok(ConnectionState::WriteTraffic(_)) => Ok(Next::Done),
                // Not before the handshake is done, and then no record was given.
                Ok(_) => Err(HandshakeError::Failed("data within the handshake".into())),
            };
            self.bytes.drain(..discard);
            self.given = self.given.saturating_sub(discard);
            match next? {
                Next::Ask => {}
                Next::GiveMore => self.give_more(leg).await?,
                Next::Done => return Ok(()),
            }
        }
    }

    /// Shows one record more, and waits for it if it is not there yet.
    async fn give_more(&mut self, leg: &mut Leg) -> Result<(), HandshakeError> {
        loop {
            let unseen = self.bytes.get(self.given..).unwrap_or_default();
            // What is no record, or one that is too long, is for rustls to refuse.
            let length = if unseen.first().is_some_and(|kind| !CONTENT_TYPES.contains(kind)) {
                Some(unseen.len())
            } else {
                record_length(unseen)
            };
            if let Some(length) = length {
                self.given += length.min(unseen.len());
                return Ok(());
            }
            if self.bytes.len() > MAX_FLIGHT {
                return Err(HandshakeError::Failed("a flight of more than 80 KiB".into()));
            }
            // A handshake that waits has no room ready.
            std::future::poll_fn(|cx| leg.poll_readable(cx)).await?;
            self.bytes.reserve(FIRST_READ);
            if leg.read_buf(&mut self.bytes).await? == 0 {
                return Err(HandshakeError::Failed("the peer left in the handshake".into()));
            }
        }
    }
}

/// Sends the alert that rustls has ready, if it has one; best effort. `shown` is what it
/// was shown last: it may have to find a part of a message there.
async fn send_alert<C: Unbuffered>(leg: &mut Leg, tls: &mut C, shown: &mut [u8]) {
    let mut out = Vec::new();
    // Asked once: there is one alert, and behind it rustls would read on.
    if let Ok(ConnectionState::EncodeTlsData(mut data)) = tls.process(shown).state
        && encode(&mut out, &mut data).is_ok()
    {
        // The peer may have gone; then it needs no alert.
        let _ = leg.write_all(&out).await;
    }
}
