//! Cached runs.

use std::collections::HashSet;
use std::hash::BuildHasher;

use rusqlite::{OptionalExtension, Row, Transaction, named_params, params};
use uuid::Uuid;

use super::columns::{Column, Nanos, get, get_optional};
use super::evict::{self, Candidate};
use super::{Index, IndexError, TaskId, WorkspaceId, readings};
use crate::digest::Digest;
use crate::fs::Timestamp;
use crate::limits::Limits;

/// Path sets of one weak key that are looked at.
const PATH_SETS_MAX: i64 = 16;

/// The columns of an [`Entry`], in the order in which [`entry_of`] reads them.
macro_rules! select_entry {
    ($rest:literal) => {
        concat!(
            "SELECT id, task, task_name, weak, path_set, strong, archive, archive_bytes, inputs, outputs, ",
            "output_bytes, recorded_ms, finished_secs, finished_nanos, created, used FROM entries ",
            $rest
        )
    };
}

/// A run to be cached.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewEntry {
    /// Its id.
    pub id: Uuid,
    /// The task.
    pub task: TaskId,
    /// The task's name, for people.
    pub task_name: String,
    /// Weak key.
    pub weak: Digest,
    /// Hash of the path set.
    pub path_set: Digest,
    /// The path set.
    pub path_set_blob: Vec<u8>,
    /// Strong key.
    pub strong: Digest,
    /// States of the paths of the path set.
    pub states: Vec<u8>,
    /// Parts of the weak key, to explain a miss with.
    pub facets: Vec<u8>,
    /// The archive, where there are outputs.
    pub archive: Option<Uuid>,
    /// Size of the archive in bytes.
    pub archive_bytes: u64,
    /// Number of inputs.
    pub inputs: u64,
    /// Number of outputs.
    pub outputs: u64,
    /// Bytes of the outputs, uncompressed.
    pub output_bytes: u64,
    /// How long the run took.
    pub recorded_ms: u64,
    /// When it ended.
    pub finished: Timestamp,
    /// Its terminal output.
    pub terminal: Vec<u8>,
}

/// A cached run, without its large parts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Its id.
    pub id: Uuid,
    /// The task.
    pub task: TaskId,
    /// The task's name, for people.
    pub task_name: String,
    /// Weak key.
    pub weak: Digest,
    /// Hash of the path set.
    pub path_set: Digest,
    /// Strong key.
    pub strong: Digest,
    /// The archive, where there are outputs.
    pub archive: Option<Uuid>,
    /// Size of the archive in bytes.
    pub archive_bytes: u64,
    /// Number of inputs.
    pub inputs: u64,
    /// Number of outputs.
    pub outputs: u64,
    /// Bytes of the outputs, uncompressed.
    pub output_bytes: u64,
    /// How long the run took.
    pub recorded_ms: u64,
    /// When it ended.
    pub finished: Timestamp,
    /// When it was stored, in seconds since the epoch.
    pub created: i64,
    /// When it was last stored or hit, in seconds since the epoch.
    pub used: i64,
}

/// Which entries to remove.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum EntryFilter {
    /// All.
    All,
    /// Those of a task.
    Task(TaskId),
    /// Those of all tasks with this name.
    TaskName(String),
    /// One.
    Id(Uuid),
}

/// What was removed from the index, and has yet to be removed from the store.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
#[must_use = "archives that nothing refers to stay until the next sweep"]
pub struct Removed {
    /// Number of entries.
    pub entries: u64,
    /// Archives that nothing refers to any more, sorted.
    pub archives: Vec<Uuid>,
    /// Bytes of these archives.
    pub bytes: u64,
}

impl Index {
    /// Returns the hashes of the path sets of a weak key, most recently used first; at most 16.
    ///
    /// # Errors
    /// [`IndexError`].
    pub fn path_sets(&self, weak: Digest) -> Result<Vec<Digest>, IndexError> {
        self.read(|db| {
            db.prepare_cached(
                "SELECT path_set FROM entries WHERE weak = ?1
                 GROUP BY path_set ORDER BY max(use_order) DESC LIMIT ?2",
            )?
            .query_map(params![Column(weak), PATH_SETS_MAX], |row| get(row, 0))?
            .collect()
        })
    }

    /// Returns a path set.
    ///
    /// # Errors
    /// [`IndexError`].
    pub fn path_set(&self, digest: Digest) -> Result<Option<Vec<u8>>, IndexError> {
        self.read(|db| {
            db.prepare_cached("SELECT content FROM path_sets WHERE digest = ?1")?
                .query_row([Column(digest)], |row| row.get(0))
                .optional()
        })
    }

    /// Returns the entry with a strong key.
    ///
    /// # Errors
    /// [`IndexError`].
    pub fn entry_by_strong(&self, strong: Digest) -> Result<Option<Entry>, IndexError> {
        self.read(|db| {
            let mut statement = db.prepare_cached(select_entry!("WHERE strong = ?1"))?;
            statement.query_row([Column(strong)], entry_of).optional()
        })
    }

    /// Returns an entry.
    ///
    /// # Errors
    /// [`IndexError`].
    pub fn entry(&self, id: Uuid) -> Result<Option<Entry>, IndexError> {
        self.read(|db| {
            let mut statement = db.prepare_cached(select_entry!("WHERE id = ?1"))?;
            statement.query_row([Column(id)], entry_of).optional()
        })
    }

    /// Returns all entries, most recently used first.
    ///
    /// # Errors
    /// [`IndexError`].
    pub fn entries(&self) -> Result<Vec<Entry>, IndexError> {
        self.read(|db| {
            let mut statement = db.prepare_cached(select_entry!("ORDER BY use_order DESC"))?;
            statement.query_map([], entry_of)?.collect()
        })
    }

    /// Returns the entries of a task, most recently used first.
    ///
    /// # Errors
    /// [`IndexError`].
    pub fn entries_of(&self, task: TaskId) -> Result<Vec<Entry>, IndexError> {
        self.read(|db| {
            let mut statement =
                db.prepare_cached(select_entry!("WHERE task = ?1 ORDER BY use_order DESC"))?;
            statement.query_map([task], entry_of)?.collect()
        })
    }

    /// Returns the number of entries.
    ///
    /// # Errors
    /// [`IndexError`].
    pub fn entry_count(&self) -> Result<u64, IndexError> {
        self.read(|db| db.prepare_cached("SELECT count(*) FROM entries")?.query_row([], |row| get(row, 0)))
    }

    /// Returns the terminal output of an entry; `None` where there is no such entry.
    ///
    /// # Errors
    /// [`IndexError`].
    pub fn terminal(&self, id: Uuid) -> Result<Option<Vec<u8>>, IndexError> {
        self.content(id, "SELECT terminal FROM entry_contents WHERE entry = ?1")
    }

    /// Returns the states of an entry's inputs; `None` where there is no such entry.
    ///
    /// # Errors
    /// [`IndexError`].
    pub fn states(&self, id: Uuid) -> Result<Option<Vec<u8>>, IndexError> {
        self.content(id, "SELECT states FROM entry_contents WHERE entry = ?1")
    }

    /// Returns the parts of an entry's weak key; `None` where there is no such entry.
    ///
    /// # Errors
    /// [`IndexError`].
    pub fn facets(&self, id: Uuid) -> Result<Option<Vec<u8>>, IndexError> {
        self.content(id, "SELECT facets FROM entry_contents WHERE entry = ?1")
    }

    fn content(&self, id: Uuid, sql: &str) -> Result<Option<Vec<u8>>, IndexError> {
        self.read(|db| db.prepare_cached(sql)?.query_row([Column(id)], |row| row.get(0)).optional())
    }

    /// Notes that an entry was used at `now`; returns whether there is such an entry.
    ///
    /// # Errors
    /// [`IndexError`].
    pub fn touch(&self, id: Uuid, now: i64) -> Result<bool, IndexError> {
        self.write(|db| touch(db, id, now))
    }

    /// As [`touch`](Self::touch) and [`set_lookup`](Self::set_lookup), in one transaction.
    ///
    /// # Errors
    /// [`IndexError`].
    pub fn note_hit(
        &self,
        (id, now): (Uuid, i64),
        (workspace, task_name): (WorkspaceId, &str),
        lookup: &[u8],
    ) -> Result<(), IndexError> {
        self.write(|db| {
            touch(db, id, now)?;
            super::lookups::set(db, (workspace, task_name), lookup, super::lookups::LOOKUPS_MAX)
        })
    }

    /// Stores an entry in place of one with the same strong key, removes the task's least recently used ones
    /// beyond the limit, and returns the archives that nothing refers to any more, all in one transaction.
    ///
    /// The entry's archive must be in the store before, and the returned ones be removed after.
    ///
    /// # Errors
    /// [`IndexError`].
    pub fn store(&self, new: &NewEntry, limits: &Limits, now: i64) -> Result<Vec<Uuid>, IndexError> {
        self.write(|db| {
            let superseded = collect_ids(
                db,
                "SELECT id FROM entries WHERE strong = ?1 OR id = ?2",
                params![Column(new.strong), Column(new.id)],
            )?;
            // Nothing is pruned before the new entry is in: it may keep path set and archive of the old one.
            let mut taken = take_entries(db, &superseded)?;
            insert(db, new, now)?;
            let beyond = collect_ids(
                db,
                "SELECT id FROM entries WHERE task = ?1 ORDER BY use_order DESC LIMIT -1 OFFSET ?2",
                params![new.task, Column(limits.entries_per_task_max.max(1) as u64)],
            )?;
            taken.extend(take_entries(db, &beyond)?);
            Ok(prune(db, taken)?.archives)
        })
    }

    /// Removes entries.
    ///
    /// # Errors
    /// [`IndexError`].
    pub fn remove_entries(&self, filter: &EntryFilter) -> Result<Removed, IndexError> {
        self.write(|db| {
            let ids = match filter {
                EntryFilter::All => collect_ids(db, "SELECT id FROM entries", [])?,
                EntryFilter::Task(task) => collect_ids(db, "SELECT id FROM entries WHERE task = ?1", [task])?,
                EntryFilter::TaskName(name) => {
                    collect_ids(db, "SELECT id FROM entries WHERE task_name = ?1", [name])?
                }
                EntryFilter::Id(id) => vec![*id],
            };
            remove(db, &ids)
        })
    }

    /// Removes entries until the limits hold, least recently used first.
    ///
    /// Entries whose archive is `pinned` or attached as a layer stay: removing them would free nothing.
    ///
    /// # Errors
    /// [`IndexError`].
    pub fn evict<S: BuildHasher>(
        &self,
        limits: &Limits,
        now: i64,
        pinned: &HashSet<Uuid, S>,
    ) -> Result<Removed, IndexError> {
        self.write(|db| {
            let attached: HashSet<Uuid> =
                collect_ids(db, "SELECT DISTINCT archive FROM layers", [])?.into_iter().collect();
            let candidates = db
                .prepare_cached(
                    "SELECT id, task, archive, archive_bytes, used FROM entries ORDER BY use_order DESC",
                )?
                .query_map([], |row| {
                    let archive = get_optional(row, 2)?;
                    Ok(Candidate {
                        id: get(row, 0)?,
                        task: row.get(1)?,
                        archive,
                        archive_bytes: get(row, 3)?,
                        used: row.get(4)?,
                        pinned: archive.is_some_and(|id| pinned.contains(&id) || attached.contains(&id)),
                    })
                })?
                .collect::<rusqlite::Result<Vec<_>>>()?;
            remove(db, &evict::plan(&candidates, limits, now))
        })
    }

    /// Returns the archives that entries and layers refer to.
    ///
    /// # Errors
    /// [`IndexError`].
    pub fn archives_in_use(&self) -> Result<HashSet<Uuid>, IndexError> {
        self.read(|db| {
            let ids = collect_ids(
                db,
                "SELECT archive FROM entries WHERE archive IS NOT NULL UNION SELECT archive FROM layers",
                [],
            )?;
            Ok(ids.into_iter().collect())
        })
    }
}

/// What a removed entry referred to.
struct Taken {
    archive: Option<Uuid>,
    archive_bytes: u64,
    path_set: Digest,
}

/// Removes entries with all that only they used.
fn remove(db: &Transaction<'_>, ids: &[Uuid]) -> rusqlite::Result<Removed> {
    let taken = take_entries(db, ids)?;
    prune(db, taken)
}

fn take_entries(db: &Transaction<'_>, ids: &[Uuid]) -> rusqlite::Result<Vec<Taken>> {
    let mut statement =
        db.prepare_cached("DELETE FROM entries WHERE id = ?1 RETURNING archive, archive_bytes, path_set")?;
    let mut taken = Vec::with_capacity(ids.len());
    for id in ids {
        let rows = statement.query_map([Column(*id)], |row| {
            Ok(Taken { archive: get_optional(row, 0)?, archive_bytes: get(row, 1)?, path_set: get(row, 2)? })
        })?;
        for row in rows {
            taken.push(row?);
        }
    }
    Ok(taken)
}

/// Removes path sets that only removed entries used, and sums up.
fn prune(db: &Transaction<'_>, taken: Vec<Taken>) -> rusqlite::Result<Removed> {
    let mut removed = Removed { entries: taken.len() as u64, ..Removed::default() };
    let mut seen = HashSet::new();
    let mut prune_path_set = db.prepare_cached(
        "DELETE FROM path_sets WHERE digest = ?1 AND NOT EXISTS (SELECT 1 FROM entries WHERE path_set = ?1)",
    )?;
    for Taken { archive, archive_bytes, path_set } in taken {
        prune_path_set.execute([Column(path_set)])?;
        let Some(archive) = archive else { continue };
        if seen.insert(archive) && !is_archive_in_use(db, archive)? {
            removed.archives.push(archive);
            removed.bytes = removed.bytes.saturating_add(archive_bytes);
        }
    }
    if removed.entries > 0 {
        readings::prune(db)?;
    }
    removed.archives.sort_unstable();
    Ok(removed)
}

/// Returns whether an entry or a layer refers to an archive.
pub(super) fn is_archive_in_use(db: &Transaction<'_>, archive: Uuid) -> rusqlite::Result<bool> {
    db.prepare_cached(
        "SELECT EXISTS (SELECT 1 FROM entries WHERE archive = ?1)
             OR EXISTS (SELECT 1 FROM layers WHERE archive = ?1)",
    )?
    .query_row([Column(archive)], |row| row.get(0))
}

/// Runs a query whose only column is an id.
pub(super) fn collect_ids(
    db: &Transaction<'_>,
    sql: &str,
    parameters: impl rusqlite::Params,
) -> rusqlite::Result<Vec<Uuid>> {
    db.prepare_cached(sql)?.query_map(parameters, |row| get(row, 0))?.collect()
}

fn next_use_order(db: &Transaction<'_>) -> rusqlite::Result<i64> {
    db.prepare_cached("SELECT coalesce(max(use_order), 0) + 1 FROM entries")?.query_row([], |row| row.get(0))
}

fn insert(db: &Transaction<'_>, new: &NewEntry, now: i64) -> rusqlite::Result<()> {
    db.prepare_cached("INSERT INTO path_sets VALUES (?1, ?2) ON CONFLICT DO NOTHING")?
        .execute(params![Column(new.path_set), new.path_set_blob])?;
    db.prepare_cached(
        "INSERT INTO entries VALUES (
             :id, :task, :task_name, :weak, :path_set, :strong, :archive, :archive_bytes, :inputs, :outputs,
             :output_bytes, :recorded_ms, :finished_secs, :finished_nanos, :now, :now, :use_order
         )",
    )?
    .execute(named_params! {
        ":id": Column(new.id),
        ":task": new.task,
        ":task_name": new.task_name,
        ":weak": Column(new.weak),
        ":path_set": Column(new.path_set),
        ":strong": Column(new.strong),
        ":archive": new.archive.map(Column),
        ":archive_bytes": Column(new.archive_bytes),
        ":inputs": Column(new.inputs),
        ":outputs": Column(new.outputs),
        ":output_bytes": Column(new.output_bytes),
        ":recorded_ms": Column(new.recorded_ms),
        ":finished_secs": new.finished.secs,
        ":finished_nanos": new.finished.nanos,
        ":now": now,
        ":use_order": next_use_order(db)?,
    })?;
    db.prepare_cached("INSERT INTO entry_contents VALUES (?1, ?2, ?3, ?4)")?.execute(params![
        Column(new.id),
        new.states,
        new.facets,
        new.terminal
    ])?;
    Ok(())
}

/// Reads the columns of `select_entry`.
fn entry_of(row: &Row<'_>) -> rusqlite::Result<Entry> {
    Ok(Entry {
        id: get(row, 0)?,
        task: row.get(1)?,
        task_name: row.get(2)?,
        weak: get(row, 3)?,
        path_set: get(row, 4)?,
        strong: get(row, 5)?,
        archive: get_optional(row, 6)?,
        archive_bytes: get(row, 7)?,
        inputs: get(row, 8)?,
        outputs: get(row, 9)?,
        output_bytes: get(row, 10)?,
        recorded_ms: get(row, 11)?,
        finished: Timestamp { secs: row.get(12)?, nanos: row.get::<_, Nanos>(13)?.0 },
        created: row.get(14)?,
        used: row.get(15)?,
    })
}

fn touch(db: &Transaction<'_>, id: Uuid, now: i64) -> rusqlite::Result<bool> {
    let order = next_use_order(db)?;
    let mut statement = db.prepare_cached("UPDATE entries SET used = ?2, use_order = ?3 WHERE id = ?1")?;
    Ok(statement.execute(params![Column(id), now, order])? > 0)
}
