//! The calls that are allowed with some arguments only.

use nix::libc::{self, c_int, c_long};
use seccompiler::{
    BackendError, SeccompCmpArgLen as Len, SeccompCmpOp as Op, SeccompCondition as Condition,
    SeccompRule as Rule,
};

type Row = (c_long, Vec<Rule>);

/// The bits of socket(2)'s type that say what it is; the others are `SOCK_NONBLOCK` and
/// `SOCK_CLOEXEC`.
const SOCKET_TYPE: c_int = 0xf;

/// A condition on the argument `n`, which is an int or flags of 32 bits.
fn argument(n: u8, op: Op, value: c_int) -> Result<Condition, BackendError> {
    Condition::new(n, Len::Dword, op, u64::from(value.cast_unsigned()))
}

/// The argument `n` is `value`.
fn is(n: u8, value: c_int) -> Result<Condition, BackendError> {
    argument(n, Op::Eq, value)
}

/// The bits `mask` of the argument `n` are `value`.
fn bits(n: u8, mask: c_int, value: c_int) -> Result<Condition, BackendError> {
    argument(n, Op::MaskedEq(u64::from(mask.cast_unsigned())), value)
}

/// One rule for each of the values that the argument `n` may have.
fn one_of(n: u8, values: &[c_int]) -> Result<Vec<Rule>, BackendError> {
    values.iter().map(|value| Rule::new(vec![is(n, *value)?])).collect()
}

/// The rows of these calls; `pid` is this process.
pub(super) fn allowed(pid: u32) -> Result<Vec<Row>, BackendError> {
    let reading = libc::O_ACCMODE | libc::O_CREAT | libc::O_TRUNC;
    let executable = |n| Ok(vec![Rule::new(vec![bits(n, libc::PROT_EXEC, 0)?])?]);
    let rows = vec![
        (libc::SYS_socket, sockets()?),
        // tokio's way from a signal's handler to the runtime.
        (libc::SYS_socketpair, one_of(0, &[libc::AF_UNIX])?),
        (libc::SYS_setsockopt, options()?),
        (libc::SYS_ioctl, one_of(1, &[FIONBIO, FIONREAD])?),
        (
            libc::SYS_fcntl,
            one_of(
                1,
                &[
                    libc::F_DUPFD_CLOEXEC,
                    libc::F_GETFD,
                    libc::F_GETFL,
                    libc::F_SETFD,
                    libc::F_SETFL,
                    libc::F_GETPIPE_SZ,
                    libc::F_SETPIPE_SZ,
                ],
            )?,
        ),
        // Files are read: none is written, made or cut, whatever Landlock knows.
        (libc::SYS_openat, vec![Rule::new(vec![bits(2, reading, libc::O_RDONLY)?])?]),
        // No memory becomes code.
        (libc::SYS_mmap, executable(2)?),
        (libc::SYS_mprotect, executable(2)?),
        (libc::SYS_clone, vec![Rule::new(vec![thread(libc::CLONE_THREAD)?])?]),
        // abort(3) of this process, not a signal to another.
        (libc::SYS_tgkill, one_of(0, &[pid.cast_signed()])?),
        (libc::SYS_prctl, one_of(0, &[libc::PR_SET_NAME])?),
        // Limits are asked for, and not changed any more.
        (libc::SYS_prlimit64, vec![Rule::new(vec![Condition::new(2, Len::Qword, Op::Eq, 0)?])?]),
    ];
    #[cfg(target_arch = "x86_64")]
    let rows =
        [rows, vec![(libc::SYS_open, vec![Rule::new(vec![bits(1, reading, 0)?])?])]].concat();
    Ok(rows)
}

/// TCP and UDP; a stream to the Workload API's socket; and netlink for this pod's own addresses.
/// No raw socket, no packet socket, no other protocol (SCTP, MPTCP), no other netlink family and
/// none of the rarer families, in which much of the kernel's trouble was.
fn sockets() -> Result<Vec<Rule>, BackendError> {
    let mut rules = Vec::new();
    for domain in [libc::AF_INET, libc::AF_INET6] {
        for (kind, own) in
            [(libc::SOCK_STREAM, libc::IPPROTO_TCP), (libc::SOCK_DGRAM, libc::IPPROTO_UDP)]
        {
            // 0 is the type's own.
            for protocol in [0, own] {
                let conditions =
                    vec![is(0, domain)?, bits(1, SOCKET_TYPE, kind)?, is(2, protocol)?];
                rules.push(Rule::new(conditions)?);
            }
        }
    }
    rules.push(Rule::new(vec![is(0, libc::AF_UNIX)?, bits(1, SOCKET_TYPE, libc::SOCK_STREAM)?])?);
    rules.push(Rule::new(vec![is(0, libc::AF_NETLINK)?, is(2, libc::NETLINK_ROUTE)?])?);
    Ok(rules)
}

/// The options that are set, by us and by the gRPC library. The others of these levels change what
/// a socket is: filters, upper-layer protocols such as kernel TLS, the tables of iptables.
fn options() -> Result<Vec<Rule>, BackendError> {
    let mut rules = Vec::new();
    for (level, options) in [
        (
            libc::SOL_SOCKET,
            &[
                libc::SO_KEEPALIVE,
                libc::SO_LINGER,
                libc::SO_RCVBUF,
                libc::SO_REUSEADDR,
                libc::SO_REUSEPORT,
                libc::SO_SNDBUF,
            ][..],
        ),
        (
            libc::IPPROTO_TCP,
            &[
                libc::TCP_KEEPCNT,
                libc::TCP_KEEPIDLE,
                libc::TCP_KEEPINTVL,
                libc::TCP_NODELAY,
                libc::TCP_QUICKACK,
                libc::TCP_USER_TIMEOUT,
            ][..],
        ),
        (libc::IPPROTO_IP, &[libc::IP_BIND_ADDRESS_NO_PORT][..]),
        (libc::IPPROTO_IPV6, &[libc::IPV6_V6ONLY][..]),
    ] {
        for option in options {
            rules.push(Rule::new(vec![is(1, level)?, is(2, *option)?])?);
        }
    }
    Ok(rules)
}

/// clone(2) with this of `CLONE_THREAD`.
fn thread(value: c_int) -> Result<Condition, BackendError> {
    bits(0, libc::CLONE_THREAD, value)
}

/// clone(2) of a process instead of a thread.
pub(super) fn fork() -> Result<Row, BackendError> {
    Ok((libc::SYS_clone, vec![Rule::new(vec![thread(0)?])?]))
}

/// `ioctl_list(2)`; the type of libc's own constants differs between C libraries.
const FIONBIO: c_int = 0x5421;
const FIONREAD: c_int = 0x541b;
