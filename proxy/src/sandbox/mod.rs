//! Least privilege while running: what the proxy will never do, the kernel refuses it.
//!
//! The container's own limits (no capability, a read-only root) say what a process may do at the
//! start. Somebody who has taken the proxy over by a bug still has all of that. So it gives up, in
//! two steps, what it does not need any more:
//!
//! 1. [`Sandbox::enter`], before the first thread, because Landlock binds the thread that asks and
//!    those that it starts: `no_new_privs`, and Landlock (which files, which ports).
//! 2. [`Sandbox::close`], when everything is bound and before the first connection is accepted:
//!    the system calls, for every thread there is and will be.

mod calls;
mod conditions;
mod files;

use std::fmt;
use std::path::PathBuf;

use nix::sys::prctl;
use serde_json::{Value, json};

use crate::config::{Config, SandboxMode};

pub use files::landlock_rights;

/// What the sandbox is made of, and what of it is in force.
#[derive(Debug)]
pub struct Sandbox {
    mode: SandboxMode,
    no_new_privs: bool,
    files: Option<files::Domain>,
    calls: bool,
    missing: Vec<Missing>,
}

/// A part that is not in force, why, and the cure.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Missing {
    part: &'static str,
    why: String,
}

impl fmt::Display for Missing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.part, self.why)
    }
}

/// `PILLION_SANDBOX=required`, and something is missing.
#[derive(Debug, thiserror::Error)]
#[error(
    "PILLION_SANDBOX=required, and not all of it can be had: {}; PILLION_SANDBOX=on goes on with \
     the rest",
    .0.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")
)]
pub struct Required(Vec<Missing>);

impl Sandbox {
    /// The first step: no privilege by a program that is executed, and of files and ports what
    /// `config` names, and the files in `also`. The process must still have one thread.
    ///
    /// Best effort under `on`: what is missing can be read from [`Sandbox::tell`].
    ///
    /// # Errors
    /// [`Required`], when everything is and something is missing.
    pub fn enter(config: &Config, also: &[PathBuf]) -> Result<Self, Required> {
        let mode = config.sandbox;
        let mut this =
            Self { mode, no_new_privs: false, files: None, calls: false, missing: Vec::new() };
        if mode == SandboxMode::Off {
            return Ok(this);
        }
        match prctl::set_no_new_privs() {
            Ok(()) => this.no_new_privs = true,
            Err(e) => this.lacks("no_new_privs", format!("prctl(2): {e}")),
        }
        match files::restrict(config, also) {
            Ok(domain) => {
                for why in domain.missing() {
                    this.lacks("landlock", why);
                }
                this.files = Some(domain);
            }
            Err(why) => this.lacks("landlock", why),
        }
        this.all_or_error()
    }

    /// The second step: from here on no system call but those that the running proxy makes, in
    /// any thread.
    ///
    /// # Errors
    /// [`Required`], when everything is and something is missing.
    pub fn close(mut self) -> Result<Self, Required> {
        if self.mode == SandboxMode::Off {
            return Ok(self);
        }
        match calls::restrict() {
            Ok(()) => self.calls = true,
            Err(e) => self.lacks(
                "seccomp",
                format!("{e}: it takes a kernel with CONFIG_SECCOMP_FILTER, on x86_64 or aarch64"),
            ),
        }
        self.all_or_error()
    }

    fn lacks(&mut self, part: &'static str, why: String) {
        self.missing.push(Missing { part, why });
    }

    fn all_or_error(self) -> Result<Self, Required> {
        match self.mode {
            SandboxMode::Required if !self.missing.is_empty() => Err(Required(self.missing)),
            _ => Ok(self),
        }
    }

    /// Says in the log what is in force, in one line, and warns of each part that is not.
    pub fn log(&self) {
        if self.mode == SandboxMode::Off {
            return tracing::warn!("PILLION_SANDBOX=off: nothing but the container confines this");
        }
        let landlock = self.files.as_ref().map(files::Domain::rights).unwrap_or_default();
        tracing::info!(
            no_new_privs = self.no_new_privs,
            landlock = landlock.join(", "),
            seccomp = self.calls,
            "sandboxed"
        );
        if !self.missing.is_empty() {
            let missing: Vec<_> = self.missing.iter().map(ToString::to_string).collect();
            tracing::warn!("not all of the sandbox can be had: {}", missing.join("; "));
        }
        let Some(files) = &self.files else { return };
        if files.is_all_readable() {
            tracing::warn!(
                "a file of the configuration lies in / itself, so every file stays readable: give \
                 it a folder of its own"
            );
        }
        for (wanted, opened) in files.wider() {
            tracing::warn!(
                missing = %wanted.display(), readable = %opened.display(),
                "a folder is not there yet, so all of the one above it stays readable: mount the \
                 volume, or make the folder, before the proxy starts"
            );
        }
    }

    /// What is in force, for `/config`.
    pub fn tell(&self) -> Value {
        json!({
            "mode": self.mode.label(),
            "no_new_privs": self.no_new_privs,
            "landlock": self.files.as_ref().map(files::Domain::rights).unwrap_or_default(),
            "readable": self.files.as_ref().map(files::Domain::readable).unwrap_or_default(),
            "seccomp": self.calls,
            "missing": self.missing.iter().map(ToString::to_string).collect::<Vec<_>>(),
        })
    }
}
