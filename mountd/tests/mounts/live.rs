//! The live mount: made, in use, taken away, cleared when dead, told about changes.

use std::fs::{self, File};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::{Arc, mpsc};

use vout::fs::{Caller, Filesystem, Invalidator, NodeId};
use vout_mountd::adapter::{Adapter, AdapterOptions};
use vout_mountd::invalidate::KernelInvalidator;
use vout_mountd::live::{LiveError, LiveMount, MountPlace, clear_dead};
use vout_mountd::session::SessionEnd;

use crate::support::{Counts, MemoryFs, PATIENCE, serving};

type TestResult = Result<(), Box<dyn std::error::Error>>;

struct Fixture {
    live: LiveMount,
    fs: Arc<MemoryFs>,
    invalidator: Arc<KernelInvalidator>,
    ends: mpsc::Receiver<SessionEnd>,
}

fn mount(at: &Path, fs: MemoryFs, options: AdapterOptions) -> Result<Fixture, Box<dyn std::error::Error>> {
    let (fs, invalidator) = (Arc::new(fs), KernelInvalidator::start()?);
    let (sender, ends) = mpsc::channel();
    let adapter = Adapter::new(Arc::clone(&fs) as _, options, None);
    let on_end = move |end: &SessionEnd| drop(sender.send(end.clone()));
    let live = LiveMount::mount(MountPlace { at, shows: at }, adapter, Arc::clone(&invalidator), on_end)?;
    Ok(Fixture { live, fs, invalidator, ends })
}

impl Drop for Fixture {
    fn drop(&mut self) {
        self.live.detach().ok();
    }
}

#[test]
fn a_mount_shows_its_tree_until_it_is_taken_away() -> TestResult {
    let dir = tempfile::tempdir()?;
    let fixture =
        mount(dir.path(), MemoryFs::new(true).with_file("a", b"1"), AdapterOptions::live(serving(true)))?;
    assert_eq!(fs::read(dir.path().join("a"))?, b"1");
    let mounts = fs::read_to_string("/proc/self/mountinfo")?;
    let line = mounts.lines().find(|line| line.contains(dir.path().to_str().unwrap())).unwrap();
    assert!(line.contains(&format!(" - fuse.vout {} ", dir.path().display())), "{line}");
    fixture.live.unmount()?;
    assert_eq!(fixture.ends.recv_timeout(PATIENCE)?, SessionEnd::Unmounted);
    assert!(!dir.path().join("a").exists());
    Ok(())
}

#[test]
fn a_busy_mount_names_who_holds_it_and_nobody_else() -> TestResult {
    let dir = tempfile::tempdir()?;
    // This one sat there before: its path looks the same, but it holds the directory below.
    let before = Command::new("sleep").arg("60").current_dir(dir.path()).spawn()?;
    let fixture =
        mount(dir.path(), MemoryFs::new(true).with_file("a", b"1"), AdapterOptions::live(serving(true)))?;
    assert!(fixture.live.holders().is_empty());
    let inside = Command::new("sleep").arg("60").current_dir(dir.path()).spawn()?;
    let open =
        Command::new("sleep").arg("60").stdin(Stdio::from(File::open(dir.path().join("a"))?)).spawn()?;
    let mut held = vec![(inside.id(), "sleep".to_owned()), (open.id(), "sleep".to_owned())];
    held.sort();
    let refused = fixture.live.unmount();
    for mut child in [before, inside, open] {
        child.kill()?;
        child.wait()?;
    }
    match refused {
        Err(LiveError::Busy { holders, .. }) => assert_eq!(holders, held),
        other => panic!("not refused: {other:?}"),
    }
    fixture.live.unmount()?;
    Ok(())
}

#[test]
fn a_dead_mount_is_cleared_and_a_living_one_is_not() -> TestResult {
    let dir = tempfile::tempdir()?;
    assert!(!clear_dead(dir.path())?);
    let fixture = mount(dir.path(), MemoryFs::new(true), AdapterOptions::live(serving(true)))?;
    fs::metadata(dir.path())?;
    assert!(!clear_dead(dir.path())?);
    fixture.live.abort();
    assert_eq!(fixture.ends.recv_timeout(PATIENCE)?, SessionEnd::Aborted);
    assert!(clear_dead(dir.path())?);
    fs::write(dir.path().join("below"), "")?;
    Ok(())
}

/// Goal: changes that did not come through the mount show at once when announced, caches or not.
#[test]
fn announced_changes_show_at_once() -> TestResult {
    let dir = tempfile::tempdir()?;
    // A view's lifetimes, so that nothing expires by itself; the same size and time, so that nothing shows.
    let fixture =
        mount(dir.path(), MemoryFs::new(false).with_file("a", b"old"), AdapterOptions::view(serving(false)))?;
    let (a, b) = (dir.path().join("a"), dir.path().join("b"));
    assert_eq!(fs::read(&a)?, b"old");
    assert!(!b.exists());
    let node = fixture.fs.lookup(NodeId::ROOT, "a".as_ref())?.node;
    fixture.fs.open(node, vout::fs::OpenFlags::WRITE)?.write_at(b"new", 0)?;
    let caller = Caller::new(0, 0);
    fixture.fs.create(caller, NodeId::ROOT, "b".as_ref(), 0o644, vout::fs::OpenFlags::WRITE)?;
    assert_eq!(fs::read(&a)?, b"old");
    assert!(!b.exists());
    fixture.invalidator.node_changed(node);
    fixture.invalidator.entry_changed(NodeId::ROOT, "b".as_ref());
    fixture.invalidator.flush();
    assert_eq!(fs::read(&a)?, b"new");
    assert!(b.exists());
    Ok(())
}

/// Goal: what the kernel has open without our knowledge stays open where only its content changed, and is opened anew
/// where it is another object.
/// Method: both drop what the kernel has cached; the second has the core open the file again.
#[test]
fn a_changed_content_is_read_through_what_is_open() -> TestResult {
    let dir = tempfile::tempdir()?;
    let fs = MemoryFs::new(false).with_file("a", b"old");
    let fixture = mount(dir.path(), fs, AdapterOptions::live(serving(false)))?;
    let path = dir.path().join("a");
    assert_eq!(fs::read(&path)?, b"old");
    let node = fixture.fs.lookup(NodeId::ROOT, "a".as_ref())?.node;
    type Tell = fn(&KernelInvalidator, NodeId);
    let tells: [(_, Tell, _); 2] =
        [(b"new", Invalidator::content_changed, 0), (b"own", Invalidator::node_changed, 1)];
    for (content, tell, opens) in tells {
        fixture.fs.open(node, vout::fs::OpenFlags::WRITE)?.write_at(content, 0)?;
        let before = Counts::get(&fixture.fs.counts().opens);
        tell(&fixture.invalidator, node);
        fixture.invalidator.flush();
        assert_eq!(fs::read(&path)?, content);
        assert_eq!(Counts::get(&fixture.fs.counts().opens) - before, opens);
    }
    Ok(())
}

#[test]
fn a_missing_directory_is_an_error_with_its_path() {
    let missing = Path::new("/nonexistent/workspace");
    let error = match mount(missing, MemoryFs::new(false), AdapterOptions::live(serving(false))) {
        Ok(_) => panic!("mounted nowhere"),
        Err(error) => error.to_string(),
    };
    assert!(error.contains("/nonexistent/workspace"), "{error}");
}
