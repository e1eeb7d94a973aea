use std::ffi::CString;
use std::fs::{self, File};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};

use rustix::mount::{MountFlags, UnmountFlags, mount, mount_remount, unmount};
use tempfile::TempDir;

use super::*;
use crate::commit::tests::{Op, Task, all_kinds, old_tree, run_for_real, snapshot};
use crate::commit::{Journal, plan};
use crate::explain;
use crate::report::NotStored;
use crate::task::{FilterSpec, MtimePolicy};

/// A workspace and where its store is.
pub(super) struct Site {
    dir: TempDir,
    store: PathBuf,
}

impl Site {
    pub(super) fn new() -> Self {
        let dir = TempDir::new().unwrap();
        fs::create_dir(dir.path().join("ws")).unwrap();
        let store = dir.path().join("store");
        Self { dir, store }
    }

    pub(super) fn root(&self) -> PathBuf {
        self.dir.path().join("ws")
    }

    pub(super) fn open(&self) -> Result<Workspace, WorkspaceError> {
        Workspace::open(OpenOptions {
            root: self.root(),
            root_dir: File::open(self.root()).unwrap().into(),
            store: self.store.clone(),
            limits: Limits::default(),
        })
    }

    fn write(&self, path: &str, content: impl AsRef<[u8]>) {
        fs::write(self.root().join(path), content).unwrap();
    }

    fn read(&self, path: &str) -> Vec<u8> {
        fs::read(self.root().join(path)).unwrap()
    }
}

/// A small file system; gone when dropped.
pub(super) struct SmallDisk(PathBuf);

impl SmallDisk {
    /// `None` where this process may not mount.
    pub(super) fn at(dir: &Path, size: &str) -> Option<Self> {
        if !rustix::process::geteuid().is_root() {
            eprintln!("skipped: only root can mount a small file system");
            return None;
        }
        fs::create_dir_all(dir).unwrap();
        let options = CString::new(format!("size={size}")).unwrap();
        mount("small", dir, "tmpfs", MountFlags::empty(), options.as_c_str()).unwrap();
        Some(Self(dir.to_owned()))
    }

    /// Leaves no room and returns the file that takes it.
    fn fill(&self) -> PathBuf {
        let path = self.0.join("ballast");
        let mut ballast = File::create(&path).unwrap();
        let block = [1; 4096];
        while ballast.write_all(&block).is_ok() {}
        path
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        unmount(&self.0, UnmountFlags::DETACH).ok();
    }
}

pub(super) fn spec(name: &str) -> TaskSpec {
    TaskSpec {
        name: name.into(),
        commands: Vec::new(),
        cwd: RelPathBuf::default(),
        env: Vec::new(),
        programs: Vec::new(),
        input: FilterSpec::default(),
        output: FilterSpec::default(),
        cache: true,
        clean: false,
        mtime: MtimePolicy::Shift,
        discard_on_failure: false,
    }
}

pub(super) fn begin(workspace: &Workspace, name: &str) -> Result<Begun, WorkspaceError> {
    let serving = Serving { passthrough: false, ..Serving::default() };
    workspace.begin(spec(name), RunOptions { cache: CacheMode::ReadWrite, serving }, &|_| ())
}

#[track_caller]
pub(super) fn miss(begun: Result<Begun, WorkspaceError>) -> (Run, MissReason) {
    match begun.unwrap() {
        Begun::Miss { run, reason } => (run, reason),
        Begun::Hit { .. } => panic!("a hit"),
    }
}

pub(super) fn finish(workspace: &Workspace, run: Run) -> Result<FinishReport, WorkspaceError> {
    let outcome = Outcome { exit_code: 0, interrupted: false, outlived: Vec::new(), duration_ms: 1 };
    workspace.finish(run, &outcome, &[], None, &|_| ())
}

/// Runs a task that must not hit.
#[track_caller]
fn run(workspace: &Workspace, name: &str, work: impl FnOnce(&Task<'_>)) -> FinishReport {
    let (run, _) = miss(begin(workspace, name));
    work(&Task(&*run.filesystem()));
    finish(workspace, run).unwrap()
}

/// Copies `in` to `out`, which is `prefix` and its content.
fn copy(prefix: &'static str) -> impl FnOnce(&Task<'_>) {
    move |task| {
        let input = task.read("in").unwrap();
        task.write("out", &[prefix.as_bytes(), &input].concat()).unwrap();
    }
}

#[track_caller]
fn not_stored(report: &FinishReport, word: &str) {
    assert!(report.committed && report.entry.is_none(), "{report:?}");
    let reason = explain::not_stored(report.not_stored.as_ref().unwrap());
    assert!(reason.contains(word), "{reason}");
}

pub(super) fn random(bytes: u64) -> Vec<u8> {
    let mut random = Vec::new();
    File::open("/dev/urandom").unwrap().take(bytes).read_to_end(&mut random).unwrap();
    random
}

#[test]
fn a_store_elsewhere_has_runs_work_in_the_workspace() {
    let site = Site::new();
    let Some(_disk) = SmallDisk::at(&site.store, "8m") else { return };
    site.write("in", "1");
    let workspace = site.open().unwrap();
    assert_eq!(workspace.store.work().path(), site.root().join(".vout"));
    assert!(run(&workspace, "t", copy("copy of ")).entry.is_some());
    assert_eq!(site.read("out"), b"copy of 1");
    assert_eq!(site.read(".vout/.gitignore"), b"*\n");
    assert_eq!(fs::read_dir(site.root().join(".vout/staging")).unwrap().count(), 0);
    assert!(matches!(begin(&workspace, "t").unwrap(), Begun::Hit { .. }));
    assert_eq!(snapshot(&site.root()).len(), 2);
}

#[test]
fn a_store_that_is_full_while_packing_costs_the_cache_only() {
    let site = Site::new();
    let Some(_disk) = SmallDisk::at(&site.store, "4m") else { return };
    let workspace = site.open().unwrap();
    let large = random(6 << 20);
    not_stored(&run(&workspace, "big", |task| task.write("big", &large).unwrap()), "space");
    assert!(site.read("big") == large);
    assert_eq!(fs::read_dir(site.store.join("archives")).unwrap().count(), 0);
    assert_eq!(fs::read_dir(site.store.join("tmp")).unwrap().count(), 0);
    assert!(run(&workspace, "small", |task| task.write("small", b"s").unwrap()).entry.is_some());
    assert!(matches!(begin(&workspace, "small").unwrap(), Begun::Hit { .. }));
}

/// Goal: with no room for the index or a claim, tasks run, what they write is committed, and nothing that
/// is hit later is wrong. Method: fill the disk between runs, free it again.
#[test]
fn a_store_without_any_room_costs_the_cache_only() {
    let site = Site::new();
    let Some(disk) = SmallDisk::at(&site.store, "4m") else { return };
    let workspace = site.open().unwrap();
    site.write("in", "1");
    assert!(run(&workspace, "t", copy("")).entry.is_some());
    let ballast = disk.fill();
    for (n, content) in ["2", "3"].into_iter().enumerate() {
        site.write("in", content);
        let report = run(&workspace, "t", copy(""));
        assert!(report.committed, "{report:?}");
        assert_eq!(site.read("out"), content.as_bytes(), "run {n}");
    }
    // A new start meets the full disk, too.
    drop(workspace);
    let workspace = site.open().unwrap();
    site.write("in", "4");
    assert!(run(&workspace, "t", copy("")).committed);
    assert_eq!(site.read("out"), b"4");
    workspace.status().unwrap();
    drop(workspace);

    fs::remove_file(ballast).unwrap();
    let workspace = site.open().unwrap();
    for content in ["1", "4", "1"] {
        site.write("in", content);
        if let Begun::Miss { run, .. } = begin(&workspace, "t").unwrap() {
            copy("")(&Task(&*run.filesystem()));
            finish(&workspace, run).unwrap();
        }
        assert_eq!(site.read("out"), content.as_bytes());
    }
}

#[test]
fn a_read_only_store_is_replaced_by_a_throw_away_one() {
    let site = Site::new();
    let Some(_disk) = SmallDisk::at(&site.store, "4m") else { return };
    site.write("in", "1");
    assert!(run(&site.open().unwrap(), "t", copy("")).entry.is_some());
    mount_remount(&site.store, MountFlags::RDONLY, c"").unwrap();

    for _ in 0..2 {
        let workspace = site.open().unwrap();
        let (run, reason) = miss(begin(&workspace, "t"));
        assert!(explain::miss(&reason).contains("read-only"), "{reason:?}");
        copy("again ")(&Task(&*run.filesystem()));
        not_stored(&finish(&workspace, run).unwrap(), "read-only");
        workspace.status().unwrap();
        assert_eq!(site.read("out"), b"again 1");
        // Those of earlier starts are gone.
        assert_eq!(fs::read_dir(site.root().join(".vout/tmp")).unwrap().count(), 1);
    }
    mount_remount(&site.store, MountFlags::empty(), c"").unwrap();
    let workspace = site.open().unwrap();
    // What was written meanwhile is nobody's: a miss, like a file that a user put there.
    let report = run(&workspace, "t", copy(""));
    assert!(report.entry.is_some(), "{report:?}");
    assert_eq!(site.read("out"), b"1");
    assert!(matches!(begin(&workspace, "t").unwrap(), Begun::Hit { .. }));
}

#[test]
fn with_store_and_workspace_read_only_both_are_named() {
    let site = Site::new();
    let Some(_disk) = SmallDisk::at(&site.root(), "4m") else { return };
    let site = Site { store: site.root().join(".vout"), ..site };
    drop(site.open().unwrap());
    mount_remount(site.root(), MountFlags::RDONLY, c"").unwrap();
    let error = site.open().unwrap_err();
    assert!(matches!(error, WorkspaceError::NoStorage { .. }), "{error:?}");
    let text = chain(&error);
    assert!(text.contains("read-only") && text.contains(".vout"), "{text}");
}

#[test]
fn a_task_that_fills_the_disk_is_told_so_and_the_workspace_stays_usable() {
    let site = Site::new();
    let Some(_disk) = SmallDisk::at(&site.root(), "4m") else { return };
    let workspace = site.open().unwrap();
    let (started, _) = miss(begin(&workspace, "t"));
    let written = Task(&*started.filesystem()).write("big", &random(6 << 20));
    assert!(
        matches!(&written, Err(FsError::Os(error)) if error.kind() == io::ErrorKind::StorageFull),
        "{written:?}"
    );
    workspace.abandon(started);
    assert!(run(&workspace, "t", |task| task.write("small", b"s").unwrap()).entry.is_some());
    assert_eq!(snapshot(&site.root()).keys().collect::<Vec<_>>(), ["small"]);
}

/// Runs a task up to the point where its journal is published, and then `moves` of its commit.
fn commit_and_crash(workspace: Workspace, ops: &[Op], moves: usize) -> usize {
    let (run, _) = miss(begin(&workspace, "t"));
    for op in ops {
        Task(&*run.filesystem()).run(op).unwrap();
    }
    let changes = run.view.changes().unwrap();
    let steps = plan(&changes, |lower| workspace.stage(&run.view, lower)).unwrap();
    let all = 2 * steps.len();
    let journal = Journal { workspace: *workspace.id.0.as_bytes(), steps, punches: Vec::new() };
    let area = Arc::clone(workspace.store.work());
    area.publish_journal(run.id, |file| journal.write(file).map_err(WorkspaceError::from)).unwrap();
    journal.apply_first(moves, workspace.tree.base(), run.view.staging()).unwrap();
    // Nothing of ours is run when the process is killed, but locks are released.
    drop((run, workspace));
    all
}

#[test]
fn a_start_finishes_a_commit_that_was_killed_anywhere() {
    for elsewhere in [false, true] {
        let mut moves = 0;
        loop {
            let site = Site::new();
            let disk = elsewhere.then(|| SmallDisk::at(&site.store, "8m"));
            if let Some(None) = disk {
                return;
            }
            let real = TempDir::new().unwrap();
            for op in old_tree() {
                run_for_real(&site.root(), &op).unwrap();
                run_for_real(real.path(), &op).unwrap();
            }
            for op in all_kinds() {
                run_for_real(real.path(), &op).unwrap();
            }
            let all = commit_and_crash(site.open().unwrap(), &all_kinds(), moves);
            let workspace = site.open().unwrap();
            assert_eq!(snapshot(&site.root()), snapshot(real.path()), "killed after {moves} moves");
            assert!(workspace.store.work().leftovers().unwrap().is_empty());
            if moves > all {
                break;
            }
            moves += 1;
        }
    }
}

#[test]
fn a_journal_in_the_workspace_is_found_when_the_store_has_moved_back() {
    let site = Site::new();
    let Some(disk) = SmallDisk::at(&site.store, "8m") else { return };
    for op in old_tree() {
        run_for_real(&site.root(), &op).unwrap();
    }
    commit_and_crash(site.open().unwrap(), &all_kinds(), 3);
    drop(disk);
    let workspace = site.open().unwrap();
    assert_eq!(workspace.store.work().path(), site.store);
    assert_eq!(site.read("b/c"), b"new content");
    assert_eq!(fs::read_dir(site.root().join(".vout/journal")).unwrap().count(), 0);
}

/// Goal: a commit that fails half-way is said to have done so, keeps others from building on half a tree,
/// and is finished once the cause is gone. Method: the new tree has a directory where the old one has a
/// mount point, which cannot be replaced.
#[test]
fn a_commit_that_fails_half_way_is_finished_before_anything_else() {
    for restart in [false, true] {
        let site = Site::new();
        fs::create_dir(site.root().join("m")).unwrap();
        let workspace = site.open().unwrap();
        let (started, _) = miss(begin(&workspace, "t"));
        let task_view = started.filesystem();
        let task = Task(&*task_view);
        task.run(&Op::MakeDir("a".into())).unwrap();
        task.write("a/new", b"new").unwrap();
        task.run(&Op::Remove("m".into())).unwrap();
        task.write("m", b"file").unwrap();
        let Some(busy) = SmallDisk::at(&site.root().join("m"), "64k") else { return };
        let error = finish(&workspace, started).unwrap_err();
        assert!(matches!(error, WorkspaceError::Unfinished { .. }), "{error:?}");
        assert!(chain(&error).contains("journal"), "{}", chain(&error));
        assert!(matches!(begin(&workspace, "u"), Err(WorkspaceError::Unfinished { .. })));
        drop(task_view);

        let workspace = if restart {
            drop(workspace);
            // Still in the way; people can ask, and nothing runs.
            let workspace = site.open().unwrap();
            workspace.status().unwrap();
            assert!(matches!(begin(&workspace, "u"), Err(WorkspaceError::Unfinished { .. })));
            drop(workspace);
            drop(busy);
            site.open().unwrap()
        } else {
            drop(busy);
            workspace
        };
        let (other, _) = miss(begin(&workspace, "u"));
        workspace.abandon(other);
        assert_eq!((site.read("m"), site.read("a/new")), (b"file".to_vec(), b"new".to_vec()));
        assert!(workspace.store.work().leftovers().unwrap().is_empty());
    }
}

#[test]
fn a_disk_without_room_for_the_journal_leaves_the_old_tree_and_no_lock() {
    let site = Site::new();
    let Some(disk) = SmallDisk::at(&site.root(), "4m") else { return };
    let workspace = site.open().unwrap();
    site.write("in", "1");
    let (started, _) = miss(begin(&workspace, "t"));
    copy("")(&Task(&*started.filesystem()));
    let ballast = disk.fill();
    let error = finish(&workspace, started).unwrap_err();
    assert!(chain(&error).contains("space"), "{}", chain(&error));
    assert!(!site.root().join("out").exists());
    fs::remove_file(ballast).unwrap();
    // It waits neither for the failed run nor for its commit, and what was packed is good.
    assert!(matches!(begin(&workspace, "t").unwrap(), Begun::Hit { .. }));
    assert_eq!(site.read("out"), b"1");
}

/// Goal: a restore that is cut off never leaves a wrong tree behind that is taken for the right one.
/// Method: two entries; after a restore of the second, put back what the first left at every subset of the
/// outputs, as if the restore had not come there, and look up again.
#[test]
fn a_restore_that_was_cut_off_is_completed_or_a_miss() {
    const OUTPUTS: [&str; 4] = ["dist/a", "dist/b", "dist/c", "dist/d"];
    fn build(task: &Task<'_>) {
        let input = task.read("in").unwrap();
        task.run(&Op::MakeDir("dist".into())).ok();
        for output in OUTPUTS {
            task.write(output, &[output.as_bytes(), &input].concat()).unwrap();
        }
    }
    for done in 0..1 << OUTPUTS.len() {
        let site = Site::new();
        let workspace = site.open().unwrap();
        for input in ["1", "2"] {
            site.write("in", input);
            run(&workspace, "t", build);
        }
        let old: Vec<_> =
            OUTPUTS.iter().map(|path| (*path, fs::metadata(site.root().join(path)).unwrap())).collect();
        site.write("in", "1");
        assert!(matches!(begin(&workspace, "t").unwrap(), Begun::Hit { .. }));
        for (n, (path, metadata)) in old.iter().enumerate() {
            if done & (1 << n) == 0 {
                site.write(path, format!("{path}2"));
                let file = File::options().write(true).open(site.root().join(path)).unwrap();
                file.set_modified(metadata.modified().unwrap()).unwrap();
            }
        }
        drop(workspace);
        let workspace = site.open().unwrap();
        if let Begun::Miss { run, .. } = begin(&workspace, "t").unwrap() {
            build(&Task(&*run.filesystem()));
            let report = finish(&workspace, run).unwrap();
            assert!(!matches!(report.not_stored, Some(NotStored::Storage(_))), "{report:?}");
        }
        for output in OUTPUTS {
            assert_eq!(site.read(output), format!("{output}1").as_bytes(), "restored {done:b}");
        }
    }
}

#[test]
fn what_a_restore_that_was_cut_off_put_together_is_removed_by_the_next() {
    let site = Site::new();
    let workspace = site.open().unwrap();
    site.write("in", "1");
    run(&workspace, "t", |task| {
        task.run(&Op::MakeDir("dist".into())).unwrap();
        task.run(&Op::MakeDir("dist/deep".into())).unwrap();
        task.write("dist/deep/file", b"content").unwrap();
        task.run(&Op::Link("dist/deep/file".into(), "dist/linked".into())).unwrap();
        task.run(&Op::Chmod("dist/deep".into(), 0o500)).unwrap();
    });
    let expected = snapshot(&site.root());
    fs::remove_dir_all(site.root().join("dist")).unwrap();
    let left = format!(".vout-{}.tmp/half", Uuid::new_v4().simple());
    fs::create_dir_all(site.root().join(left)).unwrap();
    fs::create_dir(site.root().join(".vout-mine.tmp")).unwrap();
    assert!(matches!(begin(&workspace, "t").unwrap(), Begun::Hit { .. }));
    fs::remove_dir(site.root().join(".vout-mine.tmp")).unwrap();
    assert_eq!(snapshot(&site.root()), expected);
}
