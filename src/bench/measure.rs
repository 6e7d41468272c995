// SPDX-License-Identifier: Apache-2.0
//! One run of one program, timed from outside: from just before it is spawned to its first byte and to its end.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream, UdpSocket};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::sockopt::socket_error;
use rustix::net::{AddressFamily, SocketFlags, SocketType, connect, socket_with};
use rustix::process::{
    Pid, PidfdFlags, Signal, WaitOptions, kill_process, kill_process_group, pidfd_open, set_child_subreaper, wait,
};

use crate::signals;
use crate::vmm::clock::monotonic_ns;

/// Bytes that are kept of what a program writes.
const KEPT: usize = 4096;
/// How often a program is asked to end before it is killed, one second apart: `coracle run` heeds the third.
const ASKED: u32 = 4;
/// How often it is looked whether a server has answered.
const ASKED_ABOUT: Duration = Duration::from_millis(5);
/// How long a server may take to answer.
const ANSWERING: Duration = Duration::from_secs(5);
/// Least time between two attempts.
const BETWEEN: Duration = Duration::from_millis(1);
/// So many times as long as lies between two may an attempt take: a packet that got lost is sent again after a second only.
const HANDSHAKE: u32 = 8;
/// This part of the time that has passed lies between two attempts: to refuse a connection is work for a slow guest.
const PART: u32 = 64;
/// How long what a program has left running may go on: the template of an image is made then, slowly on a busy PVM host.
const SETTLING: Duration = Duration::from_secs(120);

/// When a run is over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Until {
    /// The program has ended by itself.
    Exit,
    /// The program has written this byte; then it is killed.
    Byte(u8),
    /// A server at this address has answered a request for `/` with status 200; then the program is asked to end.
    Http(SocketAddr),
}

/// What was seen of a run. Times are in nanoseconds from just before the program was spawned.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Observed {
    /// When it was spawned, by [`monotonic_ns`].
    pub started_ns: u64,
    /// The first byte on its standard output, or the byte that was waited for; `None` where none came.
    pub first_byte_ns: Option<u64>,
    /// Its end; 0 where it did not end by itself.
    pub exit_ns: u64,
    /// Processor time of the program and of all that it has started, until the last of them has ended.
    pub cpu_ns: u64,
    /// Bytes that they had the kernel read from disks.
    pub read_bytes: u64,
    /// Its exit status; 128 and the signal's number where one killed it.
    pub status: i32,
    /// The beginning of what it wrote.
    pub output: Vec<u8>,
    /// The end of what it wrote of errors.
    pub errors: String,
}

/// How a run went.
#[derive(Debug)]
pub enum Outcome {
    /// To its end.
    Done(Observed),
    /// The time was over.
    TimedOut,
    /// The user wants no more.
    Interrupted,
}

/// Times programs. What they leave running becomes this process's child, and has ended before the next one starts: so
/// nobody else may wait for children meanwhile.
#[derive(Debug)]
pub struct Stopwatch {
    signals: OwnedFd,
    interrupted: bool,
    linger: Duration,
    ended: Instant,
}

impl Stopwatch {
    /// One that SIGINT, SIGTERM and SIGHUP stop. To be made before threads are.
    ///
    /// # Errors
    /// The kernel's.
    pub fn new() -> io::Result<Self> {
        set_child_subreaper(Some(rustix::process::getpid()))?;
        let signals = signals::readable(&[libc::SIGINT, libc::SIGTERM, libc::SIGHUP])?;
        Ok(Self { signals, interrupted: false, linger: Duration::ZERO, ended: Instant::now() })
    }

    /// Whether a signal has come.
    pub fn is_interrupted(&mut self) -> bool {
        self.interrupted |= signals::take(&self.signals).is_some();
        self.interrupted
    }

    /// Waits for what programs that have ended left running.
    pub fn settle(&mut self) {
        settle(SETTLING);
    }

    /// Leaves what does not end by itself alone for so long before it is ended.
    pub fn linger(&mut self, time: Duration) {
        self.linger = time;
    }

    /// When the last run had ended by itself, or had been left alone long enough.
    pub fn ended(&self) -> Instant {
        self.ended
    }

    /// Runs `command` and watches it.
    ///
    /// # Errors
    /// It cannot be started, or watched.
    pub fn run(&mut self, command: &mut Command, until: Until, limit: Duration) -> io::Result<Outcome> {
        let mut errors = tempfile::tempfile()?;
        // A Ctrl-C on our terminal is ours to handle.
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(errors.try_clone()?).process_group(0);
        let before = children();
        let (start, started_ns) = (Instant::now(), monotonic_ns());
        let mut child = command.spawn()?;
        let watched = self.watch(&mut child, until, start, limit);
        if matches!(watched, Ok(Outcome::Done(_))) && until != Until::Exit {
            thread::sleep(self.linger);
        }
        self.ended = Instant::now();
        if matches!((&watched, until), (Ok(Outcome::Done(_)), Until::Http(_))) {
            end(&mut child);
        }
        if matches!((&watched, until), (Ok(Outcome::Done(_)), Until::Byte(_))) {
            child.kill()?;
        }
        if !matches!(watched, Ok(Outcome::Done(_))) {
            end(&mut child);
        }
        let status = child.wait()?;
        settle(SETTLING);
        let mut outcome = watched?;
        if let Outcome::Done(observed) = &mut outcome {
            let after = children();
            observed.started_ns = started_ns;
            observed.cpu_ns = after.cpu_ns.saturating_sub(before.cpu_ns);
            observed.read_bytes = after.read_bytes.saturating_sub(before.read_bytes);
            observed.status = status.code().or_else(|| status.signal().map(|signal| 128 + signal)).unwrap_or(255);
            observed.errors = tail(&mut errors)?;
        }
        Ok(outcome)
    }

    /// Runs `command`, whose output nobody reads, and looks at nothing but its end.
    ///
    /// # Errors
    /// It cannot be started, or watched.
    pub fn run_unwatched(&mut self, command: &mut Command, limit: Duration) -> io::Result<Outcome> {
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).process_group(0);
        let before = children();
        let (start, started_ns) = (Instant::now(), monotonic_ns());
        let mut child = command.spawn()?;
        let process = pidfd_open(Pid::from_child(&child), PidfdFlags::empty())?;
        let ended = poll(&mut [PollFd::new(&process, PollFlags::IN)], Some(&timespec(limit)))?;
        let exit_ns = nanoseconds(start.elapsed());
        if ended == 0 {
            end(&mut child);
        }
        let status = child.wait()?.code().unwrap_or(255);
        settle(SETTLING);
        let cpu_ns = children().cpu_ns.saturating_sub(before.cpu_ns);
        let observed = Observed { started_ns, exit_ns, cpu_ns, status, ..Observed::default() };
        Ok(if ended == 0 { Outcome::TimedOut } else { Outcome::Done(observed) })
    }

    fn watch(&mut self, child: &mut Child, until: Until, start: Instant, limit: Duration) -> io::Result<Outcome> {
        let process = pidfd_open(Pid::from_child(child), PidfdFlags::empty())?;
        let mut stdout = child.stdout.take();
        let mut seen = Observed::default();
        let asking = match until {
            Until::Http(address) => Some(Asking::start(address, start)?),
            Until::Exit | Until::Byte(_) => None,
        };
        loop {
            if let Some(answer) = asking.as_ref().and_then(Asking::answered) {
                seen.first_byte_ns = Some(answer);
                return Ok(Outcome::Done(seen));
            }
            let Some(left) = limit.checked_sub(start.elapsed()) else { return Ok(Outcome::TimedOut) };
            let mut watched = vec![PollFd::new(&process, PollFlags::IN), PollFd::new(&self.signals, PollFlags::IN)];
            watched.extend(stdout.as_ref().map(|stdout| PollFd::new(stdout, PollFlags::IN)));
            // Whoever asks for an answer notes the time of it.
            let left = if asking.is_some() { left.min(ASKED_ABOUT) } else { left };
            match poll(&mut watched, Some(&timespec(left))) {
                Err(Errno::INTR) => continue,
                polled => polled?,
            };
            let now = nanoseconds(start.elapsed());
            let ready: Vec<bool> = watched.iter().map(|one| !one.revents().is_empty()).collect();
            drop(watched);
            if ready.get(2) == Some(&true) {
                take_output(&mut stdout, &mut seen, until, now)?;
            }
            if let (Until::Byte(_), Some(_)) = (until, seen.first_byte_ns) {
                return Ok(Outcome::Done(seen));
            }
            if ready.first() == Some(&true) {
                seen.exit_ns = now;
                // What it wrote last may have come between.
                while stdout.is_some() && readable_now(stdout.as_ref())? {
                    take_output(&mut stdout, &mut seen, until, now)?;
                }
                return Ok(Outcome::Done(seen));
            }
            if ready.get(1) == Some(&true) && self.is_interrupted() {
                return Ok(Outcome::Interrupted);
            }
        }
    }
}

/// A thread that asks a server for `/` until it answers with 200, or this is dropped.
struct Asking {
    answer: Arc<OnceLock<u64>>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Asking {
    fn start(address: SocketAddr, begun: Instant) -> io::Result<Self> {
        // Of the one who had the address before.
        forget(address, &UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?);
        let (answer, stop) = (Arc::new(OnceLock::new()), Arc::new(AtomicBool::new(false)));
        let (its_answer, its_stop) = (Arc::clone(&answer), Arc::clone(&stop));
        let thread = thread::Builder::new().name("asking".to_owned()).spawn(move || {
            while !its_stop.load(Ordering::Relaxed) {
                let between = BETWEEN.max(begun.elapsed() / PART);
                if is_served(address, between).unwrap_or(false) {
                    // Nobody else sets it.
                    let _ = its_answer.set(nanoseconds(begun.elapsed()));
                    return;
                }
                thread::sleep(between);
            }
        })?;
        Ok(Self { answer, stop, thread: Some(thread) })
    }

    /// When it was answered.
    fn answered(&self) -> Option<u64> {
        self.answer.get().copied()
    }
}

impl Drop for Asking {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        // A thread that panicked has said so itself.
        let _ = self.thread.take().map(JoinHandle::join);
    }
}

/// Whether a server answers with status 200 (RFC 9112). `patience` is for a host that is not there yet.
fn is_served(address: SocketAddr, patience: Duration) -> io::Result<bool> {
    let mut stream = reach(address, patience)?;
    stream.set_read_timeout(Some(ANSWERING))?;
    stream.write_all(format!("GET / HTTP/1.0\r\nHost: {}\r\n\r\n", address.ip()).as_bytes())?;
    let mut line = [0; 12];
    stream.read_exact(&mut line)?;
    Ok(line.starts_with(b"HTTP/1.") && line.ends_with(b" 200"))
}

/// Connects. The kernel asks once a second for a neighbour's address, so that one who has just come would be late by that:
/// one that has not answered is forgotten instead, to be asked for anew.
fn reach(address: SocketAddr, patience: Duration) -> io::Result<TcpStream> {
    let family = if address.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = socket_with(family, SocketType::STREAM, flags, None)?;
    match connect(&socket, &address) {
        Ok(()) | Err(Errno::INPROGRESS) => {}
        Err(error) => return Err(error.into()),
    }
    let begun = Instant::now();
    while poll(&mut [PollFd::new(&socket, PollFlags::OUT)], Some(&timespec(patience)))? == 0 {
        if is_unknown(address) {
            forget(address, &socket);
        } else if begun.elapsed() < patience * HANDSHAKE {
            continue;
        }
        return Err(io::ErrorKind::TimedOut.into());
    }
    socket_error(&socket)??;
    let stream = TcpStream::from(socket);
    stream.set_nonblocking(false)?;
    Ok(stream)
}

/// Whether the kernel waits for a neighbour to tell its hardware address (proc(5), `/proc/net/arp`).
fn is_unknown(address: SocketAddr) -> bool {
    let table = std::fs::read_to_string("/proc/net/arp").unwrap_or_default();
    let address = address.ip().to_string();
    let mut entries = table.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
    entries.any(|entry| entry.first() == Some(&address.as_str()) && entry.get(2) == Some(&"0x0"))
}

/// Has the kernel forget a neighbour's hardware address, or the attempt to learn it (arp(7)).
fn forget(address: SocketAddr, socket: &impl AsRawFd) {
    let SocketAddr::V4(address) = address else { return };
    let address = libc::sockaddr_in {
        sin_family: libc::sa_family_t::try_from(libc::AF_INET).unwrap_or_default(),
        sin_port: 0,
        sin_addr: libc::in_addr { s_addr: u32::from_ne_bytes(address.ip().octets()) },
        sin_zero: [0; 8],
    };
    // SAFETY: zeroes are a valid `arpreq`: no address, no flags, and no device, which the kernel finds by the route.
    let mut request: libc::arpreq = unsafe { std::mem::zeroed() };
    // SAFETY: both are socket addresses of the same size, and any bytes are valid in them.
    request.arp_pa = unsafe { std::mem::transmute::<libc::sockaddr_in, libc::sockaddr>(address) };
    // SAFETY: the kernel reads `request`, an `arpreq`. Where it fails there is nothing to forget, or no right to.
    unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCDARP, &raw const request) };
}

/// Reads what has come; at its end there is no output any more.
fn take_output(stdout: &mut Option<ChildStdout>, seen: &mut Observed, until: Until, now: u64) -> io::Result<()> {
    let mut buffer = [0; 65536];
    let count = stdout.as_mut().map_or(Ok(0), |stdout| stdout.read(&mut buffer))?;
    let bytes = &buffer[..count];
    let marks = match until {
        Until::Exit => !bytes.is_empty(),
        Until::Http(_) => false,
        Until::Byte(byte) => bytes.contains(&byte),
    };
    if marks && seen.first_byte_ns.is_none() {
        seen.first_byte_ns = Some(now);
    }
    let room = KEPT.saturating_sub(seen.output.len()).min(count);
    seen.output.extend_from_slice(&bytes[..room]);
    if count == 0 {
        *stdout = None;
    }
    Ok(())
}

fn readable_now(stdout: Option<&ChildStdout>) -> io::Result<bool> {
    let Some(stdout) = stdout else { return Ok(false) };
    let mut watched = [PollFd::new(stdout, PollFlags::IN)];
    Ok(poll(&mut watched, Some(&timespec(Duration::ZERO)))? > 0)
}

/// Asks a program to end, and kills its process group if it does not.
fn end(child: &mut Child) {
    let (pid, mut asked) = (Pid::from_child(child), 0);
    while asked < ASKED && matches!(child.try_wait(), Ok(None)) {
        // One that has just ended needs no signal.
        let _ = kill_process(pid, Signal::TERM);
        asked += 1;
        for _ in 0..100 {
            if !matches!(child.try_wait(), Ok(None)) {
                break;
            }
            thread::sleep(Duration::from_millis(10));
        }
    }
    if matches!(child.try_wait(), Ok(None)) {
        let _ = kill_process_group(pid, Signal::KILL);
    }
}

/// Waits for all that has been left running, and kills what is still there after `limit`.
fn settle(limit: Duration) {
    let deadline = Instant::now() + limit;
    loop {
        match wait(WaitOptions::NOHANG) {
            Ok(Some(_)) | Err(Errno::INTR) => {}
            Ok(None) if Instant::now() < deadline => thread::sleep(Duration::from_millis(1)),
            Ok(None) => kill_children(),
            Err(_) => return,
        }
    }
}

fn kill_children() {
    let path = format!("/proc/self/task/{}/children", rustix::thread::gettid().as_raw_nonzero());
    for pid in std::fs::read_to_string(path).unwrap_or_default().split_whitespace() {
        if let Some(pid) = pid.parse().ok().and_then(Pid::from_raw) {
            // One that has just ended needs no signal.
            let _ = kill_process(pid, Signal::KILL);
        }
    }
    thread::sleep(Duration::from_millis(10));
}

/// What all children that have been waited for, and theirs, have used.
struct Used {
    cpu_ns: u64,
    read_bytes: u64,
}

fn children() -> Used {
    let mut usage = std::mem::MaybeUninit::<libc::rusage>::zeroed();
    // SAFETY: `usage` is a place for the result, which a successful call fills; zeroes are a valid `rusage` as well.
    let usage = unsafe {
        libc::getrusage(libc::RUSAGE_CHILDREN, usage.as_mut_ptr());
        usage.assume_init()
    };
    let ns = |time: libc::timeval| {
        let (seconds, microseconds) = (u64::try_from(time.tv_sec), u64::try_from(time.tv_usec));
        seconds.unwrap_or(0) * 1_000_000_000 + microseconds.unwrap_or(0) * 1000
    };
    // Linux counts blocks of 512 bytes, whatever the disk has.
    let read_bytes = u64::try_from(usage.ru_inblock).unwrap_or(0) * 512;
    Used { cpu_ns: ns(usage.ru_utime) + ns(usage.ru_stime), read_bytes }
}

/// A time as whole nanoseconds.
pub fn nanoseconds(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

fn timespec(time: Duration) -> Timespec {
    // In range: no limit here is longer than hours.
    Timespec { tv_sec: i64::try_from(time.as_secs()).unwrap_or(i64::MAX), tv_nsec: i64::from(time.subsec_nanos()) }
}

fn tail(file: &mut File) -> io::Result<String> {
    let length = file.metadata()?.len();
    file.seek(SeekFrom::Start(length.saturating_sub(u64::try_from(KEPT).unwrap_or(0))))?;
    let mut text = Vec::new();
    file.read_to_end(&mut text)?;
    Ok(String::from_utf8_lossy(&text).trim().to_owned())
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    #[test]
    fn a_server_is_there_once_it_answers_with_200() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let server = thread::spawn(move || {
            for answer in ["HTTP/1.1 503 Not yet\r\n\r\n", "HTTP/1.1 200 OK\r\n\r\n"] {
                let (mut stream, _) = listener.accept().unwrap();
                let mut request = [0; 5];
                stream.read_exact(&mut request).unwrap();
                assert_eq!(&request, b"GET /");
                stream.write_all(answer.as_bytes()).unwrap();
            }
        });
        assert!(!is_served(address, BETWEEN).unwrap());
        let asking = Asking::start(address, Instant::now()).unwrap();
        server.join().unwrap();
        while asking.answered().is_none() {
            thread::sleep(BETWEEN);
        }
        // Nobody is there any more.
        assert!(is_served(address, BETWEEN).is_err());
    }
}
