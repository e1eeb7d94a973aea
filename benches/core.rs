//! Micro-benchmarks of the core: `cargo bench -p vout`. They compare two versions of one function on one machine;
//! what a user waits for is measured by `scripts/bench/run`.
#![allow(clippy::unwrap_used, reason = "a benchmark that cannot be set up fails by panicking")]
#![allow(missing_docs, reason = "a program of its own")]

use std::fs::File;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use divan::Bencher;
use divan::counter::{BytesCount, ItemsCount};
use tempfile::TempDir;
use uuid::Uuid;
use vout::archive::{Archive, Extent, FileContent, FileSource, Item, Meta, Packer, Source};
use vout::base::{Base, Nearby};
use vout::content::ContentHashes;
use vout::digest::Digest;
use vout::index::TaskId;
use vout::logical::Logical;
use vout::path::{RelPath, RelPathBuf};
use vout::recording::Recording;
use vout::state::{Dependency, PathState};
use vout::tree::layer::LayerParts;
use vout::tree::{Layer, Perspective, Tree};

const FILES_PER_DIR: usize = 500;

fn main() {
    divan::main();
}

/// Content in memory: packing alone is measured, not reading.
struct Bytes(Arc<[u8]>);

impl FileSource for Bytes {
    fn size_bytes(&self) -> u64 {
        self.0.len() as u64
    }

    fn open(&self) -> io::Result<Box<dyn FileContent>> {
        Ok(Box::new(Self(Arc::clone(&self.0))))
    }
}

impl FileContent for Bytes {
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        let rest = usize::try_from(offset).ok().and_then(|offset| self.0.get(offset..)).unwrap_or_default();
        let length = rest.len().min(buffer.len());
        buffer[..length].copy_from_slice(&rest[..length]);
        Ok(length)
    }

    fn data_extents(&self) -> io::Result<Option<Vec<Extent>>> {
        Ok(None)
    }
}

fn path_of(number: usize) -> RelPathBuf {
    RelPathBuf::new(format!("out/{}/f{:03}", number / FILES_PER_DIR, number % FILES_PER_DIR)).unwrap()
}

fn paths(count: usize) -> Vec<RelPathBuf> {
    (0..count).map(path_of).collect()
}

/// Hexadecimal digits of hashes compress to half, like text.
fn content(size_bytes: usize) -> Arc<[u8]> {
    let digests = (0_u32..).map(|number| Digest::of(&number.to_le_bytes()).to_string());
    let mut text = String::with_capacity(size_bytes + 64);
    for digest in digests {
        if text.len() >= size_bytes {
            break;
        }
        text.push_str(&digest);
    }
    text.as_bytes()[..size_bytes].into()
}

fn items(count: usize, size_bytes: usize) -> Vec<Item> {
    let content = content(size_bytes);
    let item = |path| {
        let meta = Meta { mode: 0o644, ..Meta::default() };
        Item { path, meta, source: Source::File(Box::new(Bytes(Arc::clone(&content)))) }
    };
    paths(count).into_iter().map(item).collect()
}

fn archive(count: usize) -> Arc<Archive> {
    let file = tempfile::tempfile().unwrap();
    Packer::default().pack(&file, items(count, 16), &|_, _| ()).unwrap();
    Arc::new(Archive::open(file, PathBuf::from("bench.tar.zst")).unwrap())
}

/// A base of `count` files on the disk.
fn base(count: usize) -> (TempDir, Arc<Base>) {
    let dir = tempfile::tempdir().unwrap();
    for path in paths(count) {
        let path = dir.path().join(path.as_os_str());
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, "content").unwrap();
    }
    let base = Base::new(File::open(dir.path()).unwrap().into(), Vec::new()).unwrap();
    (dir, Arc::new(base))
}

fn layered(base: Arc<Base>, layers: usize, files: usize) -> Tree {
    let (tree, archive) = (Tree::new(base), archive(files));
    for number in 0..layers {
        tree.attach(Arc::new(Layer::new(LayerParts {
            owner: TaskId(Digest::of(&number.to_le_bytes())),
            task_name: number.to_string(),
            entry: Uuid::nil(),
            archive_id: Uuid::nil(),
            archive: Arc::clone(&archive),
            shift_ns: 0,
            stale: None,
            punched: Default::default(),
        })));
    }
    tree
}

/// A path that is nowhere, below all layers.
#[divan::bench(args = [0, 1, 10, 100])]
fn lookup_of_nothing_in_merged_tree(bencher: Bencher<'_, '_>, layers: usize) {
    let (_dir, base) = base(1);
    let tree = layered(base, layers, 10_000);
    let path = RelPath::new("out/3/missing").unwrap();
    bencher.bench_local(|| tree.find(divan::black_box(path), Perspective::ALL));
}

#[divan::bench(args = [1_000, 50_000])]
fn lookup_in_toc(bencher: Bencher<'_, '_>, files: usize) {
    let (archive, paths) = (archive(files), paths(files));
    let mut turn = 0;
    bencher.counter(ItemsCount::new(1_u32)).bench_local(|| {
        turn = (turn + 7_919) % files;
        archive.toc().find(&paths[turn])
    });
}

#[divan::bench(args = [10_000])]
fn record_probes(bencher: Bencher<'_, '_>, count: usize) {
    let paths = paths(count);
    let state = PathState::File { executable: false, size_bytes: 7, content: None };
    bencher.counter(ItemsCount::new(count)).bench_local(|| {
        let mut recording = Recording::default();
        for path in &paths {
            recording.probe(path, state.clone());
        }
        recording
    });
}

/// Thousands of small files, and few large ones.
#[divan::bench(args = [(5_000, 4_096), (4, 8 << 20)], sample_count = 10)]
fn pack(bencher: Bencher<'_, '_>, (count, size_bytes): (usize, usize)) {
    bencher
        .counter(BytesCount::new(count * size_bytes))
        .with_inputs(|| items(count, size_bytes))
        .bench_local_values(|items| {
            let file = tempfile::tempfile().unwrap();
            Packer::default().pack(&file, items, &|_, _| ()).unwrap()
        });
}

/// The states of a path set, as a lookup computes them, by one thread.
#[divan::bench(args = [10_000], sample_count = 20)]
fn check_path_set(bencher: Bencher<'_, '_>, count: usize) {
    let (_dir, base) = base(count);
    let (tree, hashes) = (Tree::new(Arc::clone(&base)), ContentHashes::default());
    let owner = TaskId(Digest::of(b"task"));
    let logical = Logical { tree: &tree, hashes: &hashes, owner: &owner, claimed: None, touched: None };
    let paths = paths(count);
    bencher.counter(ItemsCount::new(count)).bench_local(|| {
        let mut near = Nearby::new(&base);
        paths.iter().filter(|path| logical.state_near(path, Dependency::PROBE, &mut near).is_ok()).count()
    });
}
