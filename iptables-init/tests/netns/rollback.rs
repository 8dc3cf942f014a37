//! Both families or neither, and IPv6 never past the proxy in silence.

use crate::namespace::{Namespace, failing, program};
use crate::{BACKENDS, WITH_PROGRAMS, canonical, has_ours, tables_of, without_built_in};

#[test]
fn a_failing_second_family_leaves_nothing_of_the_first() {
    for backend in WITH_PROGRAMS {
        let pod = Namespace::with_uplink();
        let broken = failing(&format!("ip6tables-{backend}-restore"));
        pod.init_with(broken.path(), &["--backend", backend]).exits(6).says("made to fail");
        assert!(!has_ours(&pod.tables(backend)), "{backend}");
        assert!(!pod.has_source());
    }
}

#[test]
fn a_failing_second_family_puts_the_first_back_to_what_it_was() {
    for backend in WITH_PROGRAMS {
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

/// A program can be made to fail.
const NFT: [&str; 1] = ["--backend=nft"];
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
    pod.init_with(broken.path(), &NFT).exits(6).says("fd99::2 on up0 is reachable");
    assert!(!has_ours(&pod.tables("nft")));

    // Nothing can be reached yet, but an interface may come with an address.
    let closed = Namespace::new();
    closed
        .init_with(broken.path(), &NFT)
        .exits(6)
        .says("made to fail")
        .says("net.ipv6.conf.default.disable_ipv6=0");
    assert!(!has_ours(&closed.tables("nft")));
    // Where none can come, there is nothing to bypass.
    closed.shell(IPV6_OFF).exits(0);
    closed.init_with(broken.path(), &NFT).exits(0).says("IPv6: off in this namespace");
    closed.shell("sysctl -qw net.ipv6.conf.lo.disable_ipv6=0").exits(0);
    closed.init_with(broken.path(), &NFT).exits(0).says("IPv6: off in this namespace");
    closed.init_with(broken.path(), &["--backend=nft", "--ipv6=on"]).exits(6).says("made to fail");
}

#[test]
fn an_interface_that_may_get_an_address_is_no_skip() {
    let link = "ip link add up0 type veth peer name up1 && ip link set up1 up \
                && ip link set up0 up && sysctl -qw net.ipv6.conf.default.disable_ipv6=1";
    let pod = Namespace::new();
    pod.shell(link).exits(0);
    let broken = failing("ip6tables-nft-save");
    pod.init_with(broken.path(), &NFT).exits(6).says("IPv6 is on for up").says("made to fail");
    pod.shell("sysctl -qw net.ipv6.conf.lo.disable_ipv6=1").exits(0);
    pod.init(&[]).exits(6).says("IPv6 is on for up").says("it is off for lo");
    assert!(!has_ours(&pod.tables("nft")));
    pod.init(&["--ipv6=off"]).exits(0).says("IPv6 BYPASSES the proxy");
    pod.shell("sysctl -qw net.ipv6.conf.all.disable_ipv6=1").exits(0);
    pod.init(&[]).exits(0).says("IPv6: off in this namespace");
}

#[test]
fn an_address_on_lo_that_peers_may_reach_is_no_skip() {
    let pod = Namespace::new();
    pod.shell(&format!(
        "{IPV6_OFF} && sysctl -qw net.ipv6.conf.lo.disable_ipv6=0 \
         && ip -6 addr add fd97::1/128 dev lo"
    ))
    .exits(0);
    let broken = failing("ip6tables-nft-save");
    pod.init_with(broken.path(), &NFT).exits(6).says("fd97::1 on lo is reachable");
    pod.init(&[]).exits(0);
    assert_eq!(without_built_in(pod.tables("nft")), canonical());
}

#[test]
fn a_limit_to_ipv6_alone_is_refused_where_ipv6_is_not_captured() {
    let pod = Namespace::new();
    pod.shell(IPV6_OFF).exits(0);
    pod.init(&["--outbound-cidrs=fd00::/8"]).exits(2).says("there is no IPv4 range");
    assert!(!has_ours(&pod.tables("nft")));
    pod.init(&["--outbound-cidrs=fd00::/8,10.0.0.0/8"])
        .exits(0)
        .says("a range of IPv6, and IPv6 is not captured here");
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

/// The programs write the tables one after another, so one may be there and the other not.
#[test]
fn a_failing_second_table_puts_the_first_back_to_what_it_was() {
    for backend in WITH_PROGRAMS {
        for before in [&[][..], &["--outbound-ports=80"]] {
            let pod = Namespace::with_uplink();
            if !before.is_empty() {
                pod.init(&[before, &["--backend", backend]].concat()).exits(0);
            }
            let tables = pod.tables(backend);
            // The real one, which is given a target that the kernel has not.
            let name = format!("iptables-{backend}-restore");
            let directory = tempfile::TempDir::new().unwrap();
            let once = directory.path().join("once");
            let script = format!(
                "if [ -e {once} ]; then exec /usr/sbin/{name} \"$@\"; fi; touch {once}; \
                 sed 's/-j REJECT.*/-j NOSUCH/' | /usr/sbin/{name} \"$@\"",
                once = once.display()
            );
            program(directory.path(), &name, &script);
            pod.init_with(directory.path(), &["--backend", backend])
                .exits(6)
                .says("NOSUCH")
                .says("IPv4: what was there before is back");
            assert_eq!(pod.tables(backend), tables, "{backend} {before:?}");
            assert_eq!(pod.has_source(), !before.is_empty());
        }
    }
}

/// Whatever others let pass first, the guard has seen it.
#[test]
fn the_guard_stands_ahead_of_what_others_have_in_its_place() {
    for backend in BACKENDS {
        let pod = Namespace::with_uplink();
        let tables = tables_of(backend);
        let accept = "-A OUTPUT -p tcp -j ACCEPT";
        let insert = format!("iptables-{tables} {}", accept.replace("-A OUTPUT", "-I OUTPUT"));
        let jump = "-A OUTPUT -p tcp -m tcp --tcp-flags FIN,SYN,RST,ACK SYN -j PILLION_GUARD";
        for _ in 0..3 {
            pod.shell(&insert).exits(0);
            pod.init(&["--backend", backend]).exits(0);
            let [v4, _] = pod.tables(backend);
            let filter = v4.iter().skip_while(|line| *line != "*filter");
            let output: Vec<&String> =
                filter.filter(|line| line.starts_with("-A OUTPUT")).collect();
            assert_eq!(output[0], jump, "{backend}");
            assert!(output[1..].iter().all(|line| *line == accept), "{output:?}");
        }
        pod.init(&["--cleanup"]).exits(0);
        let [v4, _] = pod.tables(backend);
        assert_eq!(v4.iter().filter(|line| *line == accept).count(), 3, "{backend}");
    }
}
