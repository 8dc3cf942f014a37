//! Bulk through a relay allocates nothing for a read: buffers are the worker's, and
//! records are opened and sealed where they lie.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "common/ends.rs"]
mod ends;

use std::cell::Cell;
use std::net::{Ipv4Addr, TcpStream};
use std::pin::{Pin, pin};
use std::task::Poll;
use std::thread;
use std::time::Duration;

use ends::{generations, leg, pair, runtime, shake_hands, sink, source};
use pillion_certs::generation::TlsGeneration;
use pillion_proxy::buffers::Buffers;
use pillion_proxy::config::TlsEngine;
use pillion_proxy::relay::{self, Ended, Limits, Pipes};
use pillion_proxy::telemetry::CloseReason;
use pillion_proxy::tunnel::{Role, open};
use pillion_proxy::wire::Wire;

const MIB: u64 = 1 << 20;
/// Until buffers have grown and splice has begun.
const WARM_UP: u64 = 8 * MIB;
const STEADY: u64 = 64 * MIB;
const ALL: u64 = WARM_UP + STEADY + MIB;
/// A shelf of buffers that grows, a reactor's list: what does not come with each read.
const A_FEW: u64 = 64;
const HOUR: Duration = Duration::from_secs(3600);

/// Drives `relay` until `moved` has come to `mark`, or it ends.
fn until(
    runtime: &tokio::runtime::Runtime,
    mut relay: Pin<&mut impl Future<Output = Ended>>,
    moved: &Cell<u64>,
    mark: u64,
) -> Option<Ended> {
    runtime.block_on(std::future::poll_fn(|cx| match relay.as_mut().poll(cx) {
        Poll::Ready(ended) => Poll::Ready(Some(ended)),
        Poll::Pending if moved.get() >= mark => Poll::Ready(None),
        Poll::Pending => Poll::Pending,
    }))
}

/// Allocations of this thread while `relay` moves the steady part; then its end.
fn measured(
    runtime: &tokio::runtime::Runtime,
    relay: impl Future<Output = Ended>,
    moved: &Cell<u64>,
) -> u64 {
    let mut relay = pin!(relay);
    assert!(until(runtime, relay.as_mut(), moved, WARM_UP).is_none());
    let info = allocation_counter::measure(|| {
        assert!(until(runtime, relay.as_mut(), moved, WARM_UP + STEADY).is_none());
    });
    let ended = until(runtime, relay, moved, u64::MAX).unwrap();
    assert_eq!(ended.reason, CloseReason::Closed, "{:?}", ended.detail);
    info.count_total
}

/// One end of a protected connection, in a thread of its own: how many allocations the
/// steady part costs it.
fn secure(
    role: Role,
    generation: TlsGeneration,
    engine: TlsEngine,
    tunnel: bool,
    (app, peer): (TcpStream, TcpStream),
) -> u64 {
    let (runtime, buffers) = (runtime(), Buffers::new());
    let (up, down) = (Cell::new(0), Cell::new(0));
    let inside = runtime.enter();
    let (mut app, mut peer) = (leg(app), leg(peer));
    let made = runtime.block_on(shake_hands(role, &mut peer, tunnel, &generation, engine));
    let mut wire = Wire::new(peer, made, role, &buffers);
    if tunnel && role == Role::Client {
        wire.queue(&open((Ipv4Addr::LOCALHOST, 1).into())).unwrap();
    }
    if tunnel && role == Role::Server {
        runtime.block_on(async {
            while wire.receive().unwrap().is_none() {
                std::future::poll_fn(|cx| wire.poll_fill(cx)).await.unwrap();
            }
        });
    }
    let limits = Limits { up: &up, down: &down, half_close: HOUR };
    let relay = relay::secure(&mut app, &mut wire, limits, std::future::pending());
    let moved = if role == Role::Client { &up } else { &down };
    let count = measured(&runtime, relay, moved);
    drop((app, wire, inside));
    count
}

/// From an app, sealed, opened, to an app. Gives the allocations of sealing and opening.
fn protected(engine: TlsEngine, tunnel: bool) -> [u64; 2] {
    let ((from, near), (far, to), (one, other)) = (pair(), pair(), pair());
    let [client, server] = generations();
    let sealing = thread::spawn(move || secure(Role::Client, client, engine, tunnel, (near, one)));
    let opening = thread::spawn(move || secure(Role::Server, server, engine, tunnel, (far, other)));
    // The sink answers the end with its own, which lets both relays end.
    let (source, sink) = (source(from, ALL), sink(to));
    source.join().unwrap();
    assert_eq!(sink.join().unwrap(), ALL);
    [sealing, opening].map(|end| end.join().unwrap())
}

#[test]
fn bulk_in_records_allocates_nothing_for_a_read() {
    for tunnel in [false, true] {
        let counts = protected(TlsEngine::Records, tunnel);
        println!("records, tunnel {tunnel}: sealing and opening allocate {counts:?} times");
        assert!(counts.iter().all(|count| *count <= A_FEW), "{counts:?}");
    }
}

#[test]
fn what_the_other_engine_allocates_is_printed() {
    let counts = protected(TlsEngine::Rustls, true);
    println!("rustls: sealing and opening allocate {counts:?} times");
    // One for each of some 4,096 records; were it not so, nothing would be counted.
    assert!(counts.iter().all(|count| *count > 3000), "{counts:?}");
}

#[test]
fn bulk_of_plaintext_allocates_nothing_for_a_read() {
    let (runtime, buffers, pipes) = (runtime(), Buffers::new(), Pipes::new());
    let (up, down) = (Cell::new(0), Cell::new(0));
    let ((from, near), (far, to)) = (pair(), pair());
    let inside = runtime.enter();
    let (mut client, mut server) = (leg(near), leg(far));
    let limits = Limits { up: &up, down: &down, half_close: HOUR };
    let own = (&buffers, &pipes);
    let relay = relay::plain(&mut client, &mut server, limits, own, std::future::pending());
    let (source, sink) = (source(from, ALL), sink(to));
    let count = measured(&runtime, relay, &up);
    println!("plaintext: {count} allocations");
    assert!(count <= A_FEW, "{count}");
    drop((client, server, inside));
    source.join().unwrap();
    assert_eq!(sink.join().unwrap(), ALL);
}
