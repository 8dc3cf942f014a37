//! Running programs: to their end, or in the background.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill, killpg};
use nix::unistd::Pid;

use crate::{Context, Failure, wait_until};

/// How much of a failed command's output goes into the message.
const TAIL: usize = 2000;

/// A program that has ended.
#[derive(Debug)]
pub struct Finished {
    /// Its exit code; `None` when a signal ended it.
    pub code: Option<i32>,
    /// What it printed on standard output, lossily as text.
    pub stdout: String,
    /// What it printed on standard error, lossily as text.
    pub stderr: String,
    /// From its start to its end.
    pub elapsed: Duration,
}

/// Runs a program to its end, whatever the end is. Its standard input is empty.
///
/// # Errors
/// The program cannot be started.
pub fn finish(command: &mut Command) -> Result<Finished, Failure> {
    let start = Instant::now();
    let output = command.stdin(Stdio::null()).output().context(|| line(command))?;
    Ok(Finished {
        code: output.status.code(),
        stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
        stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        elapsed: start.elapsed(),
    })
}

/// Runs a program that must succeed, and returns what it printed on standard output.
///
/// # Errors
/// [`Failure::Command`] with the end of its output when it did not exit with 0.
pub fn complete(command: &mut Command) -> Result<String, Failure> {
    let finished = finish(command)?;
    if finished.code == Some(0) {
        return Ok(finished.stdout);
    }
    Err(Failure::Command {
        command: line(command),
        status: finished.code.map_or_else(|| "a signal".to_owned(), |code| format!("exit {code}")),
        output: tail(&format!("{}{}", finished.stdout, finished.stderr)).to_owned(),
    })
}

/// The command line, for a message.
pub(crate) fn line(command: &Command) -> String {
    let mut words = vec![command.get_program().to_string_lossy().into_owned()];
    words.extend(command.get_args().map(|word| word.to_string_lossy().into_owned()));
    words.join(" ")
}

/// The last part of a text.
pub(crate) fn tail(text: &str) -> &str {
    let mut from = text.len().saturating_sub(TAIL);
    while !text.is_char_boundary(from) {
        from = from.saturating_add(1);
    }
    text.get(from..).unwrap_or(text)
}

/// A program in the background, with its output in two files. Dropping it kills it and its
/// process group.
#[derive(Debug)]
pub struct Process {
    child: Child,
    name: String,
    stdout: PathBuf,
    stderr: PathBuf,
}

impl Process {
    /// Starts `command` in a process group of its own; output goes to `<directory>/<name>.out`
    /// and `.err`.
    pub(crate) fn start(
        directory: &Path,
        name: &str,
        command: &mut Command,
    ) -> Result<Self, Failure> {
        let stdout = directory.join(format!("{name}.out"));
        let stderr = directory.join(format!("{name}.err"));
        let open = |path: &Path| File::create(path).context(|| path.display().to_string());
        let child = command
            .stdin(Stdio::null())
            .stdout(open(&stdout)?)
            .stderr(open(&stderr)?)
            .process_group(0)
            .spawn()
            .context(|| line(command))?;
        Ok(Self { child, name: name.to_owned(), stdout, stderr })
    }

    /// What it has printed so far on standard output.
    ///
    /// # Errors
    /// The file cannot be read.
    pub fn stdout(&self) -> Result<String, Failure> {
        read_lossy(&self.stdout)
    }

    /// What it has printed so far on standard error.
    ///
    /// # Errors
    /// The file cannot be read.
    pub fn stderr(&self) -> Result<String, Failure> {
        read_lossy(&self.stderr)
    }

    /// Its process id.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// How much CPU time its threads have had that are alive now, to the nanosecond.
    ///
    /// # Errors
    /// It has ended.
    pub fn cpu(&self) -> Result<Duration, Failure> {
        let mut total = Duration::ZERO;
        for task in fs::read_dir(self.proc("task")).context(|| "its threads")? {
            let task = task?.path();
            let line = match fs::read_to_string(task.join("schedstat")) {
                // A thread may end between the listing and the look.
                Err(_) if !task.exists() => continue,
                line => line.context(|| "schedstat")?,
            };
            let nanoseconds = line.split(' ').next().and_then(|first| first.parse().ok());
            total += Duration::from_nanos(nanoseconds.unwrap_or_default());
        }
        Ok(total)
    }

    /// How much memory it has resident, in bytes.
    ///
    /// # Errors
    /// It has ended.
    pub fn resident(&self) -> Result<u64, Failure> {
        let status = fs::read_to_string(self.proc("status")).context(|| "its status")?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        let kibibytes = line.and_then(|line| line.trim().strip_suffix(" kB")?.parse::<u64>().ok());
        kibibytes
            .map(|kibibytes| kibibytes << 10)
            .ok_or_else(|| Failure::Unexpected(format!("no VmRSS of {}", self.name)))
    }

    /// How many file descriptors it has open.
    ///
    /// # Errors
    /// It has ended.
    pub fn descriptors(&self) -> Result<usize, Failure> {
        Ok(fs::read_dir(self.proc("fd")).context(|| "its descriptors")?.count())
    }

    /// Everything that it has in memory and may read itself, one piece for each mapping.
    ///
    /// # Errors
    /// It has ended.
    pub fn memory(&self) -> Result<Vec<Vec<u8>>, Failure> {
        let maps = fs::read_to_string(self.proc("maps")).context(|| "its mappings")?;
        let memory = File::open(self.proc("mem")).context(|| "its memory")?;
        let mut pieces = Vec::new();
        for line in maps.lines().filter(|line| !line.contains("[v")) {
            let mut words = line.split_whitespace();
            let (Some(range), Some(mode)) = (words.next(), words.next()) else { continue };
            let ends = range.split_once('-').and_then(|(from, until)| {
                let hex = |text| u64::from_str_radix(text, 16).ok();
                Some((hex(from)?, hex(until)?))
            });
            let Some((from, until)) = ends.filter(|_| mode.starts_with('r')) else { continue };
            let length = usize::try_from(until.saturating_sub(from)).unwrap_or(0);
            let mut piece = vec![0; length];
            // A mapping may go while it is read; what is gone holds nothing.
            if memory.read_exact_at(&mut piece, from).is_ok() {
                pieces.push(piece);
            }
        }
        Ok(pieces)
    }

    /// The path of one of its files in /proc.
    #[must_use]
    pub fn proc(&self, file: &str) -> PathBuf {
        Path::new("/proc").join(self.pid().to_string()).join(file)
    }

    /// Sends it a signal. One that has already ended is left alone.
    ///
    /// # Errors
    /// The kernel refuses for another reason.
    pub fn signal(&self, signal: Signal) -> Result<(), Failure> {
        match kill(pid_of(&self.child), signal) {
            Ok(()) | Err(nix::Error::ESRCH) => Ok(()),
            Err(error) => Err(error).context(|| format!("{signal} to {}", self.name)),
        }
    }

    /// Its end, when it has ended.
    ///
    /// # Errors
    /// The kernel does not know it.
    pub fn ended(&mut self) -> Result<Option<ExitStatus>, Failure> {
        self.child.try_wait().context(|| format!("waiting for {}", self.name))
    }

    /// Waits for its end: the exit code, or 128 plus the signal that ended it.
    ///
    /// # Errors
    /// It has not ended within `limit`.
    pub fn wait(&mut self, limit: Duration) -> Result<i32, Failure> {
        let what = format!("the end of {}", self.name);
        let status = wait_until(&what, limit, || self.ended())?;
        Ok(status.code().or_else(|| status.signal().map(|signal| 128 + signal)).unwrap_or(-1))
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // One that has been waited for has given up its pid, which may be somebody else's by now.
        if matches!(self.child.try_wait(), Ok(None)) {
            // It may end on its own in between; its pid stays ours until it is waited for.
            let _ = killpg(pid_of(&self.child), Signal::SIGKILL);
            let _ = self.child.wait();
        }
    }
}

fn pid_of(child: &Child) -> Pid {
    // A pid fits 22 bits (PID_MAX_LIMIT); -1 would be a broadcast, so an impossible one is ours.
    Pid::from_raw(i32::try_from(child.id()).unwrap_or(i32::MAX))
}

fn read_lossy(path: &Path) -> Result<String, Failure> {
    let bytes = fs::read(path).context(|| path.display().to_string())?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}
