//! The life of the daemon process: started once per workspace, gone when nobody needs it.
//!
//! Whoever starts it waits on its standard output: `ready` and a newline once the socket listens, or the
//! reason why it does not. It does not fork; the starter need not wait for it to end.

mod options;

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use rustix::event::{Timespec, poll};
use rustix::fs::{FlockOperation, Mode, OFlags, flock};
use rustix::io::Errno;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;
use thiserror::Error;
use tracing_subscriber::EnvFilter;
use vout::runtime::lock_of;
use vout::workspace::{OpenOptions, Workspace, WorkspaceError};

pub use self::options::{Options, Order, UsageError};
use crate::activity::{Activity, Reason};
use crate::live::{clear_dead, open_device};
use crate::server::{Server, ServerOptions};
use crate::sys::give_back_free_memory;
use crate::watchers::run_helper;

/// Variable with the log filter.
const LOG_ENV: &str = "VOUT_LOG";

/// A log larger than this is begun anew.
const LOG_BYTES_MAX: u64 = 4 * 1024 * 1024;

/// How long a second daemon waits for the first to listen or to end.
const FIRST_TIMEOUT: Duration = Duration::from_secs(30);

/// How often it looks.
const FIRST_POLL: Timespec = Timespec { tv_sec: 0, tv_nsec: 10_000_000 };

/// Why the daemon could not start.
#[derive(Debug, Error)]
pub enum StartError {
    /// The arguments make no sense.
    #[error(transparent)]
    Usage(#[from] UsageError),
    /// A file or directory cannot be used.
    #[error("{path:?} cannot be {action}")]
    Path {
        /// The file or directory.
        path: PathBuf,
        /// What was tried.
        action: &'static str,
        /// Why it did not work.
        source: io::Error,
    },
    /// Others could reach the socket.
    #[error("{path:?} must be a directory of user {user} that nobody else can enter")]
    OpenDirectory {
        /// Directory of the socket.
        path: PathBuf,
        /// Who runs the daemon.
        user: u32,
    },
    /// Another daemon has the lock and neither listens nor ends.
    #[error("another daemon holds {lock:?} and does not answer")]
    Stuck {
        /// Its lock file.
        lock: PathBuf,
    },
    /// The engine refused.
    #[error("the workspace cannot be opened")]
    Workspace(#[from] WorkspaceError),
    /// The process could not be set up.
    #[error("the daemon cannot be set up")]
    Process(#[source] io::Error),
}

/// What keeps the daemon the only one of its workspace.
struct Claim {
    /// Locked for as long as this is open.
    _lock: File,
}

/// Does what the arguments of the process ask for.
#[must_use]
pub fn main() -> ExitCode {
    let order = Order::parse(std::env::args_os().skip(1)).map_err(StartError::Usage);
    let done = order.and_then(|order| match order {
        Order::Serve(options) => run(&options),
        Order::ClearDead(path) => clear(&path),
        Order::Announce => run_helper().map_err(|error| StartError::Process(io::Error::other(error))),
    });
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!(%error, "not started");
            tell(&explain(&error));
            ExitCode::FAILURE
        }
    }
}

fn run(options: &Options) -> Result<(), StartError> {
    set_up_process().map_err(StartError::Process)?;
    fuse_uring::set_background(vout::load::working_ahead);
    check_socket_directory(&options.socket)?;
    let Some(_claim) = claim(&options.socket)? else {
        tell("ready\n");
        return Ok(());
    };
    let log = open_log(&options.log)?;
    let activity = Arc::new(Activity::default());
    watch_signals(&activity).map_err(StartError::Process)?;
    let server = Arc::new(open_server(options, &activity)?);
    let listener = listen(&options.socket)?;
    if !options.foreground {
        // Fails where the process leads its group: then somebody runs it by hand, from a shell.
        rustix::process::setsid().ok();
    }
    tracing::info!(workspace = ?options.workspace, pid = std::process::id(), "listening");
    tell("ready\n");
    if !options.foreground {
        redirect(&log).map_err(StartError::Process)?;
    }
    thread::Builder::new()
        .name("accept".into())
        .spawn({
            let server = Arc::clone(&server);
            move || server.listen(&listener)
        })
        .map_err(StartError::Process)?;

    let reason = activity.wait_for_end(options.idle, give_back_free_memory);
    // From here on a new client finds no socket, and its daemon waits for our lock.
    match fs::remove_file(&options.socket) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            tracing::warn!(%error, "the socket stays behind");
        }
        Ok(()) | Err(_) => {}
    }
    match reason {
        Reason::Idle => tracing::info!("nobody needs the daemon any more"),
        Reason::Signal => tracing::info!("ended by a signal"),
    }
    server.unmount_at_exit();
    Ok(())
}

/// Clears what a killed daemon left: its client cannot start another one before it has seen the workspace.
fn clear(path: &Path) -> Result<(), StartError> {
    clear_dead(path).map(drop).map_err(|source| path_error(path, "freed from a dead mount", source))
}

/// Opens the workspace's directory, and then everything else: it must not be a mount of ours.
fn open_server(options: &Options, activity: &Arc<Activity>) -> Result<Server, StartError> {
    let root = &options.workspace;
    clear(root)?;
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let opened = rustix::fs::open(root, flags, Mode::empty());
    let opened = opened.and_then(|root_dir| Ok((rustix::fs::fstat(&root_dir)?, root_dir)));
    let (stat, root_dir) = opened.map_err(|errno| path_error(root, "opened", errno.into()))?;
    // Only root may hand files to the kernel; where even root may not, sessions do without.
    let may_pass_through = rustix::process::geteuid().is_root();
    let workspace = Workspace::open(OpenOptions {
        root: root.clone(),
        root_dir,
        store: options.store.clone(),
        limits: options.limits.clone(),
    })?;
    let options = ServerOptions {
        root: root.clone(),
        socket: options.socket.clone(),
        root_id: (stat.st_dev, stat.st_ino),
        fuse: open_device().is_ok(),
        may_pass_through,
    };
    Ok(Server::new(workspace, options, Arc::clone(activity)))
}

fn set_up_process() -> io::Result<()> {
    // Never keep a directory busy, least of all one below a mount of ours.
    rustix::process::chdir("/")?;
    rustix::process::umask(Mode::from_raw_mode(0o022));
    // Open files of tasks are open files here.
    let limit = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum })?;
    Ok(())
}

/// Makes the socket's directory if need be, and refuses one that others can enter.
fn check_socket_directory(socket: &Path) -> Result<(), StartError> {
    let directory = socket.parent().unwrap_or(Path::new("/"));
    match fs::DirBuilder::new().mode(0o700).create(directory) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
            return Err(path_error(directory, "made", error));
        }
        Ok(()) | Err(_) => {}
    }
    let found = fs::symlink_metadata(directory);
    let found = found.map_err(|source| path_error(directory, "looked at", source))?;
    let user = rustix::process::geteuid().as_raw();
    if found.is_dir() && found.uid() == user && found.mode() & 0o077 == 0 {
        Ok(())
    } else {
        Err(StartError::OpenDirectory { path: directory.to_owned(), user })
    }
}

/// Becomes the daemon of the workspace; `None` where another one listens already.
fn claim(socket: &Path) -> Result<Option<Claim>, StartError> {
    let path = lock_of(socket);
    let opened = File::options().create(true).truncate(false).write(true).mode(0o600).open(&path);
    let lock = opened.map_err(|source| path_error(&path, "opened", source))?;
    let begun = Instant::now();
    loop {
        match flock(&lock, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => return Ok(Some(Claim { _lock: lock })),
            Err(Errno::WOULDBLOCK) => {}
            Err(errno) => return Err(path_error(&path, "locked", errno.into())),
        }
        if UnixStream::connect(socket).is_ok() {
            return Ok(None);
        }
        if begun.elapsed() > FIRST_TIMEOUT {
            return Err(StartError::Stuck { lock: path });
        }
        // The first is still opening its workspace, or about to end; there is nothing to wait on that
        // would tell both.
        poll(&mut [], Some(&FIRST_POLL)).ok();
    }
}

fn listen(socket: &Path) -> Result<UnixListener, StartError> {
    // We hold the lock: whatever is there belongs to a daemon that is gone.
    match fs::remove_file(socket) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            return Err(path_error(socket, "removed", error));
        }
        Ok(()) | Err(_) => {}
    }
    let listener = UnixListener::bind(socket).map_err(|source| path_error(socket, "bound", source))?;
    fs::set_permissions(socket, fs::Permissions::from_mode(0o600))
        .map_err(|source| path_error(socket, "closed to others", source))?;
    Ok(listener)
}

/// Opens the log and sends all of ours there.
fn open_log(path: &Path) -> Result<File, StartError> {
    let opened = File::options().create(true).append(true).mode(0o600).open(path);
    let prepared = opened.and_then(|log| {
        if log.metadata()?.len() > LOG_BYTES_MAX {
            log.set_len(0)?;
        }
        Ok((log.try_clone()?, log))
    });
    let (writer, log) = prepared.map_err(|source| path_error(path, "opened", source))?;
    let filter = EnvFilter::try_from_env(LOG_ENV).unwrap_or_else(|_| EnvFilter::new("info"));
    let logging = tracing_subscriber::fmt().with_ansi(false).with_env_filter(filter);
    if let Err(error) = logging.with_writer(Mutex::new(writer)).try_init() {
        return Err(path_error(path, "logged to", io::Error::other(error.to_string())));
    }
    Ok(log)
}

fn watch_signals(activity: &Arc<Activity>) -> io::Result<()> {
    let mut signals = Signals::new([SIGTERM, SIGINT, SIGHUP])?;
    let activity = Arc::clone(activity);
    let watch = move || {
        for _ in signals.forever() {
            activity.signal();
        }
    };
    thread::Builder::new().name("signals".into()).spawn(watch)?;
    Ok(())
}

/// Lets go of the starter's terminal and pipe; what a panic prints goes to the log.
fn redirect(log: &File) -> io::Result<()> {
    let null = File::options().read(true).write(true).open("/dev/null")?;
    rustix::stdio::dup2_stdin(&null)?;
    rustix::stdio::dup2_stdout(log)?;
    rustix::stdio::dup2_stderr(log)?;
    Ok(())
}

/// Tells the starter, who may have gone.
fn tell(text: &str) {
    let mut stdout = io::stdout();
    stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()).ok();
}

/// Returns the error and its causes as text.
fn explain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        text = format!("{text}: {cause}");
        next = cause.source();
    }
    text + "\n"
}

fn path_error(path: &Path, action: &'static str, source: io::Error) -> StartError {
    StartError::Path { path: path.to_owned(), action, source }
}
