//! Views, recordings and lazily served archives for cached builds.
//!
//! This library decides everything about a cached run: what a task sees, what counts as read, which files
//! are outputs, whether a run is a hit and why not. It knows no FUSE and no terminal.
#![forbid(unsafe_code)]

pub mod archive;
pub mod base;
pub mod claim;
pub mod command;
pub mod commit;
pub mod config;
pub mod content;
pub mod copy;
pub mod digest;
pub mod explain;
pub mod filter;
pub mod fingerprint;
pub mod fs;
pub mod graph;
pub mod index;
pub mod limits;
pub mod live;
pub mod logical;
pub mod materialise;
pub mod mountinfo;
pub mod open_file;
pub mod path;
pub mod proto;
pub mod recording;
pub mod report;
pub mod runtime;
pub mod state;
pub mod store;
pub mod task;
pub mod touched;
pub mod tree;
pub mod view;
pub mod wire;
pub mod workspace;
pub mod xattr;
