//! A FUSE session: one kernel connection and the adapter that answers it.

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

/// How a session ended.
pub use fuse_uring::End as SessionEnd;
/// Why a session could not be started.
pub use fuse_uring::StartError as ServeError;
use fuse_uring::{NoRing, Notifier, Transport};
use vout::report::ServedReport;

use crate::adapter::{Adapter, AdapterState};

/// A session that is being served.
///
/// Dropping this does not end it: processes may still be using the mount.
#[derive(Debug)]
pub struct Session {
    adapter: Arc<AdapterState>,
    served: fuse_uring::Session,
}

impl Session {
    /// Serves `adapter` on a `/dev/fuse` descriptor that somebody mounted. Returns once the kernel agreed;
    /// `on_end` is called after the last request.
    ///
    /// # Errors
    /// [`ServeError`].
    pub fn serve(
        device: OwnedFd,
        adapter: Adapter,
        on_end: impl FnOnce(&SessionEnd) + Send + 'static,
    ) -> Result<Self, ServeError> {
        let (config, state) = (adapter.config(), adapter.state());
        let served = fuse_uring::Session::start(device, config, Arc::new(adapter.on_end(on_end)))?;
        Ok(Self { adapter: state, served })
    }

    /// Returns a way to tell the kernel that its caches are out of date.
    #[must_use]
    pub fn notifier(&self) -> Notifier {
        self.served.notifier()
    }

    /// Returns whether the kernel reads and writes backing files directly.
    #[must_use]
    pub fn passthrough(&self) -> bool {
        self.adapter.passthrough()
    }

    /// Returns how it is served, and what it was asked so far.
    #[must_use]
    pub fn report(&self) -> ServedReport {
        let (over, why_not_ring) = match &self.served.negotiated().transport {
            Transport::Ring => ("io_uring", None),
            // Nothing to explain.
            Transport::Device(NoRing::NotWanted) => ("/dev/fuse", None),
            Transport::Device(why) => ("/dev/fuse", Some(why.to_string())),
        };
        ServedReport {
            over: over.to_owned(),
            why_not_ring,
            passthrough: self.passthrough(),
            requests: self.adapter.requests(),
        }
    }

    /// Returns how the session ended, if it has.
    #[must_use]
    pub fn end(&self) -> Option<SessionEnd> {
        self.served.end()
    }

    /// Waits for the end; `None` where it took longer than `timeout`.
    #[must_use]
    pub fn wait(&self, timeout: Duration) -> Option<SessionEnd> {
        self.served.wait(Some(timeout))
    }

    /// Ends the session: whatever its processes ask fails from now on.
    pub fn abort(&self) {
        self.served.abort();
    }
}

/// Returns what to do about a session that did not start.
pub(crate) fn hints(error: &ServeError) -> &'static [&'static str] {
    match error {
        ServeError::NoRing(NoRing::Disabled) => &[
            "`echo Y | sudo tee /sys/module/fuse/parameters/enable_uring` switches it on until the next boot",
            "`--transport auto` takes it where it is there, and /dev/fuse elsewhere",
        ],
        ServeError::NoRing(_) => {
            &["`--transport auto` takes the ring where it is there, and /dev/fuse elsewhere"]
        }
        _ => &[],
    }
}
