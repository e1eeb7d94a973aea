//! Mounting, for tests and examples. Needs root.

use std::ffi::CString;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::Path;

use rustix::fs::{Mode, OFlags};
use rustix::mount::MountFlags;

/// Mounts a FUSE file system on `dir`, and returns the descriptor that is to be served.
pub(crate) fn mount(dir: &Path) -> io::Result<OwnedFd> {
    let device = rustix::fs::open("/dev/fuse", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())?;
    let options = format!(
        "fd={},rootmode=40755,user_id=0,group_id=0,allow_other,default_permissions",
        device.as_raw_fd()
    );
    let options = CString::new(options)?;
    rustix::mount::mount("fuse-uring", dir, "fuse", MountFlags::NODEV | MountFlags::NOSUID, &*options)?;
    Ok(device)
}
