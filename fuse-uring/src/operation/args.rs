//! The bytes after a request's header.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;

use zerocopy::{FromBytes, Immutable, KnownLayout};

use super::decode::DecodeError;

/// What is left to read of a request.
///
/// Over `/dev/fuse` a request is one piece; over the ring its structure lies in another place than its names
/// and data. Read in order, both are the same.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Args<'a> {
    head: &'a [u8],
    tail: &'a [u8],
}

impl<'a> Args<'a> {
    /// A request in one piece.
    pub(crate) const fn whole(body: &'a [u8]) -> Self {
        Self { head: body, tail: &[] }
    }

    /// A request in two.
    pub(crate) const fn split(structure: &'a [u8], payload: &'a [u8]) -> Self {
        Self { head: structure, tail: payload }
    }

    /// Returns the structure that comes next.
    pub(crate) fn take<T: FromBytes + KnownLayout + Immutable>(&mut self) -> Result<T, DecodeError> {
        self.advance();
        let short = DecodeError::Short { expected: size_of::<T>(), found: self.head.len() };
        let (value, rest) = T::read_from_prefix(self.head).map_err(|_| short)?;
        self.head = rest;
        Ok(value)
    }

    /// Returns the name that comes next, without its zero byte.
    pub(crate) fn name(&mut self) -> Result<&'a OsStr, DecodeError> {
        self.advance();
        let end = self.head.iter().position(|byte| *byte == 0).ok_or(DecodeError::Unterminated)?;
        let name = &self.head[..end];
        self.head = &self.head[end + 1..];
        Ok(OsStr::from_bytes(name))
    }

    /// Returns the name of an object in a directory.
    pub(crate) fn component(&mut self) -> Result<&'a OsStr, DecodeError> {
        let name = self.name()?;
        if name.is_empty() || name.as_bytes().contains(&b'/') {
            return Err(DecodeError::Name);
        }
        Ok(name)
    }

    /// Returns the `size` bytes that come next.
    pub(crate) fn data(&mut self, size: u64) -> Result<&'a [u8], DecodeError> {
        self.advance();
        let found = self.head.len();
        let wanted = usize::try_from(size).unwrap_or(usize::MAX);
        let (data, rest) =
            self.head.split_at_checked(wanted).ok_or(DecodeError::Short { expected: wanted, found })?;
        self.head = rest;
        Ok(data)
    }

    /// Cuts the last `size` bytes off.
    pub(crate) fn cut_end(&mut self, size: usize) -> Result<&'a [u8], DecodeError> {
        let last = if self.tail.is_empty() { &mut self.head } else { &mut self.tail };
        let found = last.len();
        let start = found.checked_sub(size).ok_or(DecodeError::Short { expected: size, found })?;
        let (rest, end) = last.split_at(start);
        *last = rest;
        Ok(end)
    }

    /// Goes on with the second piece once the first is read.
    fn advance(&mut self) {
        if self.head.is_empty() {
            self.head = std::mem::take(&mut self.tail);
        }
    }
}
