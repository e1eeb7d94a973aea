use std::collections::HashSet;
use std::fs;
use std::io::{Read, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::Path;

use rustix::mount::{MountFlags, UnmountFlags};
use tempfile::TempDir;
use uuid::Uuid;

use super::*;
use crate::digest::Digest;
use crate::index::{EntryFilter, Index};
use crate::limits::Limits;

fn store_in(dir: &TempDir) -> Store {
    Store::open(&dir.path().join("s")).unwrap().0
}

fn open_index(store: &Store) -> Index {
    Index::open(store.dir(), store.path()).unwrap().0
}

fn temp_with(store: &Store, content: &[u8]) -> TempFile {
    let temp = store.create_temp().unwrap();
    temp.file().write_all(content).unwrap();
    temp
}

fn journal_with(store: &Store, id: Uuid, content: &[u8]) {
    let at = |source| StoreError::of("write", "journal".into(), source);
    store.work().publish_journal(id, |mut file| file.write_all(content).map_err(at)).unwrap();
}

fn content(mut file: File) -> Vec<u8> {
    let mut content = Vec::new();
    file.read_to_end(&mut content).unwrap();
    content
}

fn names(dir: &Path) -> Vec<String> {
    let entries = fs::read_dir(dir).unwrap();
    let mut names: Vec<_> = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

fn sweep(store: &Store, index: &Index) -> Swept {
    store.sweep(index, &Limits::default(), &HashSet::new()).unwrap()
}

#[test]
fn open_makes_the_layout_and_finds_it_again() {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("deep/down/s");
    let (store, notices) = Store::open(&path).unwrap();
    assert_eq!(notices, [StoreNotice::Created]);
    drop(store);
    let layout =
        [".gitignore", "CACHEDIR.TAG", "archives", "blobs", "claims", "journal", "lock", "staging", "tmp"];
    assert_eq!(names(&path), layout);
    assert_eq!(fs::read(path.join(".gitignore")).unwrap(), b"*\n");
    assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o700);
    let (_, notices) = Store::open(&path).unwrap();
    assert_eq!(notices, []);
    assert_eq!(names(&path.join("tmp")), [""; 0]);
}

#[test]
fn open_refuses_what_is_no_directory_and_names_it() {
    let dir = TempDir::new().unwrap();
    assert!(matches!(Store::open(Path::new("s")), Err(StoreError::Relative { .. })));

    let file = dir.path().join("file");
    fs::write(&file, "").unwrap();
    assert!(matches!(Store::open(&file), Err(StoreError::NotADirectory { path, .. }) if path == file));
    assert!(matches!(Store::open(&file.join("s")), Err(StoreError::NotADirectory { .. })));

    let inner = dir.path().join("s/claims");
    fs::create_dir(dir.path().join("s")).unwrap();
    fs::write(&inner, "").unwrap();
    let refused = Store::open(&dir.path().join("s"));
    assert!(matches!(refused, Err(StoreError::NotADirectory { path, .. }) if path == inner));

    fs::remove_file(&inner).unwrap();
    symlink(dir.path(), &inner).unwrap();
    let refused = Store::open(&dir.path().join("s"));
    assert!(matches!(refused, Err(StoreError::NotADirectory { path, .. }) if path == inner));
}

#[test]
fn open_refuses_a_store_of_another_user() {
    if !rustix::process::geteuid().is_root() {
        eprintln!("skipped: only root can make a directory of another user");
        return;
    }
    let dir = TempDir::new().unwrap();
    std::os::unix::fs::chown(dir.path(), Some(4321), None).unwrap();
    let refused = Store::open(dir.path());
    assert!(matches!(refused, Err(StoreError::ForeignOwner { owner: 4321, user: 0, .. })));
}

#[test]
fn open_tells_of_a_store_that_others_may_write() {
    let dir = TempDir::new().unwrap();
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o777)).unwrap();
    let (_, notices) = Store::open(dir.path()).unwrap();
    assert_eq!(notices, [StoreNotice::WritableByOthers(0o777)]);
}

#[test]
fn a_temporary_file_is_gone_unless_published() {
    let dir = TempDir::new().unwrap();
    let store = store_in(&dir);
    let (archive, claim, journal) = (Uuid::new_v4(), Uuid::new_v4(), Uuid::new_v4());
    let dropped = temp_with(&store, b"x");
    assert_eq!(names(&dir.path().join("s/tmp")).len(), 1);
    drop(dropped);
    temp_with(&store, b"archive").publish_archive(archive).unwrap();
    temp_with(&store, b"claim").publish_claim(claim).unwrap();
    journal_with(&store, journal, b"journal");
    assert_eq!(names(&dir.path().join("s/tmp")), [""; 0]);
    assert_eq!(content(store.open_archive(archive).unwrap()), b"archive");
    assert_eq!(content(store.open_claim(claim).unwrap()), b"claim");
    assert_eq!(content(store.work().open_journal(journal).unwrap()), b"journal");
    assert_eq!(fs::read(store.archive_path(archive)).unwrap(), b"archive");
    assert_eq!(store.archive_bytes().unwrap(), 7);

    assert!(store.remove_archive(archive).unwrap() && !store.remove_archive(archive).unwrap());
    assert!(store.remove_claim(claim).unwrap() && !store.remove_claim(claim).unwrap());
    assert!(store.work().remove_journal(journal).unwrap() && !store.work().remove_journal(journal).unwrap());
    assert_eq!(store.open_archive(archive).unwrap_err().kind(), io::ErrorKind::NotFound);
}

#[test]
fn only_regular_files_are_opened() {
    let dir = TempDir::new().unwrap();
    let store = store_in(&dir);
    let (link, pipe) = (Uuid::new_v4(), Uuid::new_v4());
    symlink("/etc/passwd", store.archive_path(link)).unwrap();
    let kind = rustix::fs::FileType::Fifo;
    rustix::fs::mknodat(rustix::fs::CWD, store.archive_path(pipe), kind, Mode::RUSR, 0).unwrap();
    assert!(store.open_archive(link).is_err());
    assert!(store.open_archive(pipe).is_err());
}

#[test]
fn blobs_are_found_by_content_and_may_be_published_twice() {
    let dir = TempDir::new().unwrap();
    let store = store_in(&dir);
    let digest = Digest::of(b"hello");
    assert!(store.blob(digest).unwrap().is_none());
    assert_eq!(content(temp_with(&store, b"hello").publish_blob(digest).unwrap()), b"hello");
    assert_eq!(content(temp_with(&store, b"hello").publish_blob(digest).unwrap()), b"hello");
    let mut found = store.blob(digest).unwrap().unwrap();
    assert!(found.write_all(b"x").is_err(), "blobs are opened for reading only");
    assert_eq!(content(found), b"hello");
    assert_eq!(store.blob_bytes().unwrap(), 5);
}

#[test]
fn blobs_beyond_the_limit_go_in_order_of_use() {
    let dir = TempDir::new().unwrap();
    let store = store_in(&dir);
    let bodies: [&[u8]; 3] = [b"first-", b"second", b"third-"];
    for (age, body) in bodies.iter().enumerate() {
        let file = temp_with(&store, body).publish_blob(Digest::of(body)).unwrap();
        let then = std::time::SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(1000 + age as u64);
        file.set_times(fs::FileTimes::new().set_accessed(then).set_modified(then)).unwrap();
    }
    assert_eq!(store.trim_blobs(18).unwrap(), Trimmed::default());
    assert_eq!(store.trim_blobs(11).unwrap(), Trimmed { files: 2, bytes: 12 });
    assert!(store.blob(Digest::of(bodies[0])).unwrap().is_none());
    assert!(store.blob(Digest::of(bodies[2])).unwrap().is_some());
}

#[test]
fn blobs_of_an_earlier_boot_are_not_used() {
    let dir = TempDir::new().unwrap();
    let digest = Digest::of(b"hello");
    let store = store_in(&dir);
    drop(temp_with(&store, b"hello").publish_blob(digest).unwrap());
    drop(store);
    assert!(store_in(&dir).blob(digest).unwrap().is_some());

    fs::write(dir.path().join("s/blobs/boot"), "another").unwrap();
    let (store, notices) = Store::open(&dir.path().join("s")).unwrap();
    assert_eq!(notices, [StoreNotice::BlobsDropped]);
    assert!(store.blob(digest).unwrap().is_none());
    let index = open_index(&store);
    assert!(matches!(sweep(&store, &index), Swept::Done { temporary: 1, .. }));
    drop((store, index));
    assert_eq!(Store::open(&dir.path().join("s")).unwrap().1, []);
}

#[test]
fn a_staging_directory_is_left_over_when_nobody_holds_it() {
    let dir = TempDir::new().unwrap();
    let (store, other) = (store_in(&dir), store_in(&dir));
    let id = Uuid::new_v4();
    let staging = store.work().staging(id).unwrap();
    rustix::fs::mkdirat(&staging, "sub", Mode::from(0o700)).unwrap();
    fs::write(dir.path().join(format!("s/staging/{id}/sub/file")), "x").unwrap();
    let sub = dir.path().join(format!("s/staging/{id}/sub"));
    fs::set_permissions(sub, fs::Permissions::from_mode(0o000)).unwrap();
    assert_eq!(other.work().leftovers().unwrap(), Leftovers::default());
    let refused = other.work().staging(id).unwrap_err();
    assert!(matches!(refused, StoreError::Io { source, .. } if source.kind() == io::ErrorKind::WouldBlock));

    drop(staging);
    assert_eq!(other.work().leftovers().unwrap().staging, [id]);
    drop(other.work().staging(id).unwrap());
    assert!(other.work().remove_staging(id).unwrap() && !other.work().remove_staging(id).unwrap());
    assert_eq!(names(&dir.path().join("s/staging")), [""; 0]);
}

#[test]
fn a_journal_counts_as_left_over_with_its_staging_directory() {
    let dir = TempDir::new().unwrap();
    let store = store_in(&dir);
    let (running, crashed, finished) = (Uuid::new_v4(), Uuid::new_v4(), Uuid::new_v4());
    let _held = store.work().staging(running).unwrap();
    drop(store.work().staging(crashed).unwrap());
    for id in [running, crashed, finished] {
        journal_with(&store, id, b"");
    }
    let mut journals = vec![crashed, finished];
    journals.sort_unstable();
    let left = Leftovers { staging: vec![crashed], journals };
    assert_eq!(store.work().leftovers().unwrap(), left);
    let again = Store::open(store.path()).unwrap().0;
    assert_eq!(again.work().leftovers().unwrap(), left);
}

#[test]
fn a_sweep_removes_what_a_crash_left_and_nothing_else() {
    let dir = TempDir::new().unwrap();
    let (kept, pinned, lost, journaled) = (Uuid::new_v4(), Uuid::new_v4(), Uuid::new_v4(), Uuid::new_v4());
    {
        let store = store_in(&dir);
        let index = open_index(&store);
        for id in [kept, pinned, lost] {
            temp_with(&store, b"archive").publish_archive(id).unwrap();
            temp_with(&store, b"claim").publish_claim(id).unwrap();
        }
        index.store(&crate::index::tests::entry(1, Some(kept)), &Limits::default(), 1).unwrap();
        index.set_claim(&crate::index::tests::claim(1, 1, kept)).unwrap();
        drop(store.work().staging(lost).unwrap());
        drop(store.work().staging(journaled).unwrap());
        journal_with(&store, journaled, b"");
        fs::write(dir.path().join("s/tmp/half"), "x").unwrap();
        fs::write(dir.path().join("s/archives/notes.txt"), "x").unwrap();
        assert!(
            matches!(
                sweep(&store, &index),
                Swept::Done { temporary: 1, archives: 0, claims: 0, staging: 0, .. }
            ),
            "what the store made itself may not be in the index yet"
        );
    }
    let store = store_in(&dir);
    let index = open_index(&store);
    let own = Uuid::new_v4();
    let own_temp = temp_with(&store, b"x");
    temp_with(&store, b"own").publish_archive(own).unwrap();
    let swept = store.sweep(&index, &Limits::default(), &HashSet::from([pinned])).unwrap();
    assert_eq!(swept, Swept::Done { temporary: 0, archives: 1, claims: 2, staging: 1, blobs: 0 });
    for id in [kept, pinned, own] {
        assert!(store.open_archive(id).is_ok());
    }
    assert!(store.open_archive(lost).is_err() && store.open_claim(kept).is_ok());
    assert!(dir.path().join("s/archives/notes.txt").exists());
    assert_eq!(store.work().leftovers().unwrap().staging, [journaled]);
    own_temp.publish_claim(own).unwrap();
}

#[test]
fn a_sweep_is_skipped_while_another_store_is_open() {
    let dir = TempDir::new().unwrap();
    drop(temp_with(&store_in(&dir), b"x").publish_archive(Uuid::nil()));
    let (store, other) = (store_in(&dir), store_in(&dir));
    let index = open_index(&store);
    assert_eq!(sweep(&store, &index), Swept::InUse);
    drop(other);
    assert!(matches!(sweep(&store, &index), Swept::Done { archives: 1, .. }));
    // Back to shared: another one can be opened, and then it blocks the sweep again.
    let _other = store_in(&dir);
    assert_eq!(sweep(&store, &index), Swept::InUse);
}

#[test]
fn trying_to_sweep_gives_nobody_else_a_chance_to() {
    // Goal: the shared lock, which Linux drops before it tries the exclusive one, is not missed meanwhile.
    // Method: two stores stay open and keep trying; neither may ever succeed.
    let dir = TempDir::new().unwrap();
    let opened = std::sync::Barrier::new(2);
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                let store = store_in(&dir);
                let index = open_index(&store);
                opened.wait();
                let swept = (0..40_000).filter(|_| sweep(&store, &index) != Swept::InUse).count();
                opened.wait();
                assert_eq!(swept, 0);
            });
        }
    });
}

#[test]
fn sweeps_at_the_same_time_never_take_what_another_store_made() {
    // Goal: trying for the exclusive lock gives nobody else a chance at it.
    // Method: threads, each with a store of its own, publish, sweep, and look whether theirs is still there.
    let dir = TempDir::new().unwrap();
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                for _ in 0..15 {
                    let store = store_in(&dir);
                    let index = open_index(&store);
                    let id = Uuid::new_v4();
                    let temp = temp_with(&store, b"x");
                    temp_with(&store, b"x").publish_archive(id).unwrap();
                    let staging = store.work().staging(id).unwrap();
                    sweep(&store, &index);
                    assert!(store.open_archive(id).is_ok());
                    temp.publish_claim(id).unwrap();
                    drop(staging);
                    assert!(store.work().remove_staging(id).unwrap());
                }
            });
        }
    });
    let store = store_in(&dir);
    sweep(&store, &open_index(&store));
    assert_eq!(store.archive_bytes().unwrap(), 0);
}

#[test]
fn a_crash_between_store_and_removal_is_swept_at_the_next_start() {
    let dir = TempDir::new().unwrap();
    let (old, new) = (Uuid::new_v4(), Uuid::new_v4());
    {
        let store = store_in(&dir);
        let index = open_index(&store);
        for archive in [old, new] {
            temp_with(&store, b"x").publish_archive(archive).unwrap();
            let superseded =
                index.store(&crate::index::tests::entry(1, Some(archive)), &Limits::default(), 1).unwrap();
            assert_eq!(superseded.is_empty(), archive == old);
        }
    }
    let store = store_in(&dir);
    let index = open_index(&store);
    assert!(matches!(sweep(&store, &index), Swept::Done { archives: 1, .. }));
    assert!(store.open_archive(old).is_err() && store.open_archive(new).is_ok());
}

#[test]
fn store_and_index_work_without_their_path() {
    // Goal: after opening, nothing is done by path, as a mount may lie over it.
    // Method: move the store away, put a trap in its place, and use everything.
    let dir = TempDir::new().unwrap();
    let store = store_in(&dir);
    let index = open_index(&store);
    fs::rename(dir.path().join("s"), dir.path().join("moved")).unwrap();
    fs::write(dir.path().join("s"), "trap").unwrap();

    let id = Uuid::new_v4();
    temp_with(&store, b"x").publish_archive(id).unwrap();
    drop(temp_with(&store, b"x").publish_blob(Digest::of(b"x")).unwrap());
    let staging = store.work().staging(id).unwrap();
    assert!(store.work().same_device_as(staging.as_fd()).unwrap());
    assert!(!store.work().same_device_as(File::open("/proc").unwrap().as_fd()).unwrap());
    for round in 0..200 {
        let mut entry = crate::index::tests::entry(round, Some(id));
        entry.terminal = vec![7; 100_000];
        assert!(index.store(&entry, &Limits::default(), 1).unwrap().is_empty());
    }
    let removed = index.remove_entries(&EntryFilter::All).unwrap();
    assert_eq!(removed.archives, [id]);
    assert!(matches!(sweep(&store, &index), Swept::Done { .. }));
    assert!(store.work().remove_staging(id).unwrap() && store.remove_archive(id).unwrap());
    drop((index, store));
    assert_eq!(fs::read(dir.path().join("s")).unwrap(), b"trap");
    let reopened = Index::open(File::open(dir.path()).unwrap().as_fd(), &dir.path().join("moved"));
    assert!(matches!(reopened, Err(crate::index::IndexError::Elsewhere { .. })));
}

/// A tmpfs over a directory, for as long as the value lives.
struct Tmpfs(PathBuf);

impl Tmpfs {
    fn mount(at: &Path, options: &str) -> Option<Self> {
        if !rustix::process::geteuid().is_root() {
            eprintln!("skipped: only root can mount a tmpfs");
            return None;
        }
        let options = std::ffi::CString::new(options).unwrap();
        match rustix::mount::mount("none", at, "tmpfs", MountFlags::empty(), &*options) {
            Ok(()) => Some(Self(at.into())),
            Err(error) => {
                eprintln!("skipped: no tmpfs can be mounted here: {error}");
                None
            }
        }
    }
}

impl Drop for Tmpfs {
    fn drop(&mut self) {
        rustix::mount::unmount(&self.0, UnmountFlags::DETACH).unwrap();
    }
}

#[test]
fn a_full_disk_is_said_to_be_full() {
    let dir = TempDir::new().unwrap();
    let Some(_tmpfs) = Tmpfs::mount(dir.path(), "size=1m") else { return };
    let (store, _) = Store::open(dir.path()).unwrap();
    let index = open_index(&store);
    let temp = store.create_temp().unwrap();
    let filling = std::iter::repeat_with(|| temp.file().write_all(&[1; 4096]));
    let full = filling.take(1000).find_map(Result::err).expect("the disk is small");
    let error = StoreError::of("write", temp.path(), full);
    assert!(matches!(error, StoreError::Full { .. }), "{error}");

    let mut entry = crate::index::tests::entry(1, None);
    entry.terminal = vec![7; 500_000];
    let error = index.store(&entry, &Limits::default(), 1).unwrap_err();
    assert!(matches!(error, crate::index::IndexError::Full { .. }), "{error:?}");
    // With room again the index goes on as if nothing had been.
    drop(temp);
    entry.terminal = vec![7; 5000];
    index.store(&entry, &Limits::default(), 1).unwrap();
    assert_eq!(index.entry_count().unwrap(), 1);
}

#[test]
fn a_read_only_store_is_said_to_be_read_only() {
    let dir = TempDir::new().unwrap();
    let Some(_tmpfs) = Tmpfs::mount(dir.path(), "size=1m") else { return };
    drop(Store::open(&dir.path().join("s")).unwrap());
    rustix::mount::mount_remount(dir.path(), MountFlags::RDONLY, c"").unwrap();
    let refused = Store::open(&dir.path().join("s"));
    assert!(matches!(refused, Err(StoreError::ReadOnly { .. })), "{refused:?}");
    let refused = Store::open(&dir.path().join("new"));
    assert!(matches!(refused, Err(StoreError::ReadOnly { .. })), "{refused:?}");
    assert_ne!(fs::metadata(dir.path()).unwrap().dev(), fs::metadata("/").unwrap().dev());
}
