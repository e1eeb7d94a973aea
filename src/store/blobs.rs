//! Hydrated files by content hash.
//!
//! A blob is a copy of something an archive holds. Waiting for the disk at each one would cost more than
//! decompressing it, so nothing does; but after a crash of the machine a name may then have wrong bytes
//! behind it. Blobs are therefore good for one boot of the machine only: the file `boot` names it, and
//! whoever finds another one there puts the whole directory away.

use std::ffi::CString;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::{AtFlags, Mode, OFlags};
use rustix::io::Errno;
use uuid::Uuid;

use super::error::{At as _, StoreError};
use super::{Gate, Store, open_dir, open_file, open_or_create_dir, tree};
use crate::digest::Digest;

/// Where Linux tells one boot from another.
const BOOT_ID_PATH: &str = "/proc/sys/kernel/random/boot_id";

/// Longest boot id in bytes; Linux gives 37.
const BOOT_ID_BYTES_MAX: u64 = 64;

/// What [`Store::trim_blobs`] removed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Trimmed {
    /// Number of files.
    pub files: u64,
    /// Their bytes.
    pub bytes: u64,
}

impl Store {
    /// Opens the hydrated file with content hash `digest` for reading; `None` where there is none.
    ///
    /// # Errors
    /// Those of `openat2(2)`.
    pub fn blob(&self, digest: Digest) -> io::Result<Option<File>> {
        match open_file(self.dirs.blobs.as_fd(), &blob_path(digest)) {
            Ok(file) => Ok(Some(file)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Returns the bytes of all hydrated files.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn blob_bytes(&self) -> Result<u64, StoreError> {
        let listed = list(self.dirs.blobs.as_fd()).at("list", || self.dirs.path.join("blobs"))?;
        Ok(listed.iter().map(|blob| blob.bytes).sum())
    }

    /// Removes hydrated files, least recently used first, until at most `bytes_max` bytes are left.
    ///
    /// Harmless at any time: open descriptors stay good, and what is missing is hydrated again.
    ///
    /// # Errors
    /// [`StoreError`].
    ///
    /// # Limitations
    /// Use is what the file system knows of it: the access time, which Linux renews at most daily, and
    /// never with `noatime`; the oldest go first then.
    pub fn trim_blobs(&self, bytes_max: u64) -> Result<Trimmed, StoreError> {
        let at = || self.dirs.path.join("blobs");
        let mut blobs = list(self.dirs.blobs.as_fd()).at("list", at)?;
        let mut left: u64 = blobs.iter().map(|blob| blob.bytes).sum();
        let mut trimmed = Trimmed::default();
        if left <= bytes_max {
            return Ok(trimmed);
        }
        blobs.sort_unstable_by(|a, b| (a.used, &a.path).cmp(&(b.used, &b.path)));
        for blob in blobs {
            if left <= bytes_max {
                break;
            }
            match rustix::fs::unlinkat(&self.dirs.blobs, &blob.path, AtFlags::empty()) {
                Ok(()) | Err(Errno::NOENT) => {}
                other => other.at("remove", || at().join(blob.path.to_string_lossy().as_ref()))?,
            }
            left -= blob.bytes;
            trimmed.files += 1;
            trimmed.bytes += blob.bytes;
        }
        Ok(trimmed)
    }
}

/// A blob as listed.
struct Blob {
    path: CString,
    bytes: u64,
    /// Latest of access and modification, in seconds and nanoseconds.
    used: (i64, i64),
}

/// Returns where a blob lies below `blobs`.
pub(super) fn blob_path(digest: Digest) -> String {
    let hex = digest.to_string();
    format!("{}/{hex}", &hex[..2])
}

/// Opens `blobs`, empty if it was filled in another boot of the machine; says whether that was so.
pub(super) fn open_of_this_boot(
    root: BorrowedFd<'_>,
    tmp: BorrowedFd<'_>,
    path: &Path,
) -> Result<(OwnedFd, bool), StoreError> {
    let at = || path.join("blobs");
    // Nobody may open the directory between our look at `boot` and its replacement.
    let _gate = Gate::enter(root).at("lock", || path.into())?;
    let boot = boot_id();
    let blobs = open_or_create_dir(root, path, "blobs")?;
    // Where the boot cannot be told, nothing is trusted.
    if boot.is_some() && read_boot(blobs.as_fd()) == boot {
        return Ok((blobs, false));
    }
    let held_something = !tree::names(blobs.as_fd()).at("list", at)?.is_empty();
    if held_something {
        // The sweep takes what is in `tmp`; removing it here could take long.
        let aside = Uuid::new_v4().to_string();
        rustix::fs::renameat(root, "blobs", tmp, aside).at("replace", at)?;
    }
    let blobs = open_or_create_dir(root, path, "blobs")?;
    if let Some(boot) = boot {
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::TRUNC | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file = rustix::fs::openat(&blobs, "boot", flags, Mode::from(0o600));
        let mut file = File::from(file.at("create", || at().join("boot"))?);
        file.write_all(&boot).at("write", || at().join("boot"))?;
    }
    Ok((blobs, held_something))
}

/// Returns the id of this boot of the machine; `None` where there is no `/proc`.
fn boot_id() -> Option<Vec<u8>> {
    let id = std::fs::read(BOOT_ID_PATH).ok()?;
    (!id.is_empty()).then_some(id)
}

fn read_boot(blobs: BorrowedFd<'_>) -> Option<Vec<u8>> {
    let mut boot = Vec::new();
    open_file(blobs, "boot").ok()?.take(BOOT_ID_BYTES_MAX).read_to_end(&mut boot).ok()?;
    Some(boot)
}

fn list(blobs: BorrowedFd<'_>) -> Result<Vec<Blob>, Errno> {
    let mut found = Vec::new();
    for parent in tree::names(blobs)? {
        let Ok(parent_name) = parent.to_str() else { continue };
        let dir = match open_dir(blobs, parent_name) {
            Ok(dir) => dir,
            // `boot`, or gone meanwhile.
            Err(Errno::NOTDIR | Errno::NOENT) => continue,
            Err(errno) => return Err(errno),
        };
        for name in tree::names(dir.as_fd())? {
            let Some(stat) = tree::stat(dir.as_fd(), &name)? else { continue };
            let Some(bytes) = tree::file_size(&stat) else { continue };
            let path = [parent.to_bytes(), b"/", name.to_bytes()].concat();
            let Ok(path) = CString::new(path) else { continue };
            let accessed = (stat.st_atime, i64::try_from(stat.st_atime_nsec).unwrap_or(0));
            let modified = (stat.st_mtime, i64::try_from(stat.st_mtime_nsec).unwrap_or(0));
            found.push(Blob { path, bytes, used: accessed.max(modified) });
        }
    }
    Ok(found)
}
