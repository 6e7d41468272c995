// SPDX-License-Identifier: Apache-2.0
//! Files with holes, copied with their holes.

use std::fs::File;
use std::io;

use rustix::fs::{SeekFrom, copy_file_range, ioctl_ficlone, seek};
use rustix::io::Errno;

/// Bytes copied by one system call.
const PIECE: u64 = 1 << 30;

/// Copies all of `from` into `to`, which is empty: at once where the file system can share blocks (`ioctl_ficlone(2)`),
/// else all that is in no hole.
///
/// # Errors
/// The system's, such as a full disk.
pub fn copy(from: &File, to: &File) -> io::Result<()> {
    match ioctl_ficlone(to, from) {
        Ok(()) => return Ok(()),
        // Another file system, or one that cannot.
        Err(Errno::OPNOTSUPP | Errno::XDEV | Errno::INVAL | Errno::NOTTY) => {}
        Err(error) => return Err(error.into()),
    }
    let length = from.metadata()?.len();
    to.set_len(length)?;
    let mut end = 0;
    while let Some(start) = next(from, SeekFrom::Data(end))? {
        end = next(from, SeekFrom::Hole(start))?.unwrap_or(length);
        copy_range(from, to, start, end)?;
    }
    Ok(())
}

/// Where the next piece, or the next hole, begins; `None` behind the last.
fn next(file: &File, place: SeekFrom) -> io::Result<Option<u64>> {
    match seek(file, place) {
        Ok(found) => Ok(Some(found)),
        Err(Errno::NXIO) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

fn copy_range(from: &File, to: &File, start: u64, end: u64) -> io::Result<()> {
    let (mut input, mut output) = (start, start);
    while input < end {
        let length = usize::try_from((end - input).min(PIECE)).unwrap_or(usize::MAX);
        if copy_file_range(from, Some(&mut input), to, Some(&mut output), length)? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{FileExt, MetadataExt};

    use super::*;

    #[test]
    fn holes_stay_holes_and_the_rest_is_the_same() {
        let folder = tempfile::tempdir().unwrap();
        let file = |name| {
            let path = folder.path().join(name);
            File::options().read(true).write(true).create_new(true).open(path).unwrap()
        };
        let (from, to, empty) = (file("from"), file("to"), file("empty"));
        from.set_len(64 << 20).unwrap();
        for place in [0, 5 << 20, (64 << 20) - 4096] {
            from.write_all_at(&[7; 4096], place).unwrap();
        }
        copy(&from, &to).unwrap();
        let read = |file: &File| {
            let mut bytes = vec![1; 64 << 20];
            file.read_exact_at(&mut bytes, 0).unwrap();
            bytes
        };
        assert!(read(&from) == read(&to));
        let (size, blocks) = (to.metadata().unwrap().len(), to.metadata().unwrap().blocks());
        assert!(size == 64 << 20 && blocks * 512 < 1 << 20, "{size} {blocks}");
        let copied = file("copied");
        copy(&empty, &copied).unwrap();
        assert_eq!(copied.metadata().unwrap().len(), 0);
    }
}
