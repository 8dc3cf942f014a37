//! Each exit code, by what really causes it.

use std::process::Command;

use nix::fcntl::{Flock, FlockArg};

use tempfile::TempDir;

use crate::namespace::{BINARY, Namespace, program};
use crate::{BACKENDS, WITH_PROGRAMS, has_ours};

#[test]
fn two_is_a_bad_value_and_all_are_named() {
    let pod = Namespace::new();
    pod.init(&["--proxy-uid=0", "--inbound-port=x", "--ipv6=maybe"])
        .exits(2)
        .says("--proxy-uid: 0 is root")
        .says("--inbound-port: `x` is no port")
        .says("--ipv6: `maybe` is unknown");
    pod.init(&["--no-such-flag"]).exits(2).says("--no-such-flag");
    pod.shell(&format!("PILLION_INIT_OUTBOUND_PORT=0 {BINARY}"))
        .exits(2)
        .says("PILLION_INIT_OUTBOUND_PORT: `0` is no port");
    assert!(!has_ours(&pod.tables("nft")));
}

#[test]
fn three_is_a_missing_capability() {
    let pod = Namespace::new();
    let without = |capability: &str, arguments: &str| {
        pod.shell(&format!(
            "exec setpriv --bounding-set=-{capability} --inh-caps=-{capability} \
             {BINARY} {arguments}"
        ))
    };
    without("net_admin", "").exits(3).says("NET_ADMIN is missing");
    without("net_admin", "--cleanup").exits(3);
    without("net_raw", "--backend=legacy").exits(3).says("NET_RAW is missing");
    for backend in ["netlink", "nft", "auto"] {
        without("net_raw", &format!("--backend={backend}")).exits(0);
    }
    pod.shell(&format!("exec setpriv --reuid=1337 --clear-groups {BINARY}")).exits(3);
}

#[test]
fn four_is_no_program() {
    let pod = Namespace::new();
    // The usual places are searched besides PATH: they have to be empty, too.
    let hidden =
        format!("mount -t tmpfs tmpfs /usr/sbin && [ /sbin -ef /usr/sbin ] && PATH= exec {BINARY}");
    for backend in WITH_PROGRAMS {
        pod.shell(&format!("{hidden} --backend={backend}"))
            .exits(4)
            .says("install the package iptables");
    }
    assert!(!has_ours(&pod.tables("nft")));
}

#[test]
fn five_is_a_held_lock() {
    let pod = Namespace::new();
    pod.init(&["--backend=legacy"]).exits(0);
    let before = pod.tables("legacy");
    let held = pod.file();
    let lock = Flock::lock(held, FlockArg::LockExclusive).unwrap();
    pod.init(&["--backend=legacy"]).exits(5).says("held the iptables lock");
    lock.unlock().unwrap();
    assert_eq!(pod.tables("legacy"), before);
    pod.init(&["--backend=legacy"]).exits(0);
}

#[test]
fn seven_is_a_rule_in_the_other_backend_that_takes_the_traffic() {
    for (other, backend) in [("nft", "legacy"), ("legacy", "nft"), ("legacy", "netlink")] {
        let pod = Namespace::with_uplink();
        let arguments = ["--backend", backend];
        pod.init(&arguments).exits(0);
        // Reading back sees one backend, and the kernel asks the younger table first.
        let thief = format!(
            "iptables-{other} -t nat -I OUTPUT -p tcp -d 192.0.2.0/24 -j REDIRECT --to-ports 9"
        );
        pod.shell(&thief).exits(0);
        pod.init(&arguments).exits(7).says("192.0.2.1:1404 was not redirected to 127.0.0.1:15001");
        // The rules stay: what is not proved is still not let through.
        assert!(has_ours(&pod.tables(backend)));
        pod.init(&[&arguments[..], &["--no-verify"]].concat()).exits(0);

        let _accomplice = pod.listen("127.0.0.1:9");
        pod.init(&arguments).exits(7).says("was accepted, but not by 127.0.0.1:15001");
    }
}

/// All capabilities, but of a user namespace that does not own the network.
#[test]
fn three_is_a_denial_by_the_kernel() {
    let pod = Namespace::new();
    for backend in BACKENDS {
        pod.shell(&format!("exec unshare --user --map-root-user {BINARY} --backend={backend}"))
            .exits(3)
            .says("user namespace that owns the pod's network");
    }
}

/// The same, after programs that find nothing wrong: for the address, this program asks itself.
#[test]
fn three_is_an_address_that_the_kernel_denies() {
    let pod = Namespace::new();
    let programs = TempDir::new().unwrap();
    for family in ["iptables", "ip6tables"] {
        for verb in ["save", "restore"] {
            program(programs.path(), &format!("{family}-nft-{verb}"), "cat > /dev/null");
        }
    }
    pod.shell(&format!(
        "PATH={}:$PATH exec unshare --user --map-root-user {BINARY} --backend=nft",
        programs.path().display()
    ))
    .exits(3)
    .says("cannot change ::6/128 on lo")
    .says("user namespace that owns the pod's network");
}

#[test]
fn three_is_a_denial_of_the_transaction_alone() {
    let pod = Namespace::new();
    let programs = TempDir::new().unwrap();
    program(programs.path(), "iptables-nft-restore", "echo 'Permission denied' >&2; exit 1");
    pod.init_with(programs.path(), &["--backend=nft"]).exits(3).says("IPv4 rules");
}

#[test]
fn six_is_an_id_that_the_user_namespace_does_not_map() {
    let pod = Namespace::new();
    for backend in ["netlink", "nft"] {
        pod.shell(&format!(
            "exec unshare --user --map-root-user --net \
             sh -c 'ip link set lo up && exec {BINARY} --backend={backend}'"
        ))
        .exits(6)
        .says("Invalid argument")
        .says("the proxy's ids are mapped");
    }
}

/// A router's answer is no missing route: the connection has left the pod.
#[test]
fn seven_is_a_connection_that_leaves_and_is_refused_by_a_router() {
    let pod = Namespace::with_uplink();
    pod.shell("iptables -t raw -A OUTPUT -d 192.0.2.0/24 -j CT --notrack").exits(0);
    pod.init(&[]).exits(7).says("was not redirected").says("Connection refused");
    pod.shell(
        "nft add table ip early \
         && nft add chain ip early out '{ type filter hook output priority -10; }' \
         && nft add rule ip early out ip daddr 192.0.2.0/24 reject with icmp type net-unreachable",
    )
    .exits(0);
    pod.init(&[]).exits(7).says("Network is unreachable");
}

#[test]
fn eight_is_the_host() {
    let pod = Namespace::new();
    // The file by which the host's namespace is known.
    let disguise = "mount -t tmpfs tmpfs /proc/sys/net/core \
                    && touch /proc/sys/net/core/netdev_max_backlog && exec";
    for arguments in ["", "--cleanup"] {
        pod.shell(&format!("{disguise} {BINARY} {arguments}"))
            .exits(8)
            .says("--allow-host-network");
    }
    assert!(!has_ours(&pod.tables("nft")));
    pod.shell(&format!("{disguise} {BINARY} --allow-host-network")).exits(0);
}

#[test]
fn help_and_version_teach() {
    let help = Command::new(BINARY).arg("--help").output().unwrap();
    let help = String::from_utf8(help.stdout).unwrap();
    for (code, meaning) in pillion_init::error::EXIT_CODES {
        assert!(help.contains(&format!("{code}  {meaning}")), "{code}");
    }
    assert!(Command::new(BINARY).arg("--version").status().unwrap().success());
}
