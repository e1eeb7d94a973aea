//! Who keeps a mount busy.
//!
//! A path is not enough to tell: a shell that sat in the directory before it was mounted over shows the
//! same one. Everything is compared by mount id and device, and nothing here asks the mount: it may be
//! dead.

use std::fs;
use std::path::Path;

use rustix::fs::{AtFlags, CWD, StatxFlags, statx};
use vout::mountinfo::MountEntry;

/// Returns process id and command name of each process that uses `mount`, but for this one.
///
/// # Limitations
/// Without root, only processes of the same user can be looked into.
pub(crate) fn holders(mount: &MountEntry) -> Vec<(u32, String)> {
    let Ok(processes) = fs::read_dir("/proc") else { return Vec::new() };
    let mut holders: Vec<_> = processes
        .flatten()
        .filter_map(|process| process.file_name().to_str()?.parse::<u32>().ok())
        .filter(|pid| *pid != std::process::id())
        .filter(|pid| holds(Path::new(&format!("/proc/{pid}")), mount))
        .map(|pid| (pid, command_name(pid)))
        .collect();
    holders.sort();
    holders
}

fn holds(process: &Path, mount: &MountEntry) -> bool {
    ["cwd", "root", "exe"].iter().any(|link| leads_into(&process.join(link), mount))
        || fs::read_dir(process.join("fd"))
            .is_ok_and(|fds| fds.flatten().any(|fd| leads_into(&fd.path(), mount)))
        || fs::read_to_string(process.join("maps")).is_ok_and(|maps| maps_device(&maps, mount.device))
}

/// Returns whether a link of procfs leads to something in `mount`.
fn leads_into(link: &Path, mount: &MountEntry) -> bool {
    // DONT_SYNC takes what the kernel has, without a request to whoever serves the file system.
    let flags = AtFlags::STATX_DONT_SYNC | AtFlags::NO_AUTOMOUNT;
    statx(CWD, link, flags, StatxFlags::MNT_ID).is_ok_and(|stat| stat.stx_mnt_id == u64::from(mount.id))
}

/// `START-END PERMISSIONS OFFSET MAJOR:MINOR INODE [PATH]`, the device in hexadecimal.
fn maps_device(maps: &str, (major, minor): (u32, u32)) -> bool {
    let device = format!("{major:02x}:{minor:02x}");
    maps.lines().any(|line| line.split_ascii_whitespace().nth(3) == Some(&device))
}

fn command_name(pid: u32) -> String {
    let name = fs::read(format!("/proc/{pid}/comm")).unwrap_or_default();
    String::from_utf8_lossy(&name).trim_end().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mapped_files_are_told_by_their_device() {
        let maps = "7f00-7f01 r--p 00000000 00:3d 17  /w/lib.so\n7f02-7f03 rw-p 00000000 00:00 0\n";
        assert!(maps_device(maps, (0, 61)));
        assert!(!maps_device(maps, (8, 1)));
    }
}
