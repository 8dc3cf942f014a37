//! The destination that a redirected connection was meant for.

use std::net::{SocketAddr, SocketAddrV4, SocketAddrV6};

use nix::sys::socket::{getsockopt, sockopt};
use tokio::net::TcpStream;

use super::{OriginalDst, canonical};

/// The kernel could not tell the original destination: conntrack has no entry
/// (its table is full, or the connection was never redirected and is not
/// tracked). Guessing would send bytes to the wrong place.
#[derive(Debug, thiserror::Error)]
#[error("no original destination (SO_ORIGINAL_DST): {0}")]
pub struct OriginalDstError(nix::errno::Errno);

/// Asks conntrack where the client meant to go (`SO_ORIGINAL_DST`,
/// linux/netfilter_ipv4.h; `IP6T_SO_ORIGINAL_DST`, netfilter_ipv6/ip6_tables.h).
///
/// A tracked connection that was *not* redirected answers with the address that
/// it came to, so the caller's guard against its own ports still has to look.
///
/// # Errors
/// When the kernel does not know; never a guess.
pub fn original_dst(stream: &TcpStream) -> Result<OriginalDst, OriginalDstError> {
    let local = stream.local_addr().map_err(|_| OriginalDstError(nix::errno::Errno::ENOTCONN))?;
    let dst = if canonical(local).is_ipv4() {
        let raw = getsockopt(stream, sockopt::OriginalDst).map_err(OriginalDstError)?;
        SocketAddr::V4(SocketAddrV4::new(
            u32::from_be(raw.sin_addr.s_addr).into(),
            u16::from_be(raw.sin_port),
        ))
    } else {
        let raw = getsockopt(stream, sockopt::Ip6tOriginalDst).map_err(OriginalDstError)?;
        SocketAddr::V6(SocketAddrV6::new(
            raw.sin6_addr.s6_addr.into(),
            u16::from_be(raw.sin6_port),
            0,
            raw.sin6_scope_id,
        ))
    };
    Ok(OriginalDst(canonical(dst)))
}
