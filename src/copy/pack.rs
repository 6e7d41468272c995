// SPDX-License-Identifier: Apache-2.0
//! Files of the host as an archive for a container's agent.

use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};

use tar::Builder;

use super::NAME;

/// Writes a file, or a directory with all that is in it, into `to`, under [`NAME`]. Links are taken as such; sockets, which
/// are of no use to others, are left out.
///
/// # Errors
/// A file cannot be read, or `to` takes no more.
pub fn pack(path: &Path, to: impl Write) -> io::Result<()> {
    let mut builder = Builder::new(to);
    builder.follow_symlinks(false);
    // The agent knows nothing of GNU's ways to leave holes out.
    builder.sparse(false);
    add(&mut builder, path, &PathBuf::from(NAME))?;
    builder.into_inner()?.flush()
}

fn add(builder: &mut Builder<impl Write>, path: &Path, name: &Path) -> io::Result<()> {
    let kind = fs::symlink_metadata(path).map_err(|error| named(path, error))?.file_type();
    if kind.is_socket() {
        return Ok(());
    }
    builder.append_path_with_name(path, name).map_err(|error| named(path, error))?;
    if kind.is_dir() {
        let entries = fs::read_dir(path).and_then(Iterator::collect::<io::Result<Vec<_>>>);
        let mut entries = entries.map_err(|error| named(path, error))?;
        entries.sort_by_key(fs::DirEntry::file_name);
        for entry in entries {
            add(builder, &entry.path(), &name.join(entry.file_name()))?;
        }
    }
    Ok(())
}

/// A pipe that is closed is nobody's file.
fn named(path: &Path, error: io::Error) -> io::Error {
    match error.kind() {
        io::ErrorKind::BrokenPipe => error,
        kind => io::Error::new(kind, format!("{}: {error}", path.display())),
    }
}
