use std::collections::{BTreeMap, HashMap};
use std::fs::{self, File};
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::Path;
use std::sync::Arc;

use proptest::prelude::*;
use tempfile::TempDir;

use super::*;
use crate::fs::{Attr, AttrChanges, Caller, Filesystem, FsError, OpenFlags, RenameFlags};
use crate::store::Store;
use crate::tree::Tree;
use crate::view::{View, ViewOptions};

/// Something that a task does to a tree; what is impossible is left undone.
#[derive(Debug, Clone)]
pub(crate) enum Op {
    Write(String, String),
    MakeDir(String),
    Symlink(String, String),
    Link(String, String),
    Remove(String),
    Rename(String, String),
    Chmod(String, u32),
}

/// A task that changes files through what it sees.
pub(crate) struct Task<'a>(pub(crate) &'a dyn Filesystem);

impl Task<'_> {
    pub(crate) fn find(&self, path: &str) -> Result<Attr, FsError> {
        path.split('/')
            .try_fold(self.0.attr(NodeId::ROOT)?, |dir, name| self.0.lookup(dir.node, name.as_ref()))
    }

    fn parent<'p>(&self, path: &'p str) -> Result<(NodeId, &'p OsStr), FsError> {
        match path.rsplit_once('/') {
            Some((parent, name)) => Ok((self.find(parent)?.node, name.as_ref())),
            None => Ok((NodeId::ROOT, path.as_ref())),
        }
    }

    pub(crate) fn write(&self, path: &str, content: &[u8]) -> Result<(), FsError> {
        let (parent, name) = self.parent(path)?;
        let caller = Caller::new(0, 0);
        let flags = OpenFlags::WRITE | OpenFlags::TRUNCATE;
        let (node, file) = match self.0.lookup(parent, name) {
            Ok(found) => (found.node, self.0.open(found.node, flags)?),
            Err(_) => {
                let (made, file) = self.0.create(caller, parent, name, 0o644, flags)?;
                (made.node, file)
            }
        };
        let mut written = 0;
        while written < content.len() {
            written += file.write_at(&content[written..], written as u64)?;
            self.0.written(node, &*file);
        }
        Ok(())
    }

    pub(crate) fn read(&self, path: &str) -> Result<Vec<u8>, FsError> {
        let attr = self.find(path)?;
        let mut content = vec![0; usize::try_from(attr.size_bytes).unwrap()];
        let read = self.0.open(attr.node, OpenFlags::READ)?.read_at(&mut content, 0)?;
        content.truncate(read);
        Ok(content)
    }

    fn remove(&self, path: &str) -> Result<(), FsError> {
        let found = self.find(path)?;
        let (parent, name) = self.parent(path)?;
        if found.kind != FileKind::Dir {
            return self.0.unlink(parent, name);
        }
        for entry in self.0.read_dir(found.node)? {
            self.remove(&format!("{path}/{}", entry.name.to_str().unwrap()))?;
        }
        self.0.remove_dir(parent, name)
    }

    pub(crate) fn run(&self, op: &Op) -> Result<(), FsError> {
        let caller = Caller::new(0, 0);
        match op {
            Op::Write(path, content) => self.write(path, content.as_bytes()),
            Op::MakeDir(path) => {
                let (parent, name) = self.parent(path)?;
                self.0.make_dir(caller, parent, name, 0o755).map(drop)
            }
            Op::Symlink(path, target) => {
                let (parent, name) = self.parent(path)?;
                self.0.make_symlink(caller, parent, name, target.as_ref()).map(drop)
            }
            Op::Link(from, to) => {
                let (parent, name) = self.parent(to)?;
                self.0.link(self.find(from)?.node, parent, name).map(drop)
            }
            Op::Remove(path) => self.remove(path),
            // The kernel does not let such a request through.
            Op::Rename(from, to) if Path::new(to).starts_with(from) => Err(FsError::InvalidArgument),
            Op::Rename(from, to) => self.0.rename(self.parent(from)?, self.parent(to)?, RenameFlags::empty()),
            Op::Chmod(path, mode) => {
                let node = self.find(path)?.node;
                self.0
                    .set_attr(node, None, AttrChanges { mode: Some(*mode), ..AttrChanges::default() })
                    .map(drop)
            }
        }
    }
}

/// Does to real files what a [`Task`] does through a view.
pub(crate) fn run_for_real(root: &Path, op: &Op) -> std::io::Result<()> {
    let at = |path: &String| root.join(path);
    let leads_through_a_link = |path: &String| {
        Path::new(path).ancestors().skip(1).any(|dir| dir != Path::new("") && root.join(dir).is_symlink())
    };
    let paths = match op {
        Op::Link(from, to) | Op::Rename(from, to) => vec![from, to],
        Op::Write(path, _) | Op::MakeDir(path) | Op::Symlink(path, _) | Op::Remove(path) => vec![path],
        Op::Chmod(path, _) => vec![path],
    };
    // A file system never sees a path that leads through one: the kernel follows it.
    if paths.into_iter().any(leads_through_a_link) {
        return Ok(());
    }
    match op {
        Op::Write(path, _) | Op::Chmod(path, _) if at(path).is_symlink() => Ok(()),
        Op::Write(path, content) => fs::write(at(path), content),
        Op::MakeDir(path) => fs::create_dir(at(path)),
        Op::Symlink(path, target) => symlink(target, at(path)),
        Op::Link(from, to) => fs::hard_link(at(from), at(to)),
        Op::Remove(path) if at(path).symlink_metadata()?.is_dir() => fs::remove_dir_all(at(path)),
        Op::Remove(path) => fs::remove_file(at(path)),
        Op::Rename(from, to) => fs::rename(at(from), at(to)),
        Op::Chmod(path, mode) => fs::set_permissions(at(path), fs::Permissions::from_mode(*mode)),
    }
}

/// Kind, mode, content or target, and the first name of the same file, of everything below `root` but the
/// store.
pub(crate) fn snapshot(root: &Path) -> BTreeMap<String, String> {
    fn walk(root: &Path, dir: &Path, names: &mut Vec<String>) {
        for entry in fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            let name = path.strip_prefix(root).unwrap().to_str().unwrap().to_owned();
            if name == ".vout" {
                continue;
            }
            names.push(name);
            if !path.is_symlink() && path.is_dir() {
                walk(root, &path, names);
            }
        }
    }
    let mut names = Vec::new();
    walk(root, root, &mut names);
    names.sort();
    let mut first_names = HashMap::new();
    let describe = |name: String| {
        let path = root.join(&name);
        let stat = path.symlink_metadata().unwrap();
        let what = if stat.is_symlink() {
            format!("link to {:?}", fs::read_link(&path).unwrap())
        } else if stat.is_dir() {
            format!("directory {:o}", stat.mode() & 0o7777)
        } else {
            let first = first_names.entry(stat.ino()).or_insert_with(|| name.clone());
            format!("file {:o} {:?} as {first}", stat.mode() & 0o7777, fs::read(&path).unwrap())
        };
        (name, what)
    };
    names.into_iter().map(describe).collect()
}

/// A workspace that is put up anew for each place to stop at.
struct Site {
    dir: TempDir,
    view: View,
    tree: Arc<Tree>,
}

impl Site {
    fn new(store: &Arc<Store>, old: &[Op]) -> Self {
        let dir = TempDir::new().unwrap();
        for name in ["ws", "staging"] {
            fs::create_dir(dir.path().join(name)).unwrap();
        }
        for op in old {
            run_for_real(&dir.path().join("ws"), op).ok();
        }
        let open = |name: &str| OwnedFd::from(File::open(dir.path().join(name)).unwrap());
        let base = Base::new(open("ws"), Vec::new()).unwrap();
        let tree = Arc::new(Tree::new(Arc::new(base)));
        let view = View::new(ViewOptions {
            tree: Arc::clone(&tree),
            store: Arc::clone(store),
            staging: Arc::new(open("staging")),
            without: None,
            passthrough: false,
            xattrs: false,
            tells_made: false,
        });
        Self { dir, view, tree }
    }

    /// Runs the task and returns what its commit has to do.
    fn journal(&self, new: &[Op]) -> Journal {
        for op in new {
            Task(&self.view).run(op).ok();
        }
        let changes = self.view.changes().unwrap();
        let stage = |lower: &RelPath| {
            let blob = self.view.next_blob();
            let (dir, name) = self.tree.base().open_parent(lower)?;
            rustix::fs::linkat(dir, name, self.view.staging(), blob.as_os_str(), AtFlags::empty())?;
            Ok::<_, Errno>(blob)
        };
        let mut steps = plan(&changes, stage).unwrap();
        move_whole_dirs(&mut steps, self.view.staging()).unwrap();
        Journal { steps, ..Journal::default() }
    }

    fn apply(&self, moves: usize, journal: &Journal) {
        journal.apply_first(moves, self.tree.base(), self.view.staging()).unwrap();
    }

    fn snapshot(&self) -> BTreeMap<String, String> {
        snapshot(&self.dir.path().join("ws"))
    }
}

/// Goal: a commit that stops anywhere is finished by doing it again. Method: stop after each move, apply
/// the whole journal as a recovery does, compare with real files to which the same was done.
fn stop_everywhere(store: &Arc<Store>, old: &[Op], new: &[Op]) {
    let real = TempDir::new().unwrap();
    for op in old {
        run_for_real(real.path(), op).ok();
    }
    let before = snapshot(real.path());
    for op in new {
        run_for_real(real.path(), op).ok();
    }
    let after = snapshot(real.path());
    let mut moves = 0;
    loop {
        let site = Site::new(store, old);
        let journal = site.journal(new);
        assert_eq!(site.snapshot(), before, "nothing is changed before the commit");
        site.apply(moves, &journal);
        let bytes = crate::fingerprint::encode(&journal);
        site.apply(usize::MAX, &Journal::read(&*bytes).unwrap());
        assert_eq!(site.snapshot(), after, "stopped after {moves} moves of {:#?}", journal.steps);
        if moves >= 2 * journal.steps.len() {
            return;
        }
        moves += 1;
    }
}

pub(crate) fn path() -> impl Strategy<Value = String> {
    let name = || prop::sample::select(vec!["a", "b", "c"]);
    prop_oneof![
        name().prop_map(str::to_owned),
        (name(), name()).prop_map(|(dir, name)| format!("{dir}/{name}")),
        (name(), name(), name()).prop_map(|(top, dir, name)| format!("{top}/{dir}/{name}")),
    ]
}

pub(crate) fn op() -> impl Strategy<Value = Op> {
    let mode = prop::sample::select(vec![0o755, 0o500, 0o700, 0o644]);
    prop_oneof![
        4 => (path(), "[xyz]{0,3}").prop_map(|(path, content)| Op::Write(path, content)),
        4 => path().prop_map(Op::MakeDir),
        1 => (path(), path()).prop_map(|(path, target)| Op::Symlink(path, target)),
        2 => (path(), path()).prop_map(|(from, to)| Op::Link(from, to)),
        2 => path().prop_map(Op::Remove),
        2 => (path(), path()).prop_map(|(from, to)| Op::Rename(from, to)),
        1 => (path(), mode).prop_map(|(path, mode)| Op::Chmod(path, mode)),
    ]
}

/// Makes directories first, so that most of what follows is possible.
pub(crate) fn old_tree() -> Vec<Op> {
    let text = str::to_owned;
    // No hard links: a view takes names of one lower file for files of their own.
    let mut ops: Vec<_> = ["a", "a/a", "a/b", "b", "b/a"].map(|dir| Op::MakeDir(dir.into())).into();
    ops.extend(["a/a/a", "a/c", "b/a/a", "b/c", "c"].map(|file| Op::Write(file.into(), text(file))));
    ops.push(Op::Write(text("b/b"), text("moved later")));
    ops
}

/// One change of each kind, in each direction.
pub(crate) fn all_kinds() -> Vec<Op> {
    let text = str::to_owned;
    vec![
        // Directory to file, with all that is in it, and file to directory.
        Op::Remove(text("a/a")),
        Op::Write(text("a/a"), text("was a directory")),
        Op::Remove(text("c")),
        Op::MakeDir(text("c")),
        Op::Write(text("c/new"), text("was a file")),
        // Directory to symbolic link.
        Op::Remove(text("a/b")),
        Op::Symlink(text("a/b"), text("nowhere")),
        // A deletion, names of one file across directories, an overwritten name of a pair.
        Op::Remove(text("b/a/a")),
        Op::Link(text("c/new"), text("b/linked")),
        Op::Write(text("b/c"), text("new content")),
        Op::Rename(text("b/b"), text("c/moved")),
        Op::Chmod(text("b/a"), 0o500),
    ]
}

#[test]
fn a_commit_that_stops_anywhere_is_finished_by_doing_it_again() {
    let dir = TempDir::new().unwrap();
    let store = Arc::new(Store::open(dir.path()).unwrap().0);
    stop_everywhere(&store, &old_tree(), &all_kinds());
}

#[test]
fn generated_commits_that_stop_anywhere_are_finished_by_doing_them_again() {
    let dir = TempDir::new().unwrap();
    let store = Arc::new(Store::open(dir.path()).unwrap().0);
    let ops = (prop::collection::vec(op(), 0..6), prop::collection::vec(op(), 1..12));
    let config = ProptestConfig { cases: 96, failure_persistence: None, ..ProptestConfig::default() };
    proptest!(config, |((old, new) in ops)| {
        let old = old.into_iter().filter(|op| !matches!(op, Op::Link(..)));
        let old: Vec<_> = old_tree().into_iter().chain(old).collect();
        stop_everywhere(&store, &old, &new);
    });
}

fn moved(journal: &Journal) -> Vec<&str> {
    let moved = journal.steps.iter().filter(|step| matches!(step, Step::Moved(..)));
    moved.map(|step| step.path().as_os_str().to_str().unwrap()).collect()
}

#[test]
fn directories_that_the_task_made_are_moved_as_a_whole() {
    let (dir, text) = (TempDir::new().unwrap(), str::to_owned);
    let store = Arc::new(Store::open(dir.path()).unwrap().0);
    let site = Site::new(&store, &old_tree());
    let mut new = vec![Op::MakeDir(text("n")), Op::MakeDir(text("n/deep"))];
    new.extend(["n/1", "n/2", "n/deep/3", "a/new"].map(|file| Op::Write(text(file), text(file))));
    // Where its directory ends up does not matter.
    new.push(Op::Rename(text("n"), text("named")));
    let journal = site.journal(&new);
    assert_eq!(moved(&journal), ["named", "named/deep"]);
    journal.apply(site.tree.base(), site.view.staging()).unwrap();
    for (path, content) in [("named/1", "n/1"), ("named/deep/3", "n/deep/3"), ("a/new", "a/new")] {
        assert_eq!(fs::read_to_string(site.dir.path().join("ws").join(path)).unwrap(), content);
    }
    stop_everywhere(&store, &old_tree(), &new);
}

#[test]
fn a_directory_with_other_names_in_it_is_not_moved() {
    let (dir, text) = (TempDir::new().unwrap(), str::to_owned);
    let store = Arc::new(Store::open(dir.path()).unwrap().0);
    let others = [
        // Deleted, renamed, and moved away: the staged directory still has the old name.
        Op::Remove(text("n/1")),
        Op::Rename(text("n/1"), text("n/other")),
        Op::Rename(text("n/1"), text("a/1")),
    ];
    for other in others {
        let site = Site::new(&store, &old_tree());
        let mut new = vec![Op::MakeDir(text("n"))];
        new.extend(["n/1", "n/2"].map(|file| Op::Write(text(file), text(file))));
        new.push(other);
        assert_eq!(moved(&site.journal(&new)), [""; 0], "{new:?}");
        stop_everywhere(&store, &old_tree(), &new);
    }
}
