//! Both families or neither, and IPv6 never past the proxy in silence.

use std::fs;
use std::os::unix::fs::PermissionsExt;

use tempfile::TempDir;

use crate::namespace::Namespace;
use crate::{BACKENDS, canonical, has_ours, without_built_in};

/// A directory with a program that does nothing but fail.
fn failing(program: &str) -> TempDir {
    let directory = TempDir::new().unwrap();
    let path = directory.path().join(program);
    fs::write(&path, "#!/bin/sh\ncat > /dev/null\necho 'made to fail' >&2\nexit 1\n").unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    directory
}

#[test]
fn a_failing_second_family_leaves_nothing_of_the_first() {
    for backend in BACKENDS {
        let pod = Namespace::with_uplink();
        let broken = failing(&format!("ip6tables-{backend}-restore"));
        pod.init_with(broken.path(), &["--backend", backend]).exits(6).says("made to fail");
        assert!(!has_ours(&pod.tables(backend)), "{backend}");
        assert!(!pod.has_source());
    }
}

#[test]
fn a_failing_second_family_puts_the_first_back_to_what_it_was() {
    for backend in BACKENDS {
        let pod = Namespace::with_uplink();
        pod.init(&["--backend", backend, "--outbound-ports=80"]).exits(0);
        // Someone else's rules, before ours and after.
        let program = format!("iptables-{backend} -t nat");
        let others = format!(
            "{program} -I OUTPUT -p tcp --dport 7 -j RETURN \
             && {program} -A OUTPUT -p tcp --dport 9 -j RETURN"
        );
        pod.shell(&others).exits(0);
        let before = pod.tables(backend);
        let broken = failing(&format!("ip6tables-{backend}-restore"));
        pod.init_with(broken.path(), &["--backend", backend]).exits(6);
        assert_eq!(pod.tables(backend), before, "{backend}");
        assert!(pod.has_source(), "it was there before");
    }
}

const IPV6_OFF: &str = "sysctl -qw net.ipv6.conf.all.disable_ipv6=1";

#[test]
fn ipv6_off_is_a_skip_that_is_said() {
    for backend in BACKENDS {
        let pod = Namespace::with_uplink();
        pod.shell(IPV6_OFF).exits(0);
        pod.init(&["--backend", backend]).exits(0).says("IPv6: off in this namespace");
        let [v4, v6] = without_built_in(pod.tables(backend));
        assert_eq!(v4, canonical()[0]);
        assert!(v6.iter().all(|line| !line.contains("PILLION")), "{v6:?}");
        pod.init(&["--ipv6=on"]).exits(6).says("IPv6 is off in this namespace");
        pod.init(&["--cleanup"]).exits(0);
        assert!(!has_ours(&pod.tables(backend)), "{backend}");
    }
}

#[test]
fn an_address_without_rules_is_a_failure_and_nothing_is_installed() {
    let pod = Namespace::with_uplink();
    pod.shell("sysctl -qw net.ipv6.conf.lo.disable_ipv6=1").exits(0);
    pod.init(&[]).exits(6).says("fd99::2 on up0 is reachable");
    assert!(!has_ours(&pod.tables("nft")));

    let pod = Namespace::with_uplink();
    let broken = failing("ip6tables-nft-save");
    pod.init_with(broken.path(), &[]).exits(6).says("fd99::2 on up0 is reachable");
    assert!(!has_ours(&pod.tables("nft")));

    // Without an address to reach, there is nothing to bypass.
    let closed = Namespace::new();
    closed.init_with(broken.path(), &[]).exits(0).says("no address of it is reachable");
    closed.init_with(broken.path(), &["--ipv6=on"]).exits(6).says("made to fail");
}

#[test]
fn ipv6_left_alone_is_said_loudly() {
    let pod = Namespace::with_uplink();
    pod.init(&["--ipv6=off"]).exits(0).says("IPv6 BYPASSES the proxy");
    let [v4, v6] = without_built_in(pod.tables("nft"));
    assert_eq!(v4, canonical()[0]);
    assert!(v6.iter().all(|line| !line.contains("PILLION")), "{v6:?}");
    assert!(!pod.has_source());
}
