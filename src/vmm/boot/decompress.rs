// SPDX-License-Identifier: Apache-2.0
//! Compression formats of Linux kernel payloads, unpacked under limits.
//!
//! All decoders are safe Rust: what they read comes from a file that a user was given by somebody else.

use std::fmt;
use std::io::Read;

use ruzstd::decoding::FrameDecoder;
use ruzstd::decoding::errors::FrameDecoderError;

/// Largest kernel that is unpacked, in bytes. Distribution kernels unpack to some 60 MiB.
pub const UNPACKED_MAX: u32 = 512 << 20;
/// Largest history that a decoder may keep. `zstd --ultra -22`, as Linux uses it, keeps 128 MiB, xz 32 MiB.
const WINDOW_MAX: u64 = 128 << 20;

/// A compression format that can be unpacked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Compression {
    /// `CONFIG_KERNEL_GZIP` (RFC 1952).
    Gzip,
    /// `CONFIG_KERNEL_XZ`, with the x86 branch filter.
    Xz,
    /// `CONFIG_KERNEL_ZSTD` (RFC 8878).
    Zstd,
    /// `CONFIG_KERNEL_LZ4`: the legacy frame format of `lz4 -l`.
    Lz4,
}

impl Compression {
    /// Tells the format by the magic number at the start.
    pub fn recognise(packed: &[u8]) -> Option<Self> {
        let magics: [(&[u8], Self); 4] = [
            (b"\x1f\x8b\x08", Self::Gzip),
            (b"\xfd7zXZ\0", Self::Xz),
            (b"\x28\xb5\x2f\xfd", Self::Zstd),
            (&LZ4_LEGACY_MAGIC.to_le_bytes(), Self::Lz4),
        ];
        magics.into_iter().find(|(magic, _)| packed.starts_with(magic)).map(|(_, format)| format)
    }
}

impl fmt::Display for Compression {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Gzip => "gzip",
            Self::Xz => "xz",
            Self::Zstd => "zstd",
            Self::Lz4 => "lz4",
        })
    }
}

/// Why a payload cannot be unpacked.
#[derive(Debug, thiserror::Error)]
pub enum DecompressError {
    /// It says that it unpacks to more than [`UNPACKED_MAX`].
    #[error("it would unpack to {} MiB, more than the {} MiB allowed", size >> 20, UNPACKED_MAX >> 20)]
    TooLarge {
        /// Promised size in bytes.
        size: u32,
    },
    /// It unpacks to another size than it says: damaged, or a decompression bomb.
    #[error("it unpacks to {found} {promised} bytes", found = if *more { "more than the promised" } else { "fewer than the promised" })]
    Size {
        /// Promised size in bytes.
        promised: u32,
        /// Whether there was more than promised.
        more: bool,
    },
    /// The decoder met something that the format does not allow.
    #[error("it is damaged ({0})")]
    Damaged(String),
}

/// Unpacks a kernel payload, which must give exactly `size` bytes. The size that Linux appends to all formats but gzip is
/// part of `packed`.
///
/// # Errors
/// The payload is damaged, or its size is not what it should be. No more than `size` bytes and the decoder's window
/// (at most 128 MiB) are allocated.
pub fn decompress(format: Compression, packed: &[u8], size: u32) -> Result<Vec<u8>, DecompressError> {
    if size > UNPACKED_MAX {
        return Err(DecompressError::TooLarge { size });
    }
    let without_size = packed.get(..packed.len().saturating_sub(4)).unwrap_or(&[]);
    match format {
        Compression::Gzip => read_all(flate2::bufread::GzDecoder::new(packed), size),
        Compression::Xz => {
            let limit_kib = u32::try_from(WINDOW_MAX >> 10).unwrap_or(u32::MAX);
            read_all(lzma_rust2::XzReader::new_mem_limit(without_size, false, limit_kib), size)
        }
        Compression::Zstd => unpack_zstd(without_size, size),
        Compression::Lz4 => unpack_lz4(without_size, size),
    }
}

fn damaged(error: impl fmt::Display) -> DecompressError {
    DecompressError::Damaged(error.to_string())
}

/// Room for `size` bytes; pages that are not written are not taken from the system.
fn room(size: u32) -> Result<Vec<u8>, DecompressError> {
    let size = usize::try_from(size).map_err(damaged)?;
    let mut room = Vec::new();
    room.try_reserve_exact(size).map_err(damaged)?;
    Ok(room)
}

/// Reads a decoder to its end, so that its checksum is verified, but never keeps more than `size` bytes.
fn read_all(mut decoder: impl Read, size: u32) -> Result<Vec<u8>, DecompressError> {
    let mut unpacked = room(size)?;
    decoder.by_ref().take(u64::from(size)).read_to_end(&mut unpacked).map_err(damaged)?;
    exact(&unpacked, size)?;
    // One more read makes the decoder check what follows the last byte.
    match decoder.read(&mut [0]) {
        Ok(0) => Ok(unpacked),
        Ok(_) => Err(DecompressError::Size { promised: size, more: true }),
        Err(error) => Err(damaged(error)),
    }
}

fn exact(unpacked: &[u8], promised: u32) -> Result<(), DecompressError> {
    match u64::try_from(unpacked.len()) {
        Ok(length) if length == u64::from(promised) => Ok(()),
        length => {
            Err(DecompressError::Size { promised, more: length.is_ok_and(|length| length > u64::from(promised)) })
        }
    }
}

fn unpack_zstd(packed: &[u8], size: u32) -> Result<Vec<u8>, DecompressError> {
    let mut decoder = FrameDecoder::new();
    decoder.set_max_window_size(WINDOW_MAX);
    let mut unpacked = room(size)?;
    unpacked.resize(unpacked.capacity(), 0);
    let length = decoder.decode_all(packed, &mut unpacked).map_err(|error| match error {
        FrameDecoderError::TargetTooSmall => DecompressError::Size { promised: size, more: true },
        error => damaged(error),
    })?;
    unpacked.truncate(length);
    exact(&unpacked, size)?;
    Ok(unpacked)
}

/// Starts an lz4 legacy frame, and may come again where frames are concatenated.
const LZ4_LEGACY_MAGIC: u32 = 0x184c_2102;
/// Each block of a legacy frame unpacks to this many bytes, the last one to fewer.
const LZ4_LEGACY_BLOCK: usize = 8 << 20;

/// Unpacks the legacy frame format: magic, then blocks, each after its packed size (lz4 `doc/lz4_Frame_format.md`, "Legacy
/// frame").
fn unpack_lz4(packed: &[u8], size: u32) -> Result<Vec<u8>, DecompressError> {
    let mut unpacked = room(size)?;
    let mut rest = packed.get(4..).unwrap_or(&[]);
    while !rest.is_empty() {
        let (length, next) = rest.split_first_chunk().ok_or_else(|| damaged("it ends inside a block's size"))?;
        let length = u32::from_le_bytes(*length);
        if length == LZ4_LEGACY_MAGIC {
            rest = next;
            continue;
        }
        let length = usize::try_from(length).map_err(damaged)?;
        let (block, next) = next.split_at_checked(length).ok_or_else(|| damaged("it ends inside a block"))?;
        rest = next;
        let start = unpacked.len();
        let room = unpacked.capacity().saturating_sub(start).min(LZ4_LEGACY_BLOCK);
        unpacked.resize(start + room, 0);
        let target = unpacked.get_mut(start..).unwrap_or(&mut []);
        let written = lz4_flex::block::decompress_into(block, target).map_err(|error| match error {
            lz4_flex::block::DecompressError::OutputTooSmall { .. } if room < LZ4_LEGACY_BLOCK => {
                DecompressError::Size { promised: size, more: true }
            }
            error => damaged(error),
        })?;
        unpacked.truncate(start + written);
    }
    exact(&unpacked, size)?;
    Ok(unpacked)
}

#[cfg(test)]
#[path = "decompress_test.rs"]
mod tests;
