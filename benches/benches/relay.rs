//! What it costs to move bytes: one full record sealed and opened by each engine, and bulk through
//! the relay's loops over loopback sockets, beside the copy loop of tokio.
//!
//! The protected ways have two relays in the path, in two threads, one that seals and one that
//! opens; the plain ones have one.
#![allow(clippy::unwrap_used, reason = "a benchmark fails by panicking")]

#[path = "../../proxy/tests/common/ends.rs"]
mod ends;

use std::cell::Cell;
use std::hint::black_box;
use std::net::TcpStream;
use std::rc::Rc;
use std::thread;
use std::time::{Duration, Instant};

use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use ends::{generations, leg, pair, runtime, shake_hands, sink, source};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use pillion_certs::generation::TlsGeneration;
use pillion_proxy::buffers::{Buffers, MAX_PLAINTEXT, MAX_RECORD, RECORD_HEADER};
use pillion_proxy::config::TlsEngine;
use pillion_proxy::relay::{self, Limits, Pipes};
use pillion_proxy::tls::Session;
use pillion_proxy::tunnel::Role;
use pillion_proxy::wire::Wire;

const ENGINES: [(&str, TlsEngine); 2] =
    [("records", TlsEngine::Records), ("rustls", TlsEngine::Rustls)];
const BULK: u64 = 64 << 20;
const HOUR: Duration = Duration::from_secs(3600);

/// A client's and a server's session, both with this engine.
fn sessions(engine: TlsEngine) -> (Session, Session) {
    let runtime = runtime();
    let _inside = runtime.enter();
    let [client, server] = generations();
    let (near, far) = pair();
    let (mut near, mut far) = (leg(near), leg(far));
    let (client, server) = runtime.block_on(async {
        tokio::join!(
            shake_hands(Role::Client, &mut near, true, &client, engine),
            shake_hands(Role::Server, &mut far, true, &server, engine),
        )
    });
    (client.session, server.session)
}

/// Seals what is in `slot`, there or into `out`.
fn seal(session: &mut Session, slot: &mut [u8], out: &mut [u8]) -> usize {
    session.before_run().unwrap();
    if session.in_place() {
        return session.seal(slot, MAX_PLAINTEXT).unwrap();
    }
    let plain = slot.get(RECORD_HEADER..RECORD_HEADER + MAX_PLAINTEXT).unwrap();
    session.seal_into(plain, out).unwrap()
}

fn records(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("a record of 16 KiB");
    group.throughput(Throughput::Bytes(MAX_PLAINTEXT as u64));
    for (name, engine) in ENGINES {
        let (mut slot, mut out) = (vec![7; MAX_RECORD], vec![0; MAX_RECORD]);
        let mut spill = vec![0; MAX_RECORD];
        let (mut client, mut server) = sessions(engine);
        // Nobody opens these; the other direction is opened below.
        group.bench_function(format!("sealed by {name}"), |b| {
            b.iter(|| black_box(seal(&mut server, &mut slot, &mut out)));
        });
        let mut sealed = || {
            let n = seal(&mut client, &mut slot, &mut out);
            let bytes = if client.in_place() { &slot } else { &out };
            bytes.get(..n).unwrap().to_vec()
        };
        group.bench_function(format!("opened by {name}"), |b| {
            b.iter_batched_ref(
                &mut sealed,
                |record| black_box(server.open(record, &mut spill).unwrap().consumed),
                BatchSize::SmallInput,
            );
        });
    }
    group.finish();
}

/// One end of a protected connection, until both directions have ended.
fn secure(
    role: Role,
    generation: &TlsGeneration,
    engine: TlsEngine,
    (app, peer): (TcpStream, TcpStream),
) {
    let (runtime, buffers) = (runtime(), Buffers::new());
    let _inside = runtime.enter();
    let (mut app, mut peer) = (leg(app), leg(peer));
    let (up, down) = (Cell::new(0), Cell::new(0));
    runtime.block_on(async {
        let made = shake_hands(role, &mut peer, false, generation, engine).await;
        let mut wire = Wire::new(peer, made, role, &buffers);
        let limits = Limits { up: &up, down: &down, half_close: HOUR };
        relay::secure(&mut app, &mut wire, limits, std::future::pending()).await
    });
}

fn protected(engine: TlsEngine) -> Duration {
    let ((from, near), (far, to), (one, other)) = (pair(), pair(), pair());
    let [client, server] = generations();
    let client = thread::spawn(move || secure(Role::Client, &client, engine, (near, one)));
    let server = thread::spawn(move || secure(Role::Server, &server, engine, (far, other)));
    let time = bulk(from, to);
    client.join().unwrap();
    server.join().unwrap();
    time
}

/// How long it takes until the sink has all.
fn bulk(from: TcpStream, to: TcpStream) -> Duration {
    let started = Instant::now();
    let (source, sink) = (source(from, BULK), sink(to));
    assert_eq!(sink.join().unwrap(), BULK);
    let time = started.elapsed();
    source.join().unwrap();
    time
}

/// Bulk through one relay of plaintext. Without a descriptor for a pipe it copies.
fn plain(splice: bool) -> Duration {
    let ((from, near), (far, to)) = (pair(), pair());
    let relay = thread::spawn(move || {
        let (runtime, buffers, pipes) = (runtime(), Buffers::new(), Pipes::new());
        let _inside = runtime.enter();
        let (mut near, mut far) = (leg(near), leg(far));
        let (up, down) = (Cell::new(0), Cell::new(0));
        let limits = Limits { up: &up, down: &down, half_close: HOUR };
        let own: (&Rc<Buffers>, &Rc<Pipes>) = (&buffers, &pipes);
        let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
        if !splice {
            setrlimit(Resource::RLIMIT_NOFILE, 0, hard).unwrap();
        }
        runtime.block_on(relay::plain(&mut near, &mut far, limits, own, std::future::pending()));
        setrlimit(Resource::RLIMIT_NOFILE, soft, hard).unwrap();
    });
    let time = bulk(from, to);
    relay.join().unwrap();
    time
}

/// The same through tokio's loop.
fn tokio_copy() -> Duration {
    let ((from, near), (far, to)) = (pair(), pair());
    let relay = thread::spawn(move || {
        let runtime = runtime();
        let _inside = runtime.enter();
        let [mut near, mut far] = [near, far].map(|stream| {
            stream.set_nonblocking(true).unwrap();
            tokio::net::TcpStream::from_std(stream).unwrap()
        });
        runtime.block_on(tokio::io::copy_bidirectional(&mut near, &mut far)).unwrap();
    });
    let time = bulk(from, to);
    relay.join().unwrap();
    time
}

fn relays(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("64 MiB over loopback");
    group.throughput(Throughput::Bytes(BULK)).sample_size(10);
    let ways: [(&str, &dyn Fn() -> Duration); 5] = [
        ("sealed and opened by records", &|| protected(TlsEngine::Records)),
        ("sealed and opened by rustls", &|| protected(TlsEngine::Rustls)),
        ("plaintext, spliced", &|| plain(true)),
        ("plaintext, copied", &|| plain(false)),
        ("plaintext, by copy_bidirectional of tokio", &tokio_copy),
    ];
    for (name, way) in ways {
        group.bench_function(name, |b| {
            b.iter_custom(|times| (0..times).map(|_| way()).sum());
        });
    }
    group.finish();
}

criterion_group!(benches, records, relays);
criterion_main!(benches);
