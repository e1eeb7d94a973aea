use std::ffi::OsStr;
use std::fs;
use std::os::unix::fs::FileExt;
use std::path::Path;

use proptest::prelude::*;

use super::*;
use crate::commit::tests::{Op, Task, old_tree, op, run_for_real};
use crate::filter::Filter;
use crate::fingerprint::{InputStates, strong_key};
use crate::fs::{Caller, Invalidator, NodeId, OpenFlags};
use crate::proto::CacheMode;
use crate::serving::Serving;
use crate::task::{EnvVar, TaskSpec};
use crate::workspace::tests::{Site, finish, spec};
use crate::workspace::{Begun, LiveTree, RunOptions};

struct Nobody;

impl Invalidator for Nobody {
    fn entry_changed(&self, _: NodeId, _: &OsStr) {}
    fn node_changed(&self, _: NodeId) {}
    fn content_changed(&self, _: NodeId) {}
    fn attributes_changed(&self, _: NodeId) {}
    fn name_expires(&self, _: NodeId, _: &OsStr) {}
    fn news(&self, _: Box<dyn crate::watch::News>) {}
}

fn mounted(site: &Site, serving: Serving, covers_base: bool) -> (Workspace, LiveTree) {
    let workspace = site.open().unwrap();
    let live = workspace.mount_live(Arc::new(Nobody), serving, covers_base).unwrap();
    workspace.live_covers(Box::new(|| true));
    (workspace, live)
}

fn exclusive() -> Serving {
    Serving { exclusive: true, passthrough: false, ..Serving::default() }
}

/// Looks at everything there can be, as far as it is there.
fn look_at_all(task: &Task<'_>, path: &str) {
    let Ok(found) = task.find(path) else { return };
    task.read(path).ok();
    task.0.read_link(found.node).ok();
    task.0.read_dir(found.node).ok();
    for name in ["a", "b", "c"] {
        if path.split('/').count() < 3 {
            look_at_all(task, &format!("{path}/{name}"));
        }
    }
}

/// Returns a task that shares no entries with others.
fn task(name: &str) -> TaskSpec {
    let env = vec![EnvVar { name: name.into(), value: None }];
    TaskSpec { env, ..spec(name) }
}

/// Runs a task, if it has to run, that looks at everything and then does `ops`.
fn run(workspace: &Workspace, name: &str, ops: &[Op]) -> bool {
    let options = RunOptions { cache: CacheMode::ReadWrite, serving: exclusive() };
    let Begun::Miss { run, .. } = workspace.begin(task(name), options, &|_| ()).unwrap() else { return true };
    let filesystem = run.filesystem();
    let task = Task(&*filesystem);
    for name in ["a", "b", "c"] {
        look_at_all(&task, name);
    }
    task.0.read_dir(NodeId::ROOT).unwrap();
    for op in ops {
        task.run(op).ok();
    }
    drop(filesystem);
    finish(workspace, run).ok();
    false
}

/// Compares what is known of a task with what looking at everything says; returns how much was known.
fn compare(workspace: &Workspace, name: &str) -> usize {
    let asked = workspace.ask(task(name)).unwrap();
    let mut known_sets = 0;
    for digest in workspace.index.path_sets(asked.weak).unwrap() {
        let logical = workspace.logical(&asked);
        let Some((known, inputs)) = workspace.known_lookup(&asked, digest, &logical) else { continue };
        let set = workspace.index.path_set(digest).unwrap().unwrap();
        let set: PathSet = postcard::from_bytes(&set).unwrap();
        let states = set.iter().map(|(path, dependency)| {
            filtered(
                logical.state(path, *dependency).unwrap(),
                path,
                &Filter::compile(&asked.spec.input).unwrap(),
            )
        });
        let states = InputStates { recorded: states.collect(), globbed: Vec::new() };
        assert_eq!(known, strong_key(asked.weak, digest, &states), "{name}: {states:#?}");
        assert_eq!(inputs, set.len() as u64);
        known_sets += 1;
    }
    known_sets
}

fn site() -> Site {
    let site = Site::new();
    for op in old_tree() {
        run_for_real(&site.root(), &op).unwrap();
    }
    site
}

#[derive(Debug, Clone)]
enum Step {
    /// Somebody does something through the live mount.
    User(Op),
    /// A task that only reads.
    Reads,
    /// A task runs, or hits.
    Runs(&'static str, Vec<Op>),
}

fn step() -> impl Strategy<Value = Step> {
    let ops = || prop::collection::vec(op(), 0..4);
    prop_oneof![
        6 => op().prop_map(Step::User),
        3 => Just(Step::Reads),
        1 => ops().prop_map(|ops| Step::Runs("one", ops)),
        1 => ops().prop_map(|ops| Step::Runs("two", ops)),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, ..ProptestConfig::default() })]

    /// Goal: what is known without looking is what looking at everything would have said.
    #[test]
    fn what_is_known_is_what_is_there(steps in prop::collection::vec(step(), 1..24)) {
        let site = site();
        let (workspace, live) = mounted(&site, exclusive(), true);
        run(&workspace, "reads", &[]);
        run(&workspace, "reads", &[]);
        prop_assert_eq!(compare(&workspace, "reads"), 1);
        for step in steps {
            match &step {
                Step::User(op) => drop(Task(&*live.filesystem).run(op)),
                Step::Reads => drop(run(&workspace, "reads", &[])),
                Step::Runs(name, ops) => {
                    run(&workspace, name, ops);
                    // What is hit is remembered, and not what was just run.
                    run(&workspace, name, ops);
                }
            }
            for name in ["reads", "one", "two"] {
                compare(&workspace, name);
            }
        }
    }
}

/// A mounted workspace of which a task has read everything, and is known.
fn known() -> (Site, Workspace, LiveTree) {
    let site = site();
    let (workspace, live) = mounted(&site, exclusive(), true);
    assert!(!run(&workspace, "reads", &[]));
    assert!(run(&workspace, "reads", &[]));
    assert_eq!(compare(&workspace, "reads"), 1);
    (site, workspace, live)
}

fn is_known(workspace: &Workspace) -> bool {
    compare(workspace, "reads") > 0
}

fn write_at(live: &LiveTree, path: &str, content: &[u8]) {
    let filesystem = &live.filesystem;
    let node = Task(&**filesystem).find(path).unwrap().node;
    filesystem.writing(node);
    let file = filesystem.open(node, OpenFlags::READ | OpenFlags::WRITE).unwrap();
    file.write_at(content, 0).unwrap();
    filesystem.written(node, &*file);
}

#[test]
fn what_is_touched_and_stays_what_it_was_is_known_still() {
    let (_site, workspace, live) = known();
    let task = Task(&*live.filesystem);
    write_at(&live, "c", b"c");
    assert!(is_known(&workspace), "the same content");
    task.run(&Op::Write("a/other".into(), "x".into())).unwrap();
    assert!(!is_known(&workspace), "another name in a directory that was listed");
    task.run(&Op::Remove("a/other".into())).unwrap();
    assert!(is_known(&workspace));
    write_at(&live, "c", b"d");
    assert!(!is_known(&workspace));
}

#[test]
fn a_directory_that_is_renamed_takes_along_what_it_holds() {
    let (_site, workspace, live) = known();
    let task = Task(&*live.filesystem);
    task.run(&Op::Rename("a/a".into(), "elsewhere".into())).unwrap();
    assert!(!is_known(&workspace));
    task.run(&Op::Rename("elsewhere".into(), "a/a".into())).unwrap();
    assert!(run(&workspace, "reads", &[]), "all is as it was");
    assert!(is_known(&workspace));
}

/// Goal: a file is changed under all its names, also those that the kernel has not looked up.
#[test]
fn a_hard_link_is_written_under_its_other_name() {
    let site = site();
    fs::hard_link(site.root().join("c"), site.root().join("other")).unwrap();
    let (workspace, live) = mounted(&site, exclusive(), true);
    run(&workspace, "reads", &[]);
    assert!(run(&workspace, "reads", &[]) && is_known(&workspace));
    write_at(&live, "other", b"d");
    assert!(!is_known(&workspace));
    assert!(!run(&workspace, "reads", &[]));
}

/// Goal: the moment of a change is after it, so that whoever looks while it is made hears of it.
#[test]
fn what_is_written_behind_a_look_is_seen() {
    let (_site, workspace, live) = known();
    let node = Task(&*live.filesystem).find("c").unwrap().node;
    live.filesystem.writing(node);
    let file = live.filesystem.open(node, OpenFlags::READ | OpenFlags::WRITE).unwrap();
    assert!(run(&workspace, "reads", &[]), "not written yet");
    file.write_at(b"d", 0).unwrap();
    live.filesystem.written(node, &*file);
    assert!(!is_known(&workspace));
}

#[test]
fn a_file_is_written_where_a_commit_moved_it() {
    let (site, workspace, live) = known();
    let node = Task(&*live.filesystem).find("b/b").unwrap().node;
    let file = live.filesystem.open(node, OpenFlags::READ | OpenFlags::WRITE).unwrap();
    run(&workspace, "one", &[Op::Rename("b/b".into(), "a/b/c".into())]);
    run(&workspace, "reads", &[]);
    assert!(run(&workspace, "reads", &[]) && is_known(&workspace));
    file.write_at(b"x", 0).unwrap();
    live.filesystem.written(node, &*file);
    let moved = fs::read(site.root().join("a/b/c")).unwrap();
    assert_eq!(is_known(&workspace), moved[0] != b'x');
}

#[test]
fn commits_and_hits_of_other_tasks_are_seen() {
    let (_site, workspace, live) = known();
    let write = |content: &str| [Op::Write("b/c".into(), content.into())];
    run(&workspace, "one", &write("1"));
    assert!(!is_known(&workspace), "a commit");
    run(&workspace, "reads", &[]);
    assert!(run(&workspace, "reads", &[]) && is_known(&workspace));
    Task(&*live.filesystem).run(&Op::Remove("b/c".into())).unwrap();
    assert!(!is_known(&workspace));
    run(&workspace, "one", &write("2"));
    assert!(!is_known(&workspace), "another content");
    Task(&*live.filesystem).run(&Op::Remove("b/c".into())).unwrap();
    run(&workspace, "one", &write("1"));
    // Whatever that did, what is known is what is there.
    compare(&workspace, "reads");
}

#[test]
fn nothing_is_known_unless_the_mount_is_exclusive() {
    let promised = exclusive();
    let through = Serving { passthrough: true, ..promised };
    let plain = Serving { exclusive: false, ..promised };
    for (serving, covers_base) in [(promised, false), (through, true), (plain, true)] {
        let site = site();
        let (workspace, _live) = mounted(&site, serving, covers_base);
        run(&workspace, "reads", &[]);
        assert!(run(&workspace, "reads", &[]));
        assert!(!is_known(&workspace), "{serving:?}");
    }
}

#[test]
fn another_mount_knows_nothing_of_the_one_before() {
    let (site, workspace, live) = known();
    drop(live);
    workspace.unmount_live(false, &|_| ()).unwrap();
    workspace.live_ended();
    fs::File::options().write(true).open(site.root().join("c")).unwrap().write_all_at(b"d", 0).unwrap();
    let live = workspace.mount_live(Arc::new(Nobody), exclusive(), true).unwrap();
    assert!(!is_known(&workspace), "not in place yet");
    workspace.live_covers(Box::new(|| true));
    assert!(!is_known(&workspace));
    assert!(!run(&workspace, "reads", &[]));
    drop(live);
}

#[test]
fn a_mount_that_was_taken_away_covers_nothing() {
    let (_site, workspace, _live) = known();
    workspace.live_covers(Box::new(|| false));
    run(&workspace, "reads", &[]);
    assert!(run(&workspace, "reads", &[]) && !is_known(&workspace));
}

#[test]
fn a_file_without_a_name_is_nobodys_input() {
    let (_site, workspace, live) = known();
    let filesystem = &live.filesystem;
    let caller = Caller::new(0, 0);
    let (made, file) =
        filesystem.create_unnamed(caller, NodeId::ROOT, 0o600, OpenFlags::READ | OpenFlags::WRITE).unwrap();
    file.write_at(b"x", 0).unwrap();
    filesystem.written(made.node, &*file);
    assert!(is_known(&workspace));
    filesystem.link(made.node, NodeId::ROOT, Path::new("new").as_os_str()).unwrap();
    assert!(!is_known(&workspace), "the root was listed");
}

#[test]
fn the_sets_used_last_are_kept() {
    let known = Known::new(Box::new(|| true));
    let key = |number: usize| Key {
        owner: TaskId(Digest::of(b"")),
        weak: Digest::of(b""),
        path_set: Digest::of(&number.to_le_bytes()),
    };
    let seen = Seen {
        since: crate::touched::Touched::default().now(),
        layers: Arc::downgrade(&Arc::<[Arc<Layer>]>::from(Vec::new())),
        claim: None,
    };
    let insert = |number| {
        let members = known.members(&Vec::new(), &[]);
        known.insert(key(number), members, Digest::of(b""), seen.clone());
    };
    for number in 0..SETS_MAX {
        insert(number);
    }
    assert!(known.get(&key(0)).is_some());
    insert(SETS_MAX);
    assert!(known.get(&key(0)).is_some() && known.get(&key(1)).is_none());
}
