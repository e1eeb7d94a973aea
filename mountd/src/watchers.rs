//! Lets those hear who watch the live mount with inotify, when its tree was changed beneath it.
//!
//! The kernel reports what is done through a mount, so a helper process does it once more, for show: the
//! adapter knows the helper by its process id, and has it answered by a tree that changes nothing. It is a
//! process of its own because whoever serves a mount must never wait on it.

mod helper;
mod marks;

use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{self, Receiver, Sender};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use vout::mountinfo::mount_at;
use vout::watch::{Happening, News};
use vout::wire::{self, WireError};

pub(crate) use self::helper::run as run_helper;
use self::marks::watched_inodes;
use crate::adapter::AdapterState;

/// Argument that makes the daemon's program the helper.
pub(crate) const HELPER_ARGUMENT: &str = "--announce";

/// How many happenings go to the helper at once.
const BATCH: usize = 256;

/// How long the helper may take for them.
const BATCH_TIMEOUT: Duration = Duration::from_secs(10);

/// What the helper is to do.
#[derive(Debug, Serialize, Deserialize)]
struct Batch {
    /// Where the mount is.
    at: PathBuf,
    /// Its device number: something else may lie over it.
    device: (u32, u32),
    happenings: Vec<Happening>,
}

/// How many of a batch the kernel took.
#[derive(Debug, Serialize, Deserialize)]
struct Done(u64);

/// Tells those who watch one live mount.
#[derive(Debug)]
pub(crate) struct Watchers {
    queue: Sender<Box<dyn News>>,
    helper: Arc<Mutex<Option<Helper>>>,
}

#[derive(Debug)]
struct Helper {
    child: Child,
    stream: Arc<UnixStream>,
}

struct Teller {
    at: PathBuf,
    adapter: Arc<AdapterState>,
    /// The helper process, where it runs. Held only to look at it.
    helper: Arc<Mutex<Option<Helper>>>,
}

impl Watchers {
    /// Starts the thread that tells the watchers of the mount at `at`.
    pub(crate) fn start(at: PathBuf, adapter: Arc<AdapterState>) -> io::Result<Self> {
        let (queue, news) = mpsc::channel();
        let helper = Arc::default();
        let teller = Teller { at, adapter, helper: Arc::clone(&helper) };
        thread::Builder::new().name("watchers".into()).spawn(move || teller.run(&news))?;
        Ok(Self { queue, helper })
    }

    /// Takes news, to be told when there is time.
    pub(crate) fn hear(&self, news: Box<dyn News>) {
        // Fails only after the thread died.
        self.queue.send(news).ok();
    }

    /// Ends the helper, which may be in the mount just now and in the way of its unmounting.
    pub(crate) fn silence(&self) {
        end_helper(&self.helper);
    }
}

impl Drop for Watchers {
    fn drop(&mut self) {
        self.silence();
    }
}

impl Teller {
    fn run(&self, news: &Receiver<Box<dyn News>>) {
        while let Ok(news) = news.recv() {
            if let Err(error) = self.tell(&*news) {
                tracing::debug!(%error, "watchers were not told of everything");
                end_helper(&self.helper);
            }
        }
    }

    fn tell(&self, news: &dyn News) -> Result<(), WireError> {
        let Some(mount) = mount_at(&self.at)? else { return Ok(()) };
        let watched = watched_inodes(mount.device)?;
        if watched.is_empty() {
            return Ok(());
        }
        let happenings = news.prepare(&watched);
        tracing::debug!(watched = watched.len(), happenings = happenings.len(), "telling watchers");
        for batch in happenings.chunks(BATCH) {
            let stream = self.helper()?;
            let batch = Batch { at: self.at.clone(), device: mount.device, happenings: batch.to_vec() };
            wire::send(&stream, &batch, &[])?;
            match wire::receive::<Done>(&stream)? {
                Some(done) => tracing::debug!(told = done.message.0, "told watchers"),
                None => return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into()),
            }
        }
        Ok(())
    }

    /// Returns the connection to the helper, which is started if it does not run.
    fn helper(&self) -> io::Result<Arc<UnixStream>> {
        let mut helper = lock(&self.helper);
        if let Some(helper) = &*helper {
            return Ok(Arc::clone(&helper.stream));
        }
        let (ours, theirs) = UnixStream::pair()?;
        ours.set_read_timeout(Some(BATCH_TIMEOUT))?;
        // The program may have been replaced since it was started.
        let child = Command::new("/proc/self/exe")
            .arg(HELPER_ARGUMENT)
            .current_dir("/")
            .stdin(OwnedFd::from(theirs))
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()?;
        self.adapter.announce_by(child.id());
        let stream = Arc::new(ours);
        *helper = Some(Helper { child, stream: Arc::clone(&stream) });
        Ok(stream)
    }
}

/// Ends the helper and waits for it, so that it holds nothing any more.
fn end_helper(helper: &Mutex<Option<Helper>>) {
    let Some(mut ended) = lock(helper).take() else { return };
    let gone = ended.child.kill().and_then(|()| ended.child.wait());
    if let Err(error) = gone {
        tracing::warn!(%error, "the helper that tells watchers is left to itself");
    }
}

fn lock(helper: &Mutex<Option<Helper>>) -> MutexGuard<'_, Option<Helper>> {
    helper.lock().unwrap_or_else(PoisonError::into_inner)
}
