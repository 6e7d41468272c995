// SPDX-License-Identifier: Apache-2.0
//! Why layers cannot become an image: which layer, which entry, what is wrong.

use std::fmt;
use std::io;

use super::tar::TarProblem;

/// A failed conversion. The output file is then of no use.
#[derive(Debug)]
pub struct Error {
    /// Number of the layer, from 0 at the bottom, where one is to blame.
    pub layer: Option<usize>,
    /// The entry's name as the layer spells it, where one is to blame.
    pub path: Option<Box<[u8]>>,
    /// What is wrong.
    pub problem: Problem,
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(layer) = self.layer {
            write!(f, "layer {layer}: ")?;
        }
        // Names come from strangers and go to terminals.
        if let Some(path) = &self.path {
            write!(f, "{}: ", path.escape_ascii())?;
        }
        self.problem.fmt(f)
    }
}

impl Error {
    /// The next thing to try.
    pub fn advice(&self) -> String {
        let advice = match &self.problem {
            Problem::Read(_) => "pull the image again",
            Problem::Write { source, .. } if source.kind() == io::ErrorKind::StorageFull => "make room on the disk",
            Problem::Write { .. } => "check the disk, and whether it may be written",
            Problem::Tar(TarProblem::Truncated(_) | TarProblem::Header { .. }) => {
                "pull the image again; if that does not help, whoever built it has to"
            }
            Problem::Limit { .. } | Problem::Size { .. } => "an image with less in it: ordinary ones come nowhere near",
            _ => "pull an image without this layer: whoever built it has to mend it",
        };
        advice.into()
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match &self.problem {
            Problem::Read(error) | Problem::Write { source: error, .. } => Some(error),
            Problem::Tar(problem) => Some(problem),
            _ => None,
        }
    }
}

impl From<Problem> for Error {
    fn from(problem: Problem) -> Self {
        Self { layer: None, path: None, problem }
    }
}

/// What is wrong with a layer, or with the place where the image is written.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Problem {
    /// The layer's stream gave an error, which may be the caller's own, such as a wrong digest.
    #[error("cannot read the layer: {0}")]
    Read(io::Error),
    /// The image could not be written.
    #[error("cannot {what}: {source}")]
    Write {
        /// What was refused.
        what: &'static str,
        /// The system's reason; of kind `StorageFull` where the disk is full.
        source: io::Error,
    },
    /// The stream is not a tar archive as it should be.
    #[error("{0}")]
    Tar(#[from] TarProblem),
    /// `..` leads out of the image's root.
    #[error("the {what} leads out of the image")]
    OutsideRoot {
        /// The name itself, or the target of a hard link.
        what: &'static str,
    },
    /// Something that is no directory would need to be one.
    #[error("{} is not a directory", .0.escape_ascii())]
    NotADirectory(Box<[u8]>),
    /// Symbolic links in the path lead to each other, or to more directories than anyone needs.
    #[error("too many symbolic links in the path")]
    SymlinkLoop,
    /// Longer than Linux allows (`NAME_MAX`).
    #[error("a part of the name is longer than 255 bytes")]
    NameTooLong,
    /// Longer than Linux allows (`PATH_MAX`).
    #[error("the {what} is longer than 4095 bytes")]
    PathTooLong {
        /// The name itself, or the target of a link.
        what: &'static str,
    },
    /// The root is a directory, and stays one.
    #[error("the image's root would be something else than a directory")]
    Root,
    /// `.wh.` is followed by nothing, `.` or `..`, or is a directory's name.
    #[error("not a whiteout that the OCI image specification knows")]
    Whiteout,
    /// A hard link to what is not there (any more).
    #[error("a hard link to {}, which does not exist", .0.escape_ascii())]
    LinkTarget(Box<[u8]>),
    /// Linux has no hard links to directories.
    #[error("a hard link to {}, which is a directory", .0.escape_ascii())]
    LinkToDirectory(Box<[u8]>),
    /// A symbolic link leads nowhere.
    #[error("a symbolic link without a target")]
    EmptySymlink,
    /// Linux has 12 bits for the major number and 20 for the minor.
    #[error("no device can have the number {major}:{minor}")]
    Device {
        /// Major number.
        major: u32,
        /// Minor number.
        minor: u32,
    },
    /// An extended attribute that the image cannot hold.
    #[error("extended attribute {}: {problem}", name.escape_ascii())]
    Xattr {
        /// The attribute's full name.
        name: Box<[u8]>,
        /// What is wrong with it.
        problem: &'static str,
    },
    /// More than a limit that was given, see [`Limits`](super::Limits).
    #[error("more than the {limit} {what} allowed")]
    Limit {
        /// What there is too much of.
        what: &'static str,
        /// The limit.
        limit: u64,
    },
    /// Larger than a limit that was given, see [`Limits`](super::Limits).
    #[error("{what} would be larger than the {} allowed", size(*limit))]
    Size {
        /// What is too large.
        what: &'static str,
        /// The limit, in bytes.
        limit: u64,
    },
}

/// A number of bytes as people say it, where it is a round one.
fn size(bytes: u64) -> String {
    let units = [(30, "GiB"), (20, "MiB"), (10, "KiB")];
    match units.into_iter().find(|(bits, _)| bytes > 0 && bytes.trailing_zeros() >= *bits) {
        Some((bits, unit)) => format!("{} {unit}", bytes >> bits),
        None => format!("{bytes} bytes"),
    }
}
