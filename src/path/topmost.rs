//! Sets of paths that stand for what lies in them.

use crate::path::RelPath;

/// Paths of which none lies in another one, sorted.
#[derive(Debug)]
pub(crate) struct Topmost<'a>(Vec<&'a RelPath>);

impl<'a> Topmost<'a> {
    /// Takes those of `paths` that lie in no other one.
    pub(crate) fn of(paths: impl IntoIterator<Item = &'a RelPath>) -> Self {
        let mut sorted: Vec<_> = paths.into_iter().collect();
        // Most come sorted; and a directory comes before what it holds, if not right before it.
        sorted.sort();
        let mut topmost = Self(Vec::new());
        for path in sorted {
            if !topmost.covers(path) {
                topmost.0.push(path);
            }
        }
        topmost
    }

    /// Returns whether `path` is one of them or lies in one.
    pub(crate) fn covers(&self, path: &RelPath) -> bool {
        let is_one = |path: &RelPath| self.0.binary_search(&path).is_ok();
        is_one(path) || path.ancestors().any(is_one)
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &'a RelPath> {
        self.0.iter().copied()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::path::RelPathBuf;

    fn path() -> impl Strategy<Value = RelPathBuf> {
        // Names that sort around the separator.
        let names = prop::collection::vec(prop::sample::select(vec!["a", "a-", "a0", "b"]), 0..4);
        names.prop_map(|names| RelPathBuf::new(names.join("/")).unwrap())
    }

    proptest! {
        #[test]
        fn says_what_looking_at_each_path_says(paths in prop::collection::vec(path(), 0..12), asked in path()) {
            let topmost = Topmost::of(paths.iter().map(|path| &**path));
            prop_assert_eq!(topmost.covers(&asked), paths.iter().any(|path| asked.starts_with(path)));
            for one in topmost.iter() {
                prop_assert!(topmost.iter().all(|other| one == other || !one.starts_with(other)));
            }
        }
    }
}
