//! The destination that a redirected connection was meant for.

use nix::sys::socket::{getsockopt, sockopt};
use tokio::net::TcpStream;

use super::OriginalDst;
use super::sockaddr::{canonical, from_v4, from_v6};

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
        from_v4(&raw)
    } else {
        let raw = getsockopt(stream, sockopt::Ip6tOriginalDst).map_err(OriginalDstError)?;
        from_v6(&raw)
    };
    Ok(OriginalDst(dst))
}
