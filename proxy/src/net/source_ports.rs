//! The ports that we dial servers from, apart from those that the kernel gives to apps.

use std::hash::{BuildHasher, RandomState};
use std::io;
use std::net::SocketAddr;
use std::ops::RangeInclusive;
use std::sync::atomic::{AtomicU32, Ordering};

/// Where the kernel says which ports it gives to who asks for none (ip-sysctl, kernel doc); of
/// this network namespace, for both families.
pub const KERNEL_RANGE: &str = "/proc/sys/net/ipv4/ip_local_port_range";

/// Servers that share a place share the order of ports, no more.
const PLACES: u64 = 64;

/// A range of ports to dial from, which each server is given in turn.
///
/// To conntrack, a connection is its addresses and ports, for up to two minutes after its end. An
/// app's connection that has those of one which the proxy had is not redirected, and the proxy's
/// that has those of an app's is. Both choose among the same ports unless the proxy stays out of
/// the kernel's range.
#[derive(Debug)]
pub struct SourcePorts {
    range: Option<RangeInclusive<u16>>,
    next: Vec<AtomicU32>,
    hasher: RandomState,
}

impl SourcePorts {
    /// Those of `wanted` that are not in `kernels`; of two parts that are left, the larger.
    pub fn new(wanted: Option<RangeInclusive<u16>>, kernels: &RangeInclusive<u16>) -> Self {
        let hasher = RandomState::new();
        // A proxy that starts again in its pod does not use the ports again that it had last.
        let start = |place: u64| u32::try_from(hasher.hash_one(place) % 65_536).unwrap_or(0);
        Self {
            range: wanted.and_then(|wanted| outside(&wanted, kernels)),
            next: (0..PLACES).map(start).map(AtomicU32::new).collect(),
            hasher,
        }
    }

    /// The ports, if there are any.
    pub fn range(&self) -> Option<&RangeInclusive<u16>> {
        self.range.as_ref()
    }

    /// The port for the next connection to `server`. It may be in use.
    pub fn next(&self, server: SocketAddr) -> Option<u16> {
        let range = self.range.as_ref()?;
        let place = usize::try_from(self.hasher.hash_one(server) % PLACES).ok()?;
        let turn = self.next.get(place)?.fetch_add(1, Ordering::Relaxed);
        let count = u32::from(range.end() - range.start()) + 1;
        u16::try_from(u32::from(*range.start()) + turn % count).ok()
    }
}

/// What the kernel gives to who asks for no port.
///
/// # Errors
/// The file can't be read, or holds something else.
pub fn kernel_range() -> io::Result<RangeInclusive<u16>> {
    let text = std::fs::read_to_string(KERNEL_RANGE)?;
    let mut ports = text.split_ascii_whitespace().map(str::parse);
    match (ports.next(), ports.next()) {
        (Some(Ok(first)), Some(Ok(last))) if first <= last => Ok(first..=last),
        _ => Err(io::Error::new(io::ErrorKind::InvalidData, format!("it says {text:?}"))),
    }
}

/// The larger part of `wanted` outside of `taken`.
fn outside(
    wanted: &RangeInclusive<u16>,
    taken: &RangeInclusive<u16>,
) -> Option<RangeInclusive<u16>> {
    let (first, last) = (*wanted.start(), *wanted.end());
    let below = taken.start().checked_sub(1).map(|end| first..=end.min(last));
    let above = taken.end().checked_add(1).map(|start| start.max(first)..=last);
    [below, above]
        .into_iter()
        .flatten()
        .filter(|part| !part.is_empty())
        .max_by_key(|part| part.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_kernel_gives_to_apps_is_left_to_them() {
        let rest = |wanted, taken| outside(&wanted, &taken);
        assert_eq!(rest(61_000..=65_535, 32_768..=60_999), Some(61_000..=65_535));
        assert_eq!(rest(61_000..=65_535, 16_000..=65_000), Some(65_001..=65_535));
        assert_eq!(rest(20_000..=40_000, 32_768..=60_999), Some(20_000..=32_767));
        assert_eq!(rest(20_000..=65_535, 32_768..=60_999), Some(20_000..=32_767), "the larger");
        assert_eq!(rest(30_000..=65_535, 32_768..=60_999), Some(61_000..=65_535), "the larger");
        assert_eq!(rest(61_000..=65_535, 1_024..=65_535), None);
        assert_eq!(rest(40_000..=40_000, 40_000..=40_000), None);
        assert_eq!(rest(40_000..=40_000, 40_001..=40_002), Some(40_000..=40_000));
        assert_eq!(rest(1_024..=65_535, 0..=65_535), None);
    }

    #[test]
    fn each_server_gets_each_port_in_turn() {
        let ports = SourcePorts::new(Some(61_000..=61_003), &(32_768..=60_999));
        let server = "10.0.0.2:443".parse().unwrap();
        let mut turn: Vec<_> = (0..4).map(|_| ports.next(server).unwrap()).collect();
        let again: Vec<_> = (0..4).map(|_| ports.next(server).unwrap()).collect();
        assert_eq!(turn, again);
        turn.sort_unstable();
        assert_eq!(turn, [61_000, 61_001, 61_002, 61_003]);
        let none = SourcePorts::new(None, &(32_768..=60_999));
        assert!(none.next(server).is_none() && none.range().is_none());
    }

    #[test]
    fn this_kernel_has_a_range() {
        assert!(!kernel_range().unwrap().is_empty());
    }
}
