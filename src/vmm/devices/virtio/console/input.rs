// SPDX-License-Identifier: Apache-2.0
//! What the guest's console reads.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsRawFd, RawFd};

use vmm_sys_util::epoll::EventSet;

use crate::vmm::devices::nonblocking::NonBlocking;
use crate::vmm::event_loop::{EventLoop, Token};

/// A file that is read as far as the guest has room, and no further: the rest waits where it is.
pub(super) struct Input {
    file: NonBlocking,
    /// The event loop can tell when there is something to read. Of regular files and `/dev/null` it cannot, and need not.
    watchable: bool,
    /// There may be something to read.
    pub(super) ready: bool,
}

impl Input {
    pub(super) fn new(file: File) -> io::Result<Self> {
        let file = NonBlocking::for_reading(file)?;
        let watchable = match EventLoop::new()?.add(file.as_raw_fd(), EventSet::IN, Token::Machine(0)) {
            Ok(()) => true,
            Err(error) if error.raw_os_error() == Some(libc::EPERM) => false,
            Err(error) => return Err(error),
        };
        Ok(Self { file, watchable, ready: true })
    }

    /// What to wait on, edge-triggered.
    pub(super) fn descriptor(&self) -> Option<RawFd> {
        self.watchable.then(|| self.file.as_raw_fd())
    }

    /// Reads what there is; nothing where that is nothing, until [`Input::ready`] is set again.
    pub(super) fn read<'a>(&mut self, buffer: &'a mut [u8]) -> &'a [u8] {
        while self.ready {
            match self.file.read(buffer) {
                Ok(count) if count > 0 => return buffer.get(..count).unwrap_or_default(),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                // Nothing more for now, the end, or a terminal that has gone.
                _ => self.ready = false,
            }
        }
        &[]
    }
}
