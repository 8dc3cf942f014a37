//! What the sandbox does where the kernel has not all of it.

use nix::libc::{self, c_int, c_long};
use pillion_testbed::{Failure, Finished, LogLine, Pod, Settings, Sidecar, finish, run};
use seccompiler::{
    SeccompAction, SeccompCmpArgLen as Len, SeccompCmpOp as Op, SeccompCondition, SeccompFilter,
    SeccompRule, apply_filter,
};
use serde_json::Value;

use super::{SANDBOX, confinement, has_all, landlock, serve, told};

/// Runs the proxy in a pod, with nothing but `env`, to its end.
fn run_proxy(pod: &Pod, env: &[(&str, &str)]) -> Result<Finished, Failure> {
    let mut command = pod.command(pod.settings().binary("pillion-proxy")?);
    Settings::hide(&mut command).envs(env.iter().copied());
    finish(&mut command)
}

/// Does something on a thread for which, and for whose children, the kernel lacks a call.
fn lacking<T: Send>(
    call: c_long,
    first: Option<c_int>,
    work: impl FnOnce() -> Result<T, Failure> + Send,
) -> Result<T, Failure> {
    let condition = |value: c_int| {
        let value = u64::from(value.cast_unsigned());
        let condition = SeccompCondition::new(0, Len::Dword, Op::Eq, value).expect("a condition");
        SeccompRule::new(vec![condition]).expect("a rule")
    };
    let rules = [(call, first.map(condition).into_iter().collect())].into();
    let lacks = SeccompAction::Errno(libc::ENOSYS.cast_unsigned());
    let here = std::env::consts::ARCH.try_into().expect("an architecture that seccomp knows");
    let filter = SeccompFilter::new(rules, SeccompAction::Allow, lacks, here).expect("a filter");
    let program: seccompiler::BpfProgram = filter.try_into().expect("a program");
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            apply_filter(&program).expect("this kernel has seccomp");
            work()
        });
        thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

/// The parts, and the call without which there is none of each.
const PARTS: &[(&str, c_long, Option<c_int>)] =
    &[("landlock", libc::SYS_landlock_create_ruleset, None), ("seccomp", libc::SYS_seccomp, None)];

#[test]
fn required_does_not_start_without_every_part_and_says_which() {
    run("required", |bed| {
        let pod = bed.pod("a")?;
        for (part, call, first) in PARTS {
            let ended = lacking(*call, *first, || run_proxy(&pod, &[(SANDBOX, "required")]))?;
            assert_eq!(ended.code, Some(71), "{ended:?}");
            assert!(ended.stderr.contains("PILLION_SANDBOX=required"), "{ended:?}");
            // What comes first is missed first.
            let missed = if has_all() { part } else { "landlock" };
            assert!(ended.stderr.contains(&format!("{missed}: ")), "{ended:?}");
        }
        if !has_all() {
            return Ok(());
        }
        let mut whole = pod.mesh(bed, serve().env(SANDBOX, "required"))?;
        assert_eq!(confinement(whole.process())?.first(), Some(&["1".into(), "2".into()]));
        Ok(())
    });
}

#[test]
fn on_goes_on_with_what_the_kernel_has_and_warns_of_the_rest() {
    run("best-effort", |bed| {
        for (part, call, first) in PARTS {
            let pod = bed.pod(&format!("without-{part}").chars().take(9).collect::<String>())?;
            let sidecar: Sidecar = lacking(*call, *first, || pod.mesh(bed, serve()))?;
            let warned = sidecar.messages("not all of the sandbox can be had")?;
            let is =
                |line: &LogLine, part: &str| line.text("message").contains(&format!("{part}: "));
            assert!(warned.iter().any(|line| is(line, part)), "{warned:?}");
            let expected = |line: &LogLine| is(line, part) || (!has_all() && is(line, "landlock"));
            assert!(warned.iter().all(expected), "{warned:?}");
            let told = told(&pod)?;
            assert_eq!(told["no_new_privs"], true, "{told}");
            assert_eq!(told["seccomp"], *part != "seccomp", "{told}");
            let rights = if *part == "landlock" { Vec::new() } else { landlock() };
            assert_eq!(told["landlock"], Value::from(rights), "{told}");
        }
        Ok(())
    });
}
