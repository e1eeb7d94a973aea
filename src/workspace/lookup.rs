//! Looking a task up: from its weak key to path sets, from the present state of their paths to an entry.

use std::collections::BTreeMap;
use std::sync::Arc;

use uuid::Uuid;

use super::{Workspace, WorkspaceError, chain, forgo, now_secs};
use crate::archive::Archive;
use crate::base::Nearby;
use crate::claim::Claimed;
use crate::digest::Digest;
use crate::filter::Filter;
use crate::fingerprint::{Facets, InputStates, PathSet, encode, input_differences, strong_key, task_id};
use crate::fs::FsError;
use crate::index::{Claim, Entry, TaskId};
use crate::logical::Logical;
use crate::path::{RelPath, RelPathBuf};
use crate::report::{Difference, MissReason, WhyReport};
use crate::state::{Dependency, FileKind, PathState};
use crate::task::TaskSpec;
use crate::tree::Stale;
use crate::view::Earlier;

/// Entries of a task that a miss is compared with.
const COMPARED_MAX: usize = 8;

/// Differences named in a miss; more are not told apart by anybody.
const DIFFERENCES_MAX: usize = 50;

/// A task with all that its lookup needs, computed once.
pub(super) struct Asked {
    pub(super) spec: TaskSpec,
    pub(super) owner: TaskId,
    pub(super) facets: Facets,
    pub(super) weak: Digest,
    pub(super) input: Filter,
    pub(super) output: Filter,
    pub(super) claim: Option<Claim>,
    pub(super) claimed: Option<Arc<Claimed>>,
    /// States of what explicit input globs match, before the run.
    pub(super) globbed: Vec<(RelPathBuf, PathState)>,
}

impl Asked {
    /// Returns the outputs of the task's earlier runs.
    pub(super) fn earlier(&self) -> Earlier {
        let stale = self.claimed.clone().map(|claimed| Stale { claimed, outputs: self.output.clone() });
        Earlier { owner: self.owner, stale }
    }
}

/// A matching entry.
pub(super) struct Match {
    pub(super) entry: Entry,
    pub(super) archive: Option<Arc<Archive>>,
    pub(super) inputs: u64,
}

/// What a lookup found.
pub(super) enum Lookup {
    Hit(Box<Match>),
    Miss { reason: MissReason, closest: Option<Uuid>, inputs: u64 },
}

impl Lookup {
    /// Returns the number of inputs compared.
    pub(super) fn inputs(&self) -> u64 {
        match self {
            Self::Hit(found) => found.inputs,
            Self::Miss { inputs, .. } => *inputs,
        }
    }
}

/// Present states, each computed once.
struct States<'a> {
    logical: Logical<'a>,
    filter: &'a Filter,
    /// Path sets with the states of their members.
    known: Vec<(PathSet, Vec<PathState>)>,
}

impl Workspace {
    /// Compiles filters, hashes programs, opens the claim.
    pub(super) fn ask(&self, spec: TaskSpec) -> Result<Asked, WorkspaceError> {
        let owner = task_id(&spec);
        let programs = spec.programs.iter().map(|program| self.program_digest(&program.path)).collect();
        let facets = Facets::new(&spec, programs);
        let input = Filter::compile(&spec.input)?;
        let output = Filter::compile(&spec.output)?;
        let claim = forgo("look for a claim", self.index.claim(self.id, owner)).flatten();
        let claimed = self.open_claim(claim.as_ref());
        let weak = facets.weak_key();
        let mut asked =
            Asked { spec, owner, facets, weak, input, output, claim, claimed, globbed: Vec::new() };
        if asked.input.has_positive_globs() {
            asked.globbed = self.globbed(&asked)?;
        }
        Ok(asked)
    }

    /// Returns how the task of `asked` sees the tree.
    pub(super) fn logical<'a>(&'a self, asked: &'a Asked) -> Logical<'a> {
        Logical {
            tree: &self.tree,
            hashes: &self.hashes,
            owner: &asked.owner,
            claimed: asked.claimed.clone(),
            touched: self.touched_since_in_place(&asked.owner),
        }
    }

    /// Looks a task up; where the cache cannot be asked, that is a miss.
    pub(super) fn lookup(&self, asked: &Asked) -> Result<Lookup, WorkspaceError> {
        let miss = |problem| {
            let reason = MissReason::Storage(problem);
            Ok(Lookup::Miss { reason, closest: None, inputs: 0 })
        };
        if let Some(fault) = &self.fault {
            return miss(fault.clone());
        }
        match self.lookup_in_index(asked) {
            Err(error) if error.is_of_cache() => miss(chain(&error)),
            other => other,
        }
    }

    fn lookup_in_index(&self, asked: &Asked) -> Result<Lookup, WorkspaceError> {
        let mut states = States { logical: self.logical(asked), filter: &asked.input, known: Vec::new() };
        let mut bad_archive = None;
        for digest in self.index.path_sets(asked.weak)? {
            if let Some((strong, inputs)) = self.known_lookup(asked, digest, &states.logical)
                && let Some(entry) = self.index.entry_by_strong(strong)?
                && let Ok(archive) = self.open_entry_archive(&entry)
            {
                return Ok(Lookup::Hit(Box::new(Match { entry, archive, inputs })));
            }
            let Some(blob) = self.index.path_set(digest)? else { continue };
            let Ok(set) = postcard::from_bytes::<PathSet>(&blob) else { continue };
            let inputs = (set.len() + asked.globbed.len()) as u64;
            let looking = self.begin_looking(asked, digest);
            let present = states.of_set(&set, &asked.globbed)?;
            let strong = strong_key(asked.weak, digest, &present);
            let Some(entry) = self.index.entry_by_strong(strong)? else {
                states.known.push((set, present.recorded));
                continue;
            };
            match self.open_entry_archive(&entry) {
                Ok(archive) => {
                    if let Some(looking) = looking {
                        looking.remember(&set, &present.recorded, strong);
                    }
                    return Ok(Lookup::Hit(Box::new(Match { entry, archive, inputs })));
                }
                Err(problem) => {
                    let archive = entry.archive.map(|id| self.store.archive_path(id)).unwrap_or_default();
                    bad_archive = Some((entry.id, archive, problem));
                }
            }
        }
        if let Some((entry, archive, problem)) = bad_archive {
            self.drop_entry(entry);
            let reason = MissReason::BadArchive { archive, problem };
            return Ok(Lookup::Miss { reason, closest: Some(entry), inputs: 0 });
        }
        self.explain(asked, &mut states)
    }

    /// Compares with the task's latest entries and returns what differs from the closest.
    fn explain(&self, asked: &Asked, states: &mut States<'_>) -> Result<Lookup, WorkspaceError> {
        let mut best: Option<(Vec<Difference>, Uuid, u64)> = None;
        for entry in self.index.entries_of(asked.owner)?.into_iter().take(COMPARED_MAX) {
            let Some(facets) = self.index.facets(entry.id)? else { continue };
            let Ok(facets) = postcard::from_bytes::<Facets>(&facets) else { continue };
            let mut differences = facets.differences(&asked.facets);
            let mut inputs = 0;
            if let Some((set, then)) = self.entry_inputs(&entry)? {
                inputs = (set.len() + then.globbed.len()) as u64;
                let now = states.of_set(&set, &asked.globbed)?;
                for (((path, _), then), now) in set.iter().zip(&then.recorded).zip(&now.recorded) {
                    for difference in input_differences(path, then, now) {
                        differences.extend(states.logical.named(difference)?);
                    }
                }
                // Explicit globs are comparable only where they are the same.
                if facets.same_input(&asked.facets) {
                    differences.extend(globbed_differences(&then.globbed, &now.globbed));
                }
                states.known.push((set, now.recorded));
            }
            if differences.is_empty() {
                continue;
            }
            if best.as_ref().is_none_or(|(known, ..)| differences.len() < known.len()) {
                best = Some((differences, entry.id, inputs));
            }
        }
        Ok(match best {
            None => Lookup::Miss { reason: MissReason::NotCached, closest: None, inputs: 0 },
            Some((mut differences, closest, inputs)) => {
                differences = without_echoes(differences);
                differences.truncate(DIFFERENCES_MAX);
                Lookup::Miss { reason: MissReason::Changed(differences), closest: Some(closest), inputs }
            }
        })
    }

    /// Returns path set and states of an entry, or `None` where they are unreadable.
    pub(super) fn entry_inputs(
        &self,
        entry: &Entry,
    ) -> Result<Option<(PathSet, InputStates)>, WorkspaceError> {
        let Some(states) = self.index.states(entry.id)? else { return Ok(None) };
        let stored = postcard::from_bytes::<StoredInputs>(&states).ok();
        Ok(stored.map(|stored| (stored.set, stored.states)))
    }

    /// Opens the archive of an entry; `Err` says what is wrong with it.
    fn open_entry_archive(&self, entry: &Entry) -> Result<Option<Arc<Archive>>, String> {
        let Some(id) = entry.archive else { return Ok(None) };
        let archive = self.open_archive(id).map_err(|error| chain(&error))?;
        if archive.is_damaged() {
            return Err("a part of it that somebody read is damaged".into());
        }
        Ok(Some(archive))
    }

    /// Returns the hash of a program outside the workspace; `None` where it cannot be read, which is a
    /// state like any other.
    fn program_digest(&self, path: &std::path::Path) -> Option<Digest> {
        use rustix::fs::{Mode, OFlags, ResolveFlags};
        if path.starts_with(&self.root) {
            // It would be reached through our own mount; the view records it.
            return None;
        }
        let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK;
        let file =
            rustix::fs::openat2(rustix::fs::CWD, path, flags, Mode::empty(), ResolveFlags::NO_SYMLINKS)
                .ok()?;
        let stat = crate::base::BaseStat::from(rustix::fs::fstat(&file).ok()?);
        if stat.kind != FileKind::File {
            return None;
        }
        if let Some(known) = self.hashes.known(&stat.identity) {
            return Some(known);
        }
        let digest = Digest::of_reader(std::fs::File::from(file)).ok()?;
        self.hashes.insert(stat.identity, digest);
        Some(digest)
    }

    /// Returns the states of all files that explicit input globs match.
    fn globbed(&self, asked: &Asked) -> Result<Vec<(RelPathBuf, PathState)>, FsError> {
        let logical = self.logical(asked);
        let mut found = BTreeMap::new();
        for root in asked.input.walk_roots() {
            glob_walk(&logical, &asked.input, &root, &mut found)?;
        }
        Ok(found.into_iter().collect())
    }

    /// Notes a lookup for `vout why`.
    pub(super) fn note_lookup(&self, asked: &Asked, lookup: &Lookup) {
        let mut report = why(asked, lookup.inputs());
        match lookup {
            Lookup::Hit(found) => report.hit = Some(found.entry.id),
            Lookup::Miss { reason, closest, .. } => {
                (report.miss, report.closest) = (Some(reason.clone()), *closest);
            }
        }
        forgo("note a lookup", self.index.set_lookup(self.id, &report.task, &encode(&report)));
    }

    /// Notes a hit for `vout why`, and that its entry was used.
    pub(super) fn note_hit(&self, asked: &Asked, found: &Match) {
        let report = WhyReport { hit: Some(found.entry.id), ..why(asked, found.inputs) };
        let used = (found.entry.id, now_secs());
        forgo("note a hit", self.index.note_hit(used, (self.id, &report.task), &encode(&report)));
    }
}

fn why(asked: &Asked, inputs: u64) -> WhyReport {
    let task = asked.spec.name.clone();
    WhyReport { task, when: now_secs(), hit: None, miss: None, closest: None, inputs, not_stored: None }
}

/// What the index keeps of an entry's inputs.
#[derive(serde::Serialize, serde::Deserialize)]
pub(super) struct StoredInputs {
    pub(super) set: PathSet,
    pub(super) states: InputStates,
}

impl States<'_> {
    fn of_set(
        &self,
        set: &PathSet,
        globbed: &[(RelPathBuf, PathState)],
    ) -> Result<InputStates, WorkspaceError> {
        let state = |near: &mut Nearby<'_>, member: &(RelPathBuf, Dependency)| {
            if let Some(known) = self.known_state(member) {
                return Ok(known.clone());
            }
            let (path, dependency) = member;
            let state = self.logical.state_near(path, *dependency, near)?;
            Ok::<_, FsError>(filtered(state, path, self.filter))
        };
        let recorded = self.logical.tree.base().map_near(set, state)?;
        Ok(InputStates { recorded, globbed: globbed.to_vec() })
    }

    fn known_state(&self, member: &(RelPathBuf, Dependency)) -> Option<&PathState> {
        self.known.iter().find_map(|(set, states)| states.get(set.binary_search(member).ok()?))
    }
}

/// Leaves names out of a listing that the input filter excludes.
pub(super) fn filtered(state: PathState, path: &RelPath, filter: &Filter) -> PathState {
    use std::ffi::OsStr;
    use std::os::unix::ffi::OsStrExt;
    match state {
        PathState::Dir { listing: Some(mut names) } => {
            names.retain(|(name, _)| !filter.excludes(&path.join(OsStr::from_bytes(name))));
            PathState::Dir { listing: Some(names) }
        }
        state => state,
    }
}

fn glob_walk(
    logical: &Logical<'_>,
    filter: &Filter,
    path: &RelPath,
    found: &mut BTreeMap<RelPathBuf, PathState>,
) -> Result<(), FsError> {
    let state = logical.state(path, Dependency::READ | Dependency::LINK)?;
    match state.kind() {
        None => {}
        Some(FileKind::Dir) => {
            if !path.is_root() && !filter.descends(path) && !filter.selects(path, false) {
                return Ok(());
            }
            if let PathState::Dir { listing: Some(names) } = logical.state(path, Dependency::LIST)? {
                for (name, _) in names {
                    use std::os::unix::ffi::OsStrExt;
                    glob_walk(logical, filter, &path.join(std::ffi::OsStr::from_bytes(&name)), found)?;
                }
            }
        }
        Some(_) if filter.selects(path, false) => {
            found.insert(path.to_owned(), state);
        }
        Some(_) => {}
    }
    Ok(())
}

fn globbed_differences(then: &[(RelPathBuf, PathState)], now: &[(RelPathBuf, PathState)]) -> Vec<Difference> {
    let then: BTreeMap<_, _> = then.iter().map(|(path, state)| (path, state)).collect();
    let now: BTreeMap<_, _> = now.iter().map(|(path, state)| (path, state)).collect();
    let absent = &PathState::Absent;
    let mut paths: Vec<_> = then.keys().chain(now.keys()).copied().collect();
    paths.sort_unstable();
    paths.dedup();
    paths
        .into_iter()
        .flat_map(|path| {
            input_differences(path, then.get(path).unwrap_or(&absent), now.get(path).unwrap_or(&absent))
        })
        .collect()
}

/// Leaves out what says again what another difference says better: a file that appeared or went is also a
/// change in its directory's listing.
fn without_echoes(differences: Vec<Difference>) -> Vec<Difference> {
    use std::ffi::OsStr;
    use std::os::unix::ffi::OsStrExt;
    let named: std::collections::HashSet<RelPathBuf> = differences
        .iter()
        .filter_map(|difference| match difference {
            Difference::AddedIn { name, dir } | Difference::RemovedFrom { name, dir } => {
                Some(dir.join(OsStr::from_bytes(name)))
            }
            _ => None,
        })
        .collect();
    differences
        .into_iter()
        .filter(|difference| match difference {
            Difference::Appeared(path) | Difference::Removed(path) => !named.contains(path),
            _ => true,
        })
        .collect()
}
