mod model;

use std::collections::HashSet;
use std::fs;
use std::os::fd::AsFd;
use std::path::Path;

use tempfile::TempDir;

use super::*;
use crate::fs::Timestamp;
use crate::limits::Limits;
use crate::path::RelPathBuf;
use uuid::Uuid;

const NONE: [Uuid; 0] = [];
const WS: WorkspaceId = WorkspaceId(Digest::from_bytes([9; 32]));
const WS2: WorkspaceId = WorkspaceId(Digest::from_bytes([8; 32]));

pub(super) fn digest(kind: &str, n: u64) -> Digest {
    Digest::of(format!("{kind}{n}").as_bytes())
}

fn task(n: u64) -> TaskId {
    TaskId(digest("task", n))
}

/// Returns an entry of task 1 with the strong key `n`; it and all entries like it have one weak key.
pub(crate) fn entry(n: u64, archive: Option<Uuid>) -> NewEntry {
    NewEntry {
        id: Uuid::new_v4(),
        task: task(1),
        task_name: "build".into(),
        weak: digest("weak", 1),
        path_set: digest("set", n),
        path_set_blob: format!("set{n}").into(),
        strong: digest("strong", n),
        states: b"states".into(),
        facets: b"facets".into(),
        archive,
        archive_bytes: 100,
        inputs: 3,
        outputs: 4,
        output_bytes: u64::MAX,
        recorded_ms: 5,
        finished: Timestamp { secs: -1, nanos: 999_999_999 },
        terminal: b"terminal".into(),
    }
}

pub(crate) fn claim(ws: u8, owner: u64, manifest: Uuid) -> Claim {
    Claim {
        workspace: WorkspaceId(Digest::from_bytes([ws; 32])),
        owner: task(owner),
        task_name: "build".into(),
        manifest,
        shift_ns: -5,
        entry: Some(Uuid::new_v4()),
    }
}

fn layer(owner: u64, entry: &NewEntry) -> NewLayer {
    NewLayer {
        workspace: WS,
        owner: task(owner),
        task_name: "build".into(),
        entry: entry.id,
        archive: entry.archive.unwrap(),
        shift_ns: i64::MAX,
    }
}

fn try_open(dir: &Path) -> Result<(Index, IndexOpened), IndexError> {
    Index::open(fs::File::open(dir).unwrap().as_fd(), dir)
}

fn open(dir: &TempDir) -> Index {
    try_open(dir.path()).unwrap().0
}

fn limits() -> Limits {
    Limits::default()
}

fn raw(dir: &TempDir) -> Connection {
    Connection::open(dir.path().join("index.sqlite")).unwrap()
}

#[test]
fn opens_fresh_and_then_existing() {
    let dir = TempDir::new().unwrap();
    let (index, opened) = try_open(dir.path()).unwrap();
    assert_eq!(opened, IndexOpened::Fresh);
    index.store(&entry(1, None), &limits(), 7).unwrap();
    drop(index);
    let (index, opened) = try_open(dir.path()).unwrap();
    assert_eq!(opened, IndexOpened::Existing);
    assert_eq!(index.entry_count().unwrap(), 1);
}

#[test]
fn an_older_version_is_emptied_and_says_so() {
    let dir = TempDir::new().unwrap();
    let index = open(&dir);
    let new = entry(1, Some(Uuid::new_v4()));
    index.store(&new, &limits(), 7).unwrap();
    let owner = layer(1, &new);
    index.set_layer(owner.clone()).unwrap();
    let punch = Punch { path: RelPathBuf::new("a").unwrap(), before: None };
    index.add_punches(WS, owner.owner, &[punch]).unwrap();
    raw(&dir).execute_batch("CREATE TABLE \"odd\"\"name\" (x); PRAGMA user_version = 0").unwrap();

    let (fresh, opened) = try_open(dir.path()).unwrap();
    assert_eq!(opened, IndexOpened::ResetFrom(0));
    assert_eq!(fresh.entry_count().unwrap(), 0);
    assert!(fresh.archives_in_use().unwrap().is_empty());
    assert!(raw(&dir).prepare("SELECT * FROM \"odd\"\"name\"").is_err());
    fresh.store(&new, &limits(), 7).unwrap();
}

#[test]
fn a_newer_version_is_refused_and_left_alone() {
    let dir = TempDir::new().unwrap();
    open(&dir).store(&entry(1, None), &limits(), 7).unwrap();
    raw(&dir).execute_batch("PRAGMA user_version = 77").unwrap();
    let refused = try_open(dir.path()).unwrap_err();
    assert!(matches!(refused, IndexError::Newer { found: 77, known: VERSION, .. }));
    let sentence = refused.to_string();
    assert!(sentence.contains("version 77") && sentence.contains(&format!("versions up to {VERSION};")));
    let rows: i64 = raw(&dir).query_row("SELECT count(*) FROM entries", [], |row| row.get(0)).unwrap();
    assert_eq!(rows, 1);
}

#[test]
fn an_index_that_changed_version_under_us_is_not_touched() {
    let dir = TempDir::new().unwrap();
    let index = open(&dir);
    raw(&dir).execute_batch("PRAGMA user_version = 77").unwrap();
    let refused = index.store(&entry(1, None), &limits(), 7).unwrap_err();
    assert!(matches!(refused, IndexError::Replaced { found: 77, .. }));
    assert!(matches!(index.entries(), Err(IndexError::Replaced { .. })));
}

#[test]
fn a_damaged_file_is_moved_aside() {
    let dir = TempDir::new().unwrap();
    for n in [1, 2, 3, 3] {
        // A log that still has every page would heal the database.
        for suffix in ["-wal", "-shm"] {
            drop(fs::remove_file(dir.path().join(format!("index.sqlite{suffix}"))));
        }
        fs::write(dir.path().join("index.sqlite"), [b'x'; 5000]).unwrap();
        let (index, opened) = try_open(dir.path()).unwrap();
        let aside = dir.path().join(format!("index.sqlite.damaged-{n}"));
        assert_eq!(opened, IndexOpened::ReplacedDamaged(aside.clone()));
        assert_eq!(fs::read(aside).unwrap(), [b'x'; 5000]);
        index.store(&entry(1, None), &limits(), 7).unwrap();
    }
    assert_eq!(try_open(dir.path()).unwrap().1, IndexOpened::Existing);
}

#[test]
fn damage_met_in_use_is_found_at_the_next_start() {
    let dir = TempDir::new().unwrap();
    let index = open(&dir);
    for n in 0..50 {
        index.store(&NewEntry { terminal: vec![1; 9000], ..entry(n, None) }, &limits(), 7).unwrap();
    }
    drop(index);
    let path = dir.path().join("index.sqlite");
    raw(&dir).query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(())).unwrap();
    let mut bytes = fs::read(&path).unwrap();
    let schema_bytes = 4096;
    bytes[schema_bytes..].fill(0xa5);
    fs::write(&path, bytes).unwrap();

    let (index, opened) = try_open(dir.path()).unwrap();
    assert_eq!(opened, IndexOpened::Existing, "opening does not read all of it");
    assert!(matches!(index.entries(), Err(IndexError::Damaged { .. })));
    drop(index);
    let (index, opened) = try_open(dir.path()).unwrap();
    assert!(matches!(opened, IndexOpened::ReplacedDamaged(_)));
    assert_eq!(index.entry_count().unwrap(), 0);
    drop(index);
    assert_eq!(try_open(dir.path()).unwrap().1, IndexOpened::Existing);
}

#[test]
fn a_false_alarm_keeps_the_index() {
    let dir = TempDir::new().unwrap();
    open(&dir).store(&entry(1, None), &limits(), 7).unwrap();
    fs::write(dir.path().join(open::SUSPECT_NAME), "").unwrap();
    assert_eq!(open(&dir).entry_count().unwrap(), 1);
    assert!(!dir.path().join(open::SUSPECT_NAME).exists());
}

#[test]
fn an_entry_comes_back_as_it_was_stored() {
    let dir = TempDir::new().unwrap();
    let index = open(&dir);
    let new = entry(1, Some(Uuid::new_v4()));
    assert_eq!(index.store(&new, &limits(), 7).unwrap(), NONE);
    let found = index.entry_by_strong(new.strong).unwrap().unwrap();
    let NewEntry { id, task, task_name, weak, path_set, strong, archive, .. } = new.clone();
    let NewEntry { archive_bytes, inputs, outputs, output_bytes, recorded_ms, finished, .. } = new;
    let expected = Entry {
        id,
        task,
        task_name,
        weak,
        path_set,
        strong,
        archive,
        archive_bytes,
        inputs,
        outputs,
        output_bytes,
        recorded_ms,
        finished,
        created: 7,
        used: 7,
    };
    assert_eq!(found, expected);
    assert_eq!(index.entry(id).unwrap(), Some(expected.clone()));
    assert_eq!(index.entries_of(task).unwrap(), [expected]);
    assert_eq!(index.terminal(id).unwrap().unwrap(), b"terminal");
    assert_eq!(index.states(id).unwrap().unwrap(), b"states");
    assert_eq!(index.facets(id).unwrap().unwrap(), b"facets");
    assert_eq!(index.terminal(Uuid::nil()).unwrap(), None);
    assert_eq!(index.entry_by_strong(digest("strong", 2)).unwrap(), None);
    assert!(!index.touch(Uuid::nil(), 8).unwrap());
}

#[test]
fn path_sets_come_most_recently_used_first_and_sixteen_at_most() {
    let dir = TempDir::new().unwrap();
    let index = open(&dir);
    let limits = Limits { entries_per_task_max: 100, ..limits() };
    let entries: Vec<_> = (0..20).map(|n| entry(n, None)).collect();
    for new in &entries {
        index.store(new, &limits, 7).unwrap();
    }
    // A second entry with the first path set makes that the latest, and counts it once.
    let again = NewEntry { path_set: digest("set", 0), ..entry(50, None) };
    index.store(&again, &limits, 7).unwrap();
    index.touch(entries[5].id, 7).unwrap();
    let found = index.path_sets(digest("weak", 1)).unwrap();
    assert_eq!(found.len(), 16);
    assert_eq!(found[0], digest("set", 5));
    assert_eq!(index.path_set(found[0]).unwrap(), Some(b"set5".to_vec()));
    assert_eq!(found[1], digest("set", 0));
    assert_eq!(found[2], digest("set", 19));
    assert_eq!(index.path_set(digest("set", 1_000)).unwrap(), None);
    assert_eq!(index.path_sets(digest("weak", 2)).unwrap(), []);
}

#[test]
fn storing_supersedes_and_keeps_what_is_still_referred_to() {
    let dir = TempDir::new().unwrap();
    let index = open(&dir);
    let (shared, attached, lone) = (Uuid::new_v4(), Uuid::new_v4(), Uuid::new_v4());
    for (n, archive) in [(1, shared), (2, shared), (3, attached), (4, lone)] {
        let new = entry(n, Some(archive));
        index.store(&new, &limits(), 7).unwrap();
        if archive == attached {
            index.set_layer(layer(1, &new)).unwrap();
        }
    }
    assert_eq!(index.store(&entry(1, None), &limits(), 8).unwrap(), NONE);
    assert_eq!(index.store(&entry(3, None), &limits(), 8).unwrap(), NONE);
    assert_eq!(index.store(&entry(4, None), &limits(), 8).unwrap(), [lone]);
    assert_eq!(index.store(&entry(2, Some(shared)), &limits(), 8).unwrap(), NONE);
    assert_eq!(index.store(&entry(2, None), &limits(), 8).unwrap(), [shared]);
    assert_eq!(index.remove_layers(WS).unwrap(), [attached]);
    assert_eq!(index.entry_count().unwrap(), 4);
}

#[test]
fn what_was_read_is_kept_as_long_as_the_task_has_entries() {
    let dir = TempDir::new().unwrap();
    let index = open(&dir);
    let first = entry(0, None);
    index.set_reading(first.task, b"early").unwrap();
    assert_eq!(index.reading(first.task).unwrap(), None, "the task has no entry");
    index.store(&first, &limits(), 7).unwrap();
    let other = NewEntry { task: task(2), ..entry(9, None) };
    index.store(&other, &limits(), 7).unwrap();
    for (task, content) in [(first.task, b"a"), (other.task, b"b"), (first.task, b"c")] {
        index.set_reading(task, content).unwrap();
    }
    assert_eq!(index.remove_entries(&EntryFilter::Id(first.id)).unwrap().entries, 1);
    assert_eq!(index.reading(first.task).unwrap(), None);
    assert_eq!(index.reading(other.task).unwrap(), Some(b"b".to_vec()));
}

#[test]
fn a_task_keeps_its_most_recently_used_entries() {
    let dir = TempDir::new().unwrap();
    let index = open(&dir);
    let limits = Limits { entries_per_task_max: 2, ..limits() };
    let archives: Vec<_> = (0..3).map(|_| Uuid::new_v4()).collect();
    let other = NewEntry { task: task(2), ..entry(9, Some(Uuid::new_v4())) };
    index.store(&other, &limits, 7).unwrap();
    let first = entry(0, Some(archives[0]));
    index.store(&first, &limits, 7).unwrap();
    index.store(&entry(1, Some(archives[1])), &limits, 7).unwrap();
    index.touch(first.id, 8).unwrap();
    assert_eq!(index.store(&entry(2, Some(archives[2])), &limits, 8).unwrap(), [archives[1]]);
    assert_eq!(index.entries_of(task(1)).unwrap().len(), 2);
    assert_eq!(index.entries_of(task(2)).unwrap().len(), 1);
    let sets: i64 = raw(&dir).query_row("SELECT count(*) FROM path_sets", [], |row| row.get(0)).unwrap();
    assert_eq!(sets, 3, "path sets that nothing uses are gone");
}

#[test]
fn entries_are_removed_by_task_name_and_id() {
    let dir = TempDir::new().unwrap();
    let index = open(&dir);
    let archives: Vec<_> = (0..4).map(|_| Uuid::new_v4()).collect();
    let mut ids = Vec::new();
    for (n, archive) in (0..).zip(&archives) {
        let name = format!("task{n}");
        let new = NewEntry { task: task(n), task_name: name, ..entry(n, Some(*archive)) };
        index.store(&new, &limits(), 7).unwrap();
        ids.push(new.id);
    }
    let removed = |archives: &[Uuid]| {
        let mut archives = archives.to_vec();
        archives.sort_unstable();
        Removed { entries: archives.len() as u64, bytes: 100 * archives.len() as u64, archives }
    };
    let remove = |filter| index.remove_entries(&filter).unwrap();
    assert_eq!(remove(EntryFilter::Id(Uuid::nil())), removed(&[]));
    assert_eq!(remove(EntryFilter::Task(task(0))), removed(&archives[..1]));
    assert_eq!(remove(EntryFilter::TaskName("task1".into())), removed(&archives[1..2]));
    assert_eq!(remove(EntryFilter::Id(ids[2])), removed(&archives[2..3]));
    assert_eq!(remove(EntryFilter::All), removed(&archives[3..]));
    assert_eq!(index.terminal(ids[3]).unwrap(), None);
}

#[test]
fn eviction_goes_by_age_and_size_and_spares_the_pinned() {
    let dir = TempDir::new().unwrap();
    let index = open(&dir);
    let archives: Vec<_> = (0..6).map(|_| Uuid::new_v4()).collect();
    for (n, archive) in (0..).zip(&archives) {
        let new = entry(n, Some(*archive));
        index.store(&new, &limits(), 1000 + n.cast_signed()).unwrap();
        if n == 0 {
            index.set_layer(layer(1, &new)).unwrap();
        }
    }
    let pinned = HashSet::from([archives[1]]);
    let roomy = Limits { bytes_max: 1000, age_max_secs: 100, ..limits() };
    assert_eq!(index.evict(&roomy, 1100, &pinned).unwrap(), Removed::default());
    assert_eq!(index.evict(&roomy, 1103, &pinned).unwrap().archives, [archives[2]]);
    let tight = Limits { bytes_max: 350, age_max_secs: 10_000, ..limits() };
    let mut gone = [archives[3], archives[4]];
    gone.sort_unstable();
    assert_eq!(index.evict(&tight, 1103, &pinned).unwrap().archives, gone);
    let none = Limits { bytes_max: 0, ..tight };
    assert_eq!(index.evict(&none, 1103, &pinned).unwrap().archives, [archives[5]]);
    assert_eq!(index.entry_count().unwrap(), 2);
}

#[test]
fn a_claim_replaces_the_owners_previous_one() {
    let dir = TempDir::new().unwrap();
    let index = open(&dir);
    let (one, two) = (Uuid::new_v4(), Uuid::new_v4());
    let first = claim(9, 1, one);
    assert_eq!(index.set_claim(&first).unwrap(), None);
    assert_eq!(index.set_claim(&first).unwrap(), None, "the same again frees nothing");
    let shared = Claim { entry: None, ..claim(9, 2, one) };
    assert_eq!(index.set_claim(&shared).unwrap(), None);
    let second = claim(9, 1, two);
    assert_eq!(index.set_claim(&second).unwrap(), None, "the other task still refers to it");
    assert_eq!(index.claim(WS, task(1)).unwrap(), Some(second.clone()));
    assert_eq!(index.claim(WS2, task(1)).unwrap(), None);
    assert_eq!(index.claims(WS).unwrap().len(), 2);
    assert_eq!(index.manifests_in_use().unwrap(), HashSet::from([one, two]));
    assert_eq!(index.set_claim(&Claim { manifest: two, ..shared }).unwrap(), Some(one));
    assert_eq!(index.remove_claim(WS, task(2)).unwrap(), None);
    assert_eq!(index.remove_claim(WS, task(1)).unwrap(), Some(two));
    assert_eq!(index.remove_claim(WS, task(1)).unwrap(), None);
}

#[test]
fn layers_are_stacked_in_order_of_attachment() {
    let dir = TempDir::new().unwrap();
    let index = open(&dir);
    let (a, b) = (entry(1, Some(Uuid::new_v4())), entry(2, Some(Uuid::new_v4())));
    index.store(&a, &limits(), 7).unwrap();
    index.store(&b, &limits(), 7).unwrap();
    assert_eq!(index.set_layer(layer(1, &a)).unwrap().0.seq, 1);
    let (top, freed) = index.set_layer(layer(2, &b)).unwrap();
    assert_eq!((top.seq, freed), (2, vec![]));
    let (again, _) = index.set_layer(layer(1, &a)).unwrap();
    assert_eq!(index.layers(WS).unwrap(), [again, top]);
    assert_eq!(index.layers(WS2).unwrap(), []);
    assert_eq!(index.remove_layer(WS, task(2)).unwrap(), NONE);
    assert_eq!(index.remove_entries(&EntryFilter::All).unwrap().archives, [b.archive.unwrap()]);
    assert_eq!(index.archives_in_use().unwrap(), HashSet::from([a.archive.unwrap()]));
    // Attached already, so it can be attached again although its entry is gone.
    index.set_layer(layer(1, &a)).unwrap();
    let gone = index.set_layer(layer(2, &b)).unwrap_err();
    assert!(matches!(gone, IndexError::ArchiveGone { archive } if Some(archive) == b.archive));
    assert_eq!(index.remove_layer(WS, task(1)).unwrap(), [a.archive.unwrap()]);
}

#[test]
fn punches_belong_to_one_attachment() {
    let dir = TempDir::new().unwrap();
    let index = open(&dir);
    let (a, b) = (entry(1, Some(Uuid::new_v4())), entry(2, Some(Uuid::new_v4())));
    index.store(&a, &limits(), 7).unwrap();
    index.store(&b, &limits(), 7).unwrap();
    let punch = |path: &[u8], before: Option<&[u8]>| Punch {
        path: RelPathBuf::new(path).unwrap(),
        before: before.map(Into::into),
    };
    let punches = [punch(b"a/\xff", None), punch(b"b", Some(b"old"))];
    assert!(!index.add_punches(WS, task(1), &punches).unwrap(), "there is no layer");
    index.set_layer(layer(1, &a)).unwrap();
    assert!(index.add_punches(WS, task(1), &punches).unwrap());
    assert_eq!(index.punches(WS, task(1)).unwrap(), punches);
    assert_eq!(index.punches(WS, task(2)).unwrap(), []);

    index.add_punches(WS, task(1), &[punch(b"b", None)]).unwrap();
    assert_eq!(index.punches(WS, task(1)).unwrap()[1], punch(b"b", None));
    assert_eq!(index.tidy().unwrap(), 0, "the layer is there");
    for new in [&a, &b] {
        index.set_layer(layer(1, new)).unwrap();
        assert_eq!(index.punches(WS, task(1)).unwrap(), []);
        index.add_punches(WS, task(1), &punches).unwrap();
    }
    assert_eq!(index.tidy().unwrap(), 2, "of the first attachment");
    index.remove_layers(WS).unwrap();
    assert_eq!(index.punches(WS, task(1)).unwrap(), []);
    index.set_layer(layer(1, &a)).unwrap();
    assert_eq!(index.punches(WS, task(1)).unwrap(), [], "a number is not used again while punches have it");
    while index.tidy().unwrap() > 0 {}
    let left: i64 = raw(&dir).query_row("SELECT count(*) FROM punches", [], |row| row.get(0)).unwrap();
    assert_eq!(left, 0);
}

#[test]
fn a_bad_path_in_the_database_is_damage() {
    let dir = TempDir::new().unwrap();
    let index = open(&dir);
    let new = entry(1, Some(Uuid::new_v4()));
    index.store(&new, &limits(), 7).unwrap();
    index.set_layer(layer(1, &new)).unwrap();
    raw(&dir)
        .execute_batch("INSERT INTO punches SELECT workspace, seq, x'2e2e2f61', NULL FROM layers")
        .unwrap();
    assert!(matches!(index.punches(WS, task(1)), Err(IndexError::Damaged { .. })));
    assert!(dir.path().join(open::SUSPECT_NAME).exists());
}

#[test]
fn the_stat_cache_answers_in_order_and_forgets_the_oldest() {
    let dir = TempDir::new().unwrap();
    let index = open(&dir);
    let row = |ino, size_bytes| StatRow {
        dev: u64::MAX,
        ino,
        size_bytes,
        mtime_ns: -1,
        ctime_ns: i64::MAX,
        digest: digest("content", size_bytes),
    };
    index.stat_cache_put(&[]).unwrap();
    index.stat_cache_put(&[row(1, 10), row(u64::MAX, 20), row(1, 11)]).unwrap();
    let keys = [(u64::MAX, u64::MAX), (0, 1), (u64::MAX, 1)];
    let found = index.stat_cache_get(&keys).unwrap();
    assert_eq!(found, [Some(row(u64::MAX, 20)), None, Some(row(1, 11))]);

    index.stat_cache_put_up_to(&[row(2, 30), row(3, 40)], 3).unwrap();
    let found = index.stat_cache_get(&[(u64::MAX, u64::MAX), (u64::MAX, 1), (u64::MAX, 3)]).unwrap();
    assert_eq!(found, [None, Some(row(1, 11)), Some(row(3, 40))]);
}

#[test]
fn the_last_lookup_of_each_task_is_kept() {
    let dir = TempDir::new().unwrap();
    let index = open(&dir);
    index.set_lookup(WS, "a", b"1").unwrap();
    index.set_lookup(WS2, "a", b"2").unwrap();
    index.set_lookup(WS, "a", b"3").unwrap();
    assert_eq!(index.lookup(WS, "a").unwrap().unwrap(), b"3");
    assert_eq!(index.lookup(WS2, "a").unwrap().unwrap(), b"2");
    assert_eq!(index.lookup(WS, "b").unwrap(), None);
    index.set_lookup_up_to((WS, "b"), b"4", 2).unwrap();
    assert_eq!(index.lookup(WS2, "a").unwrap(), None);
    assert_eq!(index.lookup(WS, "a").unwrap().unwrap(), b"3");
}

#[test]
fn two_handles_write_at_the_same_time() {
    let dir = TempDir::new().unwrap();
    let limits = Limits { entries_per_task_max: 1000, ..limits() };
    std::thread::scope(|scope| {
        for writer in 0..2 {
            let (dir, limits) = (&dir, &limits);
            scope.spawn(move || {
                let index = open(dir);
                for n in 0..40 {
                    index.store(&entry(writer * 1000 + n, Some(Uuid::new_v4())), limits, 7).unwrap();
                    index.set_lookup(WS, "a", b"x").unwrap();
                    assert!(!index.entries().unwrap().is_empty());
                }
            });
        }
    });
    let index = open(&dir);
    assert_eq!(index.entry_count().unwrap(), 80);
    assert_eq!(index.archives_in_use().unwrap().len(), 80);
}

#[test]
fn a_handle_sees_what_the_other_committed() {
    let dir = TempDir::new().unwrap();
    let (one, two) = (open(&dir), open(&dir));
    let new = entry(1, Some(Uuid::new_v4()));
    one.store(&new, &limits(), 7).unwrap();
    assert!(two.touch(new.id, 9).unwrap());
    assert_eq!(one.entry(new.id).unwrap().unwrap().used, 9);
    assert_eq!(two.remove_entries(&EntryFilter::All).unwrap().archives, [new.archive.unwrap()]);
    assert!(matches!(one.set_layer(layer(1, &new)), Err(IndexError::ArchiveGone { .. })));
}
