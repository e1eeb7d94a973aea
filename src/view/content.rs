//! Contents of a view's files: opening them, and copying them up when they are written.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use rustix::fs::{Mode, OFlags};

use super::node::{Blob, Body, FileContent, OwnAttr};
use super::{Split, State, View, numbered, staged_dir_name};
use crate::archive::RecordKind;
use crate::base::{BaseStat, timestamps};
use crate::change::{give_with_mode, open_in_spite_of_mode};
use crate::copy::copy_contents;
use crate::fs::{Attr, AttrChanges, FsError, NodeId, OpenFile, OpenFlags, SetTime, Timestamp};
use crate::open_file::{RealFile, SharedFile, open_virtual};
use crate::path::{RelPath, RelPathBuf};
use crate::recording::ContentSeen;
use crate::tree::Found;

impl View {
    pub(super) fn lower_target(&self, lower: &RelPath) -> Result<OsString, FsError> {
        match self.find_lower(lower)?.ok_or(FsError::NotFound)? {
            Found::Base(_) => Ok(self.tree.base().read_link(lower)?),
            Found::Virtual(_, record) => match record.kind {
                RecordKind::Symlink { target } => Ok(target),
                _ => Err(FsError::InvalidArgument),
            },
        }
    }

    /// Opens a lower file and records that its content was read.
    fn open_lower(&self, state: &mut State, lower: &RelPath) -> Result<Arc<dyn OpenFile>, FsError> {
        let alone = Arc::new(());
        if self.tree.is_only_base(self.perspective()) {
            return self.open_base(state, lower);
        }
        match self.find_lower(lower)?.ok_or(FsError::NotFound)? {
            Found::Base(_) => self.open_base(state, lower),
            found @ Found::Virtual(..) => {
                let probe = found.probe();
                let Found::Virtual(layer, record) = found else { return Err(FsError::NotFound) };
                let RecordKind::File { content: Some(content), .. } = record.kind else {
                    return Err(FsError::InvalidArgument);
                };
                let file = open_virtual(&self.store, layer.archive(), &record, alone)?;
                state.recording.read(lower, probe, ContentSeen::Virtual(content));
                Ok(file)
            }
        }
    }

    fn open_base(&self, state: &mut State, lower: &RelPath) -> Result<Arc<dyn OpenFile>, FsError> {
        let file = self.tree.base().open_file(lower)?;
        let stat = BaseStat::from(rustix::fs::fstat(&file)?);
        state.recording.read(lower, stat.probe(), ContentSeen::Real(stat.identity));
        Ok(Arc::new(RealFile::new(file, Arc::new(()))))
    }

    pub(super) fn open_node(
        &self,
        state: &mut State,
        id: NodeId,
        flags: OpenFlags,
    ) -> Result<Arc<dyn OpenFile>, FsError> {
        if flags.intersects(OpenFlags::WRITE | OpenFlags::TRUNCATE) {
            self.copy_up(state, id, !flags.contains(OpenFlags::TRUNCATE))?;
        }
        self.note_use(state, id, flags);
        let node = state.nodes.get(id)?;
        let blob = match &node.body {
            Body::File(FileContent::Lower { .. }) => None,
            Body::File(FileContent::Blob(blob)) => Some(blob.number),
            Body::Dir(_) => return Err(FsError::IsADirectory),
            Body::Symlink(_) | Body::Special(_) => return Err(FsError::InvalidArgument),
            // Its names lead to another node now.
            Body::Replaced(_) => return Err(FsError::Stale),
        };
        let shared = match (node.opened.upgrade(), blob) {
            (Some(shared), _) => shared,
            (None, Some(blob)) => {
                let file = self.open_blob(state, blob)?;
                Self::share(state, id, file)?
            }
            (None, None) => {
                let lower = state.nodes.lower(id).ok_or(FsError::NotFound)?;
                let file = self.open_lower(state, &lower)?;
                Self::share(state, id, file)?
            }
        };
        if flags.contains(OpenFlags::TRUNCATE) {
            let kill_set_id = flags.contains(OpenFlags::KILL_SET_ID);
            shared.set_attr(&AttrChanges { size_bytes: Some(0), kill_set_id, ..AttrChanges::default() })?;
        }
        Ok(shared)
    }

    /// Lets everybody who opens a node from now on share `file`.
    pub(super) fn share(
        state: &mut State,
        id: NodeId,
        file: Arc<dyn OpenFile>,
    ) -> Result<Arc<SharedFile>, FsError> {
        let shared = Arc::new(SharedFile::new(file));
        state.nodes.get_mut(id)?.opened = Arc::downgrade(&shared);
        Ok(shared)
    }

    /// Turns a lower file into a blob with the same content and attributes; with `keep_content` false the
    /// content is left out, and not recorded as read. Returns the node of the blob.
    ///
    /// That is another one where open handles keep the lower content, because the kernel reads it directly.
    /// Handles that we serve go over to the blob: the kernel's cache of a node holds what is read and
    /// written through all of them.
    pub(super) fn copy_up(
        &self,
        state: &mut State,
        id: NodeId,
        keep_content: bool,
    ) -> Result<NodeId, FsError> {
        let id = state.nodes.current(id);
        let opened = match &state.nodes.get(id)?.body {
            Body::File(FileContent::Lower { .. }) => state.nodes.get(id)?.opened.upgrade(),
            Body::File(FileContent::Blob(_)) => return Ok(id),
            Body::Dir(_) => return Err(FsError::IsADirectory),
            Body::Symlink(_) | Body::Special(_) | Body::Replaced(_) => return Err(FsError::InvalidArgument),
        };
        let lower = state.nodes.lower(id).ok_or(FsError::NotFound)?;
        let attr = self.attr_of(state, id)?;
        let number = self.copy_to_blob(state, &lower, &attr, keep_content)?;
        let content =
            FileContent::Blob(Box::new(Blob { number, renamed: Timestamp::default(), unnamed: false }));
        let id = match opened {
            Some(_) if self.passthrough => {
                let names = state.nodes.get(id)?.names.iter();
                let names = names.map(|(parent, name)| (parent, name.to_owned())).collect();
                state.splits.push(Split { node: id, names });
                state.nodes.split(id, content)?
            }
            opened => {
                if let Some(opened) = opened {
                    opened.move_to(self.open_blob(state, number)?);
                }
                state.nodes.get_mut(id)?.body = Body::File(content);
                id
            }
        };
        Self::note_made(state, id);
        Ok(id)
    }

    fn copy_to_blob(
        &self,
        state: &mut State,
        lower: &RelPath,
        attr: &Attr,
        keep_content: bool,
    ) -> Result<u64, FsError> {
        let (number, file) = self.new_blob(state, attr.mode, None)?;
        state.with_xattrs.insert(number);
        let copied = self.fill_blob(state, lower, attr, keep_content.then_some(()), &file);
        if copied.is_err() {
            self.drop_blob(state, number);
        }
        copied.map(|()| number)
    }

    fn fill_blob(
        &self,
        state: &mut State,
        lower: &RelPath,
        attr: &Attr,
        content: Option<()>,
        file: &File,
    ) -> Result<(), FsError> {
        if content.is_some() {
            self.copy_content_up(state, lower, file)?;
        }
        for (name, value) in self.lower_xattrs(lower)? {
            crate::xattr::set_where_supported(file, &name, &value)?;
        }
        give_with_mode(file, attr.uid, attr.gid, attr.mode)?;
        let times = timestamps(Some(SetTime::At(attr.atime)), Some(SetTime::At(attr.mtime)));
        Ok(rustix::fs::futimens(file, &times)?)
    }

    fn copy_content_up(&self, state: &mut State, lower: &RelPath, to: &File) -> Result<(), FsError> {
        let from = self.open_lower(state, lower)?;
        if let Some(from) = from.backing() {
            return Ok(copy_contents(from, to.as_fd())?);
        }
        let mut buffer = vec![0; 128 * 1024];
        let mut offset = 0;
        loop {
            let n = from.read_at(&mut buffer, offset)?;
            if n == 0 {
                return Ok(());
            }
            to.write_all_at(&buffer[..n], offset)?;
            offset += n as u64;
        }
    }

    /// Opens a blob for reading and writing, whatever its mode says: who may do what with it, the kernel
    /// checks before it asks, and handles of one node are shared.
    fn open_blob(&self, state: &mut State, blob: u64) -> Result<Arc<dyn OpenFile>, FsError> {
        let path = state.blob_path(blob);
        let open = |access: OFlags| {
            let flags = access | OFlags::CLOEXEC | OFlags::NOFOLLOW;
            rustix::fs::openat(&self.staging, path.as_os_str(), flags, Mode::empty())
        };
        let file = match open(OFlags::RDWR) {
            // An ordinary user's own file whose mode forbids it.
            Err(rustix::io::Errno::ACCESS) => {
                let object = open(OFlags::PATH)?;
                let ctime = |stat| BaseStat::from(stat).attr(NodeId::ROOT).ctime;
                let before = rustix::fs::fstat(&object)?;
                let opened = open_in_spite_of_mode(&object, before.st_mode & 0o7777, OFlags::RDWR);
                // Nobody has asked for a change, so none must show.
                let shown = state.shown_ctime(blob, ctime(before));
                state.reopened.insert(blob, (ctime(rustix::fs::fstat(&object)?), shown));
                opened?
            }
            other => other?,
        };
        Ok(Arc::new(RealFile::new(File::from(file), Arc::new(()))))
    }

    /// Makes an empty file in the staging directory with the given attributes, for the name `at` if it has one.
    pub(super) fn make_blob(
        &self,
        state: &mut State,
        own: &OwnAttr,
        at: Option<(NodeId, &OsStr)>,
    ) -> Result<(Body, File), FsError> {
        let (number, file) = self.new_blob(state, own.mode, at)?;
        give_with_mode(&file, own.uid, own.gid, own.mode)?;
        let blob = Blob { number, renamed: Timestamp::default(), unnamed: at.is_none() };
        Ok((Body::File(FileContent::Blob(Box::new(blob))), file))
    }

    /// Makes an empty file in the staging directory, with a mode as far as our umask leaves it.
    fn new_blob(
        &self,
        state: &mut State,
        mode: u32,
        at: Option<(NodeId, &OsStr)>,
    ) -> Result<(u64, File), FsError> {
        state.blobs += 1;
        let blob = state.blobs;
        let create = |path: &RelPath| {
            let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC | OFlags::NOFOLLOW;
            rustix::fs::openat(&self.staging, path.as_os_str(), flags, Mode::from_bits_truncate(mode))
        };
        let placed = at.and_then(|at| self.staged_place(state, at));
        // The name may have been another file's before, which was renamed since.
        let (placed, file) = match placed.map(|path| (create(&path), path)) {
            Some((Ok(file), path)) => (Some(path), file),
            _ => (None, create(&numbered(blob))?),
        };
        state.placed.extend(placed.map(|path| (blob, path)));
        Ok((blob, file.into()))
    }

    /// Returns where in the staging directory a new file has its own name: in a directory that takes the place
    /// of one that the task made, if all goes well, so that a commit moves it as a whole.
    fn staged_place(&self, state: &mut State, (dir, name): (NodeId, &OsStr)) -> Option<RelPathBuf> {
        if dir == NodeId::ROOT || state.nodes.dir(dir).ok()?.lower.is_some() {
            return None;
        }
        let staged = staged_dir_name(dir);
        if state.staged_dirs.insert(dir) {
            match rustix::fs::mkdirat(&self.staging, &staged, Mode::RWXU) {
                Ok(()) | Err(rustix::io::Errno::EXIST) => {}
                Err(_) => return None,
            }
        }
        Some(RelPathBuf::new(staged.into_bytes()).ok()?.join(name))
    }

    pub(super) fn drop_blob(&self, state: &mut State, blob: u64) {
        let path = state.blob_path(blob);
        state.placed.remove(&blob);
        state.with_xattrs.remove(&blob);
        // It goes with the staging directory at the latest.
        rustix::fs::unlinkat(&self.staging, path.as_os_str(), rustix::fs::AtFlags::empty()).ok();
    }

    /// Opens the staged file of a blob without needing rights on it.
    pub(super) fn blob_object(&self, state: &State, blob: u64) -> rustix::io::Result<std::os::fd::OwnedFd> {
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        rustix::fs::openat(&self.staging, state.blob_path(blob).as_os_str(), flags, Mode::empty())
    }
}
