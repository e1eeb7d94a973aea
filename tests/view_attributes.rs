//! What a view makes of attributes, where the model test cannot compare: owners, set-id bits, `ctime`, limits.
#![allow(clippy::unwrap_used, reason = "tests own their input")]

use std::error::Error;
use std::ffi::OsStr;
use std::fs::{self, File};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use rustix::io::Errno;
use vout::base::Base;
use vout::fs::{
    Attr, AttrChanges, Caller, Filesystem, FsError, NodeId, OpenFlags, RenameFlags, SetTime, Timestamp,
};
use vout::store::Store;
use vout::tree::Tree;
use vout::view::{View, ViewOptions};

type TestResult = Result<(), Box<dyn Error>>;

struct Fixture {
    view: View,
    _dir: tempfile::TempDir,
}

fn fixture(passthrough: bool, fill: impl FnOnce(&std::path::Path)) -> Fixture {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    for name in ["base", "staging"] {
        fs::create_dir(at(name)).unwrap();
    }
    fill(&at("base"));
    let base = Arc::new(Base::new(File::open(at("base")).unwrap().into(), Vec::new()).unwrap());
    let view = View::new(ViewOptions {
        tree: Arc::new(Tree::new(base)),
        store: Arc::new(Store::open(&at("store")).unwrap().0),
        staging: Arc::new(File::open(at("staging")).unwrap().into()),
        without: None,
        passthrough,
        xattrs: false,
        tells_made: false,
    });
    Fixture { view, _dir: dir }
}

fn me() -> Caller {
    Caller::new(rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw())
}

fn find(view: &View, name: &str) -> Result<Attr, FsError> {
    view.lookup(NodeId::ROOT, OsStr::new(name))
}

/// Longer than a tick of the clock that file systems use.
#[expect(clippy::disallowed_methods, reason = "time has to pass")]
fn let_time_pass() {
    thread::sleep(Duration::from_millis(25));
}

#[test]
fn changed_names_change_the_ctime_of_a_file_but_not_its_mtime() -> TestResult {
    let Fixture { view, _dir } = fixture(false, |base| {
        fs::write(base.join("below"), "x").unwrap();
        fs::hard_link(base.join("below"), base.join("other")).unwrap();
    });
    view.create(me(), NodeId::ROOT, OsStr::new("own"), 0o644, OpenFlags::WRITE)?;
    for name in ["own", "below"] {
        let node = find(&view, name)?.node;
        let (renamed, linked) = (format!("{name}-renamed"), format!("{name}-linked"));
        let steps: [&dyn Fn() -> Result<(), FsError>; 3] = [
            &|| view.link(node, NodeId::ROOT, OsStr::new(&linked)).map(drop),
            &|| {
                let (from, to) = ((NodeId::ROOT, OsStr::new(name)), (NodeId::ROOT, OsStr::new(&renamed)));
                view.rename(from, to, RenameFlags::empty())
            },
            &|| view.unlink(NodeId::ROOT, OsStr::new(&renamed)),
        ];
        for step in steps {
            let (before, dir) = (view.attr(node)?, view.attr(NodeId::ROOT)?);
            let_time_pass();
            step()?;
            let (after, dir_after) = (view.attr(node)?, view.attr(NodeId::ROOT)?);
            assert!(after.ctime > before.ctime && dir_after.mtime > dir.mtime && dir_after.ctime > dir.ctime);
            assert_eq!((after.mtime, after.ino), (before.mtime, before.ino));
        }
    }
    Ok(())
}

#[test]
fn a_new_owner_or_a_write_without_the_privilege_takes_set_id_bits_away() -> TestResult {
    let Fixture { view, _dir } = fixture(false, |base| {
        for name in ["chown", "truncate", "write"] {
            fs::write(base.join(name), "x").unwrap();
            fs::set_permissions(base.join(name), fs::Permissions::from_mode(0o6755)).unwrap();
        }
    });
    let node = find(&view, "chown")?.node;
    let owner = AttrChanges { uid: Some(me().uid), ..AttrChanges::default() };
    assert_eq!(view.set_attr(node, None, owner)?.mode, 0o755);
    let node = find(&view, "truncate")?.node;
    let kept = AttrChanges { size_bytes: Some(0), ..AttrChanges::default() };
    assert_eq!(view.set_attr(node, None, kept)?.mode, 0o6755);
    let killed = AttrChanges { kill_set_id: true, ..kept };
    assert_eq!(view.set_attr(node, None, killed)?.mode, 0o755);
    let node = find(&view, "write")?.node;
    view.open(node, OpenFlags::WRITE)?.kill_set_id()?;
    assert_eq!(view.attr(node)?.mode, 0o755);
    Ok(())
}

#[test]
fn a_set_group_id_directory_hands_its_group_down_and_guards_it() -> TestResult {
    let Fixture { view, _dir } = fixture(false, |_| {});
    let dir = view.make_dir(me(), NodeId::ROOT, OsStr::new("d"), 0o755)?.node;
    let group = me().gid;
    view.set_attr(dir, None, AttrChanges { mode: Some(0o2775), ..AttrChanges::default() })?;
    let stranger = Caller::new(me().uid.max(1), group + 1);
    let sub = view.make_dir(stranger, dir, OsStr::new("sub"), 0o755)?;
    assert_eq!((sub.gid, sub.mode), (group, 0o2755));
    let (file, _) = view.create(stranger, dir, OsStr::new("f"), 0o2755, OpenFlags::WRITE)?;
    assert_eq!((file.gid, file.mode), (group, 0o755));
    let member = Caller { group_of_dir: Some(group), ..stranger };
    let (file, _) = view.create(member, dir, OsStr::new("g"), 0o2755, OpenFlags::WRITE)?;
    assert_eq!(file.mode, 0o2755);
    Ok(())
}

#[test]
fn names_and_targets_are_as_long_as_on_ext4() -> TestResult {
    let target = "t".repeat(4095);
    let Fixture { view, _dir } = fixture(false, |base| symlink(&target, base.join("below")).unwrap());
    let longest = "n".repeat(255);
    view.make_symlink(me(), NodeId::ROOT, OsStr::new(&longest), OsStr::new(&target))?;
    for name in ["below", &longest] {
        assert_eq!(view.read_link(find(&view, name)?.node)?, *target);
    }
    let too_long = find(&view, &"n".repeat(256)).unwrap_err();
    assert!(
        matches!(too_long, FsError::Os(error) if Errno::from_io_error(&error) == Some(Errno::NAMETOOLONG))
    );
    Ok(())
}

/// Goal: a file that is read directly keeps its inode number when it is written, and its old node tells of it.
#[test]
fn a_file_that_gets_another_node_keeps_its_inode_number() -> TestResult {
    let Fixture { view, _dir } = fixture(true, |base| fs::write(base.join("f"), "old").unwrap());
    let before = find(&view, "f")?;
    let reader = view.open(before.node, OpenFlags::READ)?;
    assert!(matches!(view.open(before.node, OpenFlags::WRITE), Err(FsError::Stale)));
    let after = find(&view, "f")?;
    assert_ne!(after.node, before.node);
    view.open(after.node, OpenFlags::WRITE)?.write_at(b"newer", 0)?;
    let mtime = Some(SetTime::At(Timestamp { secs: 7, nanos: 9 }));
    view.set_attr(before.node, Some(&*reader), AttrChanges { mtime, ..AttrChanges::default() })?;
    let (old, new) = (view.attr(before.node)?, view.attr(after.node)?);
    assert_eq!((old.ino, new.ino, old.size_bytes), (before.ino, before.ino, 5));
    assert_eq!((old.mtime, new.mtime.secs), (new.mtime, 7));
    let mut content = [0; 8];
    assert_eq!(reader.read_at(&mut content, 0)?, 3);
    assert_eq!(&content[..3], b"old");
    Ok(())
}

#[test]
fn what_is_unlinked_but_open_has_no_links_and_can_still_be_changed() -> TestResult {
    for passthrough in [false, true] {
        let Fixture { view, _dir } = fixture(passthrough, |base| fs::write(base.join("f"), "old").unwrap());
        let node = find(&view, "f")?.node;
        let file = view.open(node, OpenFlags::READ | OpenFlags::WRITE)?;
        view.unlink(NodeId::ROOT, OsStr::new("f"))?;
        let cut = AttrChanges { size_bytes: Some(1), mode: Some(0o600), ..AttrChanges::default() };
        let attr = view.set_attr(node, Some(&*file), cut)?;
        assert_eq!((attr.nlink, attr.size_bytes, attr.mode), (0, 1, 0o600));
        assert!(matches!(view.link(node, NodeId::ROOT, OsStr::new("g")), Err(FsError::NotFound)));
        drop(file);
        view.forget(node);
        assert!(view.changes()?.iter().all(|change| change.object.is_none()));
    }
    Ok(())
}
