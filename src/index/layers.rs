//! What is attached to the live mount of a workspace, and the holes in it.

use rusqlite::{OptionalExtension, Row, params};
use uuid::Uuid;

use super::columns::{Column, get, get_path};
use super::entries::{collect_ids, is_archive_in_use};
use super::{Index, IndexError, TaskId, WorkspaceId};
use crate::path::RelPathBuf;

/// Punches removed at a time.
const TIDIED_MAX: i64 = 1_000;

/// A layer to be attached.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewLayer {
    /// The workspace.
    pub workspace: WorkspaceId,
    /// The task whose outputs they are.
    pub owner: TaskId,
    /// The task's name, for people.
    pub task_name: String,
    /// The entry.
    pub entry: Uuid,
    /// The entry's archive.
    pub archive: Uuid,
    /// What is added to recorded modification times, in nanoseconds.
    pub shift_ns: i64,
}

/// An attached layer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LayerRow {
    /// What is attached.
    pub layer: NewLayer,
    /// Grows with each attachment to the workspace: the largest is on top.
    pub seq: i64,
}

/// A path that was taken out of a layer because somebody wrote or removed it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Punch {
    /// The path.
    pub path: RelPathBuf,
    /// Its state before the layer's task ran, where the engine keeps one.
    pub before: Option<Vec<u8>>,
}

impl Index {
    /// Returns the layers of a workspace, the topmost first.
    ///
    /// # Errors
    /// [`IndexError`].
    pub fn layers(&self, workspace: WorkspaceId) -> Result<Vec<LayerRow>, IndexError> {
        self.read(|db| {
            db.prepare_cached(
                "SELECT workspace, owner, task_name, entry, archive, shift_ns, seq FROM layers
                 WHERE workspace = ?1 ORDER BY seq DESC",
            )?
            .query_map([workspace], layer_of)?
            .collect()
        })
    }

    /// Puts a layer on top in place of the owner's previous one, and returns it with the archives that nothing
    /// refers to any more. It has no punches; those of the previous one are left to [`tidy`](Self::tidy), since removing
    /// them would make the cost of an attachment grow with them.
    ///
    /// # Errors
    /// [`IndexError::ArchiveGone`] where no entry and no layer refers to the archive: another process removed
    /// the entry after it was looked up. [`IndexError`].
    pub fn set_layer(&self, layer: NewLayer) -> Result<(LayerRow, Vec<Uuid>), IndexError> {
        let set = self.write(|db| {
            if !is_archive_in_use(db, layer.archive)? {
                return Ok(None);
            }
            let (workspace, owner) = (layer.workspace, layer.owner);
            let replaced = collect_ids(
                db,
                "SELECT archive FROM layers WHERE workspace = ?1 AND owner = ?2",
                params![workspace, owner],
            )?;
            let seq: i64 = db
                .prepare_cached(
                    "SELECT 1 + max((SELECT coalesce(max(seq), 0) FROM layers WHERE workspace = ?1),
                                    (SELECT coalesce(max(seq), 0) FROM punches WHERE workspace = ?1))",
                )?
                .query_row([workspace], |row| row.get(0))?;
            db.prepare_cached("INSERT OR REPLACE INTO layers VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)")?.execute(
                params![
                    workspace,
                    owner,
                    layer.task_name,
                    Column(layer.entry),
                    Column(layer.archive),
                    layer.shift_ns,
                    seq
                ],
            )?;
            Ok(Some((seq, unused(db, replaced)?)))
        })?;
        match set {
            Some((seq, archives)) => Ok((LayerRow { layer, seq }, archives)),
            None => Err(IndexError::ArchiveGone { archive: layer.archive }),
        }
    }

    /// Removes a task's layer with its punches, and returns the archives that nothing refers to any more.
    ///
    /// # Errors
    /// [`IndexError`].
    pub fn remove_layer(&self, workspace: WorkspaceId, owner: TaskId) -> Result<Vec<Uuid>, IndexError> {
        self.write(|db| {
            let removed = collect_ids(
                db,
                "DELETE FROM layers WHERE workspace = ?1 AND owner = ?2 RETURNING archive",
                params![workspace, owner],
            )?;
            unused(db, removed)
        })
    }

    /// Removes all layers of a workspace with their punches, and returns the archives that nothing refers to
    /// any more.
    ///
    /// # Errors
    /// [`IndexError`].
    pub fn remove_layers(&self, workspace: WorkspaceId) -> Result<Vec<Uuid>, IndexError> {
        self.write(|db| {
            let removed =
                collect_ids(db, "DELETE FROM layers WHERE workspace = ?1 RETURNING archive", [workspace])?;
            unused(db, removed)
        })
    }

    /// Returns the punches of a layer, by path.
    ///
    /// # Errors
    /// [`IndexError`].
    pub fn punches(&self, workspace: WorkspaceId, owner: TaskId) -> Result<Vec<Punch>, IndexError> {
        self.read(|db| {
            db.prepare_cached(
                "SELECT path, punches.before FROM layers JOIN punches USING (workspace, seq)
                 WHERE workspace = ?1 AND owner = ?2 ORDER BY path",
            )?
            .query_map(params![workspace, owner], |row| {
                Ok(Punch { path: get_path(row, 0)?, before: row.get(1)? })
            })?
            .collect()
        })
    }

    /// Adds punches to a layer, replacing those with the same paths; returns whether there is such a layer.
    ///
    /// # Errors
    /// [`IndexError`].
    pub fn add_punches(
        &self,
        workspace: WorkspaceId,
        owner: TaskId,
        punches: &[Punch],
    ) -> Result<bool, IndexError> {
        self.write(|db| {
            let attached: Option<i64> = db
                .prepare_cached("SELECT seq FROM layers WHERE workspace = ?1 AND owner = ?2")?
                .query_row(params![workspace, owner], |row| row.get(0))
                .optional()?;
            if let Some(seq) = attached {
                let mut insert =
                    db.prepare_cached("INSERT OR REPLACE INTO punches VALUES (?1, ?2, ?3, ?4)")?;
                for Punch { path, before } in punches {
                    insert.execute(params![workspace, seq, path.as_bytes(), before])?;
                }
            }
            Ok(attached.is_some())
        })
    }

    /// Removes some punches of layers that are gone, and returns how many; 0 when none are left. Bounded, so
    /// that nobody waits for long.
    ///
    /// # Errors
    /// [`IndexError`].
    pub fn tidy(&self) -> Result<usize, IndexError> {
        self.write(|db| {
            let Some((workspace, seq)) = punched_and_gone(db)? else { return Ok(0) };
            db.prepare_cached(
                "DELETE FROM punches WHERE workspace = ?1 AND seq = ?2 AND path IN
                     (SELECT path FROM punches WHERE workspace = ?1 AND seq = ?2 LIMIT ?3)",
            )?
            .execute(params![workspace, seq, TIDIED_MAX])
        })
    }
}

/// Returns an attachment that has punches but is gone, looking at one punch of each.
fn punched_and_gone(db: &rusqlite::Transaction<'_>) -> rusqlite::Result<Option<(Vec<u8>, i64)>> {
    let mut next = db.prepare_cached(
        "SELECT workspace, seq FROM punches WHERE (workspace, seq) > (?1, ?2) ORDER BY workspace, seq LIMIT 1",
    )?;
    let mut attached =
        db.prepare_cached("SELECT EXISTS (SELECT 1 FROM layers WHERE workspace = ?1 AND seq = ?2)")?;
    let mut last = (Vec::new(), i64::MIN);
    loop {
        let found =
            next.query_row(params![last.0, last.1], |row| Ok((row.get(0)?, row.get(1)?))).optional()?;
        let Some(found) = found else { return Ok(None) };
        last = found;
        if !attached.query_row(params![last.0, last.1], |row| row.get(0))? {
            return Ok(Some(last));
        }
    }
}

/// Returns those of the archives that nothing refers to, sorted.
fn unused(db: &rusqlite::Transaction<'_>, mut archives: Vec<Uuid>) -> rusqlite::Result<Vec<Uuid>> {
    archives.sort_unstable();
    archives.dedup();
    let mut unused = Vec::new();
    for archive in archives {
        if !is_archive_in_use(db, archive)? {
            unused.push(archive);
        }
    }
    Ok(unused)
}

fn layer_of(row: &Row<'_>) -> rusqlite::Result<LayerRow> {
    let layer = NewLayer {
        workspace: row.get(0)?,
        owner: row.get(1)?,
        task_name: row.get(2)?,
        entry: get(row, 3)?,
        archive: get(row, 4)?,
        shift_ns: row.get(5)?,
    };
    Ok(LayerRow { layer, seq: row.get(6)? })
}
