//! The SQLite database that knows which runs are cached and what lies where.
//!
//! It is ignorant of what the engine stores: path sets, states, facets, terminal output, lookups and
//! readings are opaque bytes here.
//!
//! | table | holds |
//! |---|---|
//! | `path_sets` | path sets by their hash |
//! | `entries`, `entry_contents` | cached runs, and their large parts |
//! | `claims` | what of a task's outputs lies in a workspace |
//! | `layers`, `punches` | what is attached to a live mount, and the holes in it |
//! | `stat_cache` | content hashes by device and inode |
//! | `lookups` | the last lookup of each task |
//! | `readings` | what was read last of a task's outputs |
//!
//! The schema version is `PRAGMA user_version`. An older index is emptied, a newer one refused, a damaged
//! one moved aside. Several processes may use one index at a time.
//!
//! # One connection, opened once
//!
//! The index usually lies below a workspace that the same process mounts over afterwards. From then on, a
//! path leads to the process's own mount: opening one would be wrong at best and a deadlock at worst. SQLite
//! opens the database, its log and the log's index by path, so all three are opened here at once, by one
//! connection that stays open, and everything that would make SQLite come back to a path is avoided:
//!
//! - the first write syncs the log, because the first sync of a log opens its directory by path;
//! - temporary tables and statement journals stay in memory;
//! - closing does not remove the log, which would be done by path.
//!
//! # Examples
//! ```
//! use vout::index::{Index, IndexOpened};
//! use vout::store::Store;
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let dir = tempfile::tempdir()?;
//! let (store, _notices) = Store::open(dir.path())?;
//! let (index, opened) = Index::open(store.dir(), store.path())?;
//! assert_eq!(opened, IndexOpened::Fresh);
//! assert_eq!(index.entries()?, []);
//! # Ok(())
//! # }
//! ```
//!
//! # Limitations
//! Closing still makes SQLite look at the database's path, with `stat(2)`, for a warning that nobody reads.
//! Drop an [`Index`] while no mount lies over it, or while other threads still serve that mount.

mod claims;
mod columns;
mod entries;
mod error;
mod evict;
mod layers;
mod lookups;
mod open;
mod readings;
mod schema;
mod stat_cache;
#[cfg(test)]
pub(crate) mod tests;

use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use rusqlite::{Connection, Transaction, TransactionBehavior};
use rustix::fs::{Mode, OFlags};

pub use self::claims::Claim;
pub use self::entries::{Entry, EntryFilter, NewEntry, Removed};
pub use self::error::IndexError;
pub use self::layers::{LayerRow, NewLayer, Punch};
pub use self::open::IndexOpened;
pub use self::schema::VERSION;
pub use self::stat_cache::StatRow;
use crate::digest::Digest;

/// A task, as owner of outputs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TaskId(pub Digest);

/// A workspace among those that share a store.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct WorkspaceId(pub Digest);

/// The index of a store.
#[derive(Debug)]
pub struct Index {
    /// For messages only.
    path: PathBuf,
    /// The store's directory.
    dir: OwnedFd,
    /// The only connection; held during one transaction, file access included. A leaf in the lock order.
    connection: Mutex<Connection>,
}

impl Index {
    /// Returns the path of the database, for display.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Runs `work` in a transaction that may write; waits for other processes' writes.
    fn write<T>(&self, work: impl FnOnce(&Transaction<'_>) -> rusqlite::Result<T>) -> Result<T, IndexError> {
        self.transact(TransactionBehavior::Immediate, work)
    }

    /// Runs `work` in a transaction that only reads, on one state of the database.
    fn read<T>(&self, work: impl FnOnce(&Transaction<'_>) -> rusqlite::Result<T>) -> Result<T, IndexError> {
        self.transact(TransactionBehavior::Deferred, work)
    }

    fn transact<T>(
        &self,
        behavior: TransactionBehavior,
        work: impl FnOnce(&Transaction<'_>) -> rusqlite::Result<T>,
    ) -> Result<T, IndexError> {
        // A panic in another thread rolled its transaction back, and left the connection as good as new.
        let mut connection = self.connection.lock().unwrap_or_else(PoisonError::into_inner);
        let run = || {
            let transaction = connection.transaction_with_behavior(behavior)?;
            // A newer vout may have emptied the index meanwhile; what it stores there is not ours to read.
            let found = schema::version(&transaction)?;
            if found != VERSION {
                return Ok(Err(found));
            }
            let result = work(&transaction)?;
            transaction.commit()?;
            Ok(Ok(result))
        };
        match run() {
            Ok(Ok(result)) => Ok(result),
            Ok(Err(found)) => Err(IndexError::Replaced { path: self.path.clone(), found, known: VERSION }),
            Err(error) => Err(self.explain(error)),
        }
    }

    /// Sorts an error of SQLite; remembers damage, so that the next start looks for it.
    fn explain(&self, error: rusqlite::Error) -> IndexError {
        let error = IndexError::of(&self.path, error);
        if let IndexError::Damaged { .. } = error {
            let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            if let Err(errno) = rustix::fs::openat(&self.dir, open::SUSPECT_NAME, flags, Mode::from(0o600)) {
                tracing::warn!(path = ?self.path, %errno, "the damaged index could not be marked");
            }
        }
        error
    }
}
