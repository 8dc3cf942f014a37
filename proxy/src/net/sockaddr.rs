//! Socket addresses as the kernel writes them, and the one form that they have in the proxy.

use std::net::{IpAddr, SocketAddr, SocketAddrV4, SocketAddrV6};

use nix::libc::{sockaddr_in, sockaddr_in6};

/// An IPv4 socket address (ip(7)): address and port are in network byte order.
pub(super) fn from_v4(raw: &sockaddr_in) -> SocketAddr {
    let address = u32::from_be(raw.sin_addr.s_addr);
    SocketAddr::V4(SocketAddrV4::new(address.into(), u16::from_be(raw.sin_port)))
}

/// An IPv6 socket address (ipv6(7)), made plain; the flow label is of no use to a new connection.
pub(super) fn from_v6(raw: &sockaddr_in6) -> SocketAddr {
    let (address, port) = (raw.sin6_addr.s6_addr.into(), u16::from_be(raw.sin6_port));
    canonical(SocketAddr::V6(SocketAddrV6::new(address, port, 0, raw.sin6_scope_id)))
}

/// Makes an IPv4-mapped IPv6 address (RFC 4291, 2.5.5.2) plain IPv4. This is the
/// one place where that happens: every address is canonical from here on. A
/// link-local address keeps its zone, because it can't be dialled without.
pub fn canonical(addr: SocketAddr) -> SocketAddr {
    match addr {
        SocketAddr::V4(_) => addr,
        SocketAddr::V6(v6) => match v6.ip().to_ipv4_mapped() {
            Some(v4) => SocketAddr::new(IpAddr::V4(v4), v6.port()),
            None => SocketAddr::V6(SocketAddrV6::new(*v6.ip(), v6.port(), 0, v6.scope_id())),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mapped_addresses_become_plain_and_zones_stay() {
        let canon = |s: &str| canonical(s.parse().unwrap()).to_string();
        assert_eq!(canon("[::ffff:10.0.0.1]:80"), "10.0.0.1:80");
        assert_eq!(canon("10.0.0.1:80"), "10.0.0.1:80");
        assert_eq!(canon("[::10.0.0.1]:80"), "[::a00:1]:80");
        assert_eq!(canon("[fe80::1%3]:80"), "[fe80::1%3]:80");
    }
}
