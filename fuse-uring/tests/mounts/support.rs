//! A mounted test file system.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use fuse_uring::{Config, InitFlags, RingChoice, Session};
use rustix::mount::UnmountFlags;
use tempfile::TempDir;

use crate::mounting;
use crate::switch::Switch;
use crate::test_fs::{Served, TestFs};

/// Far more than anything here takes.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

/// A [`TestFs`] in the test's own namespace, unmounted when dropped.
pub(crate) struct Mounted {
    pub(crate) fs: &'static TestFs,
    pub(crate) session: Session,
    dir: TempDir,
    _switch: Option<Switch>,
}

/// Makes two tests of each function, one for each transport.
macro_rules! over_both_transports {
    ($($scenario:ident,)*) => {
        mod device {
            $(
                #[test]
                fn $scenario() -> std::io::Result<()> {
                    super::$scenario(fuse_uring::RingChoice::Never)
                }
            )*
        }

        mod ring {
            $(
                #[test]
                fn $scenario() -> std::io::Result<()> {
                    super::$scenario(fuse_uring::RingChoice::Required)
                }
            )*
        }
    };
}

impl Mounted {
    pub(crate) fn new(ring: RingChoice) -> io::Result<Self> {
        Self::with(ring, TestFs::new(None), Config::default())
    }

    pub(crate) fn with(ring: RingChoice, fs: TestFs, mut config: Config) -> io::Result<Self> {
        let switch = if ring == RingChoice::Required { Some(Switch::on()?) } else { None };
        // Tests outlive no file system: threads of their own may still use it.
        let fs: &'static TestFs = Box::leak(Box::new(fs));
        let dir = tempfile::tempdir()?;
        let device = mounting::mount(dir.path())?;
        config.ring = ring;
        config.flags |= InitFlags::DO_READDIRPLUS | InitFlags::PARALLEL_DIROPS;
        let session = Session::start(device, config, Arc::new(Served(fs))).map_err(io::Error::other)?;
        Ok(Self { fs, session, dir, _switch: switch })
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub(crate) fn unmount(&self) -> io::Result<()> {
        unmount(self.dir.path())
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        self.fs.gate.open();
        self.unmount().ok();
    }
}

/// Takes a mount away, now or when nobody uses it any more.
pub(crate) fn unmount(dir: &Path) -> io::Result<()> {
    Ok(rustix::mount::unmount(dir, UnmountFlags::DETACH)?)
}

/// Waits until `done`, for [`PATIENCE`] at most.
pub(crate) fn eventually(mut done: impl FnMut() -> bool) -> bool {
    let started = Instant::now();
    while started.elapsed() < PATIENCE {
        if done() {
            return true;
        }
        std::thread::yield_now();
    }
    false
}
