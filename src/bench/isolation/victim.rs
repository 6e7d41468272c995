// SPDX-License-Identifier: Apache-2.0
//! The neighbour that suffers: does one small thing again and again, and tells how long each time took.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use serde::{Deserialize, Serialize};

use super::inside::say;
use super::{image, page_cache};

/// What it does, and what that depends on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Deed {
    /// Wakes up.
    Wake,
    /// Starts a thread, and waits for its end.
    Thread,
    /// Takes 256 KiB of memory, writes to it and gives it back.
    Memory,
    /// Reads a page of a file that all have.
    Read,
    /// Connects to itself.
    Connect,
    /// Looks how much space is free where it may write: bytes.
    FreeBytes,
    /// And how many files may be made there.
    FreeFiles,
    /// Looks how many files are open.
    OpenFiles,
}

/// A line of what it prints.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Line {
    /// What it did.
    pub deed: Deed,
    /// Nanoseconds from when each was due to its end; of those that count, the counts.
    pub samples: Vec<u64>,
    /// Times that it failed.
    pub failures: u64,
}

/// How often it tells.
const TELLING: Duration = Duration::from_millis(100);
/// What it sleeps before each time.
const PAUSE: Duration = Duration::from_millis(4);
/// So much is told at once.
const AT_ONCE: usize = 200;

/// Runs until its input ends; each line of that names a deed.
///
/// # Errors
/// It cannot read or print.
pub fn main(files: &str) -> io::Result<()> {
    say(super::inside::READY)?;
    let stdin = io::stdin();
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    let place = place(&image::WRITABLE);
    let page = File::open(Path::new(files).join(page_cache::KEPT))?;
    let mut deed: Option<Deed> = None;
    loop {
        let now = Timespec { tv_sec: 0, tv_nsec: 0 };
        let waits = if deed.is_some() { Some(&now) } else { None };
        if poll(&mut [PollFd::new(&stdin, PollFlags::IN)], waits)? > 0 {
            let Some(line) = read_line(&stdin)? else { return Ok(()) };
            deed = serde_json::from_slice(&line).ok();
        }
        let Some(deed) = deed else { continue };
        let mut told = Line { deed, samples: Vec::new(), failures: 0 };
        let start = Instant::now();
        while start.elapsed() < TELLING && told.samples.len() < AT_ONCE && told.failures < 1000 {
            // From when it was to begin, so that what keeps it from beginning counts too.
            let due = Instant::now() + PAUSE;
            thread::sleep(PAUSE);
            match once(deed, &listener, &place, &page) {
                Ok(None) => told.samples.push(nanoseconds(due)),
                Ok(Some(count)) => told.samples.push(count),
                Err(_) => told.failures += 1,
            }
        }
        say(&serde_json::to_string(&told)?)?;
    }
}

/// A line, and nothing of the next, which would be waited for in vain if it were in a buffer here.
fn read_line(input: impl AsFd) -> io::Result<Option<Vec<u8>>> {
    let mut line = Vec::new();
    let mut byte = [0];
    while rustix::io::read(&input, &mut byte)? == 1 {
        match byte {
            [b'\n'] => return Ok(Some(line)),
            [byte] => line.push(byte),
        }
    }
    Ok(None)
}

/// Where it may write.
pub fn place(places: &[&str]) -> String {
    let may = |place: &&&str| {
        let path = format!("{place}/coracle-probe-{}", std::process::id());
        let made = OpenOptions::new().write(true).create(true).truncate(true).open(&path);
        let _ = fs::remove_file(&path);
        made.is_ok()
    };
    places.iter().find(may).unwrap_or(&"/").to_string()
}

/// Does it; gives the count where it is one that counts.
fn once(deed: Deed, listener: &TcpListener, place: &str, page: &File) -> io::Result<Option<u64>> {
    match deed {
        // Being there is all.
        Deed::Wake => {}
        Deed::Thread => thread::Builder::new().stack_size(64 << 10).spawn(|| ())?.join().unwrap_or(()),
        Deed::Memory => {
            let mut memory: Vec<u8> = Vec::new();
            memory.try_reserve_exact(256 << 10).map_err(io::Error::other)?;
            memory.resize(256 << 10, 1);
            std::hint::black_box(&memory);
        }
        Deed::Read => {
            // Any of 256.
            let mut any = [0];
            rustix::rand::getrandom(&mut any, rustix::rand::GetRandomFlags::empty())?;
            let page_of = u64::from(any[0]);
            page.read_exact_at(&mut [0; 4096], page_of * 4096)?;
        }
        Deed::Connect => {
            TcpStream::connect_timeout(&listener.local_addr()?, Duration::from_secs(5))?;
            drop(listener.accept()?);
        }
        Deed::FreeBytes => {
            let state = rustix::fs::statvfs(place)?;
            return Ok(Some(state.f_bavail.saturating_mul(state.f_frsize)));
        }
        Deed::FreeFiles => return Ok(Some(rustix::fs::statvfs(place)?.f_favail)),
        Deed::OpenFiles => {
            let text = fs::read_to_string("/proc/sys/fs/file-nr")?;
            let count = text.split_whitespace().next().and_then(|word| word.parse().ok());
            return count.map(Some).ok_or_else(|| io::Error::other("no count"));
        }
    }
    Ok(None)
}

fn nanoseconds(start: Instant) -> u64 {
    u64::try_from(start.elapsed().as_nanos()).unwrap_or(u64::MAX)
}
