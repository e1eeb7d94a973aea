//! What may stand at a request's end.

use zerocopy::FromBytes;

use super::decode::DecodeError;
use crate::abi::{EXT_GROUPS, ExtHeader};

/// Returns the group that a new file may take. Other extensions are skipped.
pub(super) fn supplementary_group(mut bytes: &[u8]) -> Result<Option<u32>, DecodeError> {
    let mut group = None;
    while !bytes.is_empty() {
        let (header, _) = ExtHeader::read_from_prefix(bytes)
            .map_err(|_| DecodeError::Short { expected: size_of::<ExtHeader>(), found: bytes.len() })?;
        let size = usize::try_from(header.size).unwrap_or(usize::MAX);
        if size < size_of::<ExtHeader>() || size > bytes.len() {
            return Err(DecodeError::Extension);
        }
        if header.kind == EXT_GROUPS {
            // The number of groups, then the groups. The kernel sends one.
            let (count, groups) = u32::read_from_prefix(&bytes[size_of::<ExtHeader>()..size])
                .map_err(|_| DecodeError::Extension)?;
            group = match count {
                0 => None,
                _ => Some(u32::read_from_prefix(groups).map_err(|_| DecodeError::Extension)?.0),
            };
        }
        bytes = &bytes[size..];
    }
    Ok(group)
}
