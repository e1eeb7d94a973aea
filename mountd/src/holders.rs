//! Who keeps a mount busy.
//!
//! A path is not enough to tell: a shell that sat in the directory before it was mounted over shows the
//! same one. Everything is compared by mount id and device, and nothing here asks the mount: it may be
//! dead.

use std::fs;
use std::path::Path;

use rustix::fs::{AtFlags, CWD, StatxFlags, statx};
use vout::mountinfo::MountEntry;

/// A process as it is named to people: id and command name.
pub(crate) type Process = (u32, String);

/// Who uses a mount, seen from a client that wants it gone.
#[derive(Debug, Default)]
pub(crate) struct Holders {
    /// Those that keep it busy.
    pub(crate) using: Vec<Process>,
    /// Those that started the client and only stand in it: a shell that types `vout unmount`.
    pub(crate) standing: Vec<Process>,
}

/// How a process holds a mount.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Hold {
    /// By its working directory and nothing else.
    Standing,
    Using,
}

/// Returns each process that uses `mount`, but for this one.
///
/// # Limitations
/// Without root, only processes of the same user can be looked into.
pub(crate) fn holders(mount: &MountEntry, client: Option<u32>) -> Holders {
    let Ok(processes) = fs::read_dir("/proc") else { return Holders::default() };
    let mut pids: Vec<u32> = processes
        .flatten()
        .filter_map(|process| process.file_name().to_str()?.parse().ok())
        .filter(|pid| *pid != std::process::id())
        .collect();
    pids.sort_unstable();
    let line = client.map(with_ancestors).unwrap_or_default();
    let mut holders = Holders::default();
    for pid in pids {
        match hold_of(Path::new(&format!("/proc/{pid}")), mount) {
            Some(Hold::Standing) if line.contains(&pid) => holders.standing.push((pid, command_name(pid))),
            Some(Hold::Standing | Hold::Using) => holders.using.push((pid, command_name(pid))),
            None => {}
        }
    }
    holders
}

fn hold_of(process: &Path, mount: &MountEntry) -> Option<Hold> {
    let is_using = ["root", "exe"].iter().any(|link| leads_into(&process.join(link), mount))
        || fs::read_dir(process.join("fd"))
            .is_ok_and(|fds| fds.flatten().any(|fd| leads_into(&fd.path(), mount)))
        || fs::read_to_string(process.join("maps")).is_ok_and(|maps| maps_device(&maps, mount.device));
    if is_using {
        return Some(Hold::Using);
    }
    leads_into(&process.join("cwd"), mount).then_some(Hold::Standing)
}

/// Returns `pid` and those that started it, up to the first that is gone.
fn with_ancestors(pid: u32) -> Vec<u32> {
    let mut line = Vec::new();
    let mut next = Some(pid);
    // Ids are used again: a line that changes while it is read must not become a circle.
    while let Some(pid) = next.filter(|pid| *pid > 0 && !line.contains(pid)) {
        line.push(pid);
        let stat = fs::read(format!("/proc/{pid}/stat")).unwrap_or_default();
        next = parent_in(&stat);
    }
    line
}

/// `PID (NAME) STATE PARENT …`, where a name may hold blanks and parentheses.
fn parent_in(stat: &[u8]) -> Option<u32> {
    let name_end = stat.iter().rposition(|&byte| byte == b')')?;
    let rest = std::str::from_utf8(&stat[name_end + 1..]).ok()?;
    rest.split_ascii_whitespace().nth(1)?.parse().ok()
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

    #[test]
    fn a_name_cannot_pass_for_a_parent() {
        assert_eq!(parent_in(b"7 (a) S 99 (b) S 4 7 7 0"), Some(4));
        assert_eq!(parent_in(b"7 (a"), None);
        let line = with_ancestors(std::process::id());
        assert_eq!(line[..2], [std::process::id(), std::os::unix::process::parent_id()]);
    }
}
