//! The live mount against the file system below it: the same steps on both, the same answers.

use std::ffi::OsStr;
use std::fmt::Debug;
use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt, PermissionsExt, symlink};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::Command;

use rustix::fs::{
    AtFlags, CWD, FallocateFlags, FileType, FlockOperation, Mode as Bits, OFlags, RenameFlags, SeekFrom,
    Timespec, Timestamps,
};

use rustix::io::Errno;

use crate::support::process::poll_until;
use crate::support::{Mode, TestResult, Workspace};

/// Makes the tree that the steps work on.
const TREE: &str = "\
mkdir -p t/d/e t/full/x t/empty
echo small > t/a
seq 40000 > t/big
echo linked > t/h1
ln t/h1 t/h2
echo x > t/d/x
echo y > t/d/y
echo z > t/d/e/z
echo f > t/full/x/f
ln -s a t/link
printf '#!/bin/sh\\necho ran\\n' > t/run
chmod 755 t/run
chmod 640 t/d/y
";

/// Answers, in words; whatever may differ between file systems is left out.
struct Log {
    root: PathBuf,
    lines: Vec<String>,
}

impl Log {
    fn at(&self, path: &str) -> PathBuf {
        self.root.join(path)
    }

    fn note(&mut self, what: &str, answer: impl Debug) {
        self.lines.push(format!("{what}: {answer:?}"));
    }

    fn answer<T: Debug>(&mut self, what: &str, result: rustix::io::Result<T>) {
        self.note(what, result);
    }

    fn result<T: Debug>(&mut self, what: &str, result: std::io::Result<T>) {
        self.note(what, result.map_err(|error| error.raw_os_error()));
    }

    /// Kind, mode, links and size.
    fn stat(&mut self, path: &str) {
        let stat = fs::symlink_metadata(self.at(path));
        let seen = stat.map(|stat| {
            let size = if stat.is_dir() { 0 } else { stat.len() };
            let links = if stat.is_dir() { 0 } else { stat.nlink() };
            (format!("{:o}", stat.mode()), links, size)
        });
        self.result(path, seen);
    }

    fn fstat(&mut self, what: &str, file: &File) {
        let seen = file.metadata().map(|stat| (format!("{:o}", stat.mode()), stat.nlink(), stat.len()));
        self.result(what, seen);
    }

    fn content(&mut self, path: &str) {
        let content = fs::read(self.at(path)).map(|bytes| String::from_utf8_lossy(&bytes).into_owned());
        self.result(path, content.map(|text| if text.len() > 60 { text.len().to_string() } else { text }));
    }

    fn through(&mut self, what: &str, file: &File) {
        let mut bytes = vec![0; 1 << 20];
        let read = file.read_at(&mut bytes, 0).map(|length| {
            bytes.truncate(length);
            if length > 60 { length.to_string() } else { String::from_utf8_lossy(&bytes).into_owned() }
        });
        self.result(what, read);
    }

    fn names(&mut self, path: &str) {
        let names = fs::read_dir(self.at(path)).map(|entries| {
            let mut names: Vec<_> = entries.map(|entry| entry.unwrap().file_name()).collect();
            names.sort();
            names
        });
        self.result(path, names);
    }

    fn ino(&self, path: &str) -> u64 {
        fs::symlink_metadata(self.at(path)).unwrap().ino()
    }

    fn rename(&mut self, from: &str, to: &str, flags: RenameFlags) {
        let renamed = rustix::fs::renameat_with(CWD, self.at(from), CWD, self.at(to), flags);
        // POSIX allows both for a directory that is not empty.
        let full = |error| if error == Errno::EXIST && flags.is_empty() { Errno::NOTEMPTY } else { error };
        let renamed = renamed.map_err(full);
        self.answer(&format!("rename {from} {to}"), renamed);
    }
}

fn read_write(path: &Path) -> File {
    File::options().read(true).write(true).open(path).unwrap()
}

fn links(log: &mut Log) {
    for path in ["a", "big", "h1", "h2", "d", "d/y", "link", "run"] {
        log.stat(path);
    }
    log.note("one file", log.ino("h1") == log.ino("h2"));
    let reader = File::open(log.at("h1")).unwrap();
    File::options().append(true).open(log.at("h2")).unwrap().write_all(b"more\n").unwrap();
    log.fstat("read while written", &reader);
    log.through("read while written", &reader);
    log.content("h1");
    log.note("still one file", log.ino("h1") == log.ino("h2"));
    log.result("link", fs::hard_link(log.at("a"), log.at("a2")));
    log.note("linked", log.ino("a") == log.ino("a2"));
    log.stat("a");
    log.result("unlink a", fs::remove_file(log.at("a")));
    log.stat("a2");
    log.result("unlink h1", fs::remove_file(log.at("h1")));
    log.stat("h2");
    log.fstat("reader", &reader);
    log.rename("a2", "a", RenameFlags::empty());
    log.result("link again", fs::hard_link(log.at("a"), log.at("h2")));
}

fn fewer_links(log: &mut Log) {
    log.result("unlink", fs::remove_file(log.at("h1")));
    log.stat("h2");
    log.content("h2");
    log.result("link", fs::hard_link(log.at("h2"), log.at("h3")));
    log.stat("h2");
    log.stat("h3");
    log.result("symlink", fs::hard_link(log.at("link"), log.at("link2")));
    log.stat("link2");
}

fn unlinked(log: &mut Log) {
    let (read_only, writable) = (File::open(log.at("d/x")).unwrap(), read_write(&log.at("d/y")));
    let path_only = rustix::fs::open(log.at("run"), OFlags::PATH | OFlags::CLOEXEC, Bits::empty()).unwrap();
    for path in ["d/x", "d/y", "run"] {
        log.result(path, fs::remove_file(log.at(path)));
        log.stat(path);
    }
    log.fstat("d/x", &read_only);
    log.through("d/x", &read_only);
    log.result("chmod", read_only.set_permissions(fs::Permissions::from_mode(0o600)));
    log.result("truncate a reader", read_only.set_len(1));
    log.fstat("d/x", &read_only);
    log.fstat("d/y", &writable);
    log.result("truncate", writable.set_len(1));
    log.result("write", writable.write_at(b"abc", 1));
    log.through("d/y", &writable);
    log.fstat("d/y", &writable);
    let stat = rustix::fs::fstat(&path_only).map(|stat| (stat.st_nlink, stat.st_size));
    log.answer("path only", stat);
    log.names("d");
    for (what, file) in [("reader", &read_only), ("writer", &writable)] {
        let again = File::open(format!("/proc/self/fd/{}", file.as_raw_fd()));
        log.result(what, again.map(|mut file| file.read_to_string(&mut String::new()).is_ok()));
    }
    let big = File::open(log.at("big")).unwrap();
    log.rename("a", "big", RenameFlags::empty());
    log.fstat("replaced", &big);
    log.through("replaced", &big);
    log.content("big");
    log.stat("a");
    let dir = File::open(log.at("empty")).unwrap();
    log.result("rmdir", fs::remove_dir(log.at("empty")));
    let links = dir.metadata().map(|stat| stat.nlink());
    log.result("removed directory", links);
}

fn renames(log: &mut Log) {
    log.rename("a", "run", RenameFlags::NOREPLACE);
    log.rename("a", "moved", RenameFlags::NOREPLACE);
    let open = File::open(log.at("moved")).unwrap();
    log.rename("moved", "d/e/again", RenameFlags::empty());
    log.fstat("open while renamed", &open);
    log.through("open while renamed", &open);
    log.content("d/e/again");
    log.rename("d/e/again", "full", RenameFlags::EXCHANGE);
    log.content("full");
    log.names("d/e/again");
    log.rename("d/e/again", "full", RenameFlags::EXCHANGE);
    log.content("full/x/f");
    let inside = File::open(log.at("d/e/z")).unwrap();
    log.rename("d", "empty", RenameFlags::empty());
    log.through("below a renamed directory", &inside);
    log.fstat("below a renamed directory", &inside);
    log.names("empty/e");
    log.rename("empty", "full", RenameFlags::empty());
    log.rename("empty", "run", RenameFlags::empty());
    log.rename("run", "empty", RenameFlags::empty());
    log.rename("absent", "run", RenameFlags::empty());
    log.rename("empty", "empty/e/below", RenameFlags::empty());
    log.rename("h1", "h2", RenameFlags::empty());
    log.stat("h1");
    log.stat("h2");
    log.result("rmdir", fs::remove_dir(log.at("full")));
    log.result("unlink", fs::remove_file(log.at("full")));
    log.result("mkdir", fs::create_dir(log.at("full")));
}

fn contents(log: &mut Log) {
    let (reader, ino) = (File::open(log.at("big")).unwrap(), log.ino("big"));
    let writer = read_write(&log.at("big"));
    writer.write_at(b"X", 0).unwrap();
    log.note("same number", (writer.metadata().unwrap().ino() == ino, log.ino("big") == ino));
    log.note("same number", reader.metadata().unwrap().ino() == ino);
    log.result("exclusive", File::options().write(true).create_new(true).open(log.at("a")).map(drop));
    let append = || File::options().append(true).open(log.at("a")).unwrap();
    let (mut one, mut two) = (append(), append());
    for _ in 0..3 {
        one.write_all(b"1").unwrap();
        two.write_all(b"2").unwrap();
    }
    log.content("a");
    let holes = File::options().read(true).write(true).create(true).truncate(true).open(log.at("holes"));
    let holes = holes.unwrap();
    holes.set_len(1 << 20).unwrap();
    holes.write_at(b"end", (1 << 20) - 3).unwrap();
    log.answer("data", rustix::fs::seek(&holes, SeekFrom::Data((1 << 20) - 3)));
    log.answer("hole", rustix::fs::seek(&holes, SeekFrom::Hole(0)));
    log.answer("allocate", rustix::fs::fallocate(&holes, FallocateFlags::empty(), 0, 1 << 21));
    log.fstat("allocated", &holes);
    log.content("holes");
    let copy = File::options().read(true).write(true).create_new(true).open(log.at("copy")).unwrap();
    let mut copied = 0;
    loop {
        match rustix::fs::copy_file_range(&writer, None, &copy, None, 1 << 22) {
            Ok(0) => break,
            Ok(length) => copied += length,
            Err(error) => return log.note("copy_file_range", error),
        }
    }
    log.note("copied", copied);
    let same = fs::read(log.at("copy")).unwrap() == fs::read(log.at("big")).unwrap();
    log.note("the same", same);
    log.result("truncate", File::create(log.at("big")).map(drop));
    log.stat("big");
    let lock = |operation| rustix::fs::flock(File::open(log.at("a")).unwrap(), operation);
    let held = File::open(log.at("a")).unwrap();
    rustix::fs::flock(&held, FlockOperation::LockExclusive).unwrap();
    let second = lock(FlockOperation::NonBlockingLockShared);
    log.answer("locked", second);
    log.result("run", Command::new(log.at("run")).output().map(|output| output.stdout));
    // Not by this process: a child that another test starts just now would have the file open for writing, too.
    let append = Command::new("sh").args(["-c", "echo 'echo twice' >> \"$0\""]).arg(log.at("run")).status();
    assert!(append.unwrap().success());
    log.result("run", Command::new(log.at("run")).output().map(|output| output.stdout));
}

fn attributes(log: &mut Log) {
    let times = |atime: (i64, i64), mtime: (i64, i64)| Timestamps {
        last_access: Timespec { tv_sec: atime.0, tv_nsec: atime.1 },
        last_modification: Timespec { tv_sec: mtime.0, tv_nsec: mtime.1 },
    };
    let omit = (0, rustix::fs::UTIME_OMIT);
    for path in ["a", "big", "h1", "link", "d"] {
        let set = |times| rustix::fs::utimensat(CWD, log.at(path), &times, AtFlags::SYMLINK_NOFOLLOW);
        let both = (set(times((1_000, 1), (2_000, 999_999_999))), set(times(omit, (-3, 7))));
        log.note("times", both);
        let stat = fs::symlink_metadata(log.at(path)).unwrap();
        log.note(path, (stat.atime(), stat.atime_nsec(), stat.mtime(), stat.mtime_nsec()));
    }
    for (path, mode) in [("a", 0o4755), ("d", 0o3777), ("run", 0o2711), ("big", 0)] {
        log.result("chmod", fs::set_permissions(log.at(path), fs::Permissions::from_mode(mode)));
        log.stat(path);
    }
    // Only the superuser may give things away.
    let shared = log.at("shared");
    fs::create_dir(&shared).unwrap();
    if rustix::process::geteuid().is_root() {
        std::os::unix::fs::chown(&shared, None, Some(12_345)).unwrap();
    }
    fs::set_permissions(&shared, fs::Permissions::from_mode(0o2775)).unwrap();
    fs::create_dir(shared.join("dir")).unwrap();
    File::create(shared.join("file")).unwrap();
    let mut set_group = File::options();
    set_group.write(true).create_new(true).mode(0o2755).open(shared.join("set-group")).unwrap();
    for path in ["shared", "shared/dir", "shared/file", "shared/set-group"] {
        log.stat(path);
        log.note("group", fs::metadata(log.at(path)).unwrap().gid());
    }
    log.result("open", File::open(log.at("big")).map(drop));
    log.result("chmod", fs::set_permissions(log.at("big"), fs::Permissions::from_mode(0o400)));
    log.result("open", File::open(log.at("big")).map(drop));
}

/// Files that are made without a name, and get one.
fn unnamed(log: &mut Log) {
    for dir in ["d", "full/x"] {
        let flags = OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC;
        let made = rustix::fs::openat(CWD, log.at(dir), flags, Bits::from_raw_mode(0o640));
        let mut file = match made {
            Ok(file) => File::from(file),
            Err(error) => return log.note("unnamed", error),
        };
        log.result("write", file.write_all(b"content"));
        log.fstat("unnamed", &file);
        log.names(dir);
        let path = format!("/proc/self/fd/{}", file.as_raw_fd());
        let name = log.at(dir).join("named");
        log.answer("link", rustix::fs::linkat(CWD, path, CWD, &name, AtFlags::SYMLINK_FOLLOW));
        log.fstat("named", &file);
        log.content(&format!("{dir}/named"));
        log.note("one file", fs::metadata(&name).unwrap().ino() == file.metadata().unwrap().ino());
        let exclusive = flags | OFlags::EXCL;
        let made = rustix::fs::openat(CWD, log.at(dir), exclusive, Bits::RWXU);
        let linked = made.and_then(|file| {
            let path = format!("/proc/self/fd/{}", file.as_raw_fd());
            rustix::fs::linkat(CWD, path, CWD, log.at(dir).join("other"), AtFlags::SYMLINK_FOLLOW)
        });
        log.answer("exclusive", linked);
    }
}

fn names(log: &mut Log) {
    let long = "n".repeat(255);
    log.result("255 bytes", fs::write(log.at(&long), "x"));
    log.result("256 bytes", fs::write(log.at(&"n".repeat(256)), "x"));
    log.result("bytes", fs::write(log.root.join(OsStr::from_bytes(b"d/\xff\xfe\n")), "x"));
    log.answer("pipe", rustix::fs::mknodat(CWD, log.at("d/pipe"), FileType::Fifo, Bits::RWXU, 0));
    log.result("socket", UnixListener::bind(log.at("s")).map(drop));
    log.stat("d/pipe");
    log.result("link", symlink("nowhere", log.at("d/broken")));
    log.stat("d/broken");
    log.names("d");
    log.result("rename", fs::rename(log.at(&long), log.at("d").join(&long)));
    // Deeper than any path can be.
    let mut dir: OwnedFd = File::open(log.at("d")).unwrap().into();
    let name = "deep".repeat(50);
    for _ in 0..40 {
        if let Err(error) = rustix::fs::mkdirat(&dir, &*name, Bits::RWXU) {
            return log.note("deep", error);
        }
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        dir = rustix::fs::openat(&dir, &*name, flags, Bits::empty()).unwrap();
    }
    let flags = OFlags::RDWR | OFlags::CREATE | OFlags::CLOEXEC;
    let file = rustix::fs::openat(dir.as_fd(), "leaf", flags, Bits::RWXU);
    let written = file.map(|file| File::from(file).write_all(b"deep").is_ok());
    log.answer("leaf", written);
    let file = rustix::fs::openat(dir.as_fd(), "leaf", OFlags::RDONLY | OFlags::CLOEXEC, Bits::empty());
    let mut text = String::new();
    log.note("leaf", file.map(|file| File::from(file).read_to_string(&mut text).is_ok()));
    log.note("leaf", text);
    log.answer("rename", rustix::fs::renameat(&dir, "leaf", &dir, "moved"));
    log.answer("unlink", rustix::fs::unlinkat(&dir, "moved", AtFlags::empty()));
    log.result("remove all", fs::remove_dir_all(log.at("d").join(name)));
}

fn removal(log: &mut Log) {
    log.result("rmdir full", fs::remove_dir(log.at("full")));
    log.result("unlink dir", fs::remove_file(log.at("d")));
    log.result("rmdir file", fs::remove_dir(log.at("a")));
    log.result("remove all", fs::remove_dir_all(log.at("d")));
    log.result("again", fs::create_dir(log.at("d")));
    log.names("d");
    log.result("as a file", fs::remove_dir(log.at("d")));
    log.result("as a file", fs::write(log.at("d"), "now a file"));
    log.content("d");
    log.names("");
}

/// Where the tree comes from that a scenario changes.
#[derive(Debug, Clone, Copy)]
enum Origin {
    /// There before the workspace was mounted.
    Base,
    /// Written through the mount.
    Written,
    /// A layer.
    Virtual,
}

fn compare(scenario: fn(&mut Log)) -> TestResult {
    for origin in [Origin::Base, Origin::Written, Origin::Virtual] {
        let ws = Workspace::new(Mode::Mounted)?.config("[tasks.build]\ncommand = \"sh build.sh\"\n")?;
        ws.file("build.sh", TREE)?;
        let native = ws.outside().join("n");
        fs::create_dir(&native)?;
        let build = |at: &Path| Command::new("sh").args(["-c", TREE]).current_dir(at).status();
        assert!(build(&native)?.success());
        match origin {
            Origin::Base => {
                assert!(build(ws.root())?.success());
                ws.mount()?;
            }
            Origin::Written => {
                ws.mount()?;
                assert!(build(ws.root())?.success());
            }
            Origin::Virtual => {
                ws.mount()?;
                ws.run(["build"])?.stored_miss();
                ws.remove("t")?;
                ws.run(["build"])?.hit();
            }
        }
        let answers = |root: PathBuf| {
            let mut log = Log { root, lines: Vec::new() };
            scenario(&mut log);
            log
        };
        let (ours, theirs) = (answers(ws.path("t")), answers(native.join("t")));
        for (ours, theirs) in ours.lines.iter().zip(&theirs.lines) {
            assert_eq!(ours, theirs, "{origin:?}: ours is left, native right");
        }
        assert_eq!(ours.lines.len(), theirs.lines.len());
        let tree = crate::support::tree::snapshot(&ws.path("t"))?;
        // A child that another test is about to start has our descriptors until it is another program.
        poll_until("the unmount", || ws.vout(["unmount"]).is_ok_and(|output| output.status.success()));
        assert_eq!(crate::support::tree::snapshot(&ws.path("t"))?, tree, "{origin:?}: after unmounting");
    }
    Ok(())
}

macro_rules! scenarios {
    ($($name:ident: $scenario:ident),+ $(,)?) => {$(
        #[test]
        fn $name() -> TestResult {
            compare($scenario)
        }
    )+};
}

scenarios! {
    names_of_one_file_are_one_file: links,
    names_can_go_one_by_one: fewer_links,
    files_outlive_their_names: unlinked,
    renaming_is_that_of_the_base: renames,
    contents_are_those_of_the_base: contents,
    attributes_are_those_of_the_base: attributes,
    files_can_be_made_without_a_name: unnamed,
    all_names_and_kinds_of_the_base_are_possible: names,
    removal_is_that_of_the_base: removal,
}
