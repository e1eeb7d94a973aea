//! The one place where a core error becomes an `errno`.

use rustix::io::Errno;
use vout::fs::FsError;

/// Returns the `errno` that says `error` to a process.
pub(crate) fn errno_of(error: &FsError) -> Errno {
    match error {
        FsError::NotFound => Errno::NOENT,
        FsError::AlreadyExists => Errno::EXIST,
        FsError::NotADirectory => Errno::NOTDIR,
        FsError::IsADirectory => Errno::ISDIR,
        FsError::DirectoryNotEmpty => Errno::NOTEMPTY,
        FsError::InvalidArgument => Errno::INVAL,
        FsError::NotPermitted => Errno::PERM,
        // EOPNOTSUPP, not ENOSYS: the kernel takes ENOSYS for "never ask again".
        FsError::NotSupported => Errno::OPNOTSUPP,
        // The kernel answers ESTALE on open by looking the path up again.
        FsError::Stale => Errno::STALE,
        // Never wrong bytes, never success.
        FsError::Corrupt(_) => Errno::IO,
        // ENOSYS from the operating system would switch the operation off for the whole session.
        FsError::Os(error) => match Errno::from_io_error(error) {
            Some(Errno::NOSYS) => Errno::OPNOTSUPP,
            Some(errno) => errno,
            None => Errno::IO,
        },
    }
}

#[cfg(test)]
mod tests {
    use std::io;

    use super::*;

    #[test]
    fn errors_without_a_number_and_damage_are_eio() {
        assert_eq!(errno_of(&FsError::Corrupt("frame 3".into())), Errno::IO);
        assert_eq!(errno_of(&FsError::Os(io::Error::other("x"))), Errno::IO);
    }

    #[test]
    fn numbers_of_the_operating_system_pass_through_but_for_enosys() {
        let of = |errno: Errno| errno_of(&FsError::Os(errno.into()));
        assert_eq!(of(Errno::NOSPC), Errno::NOSPC);
        assert_eq!(of(Errno::NOSYS), Errno::OPNOTSUPP);
    }
}
