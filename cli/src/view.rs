//! The runner: a child of `vout run` that enters a task's view and runs the commands there.
//!
//! It is a process of its own because a mount namespace belongs to a process, and because it outlives a
//! `vout run` that is killed for just as long as it takes to kill the task as well.

pub(crate) mod children;
pub(crate) mod fusermount;
pub(crate) mod message;
pub(crate) mod namespace;

use std::ffi::OsStr;
use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use rustix::process::Signal;
use vout::proto::{Failure, FailureKind, Outcome};
use vout::wire;

use self::children::{Children, Stdio3};
use self::message::{Control, Group, RunnerEvent, RunnerSpec};
use self::namespace::{EnterError, TerminalFiles};
use crate::error::{Attempted, CommandError, EXIT_INTERNAL, ErrorKind};
use crate::workspace::directory;

/// Signals that `vout run` passes on itself, and that must not end the runner on the way.
const FORWARDED: [i32; 4] =
    [Signal::INT.as_raw(), Signal::TERM.as_raw(), Signal::HUP.as_raw(), Signal::QUIT.as_raw()];

/// Runs what standard input says: the hidden `vout __view`.
pub(crate) fn main() -> Result<(), CommandError> {
    // For people who look at `ps`: the program was started as `/proc/self/exe`.
    let _ = rustix::thread::set_name(c"vout-view");
    let control = UnixStream::from(
        rustix::stdio::stdin().try_clone_to_owned().attempted("take over the runner's standard input")?,
    );
    let received = wire::receive::<RunnerSpec>(&control).attempted("read what to run")?;
    let Some(received) = received else { return Ok(()) };
    let event = match run(&received.message, received.fds.into_iter().next(), &control) {
        Ok(outcome) => RunnerEvent::Ended(outcome),
        Err(EnterError::Denied(error)) => RunnerEvent::Denied(failure_of(error)),
        Err(EnterError::Failed(error)) => RunnerEvent::Failed(failure_of(error)),
    };
    match wire::send(&control, &event, &[]) {
        // A `vout run` that is gone, or has given up, has said so itself.
        Err(error) if error.is_disconnect() => Ok(()),
        told => told.attempted("tell how the task ended"),
    }
}

fn run(spec: &RunnerSpec, stdin: Option<OwnedFd>, control: &UnixStream) -> Result<Outcome, EnterError> {
    let from_terminal = ignore_forwarded_signals()?;
    rustix::process::set_child_subreaper(Some(rustix::process::getpid()))
        .map_err(io::Error::from)
        .attempted("become the task's subreaper")?;
    let entered = match &spec.view {
        Some(view) => Some(namespace::enter(view, &spec.workspace, spec.terminal)?),
        None => None,
    };
    let root = entered.as_ref().map_or(spec.workspace.as_path(), |entered| &entered.root);
    let directory = directory(root, &spec.cwd);
    rustix::process::chdir(&directory).map_err(|errno| {
        CommandError::user(format_args!("cannot enter the working directory {directory:?}"))
            .caused_by(&io::Error::from(errno))
    })?;
    let children = Arc::new(Children::new(spec.group));
    watch_control(control, &children)?;
    let terminal = entered.as_ref().and_then(|entered| entered.terminal.as_ref());
    let task = Task { spec, directory: &directory, stdin: stdin.as_ref(), terminal, from_terminal };
    let outcome = task.run(&children)?;
    children.release();
    // Nothing of ours may keep the view busy while the daemon takes stock of it.
    rustix::process::chdir(Path::new("/")).map_err(io::Error::from).attempted("leave the view")?;
    Ok(outcome)
}

/// The commands and their surroundings.
struct Task<'a> {
    spec: &'a RunnerSpec,
    directory: &'a Path,
    stdin: Option<&'a OwnedFd>,
    terminal: Option<&'a TerminalFiles>,
    /// Set by the signals that a terminal sends to all of its foreground group.
    from_terminal: Arc<AtomicBool>,
}

impl Task<'_> {
    fn run(&self, children: &Children) -> Result<Outcome, CommandError> {
        let started = Instant::now();
        let mut exit_code = 0;
        for line in &self.spec.commands {
            let mut command = children::command_of(line);
            let env = self.spec.env.iter();
            command
                .env_clear()
                .envs(env.map(|(name, value)| (OsStr::from_bytes(name), OsStr::from_bytes(value))))
                .env("PWD", self.directory);
            let (stdio, mut complaints) = self
                .stdio()
                .and_then(|stdio| Ok((stdio, self.complaints()?)))
                .attempted("hand out the terminal")?;
            exit_code = children.run(&mut command, &mut complaints, stdio).attempted("run the task")?;
            if exit_code != 0 || self.interrupted(children) {
                break;
            }
        }
        let duration_ms = u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX);
        let mut outlived = children.outlived();
        let interrupted = self.interrupted(children);
        if interrupted {
            children.kill_all();
            outlived.clear();
        }
        Ok(Outcome { exit_code, interrupted, outlived, duration_ms })
    }

    /// Returns whether the task was cut short. In the terminal's group a command may have ended of Ctrl-C
    /// before we are told of it, but not before we had the signal ourselves.
    fn interrupted(&self, children: &Children) -> bool {
        children.interrupted()
            || self.spec.group == Group::Terminal && self.from_terminal.load(Ordering::Acquire)
    }

    fn stdio(&self) -> io::Result<Stdio3> {
        let stdin = match self.stdin {
            Some(fd) => fd.try_clone()?.into(),
            None => Stdio::null(),
        };
        let (stdout, stderr) = match self.terminal {
            Some(files) => (files.stdout.try_clone()?.into(), files.stderr.try_clone()?.into()),
            None => (Stdio::inherit(), Stdio::inherit()),
        };
        Ok(Stdio3 { stdin, stdout, stderr })
    }

    /// Returns where to say that a command cannot be started.
    fn complaints(&self) -> io::Result<File> {
        match self.terminal {
            Some(files) => files.stderr.try_clone(),
            None => Ok(rustix::stdio::stderr().try_clone_to_owned()?.into()),
        }
    }
}

/// Installs handlers that only note signals. Unlike ignoring, that is undone in the commands by their exec.
///
/// Returns what is set by the signals that a terminal sends.
fn ignore_forwarded_signals() -> Result<Arc<AtomicBool>, CommandError> {
    let (from_terminal, others) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(false)));
    for signal in FORWARDED {
        let by_terminal = signal == Signal::INT.as_raw() || signal == Signal::QUIT.as_raw();
        let noted = if by_terminal { &from_terminal } else { &others };
        signal_hook::flag::register(signal, Arc::clone(noted)).attempted("take over a signal")?;
    }
    Ok(from_terminal)
}

/// Obeys `vout run` in a thread, and ends everything when it is gone.
fn watch_control(control: &UnixStream, children: &Arc<Children>) -> Result<(), CommandError> {
    let control = control.try_clone().attempted("duplicate the control socket")?;
    let children = Arc::clone(children);
    let watch = move || {
        while let Ok(Some(received)) = wire::receive::<Control>(&control) {
            match received.message {
                Control::Signal(number) => {
                    if let Some(signal) = Signal::from_named_raw(number) {
                        children.signal(signal);
                    }
                }
                Control::Kill => children.kill_all(),
            }
        }
        children.kill_all();
        // Nobody is left to report to.
        std::process::exit(i32::from(EXIT_INTERNAL));
    };
    std::thread::Builder::new().name("control".to_owned()).spawn(watch).attempted("start a thread")?;
    Ok(())
}

fn failure_of(error: CommandError) -> Failure {
    let kind = match error.kind {
        ErrorKind::User | ErrorKind::Usage => FailureKind::User,
        ErrorKind::Config => FailureKind::Config,
        ErrorKind::Internal => FailureKind::Internal,
    };
    Failure { kind, causes: error.causes, hints: error.hints }
}
