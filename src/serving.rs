//! How mounts are served: what people may choose, and what is chosen for them.

use serde::{Deserialize, Serialize};

/// How the kernel's requests reach the daemon.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum Transport {
    /// The ring where the kernel offers it, else the device.
    #[default]
    Auto,
    /// FUSE over io_uring: requests are served on the CPU that makes them.
    Uring,
    /// Reads and writes of `/dev/fuse`.
    Dev,
}

impl Transport {
    /// The words for it, in options and in `vout.toml`.
    pub const WORDS: &'static [(&'static str, Self)] =
        &[("auto", Self::Auto), ("uring", Self::Uring), ("dev", Self::Dev)];

    /// Returns the transport that `word` names.
    #[must_use]
    pub fn from_word(word: &str) -> Option<Self> {
        Self::WORDS.iter().find(|(known, _)| *known == word).map(|(_, transport)| *transport)
    }
}

/// How a view or a live mount is served.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Serving {
    /// How requests come.
    pub transport: Transport,
    /// Whether the kernel may read and write backing files directly, where it and the user's rights allow.
    pub passthrough: bool,
    /// Whether extended attributes of the `user.` namespace are shown and kept.
    pub xattrs: bool,
}

impl Default for Serving {
    fn default() -> Self {
        Self { transport: Transport::Auto, passthrough: true, xattrs: false }
    }
}
