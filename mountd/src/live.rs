//! The live mount: put over the workspace, taken away again, and cleared where a dead one was left.

use std::ffi::{CString, OsString};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::mount::{MountFlags, UnmountFlags};
use thiserror::Error;
use vout::mountinfo::{FS_TYPE, MountEntry, MountIdentity, identity_at, is_dead, mount_at, mounts};
use vout::report::ServedReport;
use vout::wire::{self, WireError};

use crate::adapter::Adapter;
use crate::holders::{Holders, holders};
use crate::invalidate::KernelInvalidator;
use crate::session::{ServeError, Session, SessionEnd};
use crate::watchers::Watchers;

/// Set-user-id helper that mounts for those who may not; by its path, as `PATH` is the user's.
const FUSERMOUNT: &str = "/usr/bin/fusermount3";

/// The device of FUSE.
pub const FUSE_DEVICE_PATH: &str = "/dev/fuse";

/// Opens [`FUSE_DEVICE_PATH`]. Where this is refused, set-user-id helpers are refused as well.
pub(crate) fn open_device() -> Result<OwnedFd, Errno> {
    rustix::fs::open(FUSE_DEVICE_PATH, OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())
}

/// How long the session may take to notice that its mount is gone.
const END_TIMEOUT: Duration = Duration::from_secs(5);

/// Why a mount could not be made or taken away.
#[derive(Debug, Error)]
pub enum LiveError {
    /// Somebody uses it.
    #[error("{at:?} is in use")]
    Busy {
        /// Where.
        at: PathBuf,
        /// Process ids and command names, as far as they can be found out.
        holders: Vec<(u32, String)>,
    },
    /// Others are mounted on it: taking it away would take away the topmost at its place, or cut off those below.
    #[error("{mount:?} ({fs_type}) is mounted on it")]
    Covered {
        /// One of those mounts.
        mount: PathBuf,
        /// Its type.
        fs_type: String,
    },
    /// The operating system refused.
    #[error("{at:?} cannot be {action}")]
    Os {
        /// Where.
        at: PathBuf,
        /// What was tried.
        action: &'static str,
        /// Why it did not work.
        source: io::Error,
    },
    /// The helper refused.
    #[error("{FUSERMOUNT} refused {at:?}: {problem}")]
    Helper {
        /// Where.
        at: PathBuf,
        /// What it said.
        problem: String,
    },
    /// Mounted, but not served.
    #[error("{at:?} cannot be served")]
    Serve {
        /// Where.
        at: PathBuf,
        /// Why not.
        source: ServeError,
    },
}

/// What is mounted where.
#[derive(Debug, Clone, Copy)]
pub struct MountPlace<'a> {
    /// The directory to be mounted over.
    pub at: &'a Path,
    /// The workspace it is to show, for those who look at the table of mounts.
    pub shows: &'a Path,
}

/// A mount that this daemon serves.
pub struct LiveMount {
    at: PathBuf,
    /// Id of the mount, where there is a table to look it up.
    id: Option<u32>,
    identity: Option<MountIdentity>,
    session: Session,
    invalidator: Arc<KernelInvalidator>,
    /// We are taking it away ourselves.
    unmounting: AtomicBool,
}

impl LiveMount {
    /// Mounts `adapter` at `place`; `on_end` is called from the session's thread after the
    /// last request.
    ///
    /// # Errors
    /// [`LiveError`].
    pub fn mount(
        place: MountPlace<'_>,
        adapter: Adapter,
        invalidator: Arc<KernelInvalidator>,
        on_end: impl FnOnce(&SessionEnd) + Send + 'static,
    ) -> Result<Self, LiveError> {
        let at = place.at;
        let device = match mount_directly(place) {
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => mount_with_helper(place)?,
            direct => {
                direct.map_err(|source| LiveError::Os { at: at.to_owned(), action: "mounted", source })?
            }
        };
        let (state, unopened) = (adapter.state(), adapter.unopened());
        let session = Session::serve(device, adapter, on_end).map_err(|source| {
            // Nobody can be using it yet.
            if let Err(error) = unmount(at, true) {
                tracing::warn!(%error, "a dead mount is left");
            }
            LiveError::Serve { at: at.to_owned(), source }
        })?;
        let id = mount_at(at).ok().flatten().map(|mount| mount.id);
        let identity = identity_at(at).ok();
        let watchers = Watchers::start(at.to_owned(), state);
        if let Err(error) = &watchers {
            tracing::warn!(%error, "watchers of the mount hear nothing");
        }
        invalidator.attach(session.notifier(), unopened, watchers.ok());
        Ok(Self { at: at.to_owned(), id, identity, session, invalidator, unmounting: AtomicBool::new(false) })
    }

    /// Returns where it is mounted.
    #[must_use]
    pub fn at(&self) -> &Path {
        &self.at
    }

    /// Returns how it is served.
    pub(crate) fn served(&self) -> ServedReport {
        self.session.report()
    }

    /// Returns what tells the kernel about changes.
    #[must_use]
    pub fn invalidator(&self) -> &KernelInvalidator {
        &self.invalidator
    }

    /// Returns whether the end of the session is our doing.
    pub fn is_unmounting(&self) -> bool {
        self.unmounting.load(Ordering::Acquire)
    }

    /// Returns who uses the mount.
    pub fn holders(&self) -> Vec<(u32, String)> {
        self.holders_for(None).using
    }

    /// Returns who uses the mount, seen from the process `client`.
    pub(crate) fn holders_for(&self, client: Option<u32>) -> Holders {
        self.invalidator.silence();
        mount_at(&self.at).ok().flatten().map(|mount| holders(&mount, client)).unwrap_or_default()
    }

    /// Returns whether the mount is what its place shows. Nobody is asked for that.
    pub(crate) fn is_on_top(&self) -> bool {
        self.identity.is_some_and(|ours| identity_at(&self.at).is_ok_and(|shown| shown == ours))
    }

    /// Refuses to be taken away while others are mounted on it.
    ///
    /// # Errors
    /// [`LiveError::Covered`].
    pub fn check_uncovered(&self) -> Result<(), LiveError> {
        let mounts = mounts().unwrap_or_default();
        match mounts.into_iter().find(|mount| Some(mount.parent) == self.id) {
            Some(MountEntry { mount_point: mount, fs_type, .. }) => {
                Err(LiveError::Covered { mount, fs_type })
            }
            None => Ok(()),
        }
    }

    /// Returns whether somebody else has taken the mount out of the tree already.
    fn is_detached(&self) -> bool {
        self.id.is_some() && mounts().is_ok_and(|mounts| mounts.iter().all(|mount| Some(mount.id) != self.id))
    }

    /// Takes the mount away.
    ///
    /// # Errors
    /// [`LiveError::Busy`] where it is in use; any other [`LiveError`].
    pub fn unmount(&self) -> Result<(), LiveError> {
        self.take_away(false)
    }

    /// Cuts the connection; the mount stays, dead.
    pub fn abort(&self) {
        self.session.abort();
    }

    /// Takes the mount out of the tree even if somebody uses it; they are served until they leave.
    ///
    /// # Errors
    /// [`LiveError`].
    pub fn detach(&self) -> Result<(), LiveError> {
        self.take_away(true)
    }

    fn take_away(&self, detach: bool) -> Result<(), LiveError> {
        self.check_uncovered()?;
        self.unmounting.store(true, Ordering::Release);
        let in_tree = !self.is_detached();
        if in_tree && let Err(error) = unmount(&self.at, detach) {
            self.unmounting.store(false, Ordering::Release);
            return Err(error);
        }
        if in_tree && !detach && self.session.wait(END_TIMEOUT).is_none() {
            tracing::warn!(at = ?self.at, "unmounted, but a copy of the mount lives on elsewhere");
        }
        // Answers hold for a second only, so those who stay see changes without being told.
        self.invalidator.stop();
        Ok(())
    }
}

/// Unmounts what a killed daemon left at `path`; returns whether there was something.
///
/// # Errors
/// Where it cannot be told, or not unmounted.
pub fn clear_dead(path: &Path) -> io::Result<bool> {
    let mut cleared = false;
    while let Some(root) = dead_mount(path)? {
        tracing::info!(?path, "unmounting what a dead daemon left");
        // By its descriptor: by its name it might be a mount that somebody has put there meanwhile.
        match rustix::mount::unmount(format!("/proc/self/fd/{}", root.as_raw_fd()), UnmountFlags::DETACH) {
            Ok(()) => {}
            // Somebody else was faster.
            Err(Errno::INVAL) => {}
            Err(Errno::PERM) => unmount_with_helper(path, true).map_err(io::Error::other)?,
            Err(errno) => return Err(errno.into()),
        }
        cleared = true;
    }
    Ok(cleared)
}

/// Opens the topmost mount at `path` if it is one of ours that nobody serves.
fn dead_mount(path: &Path) -> io::Result<Option<OwnedFd>> {
    if mount_at(path)?.is_none_or(|mount| mount.fs_type != FS_TYPE) {
        return Ok(None);
    }
    let root = rustix::fs::open(path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())?;
    Ok(is_dead(&root).then_some(root))
}

fn mount_directly(MountPlace { at, shows }: MountPlace<'_>) -> io::Result<OwnedFd> {
    let device = open_device()?;
    let (uid, gid) = (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
    let options = format!(
        "fd={},rootmode=40000,user_id={uid},group_id={gid},default_permissions,allow_other",
        device.as_raw_fd(),
    );
    let options = CString::new(options)?;
    rustix::mount::mount(shows, at, FS_TYPE, MountFlags::NOSUID | MountFlags::NODEV, &*options)?;
    Ok(device)
}

/// Mounts through `fusermount3`, which sends the descriptor over a socket that it finds by number: its
/// standard input.
fn mount_with_helper(MountPlace { at, shows }: MountPlace<'_>) -> Result<OwnedFd, LiveError> {
    let os = |source| LiveError::Os { at: at.to_owned(), action: "mounted", source };
    let (ours, theirs) = UnixStream::pair().map_err(os)?;
    let child = Command::new(FUSERMOUNT)
        .arg("-o")
        .arg(helper_options(shows))
        .arg("--")
        .arg(at)
        .env("_FUSE_COMMFD", "0")
        .stdin(OwnedFd::from(theirs))
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(os)?;
    let received = wire::receive_descriptor(&ours);
    let output = child.wait_with_output().map_err(os)?;
    match received {
        Ok(Some(device)) => Ok(device),
        Ok(None) | Err(WireError::Truncated) => Err(helper_error(at, &output.stderr)),
        Err(error) => Err(os(io::Error::other(error))),
    }
}

/// Returns options for the helper, which takes a backslash to quote the next byte.
fn helper_options(shows: &Path) -> OsString {
    let mut options = b"subtype=vout,default_permissions,nosuid,nodev,fsname=".to_vec();
    for &byte in shows.as_os_str().as_bytes() {
        if matches!(byte, b',' | b'\\') {
            options.push(b'\\');
        }
        options.push(byte);
    }
    OsString::from_vec(options)
}

/// Unmounts the topmost mount at `at`; `detach` takes it out of the tree even if it is in use.
fn unmount(at: &Path, detach: bool) -> Result<(), LiveError> {
    let flags = if detach { UnmountFlags::DETACH } else { UnmountFlags::empty() };
    match rustix::mount::unmount(at, flags | UnmountFlags::NOFOLLOW) {
        Ok(()) => Ok(()),
        Err(Errno::BUSY) => Err(busy(at)),
        Err(Errno::PERM) => unmount_with_helper(at, detach),
        Err(errno) => Err(LiveError::Os { at: at.to_owned(), action: "unmounted", source: errno.into() }),
    }
}

fn unmount_with_helper(at: &Path, detach: bool) -> Result<(), LiveError> {
    let mut command = Command::new(FUSERMOUNT);
    command.arg("-u");
    if detach {
        command.arg("-z");
    }
    // The helper translates its messages; this one we have to recognise.
    let output = command.arg("--").arg(at).env("LC_ALL", "C").stdin(Stdio::null()).output();
    let output = output.map_err(|source| LiveError::Os { at: at.to_owned(), action: "unmounted", source })?;
    if output.status.success() {
        Ok(())
    } else if String::from_utf8_lossy(&output.stderr).contains("busy") {
        Err(busy(at))
    } else {
        Err(helper_error(at, &output.stderr))
    }
}

fn busy(at: &Path) -> LiveError {
    let holders = mount_at(at).ok().flatten().map(|mount| holders(&mount, None).using);
    LiveError::Busy { at: at.to_owned(), holders: holders.unwrap_or_default() }
}

fn helper_error(at: &Path, stderr: &[u8]) -> LiveError {
    let problem = String::from_utf8_lossy(stderr.trim_ascii()).into_owned();
    LiveError::Helper { at: at.to_owned(), problem }
}
