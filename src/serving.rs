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

/// How mounts are to be served, as far as somebody said.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Wishes {
    /// How requests come.
    pub transport: Transport,
    /// Whether the kernel may read and write backing files directly; `None` where it is for the kind of mount to say.
    pub passthrough: Option<bool>,
    /// Whether extended attributes of the `user.` namespace are shown and kept.
    pub xattrs: bool,
    /// Whether somebody promises that the workspace is changed through the live mount only.
    pub exclusive: bool,
}

impl Wishes {
    /// Returns how a view is served: a task writes, and that is faster directly.
    #[must_use]
    pub fn for_view(self) -> Serving {
        self.with_passthrough(true)
    }

    /// Returns how a live mount is served: people's tools read many small files again and again, and that is faster
    /// where the kernel need not tell of each open.
    #[must_use]
    pub fn for_live_mount(self) -> Serving {
        self.with_passthrough(false)
    }

    fn with_passthrough(self, by_default: bool) -> Serving {
        let Self { transport, passthrough, xattrs, exclusive } = self;
        Serving { transport, passthrough: passthrough.unwrap_or(by_default), xattrs, exclusive }
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
    /// Whether the workspace is changed through the live mount only, so that what nobody changed through it need not be
    /// looked at. It says nothing to a view, and nothing where the mount lies elsewhere or passes files through.
    pub exclusive: bool,
}

impl Default for Serving {
    fn default() -> Self {
        Self { transport: Transport::Auto, passthrough: true, xattrs: false, exclusive: false }
    }
}
