//! Answers.

use std::os::fd::OwnedFd;
use std::sync::Weak;

use rustix::io::Errno;
use zerocopy::{Immutable, IntoBytes};

use crate::abi::{
    AttrOut, BmapOut, CopyFileRangeOut, EntryOut, FileLock, GetxattrOut, InHeader, IoctlOut, LseekOut,
    Opcode, OpenOut, PollOut, StatfsOut, StatxOut, WriteOut,
};
use crate::device::Device;
use crate::directory::DirBuffer;
use crate::operation::Operation;
use crate::ring::Later;

/// Room that every answer of fixed size fits in.
const FIXED_BYTES: usize = 1024;
/// A link's target has no more, with its zero byte.
const TARGET_BYTES_MAX: u32 = 4096;

/// How a request is answered: by one of its methods, once. Dropping it unanswered answers `EIO`.
///
/// Over `/dev/fuse` the answer is sent at once, over the ring when the handler returns. An answer of another
/// kind than the operation has is refused by the kernel; the caller then gets `EIO` or `EINVAL`.
#[must_use = "dropping a reply answers EIO"]
pub struct Reply<'a> {
    question: Question,
    /// Gone once the request is answered.
    out: Option<Outlet<'a>>,
}

/// A reply that comes later, from any thread. Dropping it unanswered answers `EIO`.
#[must_use = "dropping a deferred reply answers EIO"]
pub struct Deferred {
    question: Question,
    /// Gone once the request is answered.
    route: Option<LaterRoute>,
}

/// What an answer has to know about its request.
#[derive(Debug, Clone, Copy)]
struct Question {
    unique: u64,
    opcode: u32,
    /// Bytes of an answer without a fixed size.
    limit: usize,
}

/// Where an answer goes.
pub(crate) struct Outlet<'a> {
    route: Route<'a>,
    /// Where it is put together.
    body: &'a mut [u8],
}

enum Route<'a> {
    /// Sent at once.
    Device(&'a Device),
    /// Left for the ring's thread.
    Ring { held: &'a mut Held, later: &'a Later },
}

/// What a handler left for the ring's thread.
#[derive(Debug)]
pub(crate) enum Held {
    Unanswered,
    /// With the size of what is in the body.
    Answered(Result<usize, Errno>),
    /// Comes by the thread's mailbox.
    Deferred,
}

/// Where an answer goes that comes later.
enum LaterRoute {
    Device(Weak<OwnedFd>),
    Ring(Later),
}

impl<'a> Outlet<'a> {
    pub(crate) const fn device(device: &'a Device, body: &'a mut [u8]) -> Self {
        Self { route: Route::Device(device), body }
    }

    pub(crate) const fn ring(held: &'a mut Held, later: &'a Later, body: &'a mut [u8]) -> Self {
        Self { route: Route::Ring { held, later }, body }
    }

    fn send(self, question: &Question, answer: Result<usize, Errno>) {
        match self.route {
            Route::Device(device) => {
                device.answer(question.unique, answer.map(|used| &self.body[..used]));
            }
            Route::Ring { held, .. } => *held = Held::Answered(answer),
        }
    }

    fn defer(self) -> LaterRoute {
        match self.route {
            Route::Device(device) => LaterRoute::Device(device.downgrade()),
            Route::Ring { held, later } => {
                *held = Held::Deferred;
                LaterRoute::Ring(later.clone())
            }
        }
    }
}

impl<'a> Reply<'a> {
    pub(crate) const fn new(header: &InHeader, out: Outlet<'a>) -> Self {
        let question = Question { unique: header.unique, opcode: header.opcode, limit: 0 };
        Self { question, out: Some(out) }
    }

    /// Notes how large an answer may be.
    pub(crate) fn limit(&mut self, operation: &Operation<'_>) {
        let limit = match operation {
            Operation::Read(read) | Operation::Readdir(read) | Operation::Readdirplus(read) => read.size,
            Operation::Getxattr { size, .. } | Operation::Listxattr { size } => *size,
            Operation::Ioctl { out_size, .. } => *out_size,
            Operation::Readlink => TARGET_BYTES_MAX - 1,
            _ => 0,
        };
        let room = self.out.as_ref().map_or(0, |out| out.body.len());
        self.question.limit = usize::try_from(limit).unwrap_or(usize::MAX).min(room);
    }

    /// Answers nothing: the request is of a kind that has no answer.
    pub(crate) fn forgo(mut self) {
        self.out = None;
    }

    /// Returns a reply for later. The caller waits until then.
    ///
    /// # Limitations
    /// Over the ring, as many requests of one processor's callers can be deferred as one likes. But where so
    /// many are that no slot is left, some callers there may be served only once another request or a
    /// deferred answer comes, unless the kernel knows the node that is asked about, or was opened last, as a
    /// regular file. So an answer to a request on a directory should not depend on other requests.
    pub fn defer(mut self) -> Deferred {
        let route = self.out.take().map(Outlet::defer);
        Deferred { question: self.question, route }
    }

    /// The operation failed.
    pub fn error(self, errno: Errno) {
        self.finish(Err(errno));
    }

    /// The operation succeeded, and that is all.
    pub fn empty(self) {
        self.finish(Ok(0));
    }

    /// A node. It counts as looked up, unless its number is zero.
    pub fn entry(self, entry: &EntryOut) {
        self.fixed(entry);
    }

    /// Attributes.
    pub fn attr(self, attr: &AttrOut) {
        self.fixed(attr);
    }

    /// An open file or directory.
    pub fn open(self, open: &OpenOut) {
        self.fixed(open);
    }

    /// A new node and its open file. It counts as looked up.
    pub fn created(self, entry: &EntryOut, open: &OpenOut) {
        self.parts(entry.as_bytes(), open.as_bytes());
    }

    /// Content, a link's target, or an extended attribute's value or names.
    ///
    /// Content and targets that are too long are cut. Of extended attributes, the size is answered where
    /// that was asked for, and `ERANGE` where there is too little room.
    pub fn bytes(self, bytes: &[u8]) {
        let limit = self.question.limit;
        if !matches!(Opcode::new(self.question.opcode), Some(Opcode::Getxattr | Opcode::Listxattr)) {
            return self.parts(&bytes[..bytes.len().min(limit)], &[]);
        }
        match u32::try_from(bytes.len()) {
            Ok(size) if limit == 0 => self.xattr_size(size),
            _ if bytes.len() > limit => self.error(Errno::RANGE),
            _ => self.parts(bytes, &[]),
        }
    }

    /// Content, read by `fill` into a buffer of the size that was asked for; it returns how much there is.
    /// Over the ring this is the kernel's own buffer.
    pub fn fill(mut self, fill: impl FnOnce(&mut [u8]) -> Result<usize, Errno>) {
        let limit = self.question.limit;
        let Some(out) = &mut self.out else { return };
        let filled = fill(&mut out.body[..limit]).map(|used| used.min(limit));
        self.finish(filled);
    }

    /// How many bytes were written.
    pub fn written(self, size: u32) {
        self.fixed(&WriteOut { size, padding: 0 });
    }

    /// How many bytes were copied.
    pub fn copied(self, bytes_copied: u64) {
        if Opcode::new(self.question.opcode) == Some(Opcode::CopyFileRange64) {
            return self.fixed(&CopyFileRangeOut { bytes_copied });
        }
        // The older answer holds less; the caller asks again for the rest.
        self.written(u32::try_from(bytes_copied).unwrap_or(u32::MAX));
    }

    /// The file system's size.
    pub fn statfs(self, statfs: &StatfsOut) {
        self.fixed(statfs);
    }

    /// Where data, or a hole, begin.
    pub fn lseek(self, offset: u64) {
        self.fixed(&LseekOut { offset });
    }

    /// How large an extended attribute's value, or all names, are.
    pub fn xattr_size(self, size: u32) {
        self.fixed(&GetxattrOut { size, padding: 0 });
    }

    /// A directory's entries; none: its end.
    pub fn directory(mut self, list: impl FnOnce(&mut DirBuffer<'_>)) {
        let plus = Opcode::new(self.question.opcode) == Some(Opcode::Readdirplus);
        let limit = self.question.limit;
        let Some(out) = &mut self.out else { return };
        let mut buffer = DirBuffer::new(&mut out.body[..limit], plus);
        list(&mut buffer);
        let used = buffer.used();
        self.finish(Ok(used));
    }

    /// The lock that stands in the way; of kind `F_UNLCK`: none.
    pub fn lock(self, lock: &FileLock) {
        self.fixed(lock);
    }

    /// Attributes as of `statx`.
    pub fn statx(self, statx: &StatxOut) {
        self.fixed(statx);
    }

    /// What is ready, as of `poll`.
    pub fn poll(self, revents: u32) {
        self.fixed(&PollOut { revents, padding: 0 });
    }

    /// What an `ioctl` returns, and its data.
    pub fn ioctl(self, ioctl: &IoctlOut, data: &[u8]) {
        self.parts(ioctl.as_bytes(), data);
    }

    /// Where a block is on the device.
    pub fn bmap(self, block: u64) {
        self.fixed(&BmapOut { block });
    }

    fn fixed(self, value: &(impl IntoBytes + Immutable)) {
        self.parts(value.as_bytes(), &[]);
    }

    fn parts(mut self, first: &[u8], second: &[u8]) {
        let Some(out) = &mut self.out else { return };
        let used = first.len() + second.len();
        let Some(body) = out.body.get_mut(..used) else { return self.error(Errno::RANGE) };
        body[..first.len()].copy_from_slice(first);
        body[first.len()..].copy_from_slice(second);
        self.finish(Ok(used));
    }

    fn finish(mut self, answer: Result<usize, Errno>) {
        if let Some(out) = self.out.take() {
            out.send(&self.question, answer);
        }
    }
}

impl Deferred {
    /// Answers, by what `answer` does with the reply.
    pub fn answer(mut self, answer: impl FnOnce(Reply<'_>)) {
        self.answer_with(answer);
    }

    fn answer_with(&mut self, answer: impl FnOnce(Reply<'_>)) {
        let Some(route) = self.route.take() else { return };
        let mut body = vec![0; self.question.limit.max(FIXED_BYTES)];
        match route {
            LaterRoute::Device(device) => {
                // Without the device the session is over, and nobody waits.
                let Some(fd) = device.upgrade() else { return };
                self.ask(Outlet::device(&Device::of(fd), &mut body), answer);
            }
            LaterRoute::Ring(later) => {
                let mut held = Held::Unanswered;
                self.ask(Outlet::ring(&mut held, &later, &mut body), answer);
                if let Held::Answered(answer) = held {
                    let answer = answer.map(|used| {
                        body.truncate(used);
                        body
                    });
                    later.answer(self.question.unique, answer);
                }
            }
        }
    }

    fn ask(&self, out: Outlet<'_>, answer: impl FnOnce(Reply<'_>)) {
        answer(Reply { question: self.question, out: Some(out) });
    }
}

impl Drop for Reply<'_> {
    fn drop(&mut self) {
        if let Some(out) = self.out.take() {
            tracing::warn!(unique = self.question.unique, "a request was left unanswered");
            out.send(&self.question, Err(Errno::IO));
        }
    }
}

impl Drop for Deferred {
    fn drop(&mut self) {
        if self.route.is_some() {
            tracing::warn!(unique = self.question.unique, "a deferred request was left unanswered");
            self.answer_with(|reply| reply.error(Errno::IO));
        }
    }
}

impl std::fmt::Debug for Reply<'_> {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.question.fmt(formatter)
    }
}

impl std::fmt::Debug for Deferred {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.question.fmt(formatter)
    }
}
