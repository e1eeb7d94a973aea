//! What a hit puts in place: everything a task left, as it left it.

use std::ffi::OsStr;
use std::fs;
use std::mem::MaybeUninit;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use rustix::fs::inotify;
use rustix::io::Errno;

use crate::in_both_modes;
use crate::support::process::poll_until;
use crate::support::tree::{assert_same_but_shifted, below, snapshot, without_times};
use crate::support::{Mode, TestResult, Workspace};

in_both_modes!(
    kinds_modes_links_and_times_survive,
    preserved_times_are_exact,
    sparse_files_stay_sparse,
    a_directory_renamed_into_place_counts_with_its_content,
    temporary_files_never_existed,
    deletions_are_replayed,
    stale_files_of_earlier_outputs_are_gone,
    only_a_changed_mode_is_replayed,
    a_hit_in_place_changes_nothing,
    a_hundred_files_are_restored,
    a_pipe_among_the_outputs_is_refused_by_name,
);

fn task(mode: Mode, script: &str, settings: &str) -> std::io::Result<Workspace> {
    let ws =
        Workspace::new(mode)?.config(&format!("[tasks.build]\ncommand = \"sh build.sh\"\n{settings}\n"))?;
    ws.file("build.sh", script)?;
    ws.file("src", "one\n")?;
    ws.mount_if_asked()?;
    Ok(ws)
}

/// Leaves one of everything in `dist`.
const ZOO: &str = "\
mkdir -p dist/empty dist/private dist/deep/er
chmod 700 dist/private
echo plain > dist/plain
echo run > dist/tool && chmod 755 dist/tool
echo secret > dist/private/key && chmod 400 dist/private/key
: > dist/nothing
ln -s plain dist/link
ln -s /nowhere/at/all dist/broken
ln -s deep dist/dirlink
echo shared > dist/hard1 && ln dist/hard1 dist/deep/hard2 && ln dist/hard1 dist/deep/er/hard3
printf x > \"$(printf 'dist/caf\\351')\"
printf y > 'dist/a name with spaces'
printf z > \"$(printf 'dist/new\\nline')\"
touch -d '2001-02-03 04:05:06.123456789' dist/plain
touch -d '2001-02-03 04:05:07.987654321' dist/tool
";

fn kinds_modes_links_and_times_survive(mode: Mode) -> TestResult {
    let ws = task(mode, ZOO, "")?;
    ws.run(["build"])?.stored_miss();
    let before = snapshot(&ws.path("dist"))?;
    assert!(before.contains_key(Path::new(OsStr::from_bytes(b"caf\xe9"))));
    assert_eq!(before[Path::new("hard1")].same_as, before[Path::new("deep/hard2")].same_as);
    ws.remove("dist")?;
    ws.run(["build"])?.hit();
    assert_same_but_shifted(&before, &snapshot(&ws.path("dist"))?);
    // And they stay what they are when the mount goes.
    ws.vout(["unmount"])?;
    assert_same_but_shifted(&before, &snapshot(&ws.path("dist"))?);
    Ok(())
}

fn preserved_times_are_exact(mode: Mode) -> TestResult {
    let ws = task(mode, ZOO, "mtime = \"preserve\"")?;
    ws.run(["build"])?.stored_miss();
    let time = |name: &str| -> std::io::Result<(i64, i64)> {
        let meta = ws.path(name).symlink_metadata()?;
        Ok((meta.mtime(), meta.mtime_nsec()))
    };
    let before = (time("dist/plain")?, time("dist/tool")?, time("dist/hard1")?);
    ws.remove("dist")?;
    ws.run(["build"])?.hit();
    assert_eq!((time("dist/plain")?, time("dist/tool")?, time("dist/hard1")?), before);
    assert_eq!(before.0.1, 123_456_789);
    Ok(())
}

fn sparse_files_stay_sparse(mode: Mode) -> TestResult {
    let ws = task(
        mode,
        "truncate -s 64M hole\nprintf end | dd of=hole bs=1 seek=50000000 conv=notrunc 2>&1\n",
        "",
    )?;
    ws.run(["build"])?.stored_miss();
    ws.remove("hole")?;
    ws.run(["build"])?.hit();
    let content = fs::read(ws.path("hole"))?;
    assert_eq!(content.len(), 64 << 20);
    assert_eq!(&content[50_000_000..50_000_003], b"end");
    ws.vout(["unmount"])?;
    let used = ws.path("hole").metadata()?.blocks() * 512;
    assert!(used < 4 << 20, "{used} bytes of disk for three of content");
    Ok(())
}

/// Archives of such a directory came out empty in a system this one learned from.
fn a_directory_renamed_into_place_counts_with_its_content(mode: Mode) -> TestResult {
    let script = "rm -rf tmp dist\nmkdir -p tmp/sub\ncp src tmp/sub/file\necho x > tmp/x\nmv tmp dist\n";
    let ws = task(mode, script, "output = [\"dist/**\"]")?;
    ws.run(["build"])?.stored_miss();
    ws.remove("dist")?;
    ws.run(["build"])?.hit();
    assert_eq!((ws.read("dist/sub/file")?, ws.read("dist/x")?), ("one\n".into(), "x\n".into()));
    assert!(!ws.exists("tmp"));
    // Again with the earlier `dist` in the way.
    ws.file("src", "two\n")?;
    ws.run(["build"])?.stored_miss();
    assert_eq!(ws.read("dist/sub/file")?, "two\n");
    Ok(())
}

fn temporary_files_never_existed(mode: Mode) -> TestResult {
    let ws = task(
        mode,
        "echo t > scratch\nmkdir work\nsort src > work/s\ncat work/s > out\nrm -r scratch work\n",
        "",
    )?;
    let run = ws.run(["build"])?.stored_miss();
    assert_eq!(run.number("outputs"), 1, "{run}");
    assert!(!ws.exists("scratch") && !ws.exists("work"));
    ws.remove("out")?;
    ws.run(["build"])?.hit();
    assert!(!ws.exists("scratch") && !ws.exists("work"));
    Ok(())
}

fn deletions_are_replayed(mode: Mode) -> TestResult {
    let ws = task(mode, "rm -rf cache obsolete\necho clean > out\n", "")?;
    let fill = || -> std::io::Result<()> {
        ws.file("cache/deep/x", "x")?;
        ws.file("obsolete", "o")
    };
    fill()?;
    ws.run(["build"])?.stored_miss();
    assert!(!ws.exists("cache") && !ws.exists("obsolete"));
    fill()?;
    ws.run(["build"])?.hit();
    assert!(!ws.exists("cache") && !ws.exists("obsolete"));
    ws.vout(["unmount"])?;
    assert!(!ws.exists("cache") && !ws.exists("obsolete"));
    Ok(())
}

fn stale_files_of_earlier_outputs_are_gone(mode: Mode) -> TestResult {
    let ws = task(mode, "rm -rf dist\nmkdir dist\necho x > dist/$(cat src)\n", "")?;
    ws.run(["build"])?.stored_miss();
    assert!(ws.exists("dist/one"));
    ws.file("src", "two\n")?;
    ws.run(["build"])?.stored_miss();
    assert!(ws.exists("dist/two") && !ws.exists("dist/one"));
    ws.file("src", "one\n")?;
    ws.run(["build"])?.hit();
    assert!(ws.exists("dist/one") && !ws.exists("dist/two"));
    let names: Vec<_> = fs::read_dir(ws.path("dist"))?.map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(names, ["one"]);
    Ok(())
}

fn only_a_changed_mode_is_replayed(mode: Mode) -> TestResult {
    let ws = task(mode, "chmod 750 src\n", "")?;
    fs::set_permissions(ws.path("src"), std::os::unix::fs::PermissionsExt::from_mode(0o644))?;
    ws.run(["build"])?.stored_miss();
    assert_eq!(ws.path("src").metadata()?.mode() & 0o777, 0o750);
    fs::set_permissions(ws.path("src"), std::os::unix::fs::PermissionsExt::from_mode(0o644))?;
    ws.run(["build"])?.hit();
    assert_eq!(ws.path("src").metadata()?.mode() & 0o777, 0o750);
    assert_eq!(ws.read("src")?, "one\n");
    Ok(())
}

/// Goal: build tools and watchers do not wake up for nothing. Method: compare all times, and listen.
fn a_hit_in_place_changes_nothing(mode: Mode) -> TestResult {
    let ws = task(mode, ZOO, "")?;
    // A live mount tells what a run changed a moment after it, to those who watch by then.
    let early = Watcher::on(ws.root(), std::iter::empty())?;
    let told = || poll_until("the news of a run", || !early.events().unwrap().is_empty());
    ws.run(["build"])?.stored_miss();
    told();
    ws.remove("dist")?;
    early.events()?;
    ws.run(["build"])?.hit();
    told();
    let before = snapshot(ws.root())?;
    let watcher = Watcher::on(ws.root(), before.keys())?;
    ws.run(["build"])?.hit();
    assert_eq!(snapshot(ws.root())?, before);
    assert_eq!(watcher.events()?, Vec::<String>::new());
    // The watcher does hear.
    ws.file("dist/plain", "loud")?;
    assert!(!watcher.events()?.is_empty());
    Ok(())
}

/// Listens to all directories of a tree for changes.
struct Watcher(std::os::fd::OwnedFd);

impl Watcher {
    fn on<'a>(root: &Path, paths: impl Iterator<Item = &'a PathBuf>) -> std::io::Result<Self> {
        use inotify::WatchFlags as Watch;
        let changes =
            Watch::ATTRIB | Watch::MODIFY | Watch::CREATE | Watch::DELETE | Watch::MOVE | Watch::CLOSE_WRITE;
        let fd = inotify::init(inotify::CreateFlags::NONBLOCK | inotify::CreateFlags::CLOEXEC)?;
        inotify::add_watch(&fd, root, changes)?;
        for path in paths.map(|path| root.join(path)).filter(|path| path.is_dir() && !path.is_symlink()) {
            inotify::add_watch(&fd, path, changes)?;
        }
        Ok(Self(fd))
    }

    /// Returns what happened since the last call.
    fn events(&self) -> std::io::Result<Vec<String>> {
        let mut buffer = [MaybeUninit::uninit(); 4096];
        let mut reader = inotify::Reader::new(&self.0, &mut buffer);
        let mut seen = Vec::new();
        loop {
            match reader.next() {
                Ok(event) => seen.push(format!("{:?} of {:?}", event.events(), event.file_name())),
                Err(Errno::AGAIN) => return Ok(seen),
                Err(error) => return Err(error.into()),
            }
        }
    }
}

fn a_hundred_files_are_restored(mode: Mode) -> TestResult {
    let script =
        "mkdir -p d\nfor i in $(seq 100); do mkdir -p d/$((i % 7)); seq $i > d/$((i % 7))/$i; done\n";
    let ws = task(mode, script, "")?;
    ws.run(["build"])?.stored_miss();
    let before = snapshot(ws.root())?;
    ws.remove("d")?;
    let hit = ws.run(["build"])?.hit();
    assert!(hit.number("outputs") >= 100, "{hit}");
    let after = snapshot(ws.root())?;
    assert_eq!(without_times(before.clone()), without_times(after.clone()));
    assert_same_but_shifted(&below(before, "d"), &below(after, "d"));
    // A reader that is not the test itself.
    let sum = Command::new("sh").args(["-c", "cat d/*/* | wc -l"]).current_dir(ws.root()).output()?;
    assert_eq!(String::from_utf8(sum.stdout)?.trim(), "5050");
    Ok(())
}

fn a_pipe_among_the_outputs_is_refused_by_name(mode: Mode) -> TestResult {
    let ws = task(mode, "mkdir -p dist\nmkfifo dist/pipe\necho x > dist/x\n", "")?;
    ws.run(["build"])?.not_stored(&["dist/pipe"]);
    assert!(ws.exists("dist/pipe") && ws.exists("dist/x"));
    Ok(())
}
