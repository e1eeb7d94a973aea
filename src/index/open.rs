//! Opening the database: new, as it is, emptied of an old version, or in place of a damaged one.

use std::ffi::OsStr;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::Duration;

use rusqlite::config::DbConfig;
use rusqlite::{Connection, OpenFlags, TransactionBehavior};
use rustix::fs::AtFlags;
use rustix::io::Errno;

use super::schema::{self, VERSION};
use super::{Index, IndexError};
use crate::store::Gate;

/// Name of the database in the store.
const NAME: &str = "index.sqlite";

/// File whose presence says that damage was met while the index was in use.
pub(super) const SUSPECT_NAME: &str = "index.sqlite.suspect";

/// Damaged databases kept for whoever wants to look into them; the last is overwritten.
const DAMAGED_MAX: u32 = 3;

/// How long to wait for another process.
pub(super) const BUSY_TIMEOUT: Duration = Duration::from_secs(10);

/// Bytes the log is cut to when it starts over.
const LOG_BYTES_MAX: i64 = 16 * 1024 * 1024;

/// Statements kept prepared; there are fewer than this in all.
const STATEMENTS_MAX: usize = 64;

/// What [`Index::open`] found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum IndexOpened {
    /// Nothing; the index is new and empty.
    Fresh,
    /// An index of this version.
    Existing,
    /// An index of this older version, which was emptied.
    ResetFrom(i64),
    /// A damaged index, which was moved here; the index is new and empty.
    ReplacedDamaged(PathBuf),
}

impl Index {
    /// Opens the index in the store's directory `dir`, whose absolute path is `store`.
    ///
    /// Call it before anything is mounted over the store, and keep the index: see the module's documentation.
    /// The store must stay open meanwhile.
    ///
    /// # Errors
    /// [`IndexError::Newer`] for an index of a newer vout, which is left as it is; [`IndexError`].
    pub fn open(dir: BorrowedFd<'_>, store: &Path) -> Result<(Self, IndexOpened), IndexError> {
        let path = store.join(NAME);
        let io = |action| {
            let path = path.clone();
            move |errno: Errno| IndexError::Io { action, path, source: errno.into() }
        };
        // One at a time: two that replace a damaged index would replace each other's.
        let _gate = Gate::enter(dir).map_err(io("lock the directory of"))?;
        check_path_leads_to(dir, store, &path)?;

        let suspect = exists(dir, SUSPECT_NAME).map_err(io("examine"))?;
        let (connection, opened) = match connect(&path, suspect) {
            Err(IndexError::Damaged { source, .. }) => {
                tracing::warn!(?path, error = %source, "the index is damaged");
                let aside = move_aside(dir).map_err(io("move aside"))?;
                (connect(&path, false)?.0, IndexOpened::ReplacedDamaged(store.join(aside)))
            }
            result => result?,
        };
        if suspect {
            remove_if_there(dir, SUSPECT_NAME).map_err(io("unmark"))?;
        }
        let dir = dir.try_clone_to_owned().map_err(|source| IndexError::Io {
            action: "keep the directory of",
            path: path.clone(),
            source,
        })?;
        Ok((Self { path, dir, connection: Mutex::new(connection) }, opened))
    }
}

/// Refuses a path that a mount, or a rename, has put out of reach of the descriptor.
fn check_path_leads_to(dir: BorrowedFd<'_>, store: &Path, path: &Path) -> Result<(), IndexError> {
    let examine = |errno: Errno| {
        let source = io::Error::from(errno);
        IndexError::Io { action: "examine", path: store.into(), source }
    };
    let by_path = rustix::fs::stat(store).map_err(examine)?;
    let by_descriptor = rustix::fs::fstat(dir).map_err(examine)?;
    if (by_path.st_dev, by_path.st_ino) == (by_descriptor.st_dev, by_descriptor.st_ino) {
        Ok(())
    } else {
        Err(IndexError::Elsewhere { path: path.into() })
    }
}

/// Opens the database, its log and the log's index, such that none is opened again; `suspect` has it checked
/// from end to end.
fn connect(path: &Path, suspect: bool) -> Result<(Connection, IndexOpened), IndexError> {
    let sql = |error| IndexError::of(path, error);
    let mut connection = open_quietly(path).map_err(sql)?;
    if suspect && !is_sound(&connection).map_err(sql)? {
        let problem = rusqlite::ffi::Error::new(rusqlite::ffi::SQLITE_CORRUPT);
        return Err(sql(rusqlite::Error::SqliteFailure(problem, None)));
    }
    let opened = prepare_tables(&mut connection).map_err(sql)?;
    match opened {
        Ok(opened) => {
            connection.pragma_update(None, "synchronous", "NORMAL").map_err(sql)?;
            connection.pragma_update(None, "foreign_keys", true).map_err(sql)?;
            Ok((connection, opened))
        }
        Err(found) => Err(IndexError::Newer { path: path.into(), found, known: VERSION }),
    }
}

fn open_quietly(path: &Path) -> rusqlite::Result<Connection> {
    // The mutex around the connection makes SQLite's own superfluous.
    let flags =
        OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_CREATE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let connection = Connection::open_with_flags(path, flags)?;
    connection.busy_timeout(BUSY_TIMEOUT)?;
    connection.set_prepared_statement_cache_capacity(STATEMENTS_MAX);
    connection.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true)?;
    // Statements are planned once, not anew for each value of a parameter, which takes longer than running them.
    connection.set_db_config(DbConfig::SQLITE_DBCONFIG_ENABLE_QPSG, true)?;
    connection.pragma_update(None, "temp_store", "MEMORY")?;
    // Until the tables are made: an old version's tables are dropped in no particular order.
    connection.pragma_update(None, "foreign_keys", false)?;
    connection.pragma_update_and_check(None, "journal_mode", "WAL", |_| Ok(()))?;
    connection.pragma_update_and_check(None, "journal_size_limit", LOG_BYTES_MAX, |_| Ok(()))?;
    // For the first write only, see the documentation of the parent module.
    connection.pragma_update(None, "synchronous", "FULL")?;
    Ok(connection)
}

fn is_sound(connection: &Connection) -> rusqlite::Result<bool> {
    let verdict: String = connection.query_row("PRAGMA quick_check(1)", [], |row| row.get(0))?;
    Ok(verdict == "ok")
}

/// Makes the tables, if need be; the inner error is the version of a newer index.
fn prepare_tables(connection: &mut Connection) -> rusqlite::Result<Result<IndexOpened, i64>> {
    let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
    let opened = match schema::version(&transaction)? {
        0 if schema::is_empty(&transaction)? => IndexOpened::Fresh,
        VERSION => IndexOpened::Existing,
        newer if newer > VERSION => return Ok(Err(newer)),
        older => IndexOpened::ResetFrom(older),
    };
    match opened {
        IndexOpened::Existing | IndexOpened::ReplacedDamaged(_) => {}
        IndexOpened::Fresh => schema::create(&transaction)?,
        IndexOpened::ResetFrom(_) => {
            schema::drop_all(&transaction)?;
            schema::create(&transaction)?;
        }
    }
    schema::set_version(&transaction)?;
    transaction.commit()?;
    Ok(Ok(opened))
}

/// Renames the database and its log out of the way, and returns the database's new name.
fn move_aside(dir: BorrowedFd<'_>) -> Result<String, Errno> {
    let mut n = 1;
    let mut aside = format!("{NAME}.damaged-{n}");
    while n < DAMAGED_MAX && exists(dir, &aside)? {
        n += 1;
        aside = format!("{NAME}.damaged-{n}");
    }
    // The log first: a database without its log is merely old, a log with a new database is poison.
    for suffix in ["-wal", "-shm", ""] {
        match rustix::fs::renameat(dir, format!("{NAME}{suffix}"), dir, format!("{aside}{suffix}")) {
            Ok(()) | Err(Errno::NOENT) => {}
            Err(errno) => return Err(errno),
        }
    }
    Ok(aside)
}

fn exists(dir: BorrowedFd<'_>, name: impl AsRef<OsStr>) -> Result<bool, Errno> {
    match rustix::fs::statat(dir.as_fd(), name.as_ref(), AtFlags::SYMLINK_NOFOLLOW) {
        Ok(_) => Ok(true),
        Err(Errno::NOENT) => Ok(false),
        Err(errno) => Err(errno),
    }
}

fn remove_if_there(dir: BorrowedFd<'_>, name: &str) -> Result<(), Errno> {
    match rustix::fs::unlinkat(dir, name, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => Ok(()),
        Err(errno) => Err(errno),
    }
}
