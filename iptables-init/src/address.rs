//! `::6/128` on `lo`: the address from which the inbound proxy dials an IPv6 app.
//!
//! IPv4 needs nothing: all of 127.0.0.0/8 is on `lo`. The address is added by rtnetlink(7), so
//! that the image needs no `ip` program. It is given the answer of one message and nothing else,
//! so the few bytes are written here.

use std::io;
use std::os::fd::AsRawFd;

use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, recv, sendto, socket,
};

use crate::rules::INBOUND_SOURCE_V6;

// linux/netlink.h, linux/rtnetlink.h, linux/if_addr.h
const NLMSG_ERROR: u16 = 2;
const RTM_NEWADDR: u16 = 20;
const RTM_DELADDR: u16 = 21;
const NLM_F_REQUEST: u16 = 0x1;
const NLM_F_ACK: u16 = 0x4;
const NLM_F_EXCL: u16 = 0x200;
const NLM_F_CREATE: u16 = 0x400;
const IFA_ADDRESS: u16 = 1;
const IFA_LOCAL: u16 = 2;
const IFA_F_PERMANENT: u8 = 0x80;
const AF_INET6: u8 = 10;
const HEADER: usize = 16;

/// The kernel refused the address.
#[derive(Debug, thiserror::Error)]
pub enum AddressError {
    /// Adding.
    #[error(
        "cannot add {INBOUND_SOURCE_V6}/128 to lo: {0}; turn IPv6 on for lo \
         (net.ipv6.conf.lo.disable_ipv6=0), or say --ipv6=off"
    )]
    Add(#[source] io::Error),
    /// The kernel's permission check, for either.
    #[error(
        "cannot change {INBOUND_SOURCE_V6}/128 on lo: {0}; run this in the user namespace that \
         owns the pod's network, with NET_ADMIN"
    )]
    Denied(#[source] io::Error),
    /// Removing.
    #[error("cannot remove {INBOUND_SOURCE_V6}/128 from lo: {0}; remove it with `ip -6 addr del`")]
    Remove(#[source] io::Error),
}

/// Adds the address; `false` when it is already there.
///
/// # Errors
/// IPv6 is off for `lo`, or NET_ADMIN is missing.
pub fn add() -> Result<bool, AddressError> {
    match ask(RTM_NEWADDR, NLM_F_CREATE | NLM_F_EXCL) {
        Ok(()) => Ok(true),
        Err(Errno::EEXIST) => Ok(false),
        Err(Errno::EPERM) => Err(AddressError::Denied(Errno::EPERM.into())),
        Err(errno) => Err(AddressError::Add(errno.into())),
    }
}

/// Removes the address; `false` when it is not there.
///
/// # Errors
/// NET_ADMIN is missing.
pub fn remove() -> Result<bool, AddressError> {
    match ask(RTM_DELADDR, 0) {
        Ok(()) => Ok(true),
        // The last two: a kernel without IPv6, or with IPv6 off for `lo`, has no such address.
        Err(Errno::EADDRNOTAVAIL | Errno::EOPNOTSUPP | Errno::ENXIO) => Ok(false),
        Err(Errno::EPERM) => Err(AddressError::Denied(Errno::EPERM.into())),
        Err(errno) => Err(AddressError::Remove(errno.into())),
    }
}

fn ask(kind: u16, flags: u16) -> Result<(), Errno> {
    let lo = nix::net::if_::if_nametoindex("lo")?;
    let netlink = socket(
        AddressFamily::Netlink,
        SockType::Raw,
        SockFlag::SOCK_CLOEXEC,
        SockProtocol::NetlinkRoute,
    )?;
    let kernel = NetlinkAddr::new(0, 0);
    let request = message(kind, flags, lo);
    sendto(netlink.as_raw_fd(), &request, &kernel, MsgFlags::empty())?;
    let mut answer = [0; 1024];
    let length = recv(netlink.as_raw_fd(), &mut answer, MsgFlags::empty())?;
    match acknowledgement(answer.get(..length).unwrap_or_default()) {
        Some(0) => Ok(()),
        Some(code) => Err(Errno::from_raw(code.saturating_neg())),
        None => Err(Errno::EPROTO),
    }
}

/// nlmsghdr, ifaddrmsg, and the address twice: on `lo`, the peer is the address itself.
fn message(kind: u16, flags: u16, interface: u32) -> Vec<u8> {
    let mut body = vec![AF_INET6, 128, IFA_F_PERMANENT, 0];
    body.extend(interface.to_ne_bytes());
    for attribute in [IFA_LOCAL, IFA_ADDRESS] {
        body.extend(20_u16.to_ne_bytes());
        body.extend(attribute.to_ne_bytes());
        body.extend(INBOUND_SOURCE_V6.octets());
    }
    let length = u32::try_from(HEADER + body.len()).unwrap_or(u32::MAX);
    let mut message = Vec::with_capacity(HEADER + body.len());
    message.extend(length.to_ne_bytes());
    message.extend(kind.to_ne_bytes());
    message.extend((flags | NLM_F_REQUEST | NLM_F_ACK).to_ne_bytes());
    message.extend(1_u32.to_ne_bytes());
    message.extend(0_u32.to_ne_bytes());
    message.extend(body);
    message
}

/// The code of an NLMSG_ERROR: 0, or a negative errno. `None` for any other message.
fn acknowledgement(answer: &[u8]) -> Option<i32> {
    let kind = u16::from_ne_bytes(answer.get(4..6)?.try_into().ok()?);
    let code = i32::from_ne_bytes(answer.get(HEADER..HEADER + 4)?.try_into().ok()?);
    (kind == NLMSG_ERROR).then_some(code)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_message_says_its_length_and_the_address_twice() {
        let message = message(RTM_NEWADDR, 0, 1);
        assert_eq!(message.len(), 64);
        assert_eq!(message[..4], 64_u32.to_ne_bytes());
        let address = INBOUND_SOURCE_V6.octets();
        assert_eq!(message.windows(16).filter(|window| *window == address).count(), 2);
    }

    #[test]
    fn only_an_acknowledgement_is_one() {
        let mut answer = vec![0; 36];
        answer[4..6].copy_from_slice(&NLMSG_ERROR.to_ne_bytes());
        assert_eq!(acknowledgement(&answer), Some(0));
        answer[16..20].copy_from_slice(&(-17_i32).to_ne_bytes());
        assert_eq!(acknowledgement(&answer), Some(-17));
        answer[4..6].copy_from_slice(&RTM_NEWADDR.to_ne_bytes());
        assert_eq!(acknowledgement(&answer), None);
        assert_eq!(acknowledgement(&answer[..10]), None);
    }
}
