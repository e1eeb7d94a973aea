use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::layout::{FOOTER_BYTES, FOOTER_VERSION};
use super::restore::{RestoreError, restore};
use super::toc_writer::TocWriter;
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

fn record(at: &str, kind: RecordKind) -> Record {
    let (mode, mtime) = (0o644, Timestamp { secs: 1, nanos: 2 });
    Record { path: path(at), kind, mode, uid: 0, gid: 0, mtime, xattrs: Vec::new(), before: None }
}

fn manifest_of(records: Vec<Record>) -> Result<Vec<u8>, ManifestError> {
    let out = tempfile::NamedTempFile::new()?;
    write_manifest(out.as_file(), records)?;
    Ok(std::fs::read(out.path())?)
}

/// Returns an archive whose table of contents says what an attacker wants.
fn forged(records: &[Record]) -> Result<Archive, Box<dyn std::error::Error>> {
    let honest = open(pack(vec![file("evil", "evil")])?)?;
    let mut toc = TocWriter::default();
    for record in records {
        toc.extend(std::slice::from_ref(record)).map_err(|(_, problem)| problem)?;
    }
    let mut sizes = Vec::new();
    for frame in honest.frames_for_tests()? {
        sizes.push((frame.stored_bytes, frame.raw_bytes));
        toc.push_frame(frame);
    }
    let toc = toc.finish()?;
    let data_end = sizes.iter().map(|(stored, _)| *stored as usize).sum::<usize>();
    let mut bytes = pack(vec![file("evil", "evil")])?;
    bytes.truncate(data_end);
    bytes.extend(reader::skippable_header(layout::TOC_FRAME_MAGIC, toc.len() as u64));
    bytes.extend(&toc);
    bytes.extend(reader::encode_seek_table(&sizes, toc.len() as u64));
    Ok(open(bytes)?)
}

fn evil_file() -> RecordKind {
    let data = DataRef { stream_offset: 1536, extents: None, links: 1 };
    let content = Some(Digest::of(b"evil"));
    RecordKind::File { size_bytes: 4, content, data: Some(data), link_to: None }
}

#[test]
fn a_few_large_files_of_one_directory_are_restored_by_several_threads() {
    let sized = |at: &str, size_bytes| {
        record(at, RecordKind::File { size_bytes, content: None, data: None, link_to: None })
    };
    let mut records: Vec<_> = (0..3).map(|n| sized(&format!("large/{n}"), 128 << 20)).collect();
    records.extend((0..130).map(|n| sized(&format!("small/{n:03}"), 10)));
    let parts = restore::parts(&records, |record| record);
    assert_eq!(parts.iter().map(|part| part.len()).collect::<Vec<_>>(), [1, 1, 1, 64, 64, 2]);
    assert_eq!(parts.concat(), records);
}

fn restore_all(archive: &Archive, dir: &Path) -> Result<restore::Restored, RestoreError> {
    let root = std::fs::File::open(dir).unwrap().into();
    restore(archive, &root, &|_| true, |mtime| mtime, &|_, _| {})
}

#[test]
fn planted_symlink_is_not_written_through() -> Outcome {
    let (dir, outside) = (tempfile::tempdir()?, tempfile::tempdir()?);
    let target = outside.path().as_os_str().to_owned();
    let archive = forged(&[
        record("a", RecordKind::Symlink { target: target.clone() }),
        record("a/evil", evil_file()),
    ])?;
    let error = restore_all(&archive, dir.path()).unwrap_err();
    assert!(matches!(error, RestoreError::NotADirectory { .. }), "{error}");
    // The same with a link that was there before.
    std::os::unix::fs::symlink(outside.path(), dir.path().join("a"))?;
    let archive = forged(&[record("a/evil", evil_file())])?;
    assert!(matches!(restore_all(&archive, dir.path()), Err(RestoreError::Io { .. })));
    let archive = forged(&[record("a/x", RecordKind::Dir)])?;
    assert!(restore_all(&archive, dir.path()).is_err());
    std::fs::write(outside.path().join("kept"), "")?;
    let archive = forged(&[record("a/kept", RecordKind::Absent)])?;
    assert_eq!(restore_all(&archive, dir.path())?.removed, 0);
    assert_eq!(std::fs::read_dir(outside.path())?.count(), 1);
    Ok(())
}

#[test]
fn declared_size_and_hash_bound_what_is_written() -> Outcome {
    let dir = tempfile::tempdir()?;
    forged(&[record("evil", evil_file())])?.verify()?;
    let data = |stream_offset| Some(DataRef { stream_offset, extents: None, links: 1 });
    let content = Some(Digest::of(b"evil"));
    for (size_bytes, stream_offset) in [(3, 1536), (5, 1536), (4, 1535), (1 << 40, 1536), (4, u64::MAX - 1)] {
        let data = data(stream_offset);
        let kind = RecordKind::File { size_bytes, content, data, link_to: None };
        let archive = forged(&[record("evil", kind)])?;
        assert!(archive.verify().is_err());
        assert!(restore_all(&archive, dir.path()).is_err());
        assert_eq!(std::fs::read_dir(dir.path())?.count(), 0, "nothing half-written is left");
    }
    Ok(())
}

#[test]
fn record_bytes_that_could_leave_the_workspace_are_refused() {
    let honest = record("aa/bb", RecordKind::Dir);
    let bytes = codec::encode(&honest).unwrap();
    assert_eq!(codec::decode(&bytes), Ok(honest));
    for (at, evil) in [(2, b".."), (6, b".."), (2, b"/a"), (2, b"a/"), (6, b"b/"), (6, b"b\0")] {
        let mut bytes = bytes.clone();
        bytes[at..at + 2].copy_from_slice(evil);
        assert!(codec::decode(&bytes).is_err(), "{evil:?}");
    }
    for length in 0..bytes.len() {
        assert!(codec::decode(&bytes[..length]).is_err());
    }
}

#[test]
fn restoring_replaces_names_and_leaves_other_links_alone() -> Outcome {
    let dir = tempfile::tempdir()?;
    let at = |name: &str| dir.path().join(name);
    std::fs::create_dir(at("dist"))?;
    std::fs::write(at("elsewhere"), "kept")?;
    std::fs::hard_link(at("elsewhere"), at("dist/b.txt"))?;
    std::os::unix::fs::symlink("elsewhere", at("a-link"))?;
    std::fs::write(at("gone"), "")?;
    std::fs::create_dir(at("dist/empty"))?;
    let archive = open(pack(mixture())?)?;
    for _ in 0..2 {
        let restored = restore_all(&archive, dir.path())?;
        assert_eq!((restored.files, restored.bytes), (6, 4_200_001));
        assert_eq!(std::fs::read(at("elsewhere"))?, b"kept");
        assert_eq!(std::fs::read(at("dist/b.txt"))?, b"b");
        assert_eq!(std::fs::read(at("a-link"))?, noise(3_500_000, 1));
        assert!(!at("gone").exists());
        assert!(!at("old").exists(), "a deletion makes no directory");
        let names = std::fs::read_dir(at("dist"))?.count();
        assert_eq!(names, 7, "no temporary name is left");
    }
    Ok(())
}

/// Goal: no truncation is taken for an archive. Method: cut at every boundary and around it, and between.
#[test]
fn truncated_archives_are_refused() -> Outcome {
    let whole = pack(mixture())?;
    let archive = open(whole.clone())?;
    let mut cuts: Vec<usize> = (0..whole.len()).step_by(whole.len() / 100).collect();
    let boundaries = archive.frames_for_tests()?.iter().map(|f| f.file_end()).collect::<Vec<_>>();
    for boundary in boundaries.into_iter().chain([archive.toc().start()]) {
        let boundary = usize::try_from(boundary)?;
        cuts.extend([boundary - 1, boundary, boundary + 1]);
    }
    cuts.extend(whole.len() - 300..whole.len());
    for cut in cuts {
        let result = open(whole[..cut].to_vec());
        assert!(result.is_err(), "cut at {cut} of {}", whole.len());
    }
    Ok(())
}

/// Goal: a flipped bit anywhere is found, and until it is, all bytes read are right. Method: flip bits in
/// every region, read everything, then verify.
#[test]
fn flipped_bits_never_give_wrong_bytes() -> Outcome {
    let items = || {
        vec![
            file("dist/a", noise(70_000, 3)),
            file("dist/b", "bbb"),
            item("l", Source::HardLink(path("dist/b"))),
            item("s", Source::Symlink("t".into())),
        ]
    };
    let whole = pack(items())?;
    let archive = open(whole.clone())?;
    let honest: Vec<_> = archive.toc().iter().collect::<Result<_, _>>()?;
    let data_end = usize::try_from(archive.toc().start())? - 8;
    let flips = (0..data_end).step_by(97).chain(data_end..whole.len());
    for at in flips {
        let mut bytes = whole.clone();
        bytes[at] ^= 1 << (at % 8);
        let Ok(archive) = open(bytes) else { continue };
        let Ok(records) = archive.toc().iter().collect::<Result<Vec<_>, _>>() else { continue };
        assert_eq!(records, honest, "bit at {at}");
        assert_eq!(archive.toc().prefix(), RelPath::ROOT);
        for (name, expected) in [("dist/a", noise(70_000, 3)), ("dist/b", b"bbb".to_vec())] {
            if let Ok(bytes) = content(&archive, name) {
                assert!(bytes == expected, "bit at {at}");
            }
        }
        assert!(archive.verify().is_err(), "bit at {at} is not found");
    }
    Ok(())
}

#[test]
fn damage_names_archive_and_frame() -> Outcome {
    let mut bytes = pack(vec![file("a", noise(1000, 1))])?;
    bytes[100] ^= 1;
    let error = content(&open(bytes)?, "a").unwrap_err();
    assert_eq!(error.to_string(), r#""test.tar.zst" is damaged: frame at offset 0: its hash is wrong"#);
    Ok(())
}

#[test]
fn newer_versions_are_refused_with_a_sentence() -> Outcome {
    let mut bytes = manifest_of(vec![record("a", RecordKind::Dir)])?;
    let at = bytes.len() - FOOTER_BYTES + FOOTER_VERSION;
    bytes[at] = 2;
    let source = Arc::new(Counted { bytes, ..Counted::default() });
    let Err(error) = Manifest::open_on(source, "m.toc".into()) else { return Err("it was opened".into()) };
    let expected = r#""m.toc" has format version 2, and this version of vout reads up to 1"#;
    assert_eq!(error.to_string(), expected);
    Ok(())
}

/// Goal: attaching costs the same whatever the size. Method: count bytes read, not time.
#[test]
fn opening_reads_the_end_and_the_index_only() -> Outcome {
    let open_counted = |records: u32| -> Result<_, Box<dyn std::error::Error>> {
        let content = Some(Digest::of(b""));
        let kind = RecordKind::File { size_bytes: 1, content, data: None, link_to: None };
        let record = |i| record(&format!("dist/{}/file-{i}.js", i / 100), kind.clone());
        let bytes = manifest_of((0..records).map(record).collect())?;
        let source = Arc::new(Counted { bytes, ..Counted::default() });
        let toc = Manifest::open_on(Arc::clone(&source) as Arc<dyn ReadAt>, "m".into())?;
        Ok((toc, source))
    };
    let (few, source) = open_counted(10)?;
    assert_eq!((few.totals().records, few.prefix()), (10, RelPath::new("dist/0")?));
    assert!(source.read.load(Ordering::Relaxed) < 1024);

    let (many, source) = open_counted(100_000)?;
    let opening = source.read.swap(0, Ordering::Relaxed);
    assert!(opening < 64 * 1024, "{opening}");
    assert_eq!(many.totals().records, 100_000);
    assert!(many.find(RelPath::new("dist/777/file-77777.js")?)?.is_some());
    assert!(many.find(RelPath::new("dist/777/file-7.js")?)?.is_none());
    let finding = source.read.load(Ordering::Relaxed);
    assert!(finding < 64 * 1024, "{finding}");
    assert_eq!(many.children(RelPath::new("dist/5")?)?.len(), 100);
    assert_eq!(many.iter().count(), 100_000);
    Ok(())
}

#[test]
fn subtree_is_by_component() -> Outcome {
    let dirs = ["a", "a/b", "a/b/c", "a-b", "a-b/c", "a/bc", "a0", "b", "a/b/c/d"];
    let bytes = manifest_of(dirs.map(|dir| record(dir, RecordKind::Dir)).into())?;
    let toc = Manifest::open_on(Arc::new(Counted { bytes, ..Counted::default() }), "m".into())?;
    for dir in ["", "a", "a/b", "a-b", "b", "nowhere"] {
        let dir = RelPath::new(dir)?;
        let mut found = Vec::new();
        for record in toc.subtree(dir) {
            found.push(record?.path.to_string());
        }
        found.sort();
        let mut expected: Vec<_> =
            dirs.into_iter().filter(|path| RelPath::new(path).unwrap().starts_with(dir)).collect();
        expected.sort_unstable();
        assert_eq!(found, expected, "below {dir:?}");
    }
    Ok(())
}

#[test]
fn manifests_keep_what_was_before() -> Outcome {
    let mut with_before = record("b", RecordKind::Absent);
    with_before.before = Some(b"opaque".to_vec());
    let unknown = RecordKind::File { size_bytes: 9, content: None, data: None, link_to: None };
    let records = vec![record("a", unknown), with_before];
    let bytes = manifest_of(records.clone())?;
    let toc = Manifest::open_on(Arc::new(Counted { bytes, ..Counted::default() }), "m".into())?;
    assert_eq!(toc.iter().collect::<Result<Vec<_>, _>>()?, records);
    let nothing = manifest_of(Vec::new())?;
    let toc = Manifest::open_on(Arc::new(Counted { bytes: nothing, ..Counted::default() }), "m".into())?;
    assert_eq!((toc.iter().count(), toc.totals()), (0, Totals::default()));
    Ok(())
}

#[test]
fn carries_files_over_from_another_archive() -> Outcome {
    let first = pack(mixture())?;
    let archive = Arc::new(open(first.clone())?);
    let mut items = Vec::new();
    for record in archive.toc().iter() {
        let record = record?;
        let Record { path, kind, mode, uid, gid, mtime, ref xattrs, .. } = record.clone();
        let source = match kind {
            RecordKind::File { link_to: Some(target), .. } => Source::HardLink(target),
            RecordKind::File { link_to: None, .. } => {
                Source::File(Box::new(ArchivedFile { archive: Arc::clone(&archive), record: record.clone() }))
            }
            RecordKind::Dir => Source::Dir,
            RecordKind::ImpliedDir => Source::ImpliedDir,
            RecordKind::Symlink { target } => Source::Symlink(target),
            RecordKind::Absent => Source::Absent,
        };
        items.push(Item { path, meta: Meta { mode, uid, gid, mtime, xattrs: xattrs.clone() }, source });
    }
    assert!(pack(items)? == first);
    Ok(())
}

#[test]
fn a_file_of_another_size_is_refused() {
    struct Liar(u64);
    impl FileSource for Liar {
        fn size_bytes(&self) -> u64 {
            self.0
        }
        fn open(&self) -> io::Result<Box<dyn FileContent>> {
            Ok(Box::new(Bytes(vec![1; 2_000_000])))
        }
    }
    for declared in [10, 1_999_999, 2_000_001, 5_000_000] {
        let error = pack(vec![item("liar", Source::File(Box::new(Liar(declared))))]).unwrap_err();
        assert!(matches!(error, PackError::SizeChanged { .. }), "{error}");
    }
}

#[test]
fn items_that_contradict_each_other_are_refused() {
    let twice = vec![file("a", ""), file("a", "")];
    assert!(matches!(pack(twice), Err(PackError::Twice { .. })));
    let below_file = vec![file("a", ""), file("a/b/c", "")];
    assert!(matches!(pack(below_file), Err(PackError::NotADirectory { .. })));
    let dangling = vec![item("a", Source::HardLink(path("b")))];
    assert!(matches!(pack(dangling), Err(PackError::BadLink { .. })));
    let cycle = vec![item("a", Source::HardLink(path("b"))), item("b", Source::HardLink(path("a")))];
    assert!(matches!(pack(cycle), Err(PackError::BadLink { .. })));
}
