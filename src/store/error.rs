//! Why a store cannot be used.

use std::io;
use std::path::PathBuf;

use rustix::io::Errno;
use thiserror::Error;

/// Why something in a store could not be done.
#[derive(Debug, Error)]
pub enum StoreError {
    /// The path of the store depends on the working directory, which this library does not know.
    #[error("the store's path {path:?} is not absolute")]
    Relative {
        /// The path.
        path: PathBuf,
    },
    /// The disk or the user's share of it is full.
    #[error("no space is left for {path:?}; free some, or remove entries from the cache")]
    Full {
        /// What was to be written.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The file system is mounted read-only.
    #[error("the store cannot be written: {path:?} lies on a read-only file system")]
    ReadOnly {
        /// What was to be written.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The store belongs to another user, who could plant outputs in it or could no longer use it.
    #[error("the store {path:?} belongs to user {owner}, and this is user {user}; choose another store")]
    ForeignOwner {
        /// The store.
        path: PathBuf,
        /// Its owner.
        owner: u32,
        /// The effective user.
        user: u32,
    },
    /// A file or a symbolic link lies where the store needs a directory.
    #[error("{path:?} is not a directory; the store needs one there")]
    NotADirectory {
        /// Where.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// Any other fault of the file system.
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

impl StoreError {
    /// Sorts what the system said about `action` on `path`.
    #[must_use]
    pub fn of(action: &'static str, path: PathBuf, source: io::Error) -> Self {
        match Errno::from_io_error(&source) {
            Some(Errno::NOSPC | Errno::DQUOT) => Self::Full { path, source },
            Some(Errno::ROFS) => Self::ReadOnly { path, source },
            Some(Errno::NOTDIR | Errno::LOOP) => Self::NotADirectory { path, source },
            _ => Self::Io { action, path, source },
        }
    }
}

/// Adds action and path to an error of the system.
pub(super) trait At<T> {
    /// Names what was being done, and with what.
    fn at(self, action: &'static str, path: impl FnOnce() -> PathBuf) -> Result<T, StoreError>;
}

impl<T, E: Into<io::Error>> At<T> for Result<T, E> {
    fn at(self, action: &'static str, path: impl FnOnce() -> PathBuf) -> Result<T, StoreError> {
        self.map_err(|error| StoreError::of(action, path(), error.into()))
    }
}
