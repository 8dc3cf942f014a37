//! Policy files: any text ends in a policy that answers, or in errors with a place.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::LazyLock;

use pillion_certs::spiffe::{SpiffeId, TrustDomain};
use pillion_policy::{HostTable, InboundConn, Mode, OutboundDecision, Policy, load};

static OWN: LazyLock<TrustDomain> = LazyLock::new(|| "cluster.local".parse().expect("a domain"));

/// Every name has every address whose last bit is set.
struct Odd;

impl HostTable for Odd {
    fn contains(&self, _: &str, ip: IpAddr) -> bool {
        match ip {
            IpAddr::V4(ip) => ip.to_bits() & 1 == 1,
            IpAddr::V6(ip) => ip.to_bits() & 1 == 1,
        }
    }
}

const IDS: [&str; 3] = [
    "spiffe://cluster.local/ns/shop/sa/frontend",
    "spiffe://cluster.local/a/b/c",
    "spiffe://partner.example.net/canary/x",
];

/// Reads a file; if it is good, asks it about connections.
pub fn check(text: &str) {
    match load("f.yaml", text, Some(&OWN)) {
        Err(errors) => {
            assert!(!errors.as_slice().is_empty());
            // YAML takes a lone CR for the end of a line, too.
            let ends = text.matches(['\r', '\n']).count();
            let lines = u32::try_from(ends).expect("a short text") + 1;
            for error in errors.as_slice() {
                assert!((1..=lines + 1).contains(&error.line) && error.column >= 1, "{error}");
                assert!(!error.to_string().contains('\u{1b}'), "an escape gets through");
            }
        }
        Ok(compiled) => ask(&compiled.policy),
    }
}

fn ask(policy: &Policy) {
    let addresses: [IpAddr; 5] = [
        Ipv4Addr::new(10, 244, 1, 7).into(),
        Ipv4Addr::new(10, 0, 0, 0).into(),
        Ipv4Addr::BROADCAST.into(),
        Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 7).into(),
        Ipv6Addr::UNSPECIFIED.into(),
    ];
    let named = policy.rules().iter().flat_map(|rule| rule.ports().unwrap_or_default());
    let ports: Vec<u16> = named.copied().take(4).chain([80, 8080]).collect();
    for address in addresses {
        for port in &ports {
            outbound(policy, address, *port);
            inbound(policy, address, *port, None);
            for id in IDS {
                inbound(policy, address, *port, Some(&id.parse().expect("an id")));
            }
        }
    }
}

fn inbound(policy: &Policy, source: IpAddr, port: u16, identity: Option<&SpiffeId>) {
    let conn = InboundConn { source, port, identity };
    let decision = policy.inbound(&conn);
    let early = policy.inbound_by_address(source, port);
    assert!(early.as_ref().is_none_or(|early| !early.allow && !decision.allow));
    let explained = policy.explain_inbound(&conn);
    if &*explained.rule == "tls" {
        return;
    }
    assert!(identity.is_some() || policy.inbound_mode(port) != Mode::Strict || early.is_some());
    assert_eq!(explained.verdict == "allow", decision.allow);
    assert_eq!(explained.rule, early.map_or(decision.rule, |early| early.rule));
    let deciding = explained.lines.iter().filter(|line| line.decides).count();
    assert_eq!(deciding, usize::from(policy.rules().iter().any(|r| *r.name() == explained.rule)));
}

fn outbound(policy: &Policy, dst: IpAddr, port: u16) {
    let explained = policy.explain_outbound(dst, port, &Odd);
    if dst.is_loopback() || dst.is_unspecified() {
        assert_eq!(explained.verdict, "exempt");
        return;
    }
    let (verdict, rule) = match policy.outbound(dst, port, &Odd) {
        OutboundDecision::Deny { rule } => ("deny", rule),
        OutboundDecision::Mtls { rule, destination, .. } => {
            assert!(destination.server_identities().patterns().next().is_some());
            ("mtls", rule)
        }
        OutboundDecision::Passthrough { rule, .. } => ("passthrough", rule),
    };
    assert_eq!((explained.verdict, explained.rule), (verdict, rule));
}

/// One `ipBlocks` item, compared with what the bits of it say.
pub fn check_cidr(item: &str, address: [u8; 16]) {
    // Printable, so that the YAML around it is not what is tested.
    if item.is_empty() || !item.bytes().all(|b| b.is_ascii_graphic() && b != b'"' && b != b'\\') {
        return;
    }
    let text = format!(
        "apiVersion: pillion/v1alpha1\nkind: SidecarPolicy\nmetadata: {{name: t}}\n\
         inbound: {{mtls: strict, defaultAction: deny, rules: [{{name: r, action: allow, \
         from: [{{ipBlocks: [\"{item}\"]}}]}}]}}\noutbound: {{defaultAction: passthrough}}\n"
    );
    let loaded = load("f.yaml", &text, Some(&OWN));
    let meant = block(item);
    assert_eq!(loaded.is_ok(), meant.is_some(), "{item}: {:?}", loaded.err());
    let (Ok(compiled), Some((bits, prefix, v4))) = (loaded, meant) else { return };
    let wide = Ipv6Addr::from(address);
    // The block's own beginning, the address given, and both as near each other as can be.
    let near = Ipv6Addr::from_bits(bits | (wide.to_bits() & !mask(prefix)));
    for candidate in [
        wide,
        near,
        Ipv6Addr::from_bits(bits),
        Ipv6Addr::from_bits(bits ^ (1 << 127 >> prefix.min(127))),
    ] {
        let source = IpAddr::V6(candidate).to_canonical();
        let inside = source.is_ipv4() == v4 && (candidate.to_bits() ^ bits) & mask(prefix) == 0;
        let decision = compiled.policy.inbound(&InboundConn { source, port: 80, identity: None });
        assert_eq!(decision.allow, inside, "{item} and {source}");
    }
}

fn mask(prefix: u32) -> u128 {
    if prefix == 0 { 0 } else { u128::MAX << (128 - prefix) }
}

/// Its bits and prefix among IPv6 addresses, IPv4 mapped, and whether it is IPv4.
fn block(item: &str) -> Option<(u128, u32, bool)> {
    let (address, length) = match item.split_once('/') {
        Some((address, length)) => (address, Some(length)),
        None => (item, None),
    };
    let address: IpAddr = address.parse().ok()?;
    let full = if address.is_ipv4() { 32 } else { 128 };
    let length = match length {
        None => full,
        Some(text) => {
            let plain = text == "0"
                || text.as_bytes()[..text.len().min(1)].iter().all(|b| (b'1'..=b'9').contains(b));
            text.parse::<u32>().ok().filter(|n| plain && *n <= full)?
        }
    };
    let (bits, prefix) = match address {
        IpAddr::V4(v4) => (v4.to_ipv6_mapped().to_bits(), length + 96),
        IpAddr::V6(v6) => (v6.to_bits(), length),
    };
    let v4 = Ipv6Addr::from_bits(bits).to_ipv4_mapped().is_some();
    // A mapped block under /96 would be of both families.
    (bits & !mask(prefix) == 0 && (!v4 || prefix >= 96)).then_some((bits, prefix, v4))
}
