//! The kernel's control files of a FUSE connection.

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Weak;

use rustix::fs::{CWD, Mode, OFlags, openat};
use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags, fsconfig_create, fsmount, fsopen};

use crate::device::Device;

/// Where the control file system is mounted, if somebody did.
const CONTROL_DIR: &str = "/sys/fs/fuse/connections";

/// A session's connection, by the number that its control files have.
#[derive(Debug, Clone)]
pub(crate) struct Connection {
    device: Weak<OwnedFd>,
    /// Older kernels do not tell.
    number: Option<u32>,
}

impl Connection {
    /// Finds out the number of a mounted descriptor's connection.
    pub(crate) fn of(device: &Device) -> Self {
        Self { device: device.downgrade(), number: number_of(device) }
    }

    /// Cuts the connection, where that is possible and it is not over.
    pub(crate) fn cut(&self) {
        let (Some(number), Some(device)) = (self.number, self.device.upgrade()) else { return };
        if let Err(error) = abort(number, &Device::of(device)) {
            tracing::debug!(%error, number, "connection is not cut, only refused");
        }
    }
}

fn number_of(device: &Device) -> Option<u32> {
    let path = format!("/proc/self/fdinfo/{}", device.as_fd().as_raw_fd());
    let info = std::fs::read_to_string(path).ok()?;
    let line = info.lines().find_map(|line| line.strip_prefix("fuse_connection:"))?;
    line.trim().parse().ok()
}

fn abort(number: u32, device: &Device) -> io::Result<()> {
    let path = PathBuf::from(number.to_string()).join("abort");
    let file = match open(CWD, &Path::new(CONTROL_DIR).join(&path)) {
        Ok(file) => file,
        // A mount of our own that no name leads to, gone with its descriptor.
        Err(_) => open(private_control_dir()?, &path)?,
    };
    // With its last mount a connection ends, and then the next one of anybody gets its number. What was open while ours
    // had not ended is ours, and stays so.
    if device.is_connected() {
        rustix::io::write(&file, b"1")?;
    }
    Ok(())
}

fn private_control_dir() -> io::Result<OwnedFd> {
    let context = fsopen("fusectl", FsOpenFlags::FSOPEN_CLOEXEC)?;
    fsconfig_create(&context)?;
    Ok(fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, MountAttrFlags::empty())?)
}

fn open(dir: impl AsFd, path: &Path) -> io::Result<OwnedFd> {
    Ok(openat(dir, path, OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty())?)
}
