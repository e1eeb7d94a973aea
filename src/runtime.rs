//! Names of the files through which `vout` and `vout-mountd` find each other.
//!
//! Pure: the caller chooses the directory (`$XDG_RUNTIME_DIR/vout`, or a private one in `/tmp`) and makes
//! it, mode 0700.

use std::ffi::OsString;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use thiserror::Error;

use crate::digest::Hasher;

/// Longest path of a Unix socket in bytes, as `sockaddr_un` has it, without the final NUL.
pub const SOCKET_PATH_BYTES_MAX: usize = 107;

/// Hexadecimal digits of the workspace's hash in a name.
const NAME_DIGITS: usize = 20;

/// Files of one daemon.
///
/// - One workspace with one store always gives the same names, any other gives different ones.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RuntimePaths {
    socket: PathBuf,
    log: PathBuf,
}

/// The socket's path is longer than the kernel takes.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("socket path {path:?} has {} bytes, the limit is {SOCKET_PATH_BYTES_MAX}", path.as_os_str().len())]
pub struct SocketPathTooLong {
    /// The path.
    pub path: PathBuf,
}

impl RuntimePaths {
    /// Names the files in `directory` for the daemon of `workspace` with `store`, both absolute.
    ///
    /// # Errors
    /// [`SocketPathTooLong`] where `directory` is too long a path.
    pub fn new(directory: &Path, workspace: &Path, store: &Path) -> Result<Self, SocketPathTooLong> {
        let mut hasher = Hasher::default();
        hasher.update_field(workspace.as_os_str().as_bytes());
        hasher.update_field(store.as_os_str().as_bytes());
        let mut name = hasher.finish().to_string();
        name.truncate(NAME_DIGITS);
        let socket = directory.join(format!("{name}.sock"));
        if socket.as_os_str().len() > SOCKET_PATH_BYTES_MAX {
            return Err(SocketPathTooLong { path: socket });
        }
        Ok(Self { socket, log: directory.join(format!("{name}.log")) })
    }

    /// Returns the path of the socket.
    #[must_use]
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// Returns the path of the file whose lock the serving daemon holds.
    #[must_use]
    pub fn lock(&self) -> PathBuf {
        lock_of(&self.socket)
    }

    /// Returns the path of the log.
    #[must_use]
    pub fn log(&self) -> &Path {
        &self.log
    }
}

/// Returns the path of the lock file that belongs to `socket`.
#[must_use]
pub fn lock_of(socket: &Path) -> PathBuf {
    let mut lock = OsString::from(socket);
    lock.push(".lock");
    lock.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_depend_on_workspace_and_store() {
        let names = |workspace: &str, store: &str| {
            RuntimePaths::new(Path::new("/run/vout"), Path::new(workspace), Path::new(store)).unwrap()
        };
        assert_eq!(names("/w", "/w/.vout"), names("/w", "/w/.vout"));
        assert_ne!(names("/w", "/w/.vout"), names("/v", "/w/.vout"));
        assert_ne!(names("/w", "/w/.vout"), names("/w", "/s"));
        assert_ne!(names("/w", "x"), names("/", "wx"));
        let paths = names("/w", "/s");
        assert_eq!(paths.lock(), lock_of(paths.socket()));
        assert!(paths.log().starts_with("/run/vout"));
    }

    #[test]
    fn refuses_a_directory_that_leaves_no_room_for_the_socket() {
        let directory = PathBuf::from(format!("/{}", "d".repeat(100)));
        let error = RuntimePaths::new(&directory, Path::new("/w"), Path::new("/s")).unwrap_err();
        assert!(error.to_string().contains("the limit is 107"));
    }
}
