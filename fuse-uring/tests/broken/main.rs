//! A ring that breaks while sessions are served over it. Its process has no other: it breaks them all.
#![cfg(feature = "mount-tests")]
#![allow(clippy::unwrap_used, reason = "helpers of tests fail by panicking, too")]
#![expect(
    dead_code,
    unused_macros,
    reason = "the helpers are those of the other mount tests, which use more of them"
)]

#[path = "../support/mounting.rs"]
mod mounting;
#[macro_use]
#[path = "../mounts/support.rs"]
mod support;
#[path = "../mounts/switch.rs"]
mod switch;
mod sys;
#[path = "../mounts/test_fs.rs"]
mod test_fs;

use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, RawFd};
use std::sync::atomic::Ordering;
use std::thread;

use fuse_uring::{End, RingChoice};

use crate::support::{Mounted, PATIENCE};

/// Goal: when a ring breaks, everybody who waits learns of it, the sessions end as aborted ones do, and the next session
/// is served. Method: put something else in place of the rings' descriptors, and ask.
#[test]
fn sessions_end_with_their_ring_and_later_ones_get_another() -> io::Result<()> {
    let mounted = [Mounted::new(RingChoice::Required)?, Mounted::new(RingChoice::Required)?];
    for one in &mounted {
        assert_eq!(fs::read(one.path("hello"))?, b"hello, world\n");
    }
    let rings = rings()?;
    assert!(!rings.is_empty());
    let other = File::open("/dev/null")?;
    for ring in rings {
        sys::replace(ring, other.as_fd())?;
    }
    // Each ring's thread notices when it next hears of anything, and one that does takes the connection along.
    for one in &mounted {
        let path = one.path("other");
        let error = thread::spawn(move || fs::metadata(path)).join().unwrap().unwrap_err();
        // That which the thread had in its hands is cancelled.
        let expected = [libc::ECANCELED, libc::ECONNABORTED, libc::ENOTCONN, libc::ENOENT];
        assert!(expected.contains(&error.raw_os_error().unwrap_or(0)), "{error:?}");
        assert_eq!(one.session.wait(Some(PATIENCE)), Some(End::Aborted));
        assert_eq!(one.fs.counts.destroyed.load(Ordering::Relaxed), 1);
    }
    let next = Mounted::new(RingChoice::Required)?;
    assert_eq!(fs::read(next.path("hello"))?, b"hello, world\n");
    Ok(())
}

/// Returns the descriptors of all rings of this process.
fn rings() -> io::Result<Vec<RawFd>> {
    let mut rings = Vec::new();
    for entry in fs::read_dir("/proc/self/fd")? {
        let entry = entry?;
        let is_ring =
            fs::read_link(entry.path()).is_ok_and(|target| target.as_os_str() == "anon_inode:[io_uring]");
        if let (true, Ok(fd)) = (is_ring, entry.file_name().to_string_lossy().parse()) {
            rings.push(fd);
        }
    }
    Ok(rings)
}
