// SPDX-License-Identifier: Apache-2.0
//! Fetching blobs, and going on where a connection broke.

use std::io::{self, Read};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use ureq::http::{StatusCode, header};

use super::{Problem, Registry};
use crate::image::Digest;
use crate::image::store::Partial;

/// Milliseconds to wait before each further attempt, where the ones before brought nothing new.
pub const RETRIES: [u64; 4] = if cfg!(test) { [1, 2, 3, 4] } else { [250, 500, 1000, 2000] };

/// The rest of a blob.
pub struct Content {
    /// How many of the blob's bytes come before it.
    pub offset: u64,
    /// The bytes.
    pub body: Box<dyn Read + Send>,
}

impl Registry {
    /// Asks for a blob from byte `offset` on. A registry may give it from its beginning nevertheless.
    ///
    /// # Errors
    /// There is none, or it may not be read.
    pub fn blob(&self, digest: &Digest, offset: u64) -> Result<Content, Problem> {
        let range = format!("bytes={offset}-");
        let headers: &[_] = if offset > 0 { &[("range", range.as_str())] } else { &[] };
        let response = self.get(&format!("blobs/{digest}"), headers)?;
        let offset = match response.status() {
            StatusCode::OK => 0,
            StatusCode::PARTIAL_CONTENT => {
                let range = response.headers().get(header::CONTENT_RANGE).and_then(|value| value.to_str().ok());
                range
                    .and_then(range_start)
                    .ok_or_else(|| Problem::Protocol("a part without its Content-Range".into()))?
            }
            // Nothing comes after `offset`: what is here is not the beginning of the blob.
            StatusCode::RANGE_NOT_SATISFIABLE if offset > 0 => return self.blob(digest, 0),
            _ => return Err(self.unexpected(response, "blob")),
        };
        Ok(Content { offset, body: Box::new(response.into_body().into_reader()) })
    }

    /// Brings a blob of `size` bytes, as far as it is not here yet. `advanced` is told how many bytes are here.
    ///
    /// # Errors
    /// The connection broke and could not be had again, the content is wrong, or the store cannot be written.
    pub fn fetch(
        &self,
        digest: &Digest,
        size: u64,
        mut partial: Partial,
        cancelled: &AtomicBool,
        advanced: &dyn Fn(u64),
    ) -> Result<(), Problem> {
        let mut result = self.receive(digest, size, &mut partial, cancelled, advanced);
        // What a run before has left may be damaged, by a power cut for example: one more try from the beginning.
        if result.is_ok() && partial.found() > 0 && partial.verify().is_err() {
            log::warn!("the part of {digest} that was here is damaged; fetching it again");
            partial.restart()?;
            result = self.receive(digest, size, &mut partial, cancelled, advanced);
        }
        match result.and_then(|()| partial.verify()) {
            Ok(()) => partial.publish(),
            Err(problem) => {
                let is_full = |error: &io::Error| error.kind() == io::ErrorKind::StorageFull;
                let useless = match &problem {
                    Problem::DigestMismatch { .. } | Problem::Size { .. } => true,
                    // Others may need the room more.
                    Problem::Store { error, .. } => is_full(error),
                    _ => false,
                };
                if useless {
                    partial.discard()?;
                }
                Err(problem)
            }
        }
    }

    fn receive(
        &self,
        digest: &Digest,
        size: u64,
        partial: &mut Partial,
        cancelled: &AtomicBool,
        advanced: &dyn Fn(u64),
    ) -> Result<(), Problem> {
        let mut waits = RETRIES.iter();
        while partial.received() < size {
            let before = partial.received();
            let problem = match self.receive_once(digest, size, partial, cancelled, advanced) {
                Err(problem) if problem.is_transient() => problem,
                result => return result,
            };
            if partial.received() > before {
                waits = RETRIES.iter();
            }
            let cause = match problem {
                Problem::Interrupted { cause, .. } | Problem::Unreachable { cause, .. } => cause,
                other => other.to_string(),
            };
            let Some(wait) = waits.next() else {
                return Err(Problem::Interrupted { received: partial.received(), size, cause });
            };
            log::info!("going on with {digest} at byte {} in {wait} ms: {cause}", partial.received());
            std::thread::sleep(Duration::from_millis(*wait));
        }
        Ok(())
    }

    fn receive_once(
        &self,
        digest: &Digest,
        size: u64,
        partial: &mut Partial,
        cancelled: &AtomicBool,
        advanced: &dyn Fn(u64),
    ) -> Result<(), Problem> {
        let mut content = self.blob(digest, partial.received())?;
        match content.offset {
            offset if offset == partial.received() => {}
            0 => partial.restart()?,
            offset => {
                return Err(Problem::Protocol(format!("asked for byte {}, it gives {offset}", partial.received())));
            }
        }
        let mut buffer = vec![0; 1 << 17];
        loop {
            if cancelled.load(Ordering::Relaxed) {
                return Err(Problem::Cancelled);
            }
            let broken = |cause: String| Problem::Interrupted { received: 0, size, cause };
            match content.body.read(&mut buffer) {
                Ok(0) if partial.received() < size => return Err(broken("it ended early".into())),
                Ok(0) => return Ok(()),
                Ok(count) => partial.write(buffer.get(..count).unwrap_or_default())?,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(broken(error.to_string())),
            }
            advanced(partial.received());
        }
    }
}

/// The first byte's number in `bytes FIRST-LAST/SIZE` (RFC 9110 §14.4).
fn range_start(text: &str) -> Option<u64> {
    text.trim().strip_prefix("bytes ")?.split_once('-')?.0.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_read() {
        assert_eq!(range_start("bytes 5-9/10"), Some(5));
        assert_eq!(range_start("bytes 0-9/*"), Some(0));
        for text in ["", "bytes", "bytes */10", "5-9/10", "bytes -9/10", "bytes 99999999999999999999-/1"] {
            assert_eq!(range_start(text), None, "{text}");
        }
    }
}
