//! The control socket: one thread per connection, one method per kind of request.

mod connection;
mod failure;
mod mounting;
mod queries;
mod tasks;

use std::collections::HashMap;
use std::io;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;

use rustix::net::sockopt::socket_peercred;
use vout::proto::{Event, PROTOCOL_VERSION, Request, ViewId};
use vout::wire::WireError;
use vout::workspace::Workspace;

use self::connection::Connection;
use self::failure::user_failure;
use self::tasks::View;
use crate::activity::Activity;
use crate::live::LiveMount;

/// What the server knows about its workspace and the machine.
#[derive(Debug, Clone)]
pub(crate) struct ServerOptions {
    /// Absolute path of the workspace.
    pub(crate) root: PathBuf,
    /// Device and inode of its directory, taken before anything was mounted over it.
    pub(crate) root_id: (u64, u64),
    /// Whether runs get views: there is a `/dev/fuse`, and we may use it.
    pub(crate) fuse: bool,
    /// Whether sessions ask for passthrough.
    pub(crate) passthrough: bool,
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
        let in_use = self.activity.enter();
        let server = Arc::clone(self);
        let thread = move || {
            let _in_use = in_use;
            match server.converse(&connection) {
                Err(error) if !error.is_disconnect() => tracing::warn!(%error, "connection ended"),
                Ok(()) | Err(_) => {}
            }
            if let Err(error) = server.workspace.tidy() {
                tracing::warn!(%error, "the index could not be tidied");
            }
        };
        thread::Builder::new().name("connection".into()).spawn(thread)?;
        Ok(())
    }

    /// Answers requests until the client goes.
    fn converse(self: &Arc<Self>, connection: &Connection) -> Result<(), WireError> {
        let Some(hello) = connection.receive()? else { return Ok(()) };
        match hello.message {
            Request::Hello { version } if version == PROTOCOL_VERSION => connection.send(&Event::Ready)?,
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
        let answer = match request {
            Request::Begin { spec, cache } => return self.run_task(connection, *spec, cache),
            Request::Serve { view } => self.serve_view(view, fds),
            Request::Started { view } => self.seal_view(view),
            Request::Status => self.status(),
            Request::Why { task } => self.why(&task),
            Request::CacheList => self.cache_list(),
            Request::CacheShow { id } => self.cache_show(&id),
            Request::CacheClean { task } => self.cache_clean(task.as_deref()),
            Request::Mount { at } => self.mount(at),
            Request::Unmount { discard } => self.unmount(connection, discard),
            Request::Shutdown => {
                self.activity.hurry();
                Ok(Event::Ready)
            }
            Request::Hello { .. } | Request::Output(_) | Request::Finish(_) => {
                Err(user_failure("the request does not belong here".into(), &[]))
            }
        };
        connection.send(&answer.unwrap_or_else(Event::Failed))
    }

    fn views(&self) -> MutexGuard<'_, HashMap<ViewId, Arc<View>>> {
        self.views.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
