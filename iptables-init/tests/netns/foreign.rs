//! Rules of others around ours.

use crate::BACKENDS;
use crate::namespace::Namespace;

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
            let table = format!("{program}-{backend} -t nat");
            pod.shell(&format!("{table} -A {hook} {rule}")).exits(0);
            let cure = format!("{table} -D {hook} {rule}");
            for _ in 0..2 {
                pod.init(&["--backend", backend])
                    .exits(7)
                    .says(&format!("`-A {hook} {rule}` stands ahead"))
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
        let table = format!("iptables-{backend} -t nat");
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
            let run = |program: &str| format!("{program}-{backend} -t nat {rule}");
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
