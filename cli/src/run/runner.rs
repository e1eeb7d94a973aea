//! Our end of a runner: starts it, hears from it, and reaps it.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};

use vout::proto::Outcome;
use vout::wire;

use crate::error::{Attempted, CommandError};
use crate::view::message::{Control, Group, RunnerEvent, RunnerSpec};

/// Where the commands' output goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum RunnerOutput {
    /// Where ours goes. With terminal files in a view only the runner's own complaints do.
    Inherit,
    /// Into two pipes.
    Pipes,
}

/// How a runner ended.
#[derive(Debug)]
pub(crate) enum RunnerEnd {
    /// With the commands.
    Ended(Outcome),
    /// Before they began: the machine denies what the view's placement needs.
    Denied(CommandError),
}

/// A runner.
#[derive(Debug)]
#[must_use = "dropping a runner kills what it runs"]
pub(crate) struct Runner {
    child: Child,
    /// `None` once the runner has been let go.
    control: Option<UnixStream>,
    /// Read ends of standard output and error.
    pub(crate) pipes: Option<(File, File)>,
}

impl Runner {
    /// Starts a runner for `spec`, whose commands read from `stdin`, or from nothing.
    pub(crate) fn start(
        spec: &RunnerSpec,
        stdin: Option<BorrowedFd<'_>>,
        output: RunnerOutput,
    ) -> Result<Self, CommandError> {
        let (control, theirs) = UnixStream::pair().attempted("make a socket for the runner")?;
        // Not the path of our program: that may have been replaced since we were started.
        let mut command = Command::new("/proc/self/exe");
        command.arg0("vout").arg("__view").stdin(OwnedFd::from(theirs));
        if spec.group == Group::Own {
            // A signal to our group must not reach the runner: it is what cleans up after us.
            command.process_group(0);
        }
        if output == RunnerOutput::Pipes {
            command.stdout(Stdio::piped()).stderr(Stdio::piped());
        }
        let mut child = command.spawn().attempted("start the runner")?;
        // Ours still holds the other end of the socket, which would hide the runner's death.
        drop(command);
        let pipes = match (child.stdout.take(), child.stderr.take()) {
            (Some(stdout), Some(stderr)) => {
                Some((OwnedFd::from(stdout).into(), OwnedFd::from(stderr).into()))
            }
            _ => None,
        };
        let runner = Self { child, control: Some(control), pipes };
        let fds: Vec<BorrowedFd<'_>> = stdin.into_iter().collect();
        wire::send(runner.control()?, spec, &fds).attempted("tell the runner what to run")?;
        Ok(runner)
    }

    fn control(&self) -> Result<&UnixStream, CommandError> {
        self.control.as_ref().ok_or_else(|| CommandError::internal("the runner has been let go"))
    }

    /// Returns another handle for [`Control`] messages.
    pub(crate) fn handle(&self) -> Result<UnixStream, CommandError> {
        self.control()?.try_clone().attempted("duplicate the runner's socket")
    }

    /// Returns what becomes readable when the runner has something to tell.
    pub(crate) fn as_fd(&self) -> Result<BorrowedFd<'_>, CommandError> {
        Ok(self.control()?.as_fd())
    }

    /// Has everything killed; what it ended with is still to be received.
    pub(crate) fn kill(&self) {
        if let Some(control) = &self.control {
            // A runner that cannot be told is gone.
            drop(wire::send(control, &Control::Kill, &[]));
        }
    }

    /// Receives how the commands ended.
    pub(crate) fn outcome(&self) -> Result<RunnerEnd, CommandError> {
        let event = wire::receive::<RunnerEvent>(self.control()?).attempted("hear from the runner")?;
        match event.map(|received| received.message) {
            Some(RunnerEvent::Ended(outcome)) => Ok(RunnerEnd::Ended(outcome)),
            Some(RunnerEvent::Denied(failure)) => Ok(RunnerEnd::Denied(failure.into())),
            Some(RunnerEvent::Failed(failure)) => Err(failure.into()),
            None => Err(CommandError::internal("the process that ran the task was killed")),
        }
    }

    /// Waits for the runner, which has told its outcome, to be gone.
    pub(crate) fn reap(mut self) -> io::Result<()> {
        self.child.wait().map(drop)
    }
}

/// Closing the socket has the runner kill all it started, and end.
impl Drop for Runner {
    fn drop(&mut self) {
        if let Some(control) = self.control.take() {
            // Not only closed: others may have a handle of it.
            drop(control.shutdown(std::net::Shutdown::Both));
        }
        drop(self.child.wait());
    }
}
