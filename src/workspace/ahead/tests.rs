use std::collections::BTreeMap;
use std::fs::{self, File};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, MetadataExt};

use proptest::prelude::*;
use rustix::fs::AtFlags;
use tempfile::TempDir;

use super::*;
use crate::archive::Archive;
use crate::archive::restore::restore;
use crate::base::BaseStat;
use crate::commit::tests::{Op, Task, op, run_for_real, snapshot};
use crate::fs::{AttrChanges, Caller, OpenFlags, SetTime};
use crate::report::FinishReport;
use crate::serving::Serving;
use crate::view::{Change, Content, Finished, NewFile, NewObject};
use crate::workspace::outputs::stat_meta;
use crate::workspace::tests::{Site, SmallDisk, begin, finish, miss, random};
use crate::workspace::{Run, Workspace};

#[derive(Debug, Clone)]
enum Move {
    Do(Op),
    /// Packs what is closed by now.
    Pack,
}

/// Two files of one frame.
fn two_files() -> Vec<Op> {
    let write = |path: &str, bytes: usize| Op::Write(path.into(), "x".repeat(bytes));
    vec![Op::MakeDir("d".into()), Op::MakeDir("d/e".into()), write("d/e/one", 3000), write("d/two", 5)]
}

/// The same, and one that has frames of its own.
fn three_files() -> Vec<Op> {
    let large = Op::Write("large".into(), "x".repeat(3 << 20));
    two_files().into_iter().chain([large]).collect()
}

fn open_run(site: &Site) -> (Workspace, Run) {
    let workspace = site.open().unwrap();
    let run = miss(begin(&workspace, "task")).0;
    (workspace, run)
}

fn do_all(run: &Run, ops: &[Op]) {
    let filesystem = run.filesystem();
    ops.iter().for_each(|op| Task(&*filesystem).run(op).unwrap());
}

fn pack_now(run: &Run) {
    run.ahead.as_ref().unwrap().pack_now().unwrap();
}

/// Returns what a checked archive gives when it is restored. (`tests/archive_roundtrip.rs` has `tar` do so.)
fn archived(report: &FinishReport) -> BTreeMap<String, String> {
    let Some(path) = &report.archive else { return BTreeMap::new() };
    let archive = Archive::open(File::open(path).unwrap(), path.clone()).unwrap();
    archive.verify().unwrap();
    let dir = TempDir::new().unwrap();
    let into = File::open(dir.path()).unwrap().into();
    restore(&archive, &into, &|_| true, |mtime| mtime, &|_, _| ()).unwrap();
    snapshot(dir.path())
}

/// Returns which of the files that the task made can stay as they were packed ahead.
fn standing(run: &Run) -> Vec<String> {
    let packed = run.ahead.as_ref().unwrap().take().unwrap();
    let files = run.view.changes().unwrap().into_iter().filter_map(|Change { path, object }| {
        let Some(NewObject::File(NewFile { content: Content::Blob { path: blob, .. }, node })) = object
        else {
            return None;
        };
        let stat = rustix::fs::statat(run.view.staging(), blob.as_os_str(), AtFlags::empty()).unwrap();
        let stat = BaseStat::from(stat);
        Some((node, path, stat.identity, stat_meta(&stat)))
    });
    let files: Vec<_> = files.collect();
    let unopened = run.view.take_finished();
    let compare = |(node, path, identity, meta): &(NodeId, RelPathBuf, Identity, Meta)| {
        packed.compare(&unopened, *node, &Now { path, identity, meta })
    };
    let stays = packed.standing(files.iter().filter_map(compare)).units;
    let stays = files.iter().filter(|file| compare(file).is_some_and(|(unit, _)| stays[unit]));
    stays.map(|(_, path, ..)| path.to_string()).collect()
}

/// Goal: what is packed ahead never shows in what is archived. Method: pack at any moment of any task, restore the
/// archive, compare with real files to which the same was done.
#[test]
fn archives_hold_what_the_task_left_whenever_something_was_packed() {
    let one = prop_oneof![3 => op().prop_map(Move::Do), 1 => Just(Move::Pack)];
    let config = ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() };
    proptest!(config, |(moves in prop::collection::vec(one, 1..24))| {
        let (site, real) = (Site::new(), TempDir::new().unwrap());
        let (workspace, run) = open_run(&site);
        let filesystem = run.filesystem();
        for one in two_files().into_iter().map(Move::Do).chain(moves) {
            match one {
                Move::Do(op) => {
                    Task(&*filesystem).run(&op).ok();
                    run_for_real(real.path(), &op).ok();
                }
                Move::Pack => pack_now(&run),
            }
        }
        let report = finish(&workspace, run).unwrap();
        prop_assert!(report.entry.is_some(), "{report:?}");
        let expected = snapshot(real.path());
        prop_assert_eq!(snapshot(&site.root()), expected.clone());
        prop_assert_eq!(archived(&report), expected);
    });
}

#[test]
fn what_is_left_alone_stays_as_it_was_packed() {
    let site = Site::new();
    let (workspace, run) = open_run(&site);
    do_all(&run, &three_files());
    pack_now(&run);
    do_all(&run, &[Op::Write("late".into(), "late".into())]);
    pack_now(&run);
    do_all(&run, &[Op::Remove("late".into())]);
    assert_eq!(standing(&run), ["d/e/one", "d/two", "large"]);
    workspace.abandon(run);
}

/// Goal: whatever is done to one file, its unit is packed again, and others are not.
#[test]
fn a_change_of_one_file_is_noticed() {
    let text = str::to_owned;
    let path = || text("d/two");
    let changes: [&[Op]; 6] = [
        &[Op::Write(path(), text("other"))],
        &[Op::Chmod(path(), 0o600)],
        &[Op::Rename(path(), text("d/three"))],
        &[Op::Link(path(), text("d/three"))],
        &[Op::Remove(path())],
        &[Op::Rename(text("d"), text("moved"))],
    ];
    for ops in changes {
        let site = Site::new();
        let (workspace, run) = open_run(&site);
        do_all(&run, &three_files());
        pack_now(&run);
        do_all(&run, ops);
        assert_eq!(standing(&run), ["large"], "{ops:?}");
        workspace.abandon(run);
    }
}

/// Goal: content that changes without the view being told is noticed, whatever is done to hide it. Method: write to the
/// staged file as the kernel does for a mapping, and put the time back.
#[test]
fn a_write_that_hides_is_noticed_by_the_ctime() {
    let site = Site::new();
    let (workspace, run) = open_run(&site);
    do_all(&run, &three_files());
    let node = Task(&*run.filesystem()).find("d/two").unwrap().node;
    pack_now(&run);
    let Finished::File { blob, .. } = run.view.finished_file(node) else { panic!("it is closed") };
    let staged = format!("/proc/self/fd/{}/{blob}", run.view.staging().as_raw_fd());
    let file = File::options().write(true).open(staged).unwrap();
    let before = file.metadata().unwrap();
    let ctime = |stat: &fs::Metadata| (stat.ctime(), stat.ctime_nsec());
    // Kernels before 6.13 tell these times by their ticks; we wait for longer before we pack.
    while ctime(&file.metadata().unwrap()) == ctime(&before) {
        file.write_all_at(b"other", 0).unwrap();
        file.set_modified(before.modified().unwrap()).unwrap();
    }
    let report = finish(&workspace, run).unwrap();
    assert_eq!(fs::read(site.root().join("d/two")).unwrap(), b"other");
    assert_eq!(archived(&report), snapshot(&site.root()));
}

#[test]
fn a_time_that_is_put_back_through_the_view_is_noticed() {
    let site = Site::new();
    let (workspace, run) = open_run(&site);
    do_all(&run, &three_files());
    pack_now(&run);
    let filesystem = run.filesystem();
    let attr = Task(&*filesystem).find("d/two").unwrap();
    do_all(&run, &[Op::Write("d/two".into(), "other".into())]);
    let mtime = Some(SetTime::At(attr.mtime));
    filesystem.set_attr(attr.node, None, AttrChanges { mtime, ..AttrChanges::default() }).unwrap();
    assert_eq!(standing(&run), ["large"]);
    workspace.abandon(run);
}

#[test]
fn open_files_wait_and_mappable_ones_are_never_packed_ahead() {
    let site = Site::new();
    let workspace = site.open().unwrap();
    let spec = crate::workspace::tests::spec("task");
    let options = crate::workspace::RunOptions {
        cache: crate::proto::CacheMode::ReadWrite,
        serving: Serving { passthrough: true, ..Serving::default() },
    };
    let run = miss(workspace.begin(spec, options, &|_| ())).0;
    let filesystem = run.filesystem();
    let create = |name: &str, flags| {
        let caller = Caller::new(0, 0);
        let (_, file) = filesystem.create(caller, NodeId::ROOT, name.as_ref(), 0o644, flags).unwrap();
        file.write_at(name.as_bytes(), 0).unwrap();
        file
    };
    drop(create("mappable", OpenFlags::READ | OpenFlags::WRITE));
    drop(create("closed", OpenFlags::WRITE));
    let open = create("open", OpenFlags::WRITE);
    pack_now(&run);
    open.write_at(b"more", 4).unwrap();
    assert_eq!(standing(&run), ["closed"]);
    drop(open);
    workspace.abandon(run);
}

#[test]
fn nothing_is_left_behind_whether_a_run_is_stored_or_abandoned() {
    let site = Site::new();
    let temporaries = || fs::read_dir(site.root().parent().unwrap().join("store/tmp")).unwrap().count();
    let (workspace, run) = open_run(&site);
    do_all(&run, &three_files());
    pack_now(&run);
    assert_eq!(temporaries(), 1);
    workspace.abandon(run);
    assert_eq!(temporaries(), 0);
    let run = miss(begin(&workspace, "task")).0;
    do_all(&run, &three_files());
    pack_now(&run);
    finish(&workspace, run).unwrap();
    assert_eq!(temporaries(), 0);
}

#[test]
fn a_disk_with_little_room_is_left_to_the_task() {
    let site = Site::new();
    let Some(_disk) = SmallDisk::at(&site.root().parent().unwrap().join("store"), "64m") else { return };
    let (workspace, run) = open_run(&site);
    let content = random(3 << 20);
    Task(&*run.filesystem()).write("large", &content).unwrap();
    let refused = run.ahead.as_ref().unwrap().pack_now();
    assert!(matches!(&refused, Err(PackError::Output(error)) if error.kind() == io::ErrorKind::StorageFull));
    let report = finish(&workspace, run).unwrap();
    assert!(report.entry.is_some(), "{report:?}");
    assert_eq!(archived(&report), snapshot(&site.root()));
}

#[test]
fn a_task_that_removes_most_of_what_it_makes_is_given_up_on() {
    let site = Site::new();
    let (workspace, run) = open_run(&site);
    let ahead = run.ahead.as_ref().unwrap();
    lock(&ahead.shared.worker).files_to_look = 4;
    let make = |name: &str| Op::Write(name.into(), name.into());
    do_all(&run, &[make("a"), make("b"), make("c"), make("d")]);
    pack_now(&run);
    do_all(&run, &[Op::Remove("a".into()), make("b"), make("e")]);
    pack_now(&run);
    // Half of it is of use, and it is looked at again when there is twice as much.
    do_all(&run, &[Op::Remove("c".into()), make("f"), make("g"), make("h")]);
    pack_now(&run);
    do_all(&run, &[Op::Remove("d".into()), Op::Remove("e".into()), Op::Remove("f".into()), make("i")]);
    assert!(ahead.pack_now().is_err());
    let report = finish(&workspace, run).unwrap();
    assert_eq!(archived(&report), snapshot(&site.root()));
}
