//! Tables and their version.

use rusqlite::{Connection, Transaction};

/// Version of the tables and of the bytes the engine keeps in them.
///
/// Raise it with any change to either: an index of an older version is emptied, one of a newer version is
/// refused.
pub const VERSION: i64 = 2;

/// Ids and digests are blobs of 16 and 32 bytes, times are seconds since the epoch. Unsigned 64-bit numbers
/// are kept as the signed numbers with the same bits.
///
/// `use_order` grows with each use: seconds would not order uses within one.
/// `stat_cache` and `lookups` keep their implicit `rowid`: the latest rows have the largest.
const TABLES: &str = "
CREATE TABLE path_sets (
    digest BLOB PRIMARY KEY NOT NULL,
    content BLOB NOT NULL
);
CREATE TABLE entries (
    id BLOB PRIMARY KEY NOT NULL,
    task BLOB NOT NULL,
    task_name TEXT NOT NULL,
    weak BLOB NOT NULL,
    path_set BLOB NOT NULL REFERENCES path_sets (digest),
    strong BLOB NOT NULL UNIQUE,
    archive BLOB,
    archive_bytes INTEGER NOT NULL,
    inputs INTEGER NOT NULL,
    outputs INTEGER NOT NULL,
    output_bytes INTEGER NOT NULL,
    recorded_ms INTEGER NOT NULL,
    finished_secs INTEGER NOT NULL,
    finished_nanos INTEGER NOT NULL,
    created INTEGER NOT NULL,
    used INTEGER NOT NULL,
    use_order INTEGER NOT NULL
);
CREATE INDEX entries_by_weak ON entries (weak, path_set, use_order);
CREATE INDEX entries_by_task ON entries (task, use_order);
CREATE INDEX entries_by_use ON entries (use_order);
CREATE INDEX entries_by_path_set ON entries (path_set);
CREATE INDEX entries_by_archive ON entries (archive);
CREATE TABLE entry_contents (
    entry BLOB PRIMARY KEY NOT NULL REFERENCES entries (id) ON DELETE CASCADE,
    states BLOB NOT NULL,
    facets BLOB NOT NULL,
    terminal BLOB NOT NULL
);
CREATE TABLE claims (
    workspace BLOB NOT NULL,
    owner BLOB NOT NULL,
    task_name TEXT NOT NULL,
    manifest BLOB NOT NULL,
    shift_ns INTEGER NOT NULL,
    entry BLOB,
    PRIMARY KEY (workspace, owner)
) WITHOUT ROWID;
CREATE INDEX claims_by_manifest ON claims (manifest);
CREATE TABLE layers (
    workspace BLOB NOT NULL,
    owner BLOB NOT NULL,
    task_name TEXT NOT NULL,
    entry BLOB NOT NULL,
    archive BLOB NOT NULL,
    shift_ns INTEGER NOT NULL,
    seq INTEGER NOT NULL,
    PRIMARY KEY (workspace, owner)
) WITHOUT ROWID;
CREATE INDEX layers_by_archive ON layers (archive);
CREATE TABLE punches (
    workspace BLOB NOT NULL,
    seq INTEGER NOT NULL,
    path BLOB NOT NULL,
    before BLOB,
    PRIMARY KEY (workspace, seq, path)
) WITHOUT ROWID;
CREATE TABLE stat_cache (
    dev INTEGER NOT NULL,
    ino INTEGER NOT NULL,
    size_bytes INTEGER NOT NULL,
    mtime_ns INTEGER NOT NULL,
    ctime_ns INTEGER NOT NULL,
    digest BLOB NOT NULL,
    UNIQUE (dev, ino)
);
CREATE TABLE lookups (
    workspace BLOB NOT NULL,
    task_name TEXT NOT NULL,
    content BLOB NOT NULL,
    UNIQUE (workspace, task_name)
);
CREATE TABLE readings (
    task BLOB PRIMARY KEY NOT NULL,
    content BLOB NOT NULL
) WITHOUT ROWID;
";

/// Returns the version of the database; 0 where nothing was ever made in it.
pub(super) fn version(connection: &Connection) -> rusqlite::Result<i64> {
    connection.prepare_cached("PRAGMA user_version")?.query_row([], |row| row.get(0))
}

/// Returns whether the database has no table.
pub(super) fn is_empty(connection: &Connection) -> rusqlite::Result<bool> {
    connection.query_row("SELECT NOT EXISTS (SELECT 1 FROM sqlite_schema)", [], |row| row.get(0))
}

/// Creates all tables.
pub(super) fn create(transaction: &Transaction<'_>) -> rusqlite::Result<()> {
    transaction.execute_batch(TABLES)
}

/// Drops whatever is in the database; foreign keys must not be enforced.
pub(super) fn drop_all(transaction: &Transaction<'_>) -> rusqlite::Result<()> {
    let kinds_and_names = transaction
        .prepare(
            "SELECT type, name FROM sqlite_schema
             WHERE type IN ('table', 'view') AND name NOT GLOB 'sqlite_*'",
        )?
        .query_map([], |row| Ok((row.get::<_, String>(0)?, row.get::<_, String>(1)?)))?
        .collect::<rusqlite::Result<Vec<_>>>()?;
    for (kind, name) in kinds_and_names {
        let name = name.replace('"', "\"\"");
        transaction.execute_batch(&format!("DROP {kind} \"{name}\""))?;
    }
    Ok(())
}

/// Notes [`VERSION`] in the database; writes even where that changes nothing.
pub(super) fn set_version(transaction: &Transaction<'_>) -> rusqlite::Result<()> {
    transaction.pragma_update(None, "user_version", VERSION)
}
