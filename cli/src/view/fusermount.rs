//! Views for machines that deny private mount namespaces: mounted by `fusermount3` at a place of their own.
//!
//! The task then runs under another path than the workspace's, which it can notice.

use std::fs::{self, File};
use std::io::{self, IoSliceMut, Read};
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::os::unix::fs::DirBuilderExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags};
use vout::proto::ViewId;

use super::message::ViewPlace;
use crate::error::{Attempted, CommandError};

/// The helper, set-user-id root, by its path: one found on a task's `PATH` is not to be trusted.
pub(crate) const HELPERS: [&str; 2] = ["/usr/bin/fusermount3", "/bin/fusermount3"];

/// A view at a place of its own, unmounted when dropped.
#[derive(Debug)]
pub(crate) struct PrivateMount {
    helper: &'static str,
    /// Where it is.
    pub(crate) at: PathBuf,
}

/// Returns the helper of this machine.
pub(crate) fn helper() -> Option<&'static str> {
    HELPERS.into_iter().find(|helper| Path::new(helper).exists())
}

/// Returns the name of a view's directory: short, because the paths of sockets in it have 107 bytes at most. Should it be
/// taken, the view is refused.
fn directory_name(view: ViewId) -> String {
    format!("v{:08x}", view.0.as_u128() & u128::from(u32::MAX))
}

impl PrivateMount {
    /// Mounts a view beside the daemon's socket, and returns the descriptor that it is served on.
    pub(crate) fn new(view: &ViewPlace) -> Result<(Self, File), CommandError> {
        let helper = helper().ok_or_else(|| {
            CommandError::internal("there is no fusermount3").hint("`apt-get install fuse3` brings it")
        })?;
        let at = view.socket.with_file_name(directory_name(view.id));
        fs::DirBuilder::new()
            .mode(0o700)
            .create(&at)
            .attempted(format_args!("make the mount point {at:?}"))?;
        // From here on dropping it tidies up.
        let mount = Self { helper, at };
        let (ours, theirs) = UnixStream::pair().attempted("make a socket for fusermount3")?;
        let mut child = Command::new(helper)
            .args(["-o", "default_permissions,nosuid,nodev,fsname=vout,subtype=vout", "--"])
            .arg(&mount.at)
            // The helper sends the descriptor over the one that this variable names: its standard input.
            .env("_FUSE_COMMFD", "0")
            .stdin(OwnedFd::from(theirs))
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .attempted(format_args!("start {helper:?}"))?;
        let fuse = receive_descriptor(&ours);
        let mut said = String::new();
        if let Some(mut stderr) = child.stderr.take() {
            // Only for the message; what was received decides.
            stderr.read_to_string(&mut said).ok();
        }
        let status = child.wait().attempted("wait for fusermount3")?;
        match fuse.attempted("hear from fusermount3")? {
            Some(fuse) => Ok((mount, fuse)),
            None => {
                let mut error = CommandError::internal(format_args!("fusermount3 did not mount ({status})"));
                error.causes.extend(said.lines().map(str::to_owned));
                Err(error)
            }
        }
    }
}

impl Drop for PrivateMount {
    fn drop(&mut self) {
        // Lazily: a process that outlived the task goes on in it, and the session ends with that.
        let unmount =
            Command::new(self.helper).args(["-u", "-z", "--"]).arg(&self.at).stderr(Stdio::null()).status();
        drop(unmount);
        // One that could not be unmounted stays for the daemon of the next start to complain about.
        fs::remove_dir(&self.at).ok();
    }
}

/// Receives one descriptor; `None` where the other end was closed without one.
fn receive_descriptor(socket: &UnixStream) -> io::Result<Option<File>> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut byte = [0];
    let mut buffers = [IoSliceMut::new(&mut byte)];
    rustix::io::retry_on_intr(|| {
        rustix::net::recvmsg(socket, &mut buffers, &mut control, RecvFlags::CMSG_CLOEXEC)
    })?;
    let rights = control.drain().find_map(|message| match message {
        RecvAncillaryMessage::ScmRights(mut rights) => rights.next(),
        _ => None,
    });
    Ok(rights.map(File::from))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_helper_that_sends_nothing_has_not_mounted() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        drop(theirs);
        assert!(receive_descriptor(&ours).unwrap().is_none());
    }
}
