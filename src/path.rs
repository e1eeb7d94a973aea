//! Validated paths relative to the workspace root.
//!
//! Unix names are bytes, so a [`RelPath`] is bytes: a name that is not UTF-8 is as good as any other.

mod topmost;

use std::borrow::Borrow;
use std::ffi::OsStr;
use std::fmt;
use std::ops::Deref;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use ref_cast::{RefCastCustom, ref_cast_custom};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use thiserror::Error;

pub(crate) use self::topmost::Topmost;

/// A path below the workspace root.
///
/// - `/`-separated bytes, without a leading or trailing `/`;
/// - no empty, `.` or `..` component, no NUL byte;
/// - the root itself is the empty path.
///
/// Ordering is that of the bytes.
#[derive(PartialEq, Eq, PartialOrd, Ord, Hash, RefCastCustom)]
#[repr(transparent)]
// No field may be added: `Borrow` needs `Eq` and `Hash` to agree with `RelPathBuf`.
pub struct RelPath([u8]);

/// An owned [`RelPath`].
#[derive(Clone, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RelPathBuf(Vec<u8>);

/// Why bytes are not a [`RelPath`].
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("{path:?} is not a path below the workspace: {reason}")]
pub struct InvalidPath {
    /// The offending path.
    pub path: std::path::PathBuf,
    /// What is wrong with it.
    pub reason: &'static str,
}

impl RelPath {
    /// The workspace root.
    pub const ROOT: &'static Self = Self::cast(&[]);

    /// Takes bytes that were those of a path before.
    #[ref_cast_custom]
    pub(crate) const fn cast(bytes: &[u8]) -> &Self;

    /// Validates `bytes`.
    ///
    /// # Errors
    /// [`InvalidPath`] where a guarantee of the type does not hold.
    pub fn new<B: AsRef<[u8]> + ?Sized>(bytes: &B) -> Result<&Self, InvalidPath> {
        let bytes = bytes.as_ref();
        let invalid = |reason| InvalidPath { path: OsStr::from_bytes(bytes).into(), reason };
        if bytes.is_empty() {
            return Ok(Self::ROOT);
        }
        if bytes.contains(&0) {
            return Err(invalid("it contains a NUL byte"));
        }
        for component in bytes.split(|&b| b == b'/') {
            match component {
                b"" => return Err(invalid("it has an empty component")),
                b"." | b".." => return Err(invalid("it has a '.' or '..' component")),
                _ => {}
            }
        }
        Ok(Self::cast(bytes))
    }

    /// Returns the bytes of the path.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// Returns the path as the operating system takes it; the root is `""`.
    #[must_use]
    pub fn as_os_str(&self) -> &OsStr {
        OsStr::from_bytes(&self.0)
    }

    /// Returns the path as a `std` path; the root is `""`.
    #[must_use]
    pub fn as_path(&self) -> &Path {
        Path::new(self.as_os_str())
    }

    /// Returns whether this is the workspace root.
    #[must_use]
    pub fn is_root(&self) -> bool {
        self.0.is_empty()
    }

    /// Returns the parent, or `None` for the root.
    #[must_use]
    pub fn parent(&self) -> Option<&Self> {
        self.split_last().map(|(parent, _)| parent)
    }

    /// Returns the last component, or `None` for the root.
    #[must_use]
    pub fn name(&self) -> Option<&OsStr> {
        self.split_last().map(|(_, name)| name)
    }

    /// Splits into parent and last component; `None` for the root.
    #[must_use]
    pub fn split_last(&self) -> Option<(&Self, &OsStr)> {
        if self.is_root() {
            return None;
        }
        match self.0.iter().rposition(|&b| b == b'/') {
            Some(i) => Some((Self::cast(&self.0[..i]), OsStr::from_bytes(&self.0[i + 1..]))),
            None => Some((Self::ROOT, self.as_os_str())),
        }
    }

    /// Returns the proper ancestors, nearest first, the root last.
    pub fn ancestors(&self) -> impl Iterator<Item = &Self> {
        std::iter::successors(self.parent(), |path| path.parent())
    }

    /// Returns the components from the root down.
    pub fn components(&self) -> impl Iterator<Item = &OsStr> {
        self.0.split(|&b| b == b'/').filter(|component| !component.is_empty()).map(OsStr::from_bytes)
    }

    /// Returns whether `self` is `other` or lies below it.
    #[must_use]
    pub fn starts_with(&self, other: &Self) -> bool {
        other.is_root()
            || self.0.strip_prefix(&other.0).is_some_and(|rest| rest.is_empty() || rest[0] == b'/')
    }

    /// Returns `self` extended by one component.
    ///
    /// # Panics
    /// Where `name` is not a single component: names come from the kernel or from a directory.
    #[must_use]
    pub fn join(&self, name: &OsStr) -> RelPathBuf {
        let name = checked(name);
        let mut bytes = Vec::with_capacity(self.0.len() + 1 + name.len());
        if !self.is_root() {
            bytes.extend_from_slice(&self.0);
            bytes.push(b'/');
        }
        bytes.extend_from_slice(name);
        RelPathBuf(bytes)
    }

    /// Returns `self` extended by `other`.
    #[must_use]
    pub fn join_path(&self, other: &Self) -> RelPathBuf {
        if other.is_root() {
            return self.to_owned();
        }
        if self.is_root() {
            return other.to_owned();
        }
        RelPathBuf([&self.0, b"/".as_slice(), &other.0].concat())
    }

    /// Returns what follows `base`, or `None` where `self` does not lie at or below it.
    #[must_use]
    pub fn strip_prefix(&self, base: &Self) -> Option<&Self> {
        if !self.starts_with(base) {
            return None;
        }
        let rest = &self.0[base.0.len()..];
        Some(Self::cast(rest.strip_prefix(b"/").unwrap_or(rest)))
    }
}

impl RelPathBuf {
    /// Returns the workspace root.
    #[must_use]
    pub fn root() -> Self {
        Self::default()
    }

    /// Validates and takes `bytes`.
    ///
    /// # Errors
    /// [`InvalidPath`] where a guarantee of [`RelPath`] does not hold.
    pub fn new(bytes: impl Into<Vec<u8>>) -> Result<Self, InvalidPath> {
        let bytes = bytes.into();
        RelPath::new(&bytes)?;
        Ok(Self(bytes))
    }

    /// Returns the path of these components, from the root down.
    ///
    /// # Panics
    /// As [`RelPath::join`].
    pub(crate) fn of_names<'a>(names: impl Iterator<Item = &'a OsStr> + Clone) -> Self {
        let length = names.clone().map(|name| name.len() + 1).sum();
        let mut bytes = Vec::with_capacity(length);
        for name in names {
            if !bytes.is_empty() {
                bytes.push(b'/');
            }
            bytes.extend_from_slice(checked(name));
        }
        Self(bytes)
    }
}

/// Returns the bytes of what is a single component.
fn checked(name: &OsStr) -> &[u8] {
    let name = name.as_bytes();
    assert!(
        !name.is_empty() && !name.contains(&b'/') && name != b"." && name != b"..",
        "not a file name: {name:?}"
    );
    name
}

impl Deref for RelPathBuf {
    type Target = RelPath;

    fn deref(&self) -> &RelPath {
        RelPath::cast(&self.0)
    }
}

impl AsRef<RelPath> for RelPathBuf {
    fn as_ref(&self) -> &RelPath {
        self
    }
}

impl Borrow<RelPath> for RelPathBuf {
    fn borrow(&self) -> &RelPath {
        self
    }
}

impl ToOwned for RelPath {
    type Owned = RelPathBuf;

    fn to_owned(&self) -> RelPathBuf {
        RelPathBuf(self.0.to_vec())
    }
}

impl From<&RelPath> for RelPathBuf {
    fn from(path: &RelPath) -> Self {
        path.to_owned()
    }
}

impl fmt::Debug for RelPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.as_os_str().fmt(f)
    }
}

impl fmt::Debug for RelPathBuf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.as_os_str().fmt(f)
    }
}

/// Shows the path for people: bytes that are not UTF-8 appear as U+FFFD, the root as `.`.
impl fmt::Display for RelPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_root() {
            return f.write_str(".");
        }
        self.as_os_str().display().fmt(f)
    }
}

impl fmt::Display for RelPathBuf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        (**self).fmt(f)
    }
}

impl Serialize for RelPathBuf {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_bytes(&self.0)
    }
}

impl<'de> Deserialize<'de> for RelPathBuf {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let bytes = serde_bytes::ByteBuf::deserialize(deserializer)?;
        Self::new(bytes.into_vec()).map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refuses_what_could_leave_the_workspace() {
        for bad in ["/a", "a/", "a//b", ".", "..", "a/../b", "a/.", "a\0b"] {
            assert!(RelPath::new(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn splits_and_joins_to_itself() {
        for good in ["a", "a/b", "a/b/c.d", "...", ".hidden/x"] {
            let path = RelPath::new(good).unwrap();
            let (parent, name) = path.split_last().unwrap();
            assert_eq!(&*parent.join(name), path);
        }
        assert_eq!(RelPath::ROOT.split_last(), None);
    }

    #[test]
    fn prefix_is_by_component_not_by_byte() {
        let (dist, distant) = (RelPath::new("dist").unwrap(), RelPath::new("distant/x").unwrap());
        assert!(!distant.starts_with(dist));
        assert!(dist.join("x".as_ref()).starts_with(dist));
        assert_eq!(dist.join("x".as_ref()).strip_prefix(dist), Some(RelPath::new("x").unwrap()));
        assert!(distant.starts_with(RelPath::ROOT));
    }
}
