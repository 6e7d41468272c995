// SPDX-License-Identifier: Apache-2.0
//! A guest that was restored from a snapshot becomes one of its own.

use alloc::vec::Vec;

use coracle_protocol::{HOST_CLOCK_PORT, Renew};
use rustix::fd::OwnedFd;
use rustix::fs::{FileType, Mode, OFlags};
use rustix::io::{Errno, Result};

use crate::io_ports::{DEV_PORT, IoPorts};
use crate::{network, sys};

/// `MEM_MAJOR`, and the minor number of `/dev/random` (`drivers/char/mem.c`).
const RANDOM: (u32, u32) = (1, 8);
/// How long the clock may take to be set, which is what it is off by, and how often that is tried.
const CLOCK_ERROR_NS: u64 = 20_000_000;
const CLOCK_TRIES: u32 = 5;
/// Most entropy that is taken: the kernel's generator has a state of 256 bits, and more mixes no better.
const MAX_ENTROPY: usize = 512;

/// Mixes in what the host gives, has the kernel's generator start anew from it, and sets the clock and the name.
///
/// # Errors
/// The first system call that fails. The generator comes first: nothing else is done where that fails.
pub fn renew(renew: &Renew) -> Result<()> {
    if renew.entropy.len() > MAX_ENTROPY || renew.entropy.len() < 32 {
        return Err(Errno::INVAL);
    }
    let device = open_random()?;
    sys::add_entropy(&device, &entropy_request(&renew.entropy)?)?;
    // Without this the generator would go on with the key that the snapshot has until its next turn, a minute later.
    sys::reseed(&device)?;
    set_clock(renew.realtime_ns)?;
    if let Some(hostname) = &renew.hostname {
        rustix::system::sethostname(hostname.as_str().as_bytes())?;
    }
    network::set_addresses(&renew.macs)
}

/// Sets the time of day to what the VMM says now; where it has no clock, to what was the time when the host asked.
fn set_clock(asked_ns: u64) -> Result<()> {
    let ports = IoPorts::open_to_read(DEV_PORT);
    let host_time = || ports.read(HOST_CLOCK_PORT);
    for _ in 0..CLOCK_TRIES {
        let Some(now) = host_time() else { return sys::set_clock(asked_ns) };
        sys::set_clock(now)?;
        // A guest whose host is busy may have stood still between the two.
        if host_time().is_some_and(|later| later.saturating_sub(now) < CLOCK_ERROR_NS) {
            break;
        }
    }
    Ok(())
}

/// A `struct rand_pool_info`: bits of entropy, bytes that follow, the bytes.
fn entropy_request(entropy: &[u8]) -> Result<Vec<u8>> {
    let bytes = i32::try_from(entropy.len()).map_err(|_| Errno::INVAL)?;
    let mut request = Vec::with_capacity(8 + entropy.len());
    request.extend_from_slice(&(8 * bytes).to_ne_bytes());
    request.extend_from_slice(&bytes.to_ne_bytes());
    request.extend_from_slice(entropy);
    Ok(request)
}

/// The node is there once `/dev` is mounted; before, it is made.
fn open_random() -> Result<OwnedFd> {
    let open = || rustix::fs::open(c"/dev/random", OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty());
    match open() {
        Err(Errno::NOENT) => {
            let device = rustix::fs::makedev(RANDOM.0, RANDOM.1);
            rustix::fs::mknodat(rustix::fs::CWD, c"/dev/random", FileType::CharacterDevice, 0o666.into(), device)?;
            open()
        }
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_bits_are_credited() {
        let request = entropy_request(&[7; 32]).unwrap();
        assert_eq!(request[..8], [&256i32.to_ne_bytes()[..], &32i32.to_ne_bytes()[..]].concat());
        assert_eq!(request[8..], [7; 32]);
    }

    #[test]
    fn too_little_and_too_much_entropy_is_refused() {
        for length in [0, 31, 513] {
            let request = Renew { entropy: alloc::vec![1; length], realtime_ns: 0, hostname: None, macs: Vec::new() };
            assert_eq!(renew(&request), Err(Errno::INVAL), "{length}");
        }
    }
}
