//! Rules of others around ours.

use crate::namespace::Namespace;
use crate::{BACKENDS, tables_of};

#[test]
fn a_rule_ahead_that_takes_tcp_is_a_failure_that_names_it() {
    let cases = [
        ("iptables", "PREROUTING", "-p tcp -m tcp --dport 80 -j ACCEPT"),
        ("ip6tables", "PREROUTING", "-j RETURN"),
        ("iptables", "OUTPUT", "-d 10.1.0.0/16 -p tcp -j DNAT --to-destination 10.2.0.1"),
        ("ip6tables", "OUTPUT", "-p tcp -m tcp --dport 80 -j REDIRECT --to-ports 9"),
    ];
    for backend in BACKENDS {
        for (program, hook, rule) in cases {
            let pod = Namespace::new();
            let table = format!("{program}-{} -t nat", tables_of(backend));
            pod.shell(&format!("{table} -A {hook} {rule}")).exits(0);
            // Netlink has no words for all of it, but knows its place.
            let (shown, cure) = match backend {
                "netlink" => {
                    let shown = rule.replace("--to-destination 10.2.0.1", "[DNAT]");
                    (shown, format!("{table} -D {hook} 1"))
                }
                _ => (rule.to_owned(), format!("{table} -D {hook} {rule}")),
            };
            for _ in 0..2 {
                pod.init(&["--backend", backend])
                    .exits(7)
                    .says(&format!("`-A {hook} {shown}` stands ahead"))
                    .says(&cure);
            }
            pod.shell(&cure).exits(0);
            pod.init(&["--backend", backend]).exits(0);
        }
    }
}

#[test]
fn what_cannot_take_a_captured_connection_may_stand_ahead() {
    for backend in BACKENDS {
        let pod = Namespace::new();
        let table = format!("iptables-{} -t nat", tables_of(backend));
        let others = format!(
            "{table} -N DOCKER_OUTPUT \
             && {table} -A DOCKER_OUTPUT -p tcp --dport 53 -j DNAT --to-destination 127.0.0.11:5353 \
             && {table} -A OUTPUT -d 127.0.0.11/32 -j DOCKER_OUTPUT \
             && {table} -A PREROUTING -p udp --dport 53 -j REDIRECT --to-ports 5353 \
             && {table} -A PREROUTING -p tcp -j LOG --log-prefix '-j ACCEPT'"
        );
        pod.shell(&others).exits(0);
        for _ in 0..2 {
            pod.init(&["--backend", backend]).exits(0);
        }
    }
}

#[test]
fn a_re_run_keeps_the_place_of_each_jump() {
    for backend in BACKENDS {
        let pod = Namespace::new();
        let both = |rule: &str| {
            let run = |program: &str| format!("{program}-{} -t nat {rule}", tables_of(backend));
            pod.shell(&format!("{} && {}", run("iptables"), run("ip6tables"))).exits(0);
        };
        both("-A OUTPUT -p udp --dport 53 -j ACCEPT");
        both("-A OUTPUT");
        pod.init(&["--backend", backend]).exits(0);
        both("-A PREROUTING -p tcp --dport 80 -j ACCEPT");
        both("-A OUTPUT -p tcp --dport 80 -j ACCEPT");
        let first = pod.tables(backend);
        for _ in 0..2 {
            pod.init(&["--backend", backend]).exits(0);
            assert_eq!(pod.tables(backend), first, "{backend}");
        }
    }
}

/// What only `nft` writes has no words in iptables, and counts.
#[test]
fn a_native_rule_ahead_is_named_in_brackets() {
    let pod = Namespace::new();
    pod.shell(
        "nft 'add table ip nat; \
              add chain ip nat OUTPUT { type nat hook output priority -100; }; \
              add rule ip nat OUTPUT tcp dport 80 counter redirect to :9'",
    )
    .exits(0);
    pod.init(&["--backend=netlink"])
        .exits(7)
        .says("`-A OUTPUT -p tcp -m tcp --dport 80 [immediate] -j [redir]` stands ahead")
        .says("iptables-nft -t nat -D OUTPUT 1");
}

#[test]
fn native_chains_that_are_asked_first_are_named() {
    for backend in BACKENDS {
        let pod = Namespace::new();
        pod.shell(
            "nft 'add table inet x; \
                  add chain inet x pre { type nat hook prerouting priority -110; }; \
                  add rule inet x pre tcp dport 80 redirect to :9; \
                  add table ip6 y; \
                  add chain ip6 y out { type nat hook output priority -101; }; \
                  add rule ip6 y out tcp dport 80 redirect to :9; \
                  add table ip z; \
                  add chain ip z late { type nat hook output priority -99; }; \
                  add rule ip z late tcp dport 80 redirect to :9; \
                  add chain ip z empty { type nat hook output priority -110; }'",
        )
        .exits(0);
        let done = pod
            .init(&["--backend", backend])
            .exits(0)
            .says("WARNING: the nat chain inet x pre (prerouting, priority -110) has rules")
            .says("WARNING: the nat chain ip6 y out (output, priority -101) has rules")
            .says("nft list chain inet x pre");
        assert_eq!(done.stderr.matches("the nat chain").count(), 2, "{}", done.stderr);
        let done = pod.init(&["--backend", backend, "--ipv6=off"]).exits(0);
        assert!(!done.stderr.contains("ip6 y"), "{}", done.stderr);
    }
}

/// A chain of another version's that cannot go, because a map of others names it.
#[test]
fn what_others_lead_to_is_said_and_nothing_changes() {
    let pod = Namespace::new();
    pod.init(&["--backend=netlink", "--outbound-ports=80"]).exits(0);
    pod.shell(
        "iptables-nft -t nat -N PILLION_OLD && iptables-nft -t nat -N OTHERS \
         && nft 'add rule ip nat OTHERS tcp dport vmap { 1 : jump PILLION_OLD }'",
    )
    .exits(0);
    let rules = || pod.shell("nft -s list ruleset").exits(0).stdout;
    let before = rules();
    pod.init(&["--backend=netlink"])
        .exits(6)
        .says("IPv4 removal of chain PILLION_OLD: Device or resource busy")
        .says("something of others leads to it");
    assert_eq!(rules(), before);
}
