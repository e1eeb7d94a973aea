//! Cache keys: the weak key, which names what was asked for, and the strong key, which adds what was found.

use serde::{Deserialize, Serialize};

use crate::digest::{Digest, Hasher};
use crate::index::TaskId;
use crate::path::RelPathBuf;
use crate::report::Difference;
use crate::state::{Dependency, FileKind, PathState};
use crate::task::{CommandLine, FilterSpec, MtimePolicy, TaskSpec};

/// Part of every weak key: raised when the meaning of a recording or an archive changes.
const KEY_VERSION: u32 = 1;

/// All that the weak key is made of, kept to explain a miss.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Facets {
    version: u32,
    commands: Vec<CommandLine>,
    cwd: RelPathBuf,
    /// Values are hashed: they may be secrets.
    env: Vec<(String, Option<Digest>)>,
    programs: Vec<(String, Option<Digest>)>,
    input: FilterSpec,
    output: FilterSpec,
    clean: bool,
    mtime: MtimePolicy,
}

/// Paths and what is looked at of each, sorted.
pub type PathSet = Vec<(RelPathBuf, Dependency)>;

/// The states of a run's inputs.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct InputStates {
    /// Of the path set's members, in its order.
    pub recorded: Vec<PathState>,
    /// Of the files that explicit input globs match.
    pub globbed: Vec<(RelPathBuf, PathState)>,
}

/// Returns who owns a task's outputs: its name and working directory.
#[must_use]
pub fn task_id(spec: &TaskSpec) -> TaskId {
    let mut hasher = Hasher::default();
    hasher.update_field(b"task");
    hasher.update_field(spec.name.as_bytes());
    hasher.update_field(spec.cwd.as_bytes());
    TaskId(hasher.finish())
}

impl Facets {
    /// Takes a task and the content hashes of its programs, in the task's order.
    #[must_use]
    pub fn new(spec: &TaskSpec, programs: Vec<Option<Digest>>) -> Self {
        let env =
            spec.env.iter().map(|var| (var.name.clone(), var.value.as_ref().map(|value| Digest::of(value))));
        let called = spec.programs.iter().map(|program| program.called.clone());
        Self {
            version: KEY_VERSION,
            commands: spec.commands.clone(),
            cwd: spec.cwd.clone(),
            env: env.collect(),
            programs: called.zip(programs).collect(),
            input: spec.input.clone(),
            output: spec.output.clone(),
            clean: spec.clean,
            mtime: spec.mtime,
        }
    }

    /// Returns the weak key.
    #[must_use]
    pub fn weak_key(&self) -> Digest {
        Digest::of(&encode(self))
    }

    /// Returns the output filter.
    #[must_use]
    pub fn output(&self) -> &FilterSpec {
        &self.output
    }

    /// Returns whether both ask for the same inputs.
    #[must_use]
    pub fn same_input(&self, other: &Self) -> bool {
        self.input == other.input
    }

    /// Returns what differs between a cached run (`self`) and the present, the most telling first.
    #[must_use]
    pub fn differences(&self, now: &Self) -> Vec<Difference> {
        let mut differences = Vec::new();
        let mut note = |differs: bool, difference: Difference| {
            if differs {
                differences.push(difference);
            }
        };
        note(self.commands != now.commands, Difference::Command);
        note(self.cwd != now.cwd, Difference::Cwd);
        let names = |facets: &Self| facets.env.iter().map(|(name, _)| name.clone()).collect::<Vec<_>>();
        note(names(self) != names(now), Difference::EnvDeclaration);
        for (name, value) in &now.env {
            let before = self.env.iter().find(|(known, _)| known == name);
            note(before.is_some_and(|(_, before)| before != value), Difference::Env(name.clone()));
        }
        if self.commands == now.commands {
            for (called, content) in &now.programs {
                let before = self.programs.iter().find(|(known, _)| known == called);
                let same = before.is_some_and(|(_, before)| before == content);
                note(!same, Difference::Program(called.clone()));
            }
        }
        note(self.input != now.input, Difference::InputConfig);
        note(self.output != now.output, Difference::OutputConfig);
        note(self.clean != now.clean, Difference::TaskConfig("clean".into()));
        note(self.mtime != now.mtime, Difference::TaskConfig("mtime".into()));
        note(self.version != now.version, Difference::TaskConfig("vout's cache format".into()));
        differences
    }
}

/// Returns the hash of a path set.
#[must_use]
pub fn path_set_digest(set: &PathSet) -> Digest {
    Digest::of(&encode(set))
}

/// Returns the strong key.
#[must_use]
pub fn strong_key(weak: Digest, path_set: Digest, states: &InputStates) -> Digest {
    let mut hasher = Hasher::default();
    hasher.update_field(weak.as_bytes());
    hasher.update_field(path_set.as_bytes());
    hasher.update_field(&encode(states));
    hasher.finish()
}

/// Returns how one input differs between a cached run and the present.
#[must_use]
pub fn input_differences(path: &RelPathBuf, then: &PathState, now: &PathState) -> Vec<Difference> {
    match (then, now) {
        (then, now) if then == now => Vec::new(),
        (PathState::Absent, _) => vec![Difference::Appeared(path.clone())],
        (_, PathState::Absent) => vec![Difference::Removed(path.clone())],
        (PathState::Dir { listing: Some(then) }, PathState::Dir { listing: Some(now) }) => {
            listing_differences(path, then, now)
        }
        _ => vec![Difference::Modified(path.clone())],
    }
}

type Listing = [(serde_bytes::ByteBuf, FileKind)];

fn listing_differences(dir: &RelPathBuf, then: &Listing, now: &Listing) -> Vec<Difference> {
    let has = |listing: &Listing, name: &serde_bytes::ByteBuf| {
        listing.binary_search_by(|(known, _)| known.cmp(name)).is_ok()
    };
    let added = now.iter().filter(|(name, _)| !has(then, name));
    let removed = then.iter().filter(|(name, _)| !has(now, name));
    let mut differences: Vec<_> = added
        .map(|(name, _)| Difference::AddedIn { name: name.clone(), dir: dir.clone() })
        .chain(removed.map(|(name, _)| Difference::RemovedFrom { name: name.clone(), dir: dir.clone() }))
        .collect();
    if differences.is_empty() {
        // A name now stands for another kind of object.
        differences.push(Difference::Modified(dir.clone()));
    }
    differences
}

/// Encodes plain data for the index.
pub(crate) fn encode<T: Serialize>(value: &T) -> Vec<u8> {
    postcard::to_stdvec(value).expect("plain data encodes into memory")
}
