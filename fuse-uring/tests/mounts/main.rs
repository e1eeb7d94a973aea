//! Sessions over real mounts. They need root and `/dev/fuse`.
#![cfg(feature = "mount-tests")]
#![allow(clippy::unwrap_used, reason = "helpers of tests fail by panicking, too")]

#[path = "../support/mounting.rs"]
mod mounting;
mod operations;
mod sessions;
mod support;
mod test_fs;
