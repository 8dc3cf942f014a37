//! seccomp: which system calls the process may make, once it serves.
//!
//! Two filters, of which the stricter answer holds (seccomp(2)):
//!
//! * What is not on the list of [`ALLOWED`] calls fails with `ENOSYS`, as on a kernel that does not
//!   have it. Libraries know what to do then: glibc starts threads by clone(2) where there is no
//!   clone3(2), whose flags no filter can see. To end the process would make an outage of each call
//!   that a new version of some library tries; `EPERM` is taken by glibc for an answer.
//! * What only an intruder would call ends the process: [`FATAL`].

use nix::libc::{self, c_long};
use seccompiler::{BpfProgram, Error, SeccompAction, SeccompFilter, SeccompRule, TargetArch};

use super::conditions;

/// Calls that are let pass whatever their arguments. Those with conditions are in [`conditions`].
const ALLOWED: &[c_long] = &[
    // Sockets: what is accepted, dialled and carried. Not listen(2): that is done by now.
    libc::SYS_accept4,
    libc::SYS_bind,
    libc::SYS_connect,
    libc::SYS_getpeername,
    libc::SYS_getsockname,
    libc::SYS_getsockopt,
    libc::SYS_recvfrom,
    libc::SYS_recvmsg,
    libc::SYS_sendmsg,
    libc::SYS_sendto,
    libc::SYS_shutdown,
    // Descriptors.
    libc::SYS_close,
    libc::SYS_epoll_create1,
    libc::SYS_epoll_ctl,
    libc::SYS_epoll_pwait,
    libc::SYS_epoll_pwait2,
    libc::SYS_eventfd2,
    libc::SYS_lseek,
    libc::SYS_pipe2,
    libc::SYS_ppoll,
    libc::SYS_pread64,
    libc::SYS_read,
    libc::SYS_readv,
    libc::SYS_splice,
    libc::SYS_write,
    libc::SYS_writev,
    // Looking at files, of which Landlock says which may be opened.
    libc::SYS_faccessat,
    libc::SYS_faccessat2,
    libc::SYS_fstat,
    libc::SYS_getcwd,
    libc::SYS_getdents64,
    libc::SYS_inotify_add_watch,
    libc::SYS_inotify_init1,
    libc::SYS_inotify_rm_watch,
    libc::SYS_newfstatat,
    libc::SYS_readlinkat,
    libc::SYS_statx,
    // Memory.
    libc::SYS_brk,
    libc::SYS_madvise,
    libc::SYS_mremap,
    libc::SYS_munmap,
    // Threads and their signals.
    libc::SYS_exit,
    libc::SYS_exit_group,
    libc::SYS_futex,
    libc::SYS_getpid,
    libc::SYS_gettid,
    libc::SYS_membarrier,
    libc::SYS_restart_syscall,
    libc::SYS_rseq,
    libc::SYS_rt_sigaction,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigreturn,
    libc::SYS_sched_getaffinity,
    libc::SYS_sched_yield,
    libc::SYS_set_robust_list,
    libc::SYS_sigaltstack,
    // The clock, where the vDSO does not answer, and what else is only asked.
    libc::SYS_clock_getres,
    libc::SYS_clock_gettime,
    libc::SYS_clock_nanosleep,
    libc::SYS_getrandom,
    libc::SYS_getrusage,
    libc::SYS_gettimeofday,
    libc::SYS_nanosleep,
    libc::SYS_uname,
];

/// The same under names that only x86_64 has still: what musl calls, and glibc in places.
#[cfg(target_arch = "x86_64")]
const ALLOWED_HERE: &[c_long] = &[
    libc::SYS_access,
    libc::SYS_epoll_wait,
    libc::SYS_lstat,
    libc::SYS_poll,
    libc::SYS_readlink,
    libc::SYS_stat,
    libc::SYS_time,
];
#[cfg(not(target_arch = "x86_64"))]
const ALLOWED_HERE: &[c_long] = &[];

/// Calls that end the process: ways out of a sandbox, into another process or into the kernel. No
/// code of the proxy leads to one of them, so whoever calls it is not the proxy any more.
const FATAL: &[c_long] = &[
    // Another program.
    libc::SYS_execve,
    libc::SYS_execveat,
    // Other processes.
    libc::SYS_kcmp,
    libc::SYS_pidfd_getfd,
    libc::SYS_process_madvise,
    libc::SYS_process_vm_readv,
    libc::SYS_process_vm_writev,
    libc::SYS_ptrace,
    // Namespaces and mounts.
    libc::SYS_chroot,
    libc::SYS_fsconfig,
    libc::SYS_fsmount,
    libc::SYS_fsopen,
    libc::SYS_fspick,
    libc::SYS_mount,
    libc::SYS_mount_setattr,
    libc::SYS_move_mount,
    libc::SYS_open_tree,
    libc::SYS_pivot_root,
    libc::SYS_setns,
    libc::SYS_umount2,
    libc::SYS_unshare,
    // Files past their paths.
    libc::SYS_name_to_handle_at,
    libc::SYS_open_by_handle_at,
    // The kernel: code in it, its keys, and what its bugs are exploited through.
    libc::SYS_add_key,
    libc::SYS_bpf,
    libc::SYS_delete_module,
    libc::SYS_finit_module,
    libc::SYS_init_module,
    libc::SYS_kexec_load,
    libc::SYS_keyctl,
    libc::SYS_perf_event_open,
    libc::SYS_personality,
    libc::SYS_reboot,
    libc::SYS_request_key,
    libc::SYS_swapoff,
    libc::SYS_swapon,
    libc::SYS_userfaultfd,
];

#[cfg(target_arch = "x86_64")]
const FATAL_HERE: &[c_long] =
    &[libc::SYS_fork, libc::SYS_vfork, libc::SYS_ioperm, libc::SYS_iopl, libc::SYS_modify_ldt];
#[cfg(not(target_arch = "x86_64"))]
const FATAL_HERE: &[c_long] = &[];

/// A call and the conditions under one of which the filter means it; none: always.
type Row = (c_long, Vec<SeccompRule>);

/// Puts the filters on every thread of this process.
pub(super) fn restrict() -> Result<(), Error> {
    let [allow, kill] = programs(std::process::id())?;
    seccompiler::apply_filter_all_threads(&kill)?;
    seccompiler::apply_filter_all_threads(&allow)
}

/// Both filters, for the process `pid`.
fn programs(pid: u32) -> Result<[BpfProgram; 2], Error> {
    // seccomp(2) itself stays allowed until the second filter is there: the first has only what
    // is fatal.
    let missing = SeccompAction::Errno(libc::ENOSYS.cast_unsigned());
    Ok([
        program(allowed(pid)?, missing, SeccompAction::Allow)?,
        program(fatal()?, SeccompAction::Allow, SeccompAction::KillProcess)?,
    ])
}

fn program(
    rows: Vec<Row>,
    otherwise: SeccompAction,
    listed: SeccompAction,
) -> Result<BpfProgram, Error> {
    let here: TargetArch = std::env::consts::ARCH.try_into()?;
    let filter = SeccompFilter::new(rows.into_iter().collect(), otherwise, listed, here)?;
    Ok(filter.try_into()?)
}

fn allowed(pid: u32) -> Result<Vec<Row>, Error> {
    let mut rows: Vec<Row> =
        ALLOWED.iter().chain(ALLOWED_HERE).map(|call| (*call, Vec::new())).collect();
    rows.extend(conditions::allowed(pid)?);
    Ok(rows)
}

fn fatal() -> Result<Vec<Row>, Error> {
    let mut rows: Vec<Row> =
        FATAL.iter().chain(FATAL_HERE).map(|call| (*call, Vec::new())).collect();
    rows.push(conditions::fork()?);
    Ok(rows)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn each_call_is_listed_once_and_none_is_both_allowed_and_fatal() {
        let numbers = |rows: Vec<Row>| rows.into_iter().map(|(call, _)| call).collect::<Vec<_>>();
        let (allowed, fatal) = (numbers(allowed(1).unwrap()), numbers(fatal().unwrap()));
        let distinct = |calls: &[c_long]| calls.iter().copied().collect::<BTreeSet<_>>();
        assert_eq!(distinct(&allowed).len(), allowed.len());
        assert_eq!(distinct(&fatal).len(), fatal.len());
        // A new process is fatal, a new thread allowed: the one call that is in both.
        let both: Vec<_> = distinct(&allowed).intersection(&distinct(&fatal)).copied().collect();
        assert_eq!(both, [libc::SYS_clone]);
    }

    #[test]
    fn both_filters_fit_the_kernels_limit() {
        for program in programs(1).unwrap() {
            assert!(!program.is_empty() && program.len() < 4096, "{}", program.len());
        }
    }
}
