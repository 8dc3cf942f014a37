//! The expressions of a rule in the words of `iptables-save`: whole for what this program writes,
//! and for others' rules as far as it must be known whether they take connections. What is not
//! understood stands in brackets. Pure.

use std::net::{Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use super::encode::address_place;
use super::extension::{module, quoted, target};
use super::kernel::{
    NF_ACCEPT, NF_DROP, NFT_BITWISE_MASK_XOR, NFT_CMP_EQ, NFT_CMP_NEQ, NFT_CONTINUE, NFT_GOTO,
    NFT_JUMP, NFT_META_IIFNAME, NFT_META_L4PROTO, NFT_META_OIFNAME, NFT_PAYLOAD_NETWORK_HEADER,
    NFT_PAYLOAD_TRANSPORT_HEADER, NFT_REG_VERDICT, NFT_RETURN, NFTA_BITWISE_DREG,
    NFTA_BITWISE_MASK, NFTA_BITWISE_OP, NFTA_BITWISE_SREG, NFTA_BITWISE_XOR, NFTA_CMP_DATA,
    NFTA_CMP_OP, NFTA_CMP_SREG, NFTA_DATA_VALUE, NFTA_DATA_VERDICT, NFTA_EXPR_DATA, NFTA_EXPR_NAME,
    NFTA_IMMEDIATE_DATA, NFTA_IMMEDIATE_DREG, NFTA_LIST_ELEM, NFTA_LOOKUP_DREG, NFTA_META_DREG,
    NFTA_META_KEY, NFTA_PAYLOAD_BASE, NFTA_PAYLOAD_DREG, NFTA_PAYLOAD_LEN, NFTA_PAYLOAD_OFFSET,
    NFTA_VERDICT_CHAIN, NFTA_VERDICT_CODE,
};
use super::wire::{Attributes, Malformed, array};
use crate::rules::Family;

/// Native expressions that match, load or count, and never end a walk through the rules.
const GOES_ON: &[&str] = &[
    "bitwise",
    "byteorder",
    "cmp",
    "connlimit",
    "ct",
    "exthdr",
    "fib",
    "hash",
    "last",
    "limit",
    "log",
    "meta",
    "numgen",
    "osf",
    "payload",
    "quota",
    "range",
    "rt",
    "socket",
    "tunnel",
    "xfrm",
];

/// A rule in words.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Decoded {
    /// All of what follows the chain in a line of `*-save`.
    pub(super) body: String,
    /// The chain that it leads to.
    pub(super) leads_to: Option<String>,
}

/// What is in the register that a comparison looks at.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Loaded {
    register: u32,
    what: What,
    mask: Option<Vec<u8>>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum What {
    Meta(u32),
    Payload { base: u32, offset: u32, length: u32 },
}

/// The matches that iptables has itself, without a module.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Flag {
    Source,
    Destination,
    InInterface,
    OutInterface,
    Protocol,
}

/// The matches in the order in which `*-save` prints them.
#[derive(Debug, Default)]
struct Words {
    source: Option<String>,
    destination: Option<String>,
    in_interface: Option<String>,
    out_interface: Option<String>,
    protocol: Option<String>,
    others: Vec<String>,
    target: Option<String>,
    leads_to: Option<String>,
}

/// Reads the list of a rule's expressions.
pub(super) fn rule(list: &Attributes<'_>, family: Family) -> Result<Decoded, Malformed> {
    let mut words = Words::default();
    let mut loaded: Option<Loaded> = None;
    for element in list.all(NFTA_LIST_ELEM) {
        let element = Attributes::of(element)?;
        let name = element.text(NFTA_EXPR_NAME).ok_or(Malformed)?;
        let data = element.nested(NFTA_EXPR_DATA)?;
        match name.as_str() {
            "counter" => {}
            "meta" if data.find(NFTA_META_DREG).is_some() => loaded = load_meta(&data)?,
            "payload" if data.find(NFTA_PAYLOAD_DREG).is_some() => loaded = load_payload(&data)?,
            "bitwise" => match mask(&data, loaded.take())? {
                Some(masked) => loaded = Some(masked),
                None => words.unknown(&name),
            },
            "cmp" => compare(&data, loaded.as_ref(), family, &mut words)?,
            "match" => words.others.push(module(&data)?),
            "target" => words.target(target(&data, family)?),
            "immediate" if data.u32(NFTA_IMMEDIATE_DREG)? == Some(NFT_REG_VERDICT) => {
                verdict(&data, &mut words)?;
            }
            "immediate" => words.unknown(&name),
            // A verdict may come out of a map.
            "lookup" if data.u32(NFTA_LOOKUP_DREG)? != Some(NFT_REG_VERDICT) => {
                words.unknown(&name);
            }
            _ if GOES_ON.contains(&name.as_str()) => words.unknown(&name),
            _ => words.target(format!("-j {}", quoted(&format!("[{name}]")))),
        }
    }
    Ok(words.finish())
}

impl Words {
    fn own(&mut self, flag: Flag) -> &mut Option<String> {
        match flag {
            Flag::Source => &mut self.source,
            Flag::Destination => &mut self.destination,
            Flag::InInterface => &mut self.in_interface,
            Flag::OutInterface => &mut self.out_interface,
            Flag::Protocol => &mut self.protocol,
        }
    }

    fn unknown(&mut self, name: &str) {
        self.others.push(quoted(&format!("[{name}]")));
    }

    /// The first one counts: the kernel does not come to what stands behind a verdict.
    fn target(&mut self, target: String) {
        self.target.get_or_insert(target);
    }

    fn finish(self) -> Decoded {
        let own = [
            ("-s", self.source),
            ("-d", self.destination),
            ("-i", self.in_interface),
            ("-o", self.out_interface),
            ("-p", self.protocol),
        ];
        let own = own.into_iter().filter_map(|(flag, value)| {
            let value = value?;
            Some(match value.strip_prefix("! ") {
                Some(value) => format!("! {flag} {value}"),
                None => format!("{flag} {value}"),
            })
        });
        let words: Vec<String> = own.chain(self.others).chain(self.target).collect();
        Decoded { body: words.join(" "), leads_to: self.leads_to }
    }
}

fn load_meta(data: &Attributes<'_>) -> Result<Option<Loaded>, Malformed> {
    let register = data.u32(NFTA_META_DREG)?.ok_or(Malformed)?;
    let key = data.u32(NFTA_META_KEY)?.ok_or(Malformed)?;
    Ok(Some(Loaded { register, what: What::Meta(key), mask: None }))
}

fn load_payload(data: &Attributes<'_>) -> Result<Option<Loaded>, Malformed> {
    let number = |kind| data.u32(kind)?.ok_or(Malformed);
    let what = What::Payload {
        base: number(NFTA_PAYLOAD_BASE)?,
        offset: number(NFTA_PAYLOAD_OFFSET)?,
        length: number(NFTA_PAYLOAD_LEN)?,
    };
    Ok(Some(Loaded { register: number(NFTA_PAYLOAD_DREG)?, what, mask: None }))
}

/// What is loaded, masked; `None` for any other use of the expression.
fn mask(data: &Attributes<'_>, loaded: Option<Loaded>) -> Result<Option<Loaded>, Malformed> {
    let registers = (data.u32(NFTA_BITWISE_SREG)?, data.u32(NFTA_BITWISE_DREG)?);
    let operator = data.u32(NFTA_BITWISE_OP)?.unwrap_or(NFT_BITWISE_MASK_XOR);
    let flipped = data.nested(NFTA_BITWISE_XOR)?.find(NFTA_DATA_VALUE).unwrap_or_default();
    let mask = data.nested(NFTA_BITWISE_MASK)?.find(NFTA_DATA_VALUE);
    Ok(loaded.zip(mask).and_then(|(loaded, mask)| {
        let same = registers == (Some(loaded.register), Some(loaded.register));
        let plain = operator == NFT_BITWISE_MASK_XOR && flipped.iter().all(|byte| *byte == 0);
        (same && plain && loaded.mask.is_none())
            .then(|| Loaded { mask: Some(mask.to_vec()), ..loaded })
    }))
}

fn compare(
    data: &Attributes<'_>,
    loaded: Option<&Loaded>,
    family: Family,
    words: &mut Words,
) -> Result<(), Malformed> {
    let value = data.nested(NFTA_CMP_DATA)?.find(NFTA_DATA_VALUE).ok_or(Malformed)?;
    let not = match data.u32(NFTA_CMP_OP)? {
        Some(NFT_CMP_EQ) => "",
        Some(NFT_CMP_NEQ) => "! ",
        _ => {
            words.unknown("cmp");
            return Ok(());
        }
    };
    let register = data.u32(NFTA_CMP_SREG)?;
    let loaded = loaded.filter(|loaded| Some(loaded.register) == register);
    match loaded.and_then(|loaded| own_match(loaded, value, family)) {
        Some((flag, text)) if words.own(flag).is_none() => {
            *words.own(flag) = Some(format!("{not}{text}"));
        }
        // A second one of a kind narrows the first.
        Some(_) => words.unknown("cmp"),
        None => match loaded.and_then(|loaded| port(loaded, value)) {
            Some(text) => {
                let protocol = words.protocol.clone().unwrap_or_else(|| "[port]".to_owned());
                words.others.push(format!("-m {protocol} {not}{text}"));
            }
            None => words.unknown("cmp"),
        },
    }
    Ok(())
}

/// A match of iptables' own: its flag, and its value.
fn own_match(loaded: &Loaded, value: &[u8], family: Family) -> Option<(Flag, String)> {
    match (loaded.what, loaded.mask.as_deref()) {
        (What::Meta(NFT_META_IIFNAME), None) => Some((Flag::InInterface, interface(value)?)),
        (What::Meta(NFT_META_OIFNAME), None) => Some((Flag::OutInterface, interface(value)?)),
        (What::Meta(NFT_META_L4PROTO), None) => Some((Flag::Protocol, protocol(value)?)),
        (What::Payload { base: NFT_PAYLOAD_NETWORK_HEADER, offset, length }, mask) => {
            if (family, offset, length, mask) == (Family::V4, 9, 1, None) {
                return Some((Flag::Protocol, protocol(value)?));
            }
            let (start, whole) = address_place(family, true);
            let flag = if offset == start { Flag::Source } else { Flag::Destination };
            let (start, _) = address_place(family, flag == Flag::Source);
            let fits = offset == start && length <= whole;
            Some((flag, fits.then(|| range(family, value, mask))??))
        }
        _ => None,
    }
}

/// A comparison with a port, which is a module's match in the words of `iptables-save`.
fn port(loaded: &Loaded, value: &[u8]) -> Option<String> {
    let Loaded { what, mask: None, .. } = loaded else { return None };
    let What::Payload { base: NFT_PAYLOAD_TRANSPORT_HEADER, offset, length: 2 } = *what else {
        return None;
    };
    let side = match offset {
        0 => "--sport",
        2 => "--dport",
        _ => return None,
    };
    Some(format!("{side} {}", u16::from_be_bytes(array(value, 0).ok()?)))
}

fn interface(value: &[u8]) -> Option<String> {
    let stem = value.split(|byte| *byte == 0).next().unwrap_or_default();
    let stem = str::from_utf8(stem).ok()?;
    Some(quoted(&if value.contains(&0) { stem.to_owned() } else { format!("{stem}+") }))
}

fn protocol(value: &[u8]) -> Option<String> {
    let [number] = *value else { return None };
    let name = match number {
        1 => "icmp",
        6 => "tcp",
        17 => "udp",
        33 => "dccp",
        58 => "ipv6-icmp",
        132 => "sctp",
        136 => "udplite",
        _ => return Some(number.to_string()),
    };
    Some(name.to_owned())
}

/// An address with a mask, or the leading bytes of one; `None` when the mask is no prefix.
fn range(family: Family, value: &[u8], mask: Option<&[u8]>) -> Option<String> {
    let whole = usize::try_from(address_place(family, true).1).ok()?;
    let mask = mask.map_or_else(|| vec![0xff; value.len()], <[u8]>::to_vec);
    if value.len() > whole || mask.len() != value.len() {
        return None;
    }
    let padded = |bytes: &[u8]| {
        let mut bytes = bytes.to_vec();
        bytes.resize(whole, 0);
        bytes
    };
    let (value, mask) = (padded(value), padded(&mask));
    let net = match family {
        Family::V4 => {
            let [value, mask] = [array(&value, 0).ok()?, array(&mask, 0).ok()?].map(Ipv4Addr::from);
            IpNet::from(Ipv4Net::with_netmask(value, mask).ok()?)
        }
        Family::V6 => {
            let value: [u8; 16] = array(&value, 0).ok()?;
            let mask: [u8; 16] = array(&mask, 0).ok()?;
            IpNet::from(Ipv6Net::with_netmask(value.into(), Ipv6Addr::from(mask)).ok()?)
        }
    };
    Some(net.to_string())
}

fn verdict(data: &Attributes<'_>, words: &mut Words) -> Result<(), Malformed> {
    let verdict = data.nested(NFTA_IMMEDIATE_DATA)?.nested(NFTA_DATA_VERDICT)?;
    let code = verdict.i32(NFTA_VERDICT_CODE)?.ok_or(Malformed)?;
    let chain = verdict.text(NFTA_VERDICT_CHAIN);
    let text = match (code, &chain) {
        (NFT_CONTINUE, _) => return Ok(()),
        (NF_ACCEPT, _) => "-j ACCEPT".to_owned(),
        (NF_DROP, _) => "-j DROP".to_owned(),
        (NFT_RETURN, _) => "-j RETURN".to_owned(),
        (NFT_JUMP, Some(chain)) => format!("-j {}", quoted(chain)),
        (NFT_GOTO, Some(chain)) => format!("-g {}", quoted(chain)),
        (code, _) => format!("-j [{code}]"),
    };
    words.leads_to = words.leads_to.take().or(chain);
    words.target(text);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::kernel::{NFTA_CMP_OP, NFTA_EXPR_DATA, NFTA_RULE_EXPRESSIONS};
    use super::super::wire::{GENERIC, Message, messages};
    use super::*;

    /// Expressions as the kernel lists them: each a name, and attributes as hexadecimal text.
    fn decoded(expressions: &[(&str, &str)], family: Family) -> Decoded {
        let mut message = Message::new(0, 0, 0, 0, 0);
        message.nest(NFTA_RULE_EXPRESSIONS, |list| {
            for (name, data) in expressions {
                list.nest(NFTA_LIST_ELEM, |element| {
                    element.put_text(NFTA_EXPR_NAME, name);
                    element.put(NFTA_EXPR_DATA, &bytes(data));
                });
            }
        });
        let written = message.finish();
        let [message] = messages(&written).unwrap()[..] else { panic!("one message") };
        let attributes = Attributes::of(&message.body[GENERIC..]).unwrap();
        rule(&attributes.nested(NFTA_RULE_EXPRESSIONS).unwrap(), family).unwrap()
    }

    fn bytes(hexadecimal: &str) -> Vec<u8> {
        let digits: Vec<char> = hexadecimal.chars().filter(|c| !c.is_whitespace()).collect();
        let byte =
            |pair: &[char]| u8::from_str_radix(&pair.iter().collect::<String>(), 16).unwrap();
        digits.chunks(2).map(byte).collect()
    }

    const TCP: [(&str, &str); 2] = [
        ("meta", "0800020000000010 0800010000000001"),
        ("cmp", "0800010000000001 0800020000000000 0c000300 0500010006000000"),
    ];
    const DESTINATION: (&str, &str) =
        ("payload", "0800010000000001 0800020000000001 0800030000000010 0800040000000004");

    /// As other versions of iptables write them.
    #[test]
    fn every_spelling_of_a_match_is_read() {
        // The protocol from the header, as iptables before 1.8.8 has it.
        let protocol =
            ("payload", "0800010000000001 0800020000000001 0800030000000009 0800040000000001");
        assert_eq!(decoded(&[protocol, TCP[1]], Family::V4).body, "-p tcp");
        assert_eq!(decoded(&[protocol, TCP[1]], Family::V6).body, "[cmp]");
        // A short comparison instead of a mask, as from 1.8.7 on.
        let short =
            ("payload", "0800010000000001 0800020000000001 0800030000000010 0800040000000001");
        let loopback = ("cmp", "0800010000000001 0800020000000001 0c000300 050001007f000000");
        assert_eq!(decoded(&[short, loopback], Family::V4).body, "! -d 127.0.0.0/8");
        // A mask that is no prefix is not taken for one.
        let mask = (
            "bitwise",
            "0800010000000001 0800020000000001 0800030000000004 0c000400 08000100ff00ff00 \
             0c000500 0800010000000000",
        );
        let value = ("cmp", "0800010000000001 0800020000000000 0c000300 080001000a000500");
        assert_eq!(decoded(&[DESTINATION, mask, value], Family::V4).body, "[cmp]");
        // Another register than the one that was loaded.
        let other = ("cmp", "0800010000000002 0800020000000000 0c000300 080001000a000500");
        assert_eq!(decoded(&[DESTINATION, other], Family::V4).body, "[cmp]");
        // Greater than.
        let greater = ("cmp", "0800010000000001 0800020000000004 0c000300 080001000a000500");
        assert_eq!(decoded(&[DESTINATION, greater], Family::V4).body, "[cmp]");
        // A second destination narrows the first.
        let host = [DESTINATION, value, DESTINATION, value];
        assert_eq!(decoded(&host, Family::V4).body, "-d 10.0.5.0/32 [cmp]");
    }

    #[test]
    fn what_is_not_known_to_go_on_counts_as_a_target() {
        let ends = |expressions: &[(&str, &str)]| decoded(expressions, Family::V4).body;
        assert_eq!(ends(&[TCP[0], TCP[1], ("redir", "")]), "-p tcp -j [redir]");
        assert_eq!(ends(&[("lookup", "0800030000000000")]), "-j [lookup]");
        assert_eq!(ends(&[("lookup", "")]), "[lookup]");
        assert_eq!(ends(&[("counter", ""), ("log", "")]), "[log]");
        assert_eq!(ends(&[("no such -j LOG", "")]), "-j \"[no such -j LOG]\"");
        // A target that was not understood is not hidden by a verdict behind it.
        let accept = ("immediate", "0800010000000000 10000200 0c000200 0800010000000001");
        assert_eq!(ends(&[("dnat", ""), accept]), "-j [dnat]");
        assert_eq!(ends(&[accept]), "-j ACCEPT");
    }

    #[test]
    fn a_verdict_names_its_chain() {
        // "X" and a NUL.
        let verdict = |code: &str| {
            format!("0800010000000000 18000200 14000200 08000100{code} 06000200 58000000")
        };
        let jump = decoded(&[("immediate", &verdict("fffffffd"))], Family::V4);
        assert_eq!((jump.body.as_str(), jump.leads_to.as_deref()), ("-j X", Some("X")));
        assert_eq!(decoded(&[("immediate", &verdict("fffffffc"))], Family::V4).body, "-g X");
    }

    #[test]
    fn modules_of_others_have_their_name_and_owners_their_ranges() {
        // "mark", revision 1.
        let mark = ("match", "09000100 6d61726b00000000 0800020000000001");
        assert_eq!(decoded(&[mark], Family::V4).body, "-m mark [mark]");
        let owner = (
            "match",
            "0a000100 6f776e6572000000 0800020000000001 \
             1c000300 000000000500000003000000030000000303000000000000",
        );
        let words = "-m owner ! --uid-owner 0-5 ! --gid-owner 3";
        assert_eq!(decoded(&[owner], Family::V4).body, words);
        let log = ("target", "08000100 4c4f4700 0800020000000000");
        assert_eq!(decoded(&[log], Family::V4).body, "-j LOG [LOG]");
    }

    #[test]
    fn an_operator_is_needed() {
        let mut message = Message::new(0, 0, 0, 0, 0);
        message.put_u32(NFTA_CMP_OP, NFT_CMP_EQ);
        let data = message.finish();
        let attributes = Attributes::of(&data[20..]).unwrap();
        let mut words = Words::default();
        assert!(compare(&attributes, None, Family::V4, &mut words).is_err());
    }
}
