//! Where things are: the workspace around a directory, its store, and the daemon's files.

use std::cell::LazyCell;
use std::ffi::OsStr;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Component, Path, PathBuf};

use rustix::fs::OFlags;
use vout::config::Config;
use vout::limits::Limits;
use vout::mountinfo::{self, FS_TYPE, MountEntry};
use vout::path::{RelPath, RelPathBuf};
use vout::runtime::RuntimePaths;
use vout::serving::Wishes;

use crate::daemon;
use crate::error::{Attempted, CommandError};
use crate::output;

/// What marks a directory as a workspace.
pub(crate) const MARKERS: [&str; 4] = ["vout.toml", "vite-task.json", ".git", ".vout"];

/// The configuration file.
pub(crate) const CONFIG_FILE: &str = "vout.toml";

/// The store, where nothing else is said.
const STORE_DIR: &str = ".vout";

/// What of the process's surroundings decides where things are; taken once, in `main`.
#[derive(Debug, Clone)]
pub(crate) struct Surroundings {
    /// Current directory, absolute.
    pub(crate) cwd: PathBuf,
    /// The environment.
    pub(crate) env: Vec<(std::ffi::OsString, std::ffi::OsString)>,
}

impl Surroundings {
    /// Returns the value of a variable that is set and not empty.
    pub(crate) fn var(&self, name: &str) -> Option<&OsStr> {
        let found = self.env.iter().find(|(key, _)| key == name);
        found.map(|(_, value)| value.as_os_str()).filter(|value| !value.is_empty())
    }
}

/// A workspace and where its things are.
#[derive(Debug, Clone)]
pub(crate) struct Place {
    /// The workspace, absolute and without symbolic links.
    pub(crate) root: PathBuf,
    /// Its store, absolute.
    pub(crate) store: PathBuf,
    /// How much the store may hold; the daemon is told when it is started.
    pub(crate) limits: Limits,
    /// How its mounts are served, as far as the configuration says.
    pub(crate) serving: Wishes,
    /// Files of its daemon.
    pub(crate) runtime: RuntimePaths,
}

impl Place {
    /// Finds the workspace at `explicit`, or else around the current directory, and its store.
    ///
    /// `configured` reads the workspace's configuration.
    pub(crate) fn find(
        surroundings: &Surroundings,
        explicit: Option<&Path>,
        configured: impl FnOnce(&Path) -> Result<Config, CommandError>,
    ) -> Result<Self, CommandError> {
        // As they are before a dead one is taken away. Without /proc nothing is mounted as far as we can tell.
        let mounts = mountinfo::mounts().unwrap_or_default();
        let behind = |path: PathBuf| mountinfo::behind(&mounts, &path).unwrap_or(path);
        revive(&mounts, &surroundings.cwd.join(explicit.unwrap_or(Path::new(""))))?;
        let root = match explicit {
            Some(path) => behind(resolve(&surroundings.cwd.join(path)).map_err(|error| {
                CommandError::usage(format_args!("no workspace at {path:?}")).caused_by(&error)
            })?),
            None => enclosing(&behind(surroundings.cwd.clone()))?,
        };
        if root.to_str().is_none() {
            return Err(CommandError::user(format_args!("workspace path {root:?} is not UTF-8"))
                .hint("rename the directory, or mount it elsewhere with `mount --bind`"));
        }
        let config = configured(&root)?;
        let cache = config.cache();
        let store = match surroundings.var("VOUT_STORE") {
            Some(store) => surroundings.cwd.join(store),
            None => root.join(cache.store.as_deref().unwrap_or(Path::new(STORE_DIR))),
        };
        let store = resolve_store(&store);
        let directory = runtime_dir(surroundings)?;
        let runtime = RuntimePaths::new(&directory, &root, &store)
            .map_err(|error| CommandError::user("no room for the daemon's socket").caused_by(&error))?;
        Ok(Self { root, store, limits: Limits::from(cache), serving: config.serving(), runtime })
    }

    /// Returns the absolute path of a directory of the workspace.
    pub(crate) fn directory(&self, below: &RelPath) -> PathBuf {
        directory(&self.root, below)
    }

    /// Returns the place of `path`, absolute or relative to `cwd`, below the workspace.
    pub(crate) fn relative(&self, cwd: &Path, path: &Path) -> Result<RelPathBuf, CommandError> {
        let resolved = resolve(&cwd.join(path))
            .map_err(|error| CommandError::usage(format_args!("no directory {path:?}")).caused_by(&error))?;
        let mounts = mountinfo::mounts().unwrap_or_default();
        let resolved = mountinfo::behind(&mounts, &resolved).unwrap_or(resolved);
        let below = resolved.strip_prefix(&self.root).map_err(|_| {
            CommandError::usage(format_args!("{path:?} lies outside the workspace {:?}", self.root))
        })?;
        RelPathBuf::new(below.as_os_str().as_bytes())
            .map_err(|error| CommandError::usage("no such place in the workspace").caused_by(&error))
    }
}

/// Returns the absolute path of what lies `below` the directory `root`.
///
/// Joining the empty path would leave a trailing `/`, which tasks see in `PWD`.
pub(crate) fn directory(root: &Path, below: &RelPath) -> PathBuf {
    if below.is_root() { root.to_owned() } else { root.join(below.as_path()) }
}

/// Unmounts what killed daemons left at or above `path`: nothing below such a mount can be looked at, and
/// without a look at the workspace's configuration its next daemon cannot be started.
fn revive(mounts: &[MountEntry], path: &Path) -> Result<(), CommandError> {
    // `..` is the only thing that could lead out of a mount, and cannot be asked there.
    let mut plain = PathBuf::new();
    for component in path.components() {
        match component {
            Component::ParentDir => drop(plain.pop()),
            other => plain.push(other),
        }
    }
    let ours = mounts.iter().filter(|mount| mount.fs_type == FS_TYPE).map(|mount| &mount.mount_point);
    // Outermost first: it is what hides the others.
    for at in ours.filter(|at| plain.starts_with(at)) {
        let dead = open_path(at).is_ok_and(mountinfo::is_dead);
        if dead {
            output::note(format!("the daemon that served {} was killed: unmounting it", at.display()));
            daemon::clear_dead(at)?;
        }
    }
    Ok(())
}

/// Returns the nearest directory at or above `cwd` that is a workspace: it has one of the [`MARKERS`], or is
/// mounted, which hides a store.
fn enclosing(cwd: &Path) -> Result<PathBuf, CommandError> {
    let mounts = LazyCell::new(|| mountinfo::mounts().unwrap_or_default());
    let is_workspace = |dir: &&Path| {
        MARKERS.iter().any(|marker| dir.join(marker).symlink_metadata().is_ok())
            || mounts.iter().any(|mount| mount.fs_type == FS_TYPE && mount.mount_point == *dir)
    };
    cwd.ancestors().find(is_workspace).map(Path::to_owned).ok_or_else(|| {
        CommandError::usage(format_args!("no workspace around {cwd:?}")).hint(
            "a workspace is a directory with vout.toml, vite-task.json, .git or .vout in it; \
             `touch vout.toml` makes one",
        )
    })
}

/// Returns the absolute path without symbolic links of what `path` leads to.
///
/// The kernel is asked for the name of an open descriptor: unlike a walk from the root, that is one
/// request, and cannot be stopped half-way by a directory above that is not readable.
pub(crate) fn resolve(path: &Path) -> io::Result<PathBuf> {
    name_of(&open_path(path)?)
}

/// Opens `path` for nothing but naming it.
fn open_path(path: &Path) -> io::Result<File> {
    OpenOptions::new().read(true).custom_flags(OFlags::PATH.bits().cast_signed()).open(path)
}

/// Returns one name for a store however it is spelt: daemons are told apart by it.
///
/// What does not exist yet keeps its spelling below what does.
fn resolve_store(store: &Path) -> PathBuf {
    match (resolve(store), store.parent(), store.file_name()) {
        (Ok(resolved), ..) => resolved,
        (Err(_), Some(parent), Some(name)) => resolve_store(parent).join(name),
        (Err(_), ..) => store.to_owned(),
    }
}

/// Returns the path of an open file.
pub(crate) fn name_of(file: &File) -> io::Result<PathBuf> {
    use std::os::fd::AsRawFd;
    fs::read_link(format!("/proc/self/fd/{}", file.as_raw_fd()))
}

/// Returns the directory for sockets and logs, made and checked to be ours alone.
fn runtime_dir(surroundings: &Surroundings) -> Result<PathBuf, CommandError> {
    let uid = rustix::process::getuid().as_raw();
    let owned = |dir: &Path| dir.metadata().is_ok_and(|meta| meta.is_dir() && meta.uid() == uid);
    let dir = match surroundings.var("XDG_RUNTIME_DIR").map(Path::new) {
        Some(dir) if dir.is_absolute() && owned(dir) => dir.join("vout"),
        _ if uid == 0 => PathBuf::from("/run/vout"),
        _ => PathBuf::from(format!("/tmp/vout-{uid}")),
    };
    make_private(&dir, uid)?;
    Ok(dir)
}

fn make_private(dir: &Path, uid: u32) -> Result<(), CommandError> {
    match fs::DirBuilder::new().mode(0o700).create(dir) {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
        Err(error) => return Err(error).attempted(format_args!("make the runtime directory {dir:?}")),
    }
    // In /tmp anybody may have made it before us, or put a link there.
    let meta = dir.symlink_metadata().attempted(format_args!("look at {dir:?}"))?;
    if !meta.is_dir() || meta.uid() != uid || meta.mode() & 0o077 != 0 {
        return Err(CommandError::user(format_args!(
            "{dir:?} must be a directory of user {uid} that nobody else may enter"
        ))
        .hint(format!("remove it, or `chmod 700 {}`", dir.display())));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    type TestResult = Result<(), Box<dyn std::error::Error>>;

    fn surroundings(dir: &Path, cwd: &Path) -> Surroundings {
        let env = vec![("XDG_RUNTIME_DIR".into(), dir.as_os_str().to_owned())];
        Surroundings { cwd: cwd.to_owned(), env }
    }

    #[test]
    fn the_nearest_directory_with_any_marker_is_the_workspace() -> TestResult {
        let dir = tempfile::tempdir()?;
        let root = resolve(dir.path())?;
        fs::create_dir_all(root.join("a/b/c"))?;
        fs::write(root.join("vout.toml"), "")?;
        assert_eq!(enclosing(&root.join("a/b/c"))?, root);
        fs::create_dir(root.join("a/.git"))?;
        assert_eq!(enclosing(&root.join("a/b/c"))?, root.join("a"));
        Ok(())
    }

    #[test]
    fn without_a_marker_there_is_no_workspace() {
        let error = enclosing(Path::new("/proc/self")).unwrap_err();
        assert_eq!(error.exit_code(), 2);
        assert!(error.to_string().contains("vite-task.json"), "{error}");
    }

    #[test]
    fn the_variable_wins_over_the_configuration_and_that_over_the_default() -> TestResult {
        let dir = tempfile::tempdir()?;
        let root = resolve(dir.path())?;
        let mut around = surroundings(&root, &root);
        fs::write(root.join("vout.toml"), "")?;
        let config = Config::parse("cache.store = 's'", Path::new("vout.toml"))?;
        assert_eq!(Place::find(&around, None, |_| Ok(Config::default()))?.store, root.join(".vout"));
        assert_eq!(Place::find(&around, None, |_| Ok(config.clone()))?.store, root.join("s"));
        around.env.push(("VOUT_STORE".into(), "/elsewhere".into()));
        assert_eq!(Place::find(&around, None, |_| Ok(config))?.store, Path::new("/elsewhere"));
        Ok(())
    }

    #[test]
    fn an_explicit_workspace_is_resolved_through_links() -> TestResult {
        let dir = tempfile::tempdir()?;
        let root = resolve(dir.path())?;
        fs::create_dir(root.join("real"))?;
        symlink("real", root.join("link"))?;
        let place =
            Place::find(&surroundings(&root, &root), Some(Path::new("link")), |_| Ok(Config::default()))?;
        assert_eq!(place.root, root.join("real"));
        assert_eq!(place.relative(&root, Path::new("link"))?.to_string(), ".");
        assert!(place.relative(&root, Path::new("/")).is_err());
        Ok(())
    }

    #[test]
    fn a_runtime_directory_others_may_enter_is_refused() -> TestResult {
        let dir = tempfile::tempdir()?;
        let around = surroundings(dir.path(), dir.path());
        let made = runtime_dir(&around)?;
        assert_eq!(made, dir.path().join("vout"));
        rustix::fs::chmod(&made, rustix::fs::Mode::from_raw_mode(0o755))?;
        assert!(runtime_dir(&around).is_err());
        Ok(())
    }
}
