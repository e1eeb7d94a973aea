//! The FUSE kernel protocol, for servers: over `/dev/fuse`, and over io_uring where the kernel has it.
//!
//! A file system implements [`Handler`]; [`Session::start`] serves it on a `/dev/fuse` descriptor that
//! somebody mounted. One [`Request`] at a time is decoded, handed over together with its [`Reply`], and
//! answered; both transports share all of that. What a handler is asked is an [`Operation`] with borrowed
//! names and data, what it answers are the kernel's own structures.
//!
//! The crate does not mount, keeps no table of nodes or handles, and has no opinion of paths.
//!
//! ```no_run
//! use std::sync::Arc;
//!
//! use fuse_uring::{Config, Errno, Forget, Handler, Operation, Reply, Request, Session};
//!
//! struct Nothing;
//!
//! impl Handler for Nothing {
//!     fn handle(&self, request: &Request<'_>, reply: Reply<'_>) {
//!         match request.operation() {
//!             Operation::Lookup { .. } => reply.error(Errno::NOENT),
//!             _ => reply.error(Errno::NOSYS),
//!         }
//!     }
//!
//!     fn forget(&self, _: &[Forget]) {}
//! }
//!
//! # fn serve(mounted: std::os::fd::OwnedFd) -> Result<(), fuse_uring::StartError> {
//! let session = Session::start(mounted, Config::default(), Arc::new(Nothing))?;
//! session.wait(None);
//! # Ok(())
//! # }
//! ```

mod abi;
mod config;
mod control;
mod courtesy;
mod device;
mod directory;
mod dispatch;
mod handler;
mod notify;
mod operation;
mod reply;
mod request;
mod ring;
mod session;
mod sys;

pub use rustix::io::Errno;

pub use self::abi::{
    Attr, AttrFlags, AttrOut, EntryOut, FileLock, FopenFlags, InitFlags, IoctlOut, OpenOut, ROOT_NODE,
    ReleaseFlags, StatfsOut, Statx, StatxOut, StatxTime, WriteFlags,
};
pub use self::config::{Config, RingChoice};
pub use self::courtesy::set_background;
pub use self::device::{BackingId, Device};
pub use self::directory::DirBuffer;
pub use self::handler::Handler;
pub use self::notify::Notifier;
pub use self::operation::{
    DecodeError, Forget, Lock, MappingRanges, Operation, Read, Release, SetTime, Setattr,
};
pub use self::reply::{Deferred, Reply};
pub use self::request::{Request, operation_name};
pub use self::ring::{NoRing, RingPool};
pub use self::session::{End, Negotiated, Session, StartError, Transport};
