// SPDX-License-Identifier: Apache-2.0
//! What a network card is connected to.

use std::io;
use std::os::fd::{AsRawFd, RawFd};

use libc::c_uint;

use super::stream::FrameStream;
use super::tap::Tap;

/// The host's side of a network card.
#[derive(Debug)]
pub enum Wire {
    /// A TAP interface: frames with virtio headers, between guest memory and the kernel.
    Tap(Tap),
    /// A stream to a network in user space: frames without headers, and so without offloads.
    Stream(FrameStream),
}

impl Wire {
    /// Largest packet in bytes, without Ethernet header, where that is known.
    pub fn mtu(&self) -> Option<u16> {
        match self {
            Self::Tap(tap) => tap.mtu(),
            Self::Stream(stream) => Some(stream.mtu()),
        }
    }

    /// Lets frames come with these offloads (`TUN_F_*`) still to be done.
    ///
    /// # Errors
    /// See [`Tap::set_offloads`].
    pub fn set_offloads(&self, offloads: c_uint) -> io::Result<()> {
        match self {
            Self::Tap(tap) => tap.set_offloads(offloads),
            Self::Stream(_) => Ok(()),
        }
    }

    /// Sends what is left to send; `true` where something stays until there is room again.
    pub fn flush(&mut self) -> bool {
        match self {
            Self::Tap(_) => false,
            Self::Stream(stream) => stream.flush(),
        }
    }
}

impl AsRawFd for Wire {
    fn as_raw_fd(&self) -> RawFd {
        match self {
            Self::Tap(tap) => tap.as_raw_fd(),
            Self::Stream(stream) => stream.as_raw_fd(),
        }
    }
}
