//! The backend that needs no program, against the programs that write the same tables.

use std::fmt::Write as _;

use pillion_init::backend::BackendError;
use pillion_init::config::Config;
use pillion_init::netlink::{Change, commit};
use pillion_init::rules::{Family, RuleSet};

use crate::namespace::{BINARY, Namespace};
use crate::{canonical, has_ours, without_built_in};

/// NET_ADMIN alone, a read-only root, and no iptables program anywhere.
const BARE: &str = "mount -t tmpfs -o ro tmpfs /usr/sbin && [ /sbin -ef /usr/sbin ] \
                    && mount -t tmpfs -o ro tmpfs /run && mount -o remount,bind,ro / \
                    && ! touch /pillion-is-writable 2> /dev/null && PATH= exec \
                    /usr/bin/setpriv --bounding-set=-all,+net_admin --inh-caps=-all,+net_admin";

#[test]
fn one_capability_and_a_read_only_root_are_enough() {
    let pod = Namespace::with_uplink();
    for _ in 0..2 {
        pod.shell(&format!("{BARE} {BINARY}"))
            .exits(0)
            .says("(netlink)")
            .says("IPv4: proved")
            .says("IPv6: proved");
        assert_eq!(without_built_in(pod.tables("nft")), canonical());
    }
    pod.shell(&format!("{BARE} {BINARY} --cleanup")).exits(0).says("IPv6: rules removed");
    assert!(!has_ours(&pod.tables("nft")) && !pod.has_source());
}

#[test]
fn the_programs_find_check_and_delete_what_netlink_wrote() {
    let pod = Namespace::new();
    pod.init(&["--backend=netlink"]).exits(0);
    for (program, rules) in ["iptables-nft", "ip6tables-nft"].into_iter().zip(canonical()) {
        let mut table = "";
        let mut ours = Vec::new();
        for line in &rules {
            match line.split_at(1) {
                ("*", name) => table = name,
                ("-", _) => ours.push(line.replacen("-A ", "", 1) + " -t " + table),
                _ => {}
            }
        }
        for rule in &ours {
            pod.shell(&format!("{program} -C {rule}")).exits(0);
        }
        pod.shell(&format!("{program} -t nat -I PILLION_OUTPUT 3 -p tcp --dport 9 -j RETURN"))
            .exits(0);
        pod.shell(&format!("{program} -t nat -D PILLION_OUTPUT 3")).exits(0);
        for rule in &ours {
            pod.shell(&format!("{program} -D {rule}")).exits(0);
        }
        for table in ["nat", "filter"] {
            let left = pod.shell(&format!("{program} -t {table} -S")).exits(0).stdout;
            assert!(!left.contains("-A "), "{left}");
        }
    }
    pod.init(&["--backend=netlink"]).exits(0);
    assert_eq!(without_built_in(pod.tables("nft")), canonical());
}

/// Values that any flag may have, from a seed.
struct Dice(fastrand::Rng);

impl Dice {
    fn below(&mut self, end: u32) -> u32 {
        self.0.u32(0..end)
    }

    fn port_range(&mut self) -> String {
        let first = 1 + self.below(60_000);
        match self.below(3) {
            0 => format!("{first}-{}", first + 1 + self.below(5_000)),
            _ => first.to_string(),
        }
    }

    fn net(&mut self) -> String {
        if self.0.bool() {
            let net = ipnet::Ipv4Net::new(self.0.u32(..).into(), self.0.u8(0..=32)).unwrap();
            net.trunc().to_string()
        } else {
            // 2000::/3, where the C library spells no address as an IPv4 one.
            let address = self.0.u128(..) >> 3 | 1 << 125;
            let net = ipnet::Ipv6Net::new(address.into(), self.0.u8(3..=128)).unwrap();
            net.trunc().to_string()
        }
    }

    fn interface(&mut self) -> String {
        let name = ["lo", "eth0", "net1", "a", "br-0123456789ab", "veth.100@x"];
        let name = name[self.0.usize(..name.len())];
        if self.0.bool() && name.len() < 15 { format!("{name}+") } else { name.to_owned() }
    }

    fn list(&mut self, item: fn(&mut Self) -> String) -> String {
        let count = 1 + self.below(20);
        (0..count).map(|_| item(self)).collect::<Vec<_>>().join(",")
    }

    /// Each flag that shapes a rule, or not.
    fn flags(&mut self) -> Vec<String> {
        type Value = fn(&mut Dice) -> String;
        let flags: [(&str, Value); 11] = [
            ("inbound-ports", |dice| dice.list(Self::port_range)),
            ("inbound-exclude-ports", |dice| dice.list(Self::port_range)),
            ("outbound-ports", |dice| dice.list(Self::port_range)),
            ("outbound-exclude-ports", |dice| dice.list(Self::port_range)),
            ("inbound-exclude-cidrs", |dice| dice.list(Self::net)),
            ("outbound-cidrs", |dice| dice.list(Self::net) + ",10.0.0.0/8"),
            ("outbound-exclude-cidrs", |dice| dice.list(Self::net)),
            ("exclude-interfaces", |dice| dice.list(Self::interface)),
            ("proxy-uid", |dice| (1 + dice.below(u32::MAX - 2)).to_string()),
            ("proxy-gid", |dice| (1 + dice.below(u32::MAX - 2)).to_string()),
            ("outbound-port", |dice| (20_000 + dice.below(40_000)).to_string()),
        ];
        let mut chosen = Vec::new();
        for (flag, value) in flags {
            if self.0.bool() {
                chosen.push(format!("--{flag}={}", value(self)));
            }
        }
        chosen
    }
}

#[test]
fn iptables_prints_a_hundred_configurations_as_the_dry_run_does() {
    let seed = fastrand::u64(..);
    println!("seed {seed}");
    let mut dice = Dice(fastrand::Rng::with_seed(seed));
    let pod = Namespace::new();
    for round in 0..100 {
        let flags = dice.flags();
        let flags: Vec<&str> = flags.iter().map(String::as_str).collect();
        let with = |more: &[&'static str]| [&flags[..], more].concat();
        pod.init(&with(&["--backend=netlink"])).exits(0);
        let printed = pod.init(&with(&["--dry-run"])).exits(0).stdout;
        let wanted: Vec<&str> = printed.lines().filter(|line| !line.starts_with('#')).collect();
        let found = without_built_in(pod.tables("nft")).concat();
        assert_eq!(found, wanted, "seed {seed}, {flags:?}");
        // The other way round: netlink reads and takes away what the programs have written.
        if round % 10 == 0 {
            pod.init(&with(&["--backend=nft"])).exits(0);
            pod.init(&with(&["--backend=netlink"])).exits(0);
            assert_eq!(without_built_in(pod.tables("nft")).concat(), wanted, "seed {seed}");
            pod.init(&with(&["--backend=nft"])).exits(0);
            pod.init(&["--cleanup"]).exits(0);
            assert!(!has_ours(&pod.tables("nft")), "seed {seed}");
        }
    }
}

#[test]
fn hundreds_of_ranges_fit_one_transaction() {
    let (mut ports, mut nets) = (String::new(), String::new());
    for number in 0..200 {
        write!(ports, "{}-{},", 100 * number + 1, 100 * number + 50).unwrap();
        write!(nets, "10.{number}.0.0/17,fd00:{number:x}::/33,").unwrap();
    }
    let flags = [
        format!("--outbound-exclude-ports={ports}"),
        format!("--inbound-exclude-ports={ports}"),
        format!("--outbound-exclude-cidrs={nets}"),
        format!("--inbound-exclude-cidrs={nets}"),
        format!("--outbound-cidrs={nets}"),
        "--outbound-ports=40000-50000,50002,50004,50006".to_owned(),
    ];
    let mut flags: Vec<&str> = flags.iter().map(String::as_str).collect();
    let pod = Namespace::new();
    for _ in 0..2 {
        flags.push("--backend=netlink");
        pod.init(&flags).exits(0);
        flags.pop();
        let printed = pod.init(&[&flags[..], &["--dry-run"]].concat()).exits(0).stdout;
        let wanted: Vec<&str> = printed.lines().filter(|line| !line.starts_with('#')).collect();
        assert!(wanted.len() > 1200, "{}", wanted.len());
        assert_eq!(without_built_in(pod.tables("nft")).concat(), wanted);
    }
}

/// A rule that the kernel refuses, deep in the second family.
#[test]
fn a_refused_rule_changes_nothing_in_either_family() {
    for installed in [false, true] {
        let pod = Namespace::new();
        if installed {
            pod.init(&["--backend=nft", "--outbound-ports=80"]).exits(0);
        }
        let before = pod.tables("nft");
        let error = pod.inside(|| {
            let mut config = Config::from_arguments(&[], &[]).unwrap();
            let good = RuleSet::new(&config, Family::V4);
            // No user: the kernel's word for none.
            config.proxy_uid = u32::MAX;
            let bad = RuleSet::new(&config, Family::V6);
            commit(&[Change::Replace(Family::V4, &good), Change::Replace(Family::V6, &bad)])
                .unwrap_err()
        });
        assert!(matches!(error, BackendError::Refused { .. }), "{error}");
        let text = error.to_string();
        for part in ["IPv6 rule `-A PILLION_OUTPUT ! -d ::1/128", "4294967295", "Invalid argument"]
        {
            assert!(text.contains(part), "{part}: {text}");
        }
        assert_eq!(pod.tables("nft"), before, "{installed}");
    }
}

#[test]
fn a_writer_beside_it_neither_disturbs_nor_is_disturbed() {
    let pod = Namespace::new();
    let add = "iptables-nft -t nat -A OUTPUT -p udp --dport 7 -j RETURN";
    let delete = add.replace("-A", "-D");
    std::thread::scope(|scope| {
        // The writer ends when this goes, and so it does when a run fails.
        let going = tempfile::TempDir::new().unwrap();
        let script = format!(
            "runs=0; while [ -d {} ]; do {add} && {delete} || exit 1; runs=$((runs + 1)); done; \
             echo $runs",
            going.path().display()
        );
        let writer = scope.spawn({
            let pod = &pod;
            move || pod.shell(&script)
        });
        for run in 0..30 {
            let flags = if run % 2 == 0 { &["--outbound-exclude-ports=25"][..] } else { &[] };
            pod.init(&[&["--backend=netlink"], flags].concat()).exits(0);
        }
        drop(going);
        let done = writer.join().unwrap().exits(0);
        assert!(done.stdout.trim().parse::<u32>().unwrap() > 0, "{}", done.stdout);
    });
    assert_eq!(without_built_in(pod.tables("nft")), canonical());
}
