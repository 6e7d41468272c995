// SPDX-License-Identifier: Apache-2.0
//! A virtiofsd process, as its owner sees it: it shows one directory, or one file, to one VM, and never outlives its
//! owner.
//!
//! It is what a hostile guest attacks next to the VMM, and what it sees is decided before it runs: in a mount namespace of
//! its own the directory, or a directory with nothing but the file, is mounted on a place of ours, read-only if the guest
//! may not write, and only that is shared. Without root all this, and virtiofsd, happens in a user namespace, in which
//! this user is root and there is nobody else.

use std::ffi::{CStr, CString};
use std::fs;
use std::io::{self, BufRead, BufReader, Read};
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::UnixListener;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStderr, Command, Stdio};
use std::thread;

use super::devices::virtio::fs::FsConfig;
use super::guest_log::guest_warn;
use crate::failure::Failure;

/// Name of the single file in what is shared.
pub const FILE: &str = "file";
/// Where distributions have the program, besides the search path: virtiofsd's own package, then Debian 12's QEMU.
const PLACES: [&str; 3] = ["/usr/libexec/virtiofsd", "/usr/lib/virtiofsd", "/usr/lib/qemu/virtiofsd"];
/// Programs of both lines understand these: that of QEMU, in C, and the later one in Rust. Attributes and names are kept
/// for a second, as is usual with network file systems; without that no file could be mapped and shared.
const OPTIONS: &str = "cache=auto,xattr,sandbox=namespace,log_level=warn";

/// What is shared.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Share {
    /// What the guest calls it.
    pub tag: String,
    /// A directory, or a file.
    pub source: PathBuf,
    /// The guest cannot write there.
    pub read_only: bool,
}

/// A virtiofsd that runs; it ends when this is dropped, or with this process.
#[derive(Debug)]
pub struct Virtiofsd {
    child: Child,
    tag: String,
    socket: PathBuf,
    place: PathBuf,
    is_file: bool,
}

impl Virtiofsd {
    /// Starts one. Its socket is made in `directory`, under the tag's name. To be called by a thread that lives as long as
    /// the result: the kernel kills virtiofsd when it ends.
    ///
    /// # Errors
    /// There is no virtiofsd, or nothing to share. What goes wrong in it later shows at its socket.
    pub fn start(share: &Share, directory: &Path) -> Result<Self, Failure> {
        let what = || format!("cannot share {} with the guest", share.source.display());
        let program = program().ok_or_else(|| {
            let why = "the program virtiofsd is not installed";
            Failure::new(what(), why, "`apt-get install qemu-system-common`, or virtiofsd in later releases")
        })?;
        let failed = |error: io::Error| Failure::new(what(), error, "another directory; `coracle doctor`");
        let is_file = !fs::metadata(&share.source).map_err(failed)?.is_dir();
        let (socket, place) = (directory.join(format!("{}.fs", share.tag)), directory.join(&share.tag));
        fs::create_dir(&place).map_err(failed)?;
        let stage = Stage::new(share, &place, is_file).map_err(failed)?;
        let listener = UnixListener::bind(&socket).map_err(failed)?;
        let fd = listener.as_raw_fd();
        let mut command = Command::new(program);
        command.arg(format!("--fd={fd}")).arg("--rlimit-nofile=0").arg("-f");
        command.arg("-o").arg(format!("source={},{OPTIONS}", place.display()));
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped()).current_dir("/");
        // A Ctrl-C on our terminal is not for it.
        command.process_group(0);
        // SAFETY: between fork and exec only system calls are made, on strings that are there already; `listener` is open
        // until after the spawn.
        unsafe {
            command.pre_exec(move || stage.set(fd));
        }
        let mut child = command.spawn().map_err(failed)?;
        if let Some(words) = child.stderr.take() {
            let tag = share.tag.clone();
            thread::Builder::new().name("virtiofsd".into()).spawn(move || pass_on(words, &tag)).map_err(failed)?;
        }
        Ok(Self { child, tag: share.tag.clone(), socket, place, is_file })
    }

    /// The device that it serves.
    pub fn config(&self) -> FsConfig {
        FsConfig { tag: self.tag.clone(), socket: self.socket.clone() }
    }

    /// Whether what is shared is a directory with one file in it, [`FILE`].
    pub fn is_file(&self) -> bool {
        self.is_file
    }

    /// Process number.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }
}

impl Drop for Virtiofsd {
    fn drop(&mut self) {
        // All fail only where there is nothing left to do.
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = fs::remove_file(&self.socket);
        let _ = fs::remove_dir(&self.place);
    }
}

/// Longest line of virtiofsd's that is passed on.
const MAX_LINE: u64 = 1024;
/// What it says whenever its VM ends.
const FAREWELL: [&str; 2] = ["fv_remove_watch: TODO!", "virtio_loop: Unexpected poll revents"];

/// Logs what it says, at a rate that its guest cannot choose.
fn pass_on(words: ChildStderr, tag: &str) {
    let (mut words, mut line) = (BufReader::new(words), Vec::new());
    while words.by_ref().take(MAX_LINE).read_until(b'\n', &mut line).is_ok_and(|count| count > 0) {
        let text = String::from_utf8_lossy(&line);
        let text = text.trim();
        match FAREWELL.iter().any(|farewell| text.starts_with(farewell)) {
            true => log::debug!("virtiofsd of file system `{tag}`: {text}"),
            false => guest_warn(format_args!("virtiofsd of file system `{tag}`: {}", text.escape_default())),
        }
        line.clear();
    }
}

/// The program: CORACLE_VIRTIOFSD says which, or the search path, or distributions' habits.
pub fn program() -> Option<PathBuf> {
    if let Some(path) = std::env::var_os("CORACLE_VIRTIOFSD") {
        return Some(path.into());
    }
    let paths = std::env::var_os("PATH").unwrap_or_default();
    let in_path = std::env::split_paths(&paths).map(|directory| directory.join("virtiofsd"));
    in_path.chain(PLACES.map(PathBuf::from)).find(|path| path.is_file())
}

/// What is done between fork and exec, with all that it takes.
struct Stage {
    owner: libc::pid_t,
    source: CString,
    place: CString,
    /// Where a single file goes.
    file: Option<CString>,
    read_only: bool,
    /// Without root: files of `/proc` and what is written there.
    identities: Option<[(&'static CStr, String); 3]>,
}

impl Stage {
    fn new(share: &Share, place: &Path, is_file: bool) -> io::Result<Self> {
        let c_string = |path: &Path| CString::new(path.as_os_str().as_bytes()).map_err(io::Error::from);
        // SAFETY: these take nothing and cannot fail.
        let (user, group, owner) = unsafe { (libc::geteuid(), libc::getegid(), libc::getpid()) };
        let identities = (user != 0).then(|| {
            let line = |id: u32| format!("0 {id} 1");
            [
                (c"/proc/self/setgroups", "deny".to_owned()),
                (c"/proc/self/uid_map", line(user)),
                (c"/proc/self/gid_map", line(group)),
            ]
        });
        Ok(Self {
            owner,
            source: c_string(&share.source)?,
            place: c_string(place)?,
            file: is_file.then(|| c_string(&place.join(FILE))).transpose()?,
            read_only: share.read_only,
            identities,
        })
    }

    /// Calls nothing that is not async-signal-safe.
    fn set(&self, listener: i32) -> io::Result<()> {
        // SAFETY: fcntl, unshare, prctl and getppid take numbers only.
        unsafe {
            check(libc::fcntl(listener, libc::F_SETFD, 0))?;
            let own_users = if self.identities.is_some() { libc::CLONE_NEWUSER } else { 0 };
            check(libc::unshare(libc::CLONE_NEWNS | own_users))?;
            // After it, since other credentials may take it back.
            check(libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL))?;
            // The owner may have died before the line above.
            if libc::getppid() != self.owner {
                return Err(io::Error::from_raw_os_error(libc::ESRCH));
            }
        }
        for (path, text) in self.identities.iter().flatten() {
            write(path, text.as_bytes())?;
        }
        mount(None, c"/", None, libc::MS_REC | libc::MS_PRIVATE)?;
        if let Some(file) = &self.file {
            mount(Some(c"tmpfs"), &self.place, Some(c"tmpfs"), libc::MS_NOSUID | libc::MS_NODEV | libc::MS_NOEXEC)?;
            close(open(file, libc::O_CREAT | libc::O_WRONLY)?);
            mount(Some(&self.source), file, None, libc::MS_BIND)?;
            // There is nothing to be put beside it.
            make_read_only(&self.place, 0)?;
            return if self.read_only { make_read_only(file, 0) } else { Ok(()) };
        }
        mount(Some(&self.source), &self.place, None, libc::MS_BIND | libc::MS_REC)?;
        if self.read_only { make_read_only(&self.place, libc::AT_RECURSIVE) } else { Ok(()) }
    }
}

fn check(result: i32) -> io::Result<()> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

fn mount(source: Option<&CStr>, target: &CStr, kind: Option<&CStr>, flags: libc::c_ulong) -> io::Result<()> {
    let pointer = |text: Option<&CStr>| text.map_or(std::ptr::null(), CStr::as_ptr);
    // SAFETY: all strings end in NUL and live through the call.
    check(unsafe { libc::mount(pointer(source), target.as_ptr(), pointer(kind), flags, std::ptr::null()) })
}

/// `mount_setattr(2)`, which alone can do so to mounts below as well (Linux 5.12).
fn make_read_only(place: &CStr, flags: libc::c_int) -> io::Result<()> {
    let attributes = libc::mount_attr { attr_set: libc::MOUNT_ATTR_RDONLY, attr_clr: 0, propagation: 0, userns_fd: 0 };
    let size = size_of::<libc::mount_attr>();
    // SAFETY: the string ends in NUL, and the structure has the size that is said.
    let result = unsafe {
        libc::syscall(libc::SYS_mount_setattr, libc::AT_FDCWD, place.as_ptr(), flags, &raw const attributes, size)
    };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

fn open(path: &CStr, flags: libc::c_int) -> io::Result<i32> {
    // SAFETY: the string ends in NUL.
    let fd = unsafe { libc::open(path.as_ptr(), flags | libc::O_CLOEXEC, 0o644) };
    check(fd).map(|()| fd)
}

fn close(fd: i32) {
    // SAFETY: `fd` was opened here and is used by nobody else.
    unsafe { libc::close(fd) };
}

fn write(path: &CStr, text: &[u8]) -> io::Result<()> {
    let fd = open(path, libc::O_WRONLY)?;
    // SAFETY: the pointer and the length are those of a slice.
    let result = unsafe { libc::write(fd, text.as_ptr().cast(), text.len()) };
    let outcome = if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) };
    close(fd);
    outcome
}
