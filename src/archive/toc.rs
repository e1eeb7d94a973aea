//! The table of contents, searched where it lies.

use std::fs::File;
use std::path::PathBuf;
use std::sync::Arc;

use crate::archive::cache::Cache;
use crate::archive::codec::{self, Decoder};
use crate::archive::frames::FrameBlock;
use crate::archive::layout::{
    BLOCK_BYTES_MAX, FOOTER_BYTES, FOOTER_HASHED, FOOTER_MAGIC, FOOTER_VERSION, FORMAT_VERSION, Footer,
    TOC_MAGIC,
};
use crate::archive::record::{Key, Record};
use crate::archive::volume::{ReadAt, Stored, Volume};
use crate::archive::{ArchiveError, Part};
use crate::digest::Digest;
use crate::fs::Timestamp;
use crate::path::{RelPath, RelPathBuf};

/// Decompressed blocks of records that are kept.
const CACHE_BYTES: usize = 2 * 1024 * 1024;

/// Sums over all records.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Totals {
    /// Records of every kind.
    pub records: u64,
    /// Regular files, every name of a hard-linked one.
    pub files: u64,
    /// Their sizes, a hard-linked one counted once.
    pub content_bytes: u64,
    /// Paths to be removed.
    pub whiteouts: u64,
    /// Latest modification time of an output.
    pub latest_mtime: Timestamp,
}

/// A table of contents.
///
/// # Guarantees
/// - Opening reads the end of the table and its index, whatever the number of records.
/// - Every byte is compared with its hash before it is used.
/// - Memory is bounded by the index and a small cache.
pub struct Toc {
    volume: Volume,
    /// Of the table, in the file.
    start: u64,
    footer: Footer,
    prefix: RelPathBuf,
    blocks: Vec<BlockEntry>,
    pub(super) frame_blocks: Vec<FrameBlock>,
    cache: Cache<Block>,
}

/// Index entry of a block of records.
struct BlockEntry {
    /// In the table.
    offset: u64,
    stored_bytes: u32,
    raw_bytes: u32,
    hash: Digest,
    first_parent: Box<[u8]>,
    first_name: Box<[u8]>,
}

/// A decompressed block; records are decoded one by one.
struct Block {
    number: usize,
    raw: Vec<u8>,
    /// Where each record starts, and the end of the last: in order and inside `raw`.
    bounds: Vec<usize>,
}

/// A table of contents alone in a file.
pub struct Manifest;

impl Manifest {
    /// Opens a manifest; `path` is for messages.
    ///
    /// # Errors
    /// [`ArchiveError`].
    pub fn open(file: File, path: PathBuf) -> Result<Toc, ArchiveError> {
        Self::open_on(Arc::new(file), path)
    }

    /// As [`open`](Self::open), on any medium.
    ///
    /// # Errors
    /// [`ArchiveError`].
    pub fn open_on(source: Arc<dyn ReadAt>, path: PathBuf) -> Result<Toc, ArchiveError> {
        let volume = Volume::new(source, path);
        let end = volume.size_bytes()?;
        let toc = Toc::open(volume, end)?;
        if toc.start != 0 {
            return Err(toc.volume.not_an_archive("something precedes its table of contents"));
        }
        Ok(toc)
    }
}

impl Toc {
    /// Opens the table that ends at `end`.
    pub(super) fn open(volume: Volume, end: u64) -> Result<Self, ArchiveError> {
        let footer = read_footer(&volume, end)?;
        let bad_footer = |problem: &str| volume.damaged(Part::Footer, problem);
        let start = end.checked_sub(footer.toc_bytes).ok_or_else(|| bad_footer("the table is cut off"))?;
        let index_end = footer.index_offset.checked_add(footer.index_bytes);
        if index_end.and_then(|end| end.checked_add(FOOTER_BYTES as u64)) != Some(footer.toc_bytes) {
            return Err(bad_footer("the index does not end at the footer"));
        }
        let index_bytes =
            usize::try_from(footer.index_bytes).map_err(|_| bad_footer("the index is too large"))?;
        let index =
            volume.read_hashed(Part::Index, start + footer.index_offset, index_bytes, &footer.index_hash)?;
        let (prefix, blocks, frame_blocks) =
            decode_index(&index, &footer).map_err(|problem| volume.damaged(Part::Index, problem))?;
        let cache = Cache::new(CACHE_BYTES);
        Ok(Self { volume, start, footer, prefix, blocks, frame_blocks, cache })
    }

    /// Returns the sums over all records.
    #[must_use]
    pub fn totals(&self) -> Totals {
        self.footer.totals
    }

    /// Returns the longest directory at or below which all records lie but those of implied directories.
    #[must_use]
    pub fn prefix(&self) -> &RelPath {
        &self.prefix
    }

    /// Returns the record of `path`.
    ///
    /// # Errors
    /// [`ArchiveError`].
    pub fn find(&self, path: &RelPath) -> Result<Option<Record>, ArchiveError> {
        if path.is_root() {
            return Ok(None);
        }
        let found = self.starting_at(Key::of(path)).next().transpose()?;
        Ok(found.filter(|record| *record.path == *path))
    }

    /// Returns the records directly in `dir`, sorted by name.
    ///
    /// # Errors
    /// [`ArchiveError`].
    pub fn children(&self, dir: &RelPath) -> Result<Vec<Record>, ArchiveError> {
        self.starting_at(Key::first_in(dir.as_bytes()))
            .take_while(|record| record.as_ref().map_or(true, |record| record.key().parent == dir.as_bytes()))
            .collect()
    }

    /// Returns all records, directories before what they hold, the children of one as neighbours.
    pub fn iter(&self) -> impl Iterator<Item = Result<Record, ArchiveError>> + '_ {
        self.starting_at(Key::first_in(b""))
    }

    /// Returns the records at and below `dir`, in the order of [`iter`](Self::iter).
    pub fn subtree<'a>(&'a self, dir: &RelPath) -> impl Iterator<Item = Result<Record, ArchiveError>> + 'a {
        let dir = dir.to_owned();
        let below = [dir.as_bytes(), b"/"].concat();
        let own = self.find(&dir).transpose();
        let children = self.children_iter(dir.clone());
        // Paths that share the prefix but not the component, as "dist-old" with "dist", sort between a
        // directory's children and what its subdirectories hold.
        let deeper = (!dir.is_root()).then(|| {
            self.starting_at(Key::first_in(&below)).take_while(move |record| {
                record.as_ref().map_or(true, |record| record.key().parent.starts_with(&below))
            })
        });
        let everything = dir.is_root().then(|| self.iter());
        let children = (!dir.is_root()).then_some(children);
        own.into_iter()
            .chain(children.into_iter().flatten())
            .chain(deeper.into_iter().flatten())
            .chain(everything.into_iter().flatten())
    }

    fn children_iter(&self, dir: RelPathBuf) -> impl Iterator<Item = Result<Record, ArchiveError>> + '_ {
        self.starting_at(Key::first_in(dir.as_bytes())).take_while(move |record| {
            record.as_ref().map_or(true, |record| record.key().parent == dir.as_bytes())
        })
    }

    /// Returns the records whose keys are not less than `key`. Ends after the first error.
    fn starting_at(&self, key: Key<'_>) -> Cursor<'_> {
        // The key may lie within the block before the first one that starts behind it.
        let behind = self.blocks.partition_point(|block| block.first_key() <= key);
        let number = behind.saturating_sub(1);
        let mut cursor = Cursor { toc: self, number, position: 0, block: None, failed: None };
        if number < self.blocks.len() {
            match self.block(number).and_then(|block| Ok((self.lower_bound(&block, key)?, block))) {
                Ok((position, block)) => {
                    cursor.position = position;
                    cursor.block = Some(block);
                }
                Err(error) => cursor.failed = Some(error),
            }
        }
        cursor
    }

    fn lower_bound(&self, block: &Block, key: Key<'_>) -> Result<usize, ArchiveError> {
        let (mut low, mut high) = (0, block.len());
        while low < high {
            let middle = low.midpoint(high);
            let found = Decoder::new(block.record(middle)).key();
            let found =
                found.map_err(|problem| self.volume.damaged(Part::RecordBlock(block.number), problem))?;
            if found < key {
                low = middle + 1;
            } else {
                high = middle;
            }
        }
        Ok(low)
    }

    fn block(&self, number: usize) -> Result<Arc<Block>, ArchiveError> {
        self.cache.get(number as u64, || {
            let block = self.load(number)?;
            let cost_bytes = block.raw.len() + block.bounds.len() * size_of::<usize>();
            Ok((block, cost_bytes))
        })
    }

    fn load(&self, number: usize) -> Result<Block, ArchiveError> {
        let part = Part::RecordBlock(number);
        let entry = &self.blocks[number];
        let raw_bytes = entry.raw_bytes as usize;
        let stored = Stored {
            offset: self.start + entry.offset,
            length_bytes: entry.stored_bytes as usize,
            hash: &entry.hash,
            raw_bytes,
        };
        let mut raw = Vec::with_capacity(raw_bytes);
        self.volume.read_compressed(&part, stored, &mut raw)?;
        let bounds = block_bounds(&raw).map_err(|problem| self.volume.damaged(part, problem))?;
        Ok(Block { number, raw, bounds })
    }

    /// Checks that all records can be decoded, are sorted, and add up.
    pub(super) fn verify(&self) -> Result<(), ArchiveError> {
        let mut last: Option<RelPathBuf> = None;
        let mut records = 0;
        for record in self.iter() {
            let record = record?;
            if last.as_ref().is_some_and(|last| Key::of(last) >= record.key()) {
                return Err(self.volume.damaged(Part::Index, format!("{:?} is out of order", record.path)));
            }
            records += 1;
            last = Some(record.path);
        }
        if records != self.footer.totals.records {
            return Err(self.volume.damaged(Part::Footer, format!("there are {records} records")));
        }
        Ok(())
    }

    pub(super) fn start(&self) -> u64 {
        self.start
    }

    pub(super) fn footer(&self) -> &Footer {
        &self.footer
    }
}

impl BlockEntry {
    fn first_key(&self) -> Key<'_> {
        Key { parent: &self.first_parent, name: &self.first_name }
    }
}

impl Block {
    fn len(&self) -> usize {
        self.bounds.len() - 1
    }

    fn record(&self, position: usize) -> &[u8] {
        &self.raw[self.bounds[position]..self.bounds[position + 1]]
    }
}

/// Walks records in order, block by block.
struct Cursor<'a> {
    toc: &'a Toc,
    number: usize,
    position: usize,
    block: Option<Arc<Block>>,
    failed: Option<ArchiveError>,
}

impl Cursor<'_> {
    fn step(&mut self) -> Result<Option<Record>, ArchiveError> {
        loop {
            if self.number >= self.toc.blocks.len() {
                return Ok(None);
            }
            let block = match &self.block {
                Some(block) => block,
                None => self.block.insert(self.toc.block(self.number)?),
            };
            if self.position < block.len() {
                let record = codec::decode(block.record(self.position));
                self.position += 1;
                let part = Part::RecordBlock(self.number);
                return record.map(Some).map_err(|problem| self.toc.volume.damaged(part, problem));
            }
            self.block = None;
            self.position = 0;
            self.number += 1;
        }
    }
}

impl Iterator for Cursor<'_> {
    type Item = Result<Record, ArchiveError>;

    fn next(&mut self) -> Option<Self::Item> {
        let step = match self.failed.take() {
            Some(error) => Err(error),
            None => self.step(),
        };
        if step.is_err() {
            self.number = self.toc.blocks.len();
        }
        step.transpose()
    }
}

fn read_footer(volume: &Volume, end: u64) -> Result<Footer, ArchiveError> {
    let start = end
        .checked_sub(FOOTER_BYTES as u64)
        .ok_or_else(|| volume.not_an_archive("it is too short for a table of contents"))?;
    let bytes = volume.read(Part::Footer, start, FOOTER_BYTES)?;
    if bytes[FOOTER_MAGIC..] != TOC_MAGIC {
        return Err(volume.not_an_archive("it does not end with a table of contents"));
    }
    let mut version = Decoder::new(&bytes[FOOTER_VERSION..]);
    let version = version.u32().map_err(|problem| volume.damaged(Part::Footer, problem))?;
    if version > FORMAT_VERSION {
        let path = volume.path().clone();
        return Err(ArchiveError::NewerVersion { path, found: version, supported: FORMAT_VERSION });
    }
    if Digest::of(&bytes[..FOOTER_HASHED]).as_bytes() != &bytes[FOOTER_HASHED..FOOTER_MAGIC] {
        return Err(volume.damaged(Part::Footer, "its hash is wrong"));
    }
    if version != FORMAT_VERSION {
        return Err(volume.damaged(Part::Footer, format!("there is no version {version}")));
    }
    Footer::decode(&bytes).map_err(|problem| volume.damaged(Part::Footer, problem))
}

type Index = (RelPathBuf, Vec<BlockEntry>, Vec<FrameBlock>);

fn decode_index(index: &[u8], footer: &Footer) -> Result<Index, &'static str> {
    let mut from = Decoder::new(index);
    let prefix = RelPathBuf::new(from.take(footer.prefix_bytes as usize)?).map_err(|bad| bad.reason)?;
    let mut blocks: Vec<BlockEntry> = Vec::new();
    for _ in 0..footer.record_blocks {
        let block = decode_entry(&mut from)?;
        if block.offset.checked_add(block.stored_bytes.into()).is_none_or(|end| end > footer.index_offset) {
            return Err("a block lies outside the table");
        }
        if blocks.last().is_some_and(|last| last.first_key() >= block.first_key()) {
            return Err("blocks are out of order");
        }
        blocks.push(block);
    }
    let mut frame_blocks: Vec<FrameBlock> = Vec::new();
    for _ in 0..footer.frame_blocks {
        let block = FrameBlock::decode(&mut from)?;
        if block.offset >= footer.index_offset {
            return Err("a block of the frame table lies outside the table");
        }
        if frame_blocks.last().is_some_and(|last| last.first_stream_offset >= block.first_stream_offset) {
            return Err("blocks of the frame table are out of order");
        }
        frame_blocks.push(block);
    }
    if !from.is_empty() {
        return Err("it is longer than it should be");
    }
    Ok((prefix, blocks, frame_blocks))
}

fn decode_entry(from: &mut Decoder<'_>) -> Result<BlockEntry, &'static str> {
    let (offset, stored_bytes, raw_bytes) = (from.u64()?, from.u32()?, from.u32()?);
    if raw_bytes as usize > BLOCK_BYTES_MAX {
        return Err("a block is too large");
    }
    let hash = from.digest()?;
    let Key { parent, name } = from.key()?;
    Ok(BlockEntry {
        offset,
        stored_bytes,
        raw_bytes,
        hash,
        first_parent: parent.into(),
        first_name: name.into(),
    })
}

/// Returns where records start in a block, and its end.
fn block_bounds(raw: &[u8]) -> Result<Vec<usize>, &'static str> {
    let mut from = Decoder::new(raw);
    let count = from.u32()? as usize;
    let header = count.checked_mul(4).and_then(|bytes| bytes.checked_add(4)).ok_or("it is too long")?;
    if count == 0 || header > raw.len() {
        return Err("its number of records is invalid");
    }
    let mut bounds = Vec::with_capacity(count + 1);
    let mut least = header;
    for _ in 0..count {
        let start = from.u32()? as usize;
        if start < least || start > raw.len() {
            return Err("its records are out of order");
        }
        bounds.push(start);
        least = start;
    }
    bounds.push(raw.len());
    Ok(bounds)
}

impl std::fmt::Debug for Toc {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Toc").finish_non_exhaustive()
    }
}
