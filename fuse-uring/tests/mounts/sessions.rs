//! Beginning, end, and what the server says unasked.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{self, Read};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread;
use std::time::Duration;

use fuse_uring::{Config, End, Errno, InitFlags, ROOT_NODE, Session, StartError};

use crate::mounting;
use crate::support::{Mounted, PATIENCE, eventually, unmount};
use crate::test_fs::{Served, TestFs};

#[test]
fn a_session_ends_with_its_mount() -> io::Result<()> {
    let mounted = Mounted::new()?;
    assert!(mounted.session.negotiated().version >= (7, 31));
    assert_eq!(mounted.session.wait(Some(Duration::ZERO)), None);
    mounted.unmount()?;
    assert_eq!(mounted.session.wait(Some(PATIENCE)), Some(End::Unmounted));
    assert_eq!(mounted.session.end(), Some(End::Unmounted));
    assert_eq!(mounted.fs.counts.destroyed.load(Ordering::Relaxed), 1);
    let late = mounted.session.notifier().inval_inode(ROOT_NODE, 0, 0).unwrap_err();
    assert_eq!(late.raw_os_error(), Some(Errno::NODEV.raw_os_error()));
    Ok(())
}

/// Goal: an aborted session leaves nobody waiting. Method: abort while one caller waits for an answer that
/// does not come.
#[test]
fn an_abort_ends_the_session_and_whoever_waits_for_it() -> io::Result<()> {
    let mounted = Mounted::new()?;
    let late = mounted.path("bad-late");
    let waiter = thread::spawn(move || fs::metadata(late));
    assert!(eventually(|| mounted.fs.counts.lookups.load(Ordering::Relaxed) > 0));
    mounted.session.abort();
    assert_eq!(mounted.session.wait(Some(PATIENCE)), Some(End::Aborted));
    assert_eq!(mounted.fs.counts.destroyed.load(Ordering::Relaxed), 1);
    let error = waiter.join().unwrap().unwrap_err();
    let expected = [Errno::CONNABORTED, Errno::NOTCONN].map(|errno| Some(errno.raw_os_error()));
    assert!(expected.contains(&error.raw_os_error()), "{error:?}");
    assert!(fs::metadata(mounted.path("hello")).is_err());
    // The late answer finds nobody.
    mounted.fs.gate.open();
    Ok(())
}

#[test]
fn several_sessions_are_served_at_once() -> io::Result<()> {
    let mounted = (0..5).map(|_| Mounted::new()).collect::<io::Result<Vec<_>>>()?;
    for one in &mounted {
        assert_eq!(fs::read(one.path("hello"))?, b"hello, world\n");
    }
    mounted[1].unmount()?;
    mounted[3].session.abort();
    assert_eq!(mounted[1].session.wait(Some(PATIENCE)), Some(End::Unmounted));
    assert_eq!(mounted[3].session.wait(Some(PATIENCE)), Some(End::Aborted));
    for one in [&mounted[0], &mounted[2], &mounted[4]] {
        assert_eq!(fs::read(one.path("big"))?.len(), 3 * 1024 * 1024);
    }
    Ok(())
}

#[test]
fn an_interrupted_caller_is_reported() -> io::Result<()> {
    let mounted = Mounted::new()?;
    let mut child = Command::new("stat")
        .arg(mounted.path("bad-late"))
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()?;
    assert!(eventually(|| mounted.fs.counts.lookups.load(Ordering::Relaxed) > 0));
    child.kill()?;
    // The handler answers once it learns of the interruption.
    assert!(!child.wait()?.success());
    assert!(eventually(|| mounted.fs.counts.interrupted.load(Ordering::Relaxed) == 1));
    Ok(())
}

#[test]
fn nodes_are_forgotten() -> io::Result<()> {
    let mounted = Mounted::new()?;
    for number in 0..20 {
        let path = mounted.path(&number.to_string());
        File::create(&path)?;
        fs::remove_file(&path)?;
    }
    assert!(eventually(|| mounted.fs.counts.forgotten.load(Ordering::Relaxed) >= 20));
    Ok(())
}

#[test]
fn the_kernel_drops_what_it_is_told_to() -> io::Result<()> {
    let mounted = Mounted::new()?;
    let (path, notifier) = (mounted.path("hello"), mounted.session.notifier());
    assert_eq!(fs::metadata(&path)?.len(), 13);

    mounted.fs.set("hello", b"changed");
    assert_eq!(fs::metadata(&path)?.len(), 13, "attributes are cached");
    notifier.inval_inode(mounted.fs.node("hello"), 0, 0)?;
    assert_eq!(fs::read(&path)?, b"changed");

    mounted.fs.remove("hello");
    assert!(fs::metadata(&path).is_ok(), "the name is cached");
    notifier.inval_entry(ROOT_NODE, OsStr::new("hello"))?;
    assert_eq!(fs::metadata(&path).unwrap_err().kind(), io::ErrorKind::NotFound);

    let link = mounted.path("link");
    fs::symlink_metadata(&link)?;
    let node = mounted.fs.node("link");
    mounted.fs.remove("link");
    notifier.delete(ROOT_NODE, node, OsStr::new("link"))?;
    assert_eq!(fs::symlink_metadata(&link).unwrap_err().kind(), io::ErrorKind::NotFound);

    // What is not cached needs no telling.
    notifier.inval_entry(ROOT_NODE, OsStr::new("never seen"))?;
    notifier.inval_inode(4711, 0, 0)?;
    Ok(())
}

#[test]
fn names_expire_and_epochs_pass() -> io::Result<()> {
    let config = Config { flags: InitFlags::HAS_EXPIRE_ONLY, ..Config::default() };
    let mounted = Mounted::with(TestFs::new(None), config)?;
    let notifier = mounted.session.notifier();
    let lookups = || mounted.fs.counts.lookups.load(Ordering::Relaxed);
    fs::metadata(mounted.path("hello"))?;
    fs::metadata(mounted.path("hello"))?;
    assert_eq!(lookups(), 1);
    notifier.expire_entry(ROOT_NODE, OsStr::new("hello"))?;
    fs::metadata(mounted.path("hello"))?;
    assert_eq!(lookups(), 2);
    if mounted.session.negotiated().version >= (7, 44) {
        notifier.increment_epoch()?;
        fs::metadata(mounted.path("hello"))?;
        assert_eq!(lookups(), 3);
    }
    Ok(())
}

#[test]
fn content_can_be_put_into_the_kernels_cache() -> io::Result<()> {
    let mounted = Mounted::new()?;
    let mut file = File::open(mounted.path("hello"))?;
    mounted.session.notifier().store(mounted.fs.node("hello"), 0, b"HELLO, WORLD\n")?;
    let mut content = String::new();
    file.read_to_string(&mut content)?;
    assert_eq!(content, "HELLO, WORLD\n");
    assert_eq!(mounted.fs.counts.reads.load(Ordering::Relaxed), 0);
    Ok(())
}

#[test]
fn what_is_not_mounted_or_begun_already_is_refused() -> io::Result<()> {
    let device = File::options().read(true).write(true).open("/dev/fuse")?;
    let fs: &'static TestFs = Box::leak(Box::new(TestFs::new(None)));
    let refused = Session::start(device.into(), Config::default(), Arc::new(Served(fs)));
    assert!(matches!(refused, Err(StartError::NotMounted)));

    let dir = tempfile::tempdir()?;
    let device = mounting::mount(dir.path())?;
    let second = device.try_clone()?;
    let session = Session::start(device, Config::default(), Arc::new(Served(fs)));
    // The kernel's first request is answered; the next that comes is another.
    let path = dir.path().to_owned();
    assert_eq!(fs::read(path.join("hello"))?, b"hello, world\n");
    drop(second);
    unmount(dir.path())?;
    assert_eq!(session.unwrap().wait(Some(PATIENCE)), Some(End::Unmounted));
    Ok(())
}
