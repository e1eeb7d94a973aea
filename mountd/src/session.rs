//! A FUSE session: one kernel connection, served by one thread until it ends.

mod control;

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::mpsc;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use fuser::{Config, Notifier, SessionACL};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::FileType;
use thiserror::Error;

use crate::adapter::{Adapter, AdapterState};

/// Device number of `/dev/fuse`, fixed by the kernel.
const FUSE_DEVICE: (u32, u32) = (10, 229);

/// How long the kernel may take to open the conversation on a mounted descriptor; it does so at once.
const HANDSHAKE_TIMEOUT: Timespec = Timespec { tv_sec: 10, tv_nsec: 0 };

/// Why a session could not be started.
#[derive(Debug, Error)]
pub enum ServeError {
    /// The descriptor is something else.
    #[error("the descriptor is not /dev/fuse")]
    NotFuse,
    /// The descriptor is `/dev/fuse`, but nothing is mounted with it.
    #[error("nothing is mounted on the /dev/fuse descriptor")]
    NotMounted,
    /// Kernel and daemon could not agree.
    #[error("the kernel refused the session")]
    Handshake(#[source] io::Error),
    /// The operating system refused.
    #[error("no thread for the session")]
    Thread(#[source] io::Error),
}

/// How a session ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SessionEnd {
    /// The last mount of it is gone.
    Unmounted,
    /// [`Session::abort`] was called.
    Aborted,
    /// Somebody else aborted it, or it failed.
    Failed(String),
}

/// A session that is being served.
///
/// Dropping this does not end it: processes may still be using the mount.
#[derive(Debug)]
pub struct Session {
    adapter: Arc<AdapterState>,
    ended: Arc<Ended>,
    notifier: Notifier,
    /// The kernel's number of the connection, where it tells.
    connection: Option<u32>,
}

#[derive(Debug, Default)]
struct Ended {
    /// How the session ended, once it has.
    end: Mutex<Option<SessionEnd>>,
    changed: Condvar,
}

impl Session {
    /// Serves `adapter` on a `/dev/fuse` descriptor that somebody mounted. Returns once the kernel agreed;
    /// `on_end` is called from the session's thread after the last request.
    ///
    /// # Errors
    /// [`ServeError`].
    pub fn serve(
        device: OwnedFd,
        adapter: Adapter,
        on_end: impl FnOnce(&SessionEnd) + Send + 'static,
    ) -> Result<Self, ServeError> {
        check_device(&device)?;
        let state = adapter.state();
        let ended = Arc::new(Ended::default());
        let connection = control::connection_of(&device);
        let (started, start) = mpsc::channel();
        let thread = {
            let (state, ended) = (Arc::clone(&state), Arc::clone(&ended));
            move || {
                let mut config = Config::default();
                config.acl = SessionACL::All;
                let session = match fuser::Session::from_fd(adapter, device, SessionACL::All, config) {
                    Ok(session) => session,
                    // The one who waits is told; if it is gone, nobody wants to know.
                    Err(error) => return drop(started.send(Err(error))),
                };
                started.send(Ok(session.notifier())).ok();
                let end = end_of(session.run(), &state);
                on_end(&end);
                ended.set(end);
            }
        };
        thread::Builder::new().name("session".into()).spawn(thread).map_err(ServeError::Thread)?;
        let notifier = match start.recv() {
            Ok(Ok(notifier)) => notifier,
            Ok(Err(error)) => return Err(ServeError::Handshake(error)),
            Err(mpsc::RecvError) => {
                return Err(ServeError::Handshake(io::Error::other("the session thread died")));
            }
        };
        Ok(Self { adapter: state, ended, notifier, connection })
    }

    /// Returns a way to tell the kernel that its caches are out of date.
    #[must_use]
    pub fn notifier(&self) -> Notifier {
        self.notifier.clone()
    }

    /// Returns whether the kernel reads and writes backing files directly.
    #[must_use]
    pub fn passthrough(&self) -> bool {
        self.adapter.passthrough()
    }

    /// Returns how the session ended, if it has.
    #[must_use]
    pub fn end(&self) -> Option<SessionEnd> {
        self.ended.lock().clone()
    }

    /// Waits for the end; `None` where it took longer than `timeout`.
    #[must_use]
    pub fn wait(&self, timeout: Duration) -> Option<SessionEnd> {
        let running = |end: &mut Option<SessionEnd>| end.is_none();
        let waited = self.ended.changed.wait_timeout_while(self.ended.lock(), timeout, running);
        waited.unwrap_or_else(PoisonError::into_inner).0.clone()
    }

    /// Ends the session: whatever its processes ask fails from now on.
    ///
    /// The connection itself is cut where the kernel's control files can be reached (root always reaches
    /// them, the mount's owner where `/sys/fs/fuse/connections` is mounted). Elsewhere requests fail with
    /// `ENOTCONN`, and the connection ends with the last process in the mount namespace.
    pub fn abort(&self) {
        self.adapter.abort();
        let Some(connection) = self.connection else { return };
        if let Err(error) = control::abort(connection) {
            tracing::debug!(%error, connection, "connection is not cut, only refused");
        }
    }
}

impl Ended {
    fn lock(&self) -> std::sync::MutexGuard<'_, Option<SessionEnd>> {
        self.end.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn set(&self, end: SessionEnd) {
        *self.lock() = Some(end);
        self.changed.notify_all();
    }
}

/// Refuses what would block or fail later.
fn check_device(device: &OwnedFd) -> Result<(), ServeError> {
    let stat = rustix::fs::fstat(device).map_err(|_| ServeError::NotFuse)?;
    let number = (rustix::fs::major(stat.st_rdev), rustix::fs::minor(stat.st_rdev));
    if FileType::from_raw_mode(stat.st_mode) != FileType::CharacterDevice || number != FUSE_DEVICE {
        return Err(ServeError::NotFuse);
    }
    // The kernel's first message is under way as soon as the descriptor is mounted.
    let mut polled = [PollFd::from_borrowed_fd(device.as_fd(), PollFlags::IN)];
    let ready = poll(&mut polled, Some(&HANDSHAKE_TIMEOUT));
    let readable = polled[0].revents().contains(PollFlags::IN);
    if ready.is_ok() && readable { Ok(()) } else { Err(ServeError::NotMounted) }
}

fn end_of(run: io::Result<()>, state: &AdapterState) -> SessionEnd {
    match run {
        _ if state.is_aborted() => SessionEnd::Aborted,
        Ok(()) => SessionEnd::Unmounted,
        Err(error) => {
            tracing::warn!(%error, "session failed");
            SessionEnd::Failed(error.to_string())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_descriptor_that_is_not_fuse_is_refused() -> io::Result<()> {
        for path in ["/dev/null", "/proc/self/status"] {
            let file = std::fs::File::open(path)?;
            assert!(matches!(check_device(&file.into()), Err(ServeError::NotFuse)), "{path}");
        }
        Ok(())
    }
}
