// SPDX-License-Identifier: Apache-2.0
//! What the host lays out to be found: a neighbour that is no sandbox, with a name, a port, a socket, memory, messages, a
//! key, and limits used up. All of it goes when that process ends.

use std::fs;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, TcpListener};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use super::catalogue::Facts;
use super::inside::{READY, announce};
use super::sys::call;

/// Users that hosts do not have: neither of theirs, nor of ranges that containers get. Each run takes one.
const USERS: std::ops::Range<u32> = 64_300..65_300;
/// Processes of that user.
const PROCESSES: usize = 5;
/// Instances of inotify that are taken at most.
const INSTANCES: usize = 4096;

/// The neighbour, while it runs.
pub struct Tenant {
    child: Child,
    /// Listened on, so that what connects is told from what does not.
    _port: TcpListener,
    /// What is where.
    pub facts: Facts,
}

impl Tenant {
    /// Starts it. `place` is a directory with the marker in its path; `shared` has the two files of [`super::page_cache`].
    ///
    /// # Errors
    /// The host lacks what it lays out.
    pub fn start(probe: &Path, place: &Path, shared: &Path, marker: &str, patience: u32) -> io::Result<Self> {
        let port = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        let file = place.join("secret");
        fs::write(&file, marker)?;
        let facts = Facts {
            marker: marker.to_owned(),
            uid: USERS.start + std::process::id() % (USERS.end - USERS.start),
            port: port.local_addr()?.port(),
            file,
            // Two runs at once must not take away each other's.
            key: i32::try_from(std::process::id()).unwrap_or(i32::MAX),
            disk: disk(),
            shared: shared.to_owned(),
            patience,
        };
        // It may be that this host keeps no log.
        let _ = fs::OpenOptions::new()
            .write(true)
            .open("/dev/kmsg")
            .and_then(|mut log| writeln!(log, "<6>coracle bench isolation: {marker}"));
        let words = ["tenant".to_owned(), serde_json::to_string(&facts)?];
        let mut child = Command::new(probe).args(words).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
        let mut line = String::new();
        let output = child.stdout.take().map(BufReader::new);
        let said = output.map_or(Ok(0), |mut output| output.read_line(&mut line));
        let tenant = Self { child, _port: port, facts };
        match said {
            Ok(_) if line.trim() == READY => Ok(tenant),
            Ok(_) => Err(io::Error::other("the host's own process could not be made ready")),
            Err(error) => Err(error),
        }
    }
}

impl Drop for Tenant {
    fn drop(&mut self) {
        // At the end of its input it takes away what it has laid out.
        drop(self.child.stdin.take());
        let _ = self.child.wait();
    }
}

/// The first disk that is no loop device.
fn disk() -> Option<(u32, u32)> {
    let text = fs::read_to_string("/proc/partitions").ok()?;
    let line = text.lines().skip(2).find(|line| !line.contains("loop") && !line.contains("ram"))?;
    let mut numbers = line.split_whitespace().map_while(|word| word.parse().ok());
    Some((numbers.next()?, numbers.next()?))
}

/// The process itself.
///
/// # Errors
/// What it lays out cannot be had; what only some kernels have is left out, and the controls tell.
pub fn main(facts: &Facts) -> io::Result<()> {
    let name = std::ffi::CString::new(facts.marker.as_str())?;
    let _socket = UnixListener::bind_addr(&SocketAddr::from_abstract_name(&facts.marker)?)?;
    let key = i64::from(facts.key);
    let segment = call(libc::SYS_shmget, [key.into(), 4096.into(), i64::from(libc::IPC_CREAT | 0o600).into()]);
    let flags = i64::from(libc::O_CREAT | libc::O_RDWR);
    // A kernel without message queues has none to be found: the control says so.
    let queue = call(libc::SYS_mq_open, [name.as_c_str().into(), flags.into(), 0o600.into(), 0.into()]);
    let (held, hold) = io::pipe()?;
    let (mut ready, is_ready) = io::pipe()?;
    let mut hold = Some(hold);
    for number in 0..=PROCESSES {
        // SAFETY: this process has one thread, so the child may do what any process may.
        match unsafe { libc::fork() } {
            0 => {
                drop(hold.take());
                if be_user(facts, number == 0).is_ok() {
                    // They end when the parent lets go of its end, or has gone.
                    let _ = (&is_ready).write_all(&[1]).and_then(|()| (&held).read(&mut [0]).map(drop));
                }
                // SAFETY: ends the child at once; nothing of the parent's is flushed twice.
                unsafe { libc::_exit(0) };
            }
            pid if pid < 0 => return Err(io::Error::last_os_error()),
            _ => {}
        }
    }
    drop(is_ready);
    ready.read_exact(&mut [0; PROCESSES + 1])?;
    announce(&format!("{}h", facts.marker))?;
    io::stdin().read_to_end(&mut Vec::new())?;
    drop(hold);
    while rustix::process::wait(rustix::process::WaitOptions::empty()).is_ok() {}
    if let Ok(segment) = segment {
        call(libc::SYS_shmctl, [segment.into(), i64::from(libc::IPC_RMID).into(), 0.into()])?;
    }
    if queue.is_ok() {
        call(libc::SYS_mq_unlink, [name.as_c_str().into()])?;
    }
    Ok(())
}

/// Becomes the user; the `first` takes a key and what there is of inotify.
fn be_user(facts: &Facts, first: bool) -> io::Result<()> {
    let uid = i64::from(facts.uid);
    call(libc::SYS_setresuid, [uid.into(), uid.into(), uid.into()])?;
    if first {
        let (kind, secret): (&std::ffi::CStr, &[u8]) = (c"user", b"secret");
        let name = std::ffi::CString::new(facts.marker.as_str())?;
        // KEY_SPEC_USER_KEYRING; a kernel without keys has none to be found.
        let _ = call(libc::SYS_add_key, [kind.into(), name.as_c_str().into(), secret.into(), 6.into(), (-4).into()]);
        (0..INSTANCES).take_while(|_| call(libc::SYS_inotify_init1, [0.into()]).is_ok()).for_each(drop);
    }
    Ok(())
}
