//! A rule of the model as the expressions that `iptables-nft` writes for it, so that its programs
//! print, change and delete it as one of their own.
//!
//! Addresses, interfaces and the protocol are native expressions; what is a module to iptables
//! (`multiport`, `owner`, `REDIRECT`) goes through the kernel's `nft_compat`. Native expressions
//! for these work as well, but iptables-nft then calls the table incompatible. Pure.

use ipnet::IpNet;

use super::kernel::{
    ANY_PORT, IP6T_TCP_RESET, IPPROTO_TCP, IPT_TCP_RESET, NF_NAT_RANGE_PROTO_SPECIFIED,
    NFT_BITWISE_MASK_XOR, NFT_CMP_EQ, NFT_CMP_NEQ, NFT_JUMP, NFT_META_IIFNAME, NFT_META_L4PROTO,
    NFT_META_OIFNAME, NFT_PAYLOAD_NETWORK_HEADER, NFT_REG_1, NFT_REG_VERDICT, NFT_RETURN,
    NFTA_BITWISE_DREG, NFTA_BITWISE_LEN, NFTA_BITWISE_MASK, NFTA_BITWISE_OP, NFTA_BITWISE_SREG,
    NFTA_BITWISE_XOR, NFTA_CMP_DATA, NFTA_CMP_OP, NFTA_CMP_SREG, NFTA_COUNTER_BYTES,
    NFTA_COUNTER_PACKETS, NFTA_DATA_VALUE, NFTA_DATA_VERDICT, NFTA_EXPR_DATA, NFTA_EXPR_NAME,
    NFTA_IMMEDIATE_DATA, NFTA_IMMEDIATE_DREG, NFTA_LIST_ELEM, NFTA_META_DREG, NFTA_META_KEY,
    NFTA_PAYLOAD_BASE, NFTA_PAYLOAD_DREG, NFTA_PAYLOAD_LEN, NFTA_PAYLOAD_OFFSET, NFTA_RULE_COMPAT,
    NFTA_RULE_COMPAT_FLAGS, NFTA_RULE_COMPAT_PROTO, NFTA_RULE_EXPRESSIONS, NFTA_VERDICT_CHAIN,
    NFTA_VERDICT_CODE, NFTA_XT_INFO, NFTA_XT_NAME, NFTA_XT_REV, TCP_ACK, TCP_FIN, TCP_RST, TCP_SYN,
    XT_MULTI_PORTS, XT_MULTIPORT_DESTINATION, XT_OWNER_GID, XT_OWNER_UID,
};
use super::wire::Message;
use crate::ports::PortSet;
use crate::render::is_limit;
use crate::rules::{Extension, Family, Owner, Rule, Target};

/// The extensions of x_tables that our rules are made of, with their revisions.
pub(super) const OWNER: (&str, u32) = ("owner", 1);
pub(super) const MULTIPORT: (&str, u32) = ("multiport", 1);
pub(super) const REDIRECT: (&str, u32) = ("REDIRECT", 0);
pub(super) const TCP: (&str, u32) = ("tcp", 0);
pub(super) const REJECT: (&str, u32) = ("REJECT", 0);

/// The flags that are looked at, and those of them that are set, where a connection is opened.
pub(super) const OPENING: (u8, u8) = (TCP_FIN | TCP_SYN | TCP_RST | TCP_ACK, TCP_SYN);

/// Where an address is in its header: the first byte, and how many there are.
pub(super) fn address_place(family: Family, source: bool) -> (u32, u32) {
    match (family, source) {
        (Family::V4, true) => (12, 4),
        (Family::V4, false) => (16, 4),
        (Family::V6, true) => (8, 16),
        (Family::V6, false) => (24, 16),
    }
}

/// Writes the attributes of a rule that say what it does.
pub(super) fn rule(message: &mut Message, rule: &Rule, family: Family) {
    message.nest(NFTA_RULE_EXPRESSIONS, |list| {
        if let Some(name) = &rule.in_interface {
            interface(list, NFT_META_IIFNAME, name);
        }
        if let Some(name) = &rule.out_interface {
            interface(list, NFT_META_OIFNAME, name);
        }
        if rule.tcp {
            meta(list, NFT_META_L4PROTO);
            compare(list, NFT_CMP_EQ, &[IPPROTO_TCP]);
        }
        if let Some(net) = rule.source.filter(is_limit) {
            address(list, address_place(family, true), false, net);
        }
        if let Some((not, net)) = rule.destination.filter(|(_, net)| is_limit(net)) {
            address(list, address_place(family, false), not, net);
        }
        match &rule.extension {
            None => {}
            Some(Extension::DestinationPorts(ports)) => {
                extension(list, "match", MULTIPORT, multiport(ports));
            }
            Some(Extension::Owner(owner)) => extension(list, "match", OWNER, owner_info(*owner)),
            Some(Extension::Syn) => extension(list, "match", TCP, opening()),
        }
        expression(list, "counter", |data| {
            data.put_u64(NFTA_COUNTER_BYTES, 0).put_u64(NFTA_COUNTER_PACKETS, 0);
        });
        match rule.target {
            Target::Return => verdict(list, NFT_RETURN, None),
            Target::Jump(chain) => verdict(list, NFT_JUMP, Some(chain.name())),
            Target::RedirectTo(port) => {
                extension(list, "target", REDIRECT, nat_range(family, port));
            }
            Target::Reset => extension(list, "target", REJECT, reset(family)),
        }
    });
    // What the kernel tells an extension about its rule: most want a protocol.
    if rule.tcp {
        message.nest(NFTA_RULE_COMPAT, |compat| {
            compat.put_u32(NFTA_RULE_COMPAT_PROTO, IPPROTO_TCP.into());
            compat.put_u32(NFTA_RULE_COMPAT_FLAGS, 0);
        });
    }
}

fn expression(list: &mut Message, name: &str, fill: impl FnOnce(&mut Message)) {
    list.nest(NFTA_LIST_ELEM, |element| {
        element.put_text(NFTA_EXPR_NAME, name).nest(NFTA_EXPR_DATA, fill);
    });
}

fn meta(list: &mut Message, key: u32) {
    expression(list, "meta", |data| {
        data.put_u32(NFTA_META_KEY, key).put_u32(NFTA_META_DREG, NFT_REG_1);
    });
}

fn compare(list: &mut Message, operator: u32, value: &[u8]) {
    expression(list, "cmp", |data| {
        data.put_u32(NFTA_CMP_SREG, NFT_REG_1).put_u32(NFTA_CMP_OP, operator);
        data.nest(NFTA_CMP_DATA, |inner| {
            inner.put(NFTA_DATA_VALUE, value);
        });
    });
}

/// With its NUL, a name is compared as a whole; without, it is a beginning.
fn interface(list: &mut Message, key: u32, name: &str) {
    meta(list, key);
    match name.strip_suffix('+') {
        Some(stem) => compare(list, NFT_CMP_EQ, stem.as_bytes()),
        None => compare(list, NFT_CMP_EQ, &[name.as_bytes(), &[0]].concat()),
    }
}

/// A range is a mask and a comparison, even where its prefix ends at a byte: iptables-nft compares
/// less bytes then, which its versions before 1.8.7 print as the address of one host.
fn address(list: &mut Message, (offset, length): (u32, u32), not: bool, net: IpNet) {
    expression(list, "payload", |data| {
        data.put_u32(NFTA_PAYLOAD_DREG, NFT_REG_1);
        data.put_u32(NFTA_PAYLOAD_BASE, NFT_PAYLOAD_NETWORK_HEADER);
        data.put_u32(NFTA_PAYLOAD_OFFSET, offset).put_u32(NFTA_PAYLOAD_LEN, length);
    });
    let (value, mask) = match net {
        IpNet::V4(net) => (net.network().octets().to_vec(), net.netmask().octets().to_vec()),
        IpNet::V6(net) => (net.network().octets().to_vec(), net.netmask().octets().to_vec()),
    };
    if net.prefix_len() < net.max_prefix_len() {
        expression(list, "bitwise", |data| {
            data.put_u32(NFTA_BITWISE_SREG, NFT_REG_1).put_u32(NFTA_BITWISE_DREG, NFT_REG_1);
            data.put_u32(NFTA_BITWISE_LEN, length);
            data.put_u32(NFTA_BITWISE_OP, NFT_BITWISE_MASK_XOR);
            data.nest(NFTA_BITWISE_MASK, |inner| {
                inner.put(NFTA_DATA_VALUE, &mask);
            });
            data.nest(NFTA_BITWISE_XOR, |inner| {
                inner.put(NFTA_DATA_VALUE, &vec![0; value.len()]);
            });
        });
    }
    compare(list, if not { NFT_CMP_NEQ } else { NFT_CMP_EQ }, &value);
}

fn verdict(list: &mut Message, code: i32, chain: Option<&str>) {
    expression(list, "immediate", |data| {
        data.put_u32(NFTA_IMMEDIATE_DREG, NFT_REG_VERDICT);
        data.nest(NFTA_IMMEDIATE_DATA, |inner| {
            inner.nest(NFTA_DATA_VERDICT, |verdict| {
                verdict.put(NFTA_VERDICT_CODE, &code.to_be_bytes());
                if let Some(chain) = chain {
                    verdict.put_text(NFTA_VERDICT_CHAIN, chain);
                }
            });
        });
    });
}

/// A match or a target of x_tables. Its structure has the byte order of this machine, and is as
/// long as the kernel aligns it (`XT_ALIGN`, linux/netfilter/x_tables.h).
fn extension(list: &mut Message, kind: &str, (name, revision): (&str, u32), mut info: Vec<u8>) {
    info.resize(info.len().next_multiple_of(8), 0);
    expression(list, kind, |data| {
        data.put_text(NFTA_XT_NAME, name).put_u32(NFTA_XT_REV, revision);
        data.put(NFTA_XT_INFO, &info);
    });
}

/// `struct xt_multiport_v1`: flags, count, the ports, a mark at each that begins a range,
/// inversion.
fn multiport(ports: &PortSet) -> Vec<u8> {
    let slots: Vec<(u16, u8)> = ports
        .ranges()
        .flat_map(|(first, last)| match first == last {
            true => vec![(first, 0)],
            false => vec![(first, 1), (last, 0)],
        })
        .collect();
    let mut info = vec![XT_MULTIPORT_DESTINATION];
    // At most 15: PortSet::multiports has seen to it, and the kernel refuses more.
    info.push(u8::try_from(slots.len()).unwrap_or(u8::MAX));
    let padded = || slots.iter().copied().chain(std::iter::repeat((0, 0))).take(XT_MULTI_PORTS);
    info.extend(padded().flat_map(|(port, _)| port.to_ne_bytes()));
    info.extend(padded().map(|(_, begins)| begins));
    info.push(0);
    info
}

/// `struct xt_owner_match_info`: a range of users, one of groups, which of them counts, inversion.
fn owner_info(owner: Owner) -> Vec<u8> {
    let (user, group, which) = match owner {
        Owner::User(id) => (id, 0, XT_OWNER_UID),
        Owner::Group(id) => (0, id, XT_OWNER_GID),
    };
    let ids = [user, user, group, group].map(u32::to_ne_bytes).concat();
    [&ids[..], &[which, 0]].concat()
}

/// `struct xt_tcp`: any ports, no option, the flags, no inversion.
fn opening() -> Vec<u8> {
    let ports = ANY_PORT.map(u16::to_ne_bytes).concat();
    let (mask, set) = OPENING;
    [&ports[..], &[0, mask, set, 0]].concat()
}

/// `struct ipt_reject_info`, `struct ip6t_reject_info`: with what.
fn reset(family: Family) -> Vec<u8> {
    with_reset(family).to_ne_bytes().to_vec()
}

/// The kernel's number for a reset as the answer.
pub(super) fn with_reset(family: Family) -> u32 {
    match family {
        Family::V4 => IPT_TCP_RESET,
        Family::V6 => IP6T_TCP_RESET,
    }
}

/// `struct nf_nat_ipv4_multi_range_compat` of one range, or `struct nf_nat_range`: no addresses,
/// one port.
fn nat_range(family: Family, port: u16) -> Vec<u8> {
    let flags = NF_NAT_RANGE_PROTO_SPECIFIED.to_ne_bytes();
    let ports = [port.to_be_bytes(), port.to_be_bytes()].concat();
    match family {
        Family::V4 => [&1_u32.to_ne_bytes()[..], &flags, &[0; 8], &ports].concat(),
        Family::V6 => [&flags[..], &[0; 32], &ports].concat(),
    }
}
