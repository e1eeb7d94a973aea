//! Generated trees through the packer, and back through GNU tar and through `restore`.
#![allow(clippy::unwrap_used, reason = "tests own their input")]

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::fs::{self, File, Permissions};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt, symlink};
use std::path::Path;
use std::process::Command;
use std::sync::Arc;

use proptest::prelude::*;
use rustix::fs::{AtFlags, Timespec, Timestamps, XattrFlags};
use vout::archive::restore::restore;
use vout::archive::{AheadPacker, Archive, DiskFile, Item, Meta, Packed, PackedAhead, Packer, Source};
use vout::fs::Timestamp;
use vout::path::RelPathBuf;

const ATTRIBUTES: [&str; 2] = ["user.vout", "user.vout.=%"];

#[derive(Debug, Clone)]
struct Planned {
    path: Vec<OsString>,
    what: What,
    mode: u32,
    mtime: (i64, i64),
    attributes: Vec<(usize, Vec<u8>)>,
}

#[derive(Debug, Clone)]
enum What {
    Dir,
    Symlink(OsString),
    File(Vec<u8>),
    /// Runs of 4 KiB: data or hole, and an odd tail.
    Sparse(Vec<(bool, usize)>, usize),
    Large(usize),
    /// Another name of an earlier file, by number.
    HardLink(prop::sample::Index),
}

fn name() -> impl Strategy<Value = OsString> {
    prop_oneof![
        4 => "[a-c]".prop_map(OsString::from),
        1 => Just(OsString::from_vec(vec![b'n', 0xff, 0xfe, b'\n'])),
        1 => Just(OsString::from("ünï %=\\ \"")),
        1 => (90_usize..255).prop_map(|length| OsString::from("l".repeat(length))),
        1 => Just(OsString::from("-a-b")),
    ]
}

fn what() -> impl Strategy<Value = What> {
    let data = prop::collection::vec(any::<u8>(), 0..3000);
    let runs = prop::collection::vec((any::<bool>(), 1_usize..40), 1..6);
    prop_oneof![
        3 => Just(What::Dir),
        2 => prop::collection::vec(1_u8..=255, 1..300).prop_map(|t| What::Symlink(OsString::from_vec(t))),
        6 => data.prop_map(What::File),
        2 => (runs, 0_usize..5000).prop_map(|(runs, tail)| What::Sparse(runs, tail)),
        1 => (1_000_000_usize..3_000_000).prop_map(What::Large),
        3 => any::<prop::sample::Index>().prop_map(What::HardLink),
    ]
}

prop_compose! {
    fn planned()(
        path in prop::collection::vec(name(), 1..5),
        what in what(),
        mode in prop_oneof![Just(0o644), Just(0o755), 0_u32..0o10000],
        mtime in (-5_000_000_000_i64..20_000_000_000, 0_i64..1_000_000_000),
        attributes in prop::collection::vec((0_usize..2, prop::collection::vec(any::<u8>(), 0..40)), 0..2),
    ) -> Planned {
        Planned { path, what, mode, mtime, attributes }
    }
}

fn times(secs: i64, nanos: i64) -> Timestamps {
    let time = Timespec { tv_sec: secs, tv_nsec: nanos };
    Timestamps { last_access: time, last_modification: time }
}

/// Makes a tree; what contradicts an earlier plan is left out.
fn make(root: &Path, plans: &[Planned]) {
    let mut files = Vec::new();
    let mut made = Vec::new();
    for plan in plans {
        let mut at = root.to_owned();
        at.extend(&plan.path);
        if fs::create_dir_all(at.parent().unwrap()).is_err() {
            continue;
        }
        let done = match &plan.what {
            What::Dir => fs::create_dir_all(&at),
            What::Symlink(target) => symlink(target, &at),
            What::File(bytes) if at.symlink_metadata().is_err() => fs::write(&at, bytes),
            What::Large(length) if at.symlink_metadata().is_err() => {
                fs::write(&at, (0..*length).map(|i| i.to_le_bytes()[1]).collect::<Vec<_>>())
            }
            What::Sparse(runs, tail) if at.symlink_metadata().is_err() => make_sparse(&at, runs, *tail),
            What::HardLink(index) if !files.is_empty() => {
                fs::hard_link(index.get::<std::path::PathBuf>(&files), &at)
            }
            What::File(_) | What::Large(_) | What::Sparse(..) | What::HardLink(_) => continue,
        };
        if done.is_err() {
            continue;
        }
        if matches!(plan.what, What::File(_) | What::Large(_) | What::Sparse(..)) {
            files.push(at.clone());
        }
        made.push((at, plan));
    }
    // Deepest last made first: times and permissions of directories survive.
    for (at, plan) in made.into_iter().rev() {
        if !matches!(plan.what, What::Symlink(_)) {
            for (number, value) in &plan.attributes {
                rustix::fs::setxattr(&at, ATTRIBUTES[*number], value, XattrFlags::empty()).unwrap();
            }
            fs::set_permissions(&at, Permissions::from_mode(plan.mode)).unwrap();
        }
        let (secs, nanos) = plan.mtime;
        rustix::fs::utimensat(rustix::fs::CWD, &at, &times(secs, nanos), AtFlags::SYMLINK_NOFOLLOW).unwrap();
    }
}

fn make_sparse(at: &Path, runs: &[(bool, usize)], tail: usize) -> std::io::Result<()> {
    const RUN: usize = 4096;
    let file = File::create(at)?;
    let mut offset = 0;
    for (is_data, runs) in runs {
        if *is_data {
            file.write_all_at(&vec![b'd'; runs * RUN], offset)?;
        }
        offset += (runs * RUN) as u64;
    }
    file.set_len(offset + tail as u64)
}

/// All that should survive of one path.
#[derive(Debug, PartialEq, Eq)]
struct Seen {
    mode: u32,
    owner: (u32, u32),
    mtime: (i64, i64),
    content: Option<Vec<u8>>,
    target: Option<OsString>,
    attributes: Vec<(&'static str, Vec<u8>)>,
    /// The first path with this inode.
    same_as: RelPathBuf,
}

fn look(root: &Path) -> BTreeMap<RelPathBuf, Seen> {
    let mut seen = BTreeMap::new();
    let mut inodes = BTreeMap::new();
    let mut waiting = vec![RelPathBuf::root()];
    while let Some(dir) = waiting.pop() {
        let mut names: Vec<_> =
            fs::read_dir(root.join(dir.as_path())).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        names.sort();
        for name in names {
            let path = dir.join(&name);
            let at = root.join(path.as_path());
            let meta = fs::symlink_metadata(&at).unwrap();
            if meta.is_dir() {
                waiting.push(path.clone());
            }
            let attribute = |name: &'static str| {
                let mut value = vec![0; 100];
                let length = rustix::fs::getxattr(&at, name, &mut value).ok()?;
                value.truncate(length);
                Some((name, value))
            };
            let one = Seen {
                mode: meta.mode(),
                owner: (meta.uid(), meta.gid()),
                mtime: (meta.mtime(), meta.mtime_nsec()),
                content: meta.is_file().then(|| fs::read(&at).unwrap()),
                target: meta.is_symlink().then(|| fs::read_link(&at).unwrap().into_os_string()),
                attributes: if meta.is_symlink() {
                    Vec::new()
                } else {
                    ATTRIBUTES.into_iter().filter_map(attribute).collect()
                },
                same_as: if meta.is_file() {
                    inodes.entry(meta.ino()).or_insert_with(|| path.clone()).clone()
                } else {
                    path.clone()
                },
            };
            seen.insert(path, one);
        }
    }
    seen
}

fn items(root: &Path, seen: &BTreeMap<RelPathBuf, Seen>) -> Vec<Item> {
    let dir: Arc<OwnedFd> = Arc::new(File::open(root).unwrap().into());
    seen.iter()
        .map(|(path, one)| {
            let meta = Meta {
                mode: one.mode & 0o7777,
                uid: one.owner.0,
                gid: one.owner.1,
                mtime: Timestamp { secs: one.mtime.0, nanos: u32::try_from(one.mtime.1).unwrap() },
                xattrs: one.attributes.iter().map(|(name, value)| (name.into(), value.clone())).collect(),
            };
            let source = match (&one.content, &one.target) {
                (Some(_), _) if one.same_as != *path => Source::HardLink(one.same_as.clone()),
                (Some(content), _) => Source::File(Box::new(DiskFile {
                    dir: Arc::clone(&dir),
                    path: path.clone(),
                    size_bytes: content.len() as u64,
                })),
                (None, Some(target)) => Source::Symlink(target.clone()),
                (None, None) => Source::Dir,
            };
            Item { path: path.clone(), meta, source }
        })
        .collect()
}

/// Packs all items, some of them ahead: each in a unit of its own, which may be left out again.
fn pack(out: &File, items: &dyn Fn() -> Vec<Item>, early: &[(prop::sample::Index, bool)]) -> Packed {
    let (mut all, mut rest) = (items(), items());
    let link = |item: &Item| if let Source::HardLink(to) = &item.source { Some(to.clone()) } else { None };
    let linked: Vec<_> = rest.iter().filter_map(link).collect();
    let mut packer = AheadPacker::new(&Packer::default());
    let mut ahead = PackedAhead::new(out).unwrap();
    let mut stays = Vec::new();
    for (index, keep) in early {
        let is_alone = |item: &Item| matches!(item.source, Source::File(_)) && !linked.contains(&item.path);
        let files: Vec<_> = (0..all.len()).filter(|&number| is_alone(&all[number])).collect();
        if files.is_empty() {
            break;
        }
        let Item { path, meta, source: Source::File(source) } = all.remove(*index.get(&files)) else {
            unreachable!("only files were selected")
        };
        rest.retain(|item| !keep || item.path != path);
        packer.pack(vec![(path, meta, source)], |piece| ahead.append(piece)).unwrap();
        ahead.close_unit();
        stays.push(*keep);
    }
    // A unit that was not completed counts for nothing.
    if let Some(Item { path, meta, source: Source::File(source) }) = all.pop() {
        packer.pack(vec![(path, meta, source)], |piece| ahead.append(piece)).unwrap();
    }
    Packer::default().pack_after(out, (ahead, &|unit| stays[unit]), rest, &|_, _| {}).unwrap()
}

fn untar(archive: &Path, into: &Path) {
    let output = Command::new("tar")
        .args(["--zstd", "--warning=no-timestamp", "--xattrs", "--xattrs-include=user.*", "-xpf"])
        .arg(archive)
        .arg("-C")
        .arg(into)
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(OsStr::from_bytes(&output.stderr), "");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    #[test]
    fn trees_survive_tar_and_restore(
        plans in prop::collection::vec(planned(), 0..25),
        early in prop::collection::vec(any::<(prop::sample::Index, bool)>(), 0..8),
    ) {
        let dir = tempfile::tempdir().unwrap();
        let [before, by_tar, by_us] = ["before", "by-tar", "by-us"].map(|name| dir.path().join(name));
        for dir in [&before, &by_tar, &by_us] {
            fs::create_dir(dir).unwrap();
        }
        make(&before, &plans);
        let expected = look(&before);
        let at = dir.path().join("a.tar.zst");
        let out = File::options().read(true).write(true).create(true).truncate(true).open(&at).unwrap();
        let packed = pack(&out, &|| items(&before, &expected), &early);
        prop_assert_eq!(packed.records, expected.len() as u64);

        let archive = Archive::open(File::open(&at).unwrap(), at.clone()).unwrap();
        archive.verify().unwrap();
        untar(&at, &by_tar);
        prop_assert_eq!(&look(&by_tar), &expected);
        let root = File::open(&by_us).unwrap().into();
        restore(&archive, &root, &|_| true, |mtime| mtime, &|_, _| {}).unwrap();
        prop_assert_eq!(&look(&by_us), &expected);
        // A second time, over what is there.
        restore(&archive, &root, &|_| true, |mtime| mtime, &|_, _| {}).unwrap();
        prop_assert_eq!(&look(&by_us), &expected);
    }
}

#[test]
fn holes_stay_holes() {
    let dir = tempfile::tempdir().unwrap();
    let [before, after] = ["before", "after"].map(|name| dir.path().join(name));
    fs::create_dir(&before).unwrap();
    fs::create_dir(&after).unwrap();
    let size_bytes = 1_u64 << 30;
    let file = File::create(before.join("sparse")).unwrap();
    file.set_len(size_bytes).unwrap();
    file.write_all_at(b"middle", 300_000_007).unwrap();
    let at = dir.path().join("a.tar.zst");
    let path = RelPathBuf::new("sparse").unwrap();
    let source =
        DiskFile { dir: Arc::new(File::open(&before).unwrap().into()), path: path.clone(), size_bytes };
    let item = Item {
        path: path.clone(),
        meta: Meta { mode: 0o644, ..Meta::default() },
        source: Source::File(Box::new(source)),
    };
    let packed = Packer::default().pack(&File::create(&at).unwrap(), vec![item], &|_, _| {}).unwrap();
    assert!(packed.archive_bytes < 4096, "{packed:?}");

    let archive = Archive::open(File::open(&at).unwrap(), at.clone()).unwrap();
    let record = archive.toc().find(&path).unwrap().unwrap();
    let mut buffer = [1; 20];
    assert_eq!(archive.read_at(&record, 300_000_000, &mut buffer).unwrap(), 20);
    assert_eq!(&buffer, b"\0\0\0\0\0\0\0middle\0\0\0\0\0\0\0");
    assert_eq!(archive.read_at(&record, size_bytes - 3, &mut buffer).unwrap(), 3);
    assert_eq!(archive.read_at(&record, size_bytes, &mut buffer).unwrap(), 0);

    let root = File::open(&after).unwrap().into();
    restore(&archive, &root, &|_| true, |mtime| mtime, &|_, _| {}).unwrap();
    let by_us = fs::metadata(after.join("sparse")).unwrap();
    assert_eq!(by_us.len(), size_bytes);
    assert!(by_us.blocks() <= 16, "{}", by_us.blocks());
    untar(&at, &after);
    let by_tar = fs::metadata(after.join("sparse")).unwrap();
    assert_eq!((by_tar.len(), by_tar.blocks()), (size_bytes, by_us.blocks()));
}
