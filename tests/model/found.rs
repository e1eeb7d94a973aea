//! Cases that generated operations or reading the code found, shrunk to what matters.

use vout::fs::XattrMode;

use crate::kernel::{Habits, Kernel};
use crate::ops::{Data, Op, Replace};
use crate::world::{Made, Plan, World};
use crate::{commit, live_and_materialise, view_and_commit};

fn dir(path: &str) -> (String, Made) {
    (path.into(), Made::Dir(0o755))
}

fn file(path: &str) -> (String, Made) {
    (path.into(), Made::File(Data(3, 1), 0o644))
}

fn absent(path: &str) -> (String, Made) {
    (path.into(), Made::Absent)
}

fn rename(from: &str, to: &str) -> Op {
    Op::Rename(from.into(), to.into(), Replace::Yes)
}

fn create(path: &str) -> Op {
    Op::Create(path.into(), Data(5, 2), 0o644)
}

type Made1 = (String, Made);

/// Checks both a view, with and without passthrough and cut off at every early step, and the live tree.
fn check(base: &[Made1], layers: &[&[Made1]], ops: &[Op]) {
    let plan = Plan { base: base.to_vec(), layers: layers.iter().map(|layer| layer.to_vec()).collect() };
    for cut in 0..6 {
        view_and_commit(&plan, ops, Habits { caches: cut % 2 == 0, passthrough: cut < 3 }, cut);
    }
    for caches in [false, true] {
        for passthrough in [false, true] {
            live_and_materialise(&plan, ops, Habits { caches, passthrough });
        }
    }
}

#[test]
fn committing_below_a_layers_directory_replaces_a_file_of_the_base() {
    check(&[file("b")], &[&[file("b/c")]], &[Op::Write("b/c".into(), 1, Data(2, 3)), create("b/d")]);
}

#[test]
fn a_directory_moved_over_an_emptied_one_brings_nothing_back_in_subdirectories() {
    let base = [file("a/s/new"), file("b/s/old")];
    let ops = [Op::Unlink("b/s/old".into()), Op::Rmdir("b/s".into()), rename("a", "b")];
    check(&base, &[], &ops);
    check(&[], &[&base], &ops);
}

#[test]
fn a_file_that_trades_places_with_the_directory_of_its_other_name_stays_one_file() {
    let base = [file("b"), ("c/a".into(), Made::Link("b".into()))];
    check(&base, &[], &[Op::Rename("c".into(), "b".into(), Replace::Exchange)]);
}

#[test]
fn what_was_deleted_in_a_moved_directory_is_not_replaced_by_what_was_there() {
    let base = [dir("c/c/a"), file("b/c")];
    let exchange = Op::Rename("b".into(), "c".into(), Replace::Exchange);
    check(&base, &[], &[exchange, Op::Unlink("c/c".into())]);
}

#[test]
fn a_directory_in_place_of_a_file_that_hid_one_starts_empty() {
    let exchange = Op::Rename("c".into(), "b".into(), Replace::Exchange);
    check(&[dir("b/a/a")], &[&[file("b")], &[dir("c")]], &[exchange]);
}

#[test]
fn a_new_directory_where_a_layer_deleted_one_brings_nothing_back() {
    check(&[], &[&[dir("c/a")], &[absent("c")]], &[Op::Mkdir("c".into(), 0o755)]);
    check(&[file("c/x")], &[&[file("c/a")], &[absent("c")]], &[Op::Mkdir("c".into(), 0o755), create("c/b")]);
}

#[test]
fn writing_into_a_directory_that_one_layer_deleted_and_another_made_anew_brings_nothing_back() {
    let layers: [&[Made1]; 2] = [&[absent("c")], &[dir("c/a")]];
    check(&[file("c/x"), file("c/a/y")], &layers, &[create("c/b")]);
    check(&[file("c/x"), file("c/a/y")], &layers, &[Op::Chmod("c".into(), 0o700)]);
}

#[test]
fn a_path_of_two_layers_once_written_shows_what_was_written() {
    let layers: [&[Made1]; 2] = [&[file("a/f")], &[file("a/f"), dir("a/d")]];
    check(&[], &layers, &[Op::Append("a/f".into(), Data(9, 9)), Op::Chmod("a/d".into(), 0o700)]);
    check(&[], &layers, &[Op::Unlink("a/f".into()), create("a/g")]);
    check(&[], &layers, &[rename("a", "b")]);
}

#[test]
fn a_moved_directory_leaves_behind_what_a_layer_deleted_in_it() {
    check(&[file("a/x"), file("a/y")], &[&[absent("a/x")]], &[rename("a", "b")]);
    check(&[file("a/x"), file("a/y")], &[&[absent("b/y"), file("c")]], &[rename("a", "b")]);
}

#[test]
fn a_layers_directory_keeps_its_mode_when_it_is_filled() {
    check(&[dir("a")], &[&[("a".into(), Made::Dir(0o700))]], &[create("a/b")]);
}

#[test]
fn an_open_file_answers_after_its_name_is_gone() {
    for at in ["base", "layer"] {
        let ops = [
            Op::Open(0, at.into(), false),
            Op::Open(1, at.into(), false),
            Op::Close(1),
            Op::Unlink(at.into()),
            Op::StatOpen(0),
            Op::ReadOpen(0),
        ];
        check(&[file("base")], &[&[file("layer")]], &ops);
    }
}

#[test]
fn renaming_an_open_virtual_file_keeps_backings_apart() {
    for open in [true, false] {
        let ops = [Op::Open(0, "f".into(), false), rename("f", "g"), Op::Open(1, "g".into(), open)];
        check(&[], &[&[file("f")]], &ops);
        check(&[], &[&[("f".into(), Made::File(Data(150_000, 1), 0o644))]], &ops);
        check(&[file("f")], &[], &ops);
    }
}

#[test]
fn names_of_a_virtual_file_stay_one_file_when_one_is_written() {
    let layer = [file("a"), ("d/b".into(), Made::Link("a".into()))];
    check(&[], &[&layer], &[Op::Append("d/b".into(), Data(4, 4)), Op::Read("a".into())]);
}

#[test]
fn symbolic_links_can_have_two_names() {
    let link = ("l".into(), Made::Symlink("target".into()));
    check(
        &[link],
        &[],
        &[Op::Link("l".into(), "m".into()), Op::Readlink("m".into()), Op::Unlink("l".into())],
    );
}

/// Means something only to an ordinary user.
#[test]
fn a_file_made_read_only_is_written_by_who_made_it() {
    check(&[], &[], &[Op::Create("f".into(), Data(5, 1), 0o444), Op::Read("f".into())]);
    let fill = [Op::Mkdir("d".into(), 0o755), create("d/f"), Op::Chmod("d".into(), 0o555)];
    let plan = Plan::default();
    view_and_commit(&plan, &fill, Habits { caches: true, passthrough: false }, 2);
}

/// The other name of a file, which nobody looks at before the commit, is to have the same file afterwards.
#[test]
fn names_that_nobody_looked_at_follow_a_write_through_another() {
    let base = [file("a"), ("d/s/b".into(), Made::Link("a".into())), file("d/s/c")];
    let changes = [
        Op::Append("a".into(), Data(4, 4)),
        Op::Chmod("a".into(), 0o700),
        Op::Overwrite("a".into(), Data(3, 3)),
        Op::Utimens("a".into(), 5000),
        Op::SetXattr("a".into(), 0, Data(3, 3), XattrMode::Set),
    ];
    for change in changes {
        committed_without_looking(&base, std::slice::from_ref(&change));
        committed_without_looking(&base, &[change.clone(), Op::Unlink("a".into())]);
        committed_without_looking(&base, &[rename("d", "e"), change.clone()]);
        committed_without_looking(&base, &[change, rename("d/s", "t")]);
    }
}

/// Like a check, but nobody lists the view before it is committed.
fn committed_without_looking(base: &[Made1], ops: &[Op]) {
    let plan = Plan { base: base.to_vec(), layers: Vec::new() };
    for passthrough in [false, true] {
        let mut world = World::new(&plan);
        let habits = Habits { caches: true, passthrough };
        let view = world.view(passthrough);
        let mut kernel = Kernel::over_view(&view, habits);
        for op in ops {
            assert_eq!(kernel.run(op), world.native.run(op), "{op:?}");
            kernel.run(&Op::Reclaim).unwrap();
        }
        commit(&world, &view);
        assert_eq!(world.base().snapshot().difference(&world.native.snapshot()), None, "{ops:?}");
    }
}

#[test]
fn link_counts_follow_names_whether_they_were_looked_at_or_not() {
    let base = [file("a"), ("b".into(), Made::Link("a".into())), ("d/c".into(), Made::Link("a".into()))];
    let ops = [
        Op::Unlink("a".into()),
        Op::Reclaim,
        Op::Stat("b".into()),
        Op::Link("b".into(), "e".into()),
        Op::Append("e".into(), Data(2, 2)),
        Op::Unlink("b".into()),
        Op::Stat("d/c".into()),
        Op::Rename("d/c".into(), "e".into(), Replace::Yes),
        Op::Unlink("e".into()),
        Op::Stat("d/c".into()),
    ];
    check(&base, &[], &ops);
}

#[test]
fn a_reader_does_not_keep_others_from_changing_a_file() {
    for mut change in [
        vec![Op::ChmodOpen(0, 0o700)],
        vec![Op::UtimensOpen(0, 5000)],
        vec![Op::Truncate("a".into(), 1)],
        vec![Op::SetXattr("a".into(), 0, Data(3, 3), XattrMode::Set)],
        vec![Op::Overwrite("a".into(), Data(9, 9)), Op::ChmodOpen(0, 0o700)],
    ] {
        let mut ops = vec![Op::Stat("b".into()), Op::Open(0, "a".into(), false)];
        ops.append(&mut change);
        ops.extend([Op::StatOpen(0), Op::ReadOpen(0), Op::Stat("b".into()), Op::Read("b".into())]);
        check(&[file("a"), ("b".into(), Made::Link("a".into()))], &[], &ops);
    }
}

#[test]
fn a_file_without_a_name_can_get_one_and_others_cannot_come_back() {
    let ops = [
        Op::Unnamed(0, 0o640),
        Op::WriteOpen(0, 0, Data(50, 1)),
        Op::StatOpen(0),
        Op::LinkOpen(0, "f".into()),
        Op::Unlink("f".into()),
        Op::LinkOpen(0, "g".into()),
        Op::Unnamed(1, 0o644),
        Op::LinkOpen(1, "h".into()),
        Op::CopyRange((1, 0), (1, 100), 50),
        Op::Reclaim,
        Op::StatOpen(1),
    ];
    check(&[], &[], &ops);
}

#[test]
fn attributes_of_directories_are_committed() {
    let set = |path: &str, number| Op::SetXattr(path.into(), number, Data(3, 3), XattrMode::Set);
    let ops = [set("d", 0), set("d", 1), Op::RemoveXattr("d".into(), 0), rename("d", "e"), set("l", 2)];
    check(&[file("d/x")], &[&[dir("l")]], &ops);
}

#[test]
fn subdirectories_count_as_links_of_their_directory() {
    let ops = [
        Op::Stat("d".into()),
        Op::Mkdir("d/new".into(), 0o755),
        Op::Stat("d".into()),
        rename("d/s", "t"),
        Op::Rename("d/new".into(), "d/f".into(), Replace::Exchange),
        Op::Stat("d".into()),
        Op::Rmdir("t".into()),
        Op::Rename("d/f".into(), "f".into(), Replace::Exchange),
        Op::Stat("d".into()),
    ];
    check(&[dir("d/s"), file("d/f"), file("f")], &[], &ops);
    check(&[dir("d/s")], &[&[file("d/f"), dir("d/u"), file("f")]], &ops);
}
