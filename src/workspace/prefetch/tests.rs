use std::ffi::OsStr;
use std::fs::{self, File};
use std::os::unix::fs::FileExt;

use super::*;
use crate::commit::tests::Task;
use crate::fs::{Caller, Invalidator, NodeId};
use crate::serving::Serving;
use crate::watch::News;
use crate::workspace::tests::{Site, begin, finish, miss, random};
use crate::workspace::{Begun, LiveTree, Workspace};

/// Two of them fill a frame.
const SMALL_BYTES: u64 = 120_000;
const LARGE_BYTES: u64 = 700_000;
const SMALL: u64 = 20;
/// More than the table of contents and what follows it.
const TABLE_BYTES: u64 = 20_000;

struct Nobody;

impl Invalidator for Nobody {
    fn entry_changed(&self, _: NodeId, _: &OsStr) {}
    fn node_changed(&self, _: NodeId) {}
    fn content_changed(&self, _: NodeId) {}
    fn name_expires(&self, _: NodeId, _: &OsStr) {}
    fn attributes_changed(&self, _: NodeId) {}
    fn news(&self, _: Box<dyn News>) {}
}

fn mount(workspace: &Workspace) -> LiveTree {
    let serving = Serving { passthrough: false, ..Serving::default() };
    workspace.mount_live(Arc::new(Nobody), serving, true).unwrap()
}

fn layer(workspace: &Workspace) -> Arc<Layer> {
    Arc::clone(workspace.tree.layers().first().unwrap())
}

fn prefetch(workspace: &Workspace) {
    workspace.prefetcher.shared.prefetch(&layer(workspace), None).unwrap();
}

fn small(number: u64) -> String {
    format!("out/{number:02}")
}

/// Returns a site where a task's outputs are a layer of which `read` was read, and what they are.
fn with_layer(read: &[String]) -> (Site, Vec<(String, Vec<u8>)>) {
    let site = Site::new();
    let files: Vec<_> = (0..SMALL)
        .map(|number| (small(number), random(SMALL_BYTES)))
        .chain([("out/large".to_owned(), random(LARGE_BYTES))])
        .collect();
    let workspace = site.open().unwrap();
    let run = miss(begin(&workspace, "task")).0;
    let task = run.filesystem();
    task.make_dir(Caller::new(0, 0), NodeId::ROOT, "out".as_ref(), 0o755).unwrap();
    files.iter().for_each(|(path, content)| Task(&*task).write(path, content).unwrap());
    finish(&workspace, run).unwrap();
    fs::remove_dir_all(site.root().join("out")).unwrap();
    let live = mount(&workspace);
    assert!(matches!(begin(&workspace, "task").unwrap(), Begun::Hit { .. }));
    for path in read {
        let content = &files.iter().find(|(name, _)| name == path).unwrap().1;
        assert!(Task(&*live.filesystem).read(path).unwrap() == *content);
    }
    workspace.prefetcher.shared.note(&layer(&workspace)).unwrap();
    (site, files)
}

/// Overwrites all frames: what can be read after that is at hand.
fn damage(workspace: &Workspace) {
    let archive = workspace.store.archive_path(layer(workspace).archive_id());
    let file = File::options().write(true).open(archive).unwrap();
    let frames_bytes = file.metadata().unwrap().len() - TABLE_BYTES;
    file.write_all_at(&random(frames_bytes), 0).unwrap();
}

#[test]
fn what_was_read_last_is_ready_in_that_order() {
    let read = [small(7), "out/large".to_owned(), small(2)];
    let (site, files) = with_layer(&read);
    let workspace = site.open().unwrap();
    let reading = workspace.prefetcher.shared.reading(&layer(&workspace)).unwrap();
    assert_eq!(reading.paths.iter().map(ToString::to_string).collect::<Vec<_>>(), read);
    assert!(!reading.is_most);
    let live = mount(&workspace);
    prefetch(&workspace);
    damage(&workspace);
    let can_be_read: Vec<_> = files
        .iter()
        .filter(|(path, content)| {
            Task(&*live.filesystem).read(path).is_ok_and(|read| {
                assert!(read == *content, "{path}");
                true
            })
        })
        .map(|(path, _)| path.clone())
        .collect();
    assert!(read.iter().all(|path| can_be_read.contains(path)), "{can_be_read:?}");
    assert!(can_be_read.len() <= 5, "frames of two files, and the large one: {can_be_read:?}");
}

#[test]
fn where_most_was_read_all_is_ready() {
    let read: Vec<_> = (0..SMALL).map(small).collect();
    let (site, files) = with_layer(&read);
    let workspace = site.open().unwrap();
    assert!(workspace.prefetcher.shared.reading(&layer(&workspace)).unwrap().is_most);
    let live = mount(&workspace);
    prefetch(&workspace);
    damage(&workspace);
    for (path, content) in &files {
        assert!(Task(&*live.filesystem).read(path).unwrap() == *content, "{path}");
    }
}

#[test]
fn nothing_is_made_ready_of_what_nobody_read_or_sees() {
    let (site, _) = with_layer(&[]);
    let workspace = site.open().unwrap();
    prefetch(&workspace);
    assert!(!layer(&workspace).archive().keeps_ahead(), "nobody read it");
    drop(workspace);

    let (site, _) = with_layer(&[small(1)]);
    let workspace = site.open().unwrap();
    let gone = layer(&workspace);
    workspace.tree.detach(gone.owner());
    workspace.prefetcher.shared.prefetch(&gone, None).unwrap();
    assert!(!gone.archive().keeps_ahead(), "it is not attached");
}

#[test]
fn a_reader_that_read_nothing_changes_nothing() {
    let (site, _) = with_layer(&[small(3)]);
    let workspace = site.open().unwrap();
    let shared = &workspace.prefetcher.shared;
    let before = shared.reading(&layer(&workspace)).unwrap();
    shared.note(&layer(&workspace)).unwrap();
    assert_eq!(shared.reading(&layer(&workspace)).unwrap(), before);
}
