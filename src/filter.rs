//! Input and output filters: which paths of a recording count.
//!
//! A filter selects what the recording found on its own (where it holds `auto`), and what any of its
//! globs matches, minus what a negative glob matches, whatever the order they are written in.
//!
//! Globs match the bytes of a path, so names that are not UTF-8 are matched like any others. This module
//! reads no directory: [`Filter::walk_roots`] and [`Filter::descends`] tell the engine where to look.
//!
//! ```
//! use vout::filter::Filter;
//! use vout::path::RelPath;
//! use vout::task::{FilterItem, FilterSpec};
//!
//! let glob = |pattern: &str, negative| FilterItem::Glob { pattern: pattern.into(), negative };
//! let spec = FilterSpec(vec![glob("dist/**", false), glob("**/*.map", true)]);
//! let filter = Filter::compile(&spec)?;
//! assert!(filter.selects(RelPath::new("dist/js/a.js").unwrap(), false));
//! assert!(!filter.selects(RelPath::new("dist/js/a.js.map").unwrap(), false));
//! # Ok::<(), vout::filter::FilterError>(())
//! ```

mod base;
mod braces;
mod component;
mod pattern;

use thiserror::Error;

use crate::path::{RelPath, RelPathBuf};
use crate::task::{FilterItem, FilterSpec};

pub use base::{escape, join};
use pattern::Pattern;

/// Longest pattern in bytes, after it was joined with its base.
pub const PATTERN_BYTES_MAX: usize = 4096;

/// Most patterns that the braces of one pattern may stand for.
pub const ALTERNATIVES_MAX: usize = 256;

/// Most components of a pattern.
pub const COMPONENTS_MAX: usize = 60;

/// Where git keeps a repository.
const REPOSITORY: &str = ".git";

/// A filter, ready to match.
#[derive(Debug, Clone)]
pub struct Filter {
    auto: bool,
    positive: Vec<Pattern>,
    negative: Vec<Pattern>,
}

impl Filter {
    /// Compiles the globs of `spec`, whose patterns are relative to the workspace root.
    ///
    /// The specification is taken literally: one without `auto` and without a positive glob selects nothing.
    ///
    /// # Errors
    /// [`FilterError`] with the pattern that is not a glob, or could match outside the workspace.
    pub fn compile(spec: &FilterSpec) -> Result<Self, FilterError> {
        let mut filter = Self { auto: false, positive: Vec::new(), negative: Vec::new() };
        for item in &spec.0 {
            match item {
                FilterItem::Auto => filter.auto = true,
                FilterItem::Glob { pattern, negative } => {
                    let list = if *negative { &mut filter.negative } else { &mut filter.positive };
                    list.extend(compile_pattern(pattern)?);
                }
            }
        }
        Ok(filter)
    }

    /// Returns whether paths that the recording found are selected.
    #[must_use]
    pub fn auto(&self) -> bool {
        self.auto
    }

    /// Returns whether there are globs that select paths which the recording did not find.
    #[must_use]
    pub fn has_positive_globs(&self) -> bool {
        !self.positive.is_empty()
    }

    /// Returns whether `path` counts. `found_automatically` says that the recording holds it.
    ///
    /// A pattern that names a directory selects the directory too, not only what lies below it.
    #[must_use]
    pub fn selects(&self, path: &RelPath, found_automatically: bool) -> bool {
        ((self.auto && found_automatically) || self.positive.iter().any(|glob| glob.matches(path)))
            && !self.excludes(path)
    }

    /// Returns whether a path that the task wrote is an output. The repository's own files are only if a
    /// glob says so: a hit must not put back an old state of the repository.
    #[must_use]
    pub fn selects_output(&self, path: &RelPath) -> bool {
        self.selects(path, path.components().next().is_none_or(|first| first != REPOSITORY))
    }

    /// Returns whether a negative glob matches `path`, so that it never counts.
    ///
    /// A name in a recorded directory listing is not a path of its own in the recording; this tells whether
    /// it should count there.
    #[must_use]
    pub fn excludes(&self, path: &RelPath) -> bool {
        self.negative.iter().any(|glob| glob.matches(path))
    }

    /// Returns whether a positive glob can select anything strictly below the directory `dir`.
    ///
    /// `true` may be a promise too much, `false` never is: a walk may leave such a directory out.
    #[must_use]
    pub fn descends(&self, dir: &RelPath) -> bool {
        self.positive.iter().any(|glob| glob.may_match_below(dir))
            && !self.negative.iter().any(|glob| glob.matches_all_below(dir))
    }

    /// Returns the positive globs, braces expanded, in the order written.
    pub fn positive_globs(&self) -> impl Iterator<Item = &str> {
        self.positive.iter().map(Pattern::text)
    }

    /// Returns the paths at or below which everything lies that positive globs can match: their longest
    /// literal beginnings, sorted, none below another. One may be a file, and need not exist.
    #[must_use]
    pub fn walk_roots(&self) -> Vec<RelPathBuf> {
        let mut prefixes: Vec<_> = self.positive.iter().map(Pattern::literal_prefix).collect();
        prefixes.sort_unstable();
        let mut roots: Vec<RelPathBuf> = Vec::new();
        // `a-b` sorts between `a` and `a/b`, so the one above need not be the neighbour.
        for prefix in prefixes {
            if !roots.iter().any(|root| prefix.starts_with(root)) {
                roots.push(prefix);
            }
        }
        roots
    }
}

fn compile_pattern(text: &str) -> Result<Vec<Pattern>, FilterError> {
    let error = |problem| FilterError { pattern: text.to_owned(), problem };
    if text.len() > PATTERN_BYTES_MAX {
        return Err(error(FilterProblem::TooLong));
    }
    braces::expand(text)
        .and_then(|alternatives| alternatives.into_iter().map(Pattern::parse).collect())
        .map_err(error)
}

/// A pattern that cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("pattern {pattern:?} {problem}")]
pub struct FilterError {
    /// The pattern, as given.
    pub pattern: String,
    /// What is wrong with it.
    pub problem: FilterProblem,
}

impl FilterError {
    /// Returns what to write instead.
    #[must_use]
    pub fn hint(&self) -> Option<&'static str> {
        self.problem.hint()
    }
}

/// What is wrong with a pattern.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum FilterProblem {
    /// Nothing is left of it.
    #[error("is empty")]
    Empty,
    /// It starts with `/`.
    #[error("is absolute")]
    Absolute,
    /// Its `..` lead above the workspace.
    #[error("leads out of the workspace")]
    LeavesWorkspace,
    /// A `.` or `..` whose meaning depends on what matches.
    #[error("has a '.' or '..' behind or within a wildcard")]
    Dots,
    /// `//`.
    #[error("has an empty component")]
    EmptyComponent,
    /// `a**` or `**b`.
    #[error("has '**' next to other characters")]
    DoubleStar,
    /// `[` without `]`.
    #[error("has a '[' without its ']'")]
    UnclosedClass,
    /// A range such as `[z-a]`.
    #[error("has a range in '[…]' that ends before it starts")]
    BackwardRange,
    /// `{` without `}`.
    #[error("has a '{{' without its '}}'")]
    UnclosedBrace,
    /// `}` without `{`.
    #[error("has a '}}' without its '{{'")]
    UnopenedBrace,
    /// A `\` at the end.
    #[error("ends in a lone backslash")]
    DanglingEscape,
    /// A `/` after a `\` or in a class.
    #[error("has a '/' in '[…]' or behind a backslash")]
    HiddenSlash,
    /// A NUL byte.
    #[error("has a NUL byte")]
    Nul,
    /// Longer than [`PATTERN_BYTES_MAX`].
    #[error("is longer than {PATTERN_BYTES_MAX} bytes")]
    TooLong,
    /// More than [`ALTERNATIVES_MAX`].
    #[error("stands for more than {ALTERNATIVES_MAX} alternatives")]
    TooManyAlternatives,
    /// More than [`COMPONENTS_MAX`].
    #[error("has more than {COMPONENTS_MAX} components")]
    TooDeep,
}

impl FilterProblem {
    fn hint(self) -> Option<&'static str> {
        match self {
            Self::Empty => Some("write '**' for everything"),
            Self::Absolute => {
                Some("leave out the first '/', and say base = \"workspace\" for the workspace root")
            }
            Self::LeavesWorkspace => Some("only files inside the workspace can be inputs or outputs"),
            Self::Dots => Some("write '..' only at the beginning, outside braces"),
            Self::DoubleStar => Some("'**' stands alone between slashes: write '**/*.ts' for '**.ts'"),
            Self::UnclosedClass => Some("write '\\[' for the character itself"),
            Self::UnclosedBrace | Self::UnopenedBrace => {
                Some("write '\\{' or '\\}' for the character itself")
            }
            Self::DanglingEscape => Some("write '\\\\' for the character itself"),
            Self::EmptyComponent
            | Self::BackwardRange
            | Self::HiddenSlash
            | Self::Nul
            | Self::TooLong
            | Self::TooManyAlternatives
            | Self::TooDeep => None,
        }
    }
}

#[cfg(test)]
mod tests;
