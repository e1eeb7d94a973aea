//! Why the index cannot be used.

use std::io;
use std::path::{Path, PathBuf};

use rusqlite::{Error as SqlError, ErrorCode};
use thiserror::Error;
use uuid::Uuid;

use super::open::BUSY_TIMEOUT;

/// Why something could not be done with the index.
#[derive(Debug, Error)]
pub enum IndexError {
    /// It was written by a newer vout.
    #[error(
        "the index {path:?} has version {found}, and this vout knows versions up to {known}; \
         use the newer vout, or another store"
    )]
    Newer {
        /// The database.
        path: PathBuf,
        /// Its version.
        found: i64,
        /// Ours.
        known: i64,
    },
    /// Another vout emptied it for a version of its own while it was open here.
    #[error(
        "the index {path:?} was changed to version {found} by another vout, and this one needs version \
         {known}; restart it"
    )]
    Replaced {
        /// The database.
        path: PathBuf,
        /// Its version now.
        found: i64,
        /// Ours.
        known: i64,
    },
    /// The path does not lead to the directory that was opened: something is mounted over it.
    #[error("the path of the index {path:?} leads elsewhere; is something mounted over it?")]
    Elsewhere {
        /// The database.
        path: PathBuf,
    },
    /// Another process held it locked for too long.
    #[error(
        "the index {path:?} was locked by another process for more than {} seconds; try again when it is idle",
        BUSY_TIMEOUT.as_secs()
    )]
    Busy {
        /// The database.
        path: PathBuf,
        /// What SQLite said.
        source: SqlError,
    },
    /// The disk is full.
    #[error("no space is left for the index {path:?}; free some, or remove entries from the cache")]
    Full {
        /// The database.
        path: PathBuf,
        /// What SQLite said.
        source: SqlError,
    },
    /// It cannot be written.
    #[error("the index {path:?} is read-only")]
    ReadOnly {
        /// The database.
        path: PathBuf,
        /// What SQLite said.
        source: SqlError,
    },
    /// Its content makes no sense; it is replaced when the store is opened next.
    #[error("the index {path:?} is damaged; it will be replaced at the next start")]
    Damaged {
        /// The database.
        path: PathBuf,
        /// What SQLite said.
        source: SqlError,
    },
    /// A layer was to be attached whose archive nothing refers to any more.
    #[error("archive {archive} was removed from the cache meanwhile")]
    ArchiveGone {
        /// The archive.
        archive: Uuid,
    },
    /// Any other fault of the database.
    #[error("the index {path:?} cannot be used")]
    Sql {
        /// The database.
        path: PathBuf,
        /// What SQLite said.
        source: SqlError,
    },
    /// A fault of the file system.
    #[error("cannot {action} {path:?}")]
    Io {
        /// What was to be done.
        action: &'static str,
        /// With what.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

impl IndexError {
    /// Sorts what SQLite said about the database at `path`.
    pub(super) fn of(path: &Path, source: SqlError) -> Self {
        let path = path.to_owned();
        match source.sqlite_error_code() {
            Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked) => Self::Busy { path, source },
            Some(ErrorCode::DiskFull) => Self::Full { path, source },
            Some(ErrorCode::ReadOnly) => Self::ReadOnly { path, source },
            Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase) => Self::Damaged { path, source },
            Some(_) => Self::Sql { path, source },
            None if is_bad_column(&source) => Self::Damaged { path, source },
            None => Self::Sql { path, source },
        }
    }
}

/// Returns whether a column holds what we never write there.
fn is_bad_column(error: &SqlError) -> bool {
    matches!(
        error,
        SqlError::FromSqlConversionFailure(..)
            | SqlError::IntegralValueOutOfRange(..)
            | SqlError::InvalidColumnType(..)
    )
}
