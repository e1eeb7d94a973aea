//! Requests over io_uring: one ring and one thread for each processor, shared by all sessions.
//!
//! The kernel gives each processor a queue of its own, and a request goes to the queue of its caller's. The
//! thread that serves the queue runs on that very processor, so nobody has to be woken up elsewhere; its
//! answer and its wait for the next request are one system call.

mod mailbox;
mod processors;
mod server;

use std::io;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{self, Receiver};
use std::sync::{Arc, LazyLock, Mutex, PoisonError};
use std::thread;

use rustix::io::Errno;
use thiserror::Error;

pub(crate) use self::mailbox::Later;
pub(crate) use self::processors::stay_on;

use self::mailbox::{Mail, Mailbox};
use self::processors::Processors;
use crate::dispatch::Serving;
use crate::sys::Slot;

/// Slots of one session that one queue starts with.
pub(crate) const DEPTH_DEFAULT: u16 = 2;

/// The rings of a process, and the threads that serve them. Clones are the same.
///
/// There is one per processor, however many sessions there are, from the first session over a ring on. One
/// pool is enough unless the handler of one session waits for another session of the same process: then each
/// needs a pool of its own.
#[derive(Debug, Clone)]
pub struct RingPool {
    inner: Arc<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    /// The threads, once there are any. Held while they are started.
    threads: Mutex<Option<Threads>>,
}

#[derive(Debug, Clone)]
struct Threads {
    mailboxes: Vec<Arc<Mailbox>>,
    processors: Arc<Processors>,
}

/// Why requests do not come over the ring.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum NoRing {
    /// The configuration says so.
    #[error("it is not asked for")]
    NotWanted,
    /// Before Linux 6.14 there is none.
    #[error("the kernel has none: it speaks version 7.{0} of the protocol, and 7.42 is needed")]
    Kernel(u32),
    /// The administrator can change that.
    #[error("it is switched off: /sys/module/fuse/parameters/enable_uring is N")]
    Disabled,
    /// No thread, or no ring, could be had.
    #[error("io_uring cannot be used here: {0}")]
    Unavailable(String),
    /// The kernel did not take the memory for requests.
    #[error("the kernel refused it: {0}")]
    Refused(Errno),
}

/// Slots that are ready to be registered, by the thread that will do so.
pub(crate) struct Prepared {
    threads: Threads,
    slots: Vec<Vec<Slot>>,
}

/// A session's place in a pool.
#[derive(Debug)]
pub(crate) struct Attachment {
    threads: Threads,
    session: u64,
    /// The threads go when nobody uses them.
    _pool: RingPool,
}

/// What became of registering a session's slots.
pub(crate) enum Attached {
    /// Requests come over the ring from now on.
    Yes(Attachment),
    /// The kernel refused, and uses the device.
    No(Errno),
    /// A thread died, and the kernel waits for it forever: the session is lost.
    Lost,
}

impl RingPool {
    /// Returns a pool of its own. Its threads start with the first session.
    #[must_use]
    pub fn new() -> Self {
        Self { inner: Arc::default() }
    }

    /// Returns the pool that all sessions share where nothing else is said.
    #[must_use]
    pub fn shared() -> Self {
        static SHARED: LazyLock<RingPool> = LazyLock::new(RingPool::new);
        SHARED.clone()
    }

    /// Makes ready what a session needs, without the kernel's knowing.
    pub(crate) fn prepare(
        &self,
        device: &Arc<OwnedFd>,
        depth: u16,
        payload_bytes: usize,
    ) -> io::Result<Prepared> {
        let threads = self.threads()?;
        let mut slots: Vec<Vec<Slot>> = threads.mailboxes.iter().map(|_| Vec::new()).collect();
        for (queue, thread) in threads.processors.queues() {
            for _ in 0..depth.max(1) {
                slots[thread].push(Slot::new(Arc::clone(device), queue, payload_bytes)?);
            }
        }
        Ok(Prepared { threads, slots })
    }

    /// Registers a session's slots. The kernel has to have agreed already.
    pub(crate) fn attach(&self, prepared: Prepared, serving: &Arc<Serving>) -> Attached {
        static SESSIONS: AtomicU64 = AtomicU64::new(0);
        let session = SESSIONS.fetch_add(1, Ordering::Relaxed);
        let (done, results) = mpsc::channel();
        for (mailbox, slots) in prepared.threads.mailboxes.iter().zip(prepared.slots) {
            let (serving, done) = (Arc::clone(serving), done.clone());
            mailbox.post(Mail::Attach { session, serving, slots, done });
        }
        drop(done);
        let results: Vec<_> = results.iter().collect();
        let attachment = Attachment { threads: prepared.threads, session, _pool: self.clone() };
        if let Some(error) = results.iter().find_map(|result| result.as_ref().err().copied()) {
            // What other queues took stays there, unused, until the connection is over.
            attachment.detach();
            return Attached::No(error);
        }
        if results.len() < attachment.threads.mailboxes.len() {
            return Attached::Lost;
        }
        Attached::Yes(attachment)
    }

    fn threads(&self) -> io::Result<Threads> {
        let mut threads = self.inner.threads.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(threads) = &*threads
            && threads.mailboxes.iter().all(|mailbox| mailbox.is_served())
        {
            return Ok(threads.clone());
        }
        let started = start()?;
        *threads = Some(started.clone());
        Ok(started)
    }
}

impl Default for RingPool {
    /// The shared pool.
    fn default() -> Self {
        Self::shared()
    }
}

impl PartialEq for RingPool {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.inner, &other.inner)
    }
}

impl Eq for RingPool {}

impl Attachment {
    /// Ends a session on all threads: when this returns, none of them is in its handler, or will be. Whatever
    /// the kernel still asks is refused. Slots come back once the connection is over.
    pub(crate) fn detach(&self) {
        let (done, detached) = mpsc::channel();
        for mailbox in &self.threads.mailboxes {
            mailbox.post(Mail::Detach { session: self.session, done: done.clone() });
        }
        drop(done);
        // A thread that died says nothing, and serves nothing.
        detached.iter().for_each(drop);
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        let threads = self.threads.get_mut().unwrap_or_else(PoisonError::into_inner);
        for mailbox in threads.iter().flat_map(|threads| &threads.mailboxes) {
            mailbox.post(Mail::Stop);
        }
    }
}

/// Starts a thread for each processor that is online.
fn start() -> io::Result<Threads> {
    let processors = Arc::new(Processors::of_system()?);
    let starting: Vec<Receiver<io::Result<Arc<Mailbox>>>> = processors
        .online()
        .iter()
        .map(|processor| {
            let (started, starting) = mpsc::channel();
            let processor = *processor;
            let run = move || server::run(processor, &started);
            thread::Builder::new().name(format!("fuse-ring/{processor}")).spawn(run)?;
            Ok(starting)
        })
        .collect::<io::Result<_>>()?;
    let mut mailboxes = Vec::with_capacity(starting.len());
    let mut failed = None;
    for starting in starting {
        match starting.recv() {
            Ok(Ok(mailbox)) => mailboxes.push(mailbox),
            Ok(Err(error)) => failed = Some(error),
            Err(error) => failed = Some(io::Error::other(error)),
        }
    }
    if let Some(error) = failed {
        mailboxes.iter().for_each(|mailbox| mailbox.post(Mail::Stop));
        return Err(error);
    }
    Ok(Threads { mailboxes, processors })
}
