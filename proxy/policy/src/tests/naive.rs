//! A second reading of the rules, as plain loops over what was written, compared with the
//! compiled policy over many random files and connections.

use std::fmt::Write;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;
use pillion_certs::spiffe::SpiffeId;

use super::*;
use crate::{HostTable, InboundConn, OutboundDecision};

/// xorshift64*: reproducible from the seed that a failure prints.
struct Random(u64);

impl Random {
    fn below(&mut self, n: u64) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 33) % n
    }

    fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[usize::try_from(self.below(from.len() as u64)).unwrap()]
    }

    /// From a small space, so that ranges meet.
    fn address(&mut self) -> IpAddr {
        let low = self.below(64);
        if self.below(3) == 0 {
            IpAddr::V6(Ipv6Addr::from((0xfd00_u128 << 112) | u128::from(low)))
        } else {
            IpAddr::V4(Ipv4Addr::from(0x0a00_0000 | u32::try_from(low).unwrap()))
        }
    }

    fn net(&mut self) -> IpNet {
        let address = self.address();
        let full = if address.is_ipv4() { 32 } else { 128 };
        let wide = u8::try_from(self.below(8)).unwrap();
        IpNet::new(address, full - wide).unwrap().trunc()
    }
}

struct Block(IpNet, Vec<IpNet>);

struct Entry {
    blocks: Option<Vec<Block>>,
    identities: Option<Vec<String>>,
}

struct Rule {
    deny: bool,
    audit: bool,
    ports: Option<Vec<u16>>,
    from: Vec<Entry>,
}

const PORTS: [u16; 3] = [80, 81, 82];
const SEGMENTS: [&str; 3] = ["a", "b", "c"];

fn block(random: &mut Random) -> Block {
    let net = random.net();
    let inner = (0..random.below(3)).map(|_| random.net()).filter(|i| net.contains(i));
    Block(net, inner.collect())
}

fn pattern(random: &mut Random) -> String {
    let mut out = format!("spiffe://{OWN}");
    for _ in 0..=random.below(2) {
        let segment = random.pick(&["a", "b", "c", "*"]);
        write!(out, "/{segment}").unwrap();
    }
    if random.below(4) == 0 {
        out.push_str("/**");
    }
    out
}

fn some<T>(random: &mut Random, mut one: impl FnMut(&mut Random) -> T) -> Vec<T> {
    (0..=random.below(3)).map(|_| one(random)).collect()
}

fn entry(random: &mut Random) -> Entry {
    let shape = random.below(8);
    Entry {
        blocks: (shape.is_multiple_of(2) || shape == 1).then(|| some(random, block)),
        identities: (shape < 5).then(|| some(random, pattern)),
    }
}

fn rule(random: &mut Random) -> Rule {
    Rule {
        deny: random.below(3) == 0,
        audit: random.below(4) == 0,
        ports: (random.below(2) == 0).then(|| some(random, |r| r.pick(&PORTS))),
        from: some(random, entry),
    }
}

fn write_blocks(blocks: &[Block]) -> String {
    let one = |Block(net, except): &Block| {
        let except: Vec<_> = except.iter().map(|e| format!("\"{e}\"")).collect();
        format!("{{cidr: \"{net}\", except: [{}]}}", except.join(", "))
    };
    format!("[{}]", blocks.iter().map(one).collect::<Vec<_>>().join(", "))
}

fn write_rule(number: usize, rule: &Rule) -> String {
    let entry = |entry: &Entry| {
        let mut parts = Vec::new();
        parts.extend(entry.blocks.as_ref().map(|b| format!("ipBlocks: {}", write_blocks(b))));
        parts.extend(entry.identities.as_ref().map(|ids| format!("identities: {ids:?}")));
        let any = parts.is_empty().then(|| "any: true".to_owned());
        parts.extend(any);
        format!("{{{}}}", parts.join(", "))
    };
    let ports = rule.ports.as_ref().map(|p| format!("ports: {p:?}, ")).unwrap_or_default();
    format!(
        "{{name: r{number}, action: {}, mode: {}, {ports}from: [{}]}}",
        if rule.deny { "deny" } else { "allow" },
        if rule.audit { "audit" } else { "enforce" },
        rule.from.iter().map(entry).collect::<Vec<_>>().join(", ")
    )
}

fn in_blocks(blocks: &[Block], ip: IpAddr) -> bool {
    blocks.iter().any(|Block(net, except)| {
        net.contains(&ip) && !except.iter().any(|inner| inner.contains(&ip))
    })
}

fn is_meant(pattern: &str, id: &str) -> bool {
    let (pattern, id): (Vec<_>, Vec<_>) = (pattern.split('/').collect(), id.split('/').collect());
    let (head, deep) = match pattern.split_last() {
        Some((&"**", head)) => (head, true),
        _ => (&pattern[..], false),
    };
    let long = if deep { id.len() > head.len() } else { id.len() == head.len() };
    long && head.iter().zip(&id).all(|(p, s)| *p == "*" || p == s)
}

fn matches(rule: &Rule, ip: IpAddr, port: u16, id: Option<&str>) -> bool {
    rule.ports.as_ref().is_none_or(|ports| ports.contains(&port))
        && rule.from.iter().any(|entry| {
            entry.blocks.as_ref().is_none_or(|blocks| in_blocks(blocks, ip))
                && entry
                    .identities
                    .as_ref()
                    .is_none_or(|list| id.is_some_and(|id| list.iter().any(|p| is_meant(p, id))))
        })
}

fn judge(
    rules: &[Rule],
    audit: bool,
    default: bool,
    hit: &dyn Fn(&Rule) -> bool,
) -> (bool, String) {
    for deny in [true, false] {
        for (number, rule) in rules.iter().enumerate() {
            if rule.deny == deny && (audit || !rule.audit) && hit(rule) {
                return (!deny, format!("r{number}"));
            }
        }
    }
    (default, "default".to_owned())
}

#[test]
fn inbound_verdicts_agree() {
    let (mut files, mut asked) = (0_u32, 0_u32);
    for seed in 1..=3000_u64 {
        let mut random = Random(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15));
        let rules: Vec<_> = (0..=random.below(10)).map(|_| rule(&mut random)).collect();
        let file_audit = random.below(5) == 0;
        let default = random.below(4) == 0;
        let written: Vec<_> = rules.iter().enumerate().map(|(n, r)| write_rule(n, r)).collect();
        let text = file(
            if file_audit { "enforcement: audit" } else { "" },
            &format!(
                "mtls: strict, defaultAction: {}, rules: [{}]",
                if default { "allow" } else { "deny" },
                written.join(", ")
            ),
            PASS,
        );
        // A random file may hold a rule that decides nothing; the check of that is below.
        let mut sink = crate::diagnostic::Sink::new("t", &text);
        let mut model = crate::parse::file(&text, Some(&own()), &mut sink).expect(&text);
        sink.finish().unwrap_or_else(|e| panic!("seed {seed}: {e}"));
        let policy = crate::compile::compile(&mut model, &text, Some(&own()));
        let dead: Vec<_> = match load("t", &text, Some(&own())) {
            Ok(_) => Vec::new(),
            Err(all) => all
                .as_slice()
                .iter()
                .map(|d| {
                    assert_eq!(d.kind, Kind::UnreachableRule, "seed {seed}: {d}");
                    d.message.split('"').nth(1).unwrap().to_owned()
                })
                .collect(),
        };
        files += 1;
        for _ in 0..40 {
            let (ip, port) = (random.address(), random.pick(&PORTS));
            let depth = random.below(4);
            let id = (depth > 0).then(|| {
                let path: String =
                    (0..depth).map(|_| format!("/{}", random.pick(&SEGMENTS))).collect();
                format!("spiffe://{OWN}{path}")
            });
            let hit = |rule: &Rule| matches(rule, ip, port, id.as_deref());
            let (mut allow, mut name) = judge(&rules, false, default, &hit);
            let (would, by) = judge(&rules, true, default, &hit);
            let mut shadow = (would != allow).then(|| (would, by.clone()));
            if file_audit && !allow {
                shadow = Some((false, name));
                (allow, name) = (true, "audit".to_owned());
            }
            let spiffe: Option<SpiffeId> = id.as_deref().map(|id| id.parse().unwrap());
            let conn = InboundConn { source: ip, port, identity: spiffe.as_ref() };
            let got = policy.inbound(&conn);
            let place = format!("seed {seed}: {ip} {port} {id:?}\n{text}");
            assert_eq!((got.allow, &*got.rule), (allow, &*name), "{place}");
            let reported = got.shadow.map(|s| (s.allow, s.rule.to_string()));
            assert_eq!(reported, shadow, "{place}");
            assert!(!dead.contains(&name) && !dead.contains(&by), "dead {dead:?} decides: {place}");
            let early = policy.inbound_by_address(ip, port);
            assert!(
                early.as_ref().is_none_or(|early| !early.allow && !allow && would == allow),
                "{place}"
            );
            let told = policy.explain_inbound(&conn);
            // The proxy asks by address first, and names what that names.
            let name = early.map_or(name, |early| early.rule.to_string());
            if &*told.rule != "tls" {
                assert_eq!((told.verdict == "allow", &*told.rule), (allow, &*name), "{place}");
                for (line, rule) in told.lines.iter().zip(&rules) {
                    assert_eq!(!line.why.starts_with("no:"), hit(rule), "{line:?} {place}");
                }
            }
            asked += 1;
        }
    }
    assert_eq!((files, asked), (3000, 120_000));
}

struct Table(Vec<(String, IpAddr)>);

impl HostTable for Table {
    fn contains(&self, host: &str, ip: IpAddr) -> bool {
        self.0.iter().any(|(name, at)| name == host && *at == ip)
    }
}

#[test]
fn outbound_verdicts_agree() {
    for seed in 1..=1500_u64 {
        let mut random = Random(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15));
        let list: Vec<_> = (0..=random.below(5))
            .map(|_| {
                let blocks = some(&mut random, block);
                let hosts =
                    (0..random.below(3)).map(|_| random.pick(&["x", "y"])).collect::<Vec<_>>();
                let ports = (random.below(2) == 0).then(|| some(&mut random, |r| r.pick(&PORTS)));
                (usize::try_from(random.below(3)).unwrap(), blocks, hosts, ports)
            })
            .collect();
        let mut out = String::from("defaultAction: deny, destinations: [");
        for (n, (action, blocks, hosts, ports)) in list.iter().enumerate() {
            write!(out, "{{name: d{n}, ipBlocks: {}, ", write_blocks(blocks)).unwrap();
            if !hosts.is_empty() {
                write!(out, "hosts: {hosts:?}, ").unwrap();
            }
            if let Some(ports) = ports {
                write!(out, "ports: {ports:?}, ").unwrap();
            }
            let actions = ["deny", "mtls, serverIdentities: [a/b]", "passthrough"];
            write!(out, "action: {}}}, ", actions[*action]).unwrap();
        }
        let text = file("", STRICT, &(out + "]"));
        let mut sink = crate::diagnostic::Sink::new("t", &text);
        let mut model = crate::parse::file(&text, Some(&own()), &mut sink).expect(&text);
        let policy = crate::compile::compile(&mut model, &text, Some(&own()));
        let dead = load("t", &text, Some(&own())).err().map(|e| e.to_string()).unwrap_or_default();
        for _ in 0..40 {
            let (ip, port) = (random.address(), random.pick(&PORTS));
            let table = Table(vec![
                ("x".to_owned(), random.address()),
                ("y".to_owned(), if random.below(2) == 0 { ip } else { random.address() }),
            ]);
            let hit =
                |(_, blocks, hosts, ports): &&(usize, Vec<Block>, Vec<&str>, Option<Vec<u16>>)| {
                    ports.as_ref().is_none_or(|p| p.contains(&port))
                        && (in_blocks(blocks, ip) || hosts.iter().any(|h| table.contains(h, ip)))
                };
            // Stable: of equals, the first of the file.
            let best = list.iter().enumerate().filter(|(_, d)| hit(d)).min_by_key(|(_, d)| d.0);
            let want = best.map_or((0, "default".to_owned()), |(n, d)| (d.0, format!("d{n}")));
            let got = match policy.outbound(ip, port, &table) {
                OutboundDecision::Deny { rule } => (0, rule),
                OutboundDecision::Mtls { rule, .. } => (1, rule),
                OutboundDecision::Passthrough { rule, .. } => (2, rule),
            };
            let place = format!("seed {seed}: {ip} {port} {:?}\n{text}", table.0);
            assert_eq!((got.0, &*got.1), (want.0, &*want.1), "{place}");
            assert!(
                !dead.contains(&format!("error: \"{}\"", want.1)),
                "dead decides: {dead}{place}"
            );
        }
    }
}
