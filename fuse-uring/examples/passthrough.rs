//! Shows a directory elsewhere. Needs root.
//!
//! usage: cargo run --release -p fuse-uring --example passthrough -- SOURCE DIR
#![allow(clippy::print_stdout, reason = "examples talk to people")]

#[path = "../tests/support/mounting.rs"]
mod mounting;
#[path = "support/passthrough_fs.rs"]
mod passthrough_fs;

use std::path::PathBuf;
use std::sync::Arc;

use fuse_uring::Session;

use self::passthrough_fs::PassthroughFs;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut args = std::env::args_os().skip(1).map(PathBuf::from);
    let (Some(source), Some(dir)) = (args.next(), args.next()) else {
        return Err("usage: passthrough SOURCE DIR".into());
    };
    let fs = PassthroughFs::new(&source)?;
    let session = Session::start(mounting::mount(&dir)?, PassthroughFs::config(), Arc::new(fs))?;
    println!("{:?}; unmount with: umount {}", session.negotiated().transport, dir.display());
    println!("{:?}", session.wait(None));
    Ok(())
}
