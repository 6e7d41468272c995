// SPDX-License-Identifier: Apache-2.0
//! The bad neighbour. Whatever it does, it does within limits that the host has set and read back before it says `go`;
//! what they do not bound has a bound here.

use std::fs::{self, File};
use std::io::{self, BufRead, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::Duration;

use rustix::fs::{Advice, fadvise};

use super::inside::{announce, say};
use super::{image, page_cache, victim};

/// Said when an attack goes on.
pub const ATTACKING: &str = "attacking";
/// Said when it is over.
pub const STOPPED: &str = "stopped";

/// What a flood is made of: no line that says something begins with it.
pub const FLOOD: char = 'x';
/// Bytes that are written at most.
pub const BYTES: u64 = 16 << 20;
/// Files that are made at most.
pub const FILES: u64 = 1000;
/// Files that are opened at most.
pub const OPEN: u64 = 4000;
/// Processes that are started at most: more than the limits of a sandbox allow.
pub const PROCESSES: u32 = 256;
/// Processes that compute.
const SPINNERS: usize = 4;

/// Takes words from its input, a line each: the name of an attack, or `stop`. At the end of the input all is over.
///
/// # Errors
/// It cannot read or print.
pub fn main(marker: &str, files: &str) -> io::Result<()> {
    announce(&format!("{marker}a"))?;
    let mut running = None;
    for line in io::stdin().lock().lines() {
        stop(&mut running);
        match line?.trim() {
            "stop" => say(STOPPED)?,
            name => running = Some(start(name, files)?),
        }
    }
    stop(&mut running);
    Ok(())
}

/// Starts an attack. What the one before has left may take a moment to go.
fn start(name: &str, files: &str) -> io::Result<i32> {
    let mut tries = 1000;
    loop {
        match fork(|| perform(name, files)) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock && tries > 0 => tries -= 1,
            started => return started,
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Starts a process of which what it starts is known by its process group.
fn fork(work: impl FnOnce() -> io::Result<()>) -> io::Result<i32> {
    // SAFETY: this process has one thread, so the child may do what any process may.
    match unsafe { libc::fork() } {
        0 => {
            let _ = rustix::process::setpgid(None, None);
            if let Err(error) = work() {
                let _ = writeln!(io::stderr(), "coracle-probe: {error}");
            }
            // SAFETY: ends the child at once; nothing of the parent's is flushed twice.
            unsafe { libc::_exit(0) }
        }
        pid if pid > 0 => Ok(pid),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Ends an attack, and all that it has started.
fn stop(running: &mut Option<i32>) {
    let Some(group) = running.take().and_then(rustix::process::Pid::from_raw) else { return };
    loop {
        // Until all are reaped: some may have been on their way when the signal came.
        let _ = rustix::process::kill_process_group(group, rustix::process::Signal::KILL);
        match rustix::process::waitpgid(group, rustix::process::WaitOptions::empty()) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(_) => break,
        }
    }
    // What it has written is taken away by whoever is left.
    let place = victim::place(&image::WRITABLE);
    let _ = fs::remove_dir_all(format!("{place}/coracle-attack"));
}

/// Starts another process of the group, if that can be had.
fn another(work: impl FnOnce()) -> bool {
    // SAFETY: as in `fork`.
    match unsafe { libc::fork() } {
        0 => {
            work();
            // SAFETY: as in `fork`.
            unsafe { libc::_exit(0) }
        }
        pid => pid > 0,
    }
}

fn wait_for_ever() {
    loop {
        // SAFETY: waits for a signal.
        unsafe { libc::pause() };
    }
}

/// Does one thing in several processes, for ever.
fn by_many(work: impl Fn() + Copy) -> io::Result<()> {
    (0..SPINNERS).for_each(|_| {
        another(|| {
            loop {
                work();
            }
        });
    });
    say(ATTACKING)?;
    wait_for_ever();
    Ok(())
}

fn perform(name: &str, files: &str) -> io::Result<()> {
    let place = format!("{}/coracle-attack", victim::place(&image::WRITABLE));
    match name {
        "cpu-burner" => by_many(|| {
            std::hint::black_box((0..1_000_000_u64).fold(1, |all: u64, one| all.wrapping_mul(one | 1)));
        }),
        "exit-storm" => by_many(|| {
            // Every hypervisor has to look at it.
            std::hint::black_box(core::arch::x86_64::__cpuid(0));
        }),
        "fork-bomb" => {
            say(ATTACKING)?;
            bomb(PROCESSES);
            Ok(())
        }
        "process-exhaustion" => {
            let mut started = 0;
            let mut told = false;
            loop {
                // Others may end, and leave room for more.
                match started < PROCESSES && another(wait_for_ever) {
                    true => started += 1,
                    false if told => std::thread::sleep(Duration::from_millis(5)),
                    false => {
                        say(ATTACKING)?;
                        told = true;
                    }
                }
            }
        }
        "memory-hog" => {
            say(ATTACKING)?;
            loop {
                another(hog);
                let _ = rustix::process::wait(rustix::process::WaitOptions::empty());
            }
        }
        "disk-filler" => {
            fs::create_dir_all(&place)?;
            let file = File::create(format!("{place}/much"))?;
            let block = vec![1_u8; 1 << 20];
            for offset in (0..BYTES).step_by(block.len()) {
                file.write_all_at(&block, offset)?;
            }
            say(ATTACKING)?;
            wait_for_ever();
            Ok(())
        }
        "inode-filler" => {
            fs::create_dir_all(&place)?;
            (0..FILES).try_for_each(|number| File::create(format!("{place}/{number}")).map(drop))?;
            say(ATTACKING)?;
            wait_for_ever();
            Ok(())
        }
        "page-cache-thrash" => {
            let path = Path::new(files).join(page_cache::KEPT);
            by_many(|| {
                if let Ok(file) = File::open(&path) {
                    let _ = fadvise(&file, 0, None, Advice::DontNeed);
                }
            })
        }
        "log-flood" => by_many(|| {
            let _ = say(&FLOOD.to_string().repeat(4000));
        }),
        "file-exhaustion" => {
            let kept: Vec<File> = (0..OPEN).map_while(|_| File::open("/dev/null").ok()).collect();
            let mut number = u64::try_from(kept.len()).unwrap_or(0);
            // A process may have so many; there are others.
            while number < OPEN && number > 0 && another(open_and_wait) {
                number = number.saturating_add(u64::try_from(kept.len()).unwrap_or(0));
            }
            std::thread::sleep(Duration::from_millis(200));
            say(ATTACKING)?;
            wait_for_ever();
            Ok(())
        }
        "connection-flood" => {
            let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
            let address = listener.local_addr()?;
            by_many(|| {
                let _ = TcpStream::connect_timeout(&address, Duration::from_secs(1));
                let _ = listener.accept();
            })
        }
        _ => Err(io::Error::other(format!("there is no attack `{name}`"))),
    }
}

/// Each process starts two others, and then such as end at once, for as long as it can. There are never many more than
/// [`PROCESSES`]: a guest of its own has no other limit.
fn bomb(left: u32) {
    for _ in 0..2 {
        if left > 1 {
            another(|| bomb(left / 2));
        }
    }
    loop {
        another(|| ());
        while matches!(rustix::process::wait(rustix::process::WaitOptions::NOHANG), Ok(Some(_))) {}
    }
}

/// Takes memory until that ends it.
fn hog() {
    let mut all: Vec<Vec<u8>> = Vec::new();
    loop {
        let mut more: Vec<u8> = Vec::new();
        if more.try_reserve_exact(4 << 20).is_ok() {
            more.resize(4 << 20, 1);
            all.push(more);
        }
        std::hint::black_box(&all);
    }
}

fn open_and_wait() {
    // What it has inherited are the same open files: these are new ones.
    let files: Vec<File> = (3..1024)
        .filter_map(|number| {
            // SAFETY: closes a descriptor that this process has inherited, and that nothing of it uses any more.
            unsafe { libc::close(number) };
            File::open("/dev/null").ok()
        })
        .collect();
    std::hint::black_box(&files);
    wait_for_ever();
}
