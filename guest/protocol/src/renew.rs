// SPDX-License-Identifier: Apache-2.0
//! Becoming another guest than the one that was in the snapshot.

use alloc::vec::Vec;
use core::fmt;

use serde::{Deserialize, Serialize};

use crate::Text;

/// What makes a restored guest one of its own. Its connections are gone already, and each program that keeps random
/// numbers of its own has to be started after this.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Renew {
    /// Random bytes that no other guest gets, 32 to 512: the kernel's generator starts anew from them.
    pub entropy: Vec<u8>,
    /// The time when this was written, in nanoseconds since 1970 (`CLOCK_REALTIME`): for an agent that finds no clock at
    /// [`HOST_CLOCK_PORT`](crate::HOST_CLOCK_PORT).
    pub realtime_ns: u64,
    /// The guest's name; `None` leaves it as it is.
    pub hostname: Option<Text>,
    /// Addresses of its network cards: that of `eth0`, and so on. The cards are down. Those beyond the list stay as they
    /// are.
    pub macs: Vec<[u8; 6]>,
}

/// Without the entropy: it is a secret.
impl fmt::Debug for Renew {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { entropy: _, realtime_ns, hostname, macs } = self;
        formatter
            .debug_struct("Renew")
            .field("realtime_ns", realtime_ns)
            .field("hostname", hostname)
            .field("macs", macs)
            .finish_non_exhaustive()
    }
}
