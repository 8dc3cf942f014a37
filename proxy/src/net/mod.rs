//! Addresses as newtypes, original destinations, socket options, and accepting
//! with back-off. Nothing above `config` is known here.

mod leg;
mod listen;
mod original_dst;
mod sockaddr;
mod source_ports;

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

pub use leg::{Leg, set_options};
pub use listen::{Acceptor, bind, bind_shared, is_absent_family};
pub use original_dst::{OriginalDstError, original_dst};
pub use sockaddr::canonical;
pub use source_ports::{KERNEL_RANGE, SourcePorts, kernel_range};

/// Source address of connections that the inbound proxy opens to the app: the
/// redirect rules let it pass, so that it is not captured again.
pub const INBOUND_SOURCE_V4: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 6);
/// The same for IPv6; `pillion-init` adds this address to `lo`.
pub const INBOUND_SOURCE_V6: Ipv6Addr = Ipv6Addr::new(0, 0, 0, 0, 0, 0, 0, 6);

/// Who connected. Not interchangeable with [`OriginalDst`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ClientAddr(pub SocketAddr);

/// Where the client meant to connect before the redirect rules changed it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OriginalDst(pub SocketAddr);

impl fmt::Display for ClientAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Display for OriginalDst {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// The source that a connection to the app at `dst` is opened from.
pub fn inbound_source(dst: SocketAddr) -> IpAddr {
    match dst {
        SocketAddr::V4(_) => INBOUND_SOURCE_V4.into(),
        SocketAddr::V6(_) => INBOUND_SOURCE_V6.into(),
    }
}

/// The address of the same family that stands for any.
pub fn unspecified(addr: SocketAddr) -> IpAddr {
    match addr {
        SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    }
}

/// The same port on loopback, of the same family.
pub fn on_loopback(mut addr: SocketAddr) -> SocketAddr {
    addr.set_ip(match addr {
        SocketAddr::V4(_) => Ipv4Addr::LOCALHOST.into(),
        SocketAddr::V6(_) => Ipv6Addr::LOCALHOST.into(),
    });
    addr
}

/// Every address of this network namespace.
///
/// # Errors
/// The kernel's, such as no descriptor left to ask with.
pub fn local_addresses() -> std::io::Result<Vec<IpAddr>> {
    let addresses = nix::ifaddrs::getifaddrs()?
        .filter_map(|i| i.address)
        .filter_map(|a| {
            let v4 = a.as_sockaddr_in().map(|a| IpAddr::V4(a.ip()));
            v4.or_else(|| a.as_sockaddr_in6().map(|a| IpAddr::V6(a.ip())))
        })
        .collect();
    Ok(addresses)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loopback_is_among_the_local_addresses() {
        assert!(local_addresses().unwrap().contains(&IpAddr::V4(Ipv4Addr::LOCALHOST)));
    }
}
