//! Cases that generated operations or reading the code found, shrunk to what matters.

use crate::kernel::Habits;
use crate::ops::{Data, Op, Replace};
use crate::world::{Made, Plan};
use crate::{live_and_materialise, view_and_commit};

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
        live_and_materialise(&plan, ops, caches);
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
