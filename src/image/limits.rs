// SPDX-License-Identifier: Apache-2.0
//! What is the most that an image may ask of this host. All sizes are in bytes.

/// Size of a manifest or index; the distribution specification asks registries to take at least this much.
pub const MANIFEST: u64 = 4 << 20;

/// Size of a configuration: environment, labels and a history of some hundred steps.
pub const CONFIGURATION: u64 = 8 << 20;

/// Number of layers. Docker's storage drivers stop at 127.
pub const LAYERS: usize = 512;

/// Size of one layer as it is transferred.
pub const LAYER: u64 = 128 << 30;

/// A layer may always unpack to this much ...
pub const UNPACKED_FREELY: u64 = 4 << 30;

/// ... and beyond it only to this many times its own size. Gzip reaches 1032 times with nothing but zeros, and trees of
/// files between 2 and 5 times.
pub const UNPACKED_RATIO: u64 = 100;

/// How much a layer of `size` bytes may unpack to.
pub const fn unpacked(size: u64) -> u64 {
    let by_ratio = size.saturating_mul(UNPACKED_RATIO);
    if by_ratio > UNPACKED_FREELY { by_ratio } else { UNPACKED_FREELY }
}
