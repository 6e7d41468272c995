// SPDX-License-Identifier: Apache-2.0
//! Devices that a guest sees.

pub mod console_output;
pub mod exit;
pub mod host_clock;
pub mod legacy;
pub mod nonblocking;
pub mod token_bucket;
pub mod virtio;
