// SPDX-License-Identifier: Apache-2.0
//! Results in a directory: a page, all of it for programs, and each run for a spreadsheet.

use std::path::Path;

use coracle::failure::Failure;

/// Makes the directory, before minutes are spent.
///
/// # Errors
/// It cannot be made.
pub fn prepare(directory: Option<&Path>) -> Result<(), Failure> {
    let Some(directory) = directory else { return Ok(()) };
    let what = || format!("cannot write to {}", directory.display());
    std::fs::create_dir_all(directory).map_err(|error| Failure::new(what(), error, "another --report"))
}

/// Writes these files into it.
///
/// # Errors
/// One cannot be written.
pub fn save(directory: &Path, files: &[(&str, String)]) -> Result<(), Failure> {
    for (name, content) in files {
        let path = directory.join(name);
        let why = |error| {
            Failure::new(format!("cannot write {}", path.display()), error, "another --report; the result is above")
        };
        std::fs::write(&path, content).map_err(why)?;
    }
    Ok(())
}
