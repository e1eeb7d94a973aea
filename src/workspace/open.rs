//! Opening a workspace: its store and index, or something in their place where they cannot be used.

use std::collections::HashMap;
use std::os::fd::AsFd;
use std::path::Path;
use std::sync::atomic::AtomicUsize;
use std::sync::{Arc, Condvar, Mutex};

use rusqlite::ErrorCode;
use rustix::io::Errno;

use super::{OpenOptions, Prefetcher, Workspace, WorkspaceError, chain};
use crate::base::{Base, STORE_NAME};
use crate::content::ContentHashes;
use crate::digest::Digest;
use crate::index::{Index, IndexError, WorkspaceId};
use crate::materialise::Materialiser;
use crate::path::RelPathBuf;
use crate::store::{Store, StoreError, WorkArea};
use crate::tree::Tree;

/// What a workspace keeps its cache and its work in progress in.
struct Storage {
    store: Store,
    index: Index,
    /// Why the store is a throw-away one, if it is.
    fault: Option<String>,
    /// A work area in the workspace that is not in use, but was when the store lay elsewhere.
    former: Option<Arc<WorkArea>>,
}

impl Workspace {
    /// Opens the workspace and recovers what a crash left.
    ///
    /// A store that cannot be written, or is full, costs the cache only: a throw-away store in the
    /// workspace takes its place, and no run is cached.
    ///
    /// # Errors
    /// [`WorkspaceError`] where store or index must not be used, or neither they nor the workspace can be
    /// written.
    pub fn open(options: OpenOptions) -> Result<Self, WorkspaceError> {
        let OpenOptions { root, root_dir, store: store_path, limits } = options;
        let hidden = store_path.strip_prefix(&root).ok().and_then(|below| {
            use std::os::unix::ffi::OsStrExt;
            RelPathBuf::new(below.as_os_str().as_bytes()).ok().filter(|below| !below.is_root())
        });
        let base = Base::new(root_dir, hidden.into_iter().collect())
            .map_err(|source| WorkspaceError::Root { path: root.clone(), source })?;
        let Storage { store, index, fault, former } = open_storage(&root, &base, &store_path)?;
        let (store, index) = (Arc::new(store), Arc::new(index));
        let id = WorkspaceId(Digest::of(root.as_os_str().as_encoded_bytes()));
        let tree = Arc::new(Tree::new(Arc::new(base)));
        let hashes = Arc::new(ContentHashes::new(Some(Arc::clone(&index))));
        let materialiser = Arc::new(Materialiser {
            tree: Arc::clone(&tree),
            index: Arc::clone(&index),
            workspace: id,
            hashes: Arc::clone(&hashes),
        });
        let prefetcher = Prefetcher::new(&tree, &index, &store);
        let workspace = Self {
            root,
            id,
            store,
            index,
            limits,
            fault,
            tree,
            hashes,
            materialiser,
            touched: Arc::default(),
            prefetcher,
            known: Mutex::default(),
            mounted: Mutex::default(),
            archives: Mutex::new(HashMap::new()),
            retired: Mutex::default(),
            lookups: AtomicUsize::default(),
            committing: Mutex::default(),
            unfinished: Mutex::default(),
            commits: Arc::default(),
            in_place: Mutex::default(),
            running: Mutex::default(),
            idle: Condvar::new(),
        };
        workspace.recover(former.as_ref())?;
        Ok(workspace)
    }
}

fn open_storage(root: &Path, base: &Base, store_path: &Path) -> Result<Storage, WorkspaceError> {
    match open_store(store_path) {
        Ok((store, index)) => Ok(with_work_area(root, base, store, index)),
        Err(error) if costs_the_cache_only(&error) => {
            let reason = chain(&error);
            tracing::error!(%reason, "the store cannot be used; nothing is cached");
            open_throw_away(root, base)
                .map_err(|work| WorkspaceError::NoStorage { work: chain(&work), store: Box::new(error) })
                .map(|(store, index)| Storage { store, index, fault: Some(reason), former: None })
        }
        Err(error) => Err(error),
    }
}

fn open_store(path: &Path) -> Result<(Store, Index), WorkspaceError> {
    let (store, notices) = Store::open(path)?;
    for notice in notices {
        tracing::info!(?notice, "store");
    }
    let index = match Index::open(store.dir(), path) {
        // What crashes left may be what fills the disk.
        Err(error) if is_fault_of_disk(&error) => {
            store.make_room()?;
            Index::open(store.dir(), path)
        }
        opened => opened,
    };
    let (index, opened) = index?;
    tracing::info!(?opened, path = ?index.path(), "index");
    Ok((store, index))
}

/// Chooses where runs work: where a commit can rename files into the workspace.
fn with_work_area(root: &Path, base: &Base, store: Store, index: Index) -> Storage {
    let fits = |area: &WorkArea| area.same_device_as(base.root()).unwrap_or(false);
    let fault = None;
    if fits(store.work()) {
        let former = if is_same_dir(base, &store) {
            None
        } else {
            // Not worth an error: what is in it belongs to a store that is not in use.
            WorkArea::open_existing(base.root(), STORE_NAME, root).unwrap_or_default()
        };
        return Storage { store, index, fault, former };
    }
    match WorkArea::open(base.root(), STORE_NAME, root) {
        Ok(area) if fits(&area) => Storage { store: store.with_work_area(area), index, fault, former: None },
        Ok(_) => Storage { store, index, fault, former: None },
        Err(error) => {
            let reason = chain(&error);
            tracing::warn!(%reason, "tasks' writes are staged in the store and copied from there");
            Storage { store, index, fault, former: None }
        }
    }
}

/// Returns whether the store is the one that a workspace has by default.
fn is_same_dir(base: &Base, store: &Store) -> bool {
    let own = rustix::fs::fstat(store.dir());
    let default = rustix::fs::statat(base.root(), STORE_NAME, rustix::fs::AtFlags::SYMLINK_NOFOLLOW);
    matches!((own, default), (Ok(own), Ok(default))
        if (own.st_dev, own.st_ino) == (default.st_dev, default.st_ino))
}

fn open_throw_away(root: &Path, base: &Base) -> Result<(Store, Index), WorkspaceError> {
    let area = WorkArea::open(base.root().as_fd(), STORE_NAME, root)?;
    // Of an earlier time without a store.
    area.sweep()?;
    let store = Store::throw_away(&area)?;
    let (index, _) = Index::open(store.dir(), store.path())?;
    Ok((store, index))
}

/// Returns whether a fault of the store leaves builds without a cache, rather than somebody with a mistake
/// to put right.
fn costs_the_cache_only(error: &WorkspaceError) -> bool {
    match error {
        WorkspaceError::Store(StoreError::Full { .. } | StoreError::ReadOnly { .. }) => true,
        WorkspaceError::Store(StoreError::Io { source, .. }) => is_disk(source),
        WorkspaceError::Index(error) => is_fault_of_disk(error),
        _ => false,
    }
}

fn is_fault_of_disk(error: &IndexError) -> bool {
    match error {
        IndexError::Full { .. } | IndexError::ReadOnly { .. } => true,
        IndexError::Io { source, .. } => is_disk(source),
        // A log that finds no room, for one.
        IndexError::Sql { source, .. } => {
            matches!(source.sqlite_error_code(), Some(ErrorCode::CannotOpen | ErrorCode::SystemIoFailure))
        }
        _ => false,
    }
}

fn is_disk(error: &std::io::Error) -> bool {
    let errno = Errno::from_io_error(error);
    matches!(errno, Some(Errno::NOSPC | Errno::DQUOT | Errno::ROFS | Errno::IO))
}
