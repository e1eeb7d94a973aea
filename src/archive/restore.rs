//! Writing archived files out, eagerly.
//!
//! Archives may come from anybody. Everything happens below one directory descriptor, no symbolic link is
//! followed on the way, and files appear under their names complete or not at all.
