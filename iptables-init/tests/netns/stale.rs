//! What an earlier run left, and what cannot be looked at.

use tempfile::TempDir;

use crate::namespace::{BINARY, Namespace, failing, program};
use crate::{BACKENDS, canonical, has_ours, without_built_in};

const WITHOUT_RAW: &str = "exec setpriv --bounding-set=-net_raw --inh-caps=-net_raw";

#[test]
fn a_cleanup_that_cannot_look_says_so() {
    let pod = Namespace::new();
    pod.init(&["--backend=legacy"]).exits(0);
    pod.shell(&format!("{WITHOUT_RAW} {BINARY} --cleanup")).exits(3).says("NET_RAW is missing");
    assert_eq!(without_built_in(pod.tables("legacy")), canonical());
    assert!(pod.has_source(), "the rules that are still there want it");

    let pod = Namespace::new();
    pod.init(&[]).exits(0);
    let broken = failing("iptables-nft-save");
    let done = pod.init_with(broken.path(), &["--cleanup"]).exits(4).says("made to fail");
    assert!(!done.stderr.contains("nothing of this program"), "{}", done.stderr);
    // What it can look at, it has cleaned.
    let [v4, v6] = without_built_in(pod.tables("nft"));
    assert_eq!(v4, canonical()[0]);
    assert!(v6.iter().all(|line| !line.contains("PILLION")), "{v6:?}");
    pod.init(&["--cleanup"]).exits(0);
    assert!(!has_ours(&pod.tables("nft")) && !pod.has_source());
}

#[test]
fn a_cleanup_knows_a_kernel_without_nf_tables() {
    let pod = Namespace::new();
    pod.init(&["--backend=legacy"]).exits(0);
    let programs = TempDir::new().unwrap();
    for name in ["iptables-nft-save", "ip6tables-nft-save"] {
        let words = "Could not fetch rule set generation id: Invalid argument";
        program(programs.path(), name, &format!("echo '{words}' >&2; exit 1"));
    }
    pod.init_with(programs.path(), &["--cleanup"]).exits(0).says("IPv6: rules removed (legacy)");
    assert!(!has_ours(&pod.tables("legacy")));
}

#[test]
fn a_cleanup_with_legacy_alone_claims_nothing_about_nft() {
    let pod = Namespace::new();
    let script = format!(
        "mount -t tmpfs tmpfs /mnt && cp -a /usr/sbin/*-legacy* /mnt/ \
         && mount --bind /mnt /usr/sbin && PATH= exec {BINARY} --cleanup"
    );
    pod.shell(&script)
        .exits(0)
        .says("WARNING: IPv4 rules in nft not looked for")
        .says("nothing of this program is here in legacy");
}

#[test]
fn a_run_that_cannot_look_for_stale_rules_warns() {
    let pod = Namespace::new();
    pod.init(&["--backend=legacy"]).exits(0);
    pod.shell(&format!("{WITHOUT_RAW} {BINARY} --backend=nft"))
        .exits(0)
        .says("WARNING: IPv4 rules of an earlier run in legacy, if there are any, stay in force")
        .says("NET_RAW is missing");
    let broken = failing("iptables-nft-save");
    pod.init_with(broken.path(), &["--backend=legacy"]).exits(0).says("WARNING: IPv4 rules");
}

#[test]
fn stale_rules_that_stay_are_no_rollback() {
    let pod = Namespace::new();
    pod.init(&["--backend=legacy"]).exits(0);
    let broken = failing("iptables-legacy-restore");
    pod.init_with(broken.path(), &["--backend=nft"])
        .exits(6)
        .says("the new rules are in force, but IPv4 rules of an earlier run in legacy");
    assert_eq!(without_built_in(pod.tables("nft")), canonical());
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
            let table = format!("{program}-{backend} -t nat");
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
