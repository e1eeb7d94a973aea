//! A recording: what a view saw of the merged tree.
//!
//! Each path keeps the state of its first access. Nothing is filtered here: filters are applied to the
//! finished recording, to reads and writes apart.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::os::unix::ffi::{OsStrExt, OsStringExt};

use serde_bytes::ByteBuf;

use crate::base::Identity;
use crate::digest::Digest;
use crate::path::{RelPath, RelPathBuf};
use crate::state::{Dependency, FileKind, PathState};

/// More recorded paths than this make a recording incomplete.
const PATHS_MAX: usize = 4_000_000;

/// So do more bytes of paths, listed names and link targets.
const BYTES_MAX: usize = 512 * 1024 * 1024;

/// What a view saw.
#[derive(Debug, Default)]
pub struct Recording {
    /// By the bytes of the path: most were only probed, and there may be millions.
    paths: BTreeMap<Box<[u8]>, Entry>,
    bytes: usize,
    overflowed: bool,
}

/// What was seen of one path, each part at its first access.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Observed<'a> {
    /// What was looked at.
    pub dependency: Dependency,
    /// Existence, kind, size and executable bit.
    pub probe: PathState,
    /// Which content was opened, if any was.
    pub content: Option<ContentSeen>,
    /// Names and kinds, if it was listed.
    pub listing: Option<&'a Listing>,
    /// Target, if it was read as a link.
    pub target: Option<&'a [u8]>,
}

/// Which content of a file was opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ContentSeen {
    /// This version of a real file.
    Real(Identity),
    /// A virtual file's content.
    Virtual(Digest),
}

/// An [`Observed`] as it is kept.
#[derive(Debug)]
struct Entry {
    seen: Seen,
    more: Option<Box<More>>,
}

/// A [`Dependency`], and a [`PathState`] without what only a closer look tells, in one word: there may be millions.
///
/// Bits 0 to 3 are the dependency, 4 to 6 the place of the kind in [`KINDS`] or 7 where nothing is, 7 tells an
/// executable file, and the rest is its size.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Seen(u64);

/// What a closer look told.
#[derive(Debug, Default)]
struct More {
    content: Option<ContentSeen>,
    listing: Option<Listing>,
    target: Option<Box<[u8]>>,
}

impl Recording {
    /// Records a probe of `path`.
    pub fn probe(&mut self, path: &RelPath, state: PathState) {
        self.observe(path, Dependency::PROBE, &state);
    }

    /// Records that content was opened for reading.
    pub fn read(&mut self, path: &RelPath, state: PathState, content: ContentSeen) {
        if let Some(more) = self.observe(path, Dependency::READ, &state) {
            more.get_or_insert_default().content.get_or_insert(content);
        }
    }

    /// Records that a link was read.
    pub fn link(&mut self, path: &RelPath, target: OsString) {
        let bytes = target.len();
        if let Some(more) = self.observe(path, Dependency::LINK, &PathState::Symlink { target: None })
            && more.as_ref().is_none_or(|more| more.target.is_none())
        {
            more.get_or_insert_default().target = Some(target.into_vec().into());
            self.count(bytes);
        }
    }

    /// Records that a directory was listed.
    pub fn list<T: Copy + Into<FileKind>>(&mut self, path: &RelPath, names: &BTreeMap<OsString, T>) {
        if let Some(more) = self.observe(path, Dependency::LIST, &PathState::Dir { listing: None })
            && more.as_ref().is_none_or(|more| more.listing.is_none())
        {
            let listing = Listing::of(names);
            let bytes = listing.0.len();
            more.get_or_insert_default().listing = Some(listing);
            self.count(bytes);
        }
    }

    fn observe(
        &mut self,
        path: &RelPath,
        dependency: Dependency,
        state: &PathState,
    ) -> Option<&mut Option<Box<More>>> {
        if self.overflowed {
            return None;
        }
        if !self.paths.contains_key(path.as_bytes()) {
            if !self.count(path.as_bytes().len()) {
                return None;
            }
            let entry = Entry { seen: Seen::new(state, dependency), more: None };
            self.paths.insert(path.as_bytes().into(), entry);
        }
        let entry = self.paths.get_mut(path.as_bytes())?;
        entry.seen |= dependency;
        Some(&mut entry.more)
    }

    /// Counts memory; returns whether it is still in bounds. If not nothing is kept: an incomplete recording is
    /// of no use.
    fn count(&mut self, bytes: usize) -> bool {
        self.bytes = self.bytes.saturating_add(bytes);
        if self.bytes > BYTES_MAX || self.paths.len() >= PATHS_MAX {
            self.overflowed = true;
            self.paths = BTreeMap::new();
        }
        !self.overflowed
    }

    /// Returns whether something could not be recorded. Then the rest is forgotten, too.
    #[must_use]
    pub fn overflowed(&self) -> bool {
        self.overflowed
    }

    /// Returns what was seen, in no particular order.
    pub fn iter(&self) -> impl Iterator<Item = (&RelPath, Observed<'_>)> {
        self.paths.iter().map(|(path, entry)| (RelPath::cast(path), entry.observed()))
    }

    /// Returns what was seen of `path`.
    #[must_use]
    pub fn get(&self, path: &RelPath) -> Option<Observed<'_>> {
        self.entry(path).map(Entry::observed)
    }

    fn entry(&self, path: &RelPath) -> Option<&Entry> {
        self.paths.get(path.as_bytes())
    }

    /// Returns whether the recording depends on `path`: looked at it, or listed its directory.
    #[must_use]
    pub fn depends_on(&self, path: &RelPath) -> bool {
        self.entry(path).is_some()
            || path.parent().and_then(|dir| self.entry(dir)).is_some_and(Entry::is_listed)
    }

    /// Reduces the recording to a sorted path set without what another member implies: nothing below a
    /// missing path needs a word, nor does a missing name of a listed directory.
    #[must_use]
    pub fn path_set(&self, keep: impl Fn(&RelPath) -> bool) -> Vec<(RelPathBuf, Dependency)> {
        let absent =
            |path: &RelPath| self.entry(path).is_some_and(|entry| entry.seen.is_absent()) && keep(path);
        let listed = |path: &RelPath| self.entry(path).is_some_and(Entry::is_listed) && keep(path);
        let implied = |path: &RelPath, seen: Seen| {
            path.ancestors().any(absent) || (seen.is_absent() && path.parent().is_some_and(listed))
        };
        let mut set: Vec<_> = self
            .paths
            .iter()
            .map(|(path, entry)| (RelPath::cast(path), entry.seen))
            .filter(|(path, seen)| keep(path) && !implied(path, *seen))
            .map(|(path, seen)| (path.to_owned(), seen.dependency()))
            .collect();
        set.sort_unstable();
        set
    }
}

impl Entry {
    fn observed(&self) -> Observed<'_> {
        let more = self.more.as_deref();
        Observed {
            dependency: self.seen.dependency(),
            probe: self.seen.probe(),
            content: more.and_then(|more| more.content),
            listing: more.and_then(|more| more.listing.as_ref()),
            target: more.and_then(|more| more.target.as_deref()),
        }
    }

    fn is_listed(&self) -> bool {
        self.more.as_ref().is_some_and(|more| more.listing.is_some())
    }
}

impl Seen {
    /// Larger files are recorded as this large. No later look confirms that, so they make a miss.
    const SIZE_BYTES_MAX: u64 = (1 << 56) - 1;
    const ABSENT: u64 = 7 << 4;
    const KIND: u64 = 7 << 4;
    const EXECUTABLE: u64 = 1 << 7;
    const SIZE_SHIFT: u32 = 8;

    fn new(state: &PathState, dependency: Dependency) -> Self {
        let kind = |kind| u64::from(kind_number(kind)) << 4;
        let probe = match state {
            PathState::Absent => Self::ABSENT,
            PathState::File { executable, size_bytes, content: _ } => {
                let executable = if *executable { Self::EXECUTABLE } else { 0 };
                kind(FileKind::File) | executable | Self::SIZE_BYTES_MAX.min(*size_bytes) << Self::SIZE_SHIFT
            }
            PathState::Dir { listing: _ } => kind(FileKind::Dir),
            PathState::Symlink { target: _ } => kind(FileKind::Symlink),
            PathState::Special(special) => kind(*special),
        };
        Self(probe | u64::from(dependency.bits()))
    }

    fn is_absent(self) -> bool {
        self.0 & Self::KIND == Self::ABSENT
    }

    fn dependency(self) -> Dependency {
        Dependency::from_bits_truncate(self.0.to_le_bytes()[0])
    }

    fn probe(self) -> PathState {
        if self.is_absent() {
            return PathState::Absent;
        }
        match KINDS[usize::from(self.0.to_le_bytes()[0] >> 4 & 7)] {
            FileKind::File => PathState::File {
                executable: self.0 & Self::EXECUTABLE != 0,
                size_bytes: self.0 >> Self::SIZE_SHIFT,
                content: None,
            },
            FileKind::Dir => PathState::Dir { listing: None },
            FileKind::Symlink => PathState::Symlink { target: None },
            kind => PathState::Special(kind),
        }
    }
}

impl std::ops::BitOrAssign<Dependency> for Seen {
    fn bitor_assign(&mut self, dependency: Dependency) {
        self.0 |= u64::from(dependency.bits());
    }
}

/// Names and kinds, packed: a directory may have a million.
///
/// For each name its place in the table of kinds, its length (`u16`, little-endian), and its bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listing(Box<[u8]>);

/// Kinds by the number that stands for them in a [`Seen`] and in a [`Listing`].
const KINDS: [FileKind; 7] = [
    FileKind::File,
    FileKind::Dir,
    FileKind::Symlink,
    FileKind::Fifo,
    FileKind::Socket,
    FileKind::CharDevice,
    FileKind::BlockDevice,
];

fn kind_number(kind: FileKind) -> u8 {
    (0..)
        .zip(KINDS)
        .find_map(|(number, known)| (known == kind).then_some(number))
        .expect("all are in the table")
}

impl Listing {
    fn of<T: Copy + Into<FileKind>>(names: &BTreeMap<OsString, T>) -> Self {
        let mut packed = Vec::with_capacity(names.keys().map(|name| name.len() + 3).sum());
        for (name, kind) in names {
            // Names have at most 255 bytes.
            let length = u16::try_from(name.len()).unwrap_or(u16::MAX);
            packed.push(kind_number((*kind).into()));
            packed.extend(length.to_le_bytes());
            packed.extend(name.as_bytes().iter().take(length.into()));
        }
        Self(packed.into())
    }

    /// Returns what a [`PathState`] holds.
    #[must_use]
    pub fn names(&self) -> Vec<(ByteBuf, FileKind)> {
        let (mut names, mut left) = (Vec::new(), &*self.0);
        while let [kind, low, high, rest @ ..] = left {
            let (name, rest) = rest.split_at(u16::from_le_bytes([*low, *high]).into());
            names.push((ByteBuf::from(name), KINDS[usize::from(*kind)]));
            left = rest;
        }
        names
    }
}

/// Turns names and kinds into what a [`PathState`] holds.
#[must_use]
pub fn listing(names: &BTreeMap<OsString, FileKind>) -> Vec<(ByteBuf, FileKind)> {
    names.iter().map(|(name, kind)| (ByteBuf::from(name.clone().into_vec()), *kind)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn path(text: &str) -> &RelPath {
        RelPath::new(text).unwrap()
    }

    #[test]
    fn a_listing_is_unpacked_as_it_was() {
        let name = |text: &[u8]| OsString::from_vec(text.to_vec());
        let mut names: BTreeMap<_, _> =
            (0..).zip(KINDS).map(|(number, kind): (u8, _)| (name(&[b'a', number | 0x80]), kind)).collect();
        names.insert(name(&[b'x'; 255]), FileKind::Dir);
        assert_eq!(Listing::of(&names).names(), listing(&names));
        assert_eq!(Listing::of(&BTreeMap::<_, FileKind>::new()).names(), []);
    }

    #[test]
    fn an_entry_is_small_and_keeps_what_was_seen() {
        assert_eq!(size_of::<Entry>(), 16);
        let file = |executable, size_bytes| PathState::File { executable, size_bytes, content: None };
        let specials = [FileKind::Fifo, FileKind::Socket, FileKind::CharDevice, FileKind::BlockDevice];
        let states = [
            PathState::Absent,
            file(false, 0),
            file(true, 4097),
            file(false, Seen::SIZE_BYTES_MAX),
            PathState::Dir { listing: None },
            PathState::Symlink { target: None },
        ];
        for state in states.into_iter().chain(specials.map(PathState::Special)) {
            let mut seen = Seen::new(&state, Dependency::PROBE);
            seen |= Dependency::LIST;
            assert_eq!((seen.probe(), seen.dependency()), (state, Dependency::PROBE | Dependency::LIST));
        }
        assert_eq!(
            Seen::new(&file(true, u64::MAX), Dependency::READ).probe(),
            file(true, Seen::SIZE_BYTES_MAX)
        );
    }

    #[test]
    fn first_access_decides() {
        let mut recording = Recording::default();
        recording.probe(path("a"), PathState::Absent);
        recording.probe(path("a"), PathState::Dir { listing: None });
        assert_eq!(recording.get(path("a")).unwrap().probe, PathState::Absent);
    }

    #[test]
    fn path_set_leaves_out_what_is_implied() {
        let mut recording = Recording::default();
        let names = BTreeMap::from([("x".into(), FileKind::File)]);
        recording.list(path("src"), &names);
        for absent in ["src/missing", "dist", "dist/deep", "other"] {
            recording.probe(path(absent), PathState::Absent);
        }
        let set = recording.path_set(|path| path.as_bytes() != b"other");
        assert_eq!(
            set,
            [(path("dist").to_owned(), Dependency::PROBE), (path("src").to_owned(), Dependency::LIST)]
        );
    }

    #[test]
    fn what_was_only_probed_takes_little_memory() {
        assert!(size_of::<(Box<[u8]>, Entry)>() <= 48);
    }

    #[test]
    fn a_recording_that_overflows_keeps_nothing() {
        let mut recording = Recording::default();
        recording.probe(path("a"), PathState::Absent);
        let long = "x".repeat(4000);
        for number in 0..BYTES_MAX / long.len() + 1 {
            recording.link(path(&format!("{number}")), long.clone().into());
            if number == 1000 {
                // The rest as if it had been there.
                recording.bytes = BYTES_MAX - 3 * long.len();
            }
            if recording.overflowed() {
                break;
            }
        }
        assert!(recording.overflowed() && recording.iter().next().is_none());
        recording.probe(path("b"), PathState::Absent);
        assert!(recording.get(path("b")).is_none());
    }

    #[test]
    fn listing_a_directory_depends_on_its_names() {
        let mut recording = Recording::default();
        recording.list(path("src"), &BTreeMap::<_, FileKind>::new());
        assert!(recording.depends_on(path("src/new")));
        assert!(!recording.depends_on(path("src/sub/new")));
    }
}
