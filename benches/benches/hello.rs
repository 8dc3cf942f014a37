//! What the look at a client's first bytes costs: a hello of a peer of the mesh, with the hybrid
//! key share that makes it long, one that has come in part, and plaintext.

use std::hint::black_box;

use criterion::{Criterion, criterion_group, criterion_main};
use pillion_proxy::detect::{Hello, peek};

const MESH: &[&[u8]] = &[b"pillion/1", b"istio"];
/// The length of X25519MLKEM768's share: 1,184 bytes of ML-KEM and 32 of X25519.
const SHARE: usize = 1216;

/// A length in front, in `width` bytes, big-endian.
fn prefixed(width: usize, body: &[u8]) -> Vec<u8> {
    let length = body.len().to_be_bytes();
    let short = length.get(length.len() - width..).unwrap_or_default();
    [short, body].concat()
}

fn extension(kind: u16, body: &[u8]) -> Vec<u8> {
    [&kind.to_be_bytes()[..], &prefixed(2, body)].concat()
}

/// One record with a ClientHello (RFC 8446, 4.1.2) that offers `alpn`.
fn hello(alpn: &[u8]) -> Vec<u8> {
    let share = [&0x11ec_u16.to_be_bytes()[..], &prefixed(2, &[7; SHARE])].concat();
    let extensions = [
        extension(43, &[2, 3, 4]),
        extension(51, &prefixed(2, &share)),
        extension(16, &prefixed(2, &prefixed(1, alpn))),
    ];
    let body = [
        &[3, 3][..],
        &[9; 32],
        &prefixed(1, &[5; 32]),
        &prefixed(2, &[0x13, 1, 0x13, 2]),
        &prefixed(1, &[0]),
        &prefixed(2, &extensions.concat()),
    ];
    let message = [&[1][..], &prefixed(3, &body.concat())].concat();
    [&[22, 3, 1][..], &prefixed(2, &message)].concat()
}

fn peeks(c: &mut Criterion) {
    let mesh = hello(b"pillion/1");
    let other = hello(b"h2");
    let half = mesh.get(..mesh.len() / 2).unwrap_or_default();
    let mut group = c.benchmark_group("peek");
    for (name, bytes, wanted) in [
        ("mesh", mesh.as_slice(), Hello::Tls { mesh: true }),
        ("other TLS", other.as_slice(), Hello::Tls { mesh: false }),
        ("half a hello", half, Hello::Incomplete),
        ("plaintext", b"GET / HTTP/1.1\r\n\r\n".as_slice(), Hello::NotTls),
    ] {
        assert_eq!(peek(bytes, MESH), wanted, "{name}");
        group.bench_function(name, |b| b.iter(|| peek(black_box(bytes), MESH)));
    }
    group.finish();
}

criterion_group!(benches, peeks);
criterion_main!(benches);
