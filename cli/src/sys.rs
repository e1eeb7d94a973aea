//! System calls whose contract the compiler cannot check, behind safe functions.
#![expect(unsafe_code, reason = "see each SAFETY comment")]

use std::fs;
use std::io;
use std::os::fd::{BorrowedFd, RawFd};
use std::os::unix::process::CommandExt;
use std::process::Command;

use rustix::io::FdFlags;
use rustix::process::Signal;
use rustix::thread::UnshareFlags;

/// Gives the calling thread its own mount namespace, and with `user` its own user namespace too.
pub(crate) fn unshare_mounts(user: bool) -> io::Result<()> {
    let user = if user { UnshareFlags::NEWUSER } else { UnshareFlags::empty() };
    // SAFETY: what makes `unshare` unsafe is a descriptor table of one's own (`CLONE_FILES`); neither flag
    // asks for one.
    unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWNS | user) }.map_err(Into::into)
}

/// Has `command`, once started, killed when the thread that started it ends.
pub(crate) fn die_with_parent(command: &mut Command) {
    // SAFETY: the closure makes one system call and allocates nothing, as the child of a process with
    // several threads must.
    unsafe {
        command.pre_exec(|| {
            rustix::process::set_parent_process_death_signal(Some(Signal::KILL)).map_err(Into::into)
        });
    }
}

/// Has `command` start with the default dispositions of the signals that `vout` passes on.
///
/// A shell without job control starts background jobs with SIGINT and SIGQUIT ignored, and programs inherit
/// that. The task gets such a signal from `vout` alone, which was sent it on purpose.
pub(crate) fn with_default_signals(command: &mut Command) {
    // SAFETY: the closure makes system calls only and allocates nothing, as the child of a process with
    // several threads must; `SIG_DFL` installs no handler.
    unsafe {
        command.pre_exec(|| {
            for signal in [libc::SIGINT, libc::SIGQUIT, libc::SIGTERM, libc::SIGHUP] {
                if libc::signal(signal, libc::SIG_DFL) == libc::SIG_ERR {
                    return Err(io::Error::last_os_error());
                }
            }
            Ok(())
        });
    }
}

/// Marks all descriptors but the standard ones as closed on exec.
///
/// For a process that is about to become another program: what its caller had open is not its business.
pub(crate) fn close_all_on_exec() -> io::Result<()> {
    let open: Vec<RawFd> = fs::read_dir("/proc/self/fd")?
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .filter(|fd| *fd > 2)
        .collect();
    for fd in open {
        // SAFETY: the borrow lasts for one system call, which changes a flag and neither reads, writes nor
        // closes; the number was open a moment ago, and a closed one is answered with `EBADF`.
        let fd = unsafe { BorrowedFd::borrow_raw(fd) };
        match rustix::io::fcntl_setfd(fd, FdFlags::CLOEXEC) {
            // The directory's own descriptor is closed by now.
            Ok(()) | Err(rustix::io::Errno::BADF) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_that_dies_with_its_parent_runs_like_any_other() {
        let mut command = Command::new("/bin/true");
        die_with_parent(&mut command);
        assert!(command.status().unwrap().success());
    }

    #[test]
    fn an_ignored_signal_is_not_inherited() {
        let mut command = Command::new("/bin/sh");
        command.args(["-c", "trap '' INT; exec \"$0\" -c 'kill -INT $$'", "/bin/sh"]);
        assert!(command.status().unwrap().success(), "the premise: ignored signals are inherited");
        let mut command = Command::new("/bin/sh");
        command.args(["-c", "kill -INT $$"]);
        with_default_signals(&mut command);
        assert!(!command.status().unwrap().success());
    }

    #[test]
    fn descriptors_are_marked() {
        let (left, _right) = std::os::unix::net::UnixStream::pair().unwrap();
        rustix::io::fcntl_setfd(&left, FdFlags::empty()).unwrap();
        close_all_on_exec().unwrap();
        assert_eq!(rustix::io::fcntl_getfd(&left).unwrap(), FdFlags::CLOEXEC);
    }
}
