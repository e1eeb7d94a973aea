//! Tells the kernel that its caches are out of date.
//!
//! The kernel answers a notification only once it holds the directory or the pages concerned, and whoever
//! holds those may be waiting for the session. So notifications go out from a thread of their own, never
//! from one that answers requests.

use std::ffi::{OsStr, OsString};
use std::io;
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver, Sender};
use std::thread;
use std::time::Duration;

use fuse_uring::Notifier;
use vout::fs::{Invalidator, NodeId};
use vout::watch::News;

use crate::adapter::UnopenedFiles;
use crate::watchers::Watchers;

/// How long to wait for the kernel. A directory may be held for long, by somebody who waits for us.
const FLUSH_TIMEOUT: Duration = Duration::from_secs(2);

/// An [`Invalidator`] that queues; what is queued before the session exists waits for it.
pub struct KernelInvalidator {
    queue: Sender<Notice>,
}

enum Notice {
    Entry {
        parent: NodeId,
        name: OsString,
    },
    Node(NodeId),
    Content(NodeId),
    /// A name that is to be asked for again, and not dropped.
    Expired {
        parent: NodeId,
        name: OsString,
    },
    Attributes(NodeId),
    /// For those who watch.
    News(Box<dyn News>),
    /// The session has begun.
    Attach(Notifier, Arc<UnopenedFiles>, Option<Watchers>),
    /// Nobody of ours is to be in the mount.
    Silence(Sender<()>),
    /// All before this is done.
    Flush(Sender<()>),
    /// The session has ended.
    Stop,
}

impl KernelInvalidator {
    /// Starts the thread.
    ///
    /// # Errors
    /// Where there is no thread to be had.
    pub fn start() -> io::Result<Arc<Self>> {
        let (queue, notices) = mpsc::channel();
        thread::Builder::new().name("invalidate".into()).spawn(move || run(&notices))?;
        Ok(Arc::new(Self { queue }))
    }

    /// Names the session whose kernel is to be told, the files that it holds open, and who tells watchers.
    pub(crate) fn attach(
        &self,
        notifier: Notifier,
        unopened: Arc<UnopenedFiles>,
        watchers: Option<Watchers>,
    ) {
        self.post(Notice::Attach(notifier, unopened, watchers));
    }

    /// Makes sure that no process of ours is in the mount.
    pub(crate) fn silence(&self) {
        let (done, silenced) = mpsc::channel();
        self.post(Notice::Silence(done));
        silenced.recv_timeout(FLUSH_TIMEOUT).ok();
    }

    /// Ends the thread: the session is over.
    pub fn stop(&self) {
        self.post(Notice::Stop);
    }

    /// Waits until the kernel knows all that was posted so far.
    pub fn flush(&self) {
        let (done, flushed) = mpsc::channel();
        self.post(Notice::Flush(done));
        match flushed.recv_timeout(FLUSH_TIMEOUT) {
            // Disconnected: the thread has stopped, and there is no kernel cache any more.
            Ok(()) | Err(mpsc::RecvTimeoutError::Disconnected) => {}
            Err(mpsc::RecvTimeoutError::Timeout) => {
                tracing::warn!("the kernel is slow to take invalidations; its caches expire by themselves");
            }
        }
    }

    fn post(&self, notice: Notice) {
        // Fails only after the session's end, when there is nobody to tell.
        self.queue.send(notice).ok();
    }
}

impl Invalidator for KernelInvalidator {
    fn entry_changed(&self, parent: NodeId, name: &OsStr) {
        self.post(Notice::Entry { parent, name: name.to_owned() });
    }

    fn node_changed(&self, node: NodeId) {
        self.post(Notice::Node(node));
    }

    fn content_changed(&self, node: NodeId) {
        self.post(Notice::Content(node));
    }

    fn name_expires(&self, parent: NodeId, name: &OsStr) {
        self.post(Notice::Expired { parent, name: name.to_owned() });
    }

    fn attributes_changed(&self, node: NodeId) {
        self.post(Notice::Attributes(node));
    }

    fn news(&self, news: Box<dyn News>) {
        self.post(Notice::News(news));
    }
}

fn run(notices: &Receiver<Notice>) {
    let mut session = None;
    while let Ok(notice) = notices.recv() {
        let told = match (notice, &session) {
            (Notice::Stop, _) => return,
            (Notice::Attach(notifier, unopened, watchers), _) => {
                session = Some((notifier, unopened, watchers));
                Ok(())
            }
            (Notice::Silence(done), session) => {
                if let Some((_, _, Some(watchers))) = session {
                    watchers.silence();
                }
                done.send(()).ok();
                Ok(())
            }
            (Notice::News(news), Some((_, _, Some(watchers)))) => {
                watchers.hear(news);
                Ok(())
            }
            (Notice::Flush(done), _) => {
                done.send(()).ok();
                Ok(())
            }
            // Without a session the kernel has cached nothing.
            (
                Notice::Entry { .. }
                | Notice::Node(_)
                | Notice::Content(_)
                | Notice::Expired { .. }
                | Notice::Attributes(_),
                None,
            )
            | (Notice::News(_), _) => Ok(()),
            (Notice::Entry { parent, name }, Some((notifier, ..))) => notifier.inval_entry(parent.0, &name),
            (Notice::Expired { parent, name }, Some((notifier, ..))) => {
                notifier.expire_entry(parent.0, &name)
            }
            (Notice::Attributes(node), Some((notifier, ..))) => notifier.inval_inode(node.0, -1, 0),
            (Notice::Content(node), Some((notifier, ..))) => notifier.inval_inode(node.0, 0, 0),
            (Notice::Node(node), Some((notifier, unopened, _))) => {
                unopened.forget(node);
                notifier.inval_inode(node.0, 0, 0)
            }
        };
        if let Err(error) = told {
            tracing::debug!(%error, "kernel refused an invalidation");
        }
    }
}
