// SPDX-License-Identifier: Apache-2.0
//! Images in directories and files: the OCI's image layout, as a directory or a tar archive, and Docker's archive.
//!
//! All of it is as untrusted as what a registry sends: each blob is verified while it is copied into the store, and names
//! inside an archive are looked up among its entries, never on the host.

mod entries;
mod export;
mod import;
mod source;

use std::io;
use std::path::Path;

use super::{ImageError, Problem};

pub use import::Imported;
pub use source::{Kind, Source};

/// For `map_err`: an error about a file that a user named.
fn file(path: &Path) -> impl FnOnce(io::Error) -> Problem {
    let path = path.to_owned();
    move |error| Problem::File { path, error }
}

/// Something about an archive that makes no sense.
fn bad(reason: impl Into<String>) -> Problem {
    Problem::Archive { reason: reason.into() }
}

/// For `map_err`: gives a problem the source it is about.
fn cannot_read(path: &Path) -> impl FnOnce(Problem) -> ImageError {
    ImageError::new(format!("cannot read images from {}", path.display()))
}

#[cfg(test)]
#[path = "archive_test.rs"]
mod tests;
