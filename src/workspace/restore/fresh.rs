//! Directories that are put together under another name before they are moved to their place.

use super::Planned;
use crate::archive::restore::temporary_name;
use crate::path::{RelPath, RelPathBuf};

/// Directories that are not there yet, none in another, and the names under which they are put together: first
/// filled, then renamed, so that not each file has to be.
#[derive(Debug, Default)]
pub(super) struct FreshDirs(Vec<(RelPathBuf, RelPathBuf)>);

impl FreshDirs {
    /// Chooses those of `planned` that are not there.
    pub(super) fn of(planned: &[Planned]) -> Self {
        let missing = planned.iter().filter(|planned| planned.missing && planned.record.is_dir());
        let mut missing: Vec<_> = missing.map(|planned| &planned.record.path).collect();
        missing.sort_unstable_by(|a, b| a.components().cmp(b.components()));
        let mut fresh = Self::default();
        for path in missing {
            // In the order of components, what is in a directory follows it.
            if fresh.0.last().is_none_or(|(root, _)| !path.starts_with(root)) {
                let parent = path.parent().unwrap_or(RelPath::ROOT);
                fresh.0.push((path.clone(), parent.join(temporary_name().as_ref())));
            }
        }
        fresh
    }

    /// Returns whether `path` is one of them or lies in one.
    pub(super) fn holds(&self, path: &RelPath) -> bool {
        self.root_of(path).is_some()
    }

    /// Returns where to put what belongs at `path`.
    pub(super) fn place(&self, path: &RelPath) -> RelPathBuf {
        match self.root_of(path) {
            Some((root, temp)) => {
                let below = path.components().skip(root.components().count());
                below.fold(temp.clone(), |place, name| place.join(name))
            }
            None => path.to_owned(),
        }
    }

    /// Returns each with the name under which it is put together.
    pub(super) fn iter(&self) -> impl Iterator<Item = (&RelPath, &RelPath)> {
        self.0.iter().map(|(root, temp)| (&**root, &**temp))
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    fn root_of(&self, path: &RelPath) -> Option<&(RelPathBuf, RelPathBuf)> {
        let behind = self.0.partition_point(|(root, _)| root.components().le(path.components()));
        self.0[..behind].last().filter(|(root, _)| path.starts_with(root))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::archive::Record;
    use crate::archive::RecordKind;
    use crate::archive::restore::is_temporary_name;
    use crate::fs::Timestamp;
    use crate::state::PathState;

    fn path(text: &str) -> &RelPath {
        RelPath::new(text).unwrap()
    }

    fn planned(text: &str, kind: RecordKind, missing: bool) -> Planned {
        let record = crate::claim::absent_record(path(text).to_owned(), &PathState::Absent);
        Planned { record: Record { kind, ..record }, mtime: Timestamp::default(), in_place: false, missing }
    }

    #[test]
    fn what_lies_in_a_missing_directory_is_put_together_beside_it() {
        let dir = |text, missing| planned(text, RecordKind::Dir, missing);
        let file = planned("e/file", RecordKind::Symlink { target: "x".into() }, true);
        let fresh = FreshDirs::of(&[
            dir("a/b", true),
            dir("a", true),
            dir("a-b", true),
            dir("a/b/c", true),
            dir("e", false),
            dir("e/f", true),
            file,
        ]);
        let roots: Vec<_> = fresh.iter().map(|(root, _)| root.as_os_str().to_str().unwrap()).collect();
        assert_eq!(roots, ["a", "a-b", "e/f"]);
        for (of, root, below) in [("a/b/c/d", 0, "b/c/d"), ("a-b/x", 1, "x"), ("e/f", 2, "")] {
            let temp = &fresh.0[root].1;
            assert!(is_temporary_name(temp.name().unwrap()));
            assert_eq!(temp.parent(), fresh.0[root].0.parent());
            assert_eq!(fresh.place(path(of)), temp.join_path(path(below)), "{of}");
            assert!(fresh.holds(path(of)), "{of}");
        }
        for elsewhere in ["e", "e/file", "ab", "e/ff", "0", ""] {
            assert_eq!(&*fresh.place(path(elsewhere)), path(elsewhere));
            assert!(!fresh.holds(path(elsewhere)), "{elsewhere}");
        }
    }
}
