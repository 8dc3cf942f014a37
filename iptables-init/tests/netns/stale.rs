//! What an earlier run left, and what cannot be looked at.

use crate::namespace::{BINARY, Namespace, failing};
use crate::{BACKENDS, canonical, has_ours, tables_of, without_built_in};

const WITHOUT_RAW: &str = "exec setpriv --bounding-set=-net_raw --inh-caps=-net_raw";

#[test]
fn a_cleanup_that_cannot_look_says_so() {
    let pod = Namespace::new();
    pod.init(&["--backend=legacy"]).exits(0);
    pod.shell(&format!("{WITHOUT_RAW} {BINARY} --cleanup")).exits(3).says("NET_RAW is missing");
    assert_eq!(without_built_in(pod.tables("legacy")), canonical());
    assert!(pod.has_source(), "the rules that are still there want it");

    let broken = failing("iptables-legacy-save");
    let done = pod.init_with(broken.path(), &["--cleanup"]).exits(4).says("made to fail");
    assert!(!done.stderr.contains("nothing of this program"), "{}", done.stderr);
    // What it can look at, it has cleaned.
    let [v4, v6] = without_built_in(pod.tables("legacy"));
    assert_eq!(v4, canonical()[0]);
    assert!(v6.iter().all(|line| !line.contains("PILLION")), "{v6:?}");
    pod.init(&["--cleanup"]).exits(0);
    assert!(!has_ours(&pod.tables("legacy")) && !pod.has_source());
}

/// No iptables program is anywhere.
const BARE: &str = "mount -t tmpfs tmpfs /usr/sbin && [ /sbin -ef /usr/sbin ] && PATH= exec";

#[test]
fn a_cleanup_without_programs_cleans_nft_and_says_what_it_cannot() {
    let pod = Namespace::new();
    pod.init(&["--backend=nft"]).exits(0);
    pod.shell(&format!("{BARE} {BINARY} --cleanup")).exits(0).says("IPv4: rules removed (nft)");
    assert!(!has_ours(&pod.tables("nft")) && !pod.has_source());
    pod.shell(&format!("{BARE} {BINARY} --cleanup")).exits(0).says("nothing of this program");

    pod.init(&["--backend=legacy"]).exits(0);
    let done = pod
        .shell(&format!("{BARE} {BINARY} --cleanup"))
        .exits(4)
        .says("iptables-legacy-save is neither in PATH");
    assert!(!done.stderr.contains("nothing of this program"), "{}", done.stderr);
    assert_eq!(without_built_in(pod.tables("legacy")), canonical());
}

#[test]
fn a_run_that_cannot_look_for_stale_rules_warns() {
    let pod = Namespace::new();
    pod.init(&["--backend=legacy"]).exits(0);
    let warning =
        "WARNING: IPv4 rules of an earlier run in legacy, if there are any, stay in force";
    for backend in ["netlink", "nft", "auto"] {
        pod.shell(&format!("{WITHOUT_RAW} {BINARY} --backend={backend}"))
            .exits(0)
            .says(warning)
            .says("NET_RAW is missing");
    }
    pod.shell(&format!("{BARE} {BINARY}"))
        .exits(0)
        .says(warning)
        .says("iptables-legacy-save is neither in PATH");
}

#[test]
fn stale_rules_that_stay_are_no_rollback() {
    for backend in ["netlink", "nft"] {
        let pod = Namespace::new();
        pod.init(&["--backend=legacy"]).exits(0);
        let broken = failing("iptables-legacy-restore");
        pod.init_with(broken.path(), &["--backend", backend])
            .exits(6)
            .says("the new rules are in force, but IPv4 rules of an earlier run in legacy");
        assert_eq!(without_built_in(pod.tables("nft")), canonical());
    }
}

#[test]
fn ipv6_off_takes_the_ipv6_rules_of_an_earlier_run() {
    for backend in BACKENDS {
        let pod = Namespace::with_uplink();
        pod.init(&["--backend", backend]).exits(0);
        pod.init(&["--backend", backend, "--ipv6=off"])
            .exits(0)
            .says("IPv6: rules of an earlier run removed");
        let [v4, v6] = without_built_in(pod.tables(backend));
        assert_eq!(v4, canonical()[0], "{backend}");
        assert!(v6.iter().all(|line| !line.contains("PILLION")), "{v6:?}");
    }
}

#[test]
fn chains_of_another_version_go() {
    for backend in BACKENDS {
        let pod = Namespace::new();
        let old = |program: &str| {
            let table = format!("{program}-{} -t nat", tables_of(backend));
            format!(
                "{table} -N PILLION_OLD && {table} -N PILLION_OLDER \
                 && {table} -A PILLION_OLD -j PILLION_OLDER \
                 && {table} -A OUTPUT -p tcp -j PILLION_OLD"
            )
        };
        for installed in [false, true] {
            pod.shell(&format!("{} && {}", old("iptables"), old("ip6tables"))).exits(0);
            pod.init(&["--backend", backend]).exits(0);
            assert_eq!(without_built_in(pod.tables(backend)), canonical(), "{installed}");
        }
    }
}
