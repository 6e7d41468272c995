// SPDX-License-Identifier: Apache-2.0
//! The host's end: a listening unix socket at `PATH`, and `PATH_PORT` for what the guest connects to.

use std::ffi::CString;
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use super::VsockError;

/// Longest path of a unix socket, in bytes without the final zero (unix(7)).
const MAX_SUN_PATH: usize = 107;
/// Bytes of the longest `_PORT`.
const MAX_SUFFIX: usize = "_4294967295".len();
/// Bytes of the longest `/proc/self/fd/N/`, with descriptors of up to six digits.
const MAX_PREFIX: usize = "/proc/self/fd/999999/".len();
/// Connections that wait to be accepted, also before the guest's driver is up.
const BACKLOG: i32 = 1024;

/// A listening socket and the directory that it lies in.
///
/// The directory is held open so that the guest's connections find `PATH_PORT` wherever the directory is by then. There is
/// no way to connect relative to a descriptor: they go through `/proc/self/fd`, until [`Endpoint::enter_directory`] makes it
/// the working directory. Nothing else is opened by path.
#[derive(Debug)]
pub struct Endpoint {
    listener: OwnedFd,
    directory: File,
    /// Whether it is this process's working directory.
    entered: AtomicBool,
    name: Vec<u8>,
    /// Device and inode of the socket file, so that nobody else's is ever removed.
    identity: (u64, u64),
}

impl Endpoint {
    /// Listens at `path`, with mode 0600. A socket that nobody listens on any more is replaced; nothing else is.
    ///
    /// # Errors
    /// See [`VsockError`].
    pub fn open(path: &Path) -> Result<Self, VsockError> {
        let name = match path.file_name() {
            Some(name) if !path.as_os_str().as_bytes().ends_with(b"/") => name.as_bytes().to_vec(),
            _ => return Err(VsockError::NoName { path: path.into() }),
        };
        if path.as_os_str().len() + MAX_SUFFIX > MAX_SUN_PATH || MAX_PREFIX + name.len() + MAX_SUFFIX > MAX_SUN_PATH {
            return Err(VsockError::TooLong { path: path.into() });
        }
        let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let directory = File::options()
            .read(true)
            .custom_flags(libc::O_PATH | libc::O_DIRECTORY)
            .open(parent)
            .map_err(|source| VsockError::Directory { path: path.into(), directory: parent.into(), source })?;
        remove_stale(path, &directory, &name)?;
        let listen_error = |source| VsockError::Listen { path: path.into(), source };
        let listener = unix_socket().map_err(listen_error)?;
        // A socket's mode before it is bound is that of its file: no moment in which others may connect.
        // SAFETY: the descriptor is open; the call touches no memory.
        check(unsafe { libc::fchmod(listener.as_raw_fd(), 0o600) }).map_err(listen_error)?;
        bind(&listener, path).map_err(|source| match source.raw_os_error() {
            Some(libc::EADDRINUSE) => VsockError::InUse { path: path.into() },
            _ => listen_error(source),
        })?;
        let identity = status(&directory, &name).map(|status| (status.st_dev, status.st_ino)).map_err(listen_error)?;
        let endpoint = Self { listener, directory, entered: AtomicBool::new(false), name, identity };
        // SAFETY: the descriptor is open; the call touches no memory.
        check(unsafe { libc::listen(endpoint.listener.as_raw_fd(), BACKLOG) }).map_err(listen_error)?;
        Ok(endpoint)
    }

    /// The next client that waits; `None` where there is none.
    ///
    /// # Errors
    /// The kernel's, as a rule `EMFILE`.
    pub fn accept(&self) -> io::Result<Option<OwnedFd>> {
        let flags = libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC;
        // SAFETY: null address pointers say that the peer's address is not wanted.
        let fd = unsafe { libc::accept4(self.listener.as_raw_fd(), std::ptr::null_mut(), std::ptr::null_mut(), flags) };
        match own(fd) {
            Ok(fd) => Ok(Some(fd)),
            Err(error) if matches!(error.raw_os_error(), Some(libc::EAGAIN | libc::ECONNABORTED | libc::EINTR)) => {
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }

    /// Connects to whoever listens for the guest on `port`, without waiting.
    ///
    /// # Errors
    /// The kernel's: `ENOENT` and `ECONNREFUSED` where nobody does, `EAGAIN` where the listener's backlog is full.
    pub fn connect(&self, port: u32) -> io::Result<OwnedFd> {
        let mut path = match self.entered.load(Ordering::Relaxed) {
            true => Vec::new(),
            false => format!("/proc/self/fd/{}/", self.directory.as_raw_fd()).into_bytes(),
        };
        path.extend_from_slice(&self.name);
        path.extend_from_slice(format!("_{port}").as_bytes());
        let socket = unix_socket()?;
        connect(&socket, &path)?;
        Ok(socket)
    }

    /// The directory that the sockets lie in.
    pub fn directory(&self) -> &File {
        &self.directory
    }

    /// Makes the directory this process's working directory: from here on, connecting needs neither a `/proc` nor what
    /// lies above the directory.
    ///
    /// # Errors
    /// The kernel's: as a rule the directory may not be searched.
    pub fn enter_directory(&self) -> io::Result<()> {
        // SAFETY: the descriptor is open; the call touches no memory.
        check(unsafe { libc::fchdir(self.directory.as_raw_fd()) })?;
        self.entered.store(true, Ordering::Relaxed);
        Ok(())
    }
}

impl AsRawFd for Endpoint {
    fn as_raw_fd(&self) -> RawFd {
        self.listener.as_raw_fd()
    }
}

impl Drop for Endpoint {
    fn drop(&mut self) {
        let ours = |status: libc::stat| (status.st_dev, status.st_ino) == self.identity;
        if status(&self.directory, &self.name).is_ok_and(ours) {
            // There is nobody left to tell of a failure.
            let _ = unlink(&self.directory, &self.name);
        }
    }
}

/// Makes way for a socket at `path`, where only a stale one stands in it.
fn remove_stale(path: &Path, directory: &File, name: &[u8]) -> Result<(), VsockError> {
    let probe_error = |source| VsockError::Listen { path: path.into(), source };
    let status = match status(directory, name) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        other => other.map_err(probe_error)?,
    };
    if status.st_mode & libc::S_IFMT != libc::S_IFSOCK {
        return Err(VsockError::NotASocket { path: path.into() });
    }
    let socket = unix_socket().map_err(probe_error)?;
    match connect(&socket, path.as_os_str().as_bytes()) {
        Err(error) if error.raw_os_error() == Some(libc::ECONNREFUSED) => {
            unlink(directory, name).map_err(|source| VsockError::Stale { path: path.into(), source })
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => Err(probe_error(error)),
        // Connected, or its backlog is full, or it is no stream socket: somebody is there.
        _ => Err(VsockError::InUse { path: path.into() }),
    }
}

fn check(result: i32) -> io::Result<()> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

fn own(fd: RawFd) -> io::Result<OwnedFd> {
    check(fd)?;
    // SAFETY: the kernel has just returned it, and nothing else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

fn unix_socket() -> io::Result<OwnedFd> {
    // SAFETY: the call touches no memory.
    own(unsafe { libc::socket(libc::AF_UNIX, libc::SOCK_STREAM | libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC, 0) })
}

fn address(path: &[u8]) -> io::Result<(libc::sockaddr_un, libc::socklen_t)> {
    let mut address = libc::sockaddr_un { sun_family: 0, sun_path: [0; 108] };
    address.sun_family = libc::sa_family_t::try_from(libc::AF_UNIX).unwrap_or_default();
    if path.len() > MAX_SUN_PATH || path.contains(&0) {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    for (to, from) in address.sun_path.iter_mut().zip(path) {
        *to = from.cast_signed();
    }
    let length = std::mem::offset_of!(libc::sockaddr_un, sun_path) + path.len() + 1;
    Ok((address, libc::socklen_t::try_from(length).map_err(|_| io::ErrorKind::InvalidInput)?))
}

fn connect(socket: &OwnedFd, path: &[u8]) -> io::Result<()> {
    let (address, length) = address(path)?;
    // SAFETY: `address` is a live `sockaddr_un` of at least `length` bytes.
    check(unsafe { libc::connect(socket.as_raw_fd(), (&raw const address).cast(), length) })
}

fn bind(socket: &OwnedFd, path: &Path) -> io::Result<()> {
    let (address, length) = address(path.as_os_str().as_bytes())?;
    // SAFETY: `address` is a live `sockaddr_un` of at least `length` bytes.
    check(unsafe { libc::bind(socket.as_raw_fd(), (&raw const address).cast(), length) })
}

fn status(directory: &File, name: &[u8]) -> io::Result<libc::stat> {
    let name = CString::new(name)?;
    let mut status = std::mem::MaybeUninit::uninit();
    // SAFETY: `name` is NUL-terminated and `status` has room for what the kernel writes.
    check(unsafe {
        libc::fstatat(directory.as_raw_fd(), name.as_ptr(), status.as_mut_ptr(), libc::AT_SYMLINK_NOFOLLOW)
    })?;
    // SAFETY: the call succeeded, so the kernel has filled it.
    Ok(unsafe { status.assume_init() })
}

fn unlink(directory: &File, name: &[u8]) -> io::Result<()> {
    let name = CString::new(name)?;
    // SAFETY: `name` is NUL-terminated.
    check(unsafe { libc::unlinkat(directory.as_raw_fd(), name.as_ptr(), 0) })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
    use std::os::unix::net::{UnixListener, UnixStream};

    #[test]
    fn the_socket_is_private_and_goes_with_its_owner() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("v.sock");
        let endpoint = Endpoint::open(&path).unwrap();
        assert_eq!(path.metadata().unwrap().permissions().mode() & 0o7777, 0o600);
        assert!(endpoint.accept().unwrap().is_none());
        let _client = UnixStream::connect(&path).unwrap();
        assert!(endpoint.accept().unwrap().is_some());
        drop(endpoint);
        assert!(!path.exists());
    }

    #[test]
    fn a_stale_socket_is_replaced_and_a_live_one_is_not() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("v.sock");
        drop(UnixListener::bind(&path).unwrap());
        let endpoint = Endpoint::open(&path).unwrap();
        assert!(matches!(Endpoint::open(&path), Err(VsockError::InUse { .. })));
        UnixStream::connect(&path).unwrap();
        drop(endpoint);
    }

    #[test]
    fn nothing_but_a_socket_is_ever_removed() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("file");
        std::fs::write(&file, "precious").unwrap();
        let link = directory.path().join("link");
        symlink("nowhere", &link).unwrap();
        for path in [&file, &link, &directory.path().into()] {
            let result = Endpoint::open(path);
            assert!(matches!(result, Err(VsockError::NotASocket { .. })), "{result:?}");
        }
        assert_eq!(std::fs::read(&file).unwrap(), b"precious");
        assert!(link.is_symlink());
    }

    #[test]
    fn a_socket_that_took_our_place_stays() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("v.sock");
        let endpoint = Endpoint::open(&path).unwrap();
        // Made beside ours first, else it could get the same inode.
        let _other = UnixListener::bind(directory.path().join("other")).unwrap();
        std::fs::rename(directory.path().join("other"), &path).unwrap();
        let inode = path.metadata().unwrap().ino();
        drop(endpoint);
        assert_eq!(path.metadata().unwrap().ino(), inode);
    }

    #[test]
    fn bad_paths_are_told_apart() {
        let directory = tempfile::tempdir().unwrap();
        let result = Endpoint::open(&directory.path().join("missing/v.sock"));
        assert!(matches!(result, Err(VsockError::Directory { .. })), "{result:?}");
        let result = Endpoint::open(&directory.path().join("x".repeat(100)));
        assert!(matches!(result, Err(VsockError::TooLong { .. })), "{result:?}");
        for path in ["/", "", "dir/..", "dir/"] {
            let result = Endpoint::open(Path::new(path));
            assert!(matches!(result, Err(VsockError::NoName { .. })), "{path}: {result:?}");
        }
        let file = directory.path().join("file");
        std::fs::write(&file, "").unwrap();
        let result = Endpoint::open(&file.join("v.sock"));
        assert!(matches!(result, Err(VsockError::Directory { .. })), "{result:?}");
    }

    #[test]
    fn every_allowed_name_also_takes_the_longest_port() {
        let directory = tempfile::Builder::new().prefix("v").tempdir_in("/tmp").unwrap();
        let room = MAX_SUN_PATH - MAX_SUFFIX - directory.path().as_os_str().len() - 1;
        let path = directory.path().join("x".repeat(room.min(MAX_SUN_PATH - MAX_SUFFIX - MAX_PREFIX)));
        let endpoint = Endpoint::open(&path).unwrap();
        assert_eq!(endpoint.connect(u32::MAX).unwrap_err().kind(), io::ErrorKind::NotFound);
        let _listener = UnixListener::bind(format!("{}_4294967295", path.display())).unwrap();
        endpoint.connect(u32::MAX).unwrap();
    }

    #[test]
    fn the_guest_reaches_its_listener_after_the_directory_has_moved() {
        let parent = tempfile::tempdir().unwrap();
        let (before, after) = (parent.path().join("before"), parent.path().join("after"));
        std::fs::create_dir(&before).unwrap();
        let endpoint = Endpoint::open(&before.join("v.sock")).unwrap();
        std::fs::rename(&before, &after).unwrap();
        let _listener = UnixListener::bind(after.join("v.sock_5")).unwrap();
        endpoint.connect(5).unwrap();
        drop(endpoint);
        assert!(!after.join("v.sock").exists());
    }
}
