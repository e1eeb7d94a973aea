//! The daemon that serves vout's views and live mounts through FUSE.
//!
//! It decides nothing: the engine of the `vout` library does. This crate owns the FUSE protocol, the
//! sessions, the control socket and the life of the process.
//!
//! It never opens a path through its own mount.

mod activity;
pub mod adapter;
mod errno;
mod holders;
mod invalidate;
pub mod lifecycle;
mod live;
mod server;
pub mod session;
pub mod terminal;

pub use lifecycle::main;
