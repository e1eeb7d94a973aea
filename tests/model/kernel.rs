//! What the kernel does with a file system: walks paths, keeps names, counts references, checks renames.

use std::collections::{HashMap, HashSet};
use std::ffi::{OsStr, OsString};
use std::os::fd::BorrowedFd;
use std::sync::{Arc, Mutex};

use rustix::io::Errno;
use vout::fs::{
    Attr, AttrChanges, Caller, FileKind, Filesystem, FsError, Invalidator, NodeId, OpenFile, OpenFlags,
    RenameFlags, SeekTo, SetTime, Timestamp,
};
use vout::view::View;
use vout::watch::News;

use crate::native::Native;
use crate::ops::{Answer, Mtime, Op, Replace, SLOTS, Seen, xattr_name};
use crate::snapshot::{Snapshot, Thing};
use crate::unopened::Unopened;

pub(crate) struct Kernel {
    fs: Arc<dyn Filesystem>,
    caller: Caller,
    /// Whether names stay known until something changes them, as with infinite lifetimes.
    caches: bool,
    /// Whether all handles of a node must have the same backing.
    passthrough: bool,
    names: HashMap<(NodeId, OsString), NodeId>,
    /// Referenced nodes, with the directory through which they were found.
    nodes: HashMap<NodeId, NodeId>,
    slots: [Option<Slot>; SLOTS],
    /// What it was told to forget.
    outdated: Arc<Outdated>,
    /// Whether link counts are compared.
    pub(crate) links: bool,
    /// Whether the tree under test is a view.
    pub(crate) is_view: bool,
}

/// Takes what the tree tells of names that lead elsewhere now.
#[derive(Default)]
pub(crate) struct Outdated(Mutex<Vec<(NodeId, OsString)>>);

impl Invalidator for Outdated {
    fn entry_changed(&self, parent: NodeId, name: &OsStr) {
        self.0.lock().unwrap().push((parent, name.to_owned()));
    }

    fn node_changed(&self, _node: NodeId) {}

    fn content_changed(&self, _node: NodeId) {}

    fn name_expires(&self, _parent: NodeId, _name: &OsStr) {}

    fn attributes_changed(&self, _node: NodeId) {}

    fn news(&self, _news: Box<dyn News>) {}
}

struct Slot {
    node: NodeId,
    file: Arc<dyn OpenFile>,
    writable: bool,
}

/// Settings of a [`Kernel`].
#[derive(Debug, Clone, Copy)]
pub(crate) struct Habits {
    pub(crate) caches: bool,
    pub(crate) passthrough: bool,
}

fn errno(error: FsError) -> Errno {
    match error {
        FsError::NotFound => Errno::NOENT,
        FsError::AlreadyExists => Errno::EXIST,
        FsError::NotADirectory => Errno::NOTDIR,
        FsError::IsADirectory => Errno::ISDIR,
        FsError::DirectoryNotEmpty => Errno::NOTEMPTY,
        FsError::InvalidArgument => Errno::INVAL,
        FsError::NotPermitted => Errno::PERM,
        FsError::NotSupported => Errno::OPNOTSUPP,
        FsError::Stale => Errno::STALE,
        FsError::Corrupt(problem) => panic!("damaged: {problem}"),
        FsError::Os(error) => Errno::from_io_error(&error).unwrap_or_else(|| panic!("{error:?}")),
    }
}

fn seen(attr: &Attr) -> Seen {
    let has_size = matches!(attr.kind, FileKind::File | FileKind::Symlink);
    Seen {
        kind: attr.kind,
        mode: if attr.kind == FileKind::Symlink { 0o777 } else { attr.mode },
        size_bytes: if has_size { attr.size_bytes } else { 0 },
        mtime: Mtime::of(attr.kind, attr.mtime.secs, attr.mtime.nanos),
        nlink: attr.nlink,
    }
}

fn contents(file: &dyn OpenFile) -> Result<Vec<u8>, Errno> {
    let mut bytes = Vec::new();
    let mut buffer = vec![0; 256 * 1024];
    loop {
        let length = file.read_at(&mut buffer, bytes.len() as u64).map_err(errno)?;
        bytes.extend_from_slice(&buffer[..length]);
        if length < buffer.len() {
            return Ok(bytes);
        }
    }
}

fn file_of(fd: BorrowedFd<'_>) -> (u64, u64) {
    let stat = rustix::fs::fstat(fd).unwrap();
    (stat.st_dev, stat.st_ino)
}

/// A parent directory with a name in it.
type Place<'a> = (NodeId, &'a OsStr);

impl Kernel {
    pub(crate) fn new(fs: Arc<dyn Filesystem>, habits: Habits) -> Self {
        let (uid, gid) = Native::owner();
        let caller = Caller::new(uid.as_raw(), gid.as_raw());
        let Habits { caches, passthrough } = habits;
        Self {
            fs,
            caller,
            caches,
            passthrough,
            names: HashMap::new(),
            nodes: HashMap::new(),
            slots: Default::default(),
            outdated: Arc::default(),
            links: false,
            is_view: false,
        }
    }

    /// Returns whether readers keep the content from before a copy-up.
    pub(crate) fn reads_directly(&self) -> bool {
        self.passthrough || !self.is_view
    }

    /// Over a view, which tells of names that lead elsewhere.
    pub(crate) fn over_view(view: &Arc<View>, habits: Habits) -> Self {
        let kernel = Self { is_view: true, ..Self::new(Arc::clone(view) as _, habits) };
        view.set_invalidator(Arc::clone(&kernel.outdated) as _);
        kernel
    }

    pub(crate) fn run(&mut self, op: &Op) -> Result<Answer, Errno> {
        let answer = match self.attempt(op, false) {
            // As the kernel does: once more, trusting no name it knows.
            Err(Errno::STALE) => self.attempt(op, true),
            other => other,
        };
        let outdated = std::mem::take(&mut *self.outdated.0.lock().unwrap());
        for key in outdated {
            self.names.remove(&key);
        }
        answer
    }

    fn child(&mut self, (parent, name): Place<'_>, again: bool) -> Result<Option<Attr>, Errno> {
        let key = (parent, name.to_owned());
        if self.caches
            && !again
            && let Some(&node) = self.names.get(&key)
        {
            return self.fs.attr(node).map(Some).map_err(errno);
        }
        match self.fs.lookup(parent, name) {
            Ok(attr) => {
                self.reference(attr, (parent, name));
                Ok(Some(attr))
            }
            Err(FsError::NotFound) => {
                self.names.remove(&key);
                Ok(None)
            }
            Err(error) => Err(errno(error)),
        }
    }

    fn reference(&mut self, attr: Attr, (parent, name): Place<'_>) {
        self.nodes.insert(attr.node, parent);
        self.names.insert((parent, name.to_owned()), attr.node);
    }

    fn dir(&mut self, path: &str, again: bool) -> Result<NodeId, Errno> {
        let mut dir = NodeId::ROOT;
        for name in path.split('/').filter(|name| !name.is_empty()) {
            let attr = self.child((dir, OsStr::new(name)), again)?.ok_or(Errno::NOENT)?;
            match attr.kind {
                FileKind::Dir => dir = attr.node,
                FileKind::Symlink => return Err(Errno::LOOP),
                _ => return Err(Errno::NOTDIR),
            }
        }
        Ok(dir)
    }

    fn place<'a>(&mut self, path: &'a str, again: bool) -> Result<Place<'a>, Errno> {
        let (parent, name) = path.rsplit_once('/').unwrap_or(("", path));
        Ok((self.dir(parent, again)?, OsStr::new(name)))
    }

    fn walk(&mut self, path: &str, again: bool) -> Result<Attr, Errno> {
        let place = self.place(path, again)?;
        self.child(place, again)?.ok_or(Errno::NOENT)
    }

    fn open(
        &mut self,
        path: &str,
        flags: OpenFlags,
        again: bool,
    ) -> Result<(NodeId, Arc<dyn OpenFile>), Errno> {
        let attr = self.walk(path, again)?;
        match attr.kind {
            FileKind::Dir => return Err(Errno::ISDIR),
            FileKind::Symlink => return Err(Errno::LOOP),
            _ => {}
        }
        if !self.tells_of_opens() {
            return self.open_untold(attr.node, flags);
        }
        let file = self.fs.open(attr.node, flags).map_err(errno)?;
        self.check_backing(attr.node, &*file);
        Ok((attr.node, file))
    }

    /// Returns whether the tree is told of opens. Views find their files whether they are or not.
    fn tells_of_opens(&self) -> bool {
        self.passthrough || self.is_view
    }

    fn open_untold(&self, node: NodeId, flags: OpenFlags) -> Result<(NodeId, Arc<dyn OpenFile>), Errno> {
        if flags.contains(OpenFlags::TRUNCATE) {
            let changes = AttrChanges { size_bytes: Some(0), ..AttrChanges::default() };
            self.fs.set_attr(node, None, changes).map_err(errno)?;
        }
        Ok((node, Arc::new(Unopened { fs: Arc::clone(&self.fs), node })))
    }

    /// Returns what is open from now on of a file that was made: nobody holds it for long.
    fn made(&self, node: NodeId, file: Arc<dyn OpenFile>) -> Arc<dyn OpenFile> {
        if self.tells_of_opens() { file } else { Arc::new(Unopened { fs: Arc::clone(&self.fs), node }) }
    }

    fn change_open(&self, slot: &Slot, changes: AttrChanges) -> Result<(), Errno> {
        let changed = if self.tells_of_opens() {
            self.fs.set_attr(slot.node, Some(&*slot.file), changes)
        } else if changes.size_bytes.is_some() {
            let file = Unopened { fs: Arc::clone(&self.fs), node: slot.node }.to_write().map_err(errno)?;
            self.fs.set_attr(slot.node, Some(&*file), changes)
        } else {
            self.fs.set_attr(slot.node, None, changes)
        };
        changed.map(drop).map_err(errno)
    }

    fn check_backing(&self, node: NodeId, file: &dyn OpenFile) {
        if !self.passthrough {
            return;
        }
        let backing = file.backing().map(file_of);
        for open in self.slots.iter().flatten().filter(|open| open.node == node) {
            assert_eq!(open.file.backing().map(file_of), backing, "two backings of one node");
        }
    }

    fn change(&mut self, path: &str, changes: AttrChanges, again: bool) -> Result<(), Errno> {
        let attr = self.walk(path, again)?;
        if attr.kind == FileKind::Symlink && changes.mode.is_some() {
            return Err(Errno::OPNOTSUPP);
        }
        self.fs.set_attr(attr.node, None, changes).map_err(errno)?;
        Ok(())
    }

    fn attempt(&mut self, op: &Op, again: bool) -> Result<Answer, Errno> {
        let read_write = OpenFlags::READ | OpenFlags::WRITE;
        match op {
            Op::Create(path, data, mode) => {
                let place = self.place(path, again)?;
                if self.child(place, again)?.is_some() {
                    return Err(Errno::EXIST);
                }
                let (attr, file) =
                    self.fs.create(self.caller, place.0, place.1, *mode, read_write).map_err(errno)?;
                self.reference(attr, place);
                let file = self.made(attr.node, file);
                file.write_at(&data.bytes(), 0).map_err(errno)?;
            }
            Op::Write(path, offset, data) => {
                self.open(path, read_write, again)?.1.write_at(&data.bytes(), *offset).map_err(errno)?;
            }
            Op::Overwrite(path, data) => {
                let (_, file) = self.open(path, OpenFlags::WRITE | OpenFlags::TRUNCATE, again)?;
                file.write_at(&data.bytes(), 0).map_err(errno)?;
            }
            Op::Append(path, data) => {
                let (node, file) = self.open(path, OpenFlags::WRITE | OpenFlags::APPEND, again)?;
                let end = self.fs.attr(node).map_err(errno)?.size_bytes;
                file.write_at(&data.bytes(), end).map_err(errno)?;
            }
            Op::Truncate(path, size) => {
                let attr = self.walk(path, again)?;
                match attr.kind {
                    FileKind::Dir => return Err(Errno::ISDIR),
                    FileKind::Symlink => return Err(Errno::LOOP),
                    _ => {}
                }
                let changes = AttrChanges {
                    size_bytes: Some(*size),
                    mtime: Some(SetTime::Now),
                    ..AttrChanges::default()
                };
                self.fs.set_attr(attr.node, None, changes).map_err(errno)?;
            }
            Op::Read(path) => {
                let (_, file) = self.open(path, OpenFlags::READ, again)?;
                return contents(&*file).map(Answer::Bytes);
            }
            Op::Stat(path) => return Ok(Answer::Stat(seen(&self.walk(path, again)?))),
            Op::Readdir(path) => {
                let dir = self.dir(path, again)?;
                return self.list(dir).map(Answer::Names);
            }
            Op::Readlink(path) => {
                let attr = self.walk(path, again)?;
                if attr.kind != FileKind::Symlink {
                    return Err(Errno::INVAL);
                }
                return self.fs.read_link(attr.node).map(Answer::Target).map_err(errno);
            }
            Op::Chmod(path, mode) => {
                let changes = AttrChanges { mode: Some(*mode), ..AttrChanges::default() };
                self.change(path, changes, again)?;
            }
            Op::Utimens(path, secs) => {
                let mtime = Some(SetTime::At(Timestamp { secs: *secs, nanos: 7 }));
                self.change(path, AttrChanges { mtime, ..AttrChanges::default() }, again)?;
            }
            Op::Mkdir(..)
            | Op::Rmdir(_)
            | Op::Unlink(_)
            | Op::Rename(..)
            | Op::Link(..)
            | Op::Symlink(..) => self.attempt_names(op, again)?,
            Op::Reclaim => self.reclaim(),
            Op::Compare => {}
            Op::SetXattr(..) | Op::RemoveXattr(..) | Op::Xattrs(_) => return self.attempt_xattrs(op, again),
            _ => return self.attempt_open(op, again),
        }
        Ok(Answer::Done)
    }

    fn attempt_xattrs(&mut self, op: &Op, again: bool) -> Result<Answer, Errno> {
        let (Op::SetXattr(path, ..) | Op::RemoveXattr(path, _) | Op::Xattrs(path)) = op else {
            panic!("{op:?} is not about extended attributes");
        };
        let attr = self.walk(path, again)?;
        if !matches!(attr.kind, FileKind::File | FileKind::Dir) {
            return Err(Errno::PERM);
        }
        match op {
            Op::SetXattr(_, number, data, mode) => {
                self.fs.set_xattr(attr.node, &xattr_name(*number), &data.bytes(), *mode).map_err(errno)?;
            }
            Op::RemoveXattr(_, number) => {
                self.fs.remove_xattr(attr.node, &xattr_name(*number)).map_err(errno)?;
            }
            _ => return self.xattrs(attr.node).map(Answer::Xattrs).map_err(errno),
        }
        Ok(Answer::Done)
    }

    fn xattrs(&self, node: NodeId) -> Result<Vec<(OsString, Vec<u8>)>, FsError> {
        let mut xattrs = Vec::new();
        for name in self.fs.xattr_names(node)? {
            let value = self.fs.xattr(node, &name)?;
            xattrs.push((name, value));
        }
        Ok(xattrs)
    }

    fn attempt_names(&mut self, op: &Op, again: bool) -> Result<(), Errno> {
        match op {
            Op::Mkdir(path, mode) => {
                let place = self.place(path, again)?;
                if self.child(place, again)?.is_some() {
                    return Err(Errno::EXIST);
                }
                let attr = self.fs.make_dir(self.caller, place.0, place.1, *mode).map_err(errno)?;
                self.reference(attr, place);
            }
            Op::Symlink(target, path) => {
                let place = self.place(path, again)?;
                if self.child(place, again)?.is_some() {
                    return Err(Errno::EXIST);
                }
                let target = OsStr::new(target);
                let attr = self.fs.make_symlink(self.caller, place.0, place.1, target).map_err(errno)?;
                self.reference(attr, place);
            }
            Op::Link(from, to) => {
                let attr = self.walk(from, again)?;
                let place = self.place(to, again)?;
                if self.child(place, again)?.is_some() {
                    return Err(Errno::EXIST);
                }
                if attr.kind == FileKind::Dir {
                    return Err(Errno::PERM);
                }
                let attr = self.fs.link(attr.node, place.0, place.1).map_err(errno)?;
                self.reference(attr, place);
            }
            Op::Unlink(path) => {
                let place = self.place(path, again)?;
                match self.child(place, again)?.ok_or(Errno::NOENT)?.kind {
                    FileKind::Dir => return Err(Errno::ISDIR),
                    _ => self.fs.unlink(place.0, place.1).map_err(errno)?,
                }
                self.names.remove(&(place.0, place.1.to_owned()));
            }
            Op::Rmdir(path) => {
                let place = self.place(path, again)?;
                match self.child(place, again)?.ok_or(Errno::NOENT)?.kind {
                    FileKind::Dir => self.fs.remove_dir(place.0, place.1).map_err(errno)?,
                    _ => return Err(Errno::NOTDIR),
                }
                self.names.remove(&(place.0, place.1.to_owned()));
            }
            Op::Rename(from, to, replace) => self.rename(from, to, *replace, again)?,
            other => panic!("{other:?} changes no names"),
        }
        Ok(())
    }

    fn rename(&mut self, from: &str, to: &str, replace: Replace, again: bool) -> Result<(), Errno> {
        let (old, new) = (self.place(from, again)?, self.place(to, again)?);
        let source = self.child(old, again)?;
        let target = self.child(new, again)?;
        let source = source.ok_or(Errno::NOENT)?;
        if replace == Replace::No && target.is_some() {
            return Err(Errno::EXIST);
        }
        if replace == Replace::Exchange && target.is_none() {
            return Err(Errno::NOENT);
        }
        if to.starts_with(&format!("{from}/")) {
            return Err(Errno::INVAL);
        }
        if from.starts_with(&format!("{to}/")) {
            return Err(if replace == Replace::Exchange { Errno::INVAL } else { Errno::NOTEMPTY });
        }
        if let Some(target) = target {
            if target.node == source.node {
                return Ok(());
            }
            match (source.kind == FileKind::Dir, target.kind == FileKind::Dir) {
                (true, false) if replace == Replace::Yes => return Err(Errno::NOTDIR),
                (false, true) if replace == Replace::Yes => return Err(Errno::ISDIR),
                _ => {}
            }
        }
        let flags = match replace {
            Replace::Yes => RenameFlags::empty(),
            Replace::No => RenameFlags::NO_REPLACE,
            Replace::Exchange => RenameFlags::EXCHANGE,
        };
        self.fs.rename(old, new, flags).map_err(errno)?;
        let (old_key, new_key) = ((old.0, old.1.to_owned()), (new.0, new.1.to_owned()));
        let (moved, replaced) = (self.names.remove(&old_key), self.names.remove(&new_key));
        if let Some(moved) = moved {
            self.nodes.insert(moved, new.0);
            self.names.insert(new_key, moved);
        }
        if let (Replace::Exchange, Some(replaced)) = (replace, replaced) {
            self.nodes.insert(replaced, old.0);
            self.names.insert(old_key, replaced);
        }
        Ok(())
    }

    fn attempt_open(&mut self, op: &Op, again: bool) -> Result<Answer, Errno> {
        match op {
            Op::Open(slot, path, writable) => {
                self.slots[*slot] = None;
                let flags = if *writable { OpenFlags::READ | OpenFlags::WRITE } else { OpenFlags::READ };
                let (node, file) = self.open(path, flags, again)?;
                self.slots[*slot] = Some(Slot { node, file, writable: *writable });
            }
            Op::Close(slot) => self.slots[*slot] = None,
            Op::ReadOpen(slot) => {
                let slot = self.slots[*slot].as_ref().ok_or(Errno::BADF)?;
                return contents(&*slot.file).map(Answer::Bytes);
            }
            Op::WriteOpen(slot, offset, data) => {
                let slot = self.slots[*slot].as_ref().filter(|slot| slot.writable).ok_or(Errno::BADF)?;
                slot.file.write_at(&data.bytes(), *offset).map_err(errno)?;
            }
            Op::TruncateOpen(slot, size) => {
                let slot = self.slots[*slot].as_ref().filter(|slot| slot.writable).ok_or(Errno::BADF)?;
                let changes = AttrChanges {
                    size_bytes: Some(*size),
                    mtime: Some(SetTime::Now),
                    ..AttrChanges::default()
                };
                self.change_open(slot, changes)?;
            }
            Op::StatOpen(slot) => {
                let slot = self.slots[*slot].as_ref().ok_or(Errno::BADF)?;
                return Ok(Answer::Stat(seen(&self.fs.attr(slot.node).map_err(errno)?)));
            }
            Op::Allocate(slot, mode, offset, length) => {
                let slot = self.slots[*slot].as_ref().filter(|slot| slot.writable).ok_or(Errno::BADF)?;
                slot.file.allocate(*mode, *offset, *length).map_err(errno)?;
            }
            Op::Seek(slot, data, offset) => {
                let slot = self.slots[*slot].as_ref().ok_or(Errno::BADF)?;
                let found = slot.file.seek(*offset, if *data { SeekTo::Data } else { SeekTo::Hole });
                let size = self.fs.attr(slot.node).map_err(errno)?.size_bytes;
                match found {
                    Err(error) if *offset >= size => return Err(errno(error)),
                    Err(FsError::Os(_)) if *data => {}
                    Err(error) => return Err(errno(error)),
                    Ok(found) => assert!(*offset <= found && found <= size, "{found} of {size}"),
                }
                return Ok(Answer::Somewhere);
            }
            _ => return self.attempt_other_open(op, again),
        }
        Ok(Answer::Done)
    }

    fn attempt_other_open(&mut self, op: &Op, again: bool) -> Result<Answer, Errno> {
        match op {
            Op::Unnamed(slot, mode) => {
                self.slots[*slot] = None;
                let flags = OpenFlags::READ | OpenFlags::WRITE;
                let made = self.fs.create_unnamed(self.caller, NodeId::ROOT, *mode, flags);
                let (attr, file) = made.map_err(errno)?;
                self.nodes.insert(attr.node, NodeId::ROOT);
                let file = self.made(attr.node, file);
                self.slots[*slot] = Some(Slot { node: attr.node, file, writable: true });
            }
            Op::LinkOpen(slot, path) => {
                let place = self.place(path, again)?;
                let node = self.slots[*slot].as_ref().ok_or(Errno::BADF)?.node;
                if self.child(place, again)?.is_some() {
                    return Err(Errno::EXIST);
                }
                let attr = self.fs.link(node, place.0, place.1).map_err(errno)?;
                self.reference(attr, place);
            }
            Op::ChmodOpen(slot, mode) => {
                let slot = self.slots[*slot].as_ref().ok_or(Errno::BADF)?;
                let changes = AttrChanges { mode: Some(*mode), ..AttrChanges::default() };
                self.change_open(slot, changes)?;
            }
            Op::UtimensOpen(slot, secs) => {
                let slot = self.slots[*slot].as_ref().ok_or(Errno::BADF)?;
                let mtime = Some(SetTime::At(Timestamp { secs: *secs, nanos: 7 }));
                let changes = AttrChanges { mtime, ..AttrChanges::default() };
                self.change_open(slot, changes)?;
            }
            Op::CopyRange((from, from_at), (to, to_at), length) => {
                let from = self.slots[*from].as_ref().ok_or(Errno::BADF)?;
                let to = self.slots[*to].as_ref().filter(|slot| slot.writable).ok_or(Errno::BADF)?;
                let size = self.fs.attr(from.node).map_err(errno)?.size_bytes;
                let length = (*length).min(size.saturating_sub(*from_at));
                if from.node == to.node && from_at.abs_diff(*to_at) < length {
                    return Err(Errno::INVAL);
                }
                let (from, to) = ((&*from.file, *from_at), (&*to.file, *to_at));
                self.fs.copy_range(from, to, length).map_err(errno)?;
            }
            other => panic!("{other:?} uses no open file"),
        }
        Ok(Answer::Done)
    }

    fn list(&self, dir: NodeId) -> Result<Vec<(OsString, FileKind)>, Errno> {
        let entries = self.fs.read_dir(dir).map_err(errno)?;
        let mut names: Vec<_> = entries.into_iter().map(|entry| (entry.name, entry.kind)).collect();
        names.sort();
        Ok(names)
    }

    /// Forgets all but what is open, or leads there.
    fn reclaim(&mut self) {
        let mut kept = HashSet::new();
        for slot in self.slots.iter().flatten() {
            let mut node = slot.node;
            while node != NodeId::ROOT && kept.insert(node) {
                node = self.nodes[&node];
            }
        }
        let mut forgotten: Vec<_> = self.nodes.keys().copied().filter(|node| !kept.contains(node)).collect();
        let depth = |mut node: NodeId| {
            let mut depth = 0;
            while let Some(parent) = self.nodes.get(&node).filter(|_| depth < 100) {
                (node, depth) = (*parent, depth + 1);
            }
            depth
        };
        forgotten.sort_by_key(|node| std::cmp::Reverse(depth(*node)));
        for node in forgotten {
            self.nodes.remove(&node);
            self.fs.forget(node);
        }
        self.names.retain(|(parent, _), node| {
            kept.contains(node) && (*parent == NodeId::ROOT || kept.contains(parent))
        });
    }

    pub(crate) fn snapshot(&mut self) -> Snapshot {
        let mut all = Snapshot::default();
        self.add("", &mut all);
        all.group();
        all
    }

    fn add(&mut self, dir: &str, all: &mut Snapshot) {
        let Ok(Answer::Names(names)) = self.run(&Op::Readdir(dir.to_owned())) else {
            panic!("{dir:?} cannot be listed");
        };
        for (name, kind) in names {
            let name = name.to_str().unwrap();
            let path = if dir.is_empty() { name.to_owned() } else { format!("{dir}/{name}") };
            let attr = self.walk(&path, false).or_else(|_| self.walk(&path, true)).unwrap();
            assert_eq!(attr.kind, kind, "{path:?} is listed as another kind");
            let body = match kind {
                FileKind::File => match self.run(&Op::Read(path.clone())) {
                    Ok(Answer::Bytes(bytes)) => bytes,
                    other => panic!("{path:?} cannot be read: {other:?}"),
                },
                FileKind::Symlink => match self.run(&Op::Readlink(path.clone())) {
                    Ok(Answer::Target(target)) => target.into_encoded_bytes(),
                    other => panic!("{path:?} cannot be read: {other:?}"),
                },
                _ => Vec::new(),
            };
            // Opening may have given the name another node.
            let attr = self.walk(&path, false).or_else(|_| self.walk(&path, true)).unwrap();
            let has_xattrs = self.is_view && matches!(kind, FileKind::File | FileKind::Dir);
            let xattrs = if has_xattrs { self.xattrs(attr.node).unwrap() } else { Vec::new() };
            let (seen, file) = (seen(&attr), attr.ino);
            all.add(path.clone(), Thing { seen, body, file, xattrs, first: String::new() });
            if kind == FileKind::Dir {
                self.add(&path, all);
            }
        }
    }
}
