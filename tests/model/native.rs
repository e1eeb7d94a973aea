//! The oracle: a directory of the operating system's own file system.

use std::ffi::OsStr;
use std::fs::File;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::FileExt;

use rustix::fs::{
    AtFlags, Dir, FallocateFlags, FileType, Gid, Mode, OFlags, RenameFlags, ResolveFlags, SeekFrom, Stat,
    Uid, XattrFlags,
};
use rustix::io::Errno;
use vout::base::{BaseStat, kind_of, timestamps};
use vout::fs::{FileKind, SetTime, Timestamp, XattrMode};
use vout::xattr::user_xattrs;

use crate::ops::{Answer, Mtime, Op, Replace, SLOTS, Seen, xattr_name};
use crate::snapshot::{Snapshot, Thing};

pub(crate) struct Native {
    root: OwnedFd,
    slots: [Option<Slot>; SLOTS],
}

struct Slot {
    file: File,
    writable: bool,
    /// What it was when it was opened.
    opened: (Seen, Vec<u8>),
}

fn beneath() -> ResolveFlags {
    ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS
}

pub(crate) fn seen(stat: Stat) -> Seen {
    let stat = BaseStat::from(stat);
    let has_size = matches!(stat.kind, FileKind::File | FileKind::Symlink);
    Seen {
        kind: stat.kind,
        mode: if stat.kind == FileKind::Symlink { 0o777 } else { stat.mode },
        size_bytes: if has_size { stat.identity.size_bytes } else { 0 },
        mtime: Mtime::of(stat.kind, stat.identity.mtime.secs, stat.identity.mtime.nanos),
        nlink: stat.nlink,
    }
}

fn contents(file: &File) -> Vec<u8> {
    let mut bytes = vec![0; usize::try_from(file.metadata().unwrap().len()).unwrap()];
    file.read_exact_at(&mut bytes, 0).unwrap();
    bytes
}

impl Native {
    pub(crate) fn new(root: OwnedFd) -> Self {
        Self { root, slots: Default::default() }
    }

    fn parent<'a>(&self, path: &'a str) -> Result<(OwnedFd, &'a str), Errno> {
        let (parent, name) = path.rsplit_once('/').unwrap_or((".", path));
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        Ok((rustix::fs::openat2(&self.root, parent, flags, Mode::empty(), beneath())?, name))
    }

    fn open(&self, path: &str, flags: OFlags, mode: u32) -> Result<File, Errno> {
        let (dir, name) = self.parent(path)?;
        let flags = flags | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file = File::from(rustix::fs::openat(dir, name, flags, Mode::from_bits_truncate(mode))?);
        if FileType::from_raw_mode(rustix::fs::fstat(&file)?.st_mode) == FileType::Directory {
            // Opening a directory for reading is nobody's business here.
            return Err(Errno::ISDIR);
        }
        Ok(file)
    }

    /// Returns whether an open file is the same as when it was opened: readers that the kernel serves keep
    /// the content from before a copy-up, which is a known difference.
    pub(crate) fn is_unchanged(&self, slot: usize) -> bool {
        let Some(slot) = &self.slots[slot] else { return true };
        slot.writable || (seen(rustix::fs::fstat(&slot.file).unwrap()), contents(&slot.file)) == slot.opened
    }

    pub(crate) fn run(&mut self, op: &Op) -> Result<Answer, Errno> {
        match op {
            Op::Create(path, data, mode) => {
                let file = self.open(path, OFlags::RDWR | OFlags::CREATE | OFlags::EXCL, *mode)?;
                rustix::fs::fchmod(&file, Mode::from_bits_truncate(*mode))?;
                file.write_all_at(&data.bytes(), 0).unwrap();
            }
            Op::Write(path, offset, data) => {
                self.open(path, OFlags::RDWR, 0)?.write_all_at(&data.bytes(), *offset).unwrap();
            }
            Op::Overwrite(path, data) => {
                let file = self.open(path, OFlags::WRONLY | OFlags::TRUNC, 0)?;
                file.write_all_at(&data.bytes(), 0).unwrap();
            }
            Op::Append(path, data) => {
                let file = self.open(path, OFlags::WRONLY, 0)?;
                file.write_all_at(&data.bytes(), file.metadata().unwrap().len()).unwrap();
            }
            Op::Truncate(path, size) => rustix::fs::ftruncate(self.open(path, OFlags::WRONLY, 0)?, *size)?,
            Op::Read(path) => return Ok(Answer::Bytes(contents(&self.open(path, OFlags::RDONLY, 0)?))),
            Op::Stat(path) => {
                let (dir, name) = self.parent(path)?;
                return Ok(Answer::Stat(seen(rustix::fs::statat(dir, name, AtFlags::SYMLINK_NOFOLLOW)?)));
            }
            Op::Readdir(path) => return self.names(path).map(Answer::Names),
            Op::Readlink(path) => {
                let (dir, name) = self.parent(path)?;
                let target = rustix::fs::readlinkat(dir, name, Vec::new())?;
                return Ok(Answer::Target(OsStr::new(target.to_str().unwrap()).into()));
            }
            Op::Open(..)
            | Op::ReadOpen(_)
            | Op::WriteOpen(..)
            | Op::TruncateOpen(..)
            | Op::StatOpen(_)
            | Op::Allocate(..)
            | Op::Seek(..)
            | Op::Unnamed(..)
            | Op::LinkOpen(..)
            | Op::ChmodOpen(..)
            | Op::UtimensOpen(..)
            | Op::CopyRange(..)
            | Op::Close(_) => return self.run_open(op),
            Op::SetXattr(..) | Op::RemoveXattr(..) | Op::Xattrs(_) => return self.run_xattrs(op),
            Op::Reclaim | Op::Compare => {}
            Op::Mkdir(..)
            | Op::Rmdir(_)
            | Op::Unlink(_)
            | Op::Rename(..)
            | Op::Link(..)
            | Op::Symlink(..)
            | Op::Chmod(..)
            | Op::Utimens(..) => self.run_names(op)?,
        }
        Ok(Answer::Done)
    }

    fn run_names(&self, op: &Op) -> Result<(), Errno> {
        match op {
            Op::Mkdir(path, mode) => {
                let (dir, name) = self.parent(path)?;
                rustix::fs::mkdirat(&dir, name, Mode::from_bits_truncate(*mode))?;
                rustix::fs::chmodat(&dir, name, Mode::from_bits_truncate(*mode), AtFlags::empty())
            }
            Op::Rmdir(path) => {
                let (dir, name) = self.parent(path)?;
                rustix::fs::unlinkat(dir, name, AtFlags::REMOVEDIR)
            }
            Op::Unlink(path) => {
                let (dir, name) = self.parent(path)?;
                rustix::fs::unlinkat(dir, name, AtFlags::empty())
            }
            Op::Rename(from, to, replace) => {
                let ((from, from_name), (to, to_name)) = (self.parent(from)?, self.parent(to)?);
                let flags = match replace {
                    Replace::Yes => RenameFlags::empty(),
                    Replace::No => RenameFlags::NOREPLACE,
                    Replace::Exchange => RenameFlags::EXCHANGE,
                };
                rustix::fs::renameat_with(from, from_name, to, to_name, flags)
            }
            Op::Link(from, to) => {
                let (from, from_name) = self.parent(from)?;
                rustix::fs::statat(&from, from_name, AtFlags::SYMLINK_NOFOLLOW)?;
                let (to, to_name) = self.parent(to)?;
                rustix::fs::linkat(from, from_name, to, to_name, AtFlags::empty())
            }
            Op::Symlink(target, path) => {
                let (dir, name) = self.parent(path)?;
                rustix::fs::symlinkat(target.as_str(), dir, name)
            }
            Op::Chmod(path, mode) => {
                let (dir, name) = self.parent(path)?;
                let stat = rustix::fs::statat(&dir, name, AtFlags::SYMLINK_NOFOLLOW)?;
                if FileType::from_raw_mode(stat.st_mode) == FileType::Symlink {
                    return Err(Errno::OPNOTSUPP);
                }
                rustix::fs::chmodat(dir, name, Mode::from_bits_truncate(*mode), AtFlags::empty())
            }
            Op::Utimens(path, secs) => {
                let (dir, name) = self.parent(path)?;
                let times = timestamps(None, Some(SetTime::At(Timestamp { secs: *secs, nanos: 7 })));
                rustix::fs::utimensat(dir, name, &times, AtFlags::SYMLINK_NOFOLLOW)
            }
            other => panic!("{other:?} changes no names"),
        }
    }

    fn run_open(&mut self, op: &Op) -> Result<Answer, Errno> {
        match op {
            Op::Open(slot, path, writable) => {
                self.slots[*slot] = None;
                let file = self.open(path, if *writable { OFlags::RDWR } else { OFlags::RDONLY }, 0)?;
                let opened = (seen(rustix::fs::fstat(&file)?), contents(&file));
                self.slots[*slot] = Some(Slot { file, writable: *writable, opened });
            }
            Op::Close(slot) => self.slots[*slot] = None,
            Op::ReadOpen(slot) => {
                let slot = self.slots[*slot].as_ref().ok_or(Errno::BADF)?;
                return Ok(Answer::Bytes(contents(&slot.file)));
            }
            Op::WriteOpen(slot, offset, data) => {
                let slot = self.slots[*slot].as_ref().filter(|slot| slot.writable).ok_or(Errno::BADF)?;
                slot.file.write_all_at(&data.bytes(), *offset).unwrap();
            }
            Op::TruncateOpen(slot, size) => {
                let slot = self.slots[*slot].as_ref().filter(|slot| slot.writable).ok_or(Errno::BADF)?;
                rustix::fs::ftruncate(&slot.file, *size)?;
            }
            Op::StatOpen(slot) => {
                let slot = self.slots[*slot].as_ref().ok_or(Errno::BADF)?;
                return Ok(Answer::Stat(seen(rustix::fs::fstat(&slot.file)?)));
            }
            Op::Allocate(slot, mode, offset, length) => {
                let slot = self.slots[*slot].as_ref().filter(|slot| slot.writable).ok_or(Errno::BADF)?;
                let mode = FallocateFlags::from_bits_truncate(*mode);
                rustix::fs::fallocate(&slot.file, mode, *offset, *length)?;
            }
            Op::Seek(slot, data, offset) => {
                let slot = self.slots[*slot].as_ref().ok_or(Errno::BADF)?;
                if *offset < slot.file.metadata().unwrap().len() {
                    return Ok(Answer::Somewhere);
                }
                let to = if *data { SeekFrom::Data(*offset) } else { SeekFrom::Hole(*offset) };
                rustix::fs::seek(&slot.file, to)?;
                return Ok(Answer::Somewhere);
            }
            Op::Unnamed(slot, mode) => {
                self.slots[*slot] = None;
                let flags = OFlags::RDWR | OFlags::TMPFILE | OFlags::CLOEXEC;
                let file = rustix::fs::openat(&self.root, ".", flags, Mode::from_bits_truncate(*mode))?;
                rustix::fs::fchmod(&file, Mode::from_bits_truncate(*mode))?;
                let opened = (seen(rustix::fs::fstat(&file)?), Vec::new());
                self.slots[*slot] = Some(Slot { file: file.into(), writable: true, opened });
            }
            Op::LinkOpen(slot, path) => {
                let (dir, name) = self.parent(path)?;
                let slot = self.slots[*slot].as_ref().ok_or(Errno::BADF)?;
                let from = format!("/proc/self/fd/{}", slot.file.as_raw_fd());
                rustix::fs::linkat(rustix::fs::CWD, from, dir, name, AtFlags::SYMLINK_FOLLOW)?;
            }
            Op::ChmodOpen(slot, mode) => {
                let slot = self.slots[*slot].as_ref().ok_or(Errno::BADF)?;
                rustix::fs::fchmod(&slot.file, Mode::from_bits_truncate(*mode))?;
            }
            Op::UtimensOpen(slot, secs) => {
                let slot = self.slots[*slot].as_ref().ok_or(Errno::BADF)?;
                let times = timestamps(None, Some(SetTime::At(Timestamp { secs: *secs, nanos: 7 })));
                rustix::fs::futimens(&slot.file, &times)?;
            }
            Op::CopyRange((from, from_at), (to, to_at), length) => {
                let from = self.slots[*from].as_ref().ok_or(Errno::BADF)?;
                let to = self.slots[*to].as_ref().filter(|slot| slot.writable).ok_or(Errno::BADF)?;
                let (mut from_at, mut to_at, length) = (*from_at, *to_at, usize::try_from(*length).unwrap());
                let (from, to) = (&from.file, &to.file);
                rustix::fs::copy_file_range(from, Some(&mut from_at), to, Some(&mut to_at), length)?;
            }
            other => panic!("{other:?} uses no open file"),
        }
        Ok(Answer::Done)
    }

    fn run_xattrs(&self, op: &Op) -> Result<Answer, Errno> {
        let file = |path: &str| {
            let (dir, name) = self.parent(path)?;
            let stat = rustix::fs::statat(&dir, name, AtFlags::SYMLINK_NOFOLLOW)?;
            match FileType::from_raw_mode(stat.st_mode) {
                FileType::RegularFile | FileType::Directory => {}
                _ => return Err(Errno::PERM),
            }
            rustix::fs::openat(&dir, name, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
        };
        match op {
            Op::SetXattr(path, number, data, mode) => {
                let flags = match mode {
                    XattrMode::Set => XattrFlags::empty(),
                    XattrMode::Create => XattrFlags::CREATE,
                    XattrMode::Replace => XattrFlags::REPLACE,
                };
                rustix::fs::fsetxattr(file(path)?, xattr_name(*number), &data.bytes(), flags)?;
            }
            Op::RemoveXattr(path, number) => rustix::fs::fremovexattr(file(path)?, xattr_name(*number))?,
            Op::Xattrs(path) => return user_xattrs(file(path)?).map(Answer::Xattrs),
            other => panic!("{other:?} is not about extended attributes"),
        }
        Ok(Answer::Done)
    }

    fn names(&self, path: &str) -> Result<Vec<(std::ffi::OsString, FileKind)>, Errno> {
        let path = if path.is_empty() { "." } else { path };
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let dir = rustix::fs::openat2(&self.root, path, flags, Mode::empty(), beneath())?;
        let mut names = Vec::new();
        for entry in Dir::new(dir)? {
            let entry = entry?;
            let name = entry.file_name().to_str().unwrap();
            if name != "." && name != ".." {
                names.push((name.into(), kind_of(entry.file_type()).unwrap()));
            }
        }
        names.sort();
        Ok(names)
    }

    pub(crate) fn snapshot(&self) -> Snapshot {
        let mut all = Snapshot::default();
        self.add("", &mut all);
        all.group();
        all
    }

    fn add(&self, dir: &str, all: &mut Snapshot) {
        for (name, kind) in self.names(dir).unwrap() {
            let name = name.to_str().unwrap();
            let path = if dir.is_empty() { name.to_owned() } else { format!("{dir}/{name}") };
            let stat = rustix::fs::statat(self.root.as_fd(), &*path, AtFlags::SYMLINK_NOFOLLOW).unwrap();
            let body = match kind {
                FileKind::File => contents(&self.open(&path, OFlags::RDONLY, 0).unwrap()),
                FileKind::Symlink => {
                    rustix::fs::readlinkat(&self.root, &*path, Vec::new()).unwrap().into_bytes()
                }
                _ => Vec::new(),
            };
            let has_xattrs = matches!(kind, FileKind::File | FileKind::Dir);
            let open =
                || rustix::fs::openat(&self.root, &*path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty());
            let xattrs = if has_xattrs { user_xattrs(open().unwrap()).unwrap() } else { Vec::new() };
            let (seen, file) = (seen(stat), stat.st_ino);
            all.add(path.clone(), Thing { seen, body, file, xattrs, first: String::new() });
            if kind == FileKind::Dir {
                self.add(&path, all);
            }
        }
    }

    pub(crate) fn owner() -> (Uid, Gid) {
        (rustix::process::geteuid(), rustix::process::getegid())
    }
}
