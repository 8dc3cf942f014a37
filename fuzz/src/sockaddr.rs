//! What the kernel says a destination is.

#[path = "../../proxy/src/net/sockaddr.rs"]
mod plain;

use std::net::{IpAddr, Ipv6Addr, SocketAddr};

use nix::libc::{in_addr, in6_addr, sockaddr_in, sockaddr_in6};

/// 26 bytes are an address of each family.
pub fn check(bytes: &[u8; 26]) {
    let (v4, v6) = bytes.split_at(6);
    let [a, b, c, d, high, low] = *v4 else { unreachable!("six bytes") };
    let port = u16::from_be_bytes([high, low]);
    let raw = sockaddr_in {
        sin_family: 0,
        sin_port: port.to_be(),
        sin_addr: in_addr { s_addr: u32::from_be_bytes([a, b, c, d]).to_be() },
        sin_zero: [0; 8],
    };
    assert_eq!(plain::from_v4(&raw), SocketAddr::from(([a, b, c, d], port)));

    let mut octets = [0; 16];
    octets.copy_from_slice(&v6[..16]);
    let scope = u32::from_ne_bytes([v6[16], v6[17], v6[18], v6[19]]);
    let raw = sockaddr_in6 {
        sin6_family: 0,
        sin6_port: port.to_be(),
        sin6_flowinfo: scope,
        sin6_addr: in6_addr { s6_addr: octets },
        sin6_scope_id: scope,
    };
    let found = plain::from_v6(&raw);
    assert_eq!(found.port(), port);
    assert_eq!(plain::canonical(found), found, "once is enough");
    match found {
        SocketAddr::V4(v4) => {
            assert_eq!(&octets[..12], &[0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff]);
            assert_eq!(v4.ip().octets(), octets[12..]);
        }
        SocketAddr::V6(v6) => {
            assert_eq!((v6.ip().octets(), v6.scope_id(), v6.flowinfo()), (octets, scope, 0));
        }
    }
    assert_eq!(found.ip(), IpAddr::V6(Ipv6Addr::from(octets)).to_canonical());
    assert_eq!(found.to_string().parse(), Ok(found), "what is logged says all");
}
