//! A session: one kernel connection, served until it ends.

mod follower;
mod handshake;
mod worker;

use std::io;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{self, Sender};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use thiserror::Error;

pub use self::handshake::{Negotiated, Transport};

use self::follower::Follower;
use self::handshake::{Offer, receive};
use self::worker::{Between, Buffers, Disconnect, serve};
use crate::config::{Config, RingChoice};
use crate::control::Connection;
use crate::device::Device;
use crate::dispatch::{Serving, guarded};
use crate::handler::Handler;
use crate::notify::Notifier;
use crate::ring::{Attached, Attachment, NoRing, Prepared};

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
    /// [`RingChoice::Required`] cannot be had.
    #[error("requests cannot come over io_uring")]
    NoRing(#[source] NoRing),
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
    connection: Connection,
}

#[derive(Debug, Default)]
struct Ended {
    /// How the session ended, once it has. A leaf: held for no other lock.
    end: Mutex<Option<End>>,
    changed: Condvar,
}

impl Session {
    /// Serves `handler` on a `/dev/fuse` descriptor that somebody mounted. Returns once the kernel agreed;
    /// from then on it is served until it is unmounted or aborted.
    ///
    /// # Errors
    /// [`StartError`]. [`Handler::destroy`] is called only where the session had begun.
    pub fn start(fd: OwnedFd, config: Config, handler: Arc<dyn Handler>) -> Result<Self, StartError> {
        let device = Device::new(fd)?;
        let connection = Connection::of(&device);
        let offer = receive(&device, &config)?;
        let (prepared, ring) = match prepare_ring(&offer, &device, &config) {
            Ok(prepared) => (Some(prepared), Ok(())),
            Err(why) if config.ring == RingChoice::Required => {
                offer.decline(&device);
                return Err(StartError::NoRing(why));
            }
            Err(why) => (None, Err(why)),
        };
        let mut negotiated = offer.accept(&device, &config, ring);
        guarded(|| handler.init(&negotiated));

        let closed = Arc::new(AtomicBool::new(false));
        let notifier = Notifier::new(device.downgrade());
        let granted = negotiated.flags;
        let serving = Arc::new(Serving {
            device,
            handler,
            granted,
            closed: Arc::clone(&closed),
            connection: connection.clone(),
            file: AtomicU64::new(0),
        });
        let ended = Arc::new(Ended::default());
        let required = config.ring == RingChoice::Required;
        let service = Service { serving, buffer_bytes: negotiated.payload_bytes(), config };
        let (begun, begin) = mpsc::channel();
        let run = {
            let ended = Arc::clone(&ended);
            move || ended.set(service.run(prepared, &begun))
        };
        // Where there is no thread, the device is closed, and with it the connection.
        spawn(run).map_err(StartError::Thread)?;
        match begin.recv() {
            Ok(Ok(())) => {}
            Ok(Err(why)) if required => return Err(StartError::NoRing(why)),
            Ok(Err(why)) => negotiated.transport = Transport::Device(why),
            Err(error) => return Err(StartError::Thread(io::Error::other(error))),
        }
        Ok(Self { ended, closed, notifier, negotiated, connection })
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
        self.connection.cut();
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

/// Makes ready what requests over io_uring need, or says why they cannot come that way.
fn prepare_ring(offer: &Offer, device: &Device, config: &Config) -> Result<Prepared, NoRing> {
    if config.ring == RingChoice::Never {
        return Err(NoRing::NotWanted);
    }
    offer.has_ring()?;
    let prepared =
        config.ring_pool.prepare(device.shared(), config.ring_depth, offer.negotiated.payload_bytes());
    prepared.map_err(|error| NoRing::Unavailable(error.to_string()))
}

/// A session's main thread.
struct Service {
    serving: Arc<Serving>,
    buffer_bytes: usize,
    config: Config,
}

impl Service {
    /// Serves until the end, and sees to it that the handler learns of that.
    fn run(self, prepared: Option<Prepared>, begun: &Sender<Result<(), NoRing>>) -> End {
        let attachment = self.attach(prepared, begun);
        let helpers = if attachment.is_some() { 0 } else { self.config.threads.saturating_sub(1) };
        let between = match (&attachment, helpers) {
            (Some(_), _) => Between::Gathering,
            (None, 0) => Between::Following(Follower::new()),
            // Of several threads nobody knows which the device wakes next.
            (None, _) => Between::Nothing,
        };
        let disconnect = self.serve_device(helpers, between);
        let aborted = self.serving.closed.load(Ordering::Acquire);
        let end = match disconnect {
            Disconnect::Failed(error) => End::Failed(error.to_string()),
            Disconnect::Aborted => End::Aborted,
            Disconnect::Unmounted if aborted => End::Aborted,
            Disconnect::Unmounted => End::Unmounted,
        };
        self.serving.closed.store(true, Ordering::Release);
        if let Some(attachment) = attachment {
            attachment.detach();
        }
        guarded(|| self.serving.handler.destroy(&end));
        end
    }

    /// Takes a place in the pool, if that was agreed on, and tells whether the session has begun.
    fn attach(&self, prepared: Option<Prepared>, begun: &Sender<Result<(), NoRing>>) -> Option<Attachment> {
        let (result, attachment) =
            match prepared.map(|prepared| self.config.ring_pool.attach(prepared, &self.serving)) {
                None => (Ok(()), None),
                Some(Attached::Yes(attachment)) => (Ok(()), Some(attachment)),
                Some(Attached::No(error)) => {
                    if self.config.ring == RingChoice::Required {
                        self.serving.cut();
                    }
                    (Err(NoRing::Refused(error)), None)
                }
                Some(Attached::Lost) => {
                    // The kernel waits for all queues. Whoever waits for the kernel has to be told.
                    self.serving.cut();
                    (Err(NoRing::Unavailable("a thread died".to_owned())), None)
                }
            };
        begun.send(result).ok();
        attachment
    }

    /// Serves the device until it says why there is no more.
    fn serve_device(&self, helpers: usize, between: Between) -> Disconnect {
        let helpers = self.start_helpers(helpers);
        let mut disconnect = serve(&self.serving, Buffers::new(self.buffer_bytes), between);
        if let Disconnect::Failed(error) = &disconnect {
            tracing::error!(%error, "the device failed; the session is cut");
            self.serving.cut();
        }
        for helper in helpers {
            // They read from the same device, and end as it does.
            if let Ok(Disconnect::Failed(error)) = helper.join()
                && !matches!(disconnect, Disconnect::Failed(_))
            {
                disconnect = Disconnect::Failed(error);
            }
        }
        disconnect
    }

    /// Starts further threads; one fewer is no reason to fail.
    fn start_helpers(&self, count: usize) -> Vec<JoinHandle<Disconnect>> {
        let helpers = (0..count).map(|_| {
            let (serving, buffer_bytes) = (Arc::clone(&self.serving), self.buffer_bytes);
            spawn(move || serve(&serving, Buffers::new(buffer_bytes), Between::Nothing))
        });
        helpers
            .filter_map(|helper| {
                helper.inspect_err(|error| tracing::warn!(%error, "a thread less serves the session")).ok()
            })
            .collect()
    }
}

fn spawn<T: Send + 'static>(run: impl FnOnce() -> T + Send + 'static) -> io::Result<JoinHandle<T>> {
    thread::Builder::new().name("fuse".into()).spawn(run)
}
