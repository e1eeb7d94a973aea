//! Whether a recording holds all that a run depends on, and nothing that the run made itself.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;
use std::sync::Arc;

use proptest::prelude::*;
use rustix::io::Errno;
use vout::content::ContentHashes;
use vout::fs::FileKind;
use vout::logical::Logical;
use vout::path::{RelPath, RelPathBuf};
use vout::state::{Dependency, PathState};
use vout::tree::Found;
use vout::view::{Change, Content, NewObject, View};

use crate::kernel::{Habits, Kernel};
use crate::ops::{self, Answer, Data, Mtime, Op};
use crate::snapshot::Snapshot;
use crate::world::{self, Plan, World};

/// What somebody does to the base between two runs.
#[derive(Debug, Clone)]
enum Edit {
    Write(Data),
    Remove,
    MakeDir,
    MakeSymlink(String),
    MakeExecutable,
}

fn edit() -> impl Strategy<Value = (String, Edit)> {
    let edit = prop_oneof![
        4 => ops::data().prop_map(Edit::Write),
        2 => Just(Edit::Remove),
        1 => Just(Edit::MakeDir),
        1 => ops::target().prop_map(Edit::MakeSymlink),
        1 => Just(Edit::MakeExecutable),
    ];
    (ops::path(), edit)
}

/// Applies an edit where it makes sense.
fn apply(root: &Path, path: &str, edit: &Edit) {
    let at = root.join(path);
    let above = Path::new(path).ancestors().skip(1);
    if !above.into_iter().all(|dir| root.join(dir).symlink_metadata().is_ok_and(|meta| meta.is_dir())) {
        return;
    }
    let old = at.symlink_metadata().ok();
    if let Edit::MakeExecutable = edit {
        if old.is_some_and(|meta| meta.is_file()) {
            fs::set_permissions(&at, fs::Permissions::from_mode(0o755)).unwrap();
        }
        return;
    }
    match old {
        Some(meta) if meta.is_dir() => fs::remove_dir_all(&at).unwrap(),
        Some(_) => fs::remove_file(&at).unwrap(),
        None => {}
    }
    match edit {
        Edit::Write(data) => fs::write(&at, data.bytes()).unwrap(),
        Edit::MakeDir => fs::create_dir(&at).unwrap(),
        Edit::MakeSymlink(target) => symlink(target, &at).unwrap(),
        Edit::Remove | Edit::MakeExecutable => {}
    }
}

/// What a run may show to a task: attributes that are no inputs left out.
fn shown(answer: Result<Answer, Errno>) -> Result<Answer, Errno> {
    answer.map(|answer| match answer {
        Answer::Stat(mut seen) => {
            (seen.mtime, seen.nlink) = (Mtime::Unknown, 0);
            seen.mode = u32::from(seen.kind == FileKind::File && seen.mode & 0o111 != 0);
            if seen.kind == FileKind::Symlink {
                seen.size_bytes = 0;
            }
            Answer::Stat(seen)
        }
        other => other,
    })
}

type Written = Vec<(RelPathBuf, Option<(FileKind, Vec<u8>)>)>;

/// Returns what a run changed, with contents.
fn written(world: &World, view: &View) -> Written {
    let mut written = Vec::new();
    for Change { path, object } in view.changes().unwrap() {
        let there = world.tree.find(&path, view.perspective()).unwrap().map(|found| found.kind());
        let object = match object {
            // What a layer hides in the base is no input, but has to go with a commit.
            None if there.is_none() => continue,
            Some(NewObject::Dir(..)) if there == Some(FileKind::Dir) => continue,
            None => None,
            Some(NewObject::Dir(..)) => Some((FileKind::Dir, Vec::new())),
            Some(NewObject::Symlink { target, .. }) => Some((FileKind::Symlink, target.into_encoded_bytes())),
            Some(NewObject::Special { kind, .. }) => Some((kind, Vec::new())),
            Some(NewObject::File(file)) => Some((FileKind::File, content(world, view, &file.content))),
        };
        written.push((path, object));
    }
    written
}

fn content(world: &World, view: &View, content: &Content) -> Vec<u8> {
    match content {
        Content::Blob { path, .. } => fs::read(world.staging_path.join(path.as_os_str())).unwrap(),
        Content::Lower(lower) => match view.tree().find(lower, view.perspective()).unwrap().unwrap() {
            Found::Base(_) => fs::read(world.base_path.join(lower.as_path())).unwrap(),
            Found::Virtual(layer, record) => {
                let mut bytes = vec![0; usize::try_from(record.size_bytes()).unwrap()];
                layer.archive().read_at(&record, 0, &mut bytes).unwrap();
                bytes
            }
        },
    }
}

fn run(world: &World, ops: &[Op], habits: Habits) -> (Vec<Result<Answer, Errno>>, Written, Arc<View>) {
    let view = world.view(habits.passthrough);
    let mut kernel = Kernel::over_view(&view, habits);
    let answers = ops.iter().map(|op| shown(kernel.run(op))).collect();
    let written = written(world, &view);
    (answers, written, view)
}

fn states(world: &World, set: &[(RelPathBuf, Dependency)]) -> Vec<PathState> {
    let logical = Logical {
        tree: &world.tree,
        hashes: &ContentHashes::default(),
        owner: &world::owner(99),
        claimed: None,
        touched: None,
    };
    set.iter().map(|(path, dependency)| logical.state(path, *dependency).unwrap()).collect()
}

/// A run in a workspace where all recorded inputs have the same states goes the same way.
fn equal_inputs_mean_equal_runs(plan: &Plan, edits: &[(String, Edit)], ops: &[Op], habits: Habits) {
    let first = World::new(plan);
    let (answers, changes, view) = run(&first, ops, habits);
    let set = view.with_recording(|recording| recording.path_set(|_| true));
    only_what_was_there(&first.native.snapshot(), &view);
    for count in 1..=edits.len() {
        let second = World::new(plan);
        for (path, edit) in &edits[..count] {
            apply(&second.base_path, path, edit);
        }
        if states(&first, &set) != states(&second, &set) {
            break;
        }
        let (answers_now, changes_now, _) = run(&second, ops, habits);
        assert_eq!(answers, answers_now, "recorded: {set:?}");
        assert_eq!(changes, changes_now, "recorded: {set:?}");
    }
}

/// Everything recorded is as it was before the run: nothing that the task itself made counts.
fn only_what_was_there(before: &Snapshot, view: &View) {
    let kind = |path: &RelPath| before.0.get(&path.to_string()).map(|thing| thing.seen.kind);
    view.with_recording(|recording| {
        for (path, seen) in recording.iter() {
            if path.is_root() {
                continue;
            }
            let parent = path.parent().unwrap();
            assert!(parent.is_root() || kind(parent) == Some(FileKind::Dir), "{path:?} is the task's own");
            assert_eq!(seen.probe.kind(), kind(path), "{path:?}: {seen:?}");
            let expected = match kind(path) {
                None => Dependency::PROBE,
                Some(FileKind::Dir) => Dependency::PROBE | Dependency::LIST,
                Some(FileKind::Symlink) => Dependency::PROBE | Dependency::LINK,
                Some(_) => Dependency::PROBE | Dependency::READ,
            };
            assert!(expected.contains(seen.dependency), "{path:?}: {seen:?}");
        }
    });
}

fn recorded(ops: &[Op]) -> Vec<(String, Dependency)> {
    let file = |path: &str| (path.to_owned(), world::Made::File(Data(3, 1), 0o644));
    let world = World::new(&Plan { base: vec![file("a"), file("d/b")], layers: vec![vec![file("l/c")]] });
    let (_, _, view) = run(&world, ops, Habits { caches: true, passthrough: true });
    let set = view.with_recording(|recording| recording.path_set(|_| true));
    set.into_iter().map(|(path, dependency)| (path.to_string(), dependency)).collect()
}

fn probe(path: &str) -> (String, Dependency) {
    (path.into(), Dependency::PROBE)
}

#[test]
fn order_decides_whether_a_read_counts() {
    let write = || Op::Overwrite("a".into(), Data(1, 1));
    let read = || Op::Read("a".into());
    assert_eq!(recorded(&[write(), read()]), [probe("a")]);
    assert_eq!(recorded(&[read(), write()]), [("a".into(), Dependency::PROBE | Dependency::READ)]);
}

#[test]
fn what_the_task_made_deleted_or_moved_in_place_is_no_input() {
    let create = |path: &str| Op::Create(path.into(), Data(1, 1), 0o644);
    let read = |path: &str| Op::Read(path.into());
    assert_eq!(recorded(&[create("n"), read("n"), Op::Unlink("n".into()), read("n")]), [probe("n")]);
    let made = [Op::Mkdir("m".into(), 0o755), create("m/x"), Op::Readdir("m".into()), read("m/y")];
    assert_eq!(recorded(&made), [probe("m")]);
    assert_eq!(recorded(&[Op::Unlink("a".into()), create("a"), read("a")]), [probe("a")]);
}

#[test]
fn what_is_read_through_one_name_of_a_file_counts_for_the_other() {
    let names = [("a", world::Made::File(Data(3, 1), 0o644)), ("b", world::Made::Link("a".into()))];
    let base = names.map(|(path, made)| (path.to_owned(), made)).to_vec();
    let world = World::new(&Plan { base, layers: Vec::new() });
    let both = Dependency::PROBE | Dependency::READ;
    for ops in [[Op::Stat("a".into()), Op::Read("b".into())], [Op::Read("a".into()), Op::Read("b".into())]] {
        let (_, _, view) = run(&world, &ops, Habits { caches: true, passthrough: true });
        let set = view.with_recording(|recording| recording.path_set(|_| true));
        assert!(set.iter().any(|(path, seen)| path.as_bytes() == b"b" && *seen == both), "{set:?}");
    }
}

#[test]
fn what_is_moved_counts_under_its_old_name() {
    let rename = Op::Rename("d".into(), "e".into(), ops::Replace::Yes);
    let all =
        [("d".into(), Dependency::PROBE | Dependency::LIST), ("d/b".into(), Dependency::READ), probe("e")];
    assert_eq!(recorded(&[rename]), all);
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, max_shrink_iters: 20_000, ..ProptestConfig::default() })]

    #[test]
    fn a_recording_holds_all_that_a_run_depends_on_and_nothing_of_its_own(
        plan in world::plan(),
        edits in prop::collection::vec(edit(), 1..4),
        ops in prop::collection::vec(ops::op(), 1..16),
        (caches, passthrough) in any::<(bool, bool)>(),
    ) {
        equal_inputs_mean_equal_runs(&plan, &edits, &ops, Habits { caches, passthrough });
    }
}
