//! A file system with one file. Needs root.
//!
//! usage: cargo run -p fuse-uring --example hello -- DIR
#![allow(clippy::print_stdout, reason = "examples talk to people")]

#[path = "../tests/support/mounting.rs"]
mod mounting;

use std::path::PathBuf;
use std::sync::Arc;

use fuse_uring::{
    Attr, AttrOut, Config, EntryOut, Errno, Forget, Handler, OpenOut, Operation, ROOT_NODE, Reply, Request,
    Session,
};

const HELLO_NODE: u64 = 2;
const HELLO: &[u8] = b"Hello, world!\n";

/// How long the kernel may believe an answer.
const TTL_SECONDS: u64 = 60;

const TYPE_DIR: u32 = 4;
const TYPE_FILE: u32 = 8;

struct Hello;

impl Handler for Hello {
    fn handle(&self, request: &Request<'_>, reply: Reply<'_>) {
        match *request.operation() {
            Operation::Lookup { name } if request.node() == ROOT_NODE && name == "hello" => {
                let (nodeid, attr) = (HELLO_NODE, attr_of(HELLO_NODE));
                reply.entry(&EntryOut {
                    nodeid,
                    entry_valid: TTL_SECONDS,
                    attr_valid: TTL_SECONDS,
                    attr,
                    ..EntryOut::default()
                });
            }
            Operation::Lookup { .. } => reply.error(Errno::NOENT),
            Operation::Getattr { .. } => {
                let attr = attr_of(request.node());
                reply.attr(&AttrOut { attr_valid: TTL_SECONDS, attr, ..AttrOut::default() });
            }
            Operation::Open { .. } | Operation::Opendir { .. } => reply.open(&OpenOut::default()),
            Operation::Read(read) => {
                let start = usize::try_from(read.offset).unwrap_or(usize::MAX);
                reply.bytes(HELLO.get(start..).unwrap_or(&[]));
            }
            Operation::Readdir(read) => reply.directory(|listing| {
                let all = [
                    (ROOT_NODE, TYPE_DIR, "."),
                    (ROOT_NODE, TYPE_DIR, ".."),
                    (HELLO_NODE, TYPE_FILE, "hello"),
                ];
                let start = usize::try_from(read.offset).unwrap_or(usize::MAX);
                for (position, (node, kind, name)) in (1..).zip(all).skip(start) {
                    if listing.add(node, position, kind, name.as_ref()) {
                        break;
                    }
                }
            }),
            Operation::Release(_) | Operation::Releasedir(_) | Operation::Flush { .. } => reply.empty(),
            _ => reply.error(Errno::NOSYS),
        }
    }

    // Nodes are numbers here; there is nothing to give back.
    fn forget(&self, _: &[Forget]) {}
}

fn attr_of(node: u64) -> Attr {
    let (mode, size) = if node == ROOT_NODE { (0o040_755, 0) } else { (0o100_644, HELLO.len() as u64) };
    Attr { ino: node, mode, size, nlink: 1, blksize: 4096, ..Attr::default() }
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let dir = PathBuf::from(std::env::args_os().nth(1).ok_or("usage: hello DIR")?);
    let session = Session::start(mounting::mount(&dir)?, Config::default(), Arc::new(Hello))?;
    println!("{:?}; unmount with: umount {}", session.negotiated(), dir.display());
    println!("{:?}", session.wait(None));
    Ok(())
}
