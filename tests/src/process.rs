//! Child processes that never outlive the test, even when the test is killed with SIGKILL.

use std::fs::File;
use std::io;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Sender, channel};
use std::sync::{LazyLock, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
pub use nix::sys::signal::Signal;
use nix::unistd::Pid;

use crate::wait::try_eventually;

type Job = Box<dyn FnOnce() + Send>;

/// The kernel sends the parent-death signal when the *thread* that forked ends, and test threads end early. This one
/// lives as long as the process.
static SPAWNER: LazyLock<Sender<Job>> = LazyLock::new(|| {
    let (jobs, queue) = channel::<Job>();
    thread::spawn(move || queue.into_iter().for_each(|job| job()));
    jobs
});

/// A child process with its output in a file. Dropping it kills it.
#[derive(Debug)]
pub struct Process {
    name: String,
    log: PathBuf,
    pid: u32,
    child: Mutex<Child>,
}

impl Process {
    /// Starts `command`. Its program, arguments, environment changes and directory count; standard input is empty and
    /// both outputs are appended to the file `log`. (An `env_clear` is lost: the command is started through `setpriv`.)
    pub fn spawn(name: &str, command: &Command, log: impl Into<PathBuf>) -> Result<Self> {
        let log = log.into();
        let output = File::options()
            .create(true)
            .append(true)
            .open(&log)
            .with_context(|| log.display().to_string())?;
        // setpriv replaces itself by the command, so the child's pid is the command's.
        let mut guarded = Command::new("setpriv");
        guarded
            .args(["--pdeathsig", "KILL", "--"])
            .arg(command.get_program())
            .args(command.get_args());
        for (key, value) in command.get_envs() {
            match value {
                Some(value) => guarded.env(key, value),
                None => guarded.env_remove(key),
            };
        }
        if let Some(dir) = command.get_current_dir() {
            guarded.current_dir(dir);
        }
        guarded
            .stdin(Stdio::null())
            .stdout(output.try_clone()?)
            .stderr(output);

        let (reply, answer) = channel();
        SPAWNER
            .send(Box::new(move || drop(reply.send(guarded.spawn()))))
            .map_err(|_| anyhow!("the spawning thread is gone"))?;
        let child = answer
            .recv()?
            .with_context(|| format!("start {name} through setpriv (util-linux)"))?;
        Ok(Self {
            name: name.to_owned(),
            log,
            pid: child.id(),
            child: Mutex::new(child),
        })
    }

    /// The name it was started under.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// Where its output goes.
    pub fn log_path(&self) -> &Path {
        &self.log
    }

    /// All it has written so far.
    pub fn log(&self) -> String {
        std::fs::read(&self.log)
            .map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
            .unwrap_or_default()
    }

    /// How it ended, or `None` while it runs.
    pub fn exited(&self) -> Option<ExitStatus> {
        // A child that can't be waited for is gone: somebody else reaped it.
        self.child()
            .try_wait()
            .unwrap_or_else(|_| Some(ExitStatus::from_raw(0)))
    }

    /// Sends a signal; an error if it has ended already.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        // With the lock held nobody reaps it, so its pid can't have become another process's.
        let mut child = self.child();
        if let Some(status) = child.try_wait()? {
            bail!("{} has ended: {status}", self.name);
        }
        nix::sys::signal::kill(Pid::from_raw(i32::try_from(self.pid)?), signal)?;
        Ok(())
    }

    /// Waits for it to end by itself.
    pub async fn wait(&self, timeout: Duration) -> Result<ExitStatus> {
        try_eventually(&format!("the end of {}", self.name), timeout, async || {
            self.exited()
        })
        .await
    }

    /// Waits for a line of its output that `wanted` accepts, and returns it. Fails at once when it ends without one.
    pub async fn await_log(&self, timeout: Duration, wanted: impl Fn(&str) -> bool) -> Result<String> {
        self.await_log_from(0, timeout, wanted).await
    }

    /// [`await_log`](Self::await_log), past the first `offset` bytes of the log: those of an earlier process.
    pub async fn await_log_from(
        &self,
        offset: usize,
        timeout: Duration,
        wanted: impl Fn(&str) -> bool,
    ) -> Result<String> {
        let what = format!("a line in the output of {}", self.name);
        let found = try_eventually(&what, timeout, async || {
            // Asked before reading: what an ended process wrote last is in the file by then.
            let ended = self.exited();
            let log = self.log();
            let mut lines = log
                .get(offset..)
                .unwrap_or_default()
                .split_inclusive('\n')
                .filter(|line| line.ends_with('\n'))
                .map(str::trim_end);
            match (lines.find(|line| wanted(line)), ended) {
                (Some(line), _) => Ok(Ok(line.to_owned())),
                (None, Some(status)) => Ok(Err(anyhow!("{} ended: {status}\n{}", self.name, tail(&log, 30)))),
                (None, None) => Err(format!("\n{}", tail(&log, 30))),
            }
        });
        found.await?
    }

    /// Kills it and waits until it is gone.
    pub fn kill(&self) {
        let mut child = self.child();
        // Both fail only for a child that has been reaped, which is what is wanted.
        let _ = child.kill();
        let _ = child.wait();
    }

    fn child(&self) -> MutexGuard<'_, Child> {
        self.child.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Runs a command to its end, and returns what it printed.
pub(crate) async fn output(command: Command) -> Result<String> {
    let mut command = tokio::process::Command::from(command);
    let output = command
        .kill_on_drop(true)
        .output()
        .await
        .with_context(|| format!("{command:?}"))?;
    if !output.status.success() {
        bail!(
            "{command:?}: {}\n{}",
            output.status,
            String::from_utf8_lossy(&output.stderr)
        );
    }
    Ok(String::from_utf8(output.stdout)?)
}

/// Whether a process with this id runs. One that has ended and waits to be reaped doesn't.
pub fn is_running(pid: u32) -> io::Result<bool> {
    match std::fs::read_to_string(format!("/proc/{pid}/stat")) {
        // The name in parentheses may itself hold any character, so the state is what follows the last of them.
        Ok(stat) => Ok(stat
            .rsplit(") ")
            .next()
            .is_some_and(|rest| !rest.starts_with(['Z', 'X']))),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        // ESRCH: it ended between open and read.
        Err(error) if error.raw_os_error() == Some(nix::libc::ESRCH) => Ok(false),
        Err(error) => Err(error),
    }
}

/// The last lines of a text.
pub(crate) fn tail(text: &str, lines: usize) -> String {
    let all: Vec<&str> = text.lines().collect();
    all[all.len().saturating_sub(lines)..].join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    const SOON: Duration = Duration::from_secs(10);

    fn shell(script: &str) -> (tempfile::TempDir, Process) {
        let dir = tempfile::tempdir().unwrap();
        let mut command = Command::new("sh");
        command
            .args(["-c", script])
            .env("GREETING", "hello")
            .current_dir(dir.path());
        let process = Process::spawn("sh", &command, dir.path().join("log")).unwrap();
        (dir, process)
    }

    #[tokio::test]
    async fn output_environment_and_exit_status_are_seen() {
        let (_dir, process) = shell("echo $GREETING; echo oops >&2; exit 3");
        assert_eq!(
            process
                .await_log(SOON, |line| line.starts_with("hel"))
                .await
                .unwrap(),
            "hello"
        );
        assert_eq!(process.wait(SOON).await.unwrap().code(), Some(3));
        assert_eq!(process.log(), "hello\noops\n");
        assert!(process.signal(Signal::SIGTERM).is_err());
    }

    #[tokio::test]
    async fn a_line_that_never_comes_fails_when_the_process_ends() {
        let (_dir, process) = shell("echo broken; exit 1");
        let error = process
            .await_log(SOON, |line| line == "ready")
            .await
            .unwrap_err()
            .to_string();
        assert!(
            error.contains("exit status: 1") && error.contains("broken"),
            "{error}"
        );
    }

    #[tokio::test]
    async fn signals_reach_the_command_itself() {
        let (_dir, process) = shell("trap 'exit 7' TERM; echo ready; while :; do :; done");
        process.await_log(SOON, |line| line == "ready").await.unwrap();
        process.signal(Signal::SIGTERM).unwrap();
        assert_eq!(process.wait(SOON).await.unwrap().code(), Some(7));
    }

    #[test]
    fn dropping_it_kills_it() {
        let (_dir, process) = shell("exec sleep 600");
        let pid = process.pid();
        assert!(is_running(pid).unwrap());
        drop(process);
        assert!(!is_running(pid).unwrap());
    }
}
