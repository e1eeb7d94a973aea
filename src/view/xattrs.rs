//! Extended attributes of a view's nodes.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;

use rustix::fs::OFlags;
use rustix::io::Errno;

use super::node::{Body, FileContent};
use super::{State, View};
use crate::fs::{FsError, NodeId, Timestamp, XattrMode};
use crate::path::RelPath;
use crate::tree::Found;
use crate::xattr::{self, is_of_user};

/// Longest value, as in ext4 without its own inodes for values.
const VALUE_BYTES_MAX: usize = 64 * 1024;

type Xattrs = BTreeMap<OsString, Vec<u8>>;

impl View {
    /// Returns the user attributes of a lower object.
    pub(super) fn lower_xattrs(&self, lower: &RelPath) -> Result<Xattrs, FsError> {
        match self.find_lower(lower)? {
            Some(Found::Base(_)) => {
                let object = self.tree.base().open(lower, OFlags::PATH | OFlags::NOFOLLOW, 0)?;
                Ok(xattr::user_xattrs_at(object)?.into_iter().collect())
            }
            Some(Found::Virtual(_, record)) => Ok(record.xattrs.into_iter().collect()),
            None => Ok(Xattrs::new()),
        }
    }

    /// Returns all user attributes of a node; symbolic links and what is special have none.
    pub(super) fn xattrs_of(&self, state: &State, id: NodeId) -> Result<Xattrs, FsError> {
        let id = state.nodes.current(id);
        match &state.nodes.get(id)?.body {
            Body::File(FileContent::Blob(blob)) => {
                Ok(xattr::user_xattrs_at(self.blob_object(state, blob.number)?)?.into_iter().collect())
            }
            Body::Dir(dir) if dir.xattrs.is_some() => Ok(dir.xattrs.clone().unwrap_or_default()),
            Body::File(FileContent::Lower { .. }) | Body::Dir(_) => match state.nodes.lower(id) {
                Some(lower) => self.lower_xattrs(&lower),
                None => Ok(Xattrs::new()),
            },
            Body::Symlink(_) | Body::Special(_) | Body::Replaced(_) => Ok(Xattrs::new()),
        }
    }

    /// Sets an attribute, or removes it where there is no `value`.
    pub(super) fn change_xattr(
        &self,
        state: &mut State,
        id: NodeId,
        (name, value): (&OsStr, Option<&[u8]>),
        mode: XattrMode,
    ) -> Result<(), FsError> {
        self.check_xattr(name)?;
        let exists = self.xattrs_of(state, id)?.contains_key(name);
        match (mode, exists) {
            (XattrMode::Create, true) => return Err(FsError::AlreadyExists),
            (XattrMode::Replace, false) => return Err(Errno::NODATA.into()),
            _ => {}
        }
        if value.is_some_and(|value| value.len() > VALUE_BYTES_MAX) {
            return Err(Errno::NOSPC.into());
        }
        match &state.nodes.get(state.nodes.current(id))?.body {
            Body::File(_) => {
                let id = self.copy_up(state, id, true)?;
                let Body::File(FileContent::Blob(blob)) = &state.nodes.get(id)?.body else {
                    return Err(FsError::Stale);
                };
                let number = blob.number;
                state.with_xattrs.insert(number);
                let object = self.blob_object(state, number)?;
                match value {
                    Some(value) => xattr::set(object, name, value, XattrMode::Set)?,
                    None => xattr::remove(object, name)?,
                }
                Ok(())
            }
            Body::Dir(_) => {
                let mut xattrs = self.xattrs_of(state, id)?;
                match value {
                    Some(value) => xattrs.insert(name.to_owned(), value.to_owned()),
                    None => xattrs.remove(name),
                };
                self.change_attr(state, id, crate::fs::AttrChanges::default())?;
                let dir = state.nodes.dir_mut(id)?;
                dir.xattrs = Some(xattrs);
                if let Some(own) = &mut dir.attr {
                    own.ctime = Timestamp::now();
                }
                Ok(())
            }
            Body::Symlink(_) | Body::Special(_) | Body::Replaced(_) => Err(FsError::NotPermitted),
        }
    }

    /// Refuses names that are not served.
    pub(super) fn check_xattr(&self, name: &OsStr) -> Result<(), FsError> {
        match self.xattrs && is_of_user(name) {
            true if name.as_bytes().len() > 255 => Err(Errno::RANGE.into()),
            true => Ok(()),
            false => Err(FsError::NotSupported),
        }
    }
}
