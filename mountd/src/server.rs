//! The control socket: one thread per connection, one method per kind of request.

mod connection;
mod failure;
mod mounting;
mod queries;
mod tasks;

use std::collections::HashMap;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use rustix::event::{Timespec, poll};
use rustix::net::sockopt::socket_peercred;
use vout::proto::{Event, Failure, PROTOCOL_VERSION, Request, ViewId};
use vout::serving::Serving;
use vout::wire::WireError;
use vout::workspace::{RunOptions, Workspace};

use self::connection::Connection;
use self::failure::user_failure;
use self::tasks::View;
use crate::activity::Activity;
use crate::live::LiveMount;

/// How long after a conversation the daemon does what nobody should have to wait for.
const TIDY_AFTER: Duration = Duration::from_millis(300);

/// How long the last of a run may take that its client did not wait for.
const RUN_END_TIMEOUT: Duration = Duration::from_secs(2);

/// How long nobody is let in after somebody could not be.
const REFUSED_PAUSE: Timespec = Timespec { tv_sec: 0, tv_nsec: 50_000_000 };

/// How long a client may take to greet.
const GREETING_TIMEOUT: Duration = Duration::from_secs(10);

/// What the server knows about its workspace and the machine.
#[derive(Debug, Clone)]
pub(crate) struct ServerOptions {
    /// Absolute path of the workspace.
    pub(crate) root: PathBuf,
    /// Absolute path of the control socket.
    pub(crate) socket: PathBuf,
    /// Device and inode of its directory, taken before anything was mounted over it.
    pub(crate) root_id: (u64, u64),
    /// Whether runs get views: there is a `/dev/fuse`, and we may use it.
    pub(crate) fuse: bool,
    /// Whether we may hand files to the kernel.
    pub(crate) may_pass_through: bool,
}

impl ServerOptions {
    /// Returns how a session is really served that is to be served like `wanted`.
    fn granted(&self, wanted: Serving) -> Serving {
        Serving { passthrough: wanted.passthrough && self.may_pass_through, ..wanted }
    }
}

/// The server of one workspace.
///
/// # Locking
/// `views` and `live` are never held together, nor while the engine works.
pub(crate) struct Server {
    workspace: Workspace,
    options: ServerOptions,
    activity: Arc<Activity>,
    /// Runs that have a view, until they are finished or abandoned.
    views: Mutex<HashMap<ViewId, Arc<View>>>,
    /// The live mount.
    live: Mutex<Option<Arc<LiveMount>>>,
    /// Held, before `live`, for as long as mounting or unmounting takes: one at a time.
    mounting: Mutex<()>,
}

impl Server {
    pub(crate) fn new(workspace: Workspace, options: ServerOptions, activity: Arc<Activity>) -> Self {
        Self {
            workspace,
            options,
            activity,
            views: Mutex::default(),
            live: Mutex::default(),
            mounting: Mutex::default(),
        }
    }

    /// Accepts connections for as long as the process lives.
    pub(crate) fn listen(self: &Arc<Self>, listener: &UnixListener) {
        for stream in listener.incoming() {
            let accepted = stream.and_then(|stream| self.start(stream));
            if let Err(error) = accepted {
                tracing::warn!(%error, "connection refused");
                // Whatever was lacking, descriptors or threads, comes back only when somebody lets go.
                poll(&mut [], Some(&REFUSED_PAUSE)).ok();
            }
        }
    }

    fn start(self: &Arc<Self>, stream: UnixStream) -> io::Result<()> {
        let peer = socket_peercred(&stream)?;
        if peer.uid != rustix::process::geteuid() {
            // The socket's mode keeps others out; this is the second lock on the door.
            return Err(io::Error::other(format!("peer has user id {}", peer.uid.as_raw())));
        }
        let connection = Connection::new(stream, u32::try_from(peer.pid.as_raw_nonzero().get()).ok())?;
        let in_use = self.activity.connect();
        let server = Arc::clone(self);
        let thread = move || {
            let _in_use = in_use;
            match server.converse(&connection) {
                Err(error) if !error.is_disconnect() => tracing::warn!(%error, "connection ended"),
                Ok(()) | Err(_) => {}
            }
            drop(connection);
            // A runner that has one task done most likely has the next.
            thread::park_timeout(TIDY_AFTER);
            if let Err(error) = server.workspace.tidy() {
                tracing::warn!(%error, "the index could not be tidied");
            }
        };
        thread::Builder::new().name("connection".into()).spawn(thread)?;
        Ok(())
    }

    /// Answers requests until the client goes.
    fn converse(self: &Arc<Self>, connection: &Connection) -> Result<(), WireError> {
        // Who connects and says nothing must not keep us alive.
        connection.set_patience(Some(GREETING_TIMEOUT))?;
        let Some(hello) = connection.receive()? else { return Ok(()) };
        connection.set_patience(None)?;
        match hello.message {
            Request::Hello { version } if version == PROTOCOL_VERSION => {
                if self.may_retire() {
                    // To the client we look like one that was idle, and it starts another.
                    self.retire();
                    return Ok(());
                }
                connection.send(&Event::Ready)?;
            }
            Request::Hello { version } => {
                let problem =
                    format!("client is {version:?}, but the running daemon is {PROTOCOL_VERSION:?}");
                let hint = "end the old daemon with its own version of vout, or wait until it is idle";
                return connection.send(&Event::Failed(user_failure(problem, &[hint])));
            }
            _ => {
                let problem = "the conversation does not begin with a greeting".to_owned();
                return connection.send(&Event::Failed(user_failure(problem, &[])));
            }
        }
        while let Some(received) = connection.receive()? {
            self.handle(connection, received.message, received.fds)?;
        }
        Ok(())
    }

    fn handle(
        self: &Arc<Self>,
        connection: &Connection,
        request: Request,
        fds: Vec<std::os::fd::OwnedFd>,
    ) -> Result<(), WireError> {
        if needs_store(&request)
            && let Err(failed) = self.check_root().and_then(|()| self.check_store())
        {
            return connection.send(&Event::Failed(failed));
        }
        let answer = match request {
            Request::Begin { spec, cache, serving } => {
                let options = RunOptions { cache, serving: self.options.granted(serving) };
                return self.run_task(connection, *spec, options);
            }
            Request::Serve { view } => self.serve_view(view, fds),
            Request::Started { view } => self.seal_view(view),
            Request::Status => self.status(),
            Request::Why { task } => self.why(&task),
            Request::CacheList => self.cache_list(),
            Request::CacheShow { id } => self.cache_show(&id),
            Request::CacheClean { task } => self.cache_clean(task.as_deref()),
            Request::Mount { at, serving } => self.mount(at, self.options.granted(serving)),
            Request::Unmount { discard } => self.unmount(connection, discard),
            Request::Shutdown => {
                self.activity.hurry();
                Ok(Event::Ready)
            }
            Request::Hello { .. } | Request::Output(_) | Request::TellRecording | Request::Finish(_) => {
                Err(user_failure("the request does not belong here".into(), &[]))
            }
        };
        connection.send(&answer.unwrap_or_else(Event::Failed))
    }

    /// Returns whether the path of the workspace leads to the directory that we hold, or to our mount over it.
    fn has_its_root(&self) -> bool {
        let root = &self.options.root;
        let shown = || {
            let live = self.live().clone();
            live.is_some_and(|live| live.at() == root && live.is_on_top())
                || std::fs::symlink_metadata(root)
                    .is_ok_and(|root| (root.dev(), root.ino()) == self.options.root_id)
        };
        shown() || {
            // It may be our mount that is being made just now.
            let _mounting = self.mounting();
            shown()
        }
    }

    /// Returns whether workspace or store are gone, and nobody uses this daemon for anything that would be lost with them.
    fn may_retire(&self) -> bool {
        !(self.workspace.has_its_store() && self.has_its_root())
            && self.mounted_at().is_none()
            && self.activity.calms_down(RUN_END_TIMEOUT)
    }

    /// Ends the daemon, whose workspace or store is gone, as soon as its clients are.
    fn retire(&self) {
        tracing::warn!("the workspace or its store was removed or replaced");
        // Before the client is gone: the next daemon would take us for its own while we can be connected to.
        std::fs::remove_file(&self.options.socket).ok();
        self.activity.hurry();
    }

    /// Refuses to work on a directory that its path does not show any more.
    fn check_root(&self) -> Result<(), Failure> {
        if self.has_its_root() {
            return Ok(());
        }
        let problem = format!("{:?} was replaced, or something else was mounted over it", self.options.root);
        Err(user_failure(problem, &["take that away, or unmount the workspace with `vout unmount`"]))
    }

    /// Refuses what needs a store, where it is not the one we have open.
    fn check_store(&self) -> Result<(), Failure> {
        if self.workspace.has_its_store() {
            return Ok(());
        }
        if self.mounted_at().is_none() {
            let problem = "the store was removed while the workspace is in use".to_owned();
            return Err(user_failure(
                problem,
                &["wait for what runs, leave an old mount with `cd .`, and try again"],
            ));
        }
        let problem = "the store was removed while the workspace is mounted".to_owned();
        Err(user_failure(problem, &["vout unmount --discard", "vout mount"]))
    }

    fn views(&self) -> MutexGuard<'_, HashMap<ViewId, Arc<View>>> {
        self.views.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Returns whether a request is for what is in the store. Unmounting is not: it is the way out where the store
/// is lost.
fn needs_store(request: &Request) -> bool {
    match request {
        Request::Begin { .. }
        | Request::Mount { .. }
        | Request::Why { .. }
        | Request::CacheList
        | Request::CacheShow { .. }
        | Request::CacheClean { .. } => true,
        Request::Hello { .. }
        | Request::Serve { .. }
        | Request::Started { .. }
        | Request::Output(_)
        | Request::TellRecording
        | Request::Finish(_)
        | Request::Unmount { .. }
        | Request::Status
        | Request::Shutdown => false,
    }
}
