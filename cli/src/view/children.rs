//! Starts a task's commands, passes signals on to them, and finds what outlives them.

use std::collections::{HashMap, HashSet};
use std::ffi::OsStr;
use std::fs;
use std::io::{self, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rustix::io::Errno;
use rustix::process::{Pid, Signal, WaitId, WaitIdOptions, WaitOptions, WaitStatus};
use vout::task::CommandLine;

use super::message::Group;
use crate::sys;

/// How long descendants may take to end after the last command has.
const LINGER: Duration = Duration::from_millis(300);

/// How often they are looked after meanwhile.
const LINGER_STEP: Duration = Duration::from_millis(5);

/// How often the search for processes to kill is repeated: each round may find what was forked during the
/// one before.
const KILL_ROUNDS_MAX: usize = 50;

/// Exit code of a shell for a command that cannot be executed.
const EXIT_NOT_EXECUTABLE: i32 = 126;

/// Exit code of a shell for a command that is not there.
const EXIT_NOT_FOUND: i32 = 127;

/// The running commands of one task.
#[derive(Debug)]
pub(crate) struct Children {
    group: Group,
    /// What runs now and whether more may be started. Held while a command is started or reaped, so that a
    /// signal never goes to a process id that has been given away.
    state: Mutex<State>,
    stopped: Condvar,
}

#[derive(Debug, Default)]
struct State {
    current: Option<Pid>,
    interrupted: bool,
    released: bool,
}

/// What the commands read and write.
pub(crate) struct Stdio3 {
    /// Standard input.
    pub(crate) stdin: Stdio,
    /// Standard output.
    pub(crate) stdout: Stdio,
    /// Standard error.
    pub(crate) stderr: Stdio,
}

impl Children {
    /// Prepares for commands in `group`.
    pub(crate) fn new(group: Group) -> Self {
        Self { group, state: Mutex::default(), stopped: Condvar::new() }
    }

    /// Runs one command to its end and returns its exit code as a shell has it.
    ///
    /// Where it cannot be started, `complaints` gets the sentence that a shell would print.
    pub(crate) fn run(
        &self,
        command: &mut Command,
        complaints: &mut dyn Write,
        stdio: Stdio3,
    ) -> io::Result<i32> {
        if self.group == Group::Own {
            command.process_group(0);
        }
        sys::with_default_signals(command);
        sys::die_with_parent(command);
        command.stdin(stdio.stdin).stdout(stdio.stdout).stderr(stdio.stderr);
        let pid = {
            let mut state = self.lock();
            if state.interrupted {
                return Ok(exit_code_of_signal(Signal::INT.as_raw()));
            }
            match command.spawn() {
                Ok(child) => {
                    let pid = Pid::from_child(&child);
                    state.current = Some(pid);
                    pid
                }
                Err(error) => {
                    drop(state);
                    return explain_start(command.get_program(), &error, complaints);
                }
            }
        };
        loop {
            // Orphans of the task are ours to reap too, because the runner is their subreaper.
            match rustix::process::waitid(WaitId::All, WaitIdOptions::EXITED | WaitIdOptions::NOWAIT) {
                Ok(_) | Err(Errno::INTR) => {}
                Err(errno) => return Err(errno.into()),
            }
            let mut state = self.lock();
            if let Some((reaped, status)) = rustix::process::wait(WaitOptions::NOHANG)?
                && reaped == pid
            {
                state.current = None;
                return Ok(exit_code(status));
            }
        }
    }

    /// Passes `signal` on and lets nothing more be started.
    pub(crate) fn signal(&self, signal: Signal) {
        let mut state = self.lock();
        state.interrupted = true;
        self.stopped.notify_all();
        let Some(pid) = state.current else { return };
        // A process that is already gone needs no signal.
        let _ = match self.group {
            Group::Own => rustix::process::kill_process_group(pid, signal),
            // Those two the terminal has sent to the whole foreground group already.
            Group::Terminal if matches!(signal, Signal::INT | Signal::QUIT) => Ok(()),
            Group::Terminal => rustix::process::kill_process(pid, signal),
        };
    }

    /// Kills all descendants and lets nothing more be started.
    pub(crate) fn kill_all(&self) {
        {
            let mut state = self.lock();
            if state.released {
                return;
            }
            state.interrupted = true;
        }
        self.stopped.notify_all();
        for _ in 0..KILL_ROUNDS_MAX {
            let descendants = descendants();
            if descendants.is_empty() {
                return;
            }
            for (pid, _) in descendants {
                let _ = rustix::process::kill_process(pid, Signal::KILL);
            }
        }
    }

    /// Lets what is left live on: the task is over, and [`kill_all`](Self::kill_all) does nothing any more.
    pub(crate) fn release(&self) {
        self.lock().released = true;
    }

    /// Returns whether a signal was passed on.
    pub(crate) fn interrupted(&self) -> bool {
        self.lock().interrupted
    }

    /// Waits a little for all descendants to end, and returns the names of those that do not.
    pub(crate) fn outlived(&self) -> Vec<String> {
        let deadline = Instant::now() + LINGER;
        let mut state = self.lock();
        loop {
            match rustix::process::wait(WaitOptions::NOHANG) {
                Ok(Some(_)) | Err(Errno::INTR) => continue,
                Err(_) => return Vec::new(),
                Ok(None) => {}
            }
            if state.interrupted || Instant::now() >= deadline {
                drop(state);
                let mut names: Vec<String> = descendants().into_iter().map(|(_, name)| name).collect();
                names.sort();
                return names;
            }
            let waited = self.stopped.wait_timeout(state, LINGER_STEP);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // The state is two plain values; a panic elsewhere cannot have left it half-changed.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Returns the process that runs `line`, without its environment.
pub(crate) fn command_of(line: &CommandLine) -> Command {
    match line {
        CommandLine::Direct(words) => {
            let mut words = words.iter().map(|word| OsStr::from_bytes(word));
            let mut command = Command::new(words.next().unwrap_or_default());
            command.args(words);
            command
        }
        CommandLine::Shell(text) => {
            let mut command = Command::new("/bin/sh");
            command.arg("-c").arg(text);
            command
        }
    }
}

/// Says why a command could not be started, and returns the exit code that a shell has for it.
pub(crate) fn explain_start(
    program: &OsStr,
    error: &io::Error,
    complaints: &mut dyn Write,
) -> io::Result<i32> {
    let (code, problem) = match error.kind() {
        io::ErrorKind::NotFound => (EXIT_NOT_FOUND, "not found".to_owned()),
        _ => (EXIT_NOT_EXECUTABLE, error.to_string()),
    };
    writeln!(complaints, "vout: {}: {problem}", program.display())?;
    Ok(code)
}

/// Returns the exit code that a shell has for `status`.
fn exit_code(status: WaitStatus) -> i32 {
    match (status.exit_status(), status.terminating_signal()) {
        (Some(code), _) => code,
        (None, Some(signal)) => exit_code_of_signal(signal),
        (None, None) => EXIT_NOT_EXECUTABLE,
    }
}

/// Returns the exit code that a shell has for a death by `signal`.
pub(crate) const fn exit_code_of_signal(signal: i32) -> i32 {
    128 + signal
}

/// Returns the living descendants of this process with their command names.
fn descendants() -> Vec<(Pid, String)> {
    let mut parents = HashMap::new();
    let Ok(entries) = fs::read_dir("/proc") else { return Vec::new() };
    for entry in entries.flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<i32>().ok()) else {
            continue;
        };
        if let Some(stat) =
            fs::read(entry.path().join("stat")).ok().and_then(|stat| ProcessStat::parse(&stat))
        {
            parents.insert(pid, stat);
        }
    }
    let own = rustix::process::getpid().as_raw_pid();
    let mut ours = HashSet::from([own]);
    // A parent may have a higher number than its child, so one pass is not enough.
    loop {
        let before = ours.len();
        ours.extend(
            parents
                .iter()
                .filter(|(_, stat)| ours.contains(&stat.parent))
                .map(|(pid, _)| *pid)
                .collect::<Vec<_>>(),
        );
        if ours.len() == before {
            break;
        }
    }
    ours.remove(&own);
    let living = ours.into_iter().filter_map(|pid| {
        let stat = parents.remove(&pid)?;
        (!stat.dead).then_some((Pid::from_raw(pid)?, stat.name))
    });
    living.collect()
}

/// What we need of `/proc/PID/stat`.
struct ProcessStat {
    parent: i32,
    name: String,
    dead: bool,
}

impl ProcessStat {
    fn parse(stat: &[u8]) -> Option<Self> {
        // The name is in parentheses and may contain any byte, parentheses too; no later field does.
        let open = stat.iter().position(|byte| *byte == b'(')?;
        let close = stat.iter().rposition(|byte| *byte == b')')?;
        let name = String::from_utf8_lossy(stat.get(open + 1..close)?).into_owned();
        let rest = std::str::from_utf8(stat.get(close + 1..)?).ok()?;
        let mut fields = rest.split_ascii_whitespace();
        let dead = matches!(fields.next()?, "Z" | "X");
        Some(Self { parent: fields.next()?.parse().ok()?, name, dead })
    }
}

#[cfg(test)]
mod tests {
    use serde_bytes::ByteBuf;

    use super::*;

    fn null() -> Stdio3 {
        Stdio3 { stdin: Stdio::null(), stdout: Stdio::null(), stderr: Stdio::null() }
    }

    #[test]
    fn stat_lines_with_hostile_names_are_read() {
        let stat = ProcessStat::parse(b"12 (a) R 1 (x) S 7 12 12 0").unwrap();
        assert_eq!((stat.parent, stat.name.as_str(), stat.dead), (7, "a) R 1 (x", false));
        assert!(ProcessStat::parse(b"12 (gone) Z 7").unwrap().dead);
        assert!(ProcessStat::parse(b"nonsense").is_none());
    }

    #[test]
    fn a_command_that_is_missing_or_not_executable_ends_as_in_a_shell() {
        let children = Children::new(Group::Own);
        let mut said = Vec::new();
        let missing = children.run(&mut Command::new("vout-no-such-program"), &mut said, null());
        assert_eq!(missing.unwrap(), 127);
        assert_eq!(String::from_utf8_lossy(&said), "vout: vout-no-such-program: not found\n");
        let directory = children.run(&mut Command::new("/etc"), &mut said, null());
        assert_eq!(directory.unwrap(), 126);
    }

    #[test]
    fn words_reach_a_program_as_they_are() {
        let line = CommandLine::Direct(vec![ByteBuf::from("/bin/echo"), ByteBuf::from("$HOME; *")]);
        let output = command_of(&line).output().unwrap();
        assert_eq!(output.stdout, b"$HOME; *\n");
        let output = command_of(&CommandLine::Shell("echo $((1+1))".into())).output().unwrap();
        assert_eq!(output.stdout, b"2\n");
    }
}
