// SPDX-License-Identifier: Apache-2.0
//! A file that is read or written without blocking, and without others noticing.
//!
//! `O_NONBLOCK` belongs to an open file description, and a terminal's is shared with the shell and everything that it
//! runs. So the file is opened anew where that is possible; where it is not, the flag is taken back at the end.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};

/// Device number of the multiplexer of pseudoterminals: to open a master side again makes another terminal.
const PTMX: (u32, u32) = (5, 2);

/// A file whose reads or writes end at once.
#[derive(Debug)]
pub struct NonBlocking {
    file: File,
    /// Status flags to set back at the end.
    restore: Option<i32>,
}

impl NonBlocking {
    /// Makes writes to `file` end at once. To a regular file they always do, as far as the kernel is concerned.
    ///
    /// # Errors
    /// The kernel's, where it refuses the flag.
    pub fn for_writing(file: File) -> io::Result<Self> {
        Self::new(file, OpenOptions::new().write(true))
    }

    /// Makes reads of `file` end at once.
    ///
    /// # Errors
    /// The kernel's, where it refuses the flag.
    pub fn for_reading(file: File) -> io::Result<Self> {
        Self::new(file, OpenOptions::new().read(true))
    }

    fn new(file: File, access: &mut OpenOptions) -> io::Result<Self> {
        let metadata = file.metadata()?;
        let kind = metadata.file_type();
        if kind.is_file() {
            return Ok(Self { file, restore: None });
        }
        let master = kind.is_char_device() && (libc::major(metadata.rdev()), libc::minor(metadata.rdev())) == PTMX;
        if !kind.is_socket() && !master {
            let flags = libc::O_NONBLOCK | libc::O_NOCTTY;
            let path = format!("/proc/self/fd/{}", file.as_raw_fd());
            // Fails where another user owns the terminal, or a pipe's reader has gone.
            if let Ok(file) = access.custom_flags(flags).open(path) {
                return Ok(Self { file, restore: None });
            }
        }
        let flags = status_flags(&file)?;
        set_status_flags(&file, flags | libc::O_NONBLOCK)?;
        let restore = (flags & libc::O_NONBLOCK == 0).then_some(flags);
        Ok(Self { file, restore })
    }
}

impl Read for NonBlocking {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.file.read(buffer)
    }
}

impl Write for NonBlocking {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.file.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

impl AsRawFd for NonBlocking {
    fn as_raw_fd(&self) -> RawFd {
        self.file.as_raw_fd()
    }
}

impl Drop for NonBlocking {
    fn drop(&mut self) {
        if let Some(flags) = self.restore {
            // Nothing is left to try where this fails.
            let _ = set_status_flags(&self.file, flags);
        }
    }
}

fn status_flags(file: &File) -> io::Result<i32> {
    // SAFETY: F_GETFL takes no pointer, and the descriptor is open.
    match unsafe { libc::fcntl(file.as_raw_fd(), libc::F_GETFL) } {
        -1 => Err(io::Error::last_os_error()),
        flags => Ok(flags),
    }
}

fn set_status_flags(file: &File, flags: i32) -> io::Result<()> {
    // SAFETY: F_SETFL takes no pointer, and the descriptor is open.
    match unsafe { libc::fcntl(file.as_raw_fd(), libc::F_SETFL, flags) } {
        -1 => Err(io::Error::last_os_error()),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::OwnedFd;
    use std::os::unix::net::UnixStream;

    fn fill(file: &mut NonBlocking) -> io::ErrorKind {
        loop {
            if let Err(error) = file.write(&[0; 4096]) {
                return error.kind();
            }
        }
    }

    #[test]
    fn a_full_pipe_does_not_block_and_its_other_users_do_not_notice() {
        let (_reader, writer) = io::pipe().unwrap();
        let other = File::from(OwnedFd::from(writer.try_clone().unwrap()));
        let mut file = NonBlocking::for_writing(File::from(OwnedFd::from(writer))).unwrap();
        assert_eq!(fill(&mut file), io::ErrorKind::WouldBlock);
        assert_eq!(status_flags(&other).unwrap() & libc::O_NONBLOCK, 0);
    }

    #[test]
    fn an_empty_pipe_does_not_block_its_reader() {
        let (reader, mut writer) = io::pipe().unwrap();
        let mut file = NonBlocking::for_reading(File::from(OwnedFd::from(reader))).unwrap();
        let mut buffer = [0; 8];
        assert_eq!(file.read(&mut buffer).unwrap_err().kind(), io::ErrorKind::WouldBlock);
        writer.write_all(b"in").unwrap();
        assert_eq!((file.read(&mut buffer).unwrap(), &buffer[..2]), (2, &b"in"[..]));
    }

    #[test]
    fn a_socket_gets_its_flags_back() {
        let (_reader, writer) = UnixStream::pair().unwrap();
        let other = File::from(OwnedFd::from(writer.try_clone().unwrap()));
        let mut file = NonBlocking::for_writing(File::from(OwnedFd::from(writer))).unwrap();
        assert_eq!(fill(&mut file), io::ErrorKind::WouldBlock);
        assert_ne!(status_flags(&other).unwrap() & libc::O_NONBLOCK, 0);
        drop(file);
        assert_eq!(status_flags(&other).unwrap() & libc::O_NONBLOCK, 0);
    }

    #[test]
    fn a_terminal_master_stays_the_same_terminal() {
        let master = OpenOptions::new().read(true).write(true).custom_flags(libc::O_NOCTTY).open("/dev/ptmx").unwrap();
        let descriptor = master.as_raw_fd();
        let file = NonBlocking::for_writing(master).unwrap();
        assert_eq!(file.as_raw_fd(), descriptor);
    }
}
