//! Tests on real mounts. They need root and `/dev/fuse`, and fail where those are missing.
#![cfg(feature = "mount-tests")]

mod adapter;
mod live;
mod sessions;
mod support;
