//! What a verdict costs, for 10 CIDRs and for 100,000: the second may cost twice the first. Also
//! how long a policy of 100,000 CIDRs, or of 100,000 rules, takes to load.

use std::fmt::Write;
use std::hint::black_box;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};
use pillion_policy::{InboundConn, Policy, load};

/// xorshift64*, from a fixed seed: each run asks the same.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_F491_4F6C_DD1D)
    }

    fn below(&mut self, n: u32) -> u32 {
        u32::try_from(self.next() >> 32).unwrap_or(0) % n
    }

    fn pick(&mut self, from: &[u32]) -> u32 {
        let at = self.below(u32::try_from(from.len()).unwrap_or(1));
        from.get(at as usize).copied().unwrap_or(32)
    }

    fn v4(&mut self) -> Ipv4Addr {
        Ipv4Addr::from(u32::try_from(self.next() >> 32).unwrap_or(0))
    }

    /// In 2001:db8::/32.
    fn v6(&mut self) -> Ipv6Addr {
        let low = (u128::from(self.next()) << 64) | u128::from(self.next());
        Ipv6Addr::from((0x2001_0db8_u128 << 96) | (low >> 32))
    }
}

/// Prefixes from /12 to /32, or from /40 to /128: they nest here and there.
fn cidrs(count: u32, v6: bool) -> Vec<String> {
    let mut random = Random(0x9E37_79B9_7F4A_7C15);
    let mut one = || {
        if v6 {
            let length = random.pick(&[40, 48, 56, 64, 96, 128]);
            let address = u128::from(random.v6()) >> (128 - length) << (128 - length);
            format!("{}/{length}", Ipv6Addr::from(address))
        } else {
            let length = random.pick(&[12, 16, 20, 22, 24, 24, 28, 32]);
            let address = u32::from(random.v4()) >> (32 - length) << (32 - length);
            format!("{}/{length}", Ipv4Addr::from(address))
        }
    };
    (0..count).map(|_| one()).collect()
}

fn head(rules: &str) -> String {
    format!(
        "apiVersion: pillion/v1alpha1\nkind: SidecarPolicy\nmetadata: {{name: bench}}\ninbound:\n  \
         mtls: strict\n  defaultAction: deny\n  rules:\n{rules}outbound: {{defaultAction: deny}}\n"
    )
}

fn one_rule(cidrs: &[String]) -> String {
    let mut text = "  - name: a\n    action: allow\n    from:\n    - ipBlocks:\n".to_owned();
    for cidr in cidrs {
        let _ = writeln!(text, "      - \"{cidr}\"");
    }
    head(&text)
}

fn rules(count: u32) -> String {
    let mut text = String::new();
    for n in 0..count {
        let from = format!("from: [{{identities: [shop/s{n}]}}]");
        let _ = writeln!(text, "  - {{name: r{n}, action: allow, {from}}}");
    }
    head(&text)
}

fn compiled(text: &str) -> Policy {
    let own = "cluster.local".parse().ok();
    match load("bench", text, own.as_ref()) {
        Ok(compiled) => compiled.policy,
        Err(errors) => {
            eprintln!("{errors}");
            std::process::exit(1)
        }
    }
}

/// Half inside some CIDR of `list`, half anywhere.
fn addresses(list: &[String], v6: bool) -> Vec<IpAddr> {
    let mut random = Random(7);
    let mut out = Vec::new();
    let inside: Vec<IpAddr> =
        list.iter().filter_map(|cidr| cidr.split('/').next()?.parse().ok()).collect();
    for _ in 0..32_768 {
        let at = random.below(u32::try_from(inside.len()).unwrap_or(1)) as usize;
        out.extend(inside.get(at).copied());
        out.push(if v6 { random.v6().into() } else { random.v4().into() });
    }
    out
}

/// The most that loading 100,000 CIDRs may take, in MiB of resident memory at its peak, this
/// harness included.
const MOST_MEMORY: u64 = 64;

/// Comes first: the kernel's high-water mark (VmHWM, proc(5)) never goes down.
fn memory(_: &mut Criterion) {
    let policy = compiled(&one_rule(&cidrs(100_000, false)));
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let kib = peak.and_then(|text| text.trim().strip_suffix(" kB")?.parse::<u64>().ok());
    let mib = kib.map_or(u64::MAX, |kib| kib / 1024);
    println!("100,000 CIDRs loaded: {mib} MiB resident at the peak ({MOST_MEMORY} may be)");
    drop(policy);
    if mib > MOST_MEMORY {
        std::process::exit(1);
    }
}

fn verdicts(c: &mut Criterion) {
    for (family, v6) in [("v4", false), ("v6", true)] {
        let mut group = c.benchmark_group(format!("verdict/{family}"));
        for count in [10, 1_000, 100_000] {
            let list = cidrs(count, v6);
            let policy = compiled(&one_rule(&list));
            let asked = addresses(&list, v6);
            let mut at = asked.iter().cycle();
            group.bench_function(BenchmarkId::from_parameter(count), |b| {
                b.iter(|| {
                    let source = at.next().copied().unwrap_or(IpAddr::V4(Ipv4Addr::LOCALHOST));
                    policy.inbound(black_box(&InboundConn { source, port: 8080, identity: None }))
                });
            });
        }
        group.finish();
    }
}

fn identities(c: &mut Criterion) {
    let mut group = c.benchmark_group("verdict/rules");
    for count in [10, 100_000] {
        let policy = compiled(&rules(count));
        let id = "spiffe://cluster.local/ns/shop/sa/s7".parse().ok();
        group.bench_function(BenchmarkId::from_parameter(count), |b| {
            let source = IpAddr::V4(Ipv4Addr::LOCALHOST);
            let conn = InboundConn { source, port: 8080, identity: id.as_ref() };
            b.iter(|| policy.inbound(black_box(&conn)));
        });
    }
    group.finish();
}

fn loading(c: &mut Criterion) {
    let mut group = c.benchmark_group("load");
    group.sample_size(10);
    for (name, text) in [
        ("100000-cidrs-v4", one_rule(&cidrs(100_000, false))),
        ("100000-cidrs-v6", one_rule(&cidrs(100_000, true))),
        ("100000-rules", rules(100_000)),
    ] {
        group.bench_function(name, |b| b.iter(|| compiled(black_box(&text))));
    }
    group.finish();
}

criterion_group!(benches, memory, verdicts, identities, loading);
criterion_main!(benches);
