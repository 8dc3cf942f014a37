//! The proof: a connection of our own to an address that nobody has must come back to us.
//!
//! This process is not the proxy's user, so the rules take its connections for the app's.

use std::io::{self, ErrorKind};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::getsockopt;
use nix::sys::socket::sockopt::{Ip6tOriginalDst, OriginalDst};
use socket2::SockRef;

use crate::config::Config;
use crate::rules::{Family, INBOUND_SOURCE_V6};
use crate::verify::VerifyError;

/// How long one family's proof may take.
pub const DEADLINE: Duration = Duration::from_secs(2);

/// Documentation addresses (RFC 5737, RFC 3849): nobody answers on them.
const TARGET_V4: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
const TARGET_V6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1);
const TARGET_PORT: u16 = 1404;

/// What the proof found.
#[derive(Debug)]
pub enum Outcome {
    /// The rules redirect.
    Proved {
        /// What was dialled.
        target: SocketAddr,
        /// Where it came.
        listener: SocketAddr,
    },
    /// No connection can tell here; why.
    Skipped(String),
}

/// Dials in one family.
///
/// # Errors
/// The connection did not come, or came with another destination.
pub fn probe(config: &Config, family: Family) -> Result<Outcome, VerifyError> {
    let (target, loopback): (IpAddr, IpAddr) = match family {
        Family::V4 => (TARGET_V4.into(), Ipv4Addr::LOCALHOST.into()),
        Family::V6 => (TARGET_V6.into(), Ipv6Addr::LOCALHOST.into()),
    };
    let target = SocketAddr::new(target, TARGET_PORT);
    // REDIRECT in OUTPUT leads to the loopback address (iptables-extensions(8)).
    let listener = SocketAddr::new(loopback, config.outbound_port.get());
    if let Some(why) = escapes(config, target) {
        return Ok(Outcome::Skipped(why));
    }
    let deadline = Instant::now() + DEADLINE;
    let socket = match TcpListener::bind(listener) {
        Ok(socket) => socket,
        Err(error) if error.kind() == ErrorKind::AddrInUse => {
            return Ok(Outcome::Skipped(format!(
                "the proxy is already on {listener}; the rules read back are as written"
            )));
        }
        Err(source) => return Err(VerifyError::Listen { address: listener, source }),
    };
    let dial_error = |source| VerifyError::Dial { target, listener, source };
    // There is a route, so an unreachable network is the answer of a router: the connection left.
    let dialled = TcpStream::connect_timeout(&target, DEADLINE).map_err(dial_error)?;
    let from = dialled.local_addr().map_err(dial_error)?;
    let Some(accepted) = accept(&socket, from, deadline).map_err(dial_error)? else {
        return Err(VerifyError::Stolen { target, listener });
    };
    // A reset on close: a connection in TIME_WAIT would hold the port that the proxy binds next.
    for end in [&dialled, &accepted] {
        SockRef::from(end).set_linger(Some(Duration::ZERO)).map_err(dial_error)?;
    }
    match original_destination(&accepted, family) {
        Ok(found) if found == target => Ok(Outcome::Proved { target, listener }),
        Ok(found) => Err(VerifyError::Destination { target, found: found.to_string() }),
        Err(error) => Err(VerifyError::Destination { target, found: error.to_string() }),
    }
}

/// Why the rules would not take a connection of this process to `target`.
fn escapes(config: &Config, target: SocketAddr) -> Option<String> {
    if !config.captures(target) {
        return Some(format!("the outbound limits leave {target} alone"));
    }
    if nix::unistd::geteuid().as_raw() == config.proxy_uid
        || nix::unistd::getegid().as_raw() == config.proxy_gid
    {
        return Some("this program runs with the proxy's id, which is never captured".to_owned());
    }
    let source = match source_towards(target) {
        Ok(source) => source,
        Err(error) => return Some(format!("there is no route to {} ({error})", target.ip())),
    };
    if let IpAddr::V6(address) = source
        && (address.is_unicast_link_local() || address == INBOUND_SOURCE_V6)
    {
        return Some("no address of this pod is reachable".to_owned());
    }
    let interface = interface_of(source)?;
    let excluded = config.exclude_interfaces.iter().any(|name| covers(name, &interface));
    excluded.then(|| format!("the route to {target} leaves on {interface}, which is excluded"))
}

/// The address from which the kernel would dial. Connecting a UDP socket sends nothing.
fn source_towards(target: SocketAddr) -> io::Result<IpAddr> {
    let any: IpAddr = match target {
        SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    let socket = UdpSocket::bind((any, 0))?;
    socket.connect(target)?;
    Ok(socket.local_addr()?.ip())
}

fn interface_of(address: IpAddr) -> Option<String> {
    let mut interfaces = nix::ifaddrs::getifaddrs().ok()?;
    let holds = |storage: nix::sys::socket::SockaddrStorage| match address {
        IpAddr::V4(address) => storage.as_sockaddr_in().is_some_and(|at| at.ip() == address),
        IpAddr::V6(address) => storage.as_sockaddr_in6().is_some_and(|at| at.ip() == address),
    };
    interfaces
        .find(|interface| interface.address.is_some_and(holds))
        .map(|interface| interface.interface_name)
}

/// Whether a rule for `pattern` matches `interface`.
fn covers(pattern: &str, interface: &str) -> bool {
    match pattern.strip_suffix('+') {
        Some(stem) => interface.starts_with(stem),
        None => interface == pattern,
    }
}

/// The connection that came from `from`; `None` when it has not come by `deadline`. Others may
/// come before it: the app could be dialling already.
fn accept(
    listener: &TcpListener,
    from: SocketAddr,
    deadline: Instant,
) -> io::Result<Option<TcpStream>> {
    listener.set_nonblocking(true)?;
    loop {
        match listener.accept() {
            Ok((accepted, peer)) if peer == from => return Ok(Some(accepted)),
            Ok(_) => continue,
            Err(error) if error.kind() == ErrorKind::WouldBlock => {}
            Err(error) => return Err(error),
        }
        let left = deadline.saturating_duration_since(Instant::now());
        let timeout = PollTimeout::try_from(left).unwrap_or(PollTimeout::ZERO);
        let mut waited = [PollFd::new(listener.as_fd(), PollFlags::POLLIN)];
        match poll(&mut waited, timeout) {
            Ok(0) => return Ok(None),
            Ok(_) | Err(nix::errno::Errno::EINTR) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
}

/// SO_ORIGINAL_DST and IP6T_SO_ORIGINAL_DST (linux/netfilter_ipv4.h, ip6_tables.h).
fn original_destination(accepted: &TcpStream, family: Family) -> Result<SocketAddr, nix::Error> {
    match family {
        Family::V4 => {
            let raw = getsockopt(accepted, OriginalDst)?;
            let address = Ipv4Addr::from_bits(u32::from_be(raw.sin_addr.s_addr));
            Ok((address, u16::from_be(raw.sin_port)).into())
        }
        Family::V6 => {
            let raw = getsockopt(accepted, Ip6tOriginalDst)?;
            let address = Ipv6Addr::from(raw.sin6_addr.s6_addr);
            Ok((address, u16::from_be(raw.sin6_port)).into())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_last_plus_stands_for_anything() {
        assert!(covers("tap+", "tap0") && covers("tap0", "tap0"));
        assert!(!covers("tap+", "eth0") && !covers("tap0", "tap01"));
    }

    #[test]
    fn what_the_rules_leave_alone_is_not_dialled() {
        let target = SocketAddr::new(TARGET_V4.into(), TARGET_PORT);
        for flag in [
            "--outbound-ports=80",
            "--outbound-cidrs=10.0.0.0/8",
            "--outbound-exclude-ports=1000-2000",
            "--outbound-exclude-cidrs=192.0.2.0/24",
        ] {
            let config = Config::from_arguments(&[flag], &[]).unwrap();
            assert!(escapes(&config, target).is_some_and(|why| why.contains("limits")), "{flag}");
        }
    }
}
