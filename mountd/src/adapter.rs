//! Serves a [`vout::fs::Filesystem`] to the kernel.
//!
//! The adapter converts and owns what belongs to the protocol; what a file is, and what its absence
//! means, the core decides. Kernel behaviour referred to here is that of `fs/fuse` in Linux 6.9 and later.

mod convert;
mod operations;
mod tables;

use std::ffi::OsStr;
use std::io;
use std::os::fd::BorrowedFd;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use fuser::{BackingId, Errno, FileHandle, FopenFlags, INodeNo, InitFlags, KernelConfig, Request};
use vout::fs::{Attr, AttrChanges, Caller, DirEntry, Filesystem, FsError, NodeId, OpenFile, SeekTo};
use vout::report::Stream;

use self::convert::{is_exclusive, open_flags};
use self::tables::{Backings, Handles, Lookups};
use crate::errno::errno_of;
use crate::terminal::{self, Terminal};

/// Largest write request; the reading thread touches this much memory.
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
    /// Whether the kernel may read and write backing files directly.
    pub passthrough: bool,
    /// Whether the tree changes only through the mount, so that listings, link targets and contents may
    /// be cached without looking at times and sizes again.
    pub cache_dirs: bool,
}

impl AdapterOptions {
    /// Returns the options of a view: nobody else changes it, so every answer holds.
    #[must_use]
    pub const fn view(passthrough: bool) -> Self {
        Self {
            entry_ttl: FOREVER,
            attr_ttl: FOREVER,
            negative_ttl: Some(FOREVER),
            passthrough,
            cache_dirs: true,
        }
    }

    /// Returns the options of the live mount: the base may change beneath it.
    #[must_use]
    pub const fn live(passthrough: bool) -> Self {
        Self {
            entry_ttl: Duration::from_secs(1),
            attr_ttl: Duration::from_secs(1),
            negative_ttl: None,
            passthrough,
            cache_dirs: false,
        }
    }
}

/// What others may know about a session while it runs, and how they stop it.
#[derive(Debug, Default)]
pub struct AdapterState {
    /// Whether the kernel granted passthrough to the session.
    granted: AtomicBool,
    /// Whether it then refused a file for want of privilege.
    refused: AtomicBool,
    /// From now on every request fails.
    aborted: AtomicBool,
    /// Process that tells watchers what happened; 0 for none.
    announced_by: AtomicU32,
}

impl AdapterState {
    /// Returns whether open files are read and written by the kernel directly, where the core has a
    /// backing file.
    #[must_use]
    pub fn passthrough(&self) -> bool {
        self.granted.load(Ordering::Relaxed) && !self.refused.load(Ordering::Relaxed)
    }

    /// Lets every further request fail with `ENOTCONN`.
    pub(crate) fn abort(&self) {
        self.aborted.store(true, Ordering::Release);
    }

    /// Names the process whose requests are for show.
    pub(crate) fn announce_by(&self, process: u32) {
        self.announced_by.store(process, Ordering::Release);
    }

    pub(crate) fn is_aborted(&self) -> bool {
        self.aborted.load(Ordering::Acquire)
    }
}

/// A [`fuser::Filesystem`] over a [`vout::fs::Filesystem`].
///
/// # Limitations
/// Serve it with one thread: between a core's answer to a lookup and its being counted, a second thread
/// could forget the node.
pub struct Adapter {
    core: Arc<dyn Filesystem>,
    /// What answers the process that tells watchers.
    announcer: Option<Arc<dyn Filesystem>>,
    options: AdapterOptions,
    terminal: Option<Arc<Terminal>>,
    state: Arc<AdapterState>,
    lookups: Lookups,
    files: Handles<FileSlot>,
    dirs: Handles<DirSlot>,
    backings: Backings,
}

/// An open file.
enum FileSlot {
    Core { node: NodeId, file: Arc<dyn OpenFile> },
    Terminal(Stream),
}

/// An open directory.
struct DirSlot {
    node: NodeId,
    /// The names as they were when reading began; positions index them. Not held while the core reads.
    names: Mutex<Option<Arc<[DirEntry]>>>,
}

/// What an open answers.
struct Opened {
    handle: FileHandle,
    flags: FopenFlags,
    backing: Option<Arc<BackingId>>,
}

/// Where a new open file gets its backing id from: the reply that will carry it.
type Register<'a> = &'a dyn Fn(BorrowedFd<'_>) -> io::Result<BackingId>;

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
            dirs: Handles::default(),
            backings: Backings::default(),
        }
    }

    /// Has `announcer` answer the process that does for show what has happened.
    #[must_use]
    pub fn with_announcer(mut self, announcer: Arc<dyn Filesystem>) -> Self {
        self.announcer = Some(announcer);
        self
    }

    /// Returns what is to answer a request.
    fn core(&self, request: &Request) -> &dyn Filesystem {
        match &self.announcer {
            // Zero is a process of another namespace.
            Some(announcer) if request.pid() != 0 => {
                let for_show = request.pid() == self.state.announced_by.load(Ordering::Acquire);
                if for_show { &**announcer } else { &*self.core }
            }
            _ => &*self.core,
        }
    }

    /// Returns what others may know about the session.
    #[must_use]
    pub fn state(&self) -> Arc<AdapterState> {
        Arc::clone(&self.state)
    }

    /// Makes one request to the core. Here, and only here, errors become numbers, and a panic becomes
    /// `EIO`: a fault in one request must not end the session of a running task.
    fn answer<T>(
        &self,
        request: &Request,
        op: &'static str,
        node: INodeNo,
        call: impl FnOnce() -> Result<T, FsError>,
    ) -> Result<T, Errno> {
        let req = request.unique().0;
        let span = tracing::debug_span!("request", req, op, ino = node.0, pid = request.pid());
        let _entered = span.enter();
        if self.state.is_aborted() {
            return Err(Errno::ENOTCONN);
        }
        match catch_unwind(AssertUnwindSafe(call)) {
            Ok(Ok(value)) => Ok(value),
            Ok(Err(error)) => {
                match &error {
                    FsError::Corrupt(problem) => tracing::error!(problem, "damaged data"),
                    _ => tracing::debug!(%error, "refused"),
                }
                Err(errno_of(&error))
            }
            Err(panic) => {
                let message = panic_message(&*panic);
                tracing::error!(message, "internal fault");
                Err(Errno::EIO)
            }
        }
    }

    /// Negotiates with the kernel.
    fn negotiate(&self, config: &mut KernelConfig) {
        let mut wanted = vec![
            InitFlags::FUSE_PARALLEL_DIROPS,
            InitFlags::FUSE_ATOMIC_O_TRUNC,
            // Tells an aborted connection from an unmounted one.
            InitFlags::FUSE_ABORT_ERROR,
        ];
        wanted.push(if self.options.cache_dirs {
            InitFlags::FUSE_CACHE_SYMLINKS
        } else {
            InitFlags::FUSE_AUTO_INVAL_DATA
        });
        for flag in wanted {
            if let Err(missing) = config.add_capabilities(flag) {
                tracing::debug!(?missing, "kernel lacks a capability");
            }
        }
        // The kernel grants passthrough only together with a stack depth.
        let granted = self.options.passthrough
            && config.add_capabilities(InitFlags::FUSE_PASSTHROUGH).is_ok()
            && config.set_max_stack_depth(STACK_DEPTH_MAX).is_ok();
        self.state.granted.store(granted, Ordering::Relaxed);
        if let Err(nearest) = config.set_max_write(WRITE_BYTES_MAX) {
            tracing::debug!(nearest, "kernel takes no writes of {WRITE_BYTES_MAX} bytes");
        }
    }

    /// Counts the reference that an answer hands to the kernel.
    fn counted(&self, attr: Attr) -> Attr {
        self.lookups.add(attr.node);
        attr
    }

    fn terminal_stream(&self, parent: NodeId, name: &OsStr) -> Option<Stream> {
        self.terminal.as_ref()?.resolve(parent, name)
    }

    fn attr(&self, node: NodeId) -> Result<Attr, FsError> {
        match terminal::stream_of(node) {
            Some(stream) => Ok(terminal::attr_of(stream)),
            None => self.core.attr(node),
        }
    }

    fn set_attr(&self, core: &dyn Filesystem, node: NodeId, changes: AttrChanges) -> Result<Attr, FsError> {
        match terminal::stream_of(node) {
            // Truncating a terminal means nothing, as on a tty.
            Some(stream) => Ok(terminal::attr_of(stream)),
            None => core.set_attr(node, None, changes),
        }
    }

    /// How long attributes of `node` hold.
    fn attr_ttl(&self, node: NodeId) -> Duration {
        if terminal::stream_of(node).is_some() { Duration::ZERO } else { self.options.attr_ttl }
    }

    fn open_node(
        &self,
        core: &dyn Filesystem,
        node: NodeId,
        flags: i32,
        register: Register<'_>,
    ) -> Result<Opened, FsError> {
        if let Some(stream) = terminal::stream_of(node) {
            let handle = self.files.add(FileSlot::Terminal(stream));
            // A stream has no position: O_APPEND and several writers cannot disturb each other.
            let flags = FopenFlags::FOPEN_DIRECT_IO
                | FopenFlags::FOPEN_NONSEEKABLE
                | FopenFlags::FOPEN_STREAM
                | FopenFlags::FOPEN_NOFLUSH;
            return Ok(Opened { handle, flags, backing: None });
        }
        let file = core.open(node, open_flags(flags))?;
        self.opened(node, file, register)
    }

    /// Creates a file and opens it; opens the one that somebody else created in the meantime.
    fn create_file(
        &self,
        caller: Caller,
        (parent, name): (NodeId, &OsStr),
        mode: u32,
        flags: i32,
        register: Register<'_>,
    ) -> Result<(Attr, Opened), FsError> {
        let (attr, file) = match self.core.create(caller, parent, name, mode, open_flags(flags)) {
            Err(FsError::AlreadyExists) if !is_exclusive(flags) => {
                let attr = self.counted(self.core.lookup(parent, name)?);
                match self.core.open(attr.node, open_flags(flags)) {
                    Ok(file) => (attr, file),
                    Err(error) => {
                        self.forgotten(attr.node, 1);
                        return Err(error);
                    }
                }
            }
            created => created.map(|(attr, file)| (self.counted(attr), file))?,
        };
        match self.opened(attr.node, file, register) {
            Ok(opened) => Ok((attr, opened)),
            Err(error) => {
                self.forgotten(attr.node, 1);
                Err(error)
            }
        }
    }

    fn opened(
        &self,
        node: NodeId,
        file: Arc<dyn OpenFile>,
        register: Register<'_>,
    ) -> Result<Opened, FsError> {
        let offered = if self.state.granted.load(Ordering::Relaxed) { file.backing() } else { None };
        let backing = self.backings.open(node, offered, |fd| self.register(fd, register))?;
        let handle = self.files.add(FileSlot::Core { node, file });
        // Without a writeback cache nothing is pending at close but mapped pages, and the kernel writes
        // those when the mapping goes.
        let mut flags = FopenFlags::FOPEN_NOFLUSH;
        flags.set(FopenFlags::FOPEN_KEEP_CACHE, backing.is_none());
        Ok(Opened { handle, flags, backing })
    }

    /// Registers a backing file; without the privilege never tries again.
    fn register(&self, fd: BorrowedFd<'_>, register: Register<'_>) -> io::Result<BackingId> {
        if self.state.refused.load(Ordering::Relaxed) {
            return Err(io::ErrorKind::PermissionDenied.into());
        }
        let registered = register(fd);
        if let Err(error) = &registered
            && error.kind() == io::ErrorKind::PermissionDenied
        {
            tracing::info!("no privilege for passthrough");
            self.state.refused.store(true, Ordering::Relaxed);
        }
        registered
    }

    fn released(&self, handle: FileHandle) {
        if let Some(slot) = self.files.remove(handle)
            && let FileSlot::Core { node, .. } = &*slot
        {
            self.backings.close(*node);
        }
    }

    fn write(&self, handle: FileHandle, data: &[u8], offset: u64) -> Result<u32, FsError> {
        let written = self.core_file(handle)?.write_at(data, offset)?;
        u32::try_from(written).map_err(|_| FsError::InvalidArgument)
    }

    /// Returns the terminal behind an open file, if it is one.
    fn open_terminal(&self, handle: FileHandle) -> Option<(Arc<Terminal>, Stream)> {
        let FileSlot::Terminal(stream) = &*self.files.get(handle).ok()? else { return None };
        Some((Arc::clone(self.terminal.as_ref()?), *stream))
    }

    fn core_file(&self, handle: FileHandle) -> Result<Arc<dyn OpenFile>, FsError> {
        match &*self.files.get(handle)? {
            FileSlot::Core { file, .. } => Ok(Arc::clone(file)),
            FileSlot::Terminal(_) => Err(FsError::InvalidArgument),
        }
    }

    fn sync_file(&self, handle: FileHandle, data_only: bool) -> Result<(), FsError> {
        match &*self.files.get(handle)? {
            FileSlot::Core { file, .. } => file.sync(data_only),
            FileSlot::Terminal(_) => Ok(()),
        }
    }

    fn seek(&self, handle: FileHandle, offset: i64, whence: i32) -> Result<i64, FsError> {
        // The kernel asks for these two only; the values are those of lseek(2).
        let to = match whence {
            3 => SeekTo::Data,
            4 => SeekTo::Hole,
            _ => return Err(FsError::InvalidArgument),
        };
        let offset = u64::try_from(offset).map_err(|_| FsError::from(rustix::io::Errno::NXIO))?;
        let found = self.core_file(handle)?.seek(offset, to)?;
        i64::try_from(found).map_err(|_| FsError::from(rustix::io::Errno::OVERFLOW))
    }

    /// Returns the names of an open directory: as they were when it was first read, or read again from
    /// the start.
    fn names(&self, handle: FileHandle, offset: u64) -> Result<Arc<[DirEntry]>, FsError> {
        let dir = self.dirs.get(handle)?;
        let held = dir.names.lock().unwrap_or_else(PoisonError::into_inner).clone();
        if offset > 0
            && let Some(names) = held
        {
            return Ok(names);
        }
        let names: Arc<[DirEntry]> = self.core.read_dir(dir.node)?.into();
        *dir.names.lock().unwrap_or_else(PoisonError::into_inner) = Some(Arc::clone(&names));
        Ok(names)
    }

    fn forgotten(&self, node: NodeId, count: u64) {
        if self.lookups.take(node, count) && terminal::stream_of(node).is_none() {
            let forget = || self.core.forget(node);
            if let Err(panic) = catch_unwind(AssertUnwindSafe(forget)) {
                tracing::error!(ino = node.0, message = panic_message(&*panic), "internal fault");
            }
        }
    }
}

/// Returns the caller of a request.
fn caller_of(request: &Request) -> Caller {
    Caller::new(request.uid(), request.gid())
}

fn panic_message(panic: &(dyn std::any::Any + Send)) -> &str {
    panic
        .downcast_ref::<&str>()
        .copied()
        .or_else(|| panic.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("panic without a message")
}
