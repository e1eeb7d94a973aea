//! Files of several frames.

use crate::archive::pack::entry::OpenSource;
use crate::archive::pack::{PackError, Piece};
use crate::archive::plan::{Planned, What};
use crate::archive::reader::hash_hole;
use crate::archive::tar_entry;
use crate::digest::Hasher;

/// Reads and hashes a file, and hands out what is to be compressed: pieces of `split_bytes` with what ends in them.
pub(super) fn pack_large(
    entry: &Planned,
    split_bytes: usize,
    mut submit: impl FnMut(Vec<u8>, Piece) -> Result<(), PackError>,
) -> Result<(), PackError> {
    let Planned { path, meta, what: What::File { source, names } } = entry else { return Ok(()) };
    let open = OpenSource::open(path, &**source)?;
    let mut raw = tar_entry::encode(path, meta, &open.body());
    let header_bytes = raw.len();
    let mut is_base = true;
    let mut hasher = Hasher::default();
    let mut position = 0;
    let mut unreported = 0;
    for extent in open.stored() {
        hash_hole(&mut hasher, extent.offset - position);
        position = extent.offset;
        while position < extent.end() {
            let room = split_bytes.saturating_sub(raw.len()).max(1);
            let length = room.min(usize::try_from(extent.end() - position).unwrap_or(usize::MAX));
            let start = raw.len();
            raw.resize(start + length, 0);
            open.read(position, &mut raw[start..])?;
            hasher.update(&raw[start..]);
            position += length as u64;
            unreported += length as u64;
            if raw.len() >= split_bytes {
                let piece = Piece { is_base, bytes: unreported, ..Piece::default() };
                (is_base, unreported) = (false, 0);
                submit(std::mem::replace(&mut raw, Vec::with_capacity(split_bytes)), piece)?;
            }
        }
    }
    hash_hole(&mut hasher, open.size_bytes - position);
    open.check_end()?;
    raw.extend_from_slice(tar_entry::padding(open.stored_bytes()));
    let record = open.record(entry, header_bytes as u64, hasher.finish());
    let linked = (*names > 1).then(|| path.clone()).into_iter().collect();
    let piece =
        Piece { is_base, records: vec![record], linked, files: 1, bytes: unreported, ..Piece::default() };
    submit(raw, piece)
}
