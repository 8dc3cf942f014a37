//! Files and connections from small spaces, so that ranges, names and segments meet.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use fastrand::Rng;
use ipnet::IpNet;

use super::OWN;
use super::written::{Block, Destination, Entry, File, Mode, Rule, Way};

/// Rules list some of these; the last is in no file.
pub const PORTS: [u16; 5] = [80, 81, 82, 9090, 7];
/// The domains that files accept.
pub const DOMAINS: [&str; 3] = [OWN, "partner.example", "other.example"];
/// Names that destinations list.
pub const HOSTS: [&str; 3] = ["x", "y.example", "z.example.com"];
/// Paths that probes ask for.
pub const PATHS: [&str; 3] = ["/healthz", "/ready", "/"];

fn pick<T: Copy>(random: &mut Rng, from: &[T]) -> T {
    from[random.usize(..from.len())]
}

fn one_in(random: &mut Rng, n: u32) -> bool {
    random.u32(..n) == 0
}

fn some<T>(random: &mut Rng, most: usize, mut one: impl FnMut(&mut Rng) -> T) -> Vec<T> {
    (0..random.usize(1..=most)).map(|_| one(random)).collect()
}

/// Now and then one of the ends of the address space.
pub fn address(random: &mut Rng) -> IpAddr {
    let low = random.u32(..64);
    match random.u32(..24) {
        0 => pick(
            random,
            &["0.0.0.0", "255.255.255.255", "::", "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff"],
        )
        .parse()
        .unwrap(),
        1..7 => IpAddr::V6(Ipv6Addr::from((0xfd00_u128 << 112) | u128::from(low))),
        _ => IpAddr::V4(Ipv4Addr::from(0x0a00_0000 | low)),
    }
}

fn net(random: &mut Rng) -> IpNet {
    let address = address(random);
    let full = if address.is_ipv4() { 32 } else { 128 };
    let wide = if one_in(random, 20) { full } else { random.u8(..8) };
    IpNet::new(address, full - wide).unwrap().trunc()
}

/// A network in one of the ways to write it: an IPv4 one may be mapped, an address goes without
/// its prefix.
fn cidr(random: &mut Rng, net: IpNet) -> String {
    let whole = net.prefix_len() == net.max_prefix_len();
    match net {
        IpNet::V4(v4) if one_in(random, 5) => {
            format!("::ffff:{}/{}", v4.addr(), 96 + v4.prefix_len())
        }
        IpNet::V4(v4) if whole && one_in(random, 2) => format!("::ffff:{}", v4.addr()),
        _ if whole => net.addr().to_string(),
        _ => net.to_string(),
    }
}

fn block(random: &mut Rng) -> Block {
    let outer = net(random);
    let mut except = Vec::new();
    for _ in 0..random.u32(..3) {
        let inner = net(random);
        if outer.contains(&inner) {
            except.push(cidr(random, inner));
        }
    }
    Block { cidr: cidr(random, outer), except }
}

fn pattern(random: &mut Rng, domains: &[String]) -> String {
    const SEGMENTS: [&str; 4] = ["a", "b", "c", "*"];
    let own = domains.iter().any(|domain| domain == OWN);
    if own && one_in(random, 3) {
        let (ns, sa) = (pick(random, &SEGMENTS), pick(random, &["a", "b", "c", "*", "**"]));
        return format!("{ns}/{sa}");
    }
    let domain = &domains[random.usize(..domains.len())];
    let mut out = format!("spiffe://{domain}");
    if one_in(random, 3) {
        out.push_str(&format!("/ns/{}/sa/{}", pick(random, &SEGMENTS), pick(random, &SEGMENTS)));
        return out;
    }
    let deep = one_in(random, 4);
    for _ in 0..random.u32(u32::from(!deep)..3) {
        out.push('/');
        out.push_str(pick(random, &SEGMENTS));
    }
    if deep {
        out.push_str("/**");
    }
    out
}

/// An identity that some patterns mean; now and then one of a domain that isn't accepted.
pub fn identity(random: &mut Rng) -> Option<String> {
    const SEGMENTS: [&str; 4] = ["a", "b", "c", "d"];
    let domain = if one_in(random, 3) { pick(random, &DOMAINS) } else { OWN };
    match random.u32(..5) {
        0 => None,
        1 | 2 => {
            let (ns, sa) = (pick(random, &SEGMENTS), pick(random, &SEGMENTS));
            let deep = if one_in(random, 5) { "/a" } else { "" };
            Some(format!("spiffe://{domain}/ns/{ns}/sa/{sa}{deep}"))
        }
        _ => {
            let path: String =
                (0..random.u32(1..4)).map(|_| format!("/{}", pick(random, &SEGMENTS))).collect();
            Some(format!("spiffe://{domain}{path}"))
        }
    }
}

fn entry(random: &mut Rng, domains: &[String]) -> Entry {
    let shape = random.u32(..8);
    Entry {
        blocks: (shape.is_multiple_of(2) || shape == 1).then(|| some(random, 4, block)),
        identities: (shape < 5).then(|| some(random, 4, |r| pattern(r, domains))),
    }
}

fn ports(random: &mut Rng) -> Option<Vec<u16>> {
    random.bool().then(|| some(random, 4, |r| pick(r, &PORTS[..4])))
}

fn rule(random: &mut Rng, number: usize, domains: &[String]) -> Rule {
    Rule {
        name: format!("r{number}"),
        deny: one_in(random, 3),
        audit: one_in(random, 4),
        ports: ports(random),
        from: some(random, 4, |r| entry(r, domains)),
    }
}

fn destination(random: &mut Rng, number: usize, domains: &[String]) -> Destination {
    let way = pick(random, &[Way::Deny, Way::Mtls, Way::Passthrough]);
    let hosts: Vec<_> = (0..random.u32(..3)).map(|_| host(random)).collect();
    let by_name = !hosts.is_empty() && random.bool();
    Destination {
        name: format!("d{number}"),
        hosts,
        blocks: if by_name { Vec::new() } else { some(random, 4, block) },
        ports: ports(random),
        way,
        servers: some(random, 3, |r| pattern(r, domains)),
        reuse: random.bool(),
    }
}

fn host(random: &mut Rng) -> String {
    let name = pick(random, &HOSTS);
    // Names have no case.
    if one_in(random, 4) { name.to_uppercase() } else { name.to_owned() }
}

fn mode(random: &mut Rng) -> Mode {
    pick(random, &[Mode::Strict, Mode::Strict, Mode::Permissive, Mode::Disable])
}

/// A file without errors, but for rules that decide nothing.
pub fn file(random: &mut Rng) -> File {
    let domains: Option<Vec<String>> = one_in(random, 3).then(|| {
        let mut list: Vec<_> = DOMAINS.iter().map(|d| (*d).to_owned()).collect();
        random.shuffle(&mut list);
        list.truncate(random.usize(1..=2));
        list
    });
    let accepted = domains.clone().unwrap_or_else(|| vec![OWN.to_owned()]);
    // Every twelfth has so many entries that they are indexed and not asked one by one.
    let most = if one_in(random, 12) { 80 } else { 10 };
    let (rules, destinations) = (random.usize(..=most), random.usize(..=most / 2));
    let mut modes: Vec<_> = PORTS[..4].iter().filter(|_| one_in(random, 4)).copied().collect();
    random.shuffle(&mut modes);
    let mut probes: Vec<_> = PORTS[..4]
        .iter()
        .flat_map(|port| PATHS.iter().map(|path| (*port, (*path).to_owned())))
        .collect();
    random.shuffle(&mut probes);
    probes.truncate(random.usize(..8).saturating_sub(4));
    File {
        one_line: one_in(random, 3),
        audit: one_in(random, 5),
        domains,
        mode: mode(random),
        modes: modes.into_iter().map(|port| (port, mode(random))).collect(),
        loopback: random.bool(),
        probes,
        allow: one_in(random, 4),
        rules: (0..rules).map(|n| rule(random, n, &accepted)).collect(),
        passthrough: random.bool(),
        destinations: (0..destinations).map(|n| destination(random, n, &accepted)).collect(),
    }
}

/// The same file after an edit or two, as a reviewer gets it.
pub fn edited(random: &mut Rng, file: &File) -> File {
    let (mut new, other) = (file.clone(), self::file(random));
    let fresh = |kind: &str, edit: u32| format!("{kind}-new{edit}");
    for edit in 0..random.u32(1..3) {
        let accepted = new.domains.clone().unwrap_or_else(|| vec![OWN.to_owned()]);
        match random.u32(..10) {
            0 => new.audit = !new.audit,
            1 => new.mode = other.mode,
            2 => new.modes.clone_from(&other.modes),
            3 => new.probes.clone_from(&other.probes),
            4 => new.allow = !new.allow,
            5 => new.passthrough = !new.passthrough,
            6 if !new.rules.is_empty() => {
                let at = random.usize(..new.rules.len());
                new.rules[at] = Rule { name: fresh("r", edit), ..rule(random, at, &accepted) };
            }
            7 if !new.rules.is_empty() => {
                let at = random.usize(..new.rules.len());
                new.rules.remove(at);
            }
            8 if !new.destinations.is_empty() => {
                let at = random.usize(..new.destinations.len());
                new.destinations[at] =
                    Destination { name: fresh("d", edit), ..destination(random, at, &accepted) };
            }
            _ if new.destinations.is_empty() => {
                new.destinations.push(destination(random, 0, &accepted))
            }
            _ => drop(new.destinations.pop()),
        }
    }
    new
}

/// Which names have which addresses.
pub fn names(random: &mut Rng, near: IpAddr) -> Vec<(String, IpAddr)> {
    let one = |name: &&str| {
        let at = if one_in(random, 3) { near } else { address(random) };
        ((*name).to_owned(), at)
    };
    HOSTS.iter().map(one).collect()
}
