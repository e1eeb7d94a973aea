//! Views, recordings and lazily served archives for cached builds.
//!
//! This library decides everything about a cached run: what a task sees, what counts as read, which files
//! are outputs, whether a run is a hit and why not. It knows no FUSE and no terminal, starts no process, and
//! looks at neither environment nor current directory: what it needs it is given.
//!
//! | to | start at |
//! |---|---|
//! | run tasks through the cache | [`workspace::Workspace`]: `begin` is a hit, or a view to run in; `finish` ends the run |
//! | serve a view or the live mount | [`fs::Filesystem`], which [`view::View`] and [`live::Live`] implement |
//! | read `vout.toml` | [`config::Config`], [`graph::Plan`], and [`task::TaskSpec`], which they lead to |
//! | say why a task ran | [`report::MissReason`], and [`explain`] for people |
//! | read or write archives | [`archive::Archive`], [`archive::Packer`] |
//! | talk to `vout-mountd` | [`proto`] over [`wire`] |
//!
//! # Examples
//! A task that copies one file to another. Here the example stands in for the task and does its accesses
//! itself; under a mount the kernel makes the same calls for whatever the task does.
//! ```
//! use std::ffi::OsStr;
//! use std::fs::{self, File};
//!
//! use vout::fs::{Caller, NodeId, OpenFlags};
//! use vout::limits::Limits;
//! use vout::path::RelPathBuf;
//! use vout::proto::{CacheMode, Outcome};
//! use vout::serving::Serving;
//! use vout::task::{CommandLine, FilterSpec, MtimePolicy, TaskSpec};
//! use vout::workspace::{Begun, OpenOptions, RunOptions, Workspace};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let dir = tempfile::tempdir()?;
//! fs::write(dir.path().join("in"), "content")?;
//! let workspace = Workspace::open(OpenOptions {
//!     root: dir.path().to_owned(),
//!     root_dir: File::open(dir.path())?.into(),
//!     store: dir.path().join(".vout"),
//!     limits: Limits::default(),
//! })?;
//! let task = TaskSpec {
//!     name: "copy".into(),
//!     commands: vec![CommandLine::Shell("cp in out".into())],
//!     cwd: RelPathBuf::root(),
//!     env: Vec::new(),
//!     programs: Vec::new(),
//!     input: FilterSpec::default(),
//!     output: FilterSpec::default(),
//!     cache: true,
//!     clean: false,
//!     mtime: MtimePolicy::Shift,
//!     discard_on_failure: false,
//! };
//! let options = RunOptions { cache: CacheMode::ReadWrite, serving: Serving::default() };
//! let quietly = |_| ();
//!
//! // Nothing is known of the task: it runs in a view.
//! let Begun::Miss { run, .. } = workspace.begin(task.clone(), options, &quietly)? else {
//!     panic!("nothing was stored yet")
//! };
//! let view = run.filesystem();
//! let input = view.lookup(NodeId::ROOT, OsStr::new("in"))?;
//! let mut content = [0; 7];
//! view.open(input.node, OpenFlags::READ)?.read_at(&mut content, 0)?;
//! let caller = Caller::new(1000, 1000);
//! let (_, output) = view.create(caller, NodeId::ROOT, OsStr::new("out"), 0o644, OpenFlags::WRITE)?;
//! output.write_at(&content, 0)?;
//! assert!(!dir.path().join("out").exists(), "a view writes nothing before its run is finished");
//!
//! let outcome = Outcome { exit_code: 0, interrupted: false, outlived: Vec::new(), duration_ms: 1 };
//! let finished = workspace.finish(run, &outcome, &[], None, &quietly)?;
//! assert!(finished.entry.is_some() && finished.committed);
//! assert_eq!(fs::read(dir.path().join("out"))?, b"content");
//!
//! // The same task with the same input is a hit, which puts back what is gone.
//! fs::remove_file(dir.path().join("out"))?;
//! let Begun::Hit { report, .. } = workspace.begin(task, options, &quietly)? else {
//!     panic!("nothing has changed")
//! };
//! assert_eq!((report.inputs, report.outputs), (2, 1));
//! assert_eq!(fs::read(dir.path().join("out"))?, b"content");
//! # Ok(())
//! # }
//! ```
#![forbid(unsafe_code)]

pub mod archive;
pub mod base;
mod change;
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
pub mod load;
pub mod logical;
pub mod materialise;
pub mod mountinfo;
pub mod node_map;
mod node_numbers;
pub mod open_file;
pub mod path;
pub mod proto;
pub mod recording;
pub mod report;
pub mod runtime;
pub mod serving;
pub mod state;
pub mod store;
pub mod task;
pub mod time;
pub mod touched;
pub mod tree;
pub mod view;
pub mod watch;
pub mod wire;
pub mod workspace;
pub mod xattr;
