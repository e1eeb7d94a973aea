//! What a file system implements.

use crate::operation::Forget;
use crate::reply::Reply;
use crate::request::Request;
use crate::session::{End, Negotiated};

/// A file system.
///
/// Several threads call it at once. A panic answers the request with `EIO`, is logged, and ends nothing else.
pub trait Handler: Send + Sync + 'static {
    /// Learns what kernel and server agreed on, before the first request.
    fn init(&self, negotiated: &Negotiated) {
        tracing::trace!(?negotiated, "session begins");
    }

    /// Answers `request` through `reply`: now, or later with [`Reply::defer`].
    ///
    /// It must not wait for an answer from any session of this process: that session's request may have to
    /// be served by the very thread that waits.
    fn handle(&self, request: &Request<'_>, reply: Reply<'_>);

    /// Takes back lookups: entries that were answered, so and so often.
    fn forget(&self, forgets: &[Forget]);

    /// Learns that the caller of request `unique` has been interrupted. It still waits for an answer, which
    /// should come soon, and may be `EINTR`. Requests that are unknown have been answered, or not arrived.
    fn interrupted(&self, unique: u64) {
        tracing::trace!(unique, "interrupted");
    }

    /// Learns that the session is over, and how: once, whatever ended it, after the last other call.
    fn destroy(&self, end: &End) {
        tracing::trace!(?end, "session is over");
    }
}
