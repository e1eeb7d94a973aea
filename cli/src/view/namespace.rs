//! Puts the calling process into a mount namespace of its own, with the view over the workspace.

use std::ffi::CString;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::path::{Path, PathBuf};

use rustix::mount::{MountFlags, MountPropagationFlags};
use vout::proto::{Event, Request, VIEW_STDERR, VIEW_STDOUT};

use super::fusermount::PrivateMount;
use super::message::{Placement, Terminal, ViewPlace};
use crate::daemon::{Connection, unexpected};
use crate::error::{Attempted, CommandError};
use crate::sys;

/// The file system's name in `/proc/self/mountinfo`.
const FILE_SYSTEM_TYPE: &str = "fuse.vout";

/// A view that this process has entered.
pub(crate) struct Entered {
    /// Where the view's root is: over the workspace, or, where a private namespace is denied, elsewhere.
    pub(crate) root: PathBuf,
    /// Its terminal files.
    pub(crate) terminal: Option<TerminalFiles>,
    /// Unmounts a view that lies elsewhere.
    _elsewhere: Option<PrivateMount>,
}

/// Why a view could not be entered.
pub(crate) enum EnterError {
    /// The machine denies private mount namespaces. The process may be in half of one, and is of no more use.
    Denied(CommandError),
    /// Anything else.
    Failed(CommandError),
}

impl From<CommandError> for EnterError {
    fn from(error: CommandError) -> Self {
        Self::Failed(error)
    }
}

/// The terminal files of a view, open for writing.
pub(crate) struct TerminalFiles {
    /// Standard output.
    pub(crate) stdout: File,
    /// Standard error.
    pub(crate) stderr: File,
}

/// Enters the view: afterwards its root leads into it, for this process and its children.
///
/// To be called while the process has one thread, because user namespaces are entered only so.
pub(crate) fn enter(view: &ViewPlace, workspace: &Path, terminal: Terminal) -> Result<Entered, EnterError> {
    // Before anything is mounted over it: the socket may lie below the workspace.
    let connection = Connection::at(&view.socket)?;
    let (root, elsewhere, fuse) = match view.placement {
        Placement::InPlace => {
            unshare().map_err(EnterError::Denied)?;
            (workspace.to_owned(), None, mount(workspace)?)
        }
        Placement::Elsewhere => {
            let (elsewhere, fuse) = PrivateMount::new(view)?;
            (elsewhere.at.clone(), Some(elsewhere), fuse)
        }
    };
    connection.send_with(&Request::Serve { view: view.id }, fuse.as_fd())?;
    // The daemon's copy must be the last one: when it goes, requests fail instead of waiting for ever.
    drop(fuse);
    expect_ready(&connection)?;
    let terminal = match terminal {
        Terminal::View => Some(TerminalFiles {
            stdout: open_terminal(&root.join(VIEW_STDOUT))?,
            stderr: open_terminal(&root.join(VIEW_STDERR))?,
        }),
        Terminal::Inherit => None,
    };
    connection.send(&Request::Started { view: view.id })?;
    expect_ready(&connection)?;
    Ok(Entered { root, terminal, _elsewhere: elsewhere })
}

fn expect_ready(connection: &Connection) -> Result<(), CommandError> {
    match connection.receive()? {
        Event::Ready => Ok(()),
        other => Err(unexpected(&other)),
    }
}

fn open_terminal(path: &Path) -> Result<File, CommandError> {
    OpenOptions::new().write(true).open(path).attempted(format_args!("open {path:?} in the view"))
}

/// Makes a mount namespace, inside a user namespace where that is what it takes.
pub(crate) fn unshare() -> Result<(), CommandError> {
    let (uid, gid) = (rustix::process::geteuid(), rustix::process::getegid());
    let privileged = uid.is_root() && sys::unshare_mounts(false).is_ok();
    if !privileged {
        sys::unshare_mounts(true).map_err(|error| no_namespace(&error))?;
        // Without this the kernel lets nobody but root map groups.
        let mapped = fs::write("/proc/self/setgroups", "deny")
            .and_then(|()| fs::write("/proc/self/uid_map", format!("{uid} {uid} 1", uid = uid.as_raw())))
            .and_then(|()| fs::write("/proc/self/gid_map", format!("{gid} {gid} 1", gid = gid.as_raw())));
        mapped.map_err(|error| no_namespace(&error))?;
    }
    let private = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
    rustix::mount::mount_change("/", private).map_err(|errno| no_namespace(&io::Error::from(errno)))
}

fn no_namespace(error: &io::Error) -> CommandError {
    CommandError::internal("this machine denies a private mount namespace")
        .caused_by(error)
        .hint("`vout doctor` shows what denies it, and the command that allows it")
}

/// Mounts the view over the workspace and returns the descriptor that it is served on.
pub(crate) fn mount(workspace: &Path) -> Result<File, CommandError> {
    let fuse = OpenOptions::new()
        .read(true)
        .write(true)
        .open("/dev/fuse")
        .attempted("open \"/dev/fuse\"")
        .map_err(|error| error.hint("`vout doctor` shows what this machine offers"))?;
    let options = CString::new(format!(
        "fd={},rootmode=40000,user_id={},group_id={},default_permissions,allow_other",
        fuse.as_raw_fd(),
        rustix::process::geteuid().as_raw(),
        rustix::process::getegid().as_raw(),
    ))
    .attempted("name the mount options")?;
    let flags = MountFlags::NOSUID | MountFlags::NODEV;
    rustix::mount::mount("vout", workspace, FILE_SYSTEM_TYPE, flags, &*options)
        .map_err(io::Error::from)
        .attempted(format_args!("mount the view over {workspace:?}"))
        .map_err(|error| error.hint("`vout doctor` shows what this machine offers"))?;
    Ok(fuse)
}
