//! Where files come from.
//!
//! The loader never touches the disk: whoever calls it hands in a [`FileSource`]. [`MemorySource`] serves tests
//! and tools that hold the files already.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// Why a file could not be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ReadError {
    /// There is no such file.
    #[error("no such file")]
    NotFound,
    /// It is a directory.
    #[error("is a directory")]
    Directory,
    /// Anything else, in the words of the system.
    #[error("{0}")]
    Other(String),
}

/// What a path leads to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PathKind {
    /// Nothing.
    Missing,
    /// A file.
    File,
    /// A directory.
    Directory,
}

/// Read access to files. Paths are absolute.
pub trait FileSource {
    /// The content of a file.
    ///
    /// # Errors
    /// When the file is absent, a directory or unreadable.
    fn read(&self, path: &Path) -> Result<Vec<u8>, ReadError>;

    /// What a path leads to.
    fn kind(&self, path: &Path) -> PathKind;

    /// The path with the symbolic links of its existing part resolved; the path itself when nothing is known
    /// about links.
    fn canonical(&self, path: &Path) -> PathBuf {
        path.to_owned()
    }

    /// What was handed over on standard input, for the file name `-`.
    ///
    /// # Errors
    /// When there is none.
    fn stdin(&self) -> Result<Vec<u8>, ReadError> {
        Err(ReadError::NotFound)
    }
}

/// Files in memory.
#[derive(Clone, Debug, Default)]
pub struct MemorySource {
    files: BTreeMap<PathBuf, Vec<u8>>,
}

impl MemorySource {
    /// No files.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a file; its directories exist by implication.
    #[must_use]
    pub fn with(mut self, path: impl Into<PathBuf>, content: impl Into<Vec<u8>>) -> Self {
        self.files.insert(path.into(), content.into());
        self
    }
}

impl FileSource for MemorySource {
    fn read(&self, path: &Path) -> Result<Vec<u8>, ReadError> {
        self.files.get(path).cloned().ok_or(match self.kind(path) {
            PathKind::Directory => ReadError::Directory,
            _ => ReadError::NotFound,
        })
    }

    fn kind(&self, path: &Path) -> PathKind {
        if self.files.contains_key(path) {
            PathKind::File
        } else if self.files.keys().any(|file| file.starts_with(path)) {
            PathKind::Directory
        } else {
            PathKind::Missing
        }
    }
}
