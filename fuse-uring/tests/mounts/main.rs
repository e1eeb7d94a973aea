//! Sessions over real mounts. They need root and `/dev/fuse`.
#![cfg(feature = "mount-tests")]
#![allow(clippy::unwrap_used, reason = "helpers of tests fail by panicking, too")]

#[path = "../support/mounting.rs"]
mod mounting;
#[macro_use]
mod support;
mod operations;
mod processors;
mod sessions;
mod switch;
mod test_fs;
