//! Views, recordings and lazily served archives for cached builds.
//!
//! This library decides everything about a cached run: what a task sees, what counts as read, which files
//! are outputs, whether a run is a hit and why not. It knows no FUSE and no terminal.
#![forbid(unsafe_code)]

pub mod command;
pub mod config;
pub mod digest;
pub mod explain;
pub mod filter;
pub mod fs;
pub mod graph;
pub mod path;
pub mod proto;
pub mod report;
pub mod runtime;
pub mod state;
pub mod task;
pub mod wire;
pub mod workspace;
