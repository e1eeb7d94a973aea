//! The index against a list that is searched from end to end.

use std::collections::BTreeSet;

use proptest::prelude::*;

use super::*;

/// What can happen; small numbers, so that things meet.
#[derive(Debug, Clone)]
enum Op {
    Store { task: u64, strong: u64, set: u64, archive: Option<u8>, bytes: u64, max: usize },
    Touch(usize),
    Evict { bytes_max: u64, age_max_secs: i64, pinned: Option<u8> },
    RemoveTask(u64),
    RemoveOne(usize),
    RemoveAll,
    SetLayer { owner: u64, of: usize },
    RemoveLayer(u64),
    RemoveLayers,
}

fn op() -> impl Strategy<Value = Op> {
    let store = (0..3_u64, 0..12_u64, 0..5_u64, prop::option::weighted(0.8, 0..10_u8), 1..5_usize);
    prop_oneof![
        6 => store.prop_map(|(task, strong, set, archive, max)| {
            // An archive has one size, whoever refers to it.
            let bytes = archive.map_or(0, |archive| 10 + u64::from(archive));
            Op::Store { task, strong, set, archive, bytes, max }
        }),
        3 => (0..20_usize).prop_map(Op::Touch),
        2 => (0..100_u64, 0..40_i64, prop::option::of(0..10_u8)).prop_map(
            |(bytes_max, age_max_secs, pinned)| Op::Evict { bytes_max, age_max_secs, pinned }
        ),
        1 => (0..3_u64).prop_map(Op::RemoveTask),
        1 => (0..20_usize).prop_map(Op::RemoveOne),
        1 => Just(Op::RemoveAll),
        3 => (0..3_u64, 0..20_usize).prop_map(|(owner, of)| Op::SetLayer { owner, of }),
        1 => (0..3_u64).prop_map(Op::RemoveLayer),
        1 => Just(Op::RemoveLayers),
    ]
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct ModelEntry {
    id: Uuid,
    task: u64,
    strong: u64,
    set: u64,
    archive: Option<Uuid>,
    bytes: u64,
    used: i64,
}

/// Entries by use, the latest last; layers by attachment, the latest last.
#[derive(Debug, Clone, Default)]
struct Model {
    entries: Vec<ModelEntry>,
    layers: Vec<(u64, Uuid, Uuid)>,
}

impl Model {
    fn archives(&self) -> BTreeSet<Uuid> {
        let of_layers = self.layers.iter().map(|layer| layer.2);
        self.entries.iter().filter_map(|entry| entry.archive).chain(of_layers).collect()
    }

    fn nth(&self, n: usize) -> Option<ModelEntry> {
        self.entries.get(n % self.entries.len().max(1)).cloned()
    }

    fn keep_latest_of_task(&mut self, task: u64, max: usize) {
        while self.entries.iter().filter(|entry| entry.task == task).count() > max {
            let oldest = self.entries.iter().position(|entry| entry.task == task).unwrap();
            self.entries.remove(oldest);
        }
    }

    fn bytes(&self) -> u64 {
        let archives: BTreeSet<_> =
            self.entries.iter().filter_map(|entry| Some((entry.archive?, entry.bytes))).collect();
        archives.iter().map(|archive| archive.1).sum()
    }

    fn evict(&mut self, limits: &Limits, now: i64, pinned: &HashSet<Uuid>) {
        let layers = self.layers.clone();
        let free = |entry: &ModelEntry| {
            entry.archive.is_none_or(|archive| {
                !pinned.contains(&archive) && !layers.iter().any(|layer| layer.2 == archive)
            })
        };
        self.entries.retain(|entry| now - entry.used <= limits.age_max_secs || !free(entry));
        while self.bytes() > limits.bytes_max {
            let oldest = self.entries.iter().position(|entry| free(entry) && entry.archive.is_some());
            let Some(oldest) = oldest else { break };
            self.entries.remove(oldest);
        }
    }
}

fn archive(n: u8) -> Uuid {
    Uuid::from_u128(1000 + u128::from(n))
}

/// Applies `op` to both, and returns the archives that the index says may go.
fn apply(op: &Op, model: &mut Model, index: &Index, now: i64) -> Vec<Uuid> {
    let roomy = Limits { entries_per_task_max: 1000, ..Limits::default() };
    let removed = |filter| index.remove_entries(&filter).unwrap().archives;
    match *op {
        Op::Store { task: of, strong, set, archive: n, bytes, max } => {
            let new = NewEntry {
                task: task(of),
                task_name: format!("task{of}"),
                weak: digest("weak", of),
                path_set: digest("set", set),
                path_set_blob: vec![1],
                archive_bytes: bytes,
                ..entry(strong, n.map(archive))
            };
            model.entries.retain(|entry| entry.strong != strong);
            let archive = new.archive;
            model.entries.push(ModelEntry { id: new.id, task: of, strong, set, archive, bytes, used: now });
            model.keep_latest_of_task(of, max);
            index.store(&new, &Limits { entries_per_task_max: max, ..roomy }, now).unwrap()
        }
        Op::Touch(n) => {
            if let Some(mut touched) = model.nth(n) {
                model.entries.retain(|entry| entry.id != touched.id);
                touched.used = now;
                assert!(index.touch(touched.id, now).unwrap());
                model.entries.push(touched);
            }
            vec![]
        }
        Op::Evict { bytes_max, age_max_secs, pinned } => {
            let limits = Limits { bytes_max, age_max_secs, ..roomy };
            let pinned = pinned.map(archive).into_iter().collect();
            model.evict(&limits, now, &pinned);
            index.evict(&limits, now, &pinned).unwrap().archives
        }
        Op::RemoveTask(of) => {
            model.entries.retain(|entry| entry.task != of);
            removed(EntryFilter::Task(task(of)))
        }
        Op::RemoveOne(n) => {
            let Some(one) = model.nth(n) else { return vec![] };
            model.entries.retain(|entry| entry.id != one.id);
            removed(EntryFilter::Id(one.id))
        }
        Op::RemoveAll => {
            model.entries.clear();
            removed(EntryFilter::All)
        }
        Op::SetLayer { owner, of } => {
            let Some(ModelEntry { id, archive: Some(archive), .. }) = model.nth(of) else { return vec![] };
            let layer = NewLayer { entry: id, archive, ..layer(owner, &entry(0, Some(archive))) };
            model.layers.retain(|layer| layer.0 != owner);
            model.layers.push((owner, id, archive));
            index.set_layer(layer).unwrap().1
        }
        Op::RemoveLayer(owner) => {
            model.layers.retain(|layer| layer.0 != owner);
            index.remove_layer(WS, task(owner)).unwrap()
        }
        Op::RemoveLayers => {
            model.layers.clear();
            index.remove_layers(WS).unwrap()
        }
    }
}

fn compare(model: &Model, index: &Index, dir: &TempDir) {
    let found: Vec<_> = index.entries().unwrap().iter().rev().map(|entry| (entry.id, entry.used)).collect();
    let expected: Vec<_> = model.entries.iter().map(|entry| (entry.id, entry.used)).collect();
    assert_eq!(found, expected);
    let found: Vec<_> = index.layers(WS).unwrap().into_iter().rev().map(|row| row.layer).collect();
    let found: Vec<_> = found.into_iter().map(|layer| (layer.owner, layer.entry, layer.archive)).collect();
    let expected: Vec<_> =
        model.layers.iter().map(|&(owner, id, archive)| (task(owner), id, archive)).collect();
    assert_eq!(found, expected);
    assert_eq!(index.archives_in_use().unwrap().into_iter().collect::<BTreeSet<_>>(), model.archives());
    for of in 0..3 {
        let mut expected = Vec::new();
        for entry in model.entries.iter().rev().filter(|entry| entry.task == of) {
            if !expected.contains(&digest("set", entry.set)) {
                expected.push(digest("set", entry.set));
            }
        }
        let found = index.path_sets(digest("weak", of)).unwrap();
        assert_eq!(found, expected);
    }
    let sets: i64 = raw(dir).query_row("SELECT count(*) FROM path_sets", [], |row| row.get(0)).unwrap();
    assert_eq!(
        usize::try_from(sets).unwrap(),
        model.entries.iter().map(|entry| entry.set).collect::<BTreeSet<_>>().len()
    );
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    #[test]
    fn archives_to_remove_are_those_no_longer_referred_to(ops in prop::collection::vec(op(), 1..40)) {
        let dir = TempDir::new().unwrap();
        let index = open(&dir);
        let mut model = Model::default();
        for (now, op) in (0..).step_by(3).zip(&ops) {
            let before = model.archives();
            // An archive that is stored is there, and an archive that was there before may come back.
            let freed = apply(op, &mut model, &index, now);
            let expected: Vec<_> = before.difference(&model.archives()).copied().collect();
            prop_assert_eq!(freed, expected, "{:?}", op);
            compare(&model, &index, &dir);
        }
    }
}
