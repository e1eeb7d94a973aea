//! Two programs in one view at the same time.

use std::ffi::OsStr;
use std::sync::Arc;
use std::thread;

use proptest::prelude::*;
use vout::fs::{Attr, Caller, FileKind, Filesystem, FsError, NodeId, OpenFlags, RenameFlags};
use vout::view::View;

use crate::commit;
use crate::native::Native;
use crate::world::{self, World};

/// What an actor does with one of a few names in the root, which both actors use.
#[derive(Debug, Clone)]
enum Step {
    Create(u8),
    Append(u8),
    Link(u8, u8),
    Unlink(u8),
    Rename(u8, u8, bool),
    Mkdir(u8),
    Rmdir(u8),
    List,
    Forget(u8),
}

fn step() -> impl Strategy<Value = Step> {
    let name = || 0_u8..4;
    prop_oneof![
        3 => name().prop_map(Step::Create),
        3 => name().prop_map(Step::Append),
        2 => (name(), name()).prop_map(|(a, b)| Step::Link(a, b)),
        2 => name().prop_map(Step::Unlink),
        3 => (name(), name(), any::<bool>()).prop_map(|(a, b, e)| Step::Rename(a, b, e)),
        1 => name().prop_map(Step::Mkdir),
        1 => name().prop_map(Step::Rmdir),
        1 => Just(Step::List),
        1 => name().prop_map(Step::Forget),
    ]
}

fn name(number: u8) -> String {
    ["a", "b", "c", "d"][usize::from(number)].to_owned()
}

fn act(view: &View, step: &Step) -> Result<(), FsError> {
    let (uid, gid) = Native::owner();
    let caller = Caller::new(uid.as_raw(), gid.as_raw());
    let root = NodeId::ROOT;
    let find = |number: &u8| view.lookup(root, OsStr::new(&name(*number)));
    match step {
        Step::Create(at) => view
            .create(caller, root, name(*at).as_ref(), 0o644, OpenFlags::WRITE)
            .and_then(|(_, file)| file.write_at(b"new", 0))
            .map(drop),
        Step::Append(at) => {
            let attr = find(at)?;
            view.open(attr.node, OpenFlags::WRITE)?.write_at(b"more", attr.size_bytes).map(drop)
        }
        Step::Link(from, to) => view.link(find(from)?.node, root, name(*to).as_ref()).map(drop),
        Step::Unlink(at) => view.unlink(root, name(*at).as_ref()),
        Step::Rename(from, to, exchange) => {
            let flags = if *exchange { RenameFlags::EXCHANGE } else { RenameFlags::empty() };
            view.rename((root, name(*from).as_ref()), (root, name(*to).as_ref()), flags)
        }
        Step::Mkdir(at) => view.make_dir(caller, root, name(*at).as_ref(), 0o755).map(drop),
        Step::Rmdir(at) => view.remove_dir(root, name(*at).as_ref()),
        Step::List => view.read_dir(root).map(drop),
        Step::Forget(at) => {
            view.forget(find(at)?.node);
            Ok(())
        }
    }
}

/// Names must lead to what they say, and be counted as often as they are there.
fn is_consistent(view: &View) {
    let entries = view.read_dir(NodeId::ROOT).unwrap();
    let attrs: Vec<(FileKind, Attr)> =
        entries.iter().map(|entry| (entry.kind, view.lookup(NodeId::ROOT, &entry.name).unwrap())).collect();
    for (kind, attr) in &attrs {
        assert_eq!(*kind, attr.kind);
        if attr.kind == FileKind::File {
            let names = attrs.iter().filter(|(_, other)| other.ino == attr.ino).count();
            assert_eq!(attr.nlink as usize, names, "names of one file");
            view.open(attr.node, OpenFlags::READ).unwrap().read_at(&mut [0; 16], 0).unwrap();
        }
    }
    let dirs = attrs.iter().filter(|(kind, _)| *kind == FileKind::Dir).count();
    assert_eq!(view.attr(NodeId::ROOT).unwrap().nlink as usize, 2 + dirs);
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, cases: 100, ..ProptestConfig::default() })]

    /// Goal: whatever two programs do at once, nothing breaks, and what they see is what is committed.
    #[test]
    fn two_actors_leave_a_consistent_tree(
        first in prop::collection::vec(step(), 1..60),
        second in prop::collection::vec(step(), 1..60),
        passthrough in any::<bool>(),
    ) {
        let file = |path: &str| (path.to_owned(), world::Made::File(crate::ops::Data(20, 1), 0o644));
        let base = vec![file("a"), ("b".into(), world::Made::Link("a".into())), file("c")];
        let world = World::new(&world::Plan { base, layers: Vec::new() });
        let view = world.view(passthrough);
        let actors = [first, second].map(|steps| {
            let view = Arc::clone(&view);
            thread::spawn(move || {
                for step in &steps {
                    // Whether it succeeds is decided by the other actor.
                    act(&view, step).ok();
                }
            })
        });
        for actor in actors {
            actor.join().unwrap();
        }
        is_consistent(&view);
        commit(&world, &view);
        is_consistent(&world.view(passthrough));
    }
}
