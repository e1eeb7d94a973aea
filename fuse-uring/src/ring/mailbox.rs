//! How others reach a ring's thread.

use std::mem;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::Sender;
use std::sync::{Arc, Mutex, PoisonError};

use rustix::io::Errno;
use zerocopy::IntoBytes;

use crate::dispatch::Serving;
use crate::sys::Slot;

/// What a thread is told.
pub(super) enum Mail {
    /// Serve a session.
    Attach { session: u64, serving: Arc<Serving>, slots: Vec<Slot>, done: Sender<Result<(), Errno>> },
    /// Serve it no longer.
    Detach { session: u64, done: Sender<()> },
    /// A deferred request is answered.
    Answer { session: u64, unique: u64, answer: Result<Vec<u8>, Errno> },
    /// Nobody needs the thread any more.
    Stop,
}

/// Messages for a thread that waits for its ring.
#[derive(Debug)]
pub(crate) struct Mailbox {
    /// What it has not read yet. A leaf.
    mail: Mutex<Vec<Mail>>,
    /// Ends its wait.
    waker: OwnedFd,
    /// Whether it reads at all.
    served: AtomicBool,
}

/// The way of a deferred answer to the thread that has the request's slot.
#[derive(Debug, Clone)]
pub(crate) struct Later {
    mailbox: Arc<Mailbox>,
    session: u64,
}

impl Mailbox {
    pub(super) fn new(waker: OwnedFd) -> Self {
        Self { mail: Mutex::default(), waker, served: AtomicBool::new(true) }
    }

    /// Leaves a message. Where nobody reads, it is dropped.
    pub(super) fn post(&self, mail: Mail) {
        if !self.is_served() {
            return;
        }
        self.mail.lock().unwrap_or_else(PoisonError::into_inner).push(mail);
        // It counts, and cannot overflow before the thread has read.
        if let Err(error) = rustix::io::write(&self.waker, 1_u64.as_bytes()) {
            tracing::error!(%error, "a ring's thread is not woken up");
        }
        if !self.is_served() {
            self.close();
        }
    }

    pub(super) fn take(&self) -> Vec<Mail> {
        mem::take(&mut *self.mail.lock().unwrap_or_else(PoisonError::into_inner))
    }

    pub(super) fn is_served(&self) -> bool {
        self.served.load(Ordering::SeqCst)
    }

    /// Ends reading. What is left is dropped, so that senders learn of it.
    pub(super) fn close(&self) {
        self.served.store(false, Ordering::SeqCst);
        drop(self.take());
    }
}

impl Later {
    pub(super) const fn new(mailbox: Arc<Mailbox>, session: u64) -> Self {
        Self { mailbox, session }
    }

    pub(crate) fn answer(&self, unique: u64, answer: Result<Vec<u8>, Errno>) {
        self.mailbox.post(Mail::Answer { session: self.session, unique, answer });
    }
}

impl std::fmt::Debug for Mail {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str(match self {
            Self::Attach { .. } => "Attach",
            Self::Detach { .. } => "Detach",
            Self::Answer { .. } => "Answer",
            Self::Stop => "Stop",
        })
    }
}
