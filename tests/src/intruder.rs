//! Somebody who has taken a running process over: makes system calls in its name.
//!
//! A test of what a process may not do must try it from inside of that very process, past its own
//! code. This does, as a debugger would: it stops one of the threads, has it make a system call,
//! and lets it go on where it was.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;

use nix::libc::{c_long, user_regs_struct};
use nix::sys::ptrace;
use nix::sys::signal::Signal;
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;

use crate::{Context, Failure, Process};

/// The instruction `syscall` of x86_64.
const SYSCALL: [u8; 2] = [0x0f, 0x05];

/// The part of the stack below its top that a function may use without moving it (System V ABI,
/// AMD64, 3.2.2), and room for what is [placed](Intruder::place).
const ROOM: u64 = 4096;

/// What became of a system call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Came {
    /// It returned this: below zero, an error's number.
    Back(i64),
    /// A signal ended the process.
    Ended(Signal),
}

/// One thread of a process, stopped. It goes on when this is dropped. All calls must come from the
/// thread of the test that made it (ptrace(2)).
#[derive(Debug)]
pub struct Intruder {
    thread: Pid,
    memory: File,
    registers: user_regs_struct,
    gate: u64,
    placed: u64,
    ended: bool,
}

impl Intruder {
    /// Stops a thread of a process.
    ///
    /// # Errors
    /// It has no such thread, or the kernel refuses.
    pub fn stop(process: &Process, thread: Pid) -> Result<Self, Failure> {
        let memory = fs::OpenOptions::new().read(true).write(true).open(process.proc("mem"));
        let memory = memory.context(|| "its memory")?;
        let maps = fs::read_to_string(process.proc("maps")).context(|| "its mappings")?;
        let gate = find_gate(&memory, &maps)
            .ok_or_else(|| Failure::Unexpected("no system call in its code".to_owned()))?;
        ptrace::attach(thread).context(|| format!("ptrace of {thread}"))?;
        wait(thread)?;
        let registers = ptrace::getregs(thread).context(|| "its registers")?;
        Ok(Self { thread, memory, registers, gate, placed: 0, ended: false })
    }

    /// Writes bytes below the thread's stack, for a call's argument, and returns where.
    ///
    /// # Errors
    /// There is no memory, or no room any more.
    pub fn place(&mut self, bytes: &[u8]) -> Result<u64, Failure> {
        // Every argument begins on 16 bytes.
        let length = u64::try_from(bytes.len()).unwrap_or(ROOM).next_multiple_of(16);
        self.placed += length;
        if self.placed > ROOM {
            return Err(Failure::Unexpected("no room for a further argument".to_owned()));
        }
        let at = (self.registers.rsp - ROOM / 4 - self.placed) & !15;
        self.memory.write_all_at(bytes, at).context(|| "the thread's stack")?;
        Ok(at)
    }

    /// Has the thread make one system call.
    ///
    /// # Errors
    /// The kernel refuses to drive the thread. What the call itself says is no error.
    pub fn call(&mut self, number: c_long, arguments: &[u64]) -> Result<Came, Failure> {
        let argument = |n: usize| arguments.get(n).copied().unwrap_or(0);
        let registers = user_regs_struct {
            rip: self.gate,
            rax: number.cast_unsigned(),
            // The call that it was stopped in is not to be begun again now.
            orig_rax: u64::MAX,
            rdi: argument(0),
            rsi: argument(1),
            rdx: argument(2),
            r10: argument(3),
            r8: argument(4),
            r9: argument(5),
            ..self.registers
        };
        ptrace::setregs(self.thread, registers).context(|| "its registers")?;
        ptrace::step(self.thread, None).context(|| "its step")?;
        match wait(self.thread)? {
            WaitStatus::Stopped(..) => {
                let after = ptrace::getregs(self.thread).context(|| "its registers")?;
                Ok(Came::Back(after.rax.cast_signed()))
            }
            WaitStatus::Signaled(_, signal, _) => {
                self.ended = true;
                Ok(Came::Ended(signal))
            }
            other => Err(Failure::Unexpected(format!("the thread: {other:?}"))),
        }
    }
}

impl Drop for Intruder {
    fn drop(&mut self) {
        if !self.ended {
            // A process that was killed meanwhile has no thread to let go.
            let _ = ptrace::setregs(self.thread, self.registers);
            let _ = ptrace::detach(self.thread, None);
        }
    }
}

fn wait(thread: Pid) -> Result<WaitStatus, Failure> {
    waitpid(thread, Some(WaitPidFlag::__WALL)).context(|| format!("waiting for {thread}"))
}

/// Where in the process's code there is a system call: in the page that the kernel maps into every
/// process (vdso(7)), which is small.
fn find_gate(memory: &File, maps: &str) -> Option<u64> {
    let line = maps.lines().find(|line| line.ends_with("[vdso]"))?;
    let (from, until) = line.split_once(' ')?.0.split_once('-')?;
    let hex = |text| u64::from_str_radix(text, 16).ok();
    let (from, until) = (hex(from)?, hex(until)?);
    let mut code = vec![0; usize::try_from(until.checked_sub(from)?).ok()?];
    memory.read_exact_at(&mut code, from).ok()?;
    let at = code.windows(SYSCALL.len()).position(|bytes| bytes == SYSCALL)?;
    from.checked_add(u64::try_from(at).ok()?)
}
