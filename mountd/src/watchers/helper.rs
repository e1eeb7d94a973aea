//! The helper: makes system calls in the mount whose answers are prepared.

use std::ffi::OsStr;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;

use rustix::fs::{
    AtFlags, CWD, FileType, Mode, OFlags, ResolveFlags, Timespec, Timestamps, UTIME_NOW, UTIME_OMIT,
};
use rustix::io::Errno;
use vout::fs::FileKind;
use vout::path::RelPath;
use vout::watch::{Happening, What};
use vout::wire::{self, WireError};

use super::{Batch, Done};

/// Serves the daemon on standard input until it goes.
pub(crate) fn run() -> Result<(), WireError> {
    let stream = UnixStream::from(rustix::io::fcntl_dupfd_cloexec(io::stdin(), 0).map_err(io::Error::from)?);
    while let Some(batch) = wire::receive::<Batch>(&stream)? {
        let Batch { at, device, happenings } = batch.message;
        let told = match open_mount(&at, device) {
            Ok(root) => happenings.iter().filter(|happening| show(&root, happening).is_ok()).count(),
            Err(_) => 0,
        };
        wire::send(&stream, &Done(told as u64), &[])?;
    }
    Ok(())
}

/// Opens the root of the mount, which must be the daemon's.
fn open_mount(at: &std::path::Path, device: (u32, u32)) -> rustix::io::Result<OwnedFd> {
    let root =
        rustix::fs::openat(CWD, at, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    let on = rustix::fs::fstat(&root)?.st_dev;
    if (rustix::fs::major(on), rustix::fs::minor(on)) == device { Ok(root) } else { Err(Errno::XDEV) }
}

/// Does for show what happened.
fn show(root: &OwnedFd, happening: &Happening) -> rustix::io::Result<()> {
    let times = |access, modification| {
        let time = |tv_nsec| Timespec { tv_sec: 0, tv_nsec };
        Timestamps { last_access: time(access), last_modification: time(modification) }
    };
    let Some((dir, name)) = happening.path.split_last() else {
        // The root can only have other attributes or names.
        return rustix::fs::utimensat(root, ".", &times(UTIME_NOW, UTIME_NOW), AtFlags::empty());
    };
    let dir = open_dir(root, dir)?;
    let touch = |times| rustix::fs::utimensat(&dir, name, &times, AtFlags::SYMLINK_NOFOLLOW);
    match happening.what {
        What::Created(kind) => create(&dir, name, kind),
        What::Written { executable } => {
            // A modification time alone is `IN_MODIFY`.
            touch(times(UTIME_OMIT, UTIME_NOW))?;
            if executable { Ok(()) } else { close_write(&dir, name) }
        }
        // Both times are `IN_ATTRIB`.
        What::Attributes | What::Listing => touch(times(UTIME_NOW, UTIME_NOW)),
        What::Removed { dir: true } => rustix::fs::unlinkat(&dir, name, AtFlags::REMOVEDIR),
        What::Removed { dir: false } => rustix::fs::unlinkat(&dir, name, AtFlags::empty()),
    }
}

fn create(dir: &OwnedFd, name: &OsStr, kind: FileKind) -> rustix::io::Result<()> {
    let mode = Mode::RUSR | Mode::WUSR;
    let node = |file_type| rustix::fs::mknodat(dir, name, file_type, mode, 0);
    match kind {
        FileKind::File => node(FileType::RegularFile),
        FileKind::Dir => rustix::fs::mkdirat(dir, name, mode),
        FileKind::Symlink => rustix::fs::symlinkat("elsewhere", dir, name),
        FileKind::Fifo => node(FileType::Fifo),
        FileKind::Socket => node(FileType::Socket),
        FileKind::CharDevice | FileKind::BlockDevice => Err(Errno::OPNOTSUPP),
    }
}

/// Ends a write to a file, for those who wait for `IN_CLOSE_WRITE`.
fn close_write(dir: &OwnedFd, name: &OsStr) -> rustix::io::Result<()> {
    let flags = OFlags::WRONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    rustix::fs::openat(dir, name, flags, Mode::empty()).map(drop)
}

fn open_dir(root: &OwnedFd, path: &RelPath) -> rustix::io::Result<OwnedFd> {
    let path = if path.is_root() { OsStr::new(".") } else { path.as_os_str() };
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_XDEV;
    loop {
        match rustix::fs::openat2(root.as_fd(), path, flags, Mode::empty(), resolve) {
            Err(Errno::AGAIN | Errno::INTR) => {}
            opened => return opened,
        }
    }
}
