//! Beginning, end, and what the server says unasked.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread;
use std::time::Duration;

use fuse_uring::{
    Config, End, Errno, InitFlags, NoRing, ROOT_NODE, RingChoice, Session, StartError, Transport,
};

use crate::mounting;
use crate::support::{Mounted, PATIENCE, eventually, unmount};
use crate::switch::Switch;
use crate::test_fs::{Served, TestFs};

over_both_transports! {
    a_session_ends_with_its_mount,
    an_abort_ends_the_session_and_whoever_waits_for_it,
    an_abort_after_the_end_harms_nobody,
    several_sessions_are_served_at_once,
    an_interrupted_caller_is_reported,
    nodes_are_forgotten,
    the_kernel_drops_what_it_is_told_to,
    names_expire_and_epochs_pass,
    content_can_be_put_into_the_kernels_cache,
}

fn a_session_ends_with_its_mount(ring: RingChoice) -> io::Result<()> {
    let mounted = Mounted::new(ring)?;
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
fn an_abort_ends_the_session_and_whoever_waits_for_it(ring: RingChoice) -> io::Result<()> {
    let mounted = Mounted::new(ring)?;
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

/// Goal: what is cut is the session's own connection, although the kernel gives its number to the next one. Method: abort
/// when somebody has the number, over and over while sessions end at whatever moment.
fn an_abort_after_the_end_harms_nobody(ring: RingChoice) -> io::Result<()> {
    let device_number = |mounted: &Mounted| fs::metadata(mounted.path(".")).map(|root| root.dev());
    for _ in 0..20 {
        let ended = Mounted::new(ring)?;
        let number = device_number(&ended)?;
        ended.unmount()?;
        // Other tests mount too, and may get it first.
        let mut others = Vec::new();
        while others.len() < 8 {
            let other = Mounted::new(ring)?;
            let found = device_number(&other)? == number;
            others.push(other);
            if found {
                break;
            }
        }
        ended.session.abort();
        for other in &others {
            assert_eq!(fs::read(other.path("hello"))?, b"hello, world\n");
        }
    }
    Ok(())
}

fn several_sessions_are_served_at_once(ring: RingChoice) -> io::Result<()> {
    let mounted = (0..5).map(|_| Mounted::new(ring)).collect::<io::Result<Vec<_>>>()?;
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

fn an_interrupted_caller_is_reported(ring: RingChoice) -> io::Result<()> {
    let mounted = Mounted::new(ring)?;
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

fn nodes_are_forgotten(ring: RingChoice) -> io::Result<()> {
    let mounted = Mounted::new(ring)?;
    for number in 0..20 {
        let path = mounted.path(&number.to_string());
        File::create(&path)?;
        fs::remove_file(&path)?;
    }
    assert!(eventually(|| mounted.fs.counts.forgotten.load(Ordering::Relaxed) >= 20));
    Ok(())
}

fn the_kernel_drops_what_it_is_told_to(ring: RingChoice) -> io::Result<()> {
    let mounted = Mounted::new(ring)?;
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

fn names_expire_and_epochs_pass(ring: RingChoice) -> io::Result<()> {
    let config = Config { flags: InitFlags::HAS_EXPIRE_ONLY, ..Config::default() };
    let mounted = Mounted::with(ring, TestFs::new(None), config)?;
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

fn content_can_be_put_into_the_kernels_cache(ring: RingChoice) -> io::Result<()> {
    let mounted = Mounted::new(ring)?;
    let mut file = File::open(mounted.path("hello"))?;
    mounted.session.notifier().store(mounted.fs.node("hello"), 0, b"HELLO, WORLD\n")?;
    let mut content = String::new();
    file.read_to_string(&mut content)?;
    assert_eq!(content, "HELLO, WORLD\n");
    assert_eq!(mounted.fs.counts.reads.load(Ordering::Relaxed), 0);
    Ok(())
}

/// Returns a session over a mount of its own, which is taken away at once.
fn started(config: Config) -> io::Result<Result<Session, StartError>> {
    let fs: &'static TestFs = Box::leak(Box::new(TestFs::new(None)));
    let dir = tempfile::tempdir()?;
    let session = Session::start(mounting::mount(dir.path())?, config, Arc::new(Served(fs)));
    unmount(dir.path())?;
    Ok(session)
}

#[test]
fn the_transport_is_told_and_why() -> io::Result<()> {
    let config = |ring| Config { ring, ..Config::default() };
    let session = started(config(RingChoice::Never))?.map_err(io::Error::other)?;
    assert_eq!(session.negotiated().transport, Transport::Device(NoRing::NotWanted));
    let _switch = Switch::on()?;
    for ring in [RingChoice::Auto, RingChoice::Required] {
        let session = started(config(ring))?.map_err(io::Error::other)?;
        assert_eq!(session.negotiated().transport, Transport::Ring);
        assert!(session.negotiated().flags.contains(InitFlags::OVER_IO_URING));
        assert_eq!(session.wait(Some(PATIENCE)), Some(End::Unmounted));
    }
    Ok(())
}

#[test]
fn without_the_ring_a_session_falls_back_or_is_refused() -> io::Result<()> {
    let _switch = Switch::off()?;
    let config = |ring| Config { ring, ..Config::default() };
    let session = started(config(RingChoice::Auto))?.map_err(io::Error::other)?;
    assert_eq!(session.negotiated().transport, Transport::Device(NoRing::Disabled));
    let refused = started(config(RingChoice::Required))?;
    assert!(matches!(refused, Err(StartError::NoRing(NoRing::Disabled))), "{refused:?}");
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
