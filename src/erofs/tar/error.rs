// SPDX-License-Identifier: Apache-2.0
//! What can be wrong with a tar archive.

/// Why an archive cannot be read on. Names in it come from the archive and are escaped when shown.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TarProblem {
    /// The stream ends early.
    #[error("the archive ends in the middle of {0}")]
    Truncated(&'static str),
    /// Neither a header nor the end.
    #[error("no tar header, or a damaged one, at byte {offset}: {problem}")]
    Header {
        /// Place of the header in the unpacked layer.
        offset: u64,
        /// What is wrong with it.
        problem: &'static str,
    },
    /// A number that is none, or out of range.
    #[error("the {0} in the tar header is out of range")]
    Number(&'static str),
    /// A kind of entry that has no place in a layer.
    #[error("tar entries of type {:?} are not supported", char::from(*.0))]
    Type(u8),
    /// A name or extended header larger than any real one.
    #[error("a tar {what} header of {size} bytes, more than the {limit} allowed")]
    ExtensionSize {
        /// Which kind of header.
        what: &'static str,
        /// Size that it claims.
        size: u64,
        /// Most that is read.
        limit: u64,
    },
    /// A PAX record that is none.
    #[error("a damaged PAX record")]
    Pax,
    /// A PAX record with a value that cannot be.
    #[error("the PAX record {} has a value that cannot be", .0.escape_ascii())]
    PaxValue(Box<[u8]>),
    /// A sparse file's map contradicts itself.
    #[error("the map of the sparse file is wrong: {0}")]
    Sparse(&'static str),
}
