//! A session: one kernel connection, served until it ends.

mod control;
mod handshake;
mod worker;

use std::io;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use thiserror::Error;

pub use self::handshake::Negotiated;

use self::handshake::handshake;
use self::worker::{Buffers, Disconnect, serve};
use crate::config::Config;
use crate::device::Device;
use crate::dispatch::{Serving, guarded};
use crate::handler::Handler;
use crate::notify::Notifier;

/// Why a session could not be started.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum StartError {
    /// The descriptor is something else.
    #[error("the descriptor is not /dev/fuse")]
    NotFuse,
    /// The descriptor is `/dev/fuse`, but nothing is mounted with it.
    #[error("nothing is mounted on the /dev/fuse descriptor")]
    NotMounted,
    /// The kernel is too old, or too new.
    #[error("the kernel speaks version {major}.{minor} of the protocol; 7.31 or a later 7 is needed")]
    Version {
        /// Its major version.
        major: u32,
        /// Its minor version.
        minor: u32,
    },
    /// Kernel and server could not agree.
    #[error("the kernel refused the session")]
    Handshake(#[source] io::Error),
    /// The operating system refused.
    #[error("no thread for the session")]
    Thread(#[source] io::Error),
}

/// How a session ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum End {
    /// The last mount of it is gone.
    Unmounted,
    /// [`Session::abort`] was called, or somebody used the kernel's control file.
    Aborted,
    /// The device failed; the text says how.
    Failed(String),
}

/// A session that is being served.
///
/// Dropping this does not end it: processes may still be using the mount.
#[derive(Debug)]
pub struct Session {
    ended: Arc<Ended>,
    closed: Arc<AtomicBool>,
    notifier: Notifier,
    negotiated: Negotiated,
    /// The kernel's number of the connection, where it tells.
    connection: Option<u32>,
}

#[derive(Debug, Default)]
struct Ended {
    /// How the session ended, once it has. A leaf: held for no other lock.
    end: Mutex<Option<End>>,
    changed: Condvar,
}

impl Session {
    /// Serves `handler` on a `/dev/fuse` descriptor that somebody mounted. Returns once the kernel agreed;
    /// from then on threads of the session serve it until it is unmounted or aborted.
    ///
    /// # Errors
    /// [`StartError`]. The handler is not asked for anything then.
    pub fn start(fd: OwnedFd, config: Config, handler: Arc<dyn Handler>) -> Result<Self, StartError> {
        let device = Device::new(fd)?;
        let connection = control::connection_of(&device);
        let negotiated = handshake(&device, &config)?;
        guarded(|| handler.init(&negotiated));
        let closed = Arc::new(AtomicBool::new(false));
        let notifier = Notifier::new(device.downgrade());
        let granted = negotiated.flags;
        let serving = Arc::new(Serving { device, handler, granted, closed: Arc::clone(&closed) });
        let ended = Arc::new(Ended::default());
        let session = Self { ended: Arc::clone(&ended), closed, notifier, negotiated, connection };

        let size = session.negotiated.payload_bytes();
        let threads = config.threads;
        // Where there is no thread, the device is closed, and with it the connection.
        spawn(move || run(serving, size, threads, connection, &ended)).map_err(StartError::Thread)?;
        Ok(session)
    }

    /// Returns what kernel and server agreed on.
    #[must_use]
    pub const fn negotiated(&self) -> &Negotiated {
        &self.negotiated
    }

    /// Returns a way to tell the kernel that its caches are out of date.
    #[must_use]
    pub fn notifier(&self) -> Notifier {
        self.notifier.clone()
    }

    /// Returns how the session ended, if it has.
    #[must_use]
    pub fn end(&self) -> Option<End> {
        self.ended.lock().clone()
    }

    /// Waits for the end, [`Handler::destroy`] included; `None` where it took longer than `timeout`.
    #[must_use = "it may not have ended"]
    pub fn wait(&self, timeout: Option<Duration>) -> Option<End> {
        let running = |end: &mut Option<End>| end.is_none();
        let guard = self.ended.lock();
        match timeout {
            Some(timeout) => {
                let waited = self.ended.changed.wait_timeout_while(guard, timeout, running);
                waited.unwrap_or_else(PoisonError::into_inner).0.clone()
            }
            None => {
                let waited = self.ended.changed.wait_while(guard, running);
                waited.unwrap_or_else(PoisonError::into_inner).clone()
            }
        }
    }

    /// Ends the session: whatever its processes ask fails from now on.
    ///
    /// The connection itself is cut where the kernel's control files can be reached (root always reaches
    /// them, the mount's owner where `/sys/fs/fuse/connections` is mounted). Elsewhere requests fail with
    /// `ENOTCONN`, and the connection ends with the last mount.
    pub fn abort(&self) {
        self.closed.store(true, Ordering::Release);
        cut(self.connection);
    }
}

impl Ended {
    fn lock(&self) -> MutexGuard<'_, Option<End>> {
        self.end.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn set(&self, end: End) {
        *self.lock() = Some(end);
        self.changed.notify_all();
    }
}

/// A session's main thread: serves until the end, and sees to it that everybody learns of that.
fn run(serving: Arc<Serving>, buffer_bytes: usize, threads: usize, connection: Option<u32>, ended: &Ended) {
    let helpers = start_helpers(&serving, buffer_bytes, threads.saturating_sub(1));
    let mut disconnect = serve(&serving, Buffers::new(buffer_bytes));
    if let Disconnect::Failed(error) = &disconnect {
        tracing::error!(%error, "the device failed; the session is cut");
        serving.closed.store(true, Ordering::Release);
        cut(connection);
    }
    for helper in helpers {
        // They read from the same device, and end as it does.
        if let Ok(Disconnect::Failed(error)) = helper.join()
            && !matches!(disconnect, Disconnect::Failed(_))
        {
            disconnect = Disconnect::Failed(error);
        }
    }
    let end = match disconnect {
        Disconnect::Failed(error) => End::Failed(error.to_string()),
        Disconnect::Aborted => End::Aborted,
        Disconnect::Unmounted if serving.closed.load(Ordering::Acquire) => End::Aborted,
        Disconnect::Unmounted => End::Unmounted,
    };
    guarded(|| serving.handler.destroy(&end));
    // The device goes first: who waits for the end may want to see it closed.
    drop(serving);
    ended.set(end);
}

/// Starts further threads; one fewer is no reason to fail.
fn start_helpers(serving: &Arc<Serving>, buffer_bytes: usize, count: usize) -> Vec<JoinHandle<Disconnect>> {
    let helpers = (0..count).map(|_| {
        let serving = Arc::clone(serving);
        spawn(move || serve(&serving, Buffers::new(buffer_bytes)))
    });
    helpers
        .filter_map(|helper| {
            helper.inspect_err(|error| tracing::warn!(%error, "a thread less serves the session")).ok()
        })
        .collect()
}

fn cut(connection: Option<u32>) {
    let Some(connection) = connection else { return };
    if let Err(error) = control::abort(connection) {
        tracing::debug!(%error, connection, "connection is not cut, only refused");
    }
}

fn spawn<T: Send + 'static>(run: impl FnOnce() -> T + Send + 'static) -> io::Result<JoinHandle<T>> {
    thread::Builder::new().name("fuse".into()).spawn(run)
}
