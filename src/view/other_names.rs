//! Files of the lower side with several names, of which a task changed one.
//!
//! They are one file in the view, whichever name was looked at first. What the task changed is to show under
//! all of its names after the commit, too, so at its end those are found that nobody looked at: those below
//! the workspace, that is. What has a name elsewhere keeps there what it was.

use std::collections::{HashMap, HashSet};

use super::node::{Body, FileContent, OwnAttr};
use super::{State, View};
use crate::archive::RecordKind;
use crate::fs::{FsError, NodeId};
use crate::path::{RelPath, RelPathBuf};
use crate::tree::ObjectId;

impl View {
    /// Makes blobs of files whose attributes were changed, and finds all names of what was.
    pub(super) fn settle(&self, state: &mut State) -> Result<(), FsError> {
        for id in state.nodes.ids() {
            let node = state.nodes.get(id)?;
            let Body::File(FileContent::Lower { own: Some(own), .. }) = &node.body else { continue };
            let own: OwnAttr = **own;
            if state.nodes.links(node) == 0 {
                continue;
            }
            let lower = state.nodes.lower(id).ok_or(FsError::NotFound)?;
            let found = self.find_lower(&lower)?.ok_or(FsError::NotFound)?;
            if !own.commits_as(&found.attr(id)) {
                self.copy_up(state, id, true)?;
            }
        }
        self.adopt_names(state)
    }

    fn adopt_names(&self, state: &mut State) -> Result<(), FsError> {
        let is_blob = |body: &Body| matches!(body, Body::File(FileContent::Blob(_)));
        let objects = state.nodes.with_unknown_names(|node| is_blob(&node.body));
        if objects.is_empty() {
            return Ok(());
        }
        let mut paths = Vec::new();
        let mut in_base = HashSet::new();
        for object in objects {
            match object {
                ObjectId::Base { dev, ino } => {
                    in_base.insert((dev, ino));
                }
                ObjectId::Virtual { archive, first_name } => {
                    self.names_in_archive(archive, &first_name, &mut paths)?;
                }
            }
        }
        if !in_base.is_empty() {
            self.tree.base().names_of(&in_base, &mut paths).map_err(FsError::from)?;
        }
        let mut dirs = HashMap::new();
        for id in state.nodes.ids() {
            if state.nodes.dir(id).is_ok()
                && let Some(lower) = state.nodes.lower(id)
            {
                dirs.insert(lower, id);
            }
        }
        for path in paths {
            self.look_at(state, &dirs, &path)?;
        }
        Ok(())
    }

    /// Makes sure that what the view shows of a path of the lower side has its node.
    fn look_at(
        &self,
        state: &mut State,
        dirs: &HashMap<RelPathBuf, NodeId>,
        path: &RelPath,
    ) -> Result<(), FsError> {
        let Some((known, mut id)) = path.ancestors().find_map(|dir| Some((dir, *dirs.get(dir)?))) else {
            return Ok(());
        };
        let Some(rest) = path.strip_prefix(known) else { return Ok(()) };
        for name in rest.components() {
            id = match self.resolve(state, id, name) {
                Ok(child) => child,
                // Hidden, deleted, or something else there now.
                Err(FsError::NotFound | FsError::NotADirectory) => return Ok(()),
                Err(error) => return Err(error),
            };
        }
        Ok(())
    }

    fn names_in_archive(
        &self,
        archive: uuid::Uuid,
        first_name: &RelPathBuf,
        paths: &mut Vec<RelPathBuf>,
    ) -> Result<(), FsError> {
        for layer in self.tree.layers().iter().filter(|layer| layer.archive_id() == archive) {
            for record in layer.records() {
                let record = record?;
                let is_other = matches!(&record.kind, RecordKind::File { link_to: Some(first), .. } if first == first_name);
                if is_other || record.path == *first_name {
                    paths.push(record.path);
                }
            }
        }
        Ok(())
    }
}
