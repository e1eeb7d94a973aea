use std::fs::{self, File};
use std::path::Path;

use super::*;
use crate::archive::{Manifest, write_manifest};
use crate::base::Base;
use crate::claim::{absent_record, real_record};
use crate::digest::Digest;
use crate::touched::Touched;

/// A workspace in which a task made `dist`, changed `edited` and deleted `deleted`.
struct Scene {
    dir: tempfile::TempDir,
    tree: Tree,
    hashes: ContentHashes,
    owner: TaskId,
    claimed: Arc<Claimed>,
}

fn path(text: &str) -> &RelPath {
    RelPath::new(text).unwrap()
}

fn old_file(content: &[u8]) -> PathState {
    let size_bytes = content.len() as u64;
    PathState::File { executable: false, size_bytes, content: Some(Digest::of(content)) }
}

impl Scene {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("base");
        fs::create_dir_all(root.join("dist/sub")).unwrap();
        for file in ["dist/a", "dist/sub/b", "edited", "source"] {
            fs::write(root.join(file), file).unwrap();
        }
        let tree = Tree::new(Arc::new(Base::new(File::open(&root).unwrap().into(), Vec::new()).unwrap()));
        let real = |at: &str, before: &PathState| {
            let stat = tree.base().stat(path(at)).unwrap().unwrap();
            real_record(path(at).to_owned(), &stat, before).unwrap()
        };
        let mut records: Vec<_> = ["dist", "dist/a", "dist/sub", "dist/sub/b"]
            .map(|made| real(made, &PathState::Absent))
            .into_iter()
            .collect();
        records.push(real("edited", &old_file(b"old")));
        records.push(absent_record(path("deleted").to_owned(), &old_file(b"gone")));
        let manifest = dir.path().join("manifest");
        let file = File::options().read(true).write(true).create_new(true).open(&manifest).unwrap();
        write_manifest(&file, records).unwrap();
        let claimed = Arc::new(Claimed::new(Manifest::open(file, manifest).unwrap()));
        let owner = TaskId(Digest::of(b"task"));
        Self { dir, tree, hashes: ContentHashes::default(), owner, claimed }
    }

    fn at(&self, file: &str) -> std::path::PathBuf {
        self.dir.path().join("base").join(file)
    }

    fn state(&self, at: &str, dependency: Dependency) -> PathState {
        let claimed = Some(Arc::clone(&self.claimed));
        let Self { tree, hashes, owner, .. } = self;
        Logical { tree, hashes, owner, claimed, touched: None }.state(path(at), dependency).unwrap()
    }

    fn names(&self, dir: &str) -> Vec<String> {
        let PathState::Dir { listing: Some(listing) } = self.state(dir, Dependency::LIST) else {
            panic!("{dir:?} has no listing");
        };
        listing.into_iter().map(|(name, _)| String::from_utf8(name.into_vec()).unwrap()).collect()
    }
}

#[test]
fn own_outputs_are_absent_in_probes_and_listings() {
    let scene = Scene::new();
    for own in ["dist", "dist/a", "dist/sub", "dist/sub/b", "dist/never"] {
        assert_eq!(scene.state(own, Dependency::all()), PathState::Absent, "{own}");
    }
    assert_eq!(scene.names(""), ["deleted", "edited", "source"]);
}

#[test]
fn what_the_task_changed_or_deleted_is_as_it_was_before() {
    let scene = Scene::new();
    assert_eq!(scene.state("edited", Dependency::READ), old_file(b"old"));
    assert_eq!(scene.state("deleted", Dependency::READ), old_file(b"gone"));
    let probed = PathState::File { executable: false, size_bytes: 3, content: None };
    assert_eq!(scene.state("edited", Dependency::PROBE), probed);
}

#[test]
fn an_output_that_somebody_edited_is_real_and_so_are_the_directories_above() {
    let scene = Scene::new();
    fs::write(scene.at("dist/sub/b"), "edited by hand").unwrap();
    assert_eq!(scene.state("dist/sub/b", Dependency::READ), old_file(b"edited by hand"));
    assert_eq!(scene.names(""), ["deleted", "dist", "edited", "source"]);
    assert_eq!(scene.names("dist"), ["sub"]);
    assert_eq!(scene.names("dist/sub"), ["b"]);
}

#[test]
fn an_output_that_somebody_deleted_is_absent() {
    let scene = Scene::new();
    fs::remove_file(scene.at("dist/a")).unwrap();
    fs::remove_file(scene.at("edited")).unwrap();
    assert_eq!(scene.state("dist/a", Dependency::READ), PathState::Absent);
    assert_eq!(scene.state("edited", Dependency::READ), PathState::Absent);
    assert_eq!(scene.names(""), ["deleted", "source"]);
}

#[test]
fn a_deleted_file_that_somebody_made_again_is_real() {
    let scene = Scene::new();
    fs::write(scene.at("deleted"), "again").unwrap();
    assert_eq!(scene.state("deleted", Dependency::READ), old_file(b"again"));
}

#[test]
fn a_foreign_file_makes_the_directory_real_and_shows_alone() {
    let scene = Scene::new();
    fs::write(scene.at("dist/foreign"), "f").unwrap();
    assert_eq!(scene.state("dist", Dependency::PROBE), PathState::Dir { listing: None });
    assert_eq!(scene.names("dist"), ["foreign"]);
    assert_eq!(scene.state("dist/sub", Dependency::PROBE), PathState::Absent);
}

#[test]
fn a_log_of_touches_says_the_same_as_looking() {
    let scene = Scene::new();
    let log = Touched::default();
    let start = log.now();
    let check = |expected: PathState| {
        let Scene { tree, hashes, owner, .. } = &scene;
        let claimed = Some(Arc::clone(&scene.claimed));
        let touched = Some(log.since(start, owner).unwrap());
        let logical = Logical { tree, hashes, owner, claimed, touched };
        assert_eq!(logical.state(path("dist"), Dependency::PROBE).unwrap(), expected);
        assert_eq!(scene.state("dist", Dependency::PROBE), expected);
    };
    check(PathState::Absent);
    log.touch(path("dist-other"), None);
    check(PathState::Absent);
    fs::write(Path::new(&scene.at("dist/foreign")), "f").unwrap();
    log.touch(path("dist/foreign"), None);
    check(PathState::Dir { listing: None });
}
