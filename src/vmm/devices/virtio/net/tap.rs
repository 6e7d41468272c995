// SPDX-License-Identifier: Apache-2.0
//! A TAP interface of the host, with the virtio header before each frame.

use std::ffi::CString;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;
use std::thread;
use std::time::Duration;

use libc::{
    IFF_NO_PI, IFF_TAP, IFF_UP, IFF_VNET_HDR, TUN_F_CSUM, TUN_F_TSO_ECN, TUN_F_TSO4, TUN_F_TSO6, TUN_F_UFO, TUN_F_USO4,
    TUN_F_USO6, c_int, c_uint, c_ulong, ifreq,
};

use super::HEADER;

const TUN: &str = "/dev/net/tun";
/// How often a TAP that is busy is tried, and how long after one another.
const BUSY_TRIES: u32 = 10;
const BUSY_PAUSE: Duration = Duration::from_millis(10);
/// What a frame on this file looks like: Ethernet, a virtio header before it, no packet information.
const FORMAT: c_int = IFF_TAP | IFF_NO_PI | IFF_VNET_HDR;
/// Offloads to try, from recent kernels to old ones: one unknown bit makes a kernel refuse all.
const OFFLOADS: [c_uint; 3] = [
    TUN_F_CSUM | TUN_F_TSO4 | TUN_F_TSO6 | TUN_F_TSO_ECN | TUN_F_UFO | TUN_F_USO4 | TUN_F_USO6,
    TUN_F_CSUM | TUN_F_TSO4 | TUN_F_TSO6 | TUN_F_TSO_ECN | TUN_F_UFO,
    TUN_F_CSUM,
];

/// Why a network card cannot be connected to the host; [`NetError::try_next`] says what to do.
#[derive(Debug, thiserror::Error)]
pub enum NetError {
    /// No interface can have this name.
    #[error("{name:?} is no interface name: those have 1 to 15 bytes and no spaces or slashes")]
    Name {
        /// The name.
        name: String,
    },
    /// The kernel has no TUN driver, or its device node is missing.
    #[error("the host has no {TUN}: {source}")]
    NoTun {
        /// The system's reason.
        source: io::Error,
    },
    /// `/dev/net/tun` may not be opened.
    #[error("no permission to open {TUN}")]
    TunPermission,
    /// There is no such interface. It is never created here: a TAP made by accident leads nowhere.
    #[error("there is no interface {name}")]
    Missing {
        /// The interface.
        name: String,
    },
    /// The interface belongs to another user.
    #[error("interface {name} belongs to another user")]
    NotPermitted {
        /// The interface.
        name: String,
    },
    /// Another process has the interface open.
    #[error("interface {name} is in use, most likely by another VM")]
    Busy {
        /// The interface.
        name: String,
    },
    /// The interface is something else.
    #[error("interface {name} is no TAP, or one with several queues")]
    NotTap {
        /// The interface.
        name: String,
    },
    /// The file handed in is not an attached TAP.
    #[error("the network file handed in is not a TAP with IFF_TAP, IFF_NO_PI and IFF_VNET_HDR set")]
    Format,
    /// There is no connection to a network in user space.
    #[error("nobody listens on socket {path}: {source}")]
    Stream {
        /// The socket.
        path: PathBuf,
        /// The system's reason.
        source: io::Error,
    },
    /// The kernel refused something that it never should.
    #[error("interface {name}: {what} failed: {source}")]
    System {
        /// The interface.
        name: String,
        /// What was being done.
        what: &'static str,
        /// The system's reason.
        source: io::Error,
    },
}

impl NetError {
    /// The next thing to do about it.
    pub fn try_next(&self) -> String {
        match self {
            NetError::Missing { name } => {
                format!("`ip tuntap add {name} mode tap user $USER && ip link set {name} up`")
            }
            NetError::Name { .. } | NetError::NotPermitted { .. } | NetError::NotTap { .. } => {
                "a TAP of your own: `ip tuntap add NAME mode tap user $USER && ip link set NAME up`".to_owned()
            }
            NetError::NoTun { .. } => "`modprobe tun`".to_owned(),
            NetError::TunPermission => {
                format!("`chmod 0666 {TUN}`; each interface is still its owner's alone")
            }
            NetError::Busy { .. } => "another TAP: each VM needs its own".to_owned(),
            NetError::Stream { path, .. } => format!("`passt --socket {}`", path.display()),
            NetError::Format | NetError::System { .. } => "a TAP made with `ip tuntap add NAME mode tap`".to_owned(),
        }
    }
}

/// An attached TAP interface. Nothing is opened by name after [`Tap::open`].
#[derive(Debug)]
pub struct Tap {
    file: File,
    offloads: c_uint,
    mtu: Option<u16>,
}

impl Tap {
    /// Attaches to the existing TAP `name`.
    ///
    /// # Errors
    /// See [`NetError`]. An interface that is down is no error.
    pub fn open(name: &str) -> Result<Self, NetError> {
        let (mut request, c_name) = request(name)?;
        let owned = || name.to_owned();
        let file = open_tun()?;
        // With the privilege to do so, TUNSETIFF creates what it does not find.
        let index = index_of(&c_name).ok_or_else(|| NetError::Missing { name: owned() })?;
        request.ifr_ifru.ifru_flags = short(FORMAT);
        attach(&file, &mut request).map_err(|source| refusal(name, source))?;
        if index_of(&c_name) != Some(index) {
            // It was deleted in between and made anew by TUNSETIFF; closing the file takes that one away again.
            return Err(NetError::Missing { name: owned() });
        }
        let system = |what| move |source| NetError::System { name: name.to_owned(), what, source };
        let mut tap = Self::attached(file, name)?;
        let socket = control_socket().map_err(system("opening a socket"))?;
        tap.mtu = mtu(&socket, name)?;
        Ok(tap)
    }

    /// Makes a TAP that stays when nobody has it open. It may be there already, unless someone has it open.
    ///
    /// # Errors
    /// See [`NetError`].
    pub fn create(name: &str) -> Result<(), NetError> {
        let (mut request, _) = request(name)?;
        let file = open_tun()?;
        request.ifr_ifru.ifru_flags = short(FORMAT);
        attach(&file, &mut request).map_err(|source| refusal(name, source))?;
        // SAFETY: TUNSETPERSIST takes its argument by value.
        let result = unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETPERSIST, 1 as c_ulong) };
        check(result).map_err(|source| NetError::System { name: name.to_owned(), what: "TUNSETPERSIST", source })
    }

    /// Takes a TAP away that [`Tap::create`] has made and nobody has open.
    ///
    /// # Errors
    /// See [`NetError`].
    pub fn remove(name: &str) -> Result<(), NetError> {
        let tap = Self::open(name)?;
        // SAFETY: TUNSETPERSIST takes its argument by value.
        let result = unsafe { libc::ioctl(tap.file.as_raw_fd(), libc::TUNSETPERSIST, 0 as c_ulong) };
        check(result).map_err(|source| NetError::System { name: name.to_owned(), what: "TUNSETPERSIST", source })
    }

    /// Largest packet in bytes, without Ethernet header, of the interface with this name, where there is one.
    pub fn mtu_of(name: &str) -> Option<u16> {
        request(name).ok()?;
        control_socket().ok().and_then(|socket| mtu(&socket, name).ok()?)
    }

    /// Whether there is an interface with this name, and it is down.
    pub fn is_down(name: &str) -> bool {
        request(name).is_ok() && control_socket().is_ok_and(|socket| is_up(&socket, name).is_ok_and(|up| !up))
    }

    /// The number of the interface with this name, where there is one. No other has it, nor one made later.
    pub fn index(name: &str) -> Option<u32> {
        request(name).ok().and_then(|(_, name)| index_of(&name))
    }

    /// Takes over a TAP that was attached elsewhere.
    ///
    /// # Errors
    /// [`NetError::Format`], where frames on it are not Ethernet with a virtio header.
    pub fn from_file(file: File) -> Result<Self, NetError> {
        // SAFETY: all-zero bytes are a valid `ifreq`.
        let mut request: ifreq = unsafe { std::mem::zeroed() };
        interface_ioctl(file.as_raw_fd(), libc::TUNGETIFF, &mut request).map_err(|_| NetError::Format)?;
        // SAFETY: TUNGETIFF filled in the flags; any bit pattern is a valid short.
        let flags = c_int::from(unsafe { request.ifr_ifru.ifru_flags });
        if flags & FORMAT != FORMAT {
            return Err(NetError::Format);
        }
        let name: String =
            request.ifr_name.iter().map(|&byte| char::from(byte.to_le_bytes()[0])).take_while(|&c| c != '\0').collect();
        set_nonblocking(&file).map_err(|source| NetError::System {
            name: name.clone(),
            what: "making it non-blocking",
            source,
        })?;
        Self::attached(file, &name)
    }

    /// A datagram socket in place of a TAP, for tests and fuzzers: one datagram is one frame with its header.
    #[cfg(any(test, feature = "fake-driver"))]
    pub fn from_socket(socket: File) -> Self {
        Self { file: socket, offloads: 0, mtu: None }
    }

    fn attached(file: File, name: &str) -> Result<Self, NetError> {
        let system = |what| move |source| NetError::System { name: name.to_owned(), what, source };
        let mut size = c_int::try_from(HEADER).unwrap_or(c_int::MAX);
        // SAFETY: TUNSETVNETHDRSZ reads one int behind the pointer, which outlives the call.
        let result = unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETVNETHDRSZ, &raw mut size) };
        check(result).map_err(system("TUNSETVNETHDRSZ"))?;
        let mut tap = Self { file, offloads: 0, mtu: None };
        tap.offloads = OFFLOADS.into_iter().find(|&bits| tap.offload_ioctl(bits).is_ok()).unwrap_or(0);
        tap.offload_ioctl(0).map_err(system("TUNSETOFFLOAD"))?;
        Ok(tap)
    }

    /// Offloads (`TUN_F_*`) that this kernel can leave to the receiver of frames.
    pub fn offloads(&self) -> c_uint {
        self.offloads
    }

    /// Largest packet in bytes, without Ethernet header, where the interface was found by name.
    pub fn mtu(&self) -> Option<u16> {
        self.mtu
    }

    /// Lets the kernel hand over frames with these offloads (`TUN_F_*`) still to be done.
    ///
    /// # Errors
    /// The kernel's; never for a subset of [`Tap::offloads`] with its dependencies.
    pub fn set_offloads(&self, offloads: c_uint) -> io::Result<()> {
        // A kernel without any, and the socket of tests, need not be asked.
        if self.offloads == 0 { Ok(()) } else { self.offload_ioctl(offloads & self.offloads) }
    }

    /// Whether this error says that the interface has been deleted.
    pub fn is_gone(error: &io::Error) -> bool {
        error.raw_os_error() == Some(libc::EBADFD)
    }

    fn offload_ioctl(&self, offloads: c_uint) -> io::Result<()> {
        // SAFETY: TUNSETOFFLOAD takes its argument by value.
        check(unsafe { libc::ioctl(self.file.as_raw_fd(), libc::TUNSETOFFLOAD, c_ulong::from(offloads)) })
    }

    /// Reads one frame with its header into `vectors`; what does not fit is lost.
    ///
    /// # Errors
    /// `WouldBlock` where none is waiting.
    ///
    /// # Safety
    /// Each vector must point to memory that may be written through it during the call.
    pub unsafe fn receive(&self, vectors: &[libc::iovec]) -> io::Result<usize> {
        let count = c_int::try_from(vectors.len()).unwrap_or(c_int::MAX);
        // SAFETY: the slice holds `count` vectors, good for writing by this function's contract.
        count_or_error(unsafe { libc::readv(self.file.as_raw_fd(), vectors.as_ptr(), count) })
    }

    /// Writes one frame with its header.
    ///
    /// # Errors
    /// The kernel's: `WouldBlock` where its buffer is full, `EINVAL` for a header that it does not accept, `EIO` where
    /// the interface is down.
    ///
    /// # Safety
    /// Each vector must point to memory that may be read through it during the call.
    pub unsafe fn send(&self, vectors: &[libc::iovec]) -> io::Result<usize> {
        let count = c_int::try_from(vectors.len()).unwrap_or(c_int::MAX);
        // SAFETY: the slice holds `count` vectors, good for reading by this function's contract.
        count_or_error(unsafe { libc::writev(self.file.as_raw_fd(), vectors.as_ptr(), count) })
    }
}

impl AsRawFd for Tap {
    fn as_raw_fd(&self) -> RawFd {
        self.file.as_raw_fd()
    }
}

fn open_tun() -> Result<File, NetError> {
    let flags = libc::O_NONBLOCK | libc::O_CLOEXEC;
    let file = OpenOptions::new().read(true).write(true).custom_flags(flags).open(TUN);
    file.map_err(|source| match source.raw_os_error() {
        Some(libc::EACCES | libc::EPERM) => NetError::TunPermission,
        _ => NetError::NoTun { source },
    })
}

/// TUNSETIFF. A descriptor of the TAP that has just been closed may live on for a moment in a child that another thread has
/// forked and that has not come to its `exec` yet: what is busy is tried again.
fn attach(file: &File, request: &mut ifreq) -> io::Result<()> {
    let wanted = *request;
    let mut tries = BUSY_TRIES;
    loop {
        *request = wanted;
        match interface_ioctl(file.as_raw_fd(), libc::TUNSETIFF, request) {
            Err(error) if error.raw_os_error() == Some(libc::EBUSY) && tries > 1 => {
                tries -= 1;
                thread::sleep(BUSY_PAUSE);
            }
            outcome => return outcome,
        }
    }
}

/// Why TUNSETIFF did not attach to the interface `name`.
fn refusal(name: &str, source: io::Error) -> NetError {
    let name = name.to_owned();
    match source.raw_os_error() {
        Some(libc::EPERM) => NetError::NotPermitted { name },
        Some(libc::EBUSY) => NetError::Busy { name },
        Some(libc::EINVAL) => NetError::NotTap { name },
        _ => NetError::System { name, what: "TUNSETIFF", source },
    }
}

fn check(result: c_int) -> io::Result<()> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

fn count_or_error(result: isize) -> io::Result<usize> {
    usize::try_from(result).map_err(|_| io::Error::last_os_error())
}

/// The flags that are used here fit the `short` of `ifreq`.
fn short(flags: c_int) -> libc::c_short {
    libc::c_short::try_from(flags).unwrap_or(0)
}

fn request(name: &str) -> Result<(ifreq, CString), NetError> {
    let bad = || NetError::Name { name: name.to_owned() };
    let valid = |byte: u8| byte != b'/' && !byte.is_ascii_whitespace() && !byte.is_ascii_control();
    if name.is_empty() || name.len() >= libc::IFNAMSIZ || name == "." || name == ".." || !name.bytes().all(valid) {
        return Err(bad());
    }
    // SAFETY: all-zero bytes are a valid `ifreq`.
    let mut request: ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = libc::c_char::from_ne_bytes([from]);
    }
    Ok((request, CString::new(name).map_err(|_| bad())?))
}

fn index_of(name: &CString) -> Option<c_uint> {
    // SAFETY: the name is NUL-terminated and outlives the call.
    Some(unsafe { libc::if_nametoindex(name.as_ptr()) }).filter(|&index| index != 0)
}

fn interface_ioctl(fd: RawFd, number: c_ulong, request: &mut ifreq) -> io::Result<()> {
    // SAFETY: the ioctls used here read and write at most one `ifreq` behind the pointer, which outlives the call.
    check(unsafe { libc::ioctl(fd, number, std::ptr::from_mut(request)) })
}

fn control_socket() -> io::Result<OwnedFd> {
    // SAFETY: the call takes integers only.
    let fd = unsafe { libc::socket(libc::AF_UNIX, libc::SOCK_DGRAM | libc::SOCK_CLOEXEC, 0) };
    check(fd)?;
    // SAFETY: `fd` was just returned by the kernel and nothing else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

fn ask(socket: &OwnedFd, name: &str, number: c_ulong, what: &'static str) -> Result<ifreq, NetError> {
    let (mut request, _) = request(name)?;
    interface_ioctl(socket.as_raw_fd(), number, &mut request).map_err(|source| NetError::System {
        name: name.to_owned(),
        what,
        source,
    })?;
    Ok(request)
}

fn mtu(socket: &OwnedFd, name: &str) -> Result<Option<u16>, NetError> {
    let request = ask(socket, name, libc::SIOCGIFMTU, "SIOCGIFMTU")?;
    // SAFETY: SIOCGIFMTU filled in the MTU; any bit pattern is a valid int.
    Ok(u16::try_from(unsafe { request.ifr_ifru.ifru_mtu }).ok())
}

fn is_up(socket: &OwnedFd, name: &str) -> Result<bool, NetError> {
    let request = ask(socket, name, libc::SIOCGIFFLAGS, "SIOCGIFFLAGS")?;
    // SAFETY: SIOCGIFFLAGS filled in the flags; any bit pattern is a valid short.
    Ok(c_int::from(unsafe { request.ifr_ifru.ifru_flags }) & IFF_UP != 0)
}

fn set_nonblocking(file: &File) -> io::Result<()> {
    // SAFETY: F_GETFL and F_SETFL take and give integers.
    let flags = unsafe { libc::fcntl(file.as_raw_fd(), libc::F_GETFL) };
    check(flags)?;
    // SAFETY: as above.
    check(unsafe { libc::fcntl(file.as_raw_fd(), libc::F_SETFL, flags | libc::O_NONBLOCK) })
}

#[cfg(test)]
#[path = "tap_test.rs"]
mod tests;
