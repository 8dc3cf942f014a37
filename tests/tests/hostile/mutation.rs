//! Bytes that are nearly what was meant.

use std::ops::Range;
use std::sync::Arc;

use fastrand::Rng;
use pillion_testbed::Failure;
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::{ClientConfig, SignatureScheme};

/// What parsers of numbers and lengths have stumbled over.
const NUMBERS: &[&[u8]] = &[
    b"0",
    b"-1",
    b"+1",
    b"1e9",
    b"0x7fffffff",
    b"4294967296",
    b"9223372036854775808",
    b"18446744073709551616",
    b"99999999999999999999999999999999999999999999",
    b"\x00",
    b"\xff\xff",
    b"\x7f\xff\xff\xff",
    b"\xff\xff\xff\xff\xff\xff\xff\xff",
];

/// What ends or begins something in a text, wherever it is put.
const WORDS: &[&[u8]] = &[
    b"\r\n",
    b"\r\n\r\n",
    b"\n",
    b"\r",
    b" ",
    b"\t",
    b":",
    b"%",
    b"%00",
    b"%2e%2e/",
    b"?filter=",
    b"http://a/",
    b"\r\nContent-Length: 18446744073709551615\r\n",
    b"\r\nContent-Length: 4\r\nContent-Length: 5\r\n",
    b"\r\nTransfer-Encoding: chunked\r\n\r\nffffffffffffffff\r\n",
    b"\r\nConnection: close, upgrade\r\n",
    b"\r\nExpect: 100-continue\r\n",
];

/// The bytes of one stream: one of `seeds`, two of them spliced, or none at all, changed in a few
/// places; some are as they were.
pub(crate) fn mutated(seeds: &[Vec<u8>], random: &mut Rng) -> Vec<u8> {
    let mut bytes = match random.u8(..100) {
        0..4 => return pick(seeds, random).to_vec(),
        4..8 => return noise(0..512, random),
        8..18 => spliced(pick(seeds, random), pick(seeds, random), random),
        _ => pick(seeds, random).to_vec(),
    };
    mutate(&mut bytes, random);
    if random.bool() {
        repair(&mut bytes);
    }
    bytes
}

/// Changes, removes, repeats or inserts something, in one place as often as in two to four.
pub(crate) fn mutate(bytes: &mut Vec<u8>, random: &mut Rng) {
    let places = if random.bool() { 1 } else { random.u8(2..=4) };
    for _ in 0..places {
        if bytes.is_empty() {
            return;
        }
        let at = random.usize(..bytes.len());
        match random.u8(..100) {
            0..25 => bytes[at] ^= 1 << random.u8(..8),
            25..50 => bytes[at] = random.u8(..),
            50..60 => bytes.truncate(at),
            60..72 => {
                let again = bytes[at..].iter().copied().take(random.usize(1..64)).collect();
                insert(bytes, at, again);
            }
            72..80 => {
                bytes.drain(at..(at + random.usize(1..64)).min(bytes.len()));
            }
            80..89 => insert(bytes, at, pick_of(NUMBERS, random).to_vec()),
            89..97 => insert(bytes, at, pick_of(WORDS, random).to_vec()),
            97..99 => insert(bytes, at, noise(1..64, random)),
            _ => insert(bytes, at, long_header(random)),
        }
    }
}

/// The certificate that a client of this configuration shows, with bytes changed, and its true key.
pub(crate) fn with_certificate(
    config: &ClientConfig,
    random: &mut Rng,
) -> Result<Arc<SingleCertAndKey>, Failure> {
    let schemes = [SignatureScheme::ECDSA_NISTP256_SHA256, SignatureScheme::ECDSA_NISTP384_SHA384];
    let own = config.client_auth_cert_resolver.resolve(&[], &schemes);
    let own =
        own.ok_or_else(|| Failure::Unexpected("a client without a certificate".to_owned()))?;
    let mut chain = own.cert.clone();
    if let Some(leaf) = chain.first_mut() {
        let mut der = leaf.to_vec();
        mutate(&mut der, random);
        *leaf = der.into();
    }
    Ok(Arc::new(CertifiedKey::new(chain, Arc::clone(&own.key)).into()))
}

/// So much that a limit of the parser's is met: 64 KiB at most, and seldom so many.
fn long_header(random: &mut Rng) -> Vec<u8> {
    let length = 1 << random.u8(8..=16);
    let line: &[u8] = if random.bool() { b"x" } else { b"\r\na: b" };
    [b"\r\nX-Long: ".as_slice(), &line.repeat(length / line.len())].concat()
}

/// Sets the lengths of a first TLS record and the handshake message in it, so that what has been
/// changed within is reached (RFC 8446, 5.1 and 4).
fn repair(bytes: &mut [u8]) {
    let Ok(record) = u16::try_from(bytes.len().saturating_sub(5)) else { return };
    if let [22, 3, _, high, low, _, longest, longer, long, ..] = bytes {
        [*high, *low] = record.to_be_bytes();
        *longest = 0;
        [*longer, *long] = record.saturating_sub(4).to_be_bytes();
    }
}

fn insert(bytes: &mut Vec<u8>, at: usize, more: Vec<u8>) {
    bytes.splice(at..at, more);
}

fn spliced(one: &[u8], other: &[u8], random: &mut Rng) -> Vec<u8> {
    let (to, from) = (random.usize(..=one.len()), random.usize(..=other.len()));
    [&one[..to], &other[from..]].concat()
}

fn noise(length: Range<usize>, random: &mut Rng) -> Vec<u8> {
    let length = random.usize(length);
    std::iter::repeat_with(|| random.u8(..)).take(length).collect()
}

fn pick<'a>(seeds: &'a [Vec<u8>], random: &mut Rng) -> &'a [u8] {
    &seeds[random.usize(..seeds.len())]
}

fn pick_of<'a>(words: &[&'a [u8]], random: &mut Rng) -> &'a [u8] {
    words[random.usize(..words.len())]
}

#[test]
fn the_lengths_of_a_hello_are_set_and_no_other_bytes() {
    let mut hello = b"\x16\x03\x01\xff\xff\x01\xff\xff\xff0123456789".to_vec();
    repair(&mut hello);
    assert_eq!(hello, b"\x16\x03\x01\x00\x0e\x01\x00\x00\x0a0123456789");
    let mut other = b"GET /metrics HTTP/1.1".to_vec();
    repair(&mut other);
    assert_eq!(other, b"GET /metrics HTTP/1.1");
}
