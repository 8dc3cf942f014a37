//! What the tunnel's protocol costs beside TLS: a full record, small frames, a whole stream of
//! both ends, and the pool.

use std::hint::black_box;
use std::net::{Ipv4Addr, SocketAddr};
use std::time::Instant;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use pillion_proxy::tunnel::{
    End, Kind, Limits, MAX_DATA, MAX_RECORD, Pool, Role, fin, header, open,
};

fn client() -> SocketAddr {
    SocketAddr::from((Ipv4Addr::new(192, 0, 2, 1), 8080))
}

fn data(length: usize) -> Vec<u8> {
    let mut frame = header(Kind::Data, length).to_vec();
    frame.resize(frame.len() + length, 7);
    frame
}

/// Takes all of `input`, and says how many events it had.
fn receive(end: &mut End, mut input: &[u8]) -> u32 {
    let mut events = 0;
    while !input.is_empty() {
        let Ok(step) = end.receive(input) else {
            eprintln!("a benchmark's own frames are refused");
            std::process::exit(1)
        };
        events += u32::from(step.event.is_some());
        input = input.get(step.consumed..).unwrap_or_default();
    }
    events
}

/// A server whose stream is open, so that DATA comes without end.
fn opened() -> End {
    let mut end = End::new(Role::Server);
    receive(&mut end, &open(client()));
    end
}

fn records(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("receive");
    let inputs = [
        ("a full record", data(MAX_DATA)),
        ("a record with a frame of 100 bytes", data(100)),
        ("a record of small frames of 100 bytes", data(100).repeat(MAX_RECORD / 104)),
    ];
    for (name, input) in inputs {
        let mut end = opened();
        group.throughput(Throughput::Bytes(u64::try_from(input.len()).unwrap_or(0)));
        group.bench_function(name, |b| b.iter(|| receive(&mut end, black_box(&input))));
    }
    group.finish();
}

/// OPEN, DATA and FIN one way, DATA and FIN the other, encoded and received.
fn streams(criterion: &mut Criterion) {
    let (mut near, mut far) = (End::new(Role::Client), End::new(Role::Server));
    let ping = data(100);
    let mut stream = || {
        let mut events = 0;
        for kind in [Kind::Open, Kind::Data, Kind::Fin] {
            let _ = black_box(near.sent(kind));
        }
        events += receive(&mut far, black_box(&open(client())));
        events += receive(&mut far, black_box(&ping));
        events += receive(&mut far, black_box(&fin()));
        for kind in [Kind::Data, Kind::Fin] {
            let _ = black_box(far.sent(kind));
        }
        events += receive(&mut near, black_box(&ping));
        events + receive(&mut near, black_box(&fin()))
    };
    criterion.bench_function("a stream of 100 bytes each way, both ends", |b| b.iter(&mut stream));
}

/// A tunnel taken and put back, among 64 of its kind.
fn pool(criterion: &mut Criterion) {
    let now = Instant::now();
    let lasting = Limits { retirement: u32::MAX..=u32::MAX, uses: u32::MAX, ..Limits::default() };
    let mut pool = Pool::new(lasting, 7);
    for item in 0..64 {
        let life = pool.birth(now);
        let _ = pool.put(client(), item, life, now);
    }
    criterion.bench_function("a tunnel taken from 64 and put back", |b| {
        b.iter(|| {
            let taken = pool.take(black_box(&client()), now);
            taken.and_then(|idle| pool.put(client(), idle.item, idle.life, now))
        });
    });
}

criterion_group!(benches, records, streams, pool);
criterion_main!(benches);
