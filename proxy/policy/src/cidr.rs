//! One `ipBlocks` item: a CIDR, an address, or a CIDR with exceptions.

use std::net::IpAddr;

use ipnet::{IpNet, Ipv4Net};

use super::diagnostic::Kind;
use super::yaml::{Pos, short};

/// A CIDR and what is left out of it. IPv4-mapped ones are IPv4 already.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Block {
    pub(super) pos: Pos,
    pub(super) net: IpNet,
    pub(super) except: Box<[IpNet]>,
}

/// Parses a CIDR or an address (/32, /128), and makes an IPv4-mapped one plain.
pub(super) fn parse_net(text: &str) -> Result<IpNet, (Kind, String)> {
    let bad = |why: &str| (Kind::BadValue, format!("\"{}\" is no CIDR: {why}", short(text)));
    let (address, prefix) = match text.split_once('/') {
        None => (text, None),
        Some((address, prefix)) => (address, Some(prefix)),
    };
    let address: IpAddr = address.parse().map_err(|_| {
        bad("write an IPv4 or IPv6 network such as 10.0.0.0/8 or fd00::/8, or one address")
    })?;
    let full = if address.is_ipv4() { 32 } else { 128 };
    let prefix = match prefix {
        None => full,
        Some(text) => {
            let canonical = text == "0" || !text.starts_with(['0', '+']);
            let length = text.parse::<u8>().ok().filter(|n| canonical && *n <= full);
            length.ok_or_else(|| bad(&format!("after the slash stands 0 to {full}")))?
        }
    };
    plain_net(address, prefix, text)
}

fn plain_net(address: IpAddr, prefix: u8, text: &str) -> Result<IpNet, (Kind, String)> {
    let bad = |error: ipnet::PrefixLenError| (Kind::BadValue, error.to_string());
    let net = match address {
        IpAddr::V6(v6) if v6.to_ipv4_mapped().is_some() && prefix < 96 => {
            let message = format!(
                "{} is IPv4-mapped and its prefix is under 96, so it would be IPv4 and IPv6 at \
                 once; write the IPv4 network and the IPv6 network as two items",
                short(text)
            );
            return Err((Kind::MappedPrefix, message));
        }
        IpAddr::V6(v6) => match v6.to_ipv4_mapped() {
            Some(v4) => IpNet::V4(Ipv4Net::new(v4, prefix.saturating_sub(96)).map_err(bad)?),
            None => IpNet::new(address, prefix).map_err(bad)?,
        },
        IpAddr::V4(_) => IpNet::new(address, prefix).map_err(bad)?,
    };
    let meant = net.trunc();
    if meant != net {
        let message = format!(
            "{} has bits set to the right of its prefix; {meant} is that network, {} that address",
            short(text),
            net.addr()
        );
        return Err((Kind::HostBits, message));
    }
    Ok(net)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kind(text: &str) -> Kind {
        parse_net(text).expect_err(text).0
    }

    #[test]
    fn an_address_is_a_network_of_one() {
        assert_eq!(parse_net("192.0.2.10"), Ok("192.0.2.10/32".parse().unwrap()));
        assert_eq!(parse_net("2001:db8::1"), Ok("2001:db8::1/128".parse().unwrap()));
        assert_eq!(parse_net("0.0.0.0/0"), Ok("0.0.0.0/0".parse().unwrap()));
        assert_eq!(parse_net("::/0"), Ok("::/0".parse().unwrap()));
    }

    #[test]
    fn host_bits_are_refused_with_what_was_meant() {
        let (kind, message) = parse_net("10.1.2.3/8").unwrap_err();
        assert_eq!(kind, Kind::HostBits);
        assert!(message.contains("10.0.0.0/8 is that network"), "{message}");
        let (_, message) = parse_net("fd00::1/64").unwrap_err();
        assert!(message.contains("fd00::/64"), "{message}");
    }

    #[test]
    fn mapped_networks_become_plain_or_are_refused() {
        assert_eq!(parse_net("::ffff:10.0.0.0/104"), Ok("10.0.0.0/8".parse().unwrap()));
        assert_eq!(parse_net("::ffff:10.1.2.3"), Ok("10.1.2.3/32".parse().unwrap()));
        assert_eq!(parse_net("::ffff:0.0.0.0/96"), Ok("0.0.0.0/0".parse().unwrap()));
        assert_eq!(kind("::ffff:0.0.0.0/95"), Kind::MappedPrefix);
        assert_eq!(kind("::ffff:10.0.0.0/8"), Kind::MappedPrefix);
        assert_eq!(kind("::ffff:10.0.0.1/104"), Kind::HostBits);
    }

    #[test]
    fn near_misses_are_refused() {
        for text in [
            "",
            "10",
            "10.0.0/8",
            "10.0.0.0/33",
            "10.0.0.0/",
            "10.0.0.0/08",
            "10.0.0.0/+8",
            "010.0.0.0/8",
            "::/129",
            "fe80::1%eth0",
            "10.0.0.0/8/8",
            " 10.0.0.0/8",
            "10.0.0.0/-1",
        ] {
            assert_eq!(kind(text), Kind::BadValue, "{text:?}");
        }
    }
}
