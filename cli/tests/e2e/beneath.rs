//! What the live mount shows of changes that do not come through it, and of other mounts below it.

use std::fs::{self, File};
use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use rustix::fs::Dir;
use rustix::io::Errno;
use rustix::mount::{MountFlags, UnmountFlags};

use crate::support::process::poll_until;
use crate::support::{Mode, TestResult, Workspace};

/// A workspace that is mounted elsewhere, so that its own path leads beneath the mount.
fn mounted_elsewhere() -> Result<(Workspace, PathBuf), Box<dyn std::error::Error>> {
    let config =
        "[tasks.build]\ncommand = \"mkdir -p dist; cat source > dist/out; date > dist/$(cat source)\"\n";
    let ws = Workspace::new(Mode::Mounted)?.config(config)?;
    let at = ws.outside().join("at");
    fs::create_dir(&at)?;
    for (name, content) in [("file", "old"), ("gone", "x"), ("source", "one")] {
        ws.file(name, content)?;
    }
    ws.vout([std::ffi::OsStr::new("mount"), "--at".as_ref(), at.as_os_str()])?.ok();
    Ok((ws, at))
}

fn names(dir: &mut Dir) -> Vec<String> {
    let entries = dir.map(|entry| entry.unwrap().file_name().to_str().unwrap().to_owned());
    let mut names: Vec<_> = entries.filter(|name| !name.starts_with('.')).collect();
    names.sort();
    names
}

/// Goal: nothing that the kernel holds of the mount is older than a second.
#[test]
fn changes_beneath_the_mount_show_within_a_second() -> TestResult {
    let (ws, at) = mounted_elsewhere()?;
    let mut open = File::open(at.join("file"))?;
    let mut dir = Dir::read_from(File::open(&at)?)?;
    assert_eq!(fs::read(at.join("file"))?, b"old");
    assert_eq!(names(&mut dir), ["file", "gone", "source", "vout.toml"]);
    assert!(at.join("gone").exists() && !at.join("new").exists());
    // The same size, and written into the same file.
    ws.file("file", "NEW")?;
    ws.file("new", "new")?;
    ws.remove("gone")?;
    assert!(at.join("new").exists(), "absence is not kept");
    dir.rewind();
    assert_eq!(names(&mut dir), ["file", "new", "source", "vout.toml"]);
    poll_until("the new content", || fs::read(at.join("file")).is_ok_and(|content| content == b"NEW"));
    poll_until("the removal", || !at.join("gone").exists());
    let mut text = String::new();
    open.read_to_string(&mut text)?;
    assert_eq!(text, "NEW", "through what was open");
    // Another file under the name.
    ws.file("other", "another, longer one")?;
    fs::rename(ws.path("other"), ws.path("file"))?;
    poll_until("the other file", || fs::read(at.join("file")).is_ok_and(|content| content.len() == 19));
    assert_eq!(open.metadata()?.len(), 3, "what is open stays what it was");
    fs::write(at.join("file"), "through")?;
    assert_eq!(ws.read("file")?, "through");
    Ok(())
}

/// Goal: after a hit nothing old is left in the kernel, not for the time of a blink.
#[test]
fn a_hit_shows_at_once() -> TestResult {
    let (ws, at) = mounted_elsewhere()?;
    for source in ["two", "one"] {
        ws.file("source", source)?;
        poll_until("the source", || fs::read_to_string(at.join("source")).is_ok_and(|text| text == source));
        ws.run(["build"])?.stored_miss();
    }
    let mut dir = Dir::read_from(File::open(at.join("dist"))?)?;
    for source in ["two", "one", "two", "one"] {
        let other = if source == "one" { "two" } else { "one" };
        let gone = fs::metadata(at.join("dist").join(other));
        let before = fs::metadata(at.join("dist/out"))?;
        ws.file("source", source)?;
        ws.run(["build"])?.hit();
        assert_eq!(fs::read_to_string(at.join("dist/out"))?, source);
        assert_ne!(fs::metadata(at.join("dist/out"))?.mtime_nsec(), before.mtime_nsec());
        assert!(at.join("dist").join(source).exists(), "no absence is kept");
        if gone.is_ok() {
            dir.rewind();
            let mut expected = vec![source, "out"];
            // The first runs left both files, the second of them archived both.
            expected.extend(fs::metadata(at.join("dist").join(other)).is_ok().then_some(other));
            expected.sort_unstable();
            assert_eq!(names(&mut dir), expected, "in a directory that was open");
        }
    }
    Ok(())
}

struct Mounted(PathBuf);

impl Mounted {
    fn tmpfs(at: &Path) -> std::io::Result<Self> {
        fs::create_dir_all(at)?;
        rustix::mount::mount("vout-e2e", at, "tmpfs", MountFlags::empty(), None)?;
        Ok(Self(at.to_owned()))
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        rustix::mount::unmount(&self.0, UnmountFlags::DETACH).ok();
    }
}

/// Goal: mounts below the workspace are part of what the live mount shows, and files of different file
/// systems stay apart although they have the same inode numbers. Only root can mount them.
#[test]
fn mounts_below_the_workspace_show_and_stay_apart() -> TestResult {
    if !rustix::process::geteuid().is_root() {
        return Ok(());
    }
    let ws = Workspace::new(Mode::Mounted)?.config("")?;
    ws.file("here", "here")?;
    let mounts = [Mounted::tmpfs(&ws.path("a"))?, Mounted::tmpfs(&ws.path("b"))?];
    for name in ["a", "b"] {
        ws.file(format!("{name}/file"), name)?;
        ws.file(format!("{name}/dir/below"), name)?;
    }
    let number = |path: &str| fs::metadata(ws.path(path)).unwrap().ino();
    assert_eq!(number("a/file"), number("b/file"), "two file systems, one number");
    ws.mount()?;
    assert_ne!(number("a/file"), number("b/file"));
    assert_ne!(number("a/dir"), number("b/dir"));
    assert_eq!(ws.read("a/file")? + &ws.read("b/dir/below")?, "ab");
    ws.file("a/file", "changed")?;
    assert_eq!(ws.read("b/file")?, "b");
    let crossing = |result: std::io::Result<()>| result.err().and_then(|error| Errno::from_io_error(&error));
    assert_eq!(crossing(fs::rename(ws.path("a/file"), ws.path("b/other"))), Some(Errno::XDEV));
    assert_eq!(crossing(fs::hard_link(ws.path("here"), ws.path("a/here"))), Some(Errno::XDEV));
    fs::rename(ws.path("a/file"), ws.path("a/moved"))?;
    fs::remove_dir_all(ws.path("b/dir"))?;
    assert_eq!(crossing(fs::remove_dir(ws.path("b"))), Some(Errno::NOTEMPTY));
    fs::remove_file(ws.path("b/file"))?;
    assert_eq!(crossing(fs::remove_dir(ws.path("b"))), Some(Errno::BUSY));
    assert_eq!(fs::read_dir(ws.root())?.count(), 4);
    ws.vout(["unmount"])?.ok();
    assert_eq!(ws.read("a/moved")?, "changed");
    drop(mounts);
    Ok(())
}
