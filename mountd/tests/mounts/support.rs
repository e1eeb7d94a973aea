//! A small file system and mounts of it, for tests.
#![allow(dead_code, reason = "each test file uses a part")]
#![allow(clippy::unwrap_used, reason = "helpers of tests fail by panicking, too")]

mod memory;

use std::fs::File;
use std::io::{self, BufRead, BufReader};
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags};
use rustix::fs::{Mode, OFlags};
use rustix::mount::{MountFlags, UnmountFlags};
use rustix::time::Timespec;
use tempfile::TempDir;
use vout::report::Chunk;
use vout::serving::{Serving, Transport};
use vout_mountd::adapter::{Adapter, AdapterOptions};
use vout_mountd::session::Session;
use vout_mountd::terminal::{OutputSink, Terminal};

pub(crate) use self::memory::{Counts, MemoryFs};

/// Far more than anything here takes.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

/// Between two looks for something to happen.
const PAUSE: Timespec = Timespec { tv_sec: 0, tv_nsec: 5_000_000 };

/// A file system mounted in the test's own namespace, unmounted when dropped.
pub(crate) struct Mounted {
    pub(crate) fs: Arc<MemoryFs>,
    pub(crate) session: Session,
    dir: TempDir,
}

impl Mounted {
    pub(crate) fn new(fs: MemoryFs, options: AdapterOptions) -> io::Result<Self> {
        let (fs, dir) = (Arc::new(fs), tempfile::tempdir()?);
        let device = open_device()?;
        let data = std::ffi::CString::new(mount_options(device.as_raw_fd()))?;
        rustix::mount::mount("vout", dir.path(), "fuse.vout-test", MountFlags::NODEV, &*data)?;
        let adapter = Adapter::new(Arc::clone(&fs) as _, options, None);
        let session = Session::serve(device, adapter, |_| ()).map_err(io::Error::other)?;
        Ok(Self { fs, session, dir })
    }

    pub(crate) fn view(fs: MemoryFs) -> io::Result<Self> {
        Self::new(fs, AdapterOptions::view(serving(true)))
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub(crate) fn counts(&self) -> &Counts {
        self.fs.counts()
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        rustix::mount::unmount(self.dir.path(), UnmountFlags::DETACH).ok();
    }
}

/// A script that runs in a mount namespace of its own, with a view over its working directory.
pub(crate) struct ViewScript {
    pub(crate) session: Session,
    pub(crate) child: Child,
    pub(crate) stdout: BufReader<std::process::ChildStdout>,
    dir: TempDir,
}

impl ViewScript {
    /// Runs `script` with `sh`, for half a minute at most; its standard input is `/dev/null`.
    pub(crate) fn start(
        fs: Arc<MemoryFs>,
        terminal: Option<Arc<Terminal>>,
        script: &str,
    ) -> io::Result<Self> {
        let (dir, device) = (tempfile::tempdir()?, open_device()?);
        let setup = format!(
            "mount -i -t fuse.vout-test -o {} vout \"$1\" && exec </dev/null && cd \"$1\" && echo mounted\n",
            mount_options(0),
        );
        let mut child = Command::new("timeout")
            .args([
                "-k",
                "1",
                "30",
                "unshare",
                "-m",
                "--propagation",
                "private",
                "sh",
                "-c",
                &(setup + script),
                "sh",
            ])
            .arg(dir.path())
            .stdin(device.try_clone()?)
            .stdout(Stdio::piped())
            .spawn()?;
        // The directory is entered only once the view is served, so the line comes after that.
        let served = {
            let adapter = Adapter::new(fs as _, AdapterOptions::view(serving(true)), terminal);
            serve_when_mounted(device, adapter)
        };
        let mut stdout = BufReader::new(child.stdout.take().unwrap());
        let mut line = String::new();
        let session = served?;
        stdout.read_line(&mut line)?;
        assert_eq!(line, "mounted\n");
        Ok(Self { session, child, stdout, dir })
    }

    pub(crate) fn line(&mut self) -> io::Result<String> {
        let mut line = String::new();
        self.stdout.read_line(&mut line)?;
        Ok(line.trim_end().to_owned())
    }
}

impl Drop for ViewScript {
    fn drop(&mut self) {
        // Not SIGKILL: `timeout` hands this one on to the script.
        if let Some(pid) = rustix::process::Pid::from_raw(self.child.id().cast_signed()) {
            rustix::process::kill_process(pid, rustix::process::Signal::TERM).ok();
        }
        self.child.wait().ok();
    }
}

/// Waits until `holds` says so.
pub(crate) fn poll_until(what: &str, mut holds: impl FnMut() -> io::Result<bool>) -> io::Result<()> {
    let begun = Instant::now();
    while !holds()? {
        if begun.elapsed() > PATIENCE {
            return Err(io::Error::other(format!("in vain: {what}")));
        }
        rustix::event::poll(&mut [], Some(&PAUSE))?;
    }
    Ok(())
}

/// Serves a descriptor that another process is about to mount.
fn serve_when_mounted(device: OwnedFd, adapter: Adapter) -> io::Result<Session> {
    poll_until("somebody mounts the descriptor", || {
        let mut polled = [PollFd::new(&device, PollFlags::IN)];
        rustix::event::poll(&mut polled, Some(&PAUSE))?;
        Ok(polled[0].revents().contains(PollFlags::IN))
    })?;
    Session::serve(device, adapter, |_| ()).map_err(io::Error::other)
}

/// Keeps what a terminal shows.
#[derive(Clone, Default)]
pub(crate) struct Shown(pub(crate) Arc<Mutex<Vec<Chunk>>>);

impl OutputSink for Shown {
    fn show(&mut self, chunk: Chunk) -> io::Result<()> {
        self.0.lock().unwrap().push(chunk);
        Ok(())
    }
}

/// Returns how mounts of the tests are served: over the transport that `VOUT_TRANSPORT` names.
pub(crate) fn serving(passthrough: bool) -> Serving {
    let word = std::env::var("VOUT_TRANSPORT").unwrap_or_default();
    let transport = Transport::from_word(&word).unwrap_or_default();
    Serving { transport, passthrough, ..Serving::default() }
}

pub(crate) fn open_device() -> io::Result<OwnedFd> {
    Ok(rustix::fs::open("/dev/fuse", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())?)
}

fn mount_options(fd: i32) -> String {
    format!("fd={fd},rootmode=40000,user_id=0,group_id=0,allow_other,default_permissions")
}

/// Returns the names in a directory, sorted.
pub(crate) fn names(dir: &Path) -> io::Result<Vec<String>> {
    let mut names = std::fs::read_dir(dir)?
        .map(|entry| Ok(entry?.file_name().into_string().unwrap()))
        .collect::<io::Result<Vec<_>>>()?;
    names.sort();
    Ok(names)
}

/// Makes an anonymous file.
pub(crate) fn anonymous_file() -> io::Result<File> {
    tempfile::tempfile()
}
