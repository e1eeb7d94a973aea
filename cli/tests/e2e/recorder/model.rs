//! A slow, obvious view: the tree as a task sees it, and what it has seen of the tree below.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ffi::{OsStr, OsString};
use std::fs::{self, Metadata};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

/// Number of a node.
pub(super) type Id = usize;

/// The workspace itself.
pub(super) const ROOT: Id = 0;

/// All that is known about a path: what was looked at, what was there, what is there now.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Known {
    pub(super) seen: BTreeSet<String>,
    pub(super) was: Option<String>,
    pub(super) now: Option<String>,
}

/// Everything that is known, by path.
pub(super) type Recorded = BTreeMap<PathBuf, Known>;

/// The tree over a copy of what was there before.
pub(super) struct Model {
    before: PathBuf,
    nodes: Vec<Node>,
    by_inode: HashMap<u64, Id>,
    recorded: Recorded,
}

#[derive(Debug, Default)]
struct Node {
    kind: &'static str,
    /// What of the tree before it still is: of a file its content, of a link its target.
    lower: Option<PathBuf>,
    /// Target of a link that the task made.
    target: PathBuf,
    /// Names that are not those of the lower directory; `None` where the lower one's is gone.
    children: BTreeMap<OsString, Option<Id>>,
    /// Whether somebody changed the attributes of a directory.
    changed: bool,
}

impl Model {
    /// Makes the model of a view over `before`.
    pub(super) fn new(before: &Path) -> Self {
        let root = Node { kind: "directory", lower: Some(PathBuf::new()), ..Node::default() };
        Self {
            before: before.to_owned(),
            nodes: vec![root],
            by_inode: HashMap::new(),
            recorded: Recorded::new(),
        }
    }

    pub(super) fn kind(&self, id: Id) -> &'static str {
        self.nodes[id].kind
    }

    /// Returns the node of a name, without looking at anything.
    pub(super) fn child(&self, parent: Id, name: &OsStr) -> Option<Id> {
        self.nodes[parent].children.get(name).copied().flatten()
    }

    /// Looks a name up.
    pub(super) fn lookup(&mut self, parent: Id, name: &OsStr) -> Option<Id> {
        if let Some(child) = self.nodes[parent].children.get(name) {
            return *child;
        }
        let lower = self.nodes[parent].lower.as_ref()?.join(name);
        let meta = self.meta(&lower);
        self.see(&lower, "probe", meta.as_ref().map_or("absent", kind_of));
        let meta = meta?;
        let known = self.by_inode.get(&meta.ino()).copied().filter(|_| meta.is_file());
        if known.is_some() {
            // One file of several names shows under all of them what is written under one, as long as they are
            // one file.
            self.see(&lower, "read", "file");
        }
        let id = known.unwrap_or_else(|| {
            let node = Node { kind: kind_of(&meta), lower: Some(lower), ..Node::default() };
            self.add_node(node)
        });
        self.by_inode.insert(meta.ino(), id);
        self.nodes[parent].children.insert(name.to_owned(), Some(id));
        Some(id)
    }

    /// Reads a link.
    pub(super) fn target(&mut self, id: Id) -> PathBuf {
        match self.nodes[id].lower.clone() {
            Some(lower) => {
                self.see(&lower, "link", "link");
                fs::read_link(self.before.join(lower)).unwrap_or_default()
            }
            None => self.nodes[id].target.clone(),
        }
    }

    /// Opens a file for reading.
    pub(super) fn read(&mut self, id: Id) {
        if let Some(lower) = self.nodes[id].lower.clone().filter(|_| self.nodes[id].kind == "file") {
            self.see(&lower, "read", "file");
        }
    }

    /// Reads the names of a directory.
    pub(super) fn list(&mut self, id: Id) {
        if let Some(lower) = self.nodes[id].lower.clone().filter(|_| self.nodes[id].kind == "directory") {
            self.see(&lower, "list", "directory");
        }
    }

    /// Changes attributes, or content together with `read`.
    pub(super) fn change(&mut self, id: Id) {
        match self.nodes[id].kind {
            "directory" => self.nodes[id].changed = true,
            "link" => {
                self.nodes[id].target = self.target(id);
                self.nodes[id].lower = None;
            }
            _ => {
                self.read(id);
                self.nodes[id].lower = None;
            }
        }
    }

    /// Replaces the content of a file.
    pub(super) fn truncate(&mut self, id: Id) {
        self.nodes[id].lower = None;
    }

    /// Makes something new.
    pub(super) fn make(&mut self, at: (Id, &OsStr), kind: &'static str, target: PathBuf) {
        let id = self.add_node(Node { kind, target, ..Node::default() });
        self.nodes[at.0].children.insert(at.1.to_owned(), Some(id));
    }

    /// Gives a node a further name, or its first.
    pub(super) fn name(&mut self, id: Id, at: (Id, &OsStr)) {
        self.nodes[at.0].children.insert(at.1.to_owned(), Some(id));
    }

    /// Takes a name away.
    pub(super) fn remove(&mut self, (parent, name): (Id, &OsStr)) {
        let shows =
            self.nodes[parent].lower.as_ref().is_some_and(|lower| self.meta(&lower.join(name)).is_some());
        let children = &mut self.nodes[parent].children;
        if shows {
            children.insert(name.to_owned(), None);
        } else {
            children.remove(name);
        }
    }

    /// Ends the task: returns what it saw and what it changed.
    pub(super) fn finish(mut self) -> Recorded {
        if self.nodes[ROOT].changed {
            self.left(Path::new(""), "directory");
        }
        self.finish_dir(ROOT, Path::new(""));
        self.recorded
    }

    fn finish_dir(&mut self, id: Id, path: &Path) {
        let lower = self.nodes[id].lower.clone();
        let in_place = lower.as_deref() == Some(path);
        let children: Vec<_> = self.nodes[id].children.iter().map(|(name, id)| (name.clone(), *id)).collect();
        let mut names = BTreeSet::new();
        for (name, child) in &children {
            match child {
                Some(child) => self.finish_node(*child, &path.join(name)),
                None if in_place => self.left(&path.join(name), "absent"),
                None => continue,
            }
            names.insert(name.clone());
        }
        if in_place {
            return;
        }
        if let Some(lower) = lower {
            self.see(&lower, "list", "directory");
            for name in self.names(&lower) {
                if !children.iter().any(|(known, _)| *known == name) {
                    self.finish_moved(&lower.join(&name), &path.join(&name));
                    names.insert(name);
                }
            }
        }
        self.finish_replaced(path, &names);
    }

    fn finish_node(&mut self, id: Id, path: &Path) {
        let (kind, lower) = (self.nodes[id].kind, self.nodes[id].lower.clone());
        let in_place = lower.as_deref() == Some(path);
        if kind == "directory" {
            if !in_place || self.nodes[id].changed {
                self.left(path, kind);
            }
            self.finish_dir(id, path);
        } else if let Some(lower) = lower.filter(|_| !in_place) {
            self.finish_moved(&lower, path);
        } else if !in_place {
            self.left(path, kind);
        }
    }

    /// What was moved counts as read, with all below it.
    fn finish_moved(&mut self, lower: &Path, path: &Path) {
        let Some(meta) = self.meta(lower) else { return };
        let kind = kind_of(&meta);
        self.left(path, kind);
        match kind {
            "directory" => {
                self.see(lower, "list", kind);
                let names = self.names(lower);
                for name in &names {
                    self.finish_moved(&lower.join(name), &path.join(name));
                }
                self.finish_replaced(path, &names);
            }
            "file" => self.see(lower, "read", kind),
            "link" => self.see(lower, "link", kind),
            _ => self.see(lower, "probe", kind),
        }
    }

    /// What was below a directory that another one stands for now is gone.
    fn finish_replaced(&mut self, path: &Path, stays: &BTreeSet<OsString>) {
        for name in self.names(path).difference(stays) {
            self.left(&path.join(name), "absent");
        }
    }

    fn see(&mut self, path: &Path, part: &str, was: &str) {
        let known = self.recorded.entry(path.to_owned()).or_default();
        known.seen.insert(part.to_owned());
        known.was.get_or_insert_with(|| was.to_owned());
    }

    fn left(&mut self, path: &Path, now: &str) {
        self.recorded.entry(path.to_owned()).or_default().now = Some(now.to_owned());
    }

    fn names(&self, lower: &Path) -> BTreeSet<OsString> {
        let Ok(entries) = fs::read_dir(self.before.join(lower)) else { return BTreeSet::new() };
        entries.map(|entry| entry.unwrap().file_name()).collect()
    }

    fn meta(&self, lower: &Path) -> Option<Metadata> {
        self.before.join(lower).symlink_metadata().ok()
    }

    fn add_node(&mut self, node: Node) -> Id {
        self.nodes.push(node);
        self.nodes.len() - 1
    }
}

fn kind_of(meta: &Metadata) -> &'static str {
    let kind = meta.file_type();
    match () {
        () if kind.is_file() => "file",
        () if kind.is_dir() => "directory",
        () if kind.is_symlink() => "link",
        () if kind.is_fifo() => "pipe",
        () if kind.is_socket() => "socket",
        () => "device",
    }
}
