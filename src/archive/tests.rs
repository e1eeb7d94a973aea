use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::*;
use crate::digest::Digest;
use crate::fs::{FileKind, Timestamp};
use crate::path::RelPath;

type Outcome = Result<(), Box<dyn std::error::Error>>;

/// Content in memory.
struct Bytes(Vec<u8>);

impl FileSource for Bytes {
    fn size_bytes(&self) -> u64 {
        self.0.len() as u64
    }

    fn open(&self) -> io::Result<Box<dyn FileContent>> {
        Ok(Box::new(Self(self.0.clone())))
    }
}

impl FileContent for Bytes {
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        let rest = self.0.get(usize::try_from(offset).unwrap()..).unwrap_or_default();
        let length = rest.len().min(buffer.len());
        buffer[..length].copy_from_slice(&rest[..length]);
        Ok(length)
    }

    fn data_extents(&self) -> io::Result<Option<Vec<Extent>>> {
        Ok(None)
    }
}

/// An archive in memory that counts what is read of it.
#[derive(Default)]
struct Counted {
    bytes: Vec<u8>,
    read: AtomicU64,
}

impl ReadAt for Counted {
    fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        self.read.fetch_add(buffer.len() as u64, Ordering::Relaxed);
        let start = usize::try_from(offset).unwrap();
        let range = start..start.saturating_add(buffer.len());
        let found = self.bytes.get(range).ok_or(io::ErrorKind::UnexpectedEof)?;
        buffer.copy_from_slice(found);
        Ok(())
    }

    fn size_bytes(&self) -> io::Result<u64> {
        Ok(self.bytes.len() as u64)
    }
}

fn path(text: &str) -> RelPathBuf {
    RelPathBuf::new(text).unwrap()
}

fn item(at: &str, source: Source) -> Item {
    let meta = Meta { mode: 0o644, mtime: Timestamp { secs: 1_700_000_000, nanos: 5 }, ..Meta::default() };
    Item { path: path(at), meta, source }
}

fn file(at: &str, content: impl Into<Vec<u8>>) -> Item {
    item(at, Source::File(Box::new(Bytes(content.into()))))
}

/// Bytes that do not compress to nothing, the same for every call.
fn noise(length: usize, seed: u32) -> Vec<u8> {
    let mut state = seed | 1;
    std::iter::repeat_with(|| {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        state.to_be_bytes()[0] & 0x3f
    })
    .take(length)
    .collect()
}

fn pack(items: Vec<Item>) -> Result<Vec<u8>, PackError> {
    pack_with(&Packer::default(), items)
}

fn pack_with(packer: &Packer, items: Vec<Item>) -> Result<Vec<u8>, PackError> {
    let out = tempfile::NamedTempFile::new().unwrap();
    let packed = packer.pack(out.as_file(), items, &|_, _| {})?;
    let bytes = std::fs::read(out.path()).unwrap();
    assert_eq!(packed.archive_bytes, bytes.len() as u64);
    Ok(bytes)
}

fn open(bytes: Vec<u8>) -> Result<Archive, ArchiveError> {
    let source = Counted { bytes, ..Counted::default() };
    Archive::open_on(Arc::new(source), PathBuf::from("test.tar.zst"))
}

fn content(archive: &Archive, at: &str) -> Result<Vec<u8>, ArchiveError> {
    let record = archive.toc().find(RelPath::new(at).unwrap())?.unwrap();
    let mut bytes = vec![0; usize::try_from(record.size_bytes()).unwrap() + 1];
    let length = archive.read_at(&record, 0, &mut bytes)?;
    bytes.truncate(length);
    Ok(bytes)
}

/// One of everything.
fn mixture() -> Vec<Item> {
    vec![
        file("dist/large.bin", noise(3_500_000, 1)),
        file("dist/b.txt", "b"),
        file("dist/medium", noise(700_000, 2)),
        file("dist/empty", ""),
        item("dist/sub/hard", Source::HardLink(path("dist/b.txt"))),
        item("a-link", Source::HardLink(path("dist/large.bin"))),
        item("dist/empty-dir", Source::Dir),
        item("dist/symlink", Source::Symlink("../nowhere".into())),
        item("gone", Source::Absent),
        item("old/gone", Source::Absent),
    ]
}

#[test]
fn holds_one_of_everything() -> Outcome {
    let archive = open(pack(mixture())?)?;
    archive.verify()?;
    assert_eq!(content(&archive, "dist/large.bin")?, noise(3_500_000, 1));
    assert_eq!(content(&archive, "a-link")?, noise(3_500_000, 1));
    assert_eq!(content(&archive, "dist/sub/hard")?, b"b");
    assert_eq!(content(&archive, "dist/empty")?, b"");
    let paths: Vec<_> =
        archive.toc().iter().map(|record| record.map(|r| r.path.to_string())).collect::<Result<_, _>>()?;
    let expected = "a-link dist gone dist/b.txt dist/empty dist/empty-dir dist/large.bin dist/medium dist/sub \
                    dist/symlink dist/sub/hard old/gone";
    let mut sorted: Vec<_> = expected.split_whitespace().collect();
    sorted.sort_by_key(|text| text.rsplit_once('/').unwrap_or(("", text)));
    assert_eq!(paths, sorted);
    let totals = archive.toc().totals();
    assert_eq!((totals.records, totals.files, totals.whiteouts), (12, 6, 2));
    assert_eq!(totals.content_bytes, 3_500_000 + 700_000 + 1);
    Ok(())
}

fn run(command: &mut Command) -> Outcome {
    let output = command.output()?;
    let told = String::from_utf8_lossy(&output.stderr).into_owned();
    if output.status.success() && told.is_empty() { Ok(()) } else { Err(told.into()) }
}

/// Goal: other tools read every frame, and skip what is ours. Method: unpack and decompress with them.
#[test]
fn stock_tools_agree() -> Outcome {
    let dir = tempfile::tempdir()?;
    let at = dir.path().join("a.tar.zst");
    std::fs::write(&at, pack(mixture())?)?;
    run(Command::new("tar").arg("--zstd").arg("-xf").arg(&at).arg("-C").arg(dir.path()))?;
    assert_eq!(std::fs::read(dir.path().join("dist/large.bin"))?, noise(3_500_000, 1));
    assert_eq!(std::fs::read(dir.path().join("a-link"))?, noise(3_500_000, 1));
    assert_eq!(std::fs::read_link(dir.path().join("dist/symlink"))?, Path::new("../nowhere"));
    assert!(dir.path().join("dist/empty-dir").is_dir());
    run(Command::new("zstd").arg("-dqf").arg(&at))?;
    run(Command::new("tar").arg("-df").arg(dir.path().join("a.tar")).arg("-C").arg(dir.path()))?;
    Ok(())
}

#[test]
fn same_items_give_same_bytes_whatever_the_threads() -> Outcome {
    let expected = Digest::of(&pack(mixture())?);
    for threads in [1, 2, 7] {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build()?;
        let mut items = mixture();
        items.reverse();
        assert_eq!(Digest::of(&pool.install(|| pack(items))?), expected);
    }
    Ok(())
}

#[test]
fn special_files_are_refused_by_name() {
    let error = pack(vec![item("a/pipe", Source::Special(FileKind::Fifo))]).unwrap_err();
    assert_eq!(error.to_string(), r#""a/pipe" cannot be archived: it is a named pipe"#);
}
