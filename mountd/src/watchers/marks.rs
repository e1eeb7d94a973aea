//! Who watches what: the marks of inotify and fanotify, as `/proc/PID/fdinfo` shows them.

use std::collections::HashSet;
use std::fs;
use std::io;
use std::path::Path;

/// Bits of a minor number in a device number of the kernel.
const MINOR_BITS: u32 = 20;

/// Returns the numbers of the inodes of `device` that some process watches, as far as we may look.
///
/// # Errors
/// Where there is no `/proc`.
pub(super) fn watched_inodes(device: (u32, u32)) -> io::Result<HashSet<u64>> {
    let device = (device.0 << MINOR_BITS) | device.1;
    let mut watched = HashSet::new();
    for process in fs::read_dir("/proc")? {
        let Ok(process) = process else { continue };
        if process.file_name().as_encoded_bytes().first().is_some_and(u8::is_ascii_digit) {
            add_marks(&process.path(), device, &mut watched);
        }
    }
    Ok(watched)
}

/// Adds what one process watches; others' processes cannot be looked into, and any may end meanwhile.
fn add_marks(process: &Path, device: u32, watched: &mut HashSet<u64>) {
    let Ok(descriptors) = fs::read_dir(process.join("fd")) else { return };
    for descriptor in descriptors.flatten() {
        let Ok(target) = fs::read_link(descriptor.path()) else { continue };
        if matches!(target.as_os_str().as_encoded_bytes(), b"anon_inode:inotify" | b"anon_inode:[fanotify]")
            && let Ok(marks) = fs::read_to_string(process.join("fdinfo").join(descriptor.file_name()))
        {
            watched.extend(marks.lines().filter_map(|mark| inode_of(mark, device)));
        }
    }
}

/// Reads `inotify wd:1 ino:2a sdev:4f mask:3c0 ...` or `fanotify ino:2a sdev:4f mflags:0 ...`; numbers are
/// hexadecimal.
fn inode_of(mark: &str, device: u32) -> Option<u64> {
    let field = |name: &str| mark.split(' ').find_map(|field| field.strip_prefix(name));
    if !mark.starts_with("inotify ") && !mark.starts_with("fanotify ") {
        return None;
    }
    let on = u32::from_str_radix(field("sdev:")?, 16).ok()?;
    let inode = u64::from_str_radix(field("ino:")?, 16).ok()?;
    (on == device).then_some(inode)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn marks_of_the_device_are_found_and_no_others() {
        let mark = "inotify wd:1 ino:4000000000000001 sdev:4f mask:fce ignored_mask:0 fhandle-bytes:8";
        assert_eq!(inode_of(mark, 0x4f), Some(0x4000_0000_0000_0001));
        assert_eq!(inode_of(mark, 0x50), None);
        assert_eq!(inode_of("fanotify ino:2a sdev:4f mflags:0 mask:3b ignored_mask:0", 0x4f), Some(0x2a));
        for other in ["pos:\t0", "fanotify mnt_id:12 mflags:0", "fanotify sdev:4f mflags:0", "inotify wd:1"] {
            assert_eq!(inode_of(other, 0x4f), None, "{other}");
        }
    }
}
