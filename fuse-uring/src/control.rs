//! The kernel's control files of a FUSE connection.

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, Mode, OFlags, openat};
use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags, fsconfig_create, fsmount, fsopen};

/// Where the control file system is mounted, if somebody did.
const CONTROL_DIR: &str = "/sys/fs/fuse/connections";

/// Returns the number of a mounted descriptor's connection. Older kernels do not tell.
pub(crate) fn connection_of(device: &impl AsFd) -> Option<u32> {
    let path = format!("/proc/self/fdinfo/{}", device.as_fd().as_raw_fd());
    let info = std::fs::read_to_string(path).ok()?;
    let line = info.lines().find_map(|line| line.strip_prefix("fuse_connection:"))?;
    line.trim().parse().ok()
}

/// Cuts a connection, where that is possible.
pub(crate) fn cut(connection: Option<u32>) {
    let Some(connection) = connection else { return };
    if let Err(error) = abort(connection) {
        tracing::debug!(%error, connection, "connection is not cut, only refused");
    }
}

fn abort(connection: u32) -> io::Result<()> {
    let file = PathBuf::from(connection.to_string()).join("abort");
    match write_one(CWD, &Path::new(CONTROL_DIR).join(&file)) {
        Ok(()) => Ok(()),
        // A mount of our own that no name leads to, gone with its descriptor.
        Err(_) => write_one(private_control_dir()?, &file),
    }
}

fn private_control_dir() -> io::Result<OwnedFd> {
    let context = fsopen("fusectl", FsOpenFlags::FSOPEN_CLOEXEC)?;
    fsconfig_create(&context)?;
    Ok(fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, MountAttrFlags::empty())?)
}

fn write_one(dir: impl AsFd, path: &Path) -> io::Result<()> {
    let file = openat(dir, path, OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty())?;
    rustix::io::write(&file, b"1")?;
    Ok(())
}
