// SPDX-License-Identifier: Apache-2.0
//! A layer's content as a tar stream that verifies itself.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use flate2::bufread::MultiGzDecoder;
use ruzstd::decoding::errors::{FrameDecoderError, ReadFrameHeaderError};
use ruzstd::decoding::{BlockDecodingStrategy, FrameDecoder};

use super::{Digest, Hasher};

/// How a layer is packed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Compression {
    /// Not at all.
    None,
    /// RFC 1952.
    Gzip,
    /// RFC 8878.
    Zstd,
}

impl Compression {
    /// What a layer's media type says, if it is one of an image's layer.
    pub fn of(media_type: &str) -> Option<Self> {
        Some(match media_type {
            "application/vnd.oci.image.layer.v1.tar" | "application/vnd.docker.image.rootfs.diff.tar" => Self::None,
            "application/vnd.oci.image.layer.v1.tar+gzip" | "application/vnd.docker.image.rootfs.diff.tar.gzip" => {
                Self::Gzip
            }
            "application/vnd.oci.image.layer.v1.tar+zstd" | "application/vnd.docker.image.rootfs.diff.tar.zstd" => {
                Self::Zstd
            }
            _ => return None,
        })
    }
}

/// A layer's content, unpacked as it is read. The read that reaches its end fails unless all that was read has the digest
/// that was expected. Nothing is opened before the first read.
pub struct LayerReader {
    path: PathBuf,
    compression: Compression,
    source: Option<Box<dyn Read + Send>>,
    hasher: Hasher,
    expected: Digest,
    read: u64,
    limit: u64,
    verified: Arc<AtomicBool>,
}

impl LayerReader {
    /// A reader of the file at `path` that gives at most `limit` bytes, which have to have the digest `expected`.
    pub fn new(path: PathBuf, compression: Compression, expected: Digest, limit: u64) -> Self {
        Self {
            path,
            compression,
            source: None,
            hasher: Hasher::new(),
            expected,
            read: 0,
            limit,
            verified: Arc::default(),
        }
    }

    /// The digest of its content.
    pub fn diff_id(&self) -> &Digest {
        &self.expected
    }

    /// Tells, also after the reader is gone, whether it was read to its end and found right.
    pub(super) fn verdict(&self) -> Arc<AtomicBool> {
        Arc::clone(&self.verified)
    }

    fn open(&self) -> io::Result<Box<dyn Read + Send>> {
        let file = BufReader::with_capacity(1 << 16, File::open(&self.path)?);
        Ok(match self.compression {
            Compression::None => Box::new(file),
            Compression::Gzip => Box::new(MultiGzDecoder::new(file)),
            Compression::Zstd => Box::new(ZstdReader::new(file)),
        })
    }

    fn invalid(&self, reason: String) -> io::Error {
        let name = format!("layer {}", self.expected);
        io::Error::new(io::ErrorKind::InvalidData, format!("{name}: {reason}"))
    }
}

impl Read for LayerReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.verified.load(Ordering::Relaxed) || buffer.is_empty() {
            return Ok(0);
        }
        let opened = self.source.take().map_or_else(|| self.open(), Ok)?;
        let count = match self.source.insert(opened).read(buffer) {
            Ok(count) => count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => return Err(error),
            Err(error) => return Err(self.invalid(format!("it cannot be unpacked: {error}"))),
        };
        if count == 0 {
            let found = std::mem::take(&mut self.hasher).finish();
            if found != self.expected {
                return Err(self.invalid(format!("its content has the digest {found} instead")));
            }
            self.verified.store(true, Ordering::Relaxed);
            self.source = None;
            return Ok(0);
        }
        self.read = self.read.saturating_add(u64::try_from(count).unwrap_or(u64::MAX));
        if self.read > self.limit {
            let limit = self.limit;
            return Err(self.invalid(format!("it unpacks to more than {limit} bytes, the most that its size allows")));
        }
        self.hasher.update(buffer.get(..count).unwrap_or_default());
        Ok(count)
    }
}

/// Zstandard frames one after the other, with skippable frames between.
struct ZstdReader<R> {
    source: R,
    decoder: FrameDecoder,
    in_frame: bool,
}

impl<R: BufRead> ZstdReader<R> {
    fn new(source: R) -> Self {
        Self { source, decoder: FrameDecoder::new(), in_frame: false }
    }

    /// Begins the next frame; `false` at the end.
    fn next_frame(&mut self) -> io::Result<bool> {
        loop {
            if self.source.fill_buf()?.is_empty() {
                return Ok(false);
            }
            match self.decoder.reset(&mut self.source) {
                Ok(()) => return Ok(true),
                Err(FrameDecoderError::ReadFrameHeaderError(ReadFrameHeaderError::SkipFrame { length, .. })) => {
                    let length = u64::from(length);
                    let skipped = io::copy(&mut self.source.by_ref().take(length), &mut io::sink())?;
                    if skipped < length {
                        return Err(io::ErrorKind::UnexpectedEof.into());
                    }
                }
                Err(error) => return Err(io::Error::new(io::ErrorKind::InvalidData, error.to_string())),
            }
        }
    }
}

impl<R: BufRead> Read for ZstdReader<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            if !self.in_frame {
                self.in_frame = self.next_frame()?;
                if !self.in_frame {
                    return Ok(0);
                }
            }
            while self.decoder.can_collect() < buffer.len() && !self.decoder.is_finished() {
                let wanted = BlockDecodingStrategy::UptoBytes(buffer.len() - self.decoder.can_collect());
                let decoded = self.decoder.decode_blocks(&mut self.source, wanted);
                decoded.map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error.to_string()))?;
            }
            let count = self.decoder.read(buffer)?;
            if count > 0 {
                return Ok(count);
            }
            let sums = (self.decoder.get_checksum_from_data(), self.decoder.get_calculated_checksum());
            if let (Some(expected), Some(found)) = sums
                && expected != found
            {
                return Err(io::Error::new(io::ErrorKind::InvalidData, "a frame's checksum is wrong"));
            }
            self.in_frame = false;
        }
    }
}

#[cfg(test)]
#[path = "layer_test.rs"]
mod tests;
