//! What those hear who watch the live mount with inotify.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::path::Path;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::inotify::{self, CreateFlags, ReadFlags, WatchFlags};

use crate::support::{Mode, TestResult, Workspace};

/// Longest that events may take to arrive.
const PATIENCE: Timespec = Timespec { tv_sec: 20, tv_nsec: 0 };

/// How long nothing may arrive until that is believed.
const SILENCE: Timespec = Timespec { tv_sec: 0, tv_nsec: 700_000_000 };

struct Watcher {
    inotify: OwnedFd,
    heard: BTreeSet<(String, String)>,
}

impl Watcher {
    fn new(paths: &[&Path]) -> io::Result<Self> {
        let inotify = inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK)?;
        let flags = WatchFlags::CREATE
            | WatchFlags::MODIFY
            | WatchFlags::CLOSE_WRITE
            | WatchFlags::ATTRIB
            | WatchFlags::DELETE
            | WatchFlags::DELETE_SELF
            | WatchFlags::MOVE;
        for path in paths {
            inotify::add_watch(&inotify, *path, flags)?;
        }
        Ok(Self { inotify, heard: BTreeSet::new() })
    }

    /// Waits for events until `heard` says that it is enough, or nothing comes for that long.
    fn listen(&mut self, patience: &Timespec, enough: impl Fn(&Self) -> bool) -> io::Result<()> {
        while !enough(self) {
            let mut polled = [PollFd::new(&self.inotify, PollFlags::IN)];
            if poll(&mut polled, Some(patience))? == 0 {
                return Ok(());
            }
            let mut buffer = [MaybeUninit::uninit(); 4096];
            let mut events = inotify::Reader::new(&self.inotify, &mut buffer);
            loop {
                match events.next() {
                    Ok(event) => {
                        let name = event.file_name().map_or("", |name| name.to_str().unwrap()).to_owned();
                        for flag in (event.events() - ReadFlags::ISDIR).iter_names() {
                            self.heard.insert((name.clone(), flag.0.to_owned()));
                        }
                        if events.is_buffer_empty() {
                            break;
                        }
                    }
                    Err(rustix::io::Errno::AGAIN) => break,
                    Err(error) => return Err(error.into()),
                }
            }
        }
        Ok(())
    }

    fn has(&self, name: &str, event: &str) -> bool {
        self.heard.contains(&(name.to_owned(), event.to_owned()))
    }

    /// Waits for all of `expected`, and then for a moment in which nothing more comes.
    #[track_caller]
    fn expect(&mut self, expected: &[(&str, &str)]) {
        self.listen(&PATIENCE, |heard| expected.iter().all(|(name, event)| heard.has(name, event))).unwrap();
        for (name, event) in expected {
            assert!(self.has(name, event), "{name} {event} is missing: {:?}", self.heard);
        }
        self.listen(&SILENCE, |_| false).unwrap();
    }

    fn names(&mut self) -> BTreeSet<String> {
        std::mem::take(&mut self.heard).into_iter().map(|(name, _)| name).collect()
    }
}

const BUILD: &str = "\
rm -rf dist
mkdir -p dist/kept
echo same > dist/same
cat source > dist/main.js
cat source > dist/kept/deep.js
mkdir dist/dir-$(cat source)
echo x > dist/dir-$(cat source)/file
ln -s $(cat source) dist/link
echo y > dist/only-$(cat source)
";

fn built_twice() -> Result<Workspace, Box<dyn std::error::Error>> {
    let ws = Workspace::with_config(Mode::Mounted, "[tasks.build]\ncommand = \"sh build.sh\"\n")?;
    ws.file("build.sh", BUILD)?;
    for source in ["two", "one"] {
        ws.file("source", source)?;
        ws.run(["build"])?.stored_miss();
    }
    Ok(ws)
}

fn set(names: &[&str]) -> BTreeSet<String> {
    names.iter().map(|name| (*name).to_owned()).collect()
}

/// Goal: watchers of directories hear of all that a hit made, changed and removed there, and of nothing else.
#[test]
fn watchers_hear_what_a_hit_changed_and_nothing_else() -> TestResult {
    let ws = built_twice()?;
    let (dist, kept, gone) = (ws.path("dist"), ws.path("dist/kept"), ws.path("dist/dir-one"));
    ws.file("source", "two")?;
    let mut watcher = Watcher::new(&[&dist, &kept, &gone])?;
    ws.run(["build"])?.hit();
    watcher.expect(&[
        ("only-two", "CREATE"),
        ("only-two", "CLOSE_WRITE"),
        ("dir-two", "CREATE"),
        ("main.js", "MODIFY"),
        ("main.js", "CLOSE_WRITE"),
        ("deep.js", "MODIFY"),
        ("only-one", "DELETE"),
        ("dir-one", "DELETE"),
        ("file", "DELETE"),
        ("", "DELETE_SELF"),
        ("link", "DELETE"),
        ("link", "CREATE"),
    ]);
    let heard = watcher.names();
    assert!(!heard.contains("same"), "{heard:?}");
    // What was done for show changed nothing.
    assert_eq!(ws.read("dist/main.js")?, "two");
    assert_eq!(ws.read("dist/kept/deep.js")?, "two");
    assert_eq!(fs::read_link(ws.path("dist/link"))?, Path::new("two"));
    assert!(!ws.exists("dist/dir-one") && !ws.exists("dist/only-one"));
    assert_eq!(ws.read("dist/dir-two/file")?, "x\n");
    let status = ws.vout(["status"])?.ok();
    assert!(status.printed().contains("virtual"), "{status}");
    // A hit that changes nothing wakes nobody.
    ws.run(["build"])?.hit();
    watcher.listen(&SILENCE, |_| false)?;
    assert_eq!(watcher.names(), set(&[]));
    ws.vout(["unmount"])?.ok();
    assert_eq!(ws.read("dist/main.js")?, "two");
    Ok(())
}

/// Goal: somebody who watches a file by itself hears of each hit that changes it.
#[test]
fn a_watched_file_stays_watched() -> TestResult {
    let ws = built_twice()?;
    let mut watcher = Watcher::new(&[&ws.path("dist/main.js")])?;
    for source in ["two", "one", "two"] {
        ws.file("source", source)?;
        ws.run(["build"])?.hit();
        watcher.expect(&[("", "MODIFY")]);
        assert!(!watcher.has("", "DELETE_SELF"), "{:?}", watcher.heard);
        watcher.names();
        assert_eq!(ws.read("dist/main.js")?, source);
    }
    Ok(())
}

/// Goal: what a task committed after a miss is heard as well, and not what others have.
#[test]
fn watchers_hear_what_a_task_committed() -> TestResult {
    let ws = built_twice()?;
    ws.file("source", "three")?;
    let mut watcher = Watcher::new(&[&ws.path("dist"), &ws.path("dist/kept"), ws.root()])?;
    ws.run(["build"])?.stored_miss();
    watcher.expect(&[
        ("only-three", "CREATE"),
        ("dir-three", "CREATE"),
        ("only-one", "DELETE"),
        ("main.js", "MODIFY"),
        ("deep.js", "MODIFY"),
    ]);
    let heard = watcher.names();
    assert!(!heard.contains("source") && !heard.contains("build.sh"), "{heard:?}");
    assert_eq!(ws.read("dist/main.js")?, "three");
    Ok(())
}

/// Goal: the process that tells watchers is not in the way of unmounting, whenever that comes.
#[test]
fn telling_watchers_does_not_keep_the_mount_busy() -> TestResult {
    let ws = built_twice()?;
    for _ in 0..5 {
        let mut watcher = Watcher::new(&[&ws.path("dist"), ws.root()])?;
        for source in ["two", "one"] {
            ws.file("source", source)?;
            ws.run(["build"])?.hit();
        }
        watcher.listen(&SILENCE, |watcher| watcher.heard.len() > 3)?;
        drop(watcher);
        ws.vout(["unmount"])?.ok();
        ws.mount()?;
    }
    assert_eq!(ws.read("dist/main.js")?, "one");
    Ok(())
}
