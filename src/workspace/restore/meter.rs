//! Telling how far it has come.

use std::sync::atomic::{AtomicU64, Ordering};

use super::ProgressSink;
use crate::archive::Record;
use crate::report::{Progress, Stage};

/// Counts what is done and tells now and then.
pub(super) struct Meter<'a> {
    stage: Stage,
    files_total: u64,
    bytes_total: u64,
    files: AtomicU64,
    bytes: AtomicU64,
    told: AtomicU64,
    sink: ProgressSink<'a>,
}

/// Files between two reports of progress.
const TELL_EVERY: u64 = 256;

/// Bytes that are told at once however few files they are.
const TELL_BYTES: u64 = 8 << 20;

impl<'a> Meter<'a> {
    pub(super) fn new<'r>(
        stage: Stage,
        records: impl Iterator<Item = &'r Record>,
        sink: ProgressSink<'a>,
    ) -> Self {
        let (files_total, bytes_total) =
            records.fold((0, 0), |(files, bytes), record| (files + 1, bytes + record.size_bytes()));
        let zero = AtomicU64::default;
        let meter =
            Self { stage, files_total, bytes_total, files: zero(), bytes: zero(), told: zero(), sink };
        if files_total > 0 {
            meter.tell();
        }
        meter
    }

    pub(super) fn advance(&self, record: &Record) {
        let files = self.files.fetch_add(1, Ordering::Relaxed) + 1;
        let bytes = self.bytes.fetch_add(record.size_bytes(), Ordering::Relaxed) + record.size_bytes();
        let told = self.told.load(Ordering::Relaxed);
        if files.is_multiple_of(TELL_EVERY) || bytes >= told + TELL_BYTES {
            self.told.store(bytes, Ordering::Relaxed);
            self.tell();
        }
    }

    pub(super) fn done(&self) -> (u64, u64) {
        if self.files_total > 0 {
            self.tell();
        }
        (self.files.load(Ordering::Relaxed), self.bytes.load(Ordering::Relaxed))
    }

    fn tell(&self) {
        (self.sink)(Progress {
            stage: self.stage,
            files_done: self.files.load(Ordering::Relaxed),
            files_total: self.files_total,
            bytes_done: self.bytes.load(Ordering::Relaxed),
            bytes_total: self.bytes_total,
        });
    }
}
