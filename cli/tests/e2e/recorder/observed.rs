//! Turns system calls into what a view must have seen: paths are walked as the kernel does.

use std::collections::HashMap;
use std::ffi::{OsStr, OsString};
use std::fs;
use std::path::{Component, Path, PathBuf};

use super::model::{Id, Model, ROOT, Recorded};
use super::strace::{Call, Descriptor, Returned};

/// Links on the way of one path beyond which the kernel gives up.
const LINKS_MAX: usize = 40;

/// Where a path led.
enum Led {
    /// To something in the workspace: its absolute path, its name, and itself if it is there.
    Name { path: PathBuf, parent: Id, name: OsString, id: Option<Id> },
    /// To the workspace itself, by its own name, `.` or `..`.
    Root,
    /// To nowhere, or out of the workspace.
    Elsewhere,
}

/// Whether a link at the end of a path is followed.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Last {
    Follow,
    Keep,
}

/// What followed a task by its system calls.
pub(super) struct Observer {
    workspace: PathBuf,
    before: PathBuf,
    model: Model,
    /// Working directories. Threads may share one.
    dirs: Vec<PathBuf>,
    /// Which of them each thread has.
    dir_of: HashMap<u32, usize>,
    /// Threads that are about to make another one, the latest last.
    forking: Vec<u32>,
}

/// Returns what a view of `workspace` must have recorded of these calls; `before` is a copy of what was there.
pub(super) fn observe(calls: &[Call], workspace: &Path, before: &Path) -> Recorded {
    let mut observer = Observer {
        workspace: workspace.to_owned(),
        before: before.to_owned(),
        model: Model::new(before),
        dirs: Vec::new(),
        dir_of: HashMap::new(),
        forking: Vec::new(),
    };
    for call in calls {
        observer.follow(call);
    }
    observer.model.finish()
}

impl Observer {
    fn follow(&mut self, call: &Call) {
        let ok = call.succeeded();
        match call.name.as_str() {
            "clone" | "clone3" | "fork" | "vfork" => self.fork(call),
            "execve" => self.execute(call, Descriptor::Cwd, 0),
            "execveat" => self.execute(call, call.descriptor(0), 1),
            "chdir" => {
                let led = self.walk(call, Descriptor::Cwd, 0, Last::Follow);
                if ok && let Some(path) = call.path(0) {
                    let to = match led {
                        Led::Elsewhere => self.dir(call.pid).join(path),
                        Led::Root => self.workspace.clone(),
                        Led::Name { path, .. } => path,
                    };
                    self.set_dir(call.pid, to);
                }
            }
            "fchdir" => {
                if let (true, Descriptor::Open(path)) = (ok, call.descriptor(0)) {
                    self.set_dir(call.pid, path);
                }
            }
            "open" => self.open(call, Descriptor::Cwd, 0),
            "openat" | "openat2" => self.open(call, call.descriptor(0), 1),
            "creat" => self.open(call, Descriptor::Cwd, 0),
            "getdents" | "getdents64" => {
                if let Some(id) = self.at(&call.descriptor(0)) {
                    self.model.list(id);
                }
            }
            _ => self.follow_named(call),
        }
    }

    fn follow_named(&mut self, call: &Call) {
        let (dir, here) = (call.descriptor(0), Descriptor::Cwd);
        let last =
            if call.args.iter().any(|arg| arg.contains("NOFOLLOW")) { Last::Keep } else { Last::Follow };
        match call.name.as_str() {
            "stat" | "access" | "statfs" | "chroot" | "getxattr" | "listxattr" | "uselib" => {
                drop(self.walk(call, here, 0, Last::Follow));
            }
            "lstat" | "lgetxattr" | "llistxattr" => drop(self.walk(call, here, 0, Last::Keep)),
            "newfstatat" | "fstatat64" | "statx" | "faccessat" | "faccessat2" => {
                drop(self.walk(call, dir, 1, last));
            }
            "name_to_handle_at" => drop(self.walk(call, dir, 1, Last::Keep)),
            "inotify_add_watch" => drop(self.walk(call, here, 1, last)),
            "readlink" => self.read_link(call, here, 0),
            "readlinkat" => self.read_link(call, dir, 1),
            "mkdir" => self.make(call, here, 0, "directory"),
            "mkdirat" => self.make(call, dir, 1, "directory"),
            "mknod" => self.make(call, here, 0, made_by_mknod(call.arg(1))),
            "mknodat" => self.make(call, dir, 1, made_by_mknod(call.arg(2))),
            "symlink" => self.make(call, here, 1, "link"),
            "symlinkat" => self.make(call, call.descriptor(1), 2, "link"),
            "bind" | "connect" => self.socket(call),
            "unlink" | "rmdir" => self.remove(call, here, 0),
            "unlinkat" => self.remove(call, dir, 1),
            "rename" => self.rename(call, (here.clone(), 0), (here, 1)),
            "renameat" | "renameat2" => self.rename(call, (dir, 1), (call.descriptor(2), 3)),
            "link" => self.link(call, (here.clone(), 0), (here, 1)),
            "linkat" => self.link(call, (dir, 1), (call.descriptor(2), 3)),
            "chmod" | "chown" | "utime" | "utimes" | "setxattr" | "removexattr" => {
                self.change(call, here, 0, Last::Follow);
            }
            "lchown" | "lsetxattr" | "lremovexattr" => self.change(call, here, 0, Last::Keep),
            "fchmodat" | "fchmodat2" | "fchownat" | "utimensat" | "futimesat" => {
                self.change(call, dir, 1, last);
            }
            "fchmod" | "fchown" | "fsetxattr" | "fremovexattr" | "fallocate" => {
                if let (true, Some(id)) = (call.succeeded(), self.at(&dir)) {
                    self.model.change(id);
                }
            }
            "truncate" => {
                if let Led::Name { id: Some(id), .. } = self.walk(call, here, 0, Last::Follow) {
                    self.truncate(call, id);
                }
            }
            "ftruncate" => {
                if let Some(id) = self.at(&dir) {
                    self.truncate(call, id);
                }
            }
            _ => {}
        }
    }

    fn open(&mut self, call: &Call, dir: Descriptor, at: usize) {
        let flags = at + 1;
        let has = |flag: &str| call.has(flags, flag);
        let creates = call.name == "creat" || has("O_CREAT");
        let truncates = call.name == "creat" || has("O_TRUNC");
        let keep = has("O_NOFOLLOW") || (creates && has("O_EXCL"));
        let led = self.walk(call, dir, at, if keep { Last::Keep } else { Last::Follow });
        let Returned::Value(_, opened) = &call.result else { return };
        let id = match led {
            Led::Name { parent, name, id: None, .. } if creates => {
                return self.model.make((parent, &name), "file", PathBuf::new());
            }
            Led::Name { id, .. } => id,
            Led::Root => None,
            // Through a link of /proc, which leads to the file itself.
            Led::Elsewhere => opened.as_ref().and_then(|path| self.at(&Descriptor::Open(path.clone()))),
        };
        match id {
            Some(id) if self.model.kind(id) != "file" || has("O_PATH") => {}
            Some(id) if truncates => self.model.truncate(id),
            Some(id) if has("O_WRONLY") || has("O_RDWR") => self.model.change(id),
            Some(id) => self.model.read(id),
            None => {}
        }
    }

    fn execute(&mut self, call: &Call, dir: Descriptor, at: usize) {
        let led = self.walk(call, dir, at, Last::Follow);
        let Led::Name { path, id: Some(id), .. } = led else { return };
        // A program that is there and still not found lacks its interpreter, for which it was read.
        if !call.succeeded() && !call.failed_with("ENOEXEC") && !call.failed_with("ENOENT") {
            return;
        }
        self.model.read(id);
        // The kernel opens the interpreter of a script itself.
        let Some(interpreter) = self.interpreter(&path) else { return };
        let base = self.dir(call.pid);
        if let Led::Name { id: Some(id), .. } = self.walk_path(&base, &interpreter, Last::Follow) {
            self.model.read(id);
        }
    }

    fn interpreter(&self, script: &Path) -> Option<PathBuf> {
        let before = self.before.join(script.strip_prefix(&self.workspace).ok()?);
        let content = fs::read(before).or_else(|_| fs::read(script)).ok()?;
        let line = String::from_utf8_lossy(content.strip_prefix(b"#!")?.split(|byte| *byte == b'\n').next()?)
            .into_owned();
        Some(line.split_whitespace().next()?.into())
    }

    fn read_link(&mut self, call: &Call, dir: Descriptor, at: usize) {
        if let Led::Name { id: Some(id), .. } = self.walk(call, dir, at, Last::Keep)
            && call.succeeded()
        {
            drop(self.model.target(id));
        }
    }

    fn make(&mut self, call: &Call, dir: Descriptor, at: usize, kind: &'static str) {
        if let Led::Name { parent, name, id: None, .. } = self.walk(call, dir, at, Last::Keep)
            && call.succeeded()
        {
            let target = if kind == "link" { call.path(0).unwrap_or_default() } else { PathBuf::new() };
            self.model.make((parent, &name), kind, target);
        }
    }

    fn socket(&mut self, call: &Call) {
        let Some((_, name)) = call.arg(1).split_once("sun_path=") else { return };
        let Some(path) = super::strace::quoted(name.trim_end_matches('}')) else { return };
        let path = PathBuf::from(<OsString as std::os::unix::ffi::OsStringExt>::from_vec(path));
        let base = self.dir(call.pid);
        let led = self.walk_path(&base, &path, Last::Follow);
        if let (Led::Name { parent, name, id: None, .. }, "bind", true) =
            (led, call.name.as_str(), call.succeeded())
        {
            self.model.make((parent, &name), "socket", PathBuf::new());
        }
    }

    fn remove(&mut self, call: &Call, dir: Descriptor, at: usize) {
        let Led::Name { parent, name, id: Some(id), .. } = self.walk(call, dir, at, Last::Keep) else {
            return;
        };
        let removes_dir = call.name == "rmdir" || call.has(2, "AT_REMOVEDIR");
        if removes_dir && (call.succeeded() || call.failed_with("ENOTEMPTY")) {
            self.model.list(id);
        }
        if call.succeeded() {
            self.model.remove((parent, &name));
        }
    }

    fn rename(&mut self, call: &Call, from: (Descriptor, usize), to: (Descriptor, usize)) {
        let from = self.walk(call, from.0, from.1, Last::Keep);
        let to = self.walk(call, to.0, to.1, Last::Keep);
        let Led::Name { parent: from, name: from_name, id: Some(source), .. } = from else { return };
        let Led::Name { parent: to, name: to_name, id: target, .. } = to else { return };
        let exchanges = call.has(4, "RENAME_EXCHANGE");
        if let Some(target) = target
            && !exchanges
            && self.model.kind(source) == "directory"
            && (call.succeeded() || call.failed_with("ENOTEMPTY"))
        {
            self.model.list(target);
        }
        if !call.succeeded() || target == Some(source) {
            return;
        }
        match target {
            Some(target) if exchanges => self.model.name(target, (from, &from_name)),
            _ => self.model.remove((from, &from_name)),
        }
        self.model.name(source, (to, &to_name));
    }

    fn link(&mut self, call: &Call, from: (Descriptor, usize), to: (Descriptor, usize)) {
        let last = if call.has(4, "AT_SYMLINK_FOLLOW") { Last::Follow } else { Last::Keep };
        let descriptor = from.0.clone();
        let source = match self.walk(call, from.0, from.1, last) {
            Led::Name { id, .. } => id,
            _ if call.has(4, "AT_EMPTY_PATH") => self.at(&descriptor),
            _ => None,
        };
        let to = self.walk(call, to.0, to.1, Last::Keep);
        let Led::Name { parent, name, id: None, .. } = to else { return };
        match source {
            _ if !call.succeeded() => {}
            Some(source) => self.model.name(source, (parent, &name)),
            // A file without a name gets one.
            None => self.model.make((parent, &name), "file", PathBuf::new()),
        }
    }

    fn change(&mut self, call: &Call, dir: Descriptor, at: usize, last: Last) {
        let by_descriptor = call.path(at).is_none_or(|path| path == Path::new(""));
        let id = if by_descriptor {
            self.at(&dir)
        } else {
            match self.walk(call, dir, at, last) {
                Led::Name { id, .. } => id,
                Led::Root => Some(ROOT),
                Led::Elsewhere => None,
            }
        };
        if let (Some(id), true) = (id, call.succeeded()) {
            self.model.change(id);
        }
    }

    fn truncate(&mut self, call: &Call, id: Id) {
        match (call.succeeded(), call.arg(1)) {
            (true, "0") => self.model.truncate(id),
            (true, _) => self.model.change(id),
            (false, _) => {}
        }
    }

    fn fork(&mut self, call: &Call) {
        let shares = call.args.iter().any(|arg| arg.contains("CLONE_FS"));
        match call.result {
            Returned::Nothing => self.forking.push(call.pid),
            Returned::Value(child, _) => {
                self.forking.retain(|pid| *pid != call.pid);
                let dir = self.dir_index(call.pid);
                if let Ok(child) = u32::try_from(child) {
                    if shares {
                        self.dir_of.insert(child, dir);
                    } else if !self.dir_of.contains_key(&child) {
                        self.dirs.push(self.dirs[dir].clone());
                        self.dir_of.insert(child, self.dirs.len() - 1);
                    }
                }
            }
            Returned::Error(_) => self.forking.retain(|pid| *pid != call.pid),
        }
    }

    /// Returns which directory a thread has. One that is not known yet has that of whoever is making a thread.
    fn dir_index(&mut self, pid: u32) -> usize {
        if let Some(index) = self.dir_of.get(&pid) {
            return *index;
        }
        let parent = self.forking.last().and_then(|parent| self.dir_of.get(parent));
        let dir = parent.map_or_else(|| self.workspace.clone(), |index| self.dirs[*index].clone());
        self.dirs.push(dir);
        self.dir_of.insert(pid, self.dirs.len() - 1);
        self.dirs.len() - 1
    }

    fn dir(&mut self, pid: u32) -> PathBuf {
        let index = self.dir_index(pid);
        self.dirs[index].clone()
    }

    fn set_dir(&mut self, pid: u32, to: PathBuf) {
        let index = self.dir_index(pid);
        self.dirs[index] = to;
    }

    /// Returns what a descriptor leads to, if that lies in the workspace.
    fn at(&self, descriptor: &Descriptor) -> Option<Id> {
        let Descriptor::Open(path) = descriptor else { return None };
        let inside = path.strip_prefix(&self.workspace).ok()?;
        inside.components().try_fold(ROOT, |dir, name| self.model.child(dir, name.as_os_str()))
    }

    fn walk(&mut self, call: &Call, dir: Descriptor, at: usize, last: Last) -> Led {
        let Some(path) = call.path(at) else { return Led::Elsewhere };
        let base = match dir {
            Descriptor::Cwd => self.dir(call.pid),
            Descriptor::Open(dir) => dir,
            Descriptor::Nameless if path.is_absolute() => PathBuf::from("/"),
            Descriptor::Nameless => return Led::Elsewhere,
        };
        if path.as_os_str().is_empty() { Led::Elsewhere } else { self.walk_path(&base, &path, last) }
    }

    /// Walks as the kernel does, looking at each name on the way.
    fn walk_path(&mut self, base: &Path, path: &Path, last: Last) -> Led {
        let (mut at, mut links) = (base.to_owned(), 0);
        let mut todo: Vec<OsString> = names(path);
        // A slash at the end asks for a directory, through a link too.
        let bytes = path.as_os_str().as_encoded_bytes();
        let last = if bytes.ends_with(b"/") || bytes.ends_with(b"/.") { Last::Follow } else { last };
        if path.is_absolute() {
            at = "/".into();
        }
        while let Some(name) = todo.pop() {
            if name == ".." {
                at.pop();
                continue;
            }
            let next = at.join(&name);
            let (link, led) = match self.at(&Descriptor::Open(at.clone())) {
                Some(parent) => {
                    let id = self.model.lookup(parent, &name);
                    let link = id.filter(|id| self.model.kind(*id) == "link");
                    let link = link.filter(|_| !todo.is_empty() || last == Last::Follow);
                    if id.is_none_or(|id| self.model.kind(id) != "directory") && link.is_none() {
                        return if todo.is_empty() {
                            Led::Name { path: next, parent, name, id }
                        } else {
                            Led::Elsewhere
                        };
                    }
                    (link.map(|id| self.model.target(id)), Led::Name { path: next.clone(), parent, name, id })
                }
                None if next == self.workspace => (None, Led::Root),
                // The kernel's own links lead to files, not to paths.
                None if next.starts_with("/proc") => return Led::Elsewhere,
                None => {
                    let follows = !todo.is_empty() || last == Last::Follow;
                    (fs::read_link(&next).ok().filter(|_| follows), Led::Elsewhere)
                }
            };
            if let Some(target) = link {
                links += 1;
                if links > LINKS_MAX {
                    return Led::Elsewhere;
                }
                if target.is_absolute() {
                    at = "/".into();
                }
                todo.extend(names(&target));
                continue;
            }
            at = next;
            if todo.is_empty() {
                return led;
            }
        }
        self.led_to(&at)
    }

    /// Returns where `.` or `..` at the end of a path led.
    fn led_to(&self, at: &Path) -> Led {
        if at == self.workspace {
            return Led::Root;
        }
        let id = self.at(&Descriptor::Open(at.to_owned()));
        let parent = at.parent().and_then(|dir| self.at(&Descriptor::Open(dir.to_owned())));
        match (parent, at.file_name()) {
            (Some(parent), Some(name)) => {
                Led::Name { path: at.to_owned(), parent, name: name.to_owned(), id }
            }
            _ => Led::Elsewhere,
        }
    }
}

/// Returns the names of a path that are to be walked, the first one last.
fn names(path: &Path) -> Vec<OsString> {
    let name = |component: Component<'_>| match component {
        Component::Normal(name) => Some(name.to_owned()),
        Component::ParentDir => Some(OsStr::new("..").to_owned()),
        Component::RootDir | Component::CurDir | Component::Prefix(_) => None,
    };
    path.components().rev().filter_map(name).collect()
}

fn made_by_mknod(mode: &str) -> &'static str {
    match () {
        () if mode.contains("S_IFIFO") => "pipe",
        () if mode.contains("S_IFSOCK") => "socket",
        () if mode.contains("S_IFCHR") || mode.contains("S_IFBLK") => "device",
        () => "file",
    }
}
