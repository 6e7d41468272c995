// SPDX-License-Identifier: Apache-2.0
//! Devices that a guest sees.

pub mod virtio;
