//! Mounting and unmounting the workspace.

use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, MutexGuard, PoisonError, Weak};

use rustix::io::Errno;
use vout::mountinfo::{FS_TYPE, mounts};
use vout::proto::{Event, Failure, FailureKind};
use vout::serving::Serving;
use vout::workspace::{LiveTree, Materialised};

use super::Server;
use super::connection::Connection;
use super::failure::{failure, internal, user_failure};
use crate::adapter::{Adapter, AdapterOptions};
use crate::invalidate::KernelInvalidator;
use crate::live::{FUSE_DEVICE_PATH, LiveError, LiveMount, MountPlace, clear_dead, open_device};
use crate::session::{SessionEnd, hints};

impl Server {
    pub(super) fn mount(self: &Arc<Self>, at: Option<PathBuf>, serving: Serving) -> Result<Event, Failure> {
        let at = at.unwrap_or_else(|| self.options.root.clone());
        let _mounting = self.mounting();
        if let Some(live) = self.live().as_ref() {
            let mounted = live.at().to_owned();
            return if mounted == at {
                Ok(Event::Mounted { at, already: true })
            } else {
                Err(user_failure(format!("the workspace is mounted already, at {mounted:?}"), &[]))
            };
        }
        check_device()?;
        self.check_target(&at)?;
        let invalidator = KernelInvalidator::start().map_err(|error| internal(&error))?;
        let covers_base = at == self.options.root;
        let told = Arc::<KernelInvalidator>::clone(&invalidator);
        let served = self.workspace.mount_live(told, serving, covers_base);
        let LiveTree { filesystem, announcer } = served.map_err(|error| internal(&error))?;
        let adapter = Adapter::new(filesystem, AdapterOptions::live(serving), None).with_announcer(announcer);
        let (server, in_use) = (Arc::downgrade(self), self.activity.enter());
        let own = Arc::clone(&invalidator);
        let on_end = move |end: &SessionEnd| {
            Self::live_ended(&server, &own, end);
            drop(in_use);
        };
        let place = MountPlace { at: &at, shows: &self.options.root };
        match LiveMount::mount(place, adapter, invalidator, on_end) {
            Ok(live) => {
                tracing::info!(?at, "mounted");
                let live = Arc::new(live);
                let ours = Arc::downgrade(&live);
                let is_in_place = move || ours.upgrade().is_some_and(|live| live.is_on_top());
                self.workspace.live_covers(Box::new(is_in_place));
                *self.live() = Some(live);
                Ok(Event::Mounted { at, already: false })
            }
            Err(error) => {
                self.end_layers();
                Err(mount_failure(&error))
            }
        }
    }

    pub(super) fn unmount(&self, connection: &Connection, discard: bool) -> Result<Event, Failure> {
        let _mounting = self.mounting();
        let end_layers = || {
            let progress = |progress| connection.progress(progress);
            self.workspace.unmount_live(discard, &progress).map_err(|error| internal(&error))
        };
        let Some(live) = self.live().clone() else {
            // What a killed daemon left: its mount, and layers that nobody serves.
            clear_dead(&self.options.root).map_err(|error| internal(&error))?;
            return Ok(unmounted(end_layers()?, false));
        };
        // Known before the work is done, not after.
        live.check_uncovered().map_err(|error| unmount_failure(&error))?;
        let holders = live.holders_for(connection.peer()).using;
        if !holders.is_empty() {
            return Ok(Event::Busy { holders });
        }
        // What is still virtual is written while the mount serves it; what is given up is given up only
        // once nobody can ask for it.
        let written = if discard { None } else { Some(end_layers()?) };
        let standing = match take_away(&live, connection.peer()) {
            Ok(standing) => standing,
            Err(LiveError::Busy { holders, .. }) => return Ok(Event::Busy { holders }),
            Err(error) => return Err(unmount_failure(&error)),
        };
        tracing::info!(at = ?live.at(), standing, "unmounted");
        *self.live() = None;
        self.workspace.live_ended();
        let materialised = match written {
            Some(materialised) => materialised,
            None => end_layers()?,
        };
        Ok(unmounted(materialised, standing))
    }

    /// Takes the live mount away because the daemon ends; nothing is materialised.
    pub(crate) fn unmount_at_exit(&self) {
        let Some(live) = self.live().take() else { return };
        let unmounted = live.unmount().or_else(|error| {
            tracing::warn!(%error, "detaching instead");
            live.detach()
        });
        if let Err(error) = unmounted {
            tracing::error!(%error, at = ?live.at(), "the mount stays behind");
        }
    }

    pub(super) fn mounted_at(&self) -> Option<PathBuf> {
        self.live().as_ref().map(|live| live.at().to_owned())
    }

    /// Waits until the live mount shows what the engine did.
    pub(super) fn flush_invalidations(&self) {
        let live = self.live().clone();
        if let Some(live) = live {
            live.invalidator().flush();
        }
    }

    /// Somebody else unmounted the live mount, or it failed: nothing virtual may be lost.
    fn live_ended(server: &Weak<Self>, own: &KernelInvalidator, end: &SessionEnd) {
        let Some(server) = server.upgrade() else { return };
        let mut live = server.live();
        // A session whose mount was detached may end while the next one lives.
        let is_ours = |live: &Arc<LiveMount>| std::ptr::eq(live.invalidator(), own) && !live.is_unmounting();
        if !live.as_ref().is_some_and(is_ours) {
            tracing::info!(?end, "a detached mount has ended");
            return;
        }
        let ended = live.take();
        drop(live);
        tracing::warn!(?end, "the live mount was taken away");
        if let Some(ended) = ended {
            ended.invalidator().stop();
        }
        server.end_layers();
    }

    fn end_layers(&self) {
        if let Err(error) = self.workspace.unmount_live(false, &|_| ()) {
            tracing::error!(%error, "virtual files could not be written out");
        }
        self.workspace.live_ended();
    }

    /// Refuses what cannot work, with the reason.
    fn check_target(&self, at: &Path) -> Result<(), Failure> {
        let root = &self.options.root;
        if at != root && (!at.is_absolute() || at.starts_with(root) || root.starts_with(at)) {
            let problem = format!("{at:?} cannot show {root:?}: one lies inside the other");
            return Err(user_failure(problem, &[]));
        }
        clear_dead(at).map_err(|error| internal(&error))?;
        for mount in mounts().map_err(|error| internal(&error))? {
            if mount.fs_type != FS_TYPE {
                continue;
            }
            let other = &mount.mount_point;
            if other == at {
                let problem = format!("{at:?} is mounted by another daemon");
                return Err(user_failure(problem, &["was it mounted with another store (VOUT_STORE)?"]));
            }
            if at.starts_with(other) || other.starts_with(at) {
                let problem = format!("mounts cannot be nested: {other:?} is mounted");
                return Err(user_failure(problem, &[&format!("vout unmount {}", other.display())]));
            }
        }
        self.check_directory(at).map_err(|error| match error {
            Refused::Os(source) => {
                let mut failed = failure(FailureKind::User, &source, &[]);
                failed.causes.insert(0, format!("{at:?} cannot be mounted over"));
                failed
            }
            Refused::Because(problem) => user_failure(problem, &[]),
        })
    }

    fn check_directory(&self, at: &Path) -> Result<(), Refused> {
        let directory = std::fs::symlink_metadata(at).map_err(Refused::Os)?;
        let refuse = |problem: String| Err(Refused::Because(problem));
        if !directory.is_dir() {
            return refuse(format!("{at:?} is not a directory"));
        }
        let user = rustix::process::geteuid();
        if !user.is_root() && directory.uid() != user.as_raw() {
            return refuse(format!("{at:?} belongs to user {}, not to you", directory.uid()));
        }
        if at == self.options.root && (directory.dev(), directory.ino()) != self.options.root_id {
            return refuse(format!("something else was mounted over {at:?} in the meantime"));
        }
        Ok(())
    }

    pub(super) fn live(&self) -> MutexGuard<'_, Option<Arc<LiveMount>>> {
        self.live.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn mounting(&self) -> MutexGuard<'_, ()> {
        self.mounting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Refuses where there is no FUSE for us.
fn check_device() -> Result<(), Failure> {
    let Err(errno) = open_device() else { return Ok(()) };
    if errno == Errno::ACCESS {
        let problem = format!("{FUSE_DEVICE_PATH} is closed to you");
        return Err(user_failure(problem, &[&format!("sudo chmod 666 {FUSE_DEVICE_PATH}")]));
    }
    let missing = errno == Errno::NOENT;
    let problem = if missing { "is missing".to_owned() } else { format!("cannot be opened: {errno}") };
    let hints = ["modprobe fuse", "in a container, add: --device /dev/fuse --cap-add SYS_ADMIN"];
    Err(user_failure(format!("{FUSE_DEVICE_PATH} {problem}"), &hints))
}

/// Why a directory cannot be mounted over.
enum Refused {
    Os(io::Error),
    Because(String),
}

/// Unmounts, or, where only the shells that started `client` stand in the mount, takes it out of the tree and
/// serves it on until they leave; returns whether it came to that.
fn take_away(live: &LiveMount, client: Option<u32>) -> Result<bool, LiveError> {
    let Err(error) = live.unmount() else { return Ok(false) };
    let LiveError::Busy { at, .. } = error else { return Err(error) };
    let holders = live.holders_for(client);
    if !holders.using.is_empty() || holders.standing.is_empty() {
        return Err(LiveError::Busy { at, holders: holders.using });
    }
    tracing::info!(?at, standing = ?holders.standing, "detaching");
    live.detach()?;
    Ok(true)
}

fn unmounted(materialised: Materialised, standing: bool) -> Event {
    let Materialised { files, bytes, discarded_files } = materialised;
    Event::Unmounted { files, bytes, discarded_files, standing }
}

fn unmount_failure(error: &LiveError) -> Failure {
    match error {
        LiveError::Covered { mount, .. } => {
            failure(FailureKind::User, error, &[&format!("umount {}", mount.display())])
        }
        error => internal(error),
    }
}

fn mount_failure(error: &LiveError) -> Failure {
    tracing::warn!(%error, "not mounted");
    let denied = match error {
        LiveError::Serve { source, .. } => return failure(FailureKind::User, error, hints(source)),
        LiveError::Helper { .. } => true,
        LiveError::Os { source, .. } => source.kind() == io::ErrorKind::PermissionDenied,
        LiveError::Busy { .. } | LiveError::Covered { .. } => false,
    };
    let hints: &[&str] = if denied {
        &["install fuse3, or mount as root", "in a container, add: --device /dev/fuse --cap-add SYS_ADMIN"]
    } else {
        &[]
    };
    failure(FailureKind::User, error, hints)
}
