//! The real program, the real kernel, in namespaces of their own; every backend, both families.
//! Needs root.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::tests_outside_test_module,
    reason = "a test fails by panicking"
)]

mod codes;
mod foreign;
mod live;
mod namespace;
mod netlink;
mod packets;
mod rollback;
mod stale;

use namespace::Namespace;

const BACKENDS: [&str; 3] = ["netlink", "nft", "legacy"];
/// Those that run the programs of iptables.
const WITH_PROGRAMS: [&str; 2] = ["nft", "legacy"];
const BUILT_IN: [&str; 5] = [":PREROUTING ", ":INPUT ", ":FORWARD ", ":OUTPUT ", ":POSTROUTING "];

/// The canonical tables, with the kernel's own chains left out.
fn canonical() -> [Vec<String>; 2] {
    [include_str!("../../canonical/v4.rules"), include_str!("../../canonical/v6.rules")]
        .map(|text| text.lines().map(str::to_owned).collect())
}

fn without_built_in(tables: [Vec<String>; 2]) -> [Vec<String>; 2] {
    tables.map(|table| {
        table.into_iter().filter(|line| !BUILT_IN.iter().any(|it| line.starts_with(it))).collect()
    })
}

/// The word in the names of the programs that show and change what a backend writes.
fn tables_of(backend: &str) -> &str {
    if backend == "netlink" { "nft" } else { backend }
}

fn has_ours(tables: &[Vec<String>; 2]) -> bool {
    tables.iter().flatten().any(|line| line.contains("PILLION"))
}

#[test]
fn the_kernel_reads_back_the_canonical_rules_line_for_line() {
    for backend in BACKENDS {
        let pod = Namespace::new();
        pod.init(&["--backend", backend]).exits(0);
        assert_eq!(without_built_in(pod.tables(backend)), canonical(), "{backend}");
        assert_eq!(pod.has_legacy_table(), backend == "legacy");
        assert!(pod.has_source());
    }
}

#[test]
fn a_second_run_changes_nothing() {
    for backend in BACKENDS {
        let pod = Namespace::new();
        pod.init(&["--backend", backend]).exits(0);
        let first = pod.tables(backend);
        for _ in 0..3 {
            pod.init(&["--backend", backend]).exits(0).says("::6/128 already on lo");
            assert_eq!(pod.tables(backend), first, "{backend}");
        }
    }
}

#[test]
fn every_flag_is_taken_by_every_backend() {
    let flags = [
        "--inbound-ports=1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,100-200",
        "--inbound-exclude-ports=22",
        "--inbound-exclude-cidrs=10.9.0.0/16,2001:db8:9::/48,::1.2.3.4",
        "--outbound-ports=80,443,8000-9000",
        "--outbound-exclude-ports=25",
        "--outbound-cidrs=10.0.0.0/8,fd00::/8,0.0.0.0/0,::/0",
        "--outbound-exclude-cidrs=169.254.169.254,fd00:ec2::254",
        "--exclude-interfaces=net1,tap+",
        "--proxy-uid=2000",
        "--proxy-gid=3000",
    ];
    for backend in BACKENDS {
        let pod = Namespace::new();
        // That it reads back as it was written is what the program itself checks.
        pod.init(&[&flags[..], &["--backend", backend]].concat()).exits(0);
        pod.init(&["--backend", backend]).exits(0);
        assert_eq!(without_built_in(pod.tables(backend)), canonical(), "{backend}");
    }
}

#[test]
fn the_proof_dials_through_the_rules() {
    for backend in BACKENDS {
        let pod = Namespace::with_uplink();
        pod.init(&["--backend", backend])
            .exits(0)
            .says("IPv4: proved, 192.0.2.1:1404 comes to 127.0.0.1:15001")
            .says("IPv6: proved, [2001:db8::1]:1404 comes to [::1]:15001");
        // The proof leaves nothing behind that would keep the proxy from its port.
        drop(pod.listen("127.0.0.1:15001"));
    }
}

#[test]
fn the_proof_says_why_it_does_not_dial() {
    Namespace::new().init(&[]).exits(0).says("there is no route to 192.0.2.1");

    let pod = Namespace::with_uplink();
    pod.init(&["--outbound-ports=80"]).exits(0).says("the outbound limits leave 192.0.2.1:1404");
    pod.init(&["--exclude-interfaces=up+"]).exits(0).says("leaves on up0, which is excluded");
    let _proxy = pod.listen("127.0.0.1:15001");
    pod.init(&[]).exits(0).says("IPv4: not dialled, the proxy is already on 127.0.0.1:15001");
}

#[test]
fn cleanup_removes_all_and_nothing_else() {
    for backend in BACKENDS {
        let pod = Namespace::new();
        let tables = tables_of(backend);
        let foreign = format!(
            "iptables-{tables} -t nat -A OUTPUT -p udp --dport 9 -j RETURN \
             && ip6tables-{tables} -t nat -A PREROUTING -p udp --dport 9 -j RETURN"
        );
        pod.shell(&foreign).exits(0);
        let before = pod.tables(backend);
        pod.init(&["--backend", backend]).exits(0);
        assert!(pod.has_source());
        pod.init(&["--cleanup"]).exits(0);
        assert_eq!(pod.tables(backend), before, "{backend}");
        assert!(!pod.has_source());
        pod.init(&["--cleanup"]).exits(0).says("nothing of this program is here");
    }
}

#[test]
fn a_change_of_backend_leaves_no_stale_rules() {
    let pod = Namespace::new();
    for old in BACKENDS {
        for new in BACKENDS {
            pod.init(&["--backend", old]).exits(0);
            pod.init(&["--backend", new]).exits(0);
            if tables_of(old) != tables_of(new) {
                assert!(!has_ours(&pod.tables(old)), "{old}, {new}");
            }
            assert_eq!(without_built_in(pod.tables(new)), canonical(), "{old}, {new}");
        }
    }
}

#[test]
fn auto_is_netlink_and_legacy_only_where_that_is_in_use() {
    let pod = Namespace::new();
    pod.init(&[]).exits(0).says("(netlink)");
    assert!(!pod.has_legacy_table(), "looking made a legacy table");

    let plugin = Namespace::new();
    plugin.shell("iptables-legacy -t nat -A OUTPUT -p udp --dport 9 -j RETURN").exits(0);
    plugin.init(&[]).exits(0).says("backend: legacy, whose nat table is in use here");
    // Emptied again, the table alone is no reason.
    plugin.init(&["--cleanup"]).exits(0);
    plugin.shell("iptables-legacy -t nat -F OUTPUT").exits(0);
    plugin.init(&[]).exits(0).says("(netlink)");
}

#[test]
fn a_read_only_run_is_enough_for_legacy() {
    let pod = Namespace::new();
    let script =
        format!("mount -t tmpfs -o ro tmpfs /run && exec {} --backend=legacy", namespace::BINARY);
    pod.shell(&script).exits(0);
}

#[test]
fn a_dry_run_needs_nothing_and_changes_nothing() {
    let pod = Namespace::new();
    let script =
        format!("PATH= exec setpriv --reuid=1337 --clear-groups {} --dry-run", namespace::BINARY);
    let script = script.replace("setpriv", "/usr/bin/setpriv");
    let printed = pod.shell(&script).exits(0).stdout;
    let rules: Vec<&str> = printed.lines().filter(|line| !line.starts_with('#')).collect();
    assert_eq!(rules, canonical().concat());
    assert!(!has_ours(&pod.tables("nft")) && !pod.has_source());
}
