//! Model tests: generated operations on views and on the live tree, without a mount, against a native
//! directory that holds the merged content.
#![allow(clippy::unwrap_used, clippy::panic, reason = "tests own their input")]

mod actors;
mod found;
mod kernel;
mod native;
mod ops;
mod recorded;
mod snapshot;
mod unopened;
mod world;

use proptest::prelude::*;
use vout::archive::restore::restore_object;
use vout::commit::{Journal, move_whole_dirs, plan as plan_commit, superseded};
use vout::copy::copy_file;
use vout::fs::FsError;
use vout::path::{RelPath, RelPathBuf};
use vout::tree::Found;
use vout::view::{Change, View};

use crate::kernel::{Habits, Kernel};
use crate::native::Native;
use crate::ops::{Answer, Op};
use crate::world::{Plan, World};

/// Applies `ops` to both and compares every answer, and the whole trees now and then.
fn compare(kernel: &mut Kernel, native: &mut Native, ops: &[Op]) {
    for (number, op) in ops.iter().enumerate() {
        if is_unlike(kernel, native, op) {
            continue;
        }
        let (mut ours, mut theirs) = (kernel.run(op), native.run(op));
        if !kernel.links {
            (ours, theirs) = (ours.map(Answer::without_links), theirs.map(Answer::without_links));
        }
        assert_eq!(ours, theirs, "operation {number}, {op:?}: ours is left, native right");
        if matches!(op, Op::Compare) {
            same_trees(kernel, native, &format!("at operation {number}"));
        }
    }
    same_trees(kernel, native, "at the end");
}

/// Returns whether an operation is known to answer differently, or is not for this tree.
fn is_unlike(kernel: &Kernel, native: &Native, op: &Op) -> bool {
    match op {
        Op::ReadOpen(slot) | Op::Seek(slot, ..) | Op::CopyRange((slot, _), ..) => {
            kernel.reads_directly() && !native.is_unchanged(*slot)
        }
        Op::StatOpen(slot) => !kernel.is_view && !native.is_unchanged(*slot),
        Op::Unnamed(..)
        | Op::LinkOpen(..)
        | Op::ChmodOpen(..)
        | Op::UtimensOpen(..)
        | Op::SetXattr(..)
        | Op::RemoveXattr(..)
        | Op::Xattrs(_) => !kernel.is_view,
        _ => false,
    }
}

fn same_trees(kernel: &mut Kernel, native: &Native, when: &str) {
    let (mut ours, mut theirs) = (kernel.snapshot(), native.snapshot());
    if !kernel.links {
        (ours, theirs) = (ours.without_links(), theirs.without_links());
    }
    if let Some(difference) = ours.difference(&theirs) {
        panic!("{when}, {difference}");
    }
}

/// Returns whether link counts can be told: layers that hide names of the base's files change them unseen.
fn counts_links(plan: &Plan) -> bool {
    let is_link = |(_, made): &(String, world::Made)| matches!(made, world::Made::Link(_));
    plan.layers.is_empty() || !plan.base.iter().chain(plan.layers.iter().flatten()).any(is_link)
}

/// Runs `ops` in a view, then commits it, cut off after some steps and finished, and compares again.
fn view_and_commit(plan: &Plan, ops: &[Op], habits: Habits, cut: usize) {
    let mut world = World::new(plan);
    let before = world.base().snapshot();
    let view = world.view(habits.passthrough);
    let mut kernel = Kernel::over_view(&view, habits);
    kernel.links = counts_links(plan);
    compare(&mut kernel, &mut world.native, ops);
    assert_eq!(world.base().snapshot().difference(&before), None, "a view wrote to the base");

    let changes = view.changes().unwrap();
    let mut steps = plan_commit(&changes, |lower| stage(&view, lower)).unwrap();
    move_whole_dirs(&mut steps, view.staging()).unwrap();
    let whole = Journal { workspace: [0; 32], steps, punches: Vec::new() };
    let cut = Journal { steps: whole.steps[..cut.min(whole.steps.len())].to_vec(), ..whole.clone() };
    cut.apply(world.tree.base(), &world.staging).unwrap();
    whole.apply(world.tree.base(), &world.staging).unwrap();
    punch(&world, &changes);

    // Names of a virtual file become files of their own when one of them is moved.
    let virtual_links = plan.layers.iter().flatten().any(|(_, made)| matches!(made, world::Made::Link(_)));
    let (mut committed, mut expected) =
        (Kernel::over_view(&world.view(false), habits).snapshot(), world.native.snapshot());
    // So do names of a link.
    for snapshot in [&mut committed, &mut expected] {
        snapshot.forget_links_of_links();
    }
    if virtual_links {
        (committed, expected) = (committed.without_groups(), expected.without_groups());
    }
    if !kernel.links {
        (committed, expected) = (committed.without_links(), expected.without_links());
    }
    assert_eq!(committed.difference(&expected), None, "committed, by {changes:#?}");
}

/// Commits what a view holds.
fn commit(world: &World, view: &View) {
    let changes = view.changes().unwrap();
    let mut steps = plan_commit(&changes, |lower| stage(view, lower)).unwrap();
    move_whole_dirs(&mut steps, view.staging()).unwrap();
    let journal = Journal { workspace: [0; 32], steps, punches: Vec::new() };
    journal.apply(world.tree.base(), &world.staging).unwrap();
}

/// Makes a blob of lower content that was moved, as the engine does.
fn stage(view: &View, lower: &RelPath) -> Result<RelPathBuf, FsError> {
    let blob = view.next_blob();
    let name = blob.as_os_str();
    match view.tree().find(lower, view.perspective())?.unwrap() {
        Found::Base(_) => {
            let (dir, from) = view.tree().base().open_parent(lower)?;
            let linked = rustix::fs::linkat(&dir, from, view.staging(), name, rustix::fs::AtFlags::empty());
            linked.or_else(|_| copy_file((&dir, from), (view.staging(), name)))?;
        }
        Found::Virtual(layer, record) => {
            let mtime = layer.mtime(&record);
            let staging = std::os::fd::AsFd::as_fd(&**view.staging());
            restore_object(layer.archive(), &record, staging, name, mtime).unwrap();
        }
    }
    Ok(blob)
}

/// Takes committed paths out of the layers, as the engine does.
fn punch(world: &World, changes: &[Change]) {
    for (layer, record) in superseded(&world.tree, changes).unwrap() {
        layer.punch(&record.path, None);
    }
}

/// Runs `ops` on the live tree, then makes everything real and compares the base itself.
fn live_and_materialise(plan: &Plan, ops: &[Op], habits: Habits) {
    let mut world = World::new(plan);
    let (live, materialiser) = world.live(habits.passthrough);
    let mut kernel = Kernel::new(live, habits);
    compare(&mut kernel, &mut world.native, ops);
    materialiser.subtree(RelPath::ROOT).unwrap();
    let (base, native) = (world.base().snapshot().without_links(), world.native.snapshot().without_links());
    assert_eq!(base.difference(&native), None, "made real");
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, max_shrink_iters: 20_000, ..ProptestConfig::default() })]

    #[test]
    fn view_is_a_native_directory_and_so_is_what_it_commits(
        plan in world::plan(),
        ops in prop::collection::vec(ops::op(), 1..40),
        (caches, passthrough) in any::<(bool, bool)>(),
        cut in 0_usize..20,
    ) {
        view_and_commit(&plan, &ops, Habits { caches, passthrough }, cut);
    }

    #[test]
    fn live_tree_is_a_native_directory(
        plan in world::plan(),
        ops in prop::collection::vec(ops::op(), 1..40),
        (caches, passthrough) in any::<(bool, bool)>(),
    ) {
        live_and_materialise(&plan, &ops, Habits { caches, passthrough });
    }
}
