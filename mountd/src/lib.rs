//! The daemon that serves vout's views and live mounts through FUSE.
//!
//! It decides nothing: the engine of the `vout` library does. This crate owns the FUSE protocol, the
//! sessions, the control socket and the life of the process.
//!
//! | module | does |
//! |---|---|
//! | [`lifecycle`] | starts the process, keeps it the only one of its workspace, ends it when it is idle |
//! | `server` | answers requests on the control socket, a thread per connection |
//! | [`session`] | serves one kernel connection with one thread: a view's, or the live mount's |
//! | [`adapter`] | converts kernel requests to calls of [`vout::fs::Filesystem`] and back |
//! | [`terminal`] | takes the terminal output of a task, which is written to files of its view |
//! | `live`, `holders` | mounts, unmounts, and finds who is in the way |
//! | `activity` | tells whether anybody needs the daemon |
//! | `invalidate` | tells the kernel that its caches are out of date |
//!
//! It never opens a path through its own mount and never starts a task. `vout` starts it; its program is in
//! the `vout-cli` package, so that one `cargo install` gives both.

#![deny(unsafe_code)]

mod activity;
pub mod adapter;
mod errno;
mod holders;
pub mod invalidate;
pub mod lifecycle;
pub mod live;
mod server;
pub mod session;
mod sys;
pub mod terminal;
mod watchers;

pub use lifecycle::main;
