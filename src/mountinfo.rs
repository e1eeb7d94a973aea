//! What is mounted where, as `/proc/self/mountinfo` tells.
//!
//! Only [`is_dead`] asks a mount.

use std::ffi::OsString;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

use rustix::io::Errno;

/// Type under which our mounts appear.
pub const FS_TYPE: &str = "fuse.vout";

/// One mount.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MountEntry {
    /// Mount id, as `mnt_id` in `/proc/PID/fdinfo`.
    pub id: u32,
    /// Id of the mount that it lies on.
    pub parent: u32,
    /// Device as `MAJOR:MINOR` in decimal.
    pub device: (u32, u32),
    /// Where.
    pub mount_point: PathBuf,
    /// File-system type.
    pub fs_type: String,
    /// What is mounted, as whoever mounted it calls it. Live mounts name the workspace they show.
    pub source: PathBuf,
}

/// Returns the mounts of this process's namespace; later ones cover earlier ones.
///
/// # Errors
/// Where there is no `/proc`.
pub fn mounts() -> io::Result<Vec<MountEntry>> {
    Ok(parse(&std::fs::read("/proc/self/mountinfo")?))
}

/// Returns the topmost mount exactly at `path`.
///
/// # Errors
/// Where there is no `/proc`.
pub fn mount_at(path: &Path) -> io::Result<Option<MountEntry>> {
    Ok(mounts()?.into_iter().rfind(|mount| mount.mount_point == path))
}

/// What tells a mount from those that were at its place before.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MountIdentity {
    id: u64,
    device: (u32, u32),
}

/// Returns the identity of the mount that shows `path`, whose file system is not asked anything.
///
/// # Errors
/// Where there is nothing at `path`.
pub fn identity_at(path: &Path) -> io::Result<MountIdentity> {
    use rustix::fs::{AtFlags, CWD, StatxFlags, statx};
    let flags = AtFlags::SYMLINK_NOFOLLOW | AtFlags::NO_AUTOMOUNT | AtFlags::STATX_DONT_SYNC;
    let stat = statx(CWD, path, flags, StatxFlags::MNT_ID)?;
    Ok(MountIdentity { id: stat.stx_mnt_id, device: (stat.stx_dev_major, stat.stx_dev_minor) })
}

/// Returns the path in the workspace of what one of our mounts shows at the absolute `path`; `None` where that is
/// not below a mount of ours, or the mount lies over its workspace.
#[must_use]
pub fn behind(mounts: &[MountEntry], path: &Path) -> Option<PathBuf> {
    let above = mounts.iter().filter(|mount| path.starts_with(&mount.mount_point));
    // Of several at one place, the last.
    let mount = above.max_by_key(|mount| mount.mount_point.components().count())?;
    let elsewhere = mount.source.is_absolute() && mount.source != mount.mount_point;
    let below = path.strip_prefix(&mount.mount_point).ok()?;
    let own = mount.fs_type == FS_TYPE && elsewhere;
    // Joining the empty path would leave a trailing `/`.
    own.then(|| if below.as_os_str().is_empty() { mount.source.clone() } else { mount.source.join(below) })
}

/// Returns whether nobody serves the FUSE mount of `file` any more, which may be opened with `O_PATH`.
pub fn is_dead(file: impl AsFd) -> bool {
    // Unlike attributes, these numbers are never cached: the kernel has to ask.
    let asked = rustix::fs::fstatfs(file);
    // A server that is killed just now: what its queue held is aborted, what one of its io_uring threads had
    // been given already is cancelled.
    asked.is_err_and(|errno| matches!(errno, Errno::NOTCONN | Errno::CONNABORTED | Errno::CANCELED))
}

fn parse(mountinfo: &[u8]) -> Vec<MountEntry> {
    mountinfo.split(|&byte| byte == b'\n').filter_map(parse_line).collect()
}

/// `ID PARENT MAJOR:MINOR ROOT MOUNTPOINT OPTIONS [OPTIONAL…] - TYPE SOURCE SUPEROPTIONS`
fn parse_line(line: &[u8]) -> Option<MountEntry> {
    let mut fields = line.split(|&byte| byte == b' ');
    let text = |field: &[u8]| std::str::from_utf8(field).ok().map(str::to_owned);
    let id = text(fields.next()?)?.parse().ok()?;
    let parent = text(fields.next()?)?.parse().ok()?;
    let device = text(fields.next()?)?;
    let (major, minor) = device.split_once(':')?;
    let mount_point = unescape(fields.nth(1)?);
    let mut fields = fields.skip_while(|field| *field != b"-");
    let fs_type = text(fields.nth(1)?)?;
    let source = unescape(fields.next()?);
    let device = (major.parse().ok()?, minor.parse().ok()?);
    Some(MountEntry { id, parent, device, mount_point, fs_type, source })
}

/// Undoes the octal escapes of blanks and backslashes.
fn unescape(field: &[u8]) -> PathBuf {
    let mut bytes = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((&first, tail)) = rest.split_first() {
        let escaped = tail.get(..3).and_then(|digits| std::str::from_utf8(digits).ok());
        let escaped = escaped.and_then(|digits| u8::from_str_radix(digits, 8).ok());
        match (first, escaped) {
            (b'\\', Some(byte)) => {
                bytes.push(byte);
                rest = &tail[3..];
            }
            _ => {
                bytes.push(first);
                rest = tail;
            }
        }
    }
    PathBuf::from(OsString::from_vec(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn optional_fields_and_escapes_are_understood() {
        let text = b"36 35 98:0 /r /mnt/a\\040b rw,noatime master:1 shared:2 - ext4 /dev/root rw\n\
            99 36 0:61 / /w rw - fuse.vout vout rw,user_id=0\n";
        let mounts = parse(text);
        assert_eq!(mounts.len(), 2);
        assert_eq!(mounts[0].mount_point, Path::new("/mnt/a b"));
        assert_eq!(mounts[0].fs_type, "ext4");
        assert_eq!((mounts[1].id, mounts[1].parent, mounts[1].device), (99, 36, (0, 61)));
        assert_eq!(mounts[1].fs_type, FS_TYPE);
    }

    #[test]
    fn what_a_mount_elsewhere_shows_is_found_behind_it() {
        let text = b"1 0 8:1 / / rw - ext4 /dev/root rw\n2 1 0:61 / /at rw - fuse.vout /home/my\\040ws rw\n\
            3 1 0:62 / /over rw - fuse.vout /over rw\n4 1 0:63 / /view rw - fuse.vout vout rw\n\
            5 2 0:64 / /at/tmp rw - tmpfs /tmpfs rw\n";
        let mounts = parse(text);
        let behind = |path: &str| behind(&mounts, Path::new(path));
        assert_eq!(behind("/at"), Some("/home/my ws".into()));
        assert_eq!(behind("/at/a/b"), Some("/home/my ws/a/b".into()));
        for other in ["/att", "/over/a", "/view/a", "/at/tmp/a", "/"] {
            assert_eq!(behind(other), None, "{other}");
        }
    }

    #[test]
    fn the_root_of_this_machine_is_found() -> io::Result<()> {
        assert!(mount_at(Path::new("/"))?.is_some());
        Ok(())
    }
}
