//! The story of one inbound tunnel: one app connection after another.

use std::rc::Rc;
use std::sync::Arc;
use std::time::Instant;

use rustls::pki_types::UnixTime;
use tokio::sync::watch;

use crate::lane::{Held, Lane};
use crate::live::{Conn, Guard, Tls};
use crate::net::{ClientAddr, OriginalDst};
use crate::relay::{self, Ended};
use crate::telemetry::{CloseReason, Direction};
use crate::tunnel;
use crate::wire::{self, Received, Wire};

use super::{Identified, connect_app, ended_with, judge};

/// Serves the tunnel until either side gives it up. `guard` is of the connection that
/// the handshake was made for, and so of the first stream; each further stream is a
/// connection of its own in the log, the metrics and the policy's eyes.
pub(super) async fn serve(
    lane: &Rc<Lane>,
    guard: Guard,
    mut wire: Box<Wire>,
    mut client: Box<Identified>,
    dst: OriginalDst,
) {
    let source = guard.conn.source;
    let mut guard = Some(guard);
    let mut life = Life { retired: lane.retired(), born: Instant::now() };
    loop {
        // Counted until the next stream is: a drain must not see nothing between them.
        let held = guard.is_none().then(|| Held::new(&lane.shared));
        let next = next_open(lane, &mut wire, &mut life);
        let opened = match &guard {
            Some(guard) => Box::pin(guard.conn.unless_stopped(next)).await,
            None => Box::pin(next).await,
        };
        match opened {
            Ok(()) => {}
            Err(Ended { reason: CloseReason::Closed, .. }) => {
                wire.close();
                if let Some(guard) = guard {
                    guard.end(CloseReason::Closed);
                }
                return;
            }
            Err(ended) => {
                // What goes wrong between two streams has a line of its own.
                let guard = guard.unwrap_or_else(|| begin(lane, source, dst, &client));
                wire.abort(ended.reason.to_peer());
                let reason = ended_with(&guard.conn, ended);
                return guard.end(reason);
            }
        }
        let is_further = guard.is_none();
        let stream = guard.take().unwrap_or_else(|| begin(lane, source, dst, &client));
        drop(held);
        let reason = if is_further && lane.shared.is_short_of_memory() {
            // The first was let in when it was accepted.
            CloseReason::MemoryLimit
        } else {
            serve_stream(lane, &stream.conn, &mut wire, &mut client, dst).await
        };
        // A RESET behind our FIN could meet the client's next OPEN on the way.
        if reason != CloseReason::Closed && !Box::pin(relay::hear_out(&mut wire)).await {
            wire.abort(reason.to_peer());
            return stream.end(reason);
        }
        stream.end(reason);
        if !wire.tunnel().is_some_and(|t| t.is_reusable() || t.may_be_opened()) {
            return wire.close();
        }
    }
}

/// What ends a tunnel from this side.
struct Life {
    retired: watch::Receiver<u64>,
    born: Instant,
}

/// Registers a stream behind the first.
fn begin(lane: &Lane, source: ClientAddr, dst: OriginalDst, client: &Identified) -> Guard {
    let guard = lane.registry.register(Direction::Inbound, source);
    guard.conn.set_destination(dst);
    guard.conn.set_tls(Tls::Mtls);
    guard.conn.set_peer(client.peer.clone());
    guard
}

/// One stream, judged anew: by the policy, the bundles and the clock of this moment.
async fn serve_stream(
    lane: &Lane,
    conn: &Conn,
    wire: &mut Wire,
    client: &mut Identified,
    dst: OriginalDst,
) -> CloseReason {
    let admitted = Box::pin(conn.unless_stopped(async {
        still_trusted(lane, conn, client)?;
        judge(&lane.shared, conn, dst)?;
        connect_app(&lane.shared, conn, dst).await
    }));
    match admitted.await {
        Err(reason) => reason,
        Ok(mut app) => {
            let limits = lane.limits(conn);
            ended_with(conn, relay::secure(&mut app, wire, limits, conn.stopped()).await)
        }
    }
}

/// The client's certificates are checked again when ours have changed, and when they
/// have expired since.
fn still_trusted(lane: &Lane, conn: &Conn, client: &mut Identified) -> Result<(), CloseReason> {
    let generation = lane.shared.published.usable_tls().ok_or(CloseReason::NoCertificate)?;
    let unchanged = Arc::ptr_eq(&generation, &client.generation);
    if unchanged && client.peer.is_valid_at(UnixTime::now()) {
        return Ok(());
    }
    client.peer = generation.verified_peer(Some(client.peer.chain())).map_err(|refusal| {
        conn.set_detail(format!("{}: {refusal}", refusal.label()));
        CloseReason::CertificateRefused
    })?;
    client.generation = generation;
    conn.set_peer(client.peer.clone());
    Ok(())
}

/// Waits for the next OPEN. A tunnel that is idle for too long, or is given up by this
/// side, says GOAWAY first; an OPEN that crosses that is still served.
///
/// # Errors
/// [`CloseReason::Closed`] when the tunnel has ended as it should, else what went wrong.
async fn next_open(lane: &Lane, wire: &mut Wire, life: &mut Life) -> Result<(), Ended> {
    let may_wait = wire.tunnel().is_some_and(tunnel::End::is_reusable);
    if may_wait {
        if !lane.is_stopping() && life.born.elapsed() < tunnel::SERVER_AGE {
            tokio::select! {
                biased;
                opened = opened(wire) => return opened,
                () = tokio::time::sleep(tunnel::SERVER_IDLE) => {}
                // Also of what came during a stream. It cannot fail while the lane is there.
                _ = life.retired.changed() => {}
            }
        }
        if wire.queue(&tunnel::goaway()).is_err() {
            return Err(CloseReason::Closed.into());
        }
    }
    let goes_away = async {
        let flush = std::future::poll_fn(|cx| wire.poll_flush(cx, &mut 0));
        flush.await.map_err(|_| CloseReason::Closed)?;
        opened(wire).await
    };
    let over = Err(CloseReason::Closed.into());
    tokio::time::timeout(tunnel::GOAWAY_GRACE, goes_away).await.unwrap_or(over)
}

/// Resolves with the next OPEN, or the tunnel's end.
async fn opened(wire: &mut Wire) -> Result<(), Ended> {
    loop {
        match wire.receive() {
            Ok(None) => {
                let fill = std::future::poll_fn(|cx| wire.poll_fill(cx));
                // A client that is gone has nothing more to say.
                fill.await.map_err(|_| CloseReason::Closed)?;
            }
            Ok(Some(Received::Open(_))) => return Ok(()),
            // A RESET was on its way when our FIN ended the stream: it says the tunnel's end.
            Ok(Some(Received::Closed | Received::Reset(_))) => {
                return Err(CloseReason::Closed.into());
            }
            // Nothing else gets past the tunnel's state machine without a stream.
            Ok(Some(_)) => return Err(CloseReason::TunnelError.into()),
            Err(e) => {
                let (reason, detail) = wire::classify(&e);
                return Err(match reason {
                    CloseReason::Truncated => CloseReason::Closed.into(),
                    _ => Ended { reason, detail },
                });
            }
        }
    }
}
