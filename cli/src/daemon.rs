//! The connection to `vout-mountd`, which is started where it is not running.

use std::ffi::OsString;
use std::fs::{self, File, OpenOptions};
use std::io::{self, BufRead, BufReader, Read, Seek, SeekFrom};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use vout::limits::Limits;
use vout::proto::{Event, PROTOCOL_VERSION, Request};
use vout::report::Progress;
use vout::wire;

use crate::args::DaemonArgs;
use crate::error::{Attempted, CommandError};
use crate::sys;
use crate::workspace::Place;

/// Name of the daemon's program.
const PROGRAM: &str = "vout-mountd";

/// What the daemon writes to its standard output once it can be connected to.
const READY_LINE: &str = "ready";

/// How often a daemon that is just going away is given room before another one is started.
const CONNECT_ATTEMPTS: usize = 3;

/// Bytes of output, or from the end of a log, that may explain why a daemon did not start.
const LOG_TAIL_BYTES: u64 = 4096;

/// A conversation with the daemon, past its greeting.
#[derive(Debug)]
pub(crate) struct Connection {
    stream: UnixStream,
}

impl Connection {
    /// Connects to the daemon of `place`, and starts it if there is none.
    pub(crate) fn open(place: &Place) -> Result<Self, CommandError> {
        for _ in 0..CONNECT_ATTEMPTS {
            // A daemon that was idle may close its socket between our connecting and its greeting.
            if let Some(connection) = Self::existing(place)? {
                return Ok(connection);
            }
            start(place)?;
        }
        Self::existing(place)?.ok_or_else(|| {
            CommandError::internal("vout-mountd starts, but closes its connections at once")
                .hint(format!("its log is {}", place.runtime.log().display()))
        })
    }

    /// Connects to the daemon of `place` if it is running.
    pub(crate) fn existing(place: &Place) -> Result<Option<Self>, CommandError> {
        match connect(place.runtime.socket())? {
            Some(stream) => Self::greet(stream),
            None => Ok(None),
        }
    }

    /// Connects to the daemon at `socket`, which must be running.
    pub(crate) fn at(socket: &Path) -> Result<Self, CommandError> {
        let stream = UnixStream::connect(socket).attempted("reach vout-mountd")?;
        Self::greet(stream)?.ok_or_else(hung_up)
    }

    /// Exchanges versions; `None` where the daemon hung up before it answered.
    fn greet(stream: UnixStream) -> Result<Option<Self>, CommandError> {
        let connection = Self { stream };
        match wire::send(&connection.stream, &Request::Hello { version: PROTOCOL_VERSION.to_owned() }, &[]) {
            Ok(()) => {}
            Err(error) if error.is_disconnect() => return Ok(None),
            Err(error) => return Err(CommandError::internal("cannot talk to vout-mountd").caused_by(&error)),
        }
        match wire::receive::<Event>(&connection.stream) {
            Ok(Some(received)) => match received.message {
                Event::Ready => Ok(Some(connection)),
                Event::Failed(failure) => Err(other_version(CommandError::from(failure))),
                other => Err(other_version(unexpected(&other))),
            },
            Ok(None) => Ok(None),
            Err(error) if error.is_disconnect() => Ok(None),
            Err(error) => Err(other_version(
                CommandError::internal("vout-mountd does not speak this protocol").caused_by(&error),
            )),
        }
    }

    /// Sends a request.
    pub(crate) fn send(&self, request: &Request) -> Result<(), CommandError> {
        wire::send(&self.stream, request, &[]).map_err(|error| connection_error(&error))
    }

    /// Sends a request with a descriptor.
    pub(crate) fn send_with(&self, request: &Request, fd: BorrowedFd<'_>) -> Result<(), CommandError> {
        wire::send(&self.stream, request, &[fd]).map_err(|error| connection_error(&error))
    }

    /// Receives the next event; a failure of the request is an error.
    pub(crate) fn receive(&self) -> Result<Event, CommandError> {
        let received = wire::receive::<Event>(&self.stream).map_err(|error| connection_error(&error))?;
        match received.ok_or_else(hung_up)?.message {
            Event::Failed(failure) => Err(failure.into()),
            event => Ok(event),
        }
    }

    /// Receives events up to one that is not progress.
    pub(crate) fn receive_past_progress(
        &self,
        mut progress: impl FnMut(&Progress),
    ) -> Result<Event, CommandError> {
        loop {
            match self.receive()? {
                Event::Progress(step) => progress(&step),
                event => return Ok(event),
            }
        }
    }

    /// Sends a request that is answered by one event.
    pub(crate) fn ask(&self, request: &Request) -> Result<Event, CommandError> {
        self.send(request)?;
        self.receive_past_progress(|_| {})
    }

    /// Returns another handle of the same connection, for closing it from elsewhere.
    pub(crate) fn handle(&self) -> Result<UnixStream, CommandError> {
        self.stream.try_clone().attempted("duplicate the connection to vout-mountd")
    }
}

impl AsFd for Connection {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }
}

/// Returns the error for an event that has no place in the conversation.
pub(crate) fn unexpected(event: &Event) -> CommandError {
    let mut shown = format!("{event:?}");
    shown.truncate(shown.floor_char_boundary(200));
    CommandError::internal(format_args!("unexpected answer of vout-mountd: {shown}"))
}

fn hung_up() -> CommandError {
    CommandError::internal("vout-mountd ended in the middle of a request")
        .hint("its log says why; `vout doctor` shows where it is")
}

fn connection_error(error: &wire::WireError) -> CommandError {
    if error.is_disconnect() {
        return hung_up();
    }
    CommandError::internal("the conversation with vout-mountd failed").caused_by(error)
}

fn other_version(error: CommandError) -> CommandError {
    error.hint(format!(
        "a {PROGRAM} of another version is running: `vout unmount` with the vout that started it, or end \
         that process; the next command starts the right one"
    ))
}

/// Connects, or returns `None` where nobody listens.
fn connect(socket: &Path) -> Result<Option<UnixStream>, CommandError> {
    match UnixStream::connect(socket) {
        Ok(stream) => Ok(Some(stream)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        // A socket file that a killed daemon left; the next daemon replaces it under its lock.
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => Ok(None),
        Err(error) => Err(error).attempted(format_args!("connect to {socket:?}")),
    }
}

/// Unmounts what a killed daemon left at `path`.
pub(crate) fn clear_dead(path: &Path) -> Result<(), CommandError> {
    let program = daemon_program(&std::env::current_exe().attempted("find the program that is running")?);
    let output = Command::new(&program)
        .arg("--clear-dead")
        .arg(path)
        .stdin(Stdio::null())
        .stderr(Stdio::inherit())
        .output()
        .attempted(format_args!("start {program:?}"))?;
    if output.status.success() {
        return Ok(());
    }
    let mut error = CommandError::user(format_args!("{} cannot be unmounted", path.display()));
    error.causes.extend(String::from_utf8_lossy(&output.stdout).lines().map(str::to_owned));
    Err(error.hint(format!("umount -l {}", path.display())))
}

/// Starts the daemon and waits until it can be connected to.
fn start(place: &Place) -> Result<(), CommandError> {
    let ourselves = std::env::current_exe().attempted("find the program that is running")?;
    let program = daemon_program(&ourselves);
    let log_path = place.runtime.log();
    let mut log = OpenOptions::new()
        .create(true)
        .append(true)
        .read(true)
        .mode(0o600)
        .open(log_path)
        .attempted(format_args!("open the log {log_path:?}"))?;
    let log_start = log.seek(SeekFrom::End(0)).attempted("look at the log")?;

    let mut child = Command::new(&ourselves)
        .arg("__daemon")
        .arg(&program)
        .arg("--")
        .args([OsString::from("--workspace"), place.root.clone().into()])
        .args([OsString::from("--store"), place.store.clone().into()])
        .args([OsString::from("--socket"), place.runtime.socket().into()])
        .args([OsString::from("--log"), log_path.into()])
        .args(limit_arguments(&place.limits))
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(log.try_clone().attempted("duplicate the log")?)
        .spawn()
        .attempted(format_args!("start {program:?}"))?;
    let Some(said) = wait_until_ready(&mut child)? else { return Ok(()) };
    let status = child.wait().attempted("wait for vout-mountd")?;
    let mut error = CommandError::internal(format_args!("{PROGRAM} did not start ({status})"));
    error.causes.extend(if said.is_empty() { log_tail(&mut log, log_start) } else { said });
    Err(error.hint(format!("its log is {}", log_path.display())))
}

fn limit_arguments(limits: &Limits) -> [String; 8] {
    // By name, so that a new limit is not forgotten here.
    let Limits { bytes_max, age_max_secs, entries_per_task_max, blob_bytes_max } = limits;
    [
        "--archive-bytes-max".to_owned(),
        bytes_max.to_string(),
        "--hydrated-bytes-max".to_owned(),
        blob_bytes_max.to_string(),
        "--age-max-secs".to_owned(),
        age_max_secs.to_string(),
        "--entries-per-task-max".to_owned(),
        entries_per_task_max.to_string(),
    ]
}

/// Returns `None` once the daemon can be connected to, or else the lines in which it said why not.
fn wait_until_ready(child: &mut Child) -> Result<Option<Vec<String>>, CommandError> {
    let Some(stdout) = child.stdout.take() else { return Ok(Some(Vec::new())) };
    let mut said = Vec::new();
    for line in BufReader::new(stdout.take(LOG_TAIL_BYTES)).lines() {
        let line = line.attempted("hear from vout-mountd")?;
        if said.is_empty() && line == READY_LINE {
            return Ok(None);
        }
        if !line.trim().is_empty() {
            said.push(line);
        }
    }
    Ok(Some(said))
}

/// Returns the last lines that were logged after `start`.
fn log_tail(log: &mut File, start: u64) -> Vec<String> {
    let read = |log: &mut File| -> io::Result<String> {
        let end = log.seek(SeekFrom::End(0))?;
        log.seek(SeekFrom::Start(start.max(end.saturating_sub(LOG_TAIL_BYTES))))?;
        let mut bytes = Vec::new();
        log.read_to_end(&mut bytes)?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    };
    let text = read(log).unwrap_or_default();
    let lines: Vec<&str> = text.lines().filter(|line| !line.trim().is_empty()).collect();
    lines[lines.len().saturating_sub(5)..].iter().map(|line| (*line).to_owned()).collect()
}

/// Returns the daemon beside our own program, or else the name to look for on `PATH`.
fn daemon_program(ourselves: &Path) -> PathBuf {
    let beside = ourselves.with_file_name(PROGRAM);
    if fs::metadata(&beside).is_ok_and(|meta| meta.is_file()) { beside } else { PathBuf::from(PROGRAM) }
}

/// Detaches this process from its caller and becomes the daemon: the hidden `vout __daemon`.
///
/// Only a process that leads no group can open a session, and only between fork and exec could that be
/// done without this step.
pub(crate) fn become_daemon(args: &DaemonArgs) -> CommandError {
    let detached = rustix::process::setsid().map_err(io::Error::from).and_then(|_| sys::close_all_on_exec());
    if let Err(error) = detached {
        return CommandError::internal("cannot detach from the caller").caused_by(&error);
    }
    let error = Command::new(&args.program).args(&args.arguments).exec();
    CommandError::internal(format_args!("cannot start {:?}", args.program))
        .caused_by(&error)
        .hint(format!("{PROGRAM} is installed beside vout by `cargo install --path cli`"))
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;

    use super::*;

    type TestResult = Result<(), Box<dyn std::error::Error>>;

    /// Answers the greeting of one connection with `answer`.
    fn greeter(answer: Option<Event>) -> Result<UnixStream, Box<dyn std::error::Error>> {
        let (ours, theirs) = UnixStream::pair()?;
        std::thread::spawn(move || {
            let hello = wire::receive::<Request>(&theirs);
            assert!(matches!(hello, Ok(Some(received)) if matches!(received.message, Request::Hello { .. })));
            if let Some(answer) = answer {
                wire::send(&theirs, &answer, &[]).unwrap();
            }
        });
        Ok(ours)
    }

    #[test]
    fn a_daemon_of_another_version_is_refused_with_advice() -> TestResult {
        let failure = vout::proto::Failure {
            kind: vout::proto::FailureKind::User,
            causes: vec!["client speaks \"x\"".into()],
            hints: Vec::new(),
        };
        let error = Connection::greet(greeter(Some(Event::Failed(failure)))?).unwrap_err();
        assert!(error.to_string().contains("of another version"), "{error}");
        Ok(())
    }

    #[test]
    fn a_daemon_that_hangs_up_is_not_one() -> TestResult {
        assert!(Connection::greet(greeter(None)?)?.is_none());
        assert!(Connection::greet(greeter(Some(Event::Ready))?)?.is_some());
        Ok(())
    }

    #[test]
    fn a_socket_nobody_listens_on_is_no_daemon() -> TestResult {
        let dir = tempfile::tempdir()?;
        let socket = dir.path().join("s");
        assert!(connect(&socket)?.is_none());
        drop(UnixListener::bind(&socket)?);
        assert!(socket.exists());
        assert!(connect(&socket)?.is_none());
        Ok(())
    }
}
