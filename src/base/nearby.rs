//! Looking at many paths of few directories.

use std::os::fd::OwnedFd;

use rayon::prelude::*;
use rustix::fs::AtFlags;
use rustix::io::Errno;

use super::{Base, BaseStat};
use crate::path::{RelPath, RelPathBuf};

/// Paths that one thread looks at in one go.
const AT_ONCE: usize = 512;

/// Examines one path after another; where they lie in one directory, its name is resolved only once.
///
/// # Limitations
/// A directory that is renamed meanwhile is still the one that was opened: not to be kept for long.
#[derive(Debug)]
pub struct Nearby<'a> {
    base: &'a Base,
    /// The directory of the last path that shared it with the one before.
    dir: Option<(RelPathBuf, Option<OwnedFd>)>,
    /// The directory of the last path.
    last: Option<RelPathBuf>,
}

impl<'a> Nearby<'a> {
    /// Starts nowhere.
    #[must_use]
    pub fn new(base: &'a Base) -> Self {
        Self { base, dir: None, last: None }
    }

    /// Returns what is at `path`, or `None` where nothing is.
    ///
    /// # Errors
    /// Those of [`Base::stat`].
    pub fn stat(&mut self, path: &RelPath) -> rustix::io::Result<Option<BaseStat>> {
        let Some((parent, name)) = path.split_last().filter(|_| !self.base.hides(path)) else {
            return self.base.stat(path);
        };
        if self.dir.as_ref().is_none_or(|(dir, _)| **dir != *parent) {
            if self.last.as_deref() != Some(parent) {
                // Opening a directory pays from the second path in it.
                self.last = Some(parent.to_owned());
                return self.base.stat(path);
            }
            let opened = match self.base.open_dir(parent) {
                Ok(opened) => Some(opened),
                Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => None,
                Err(errno) => return Err(errno),
            };
            self.dir = Some((parent.to_owned(), opened));
        }
        let Some((_, Some(dir))) = &self.dir else { return Ok(None) };
        match rustix::fs::statat(dir, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => Ok(Some(BaseStat::from(stat))),
            Err(Errno::NOENT) => Ok(None),
            Err(errno) => Err(errno),
        }
    }
}

impl Base {
    /// Maps items that each are about a path, in their order; many of them on all threads.
    ///
    /// # Errors
    /// One of those of `map`.
    pub fn map_near<T: Sync, R: Send, E: Send>(
        &self,
        items: &[T],
        map: impl Fn(&mut Nearby<'_>, &T) -> Result<R, E> + Sync,
    ) -> Result<Vec<R>, E> {
        let some = |items: &[T]| {
            let mut near = Nearby::new(self);
            items.iter().map(|item| map(&mut near, item)).collect::<Result<Vec<_>, E>>()
        };
        if items.len() <= AT_ONCE {
            // Waking other threads would take longer.
            return some(items);
        }
        let parts = items.par_chunks(AT_ONCE).map(some).collect::<Result<Vec<_>, E>>()?;
        Ok(parts.into_iter().flatten().collect())
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;
    use crate::base::tests::{base, path};

    #[test]
    fn paths_in_one_directory_are_examined_as_each_alone() {
        let (dir, base) = base();
        std::fs::create_dir_all(dir.path().join("d/e")).unwrap();
        std::fs::create_dir_all(dir.path().join(".vout/archives")).unwrap();
        std::fs::write(dir.path().join("d/file"), "content").unwrap();
        symlink("d", dir.path().join("link")).unwrap();
        symlink("file", dir.path().join("d/link")).unwrap();
        let mut near = Nearby::new(&base);
        for text in [
            "d",
            "d/e",
            "d/file",
            "d/link",
            "d/none",
            "d/e/none",
            "d/e/none2",
            "d/e/none3",
            "link",
            "link/e",
            "link/file",
            "link/link",
            "d/file/x",
            "d/file/y",
            "d/file/z",
            "none/x",
            "none/y",
            "none/z",
            ".vout",
            ".vout/archives",
            ".vout/journal",
            ".vout/x",
            "",
        ] {
            assert_eq!(near.stat(path(text)), base.stat(path(text)), "{text}");
        }
    }

    #[test]
    fn many_are_mapped_in_their_order() {
        let (_dir, base) = base();
        for count in [0, 1, AT_ONCE, AT_ONCE + 1, 5 * AT_ONCE + 3] {
            let items: Vec<_> = (0..count).collect();
            assert_eq!(base.map_near(&items, |_, &item| Ok::<_, ()>(item)).unwrap(), items);
            let failed = base.map_near(&items, |_, &item| if item + 1 < count { Ok(()) } else { Err(item) });
            assert_eq!(failed.err(), count.checked_sub(1));
        }
    }
}
