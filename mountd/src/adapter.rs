//! Serves a [`vout::fs::Filesystem`] to the kernel.
//!
//! The adapter converts and owns what belongs to the protocol; what a file is, and what its absence
//! means, the core decides. Kernel behaviour referred to here is that of `fs/fuse` in Linux 6.9 and later.

mod convert;
mod counts;
mod files;
mod operations;
mod tables;
mod unopened;

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use fuse_uring::{Config, EntryOut, Errno, InitFlags, Request, RingChoice};
use vout::fs::{Attr, Caller, Filesystem, FsError, Holds, NodeId};
use vout::report::Stream;
use vout::serving::{Serving, Transport};

use self::convert::entry_out;
use self::counts::RequestCounts;
use self::files::{DirSlot, FileSlot};
use self::tables::{Backings, Executed, Handles, Lookups};
pub(crate) use self::unopened::UnopenedFiles;
use crate::errno::errno_of;
use crate::session::SessionEnd;
use crate::terminal::{self, Terminal};

/// Largest write request; a buffer of this size is touched where files are not passed through.
const WRITE_BYTES_MAX: u32 = 1024 * 1024;

/// Stacking allowed below us: backing files may lie on an overlayfs, as in containers.
const STACK_DEPTH_MAX: u32 = 2;

/// A lifetime that outlives every session.
const FOREVER: Duration = Duration::from_secs(10 * 365 * 24 * 60 * 60);

/// What the kernel may cache, and how it reaches the data.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AdapterOptions {
    /// How long a name stands for its node.
    pub entry_ttl: Duration,
    /// How long attributes hold.
    pub attr_ttl: Duration,
    /// How long a name stays absent; `None`: no such answer is cached.
    pub negative_ttl: Option<Duration>,
    /// How requests come, and whether the kernel may read and write backing files directly.
    pub serving: Serving,
    /// Whether the tree changes only through the mount, so that listings, link targets and contents may
    /// be cached without looking at times and sizes again.
    pub cache_dirs: bool,
    /// Whether the kernel tells when a file is opened and closed. Where it does not, that costs no request; but
    /// files can neither be passed through nor looked at again when they are opened.
    pub told_of_opens: bool,
    /// Whether the kernel may have attributes with a listing. What it got that way it does not ask for again, so that a
    /// listing would look like a use of everything in it where uses are recorded.
    pub lists_attributes: bool,
}

impl AdapterOptions {
    /// Returns the options of a view: nobody else changes it, so every answer holds.
    #[must_use]
    pub const fn view(serving: Serving) -> Self {
        Self {
            entry_ttl: FOREVER,
            attr_ttl: FOREVER,
            negative_ttl: Some(FOREVER),
            serving,
            cache_dirs: true,
            told_of_opens: serving.passthrough,
            lists_attributes: false,
        }
    }

    /// Returns the options of the live mount: the base may change beneath it, and shows so when names are looked up.
    #[must_use]
    pub const fn live(serving: Serving) -> Self {
        Self {
            entry_ttl: Duration::from_secs(1),
            attr_ttl: Duration::from_secs(1),
            negative_ttl: None,
            serving,
            cache_dirs: false,
            told_of_opens: serving.passthrough,
            lists_attributes: true,
        }
    }
}

/// What others may know about a session while it runs.
#[derive(Debug, Default)]
pub struct AdapterState {
    /// Whether the kernel granted passthrough to the session.
    granted: AtomicBool,
    /// Whether it then refused a file for want of privilege.
    refused: AtomicBool,
    /// Process that tells watchers what happened; 0 for none.
    announced_by: AtomicU32,
    /// What the kernel has asked for so far.
    requests: RequestCounts,
}

impl AdapterState {
    /// Returns whether open files are read and written by the kernel directly, where the core has a
    /// backing file.
    #[must_use]
    pub fn passthrough(&self) -> bool {
        self.granted.load(Ordering::Relaxed) && !self.refused.load(Ordering::Relaxed)
    }

    /// Returns how often the kernel asked for what.
    #[must_use]
    pub fn requests(&self) -> BTreeMap<String, u64> {
        self.requests.by_name()
    }

    /// Notes what the kernel granted.
    pub(crate) fn grant(&self, flags: InitFlags) {
        self.granted.store(flags.contains(InitFlags::PASSTHROUGH), Ordering::Relaxed);
    }

    /// Names the process whose requests are for show.
    pub(crate) fn announce_by(&self, process: u32) {
        self.announced_by.store(process, Ordering::Release);
    }
}

/// A [`fuse_uring::Handler`] over a [`vout::fs::Filesystem`].
pub struct Adapter {
    core: Arc<dyn Filesystem>,
    /// What answers the process that tells watchers.
    announcer: Option<Arc<dyn Filesystem>>,
    options: AdapterOptions,
    terminal: Option<Arc<Terminal>>,
    state: Arc<AdapterState>,
    lookups: Lookups,
    files: Handles<FileSlot>,
    unopened: Arc<UnopenedFiles>,
    dirs: Handles<DirSlot>,
    backings: Backings,
    executed: Executed,
    /// Called at the session's end.
    on_end: Mutex<Option<OnEnd>>,
}

/// Called when a session is over.
type OnEnd = Box<dyn FnOnce(&SessionEnd) + Send>;

impl Adapter {
    /// Serves `core`, with the terminal files of a view where it has some.
    #[must_use]
    pub fn new(core: Arc<dyn Filesystem>, options: AdapterOptions, terminal: Option<Arc<Terminal>>) -> Self {
        Self {
            core,
            announcer: None,
            options,
            terminal,
            state: Arc::default(),
            lookups: Lookups::default(),
            files: Handles::default(),
            unopened: Arc::default(),
            dirs: Handles::default(),
            backings: Backings::default(),
            executed: Executed::default(),
            on_end: Mutex::default(),
        }
    }

    /// Has `announcer` answer the process that does for show what has happened.
    #[must_use]
    pub fn with_announcer(mut self, announcer: Arc<dyn Filesystem>) -> Self {
        self.announcer = Some(announcer);
        self
    }

    /// Has `on_end` called after the last request.
    pub(crate) fn on_end(self, on_end: impl FnOnce(&SessionEnd) + Send + 'static) -> Self {
        Self { on_end: Mutex::new(Some(Box::new(on_end))), ..self }
    }

    /// Returns what others may know about the session.
    #[must_use]
    pub fn state(&self) -> Arc<AdapterState> {
        Arc::clone(&self.state)
    }

    /// Returns the files that the kernel opened without asking.
    pub(crate) fn unopened(&self) -> Arc<UnopenedFiles> {
        Arc::clone(&self.unopened)
    }

    /// Returns what to ask of the kernel.
    pub(crate) fn config(&self) -> Config {
        let mut flags = InitFlags::ASYNC_READ
            | InitFlags::PARALLEL_DIROPS
            // Set-id bits go where a file is written or given away, without the kernel asking for attributes.
            | InitFlags::HANDLE_KILLPRIV_V2
            | InitFlags::CREATE_SUPP_GROUP
            | InitFlags::SETXATTR_EXT;
        flags |= if self.options.cache_dirs { InitFlags::CACHE_SYMLINKS } else { InitFlags::AUTO_INVAL_DATA };
        // Always: with READDIRPLUS_AUTO, whoever reads all names before the first look gets most of them without.
        flags.set(InitFlags::DO_READDIRPLUS, self.options.lists_attributes);
        // Without an open the cut comes as a change of size.
        flags.set(InitFlags::ATOMIC_O_TRUNC, self.options.told_of_opens);
        // The kernel grants passthrough only together with a stack depth.
        flags.set(InitFlags::PASSTHROUGH, self.options.serving.passthrough);
        let max_stack_depth = if self.options.serving.passthrough { STACK_DEPTH_MAX } else { 0 };
        let ring = match self.options.serving.transport {
            Transport::Auto => RingChoice::Auto,
            Transport::Uring => RingChoice::Required,
            Transport::Dev => RingChoice::Never,
        };
        Config { flags, max_write: WRITE_BYTES_MAX, max_stack_depth, ring, ..Config::default() }
    }

    /// Returns what is to answer a request.
    fn core(&self, request: &Request<'_>) -> &dyn Filesystem {
        match &self.announcer {
            // Zero is a process of another namespace.
            Some(announcer) if request.pid() != 0 => {
                let for_show = request.pid() == self.state.announced_by.load(Ordering::Acquire);
                if for_show { &**announcer } else { &*self.core }
            }
            _ => &*self.core,
        }
    }

    /// Has the core hand out a node, and counts the reference.
    fn hand_out(&self, call: impl FnOnce() -> Result<Attr, FsError>) -> Result<Attr, FsError> {
        self.lookups.hand_out(call, |attr| attr.node)
    }

    fn forgotten(&self, node: NodeId, count: u64) {
        self.lookups.take(node, count, || {
            if terminal::stream_of(node).is_none() {
                self.unopened.forget(node);
                self.core.forget(node);
            }
        });
    }

    fn terminal_stream(&self, parent: NodeId, name: &OsStr) -> Option<Stream> {
        self.terminal.as_ref()?.resolve(parent, name)
    }

    /// How long attributes hold.
    fn attr_ttl(&self, attr: &Attr) -> Duration {
        match attr.holds {
            _ if terminal::stream_of(attr.node).is_some() => Duration::ZERO,
            Holds::Nothing => self.options.attr_ttl,
            Holds::Attributes | Holds::Name => FOREVER,
        }
    }

    /// How long a name leads to what it was answered with.
    fn entry_ttl(&self, attr: &Attr) -> Duration {
        match attr.holds {
            _ if terminal::stream_of(attr.node).is_some() => Duration::ZERO,
            Holds::Nothing | Holds::Attributes => self.options.entry_ttl,
            Holds::Name => FOREVER,
        }
    }

    /// Returns the answer that leads a name to `attr`.
    fn entry(&self, attr: &Attr) -> EntryOut {
        entry_out(attr, self.entry_ttl(attr), self.attr_ttl(attr))
    }

    fn ended(&self, end: &SessionEnd) {
        let on_end = self.on_end.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(on_end) = on_end {
            on_end(end);
        }
    }
}

/// Returns the caller of a request.
fn caller_of(request: &Request<'_>) -> Caller {
    Caller { group_of_dir: request.supplementary_group(), ..Caller::new(request.uid(), request.gid()) }
}

/// Turns an error into a number; here, and only here.
fn number_of(error: &FsError) -> Errno {
    match error {
        FsError::Corrupt(problem) => tracing::error!(problem, "damaged data"),
        _ => tracing::debug!(%error, "refused"),
    }
    errno_of(error)
}
