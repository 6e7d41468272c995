// SPDX-License-Identifier: Apache-2.0
//! What a container wrote, kept in a file: a JSON object a line, as Docker's `json-file` driver has them.

use std::fs::{File, OpenOptions};
use std::io::{self, BufRead, BufReader, Seek, SeekFrom, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::wire::Stream;

/// A line without an end in sight is kept in pieces of so many bytes, as Docker does.
const LONGEST: usize = 16 << 10;

/// A line, or a piece of one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// The text, with the newline where it ends in one. What is not UTF-8 is replaced, as Docker does.
    pub log: String,
    /// Where it was written to.
    pub stream: Stream,
    /// When it came.
    pub time: Timestamp,
}

/// Writes a container's log.
#[derive(Debug)]
pub struct Log {
    file: File,
    /// What has come since the last newline, for each stream.
    parts: [Vec<u8>; 2],
}

impl Log {
    /// Goes on with the log at `path`, or begins it.
    ///
    /// # Errors
    /// The file system's.
    pub fn open(path: &Path) -> io::Result<Self> {
        let file = OpenOptions::new().append(true).create(true).mode(0o600).open(path)?;
        Ok(Self { file, parts: [Vec::new(), Vec::new()] })
    }

    /// Adds what was written just now.
    ///
    /// # Errors
    /// The file system's.
    pub fn write(&mut self, stream: Stream, bytes: &[u8]) -> io::Result<()> {
        let mut lines = Vec::new();
        let part = &mut self.parts[index(stream)];
        for line in bytes.split_inclusive(|byte| *byte == b'\n') {
            for piece in line.chunks(LONGEST) {
                if part.len() + piece.len() > LONGEST {
                    append(&mut lines, stream, part)?;
                }
                part.extend(piece);
            }
            if part.ends_with(b"\n") {
                append(&mut lines, stream, part)?;
            }
        }
        self.file.write_all(&lines)
    }

    /// Adds what has no newline at its end yet, since nothing will follow.
    ///
    /// # Errors
    /// The file system's.
    pub fn finish(&mut self) -> io::Result<()> {
        let mut lines = Vec::new();
        for stream in [Stream::Stdout, Stream::Stderr] {
            append(&mut lines, stream, &mut self.parts[index(stream)])?;
        }
        self.file.write_all(&lines)
    }
}

fn index(stream: Stream) -> usize {
    usize::from(stream == Stream::Stderr)
}

fn append(lines: &mut Vec<u8>, stream: Stream, part: &mut Vec<u8>) -> io::Result<()> {
    if !part.is_empty() {
        let entry = Entry { log: String::from_utf8_lossy(part).into_owned(), stream, time: Timestamp::now() };
        serde_json::to_writer(&mut *lines, &entry)?;
        lines.push(b'\n');
        part.clear();
    }
    Ok(())
}

/// Reads a container's log, also while it is written.
#[derive(Debug)]
pub struct Reader {
    file: BufReader<File>,
    /// The beginning of a line whose rest has not been written yet.
    begun: Vec<u8>,
}

impl Reader {
    /// Reads from the beginning; from the last `tail` entries where there is a number.
    ///
    /// # Errors
    /// The file system's.
    pub fn open(path: &Path, tail: Option<usize>) -> io::Result<Self> {
        let mut file = BufReader::new(File::open(path)?);
        if let Some(tail) = tail {
            let lines = (&mut file).lines_in_bytes()?;
            let at = lines.len().checked_sub(tail).and_then(|first| lines.get(first)).copied();
            file.seek(match at {
                Some(at) => SeekFrom::Start(at),
                None if tail == 0 => SeekFrom::End(0),
                None => SeekFrom::Start(0),
            })?;
        }
        Ok(Self { file, begun: Vec::new() })
    }

    /// The next entry; `None` where there is none yet.
    ///
    /// # Errors
    /// The file system's. A damaged line is passed over.
    pub fn next_entry(&mut self) -> io::Result<Option<Entry>> {
        loop {
            self.file.read_until(b'\n', &mut self.begun)?;
            if !self.begun.ends_with(b"\n") {
                return Ok(None);
            }
            let entry = serde_json::from_slice(&self.begun);
            self.begun.clear();
            if let Ok(entry) = entry {
                return Ok(Some(entry));
            }
        }
    }
}

trait LineStarts {
    /// Where each line starts.
    fn lines_in_bytes(self) -> io::Result<Vec<u64>>;
}

impl<R: BufRead> LineStarts for R {
    fn lines_in_bytes(mut self) -> io::Result<Vec<u64>> {
        let (mut starts, mut at, mut line) = (Vec::new(), 0, Vec::new());
        loop {
            line.clear();
            let count = self.read_until(b'\n', &mut line)?;
            if count == 0 {
                return Ok(starts);
            }
            starts.push(at);
            at += u64::try_from(count).unwrap_or(u64::MAX);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all(path: &Path, tail: Option<usize>) -> Vec<(Stream, String)> {
        let mut reader = Reader::open(path, tail).unwrap();
        std::iter::from_fn(|| reader.next_entry().unwrap()).map(|entry| (entry.stream, entry.log)).collect()
    }

    #[test]
    fn lines_are_kept_apart_by_stream() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("log");
        let mut log = Log::open(&path).unwrap();
        log.write(Stream::Stdout, b"one\ntw").unwrap();
        log.write(Stream::Stderr, b"error\n").unwrap();
        let mut follower = Reader::open(&path, None).unwrap();
        let read = |reader: &mut Reader| reader.next_entry().unwrap().map(|entry| entry.log);
        assert_eq!(read(&mut follower).as_deref(), Some("one\n"));
        assert_eq!(read(&mut follower).as_deref(), Some("error\n"));
        assert_eq!(read(&mut follower), None);
        log.write(Stream::Stdout, b"o\n\xff end").unwrap();
        assert_eq!(read(&mut follower).as_deref(), Some("two\n"));
        log.finish().unwrap();
        assert_eq!(read(&mut follower).as_deref(), Some("\u{fffd} end"));
        assert_eq!(all(&path, Some(1)), [(Stream::Stdout, "\u{fffd} end".to_owned())]);
        assert_eq!((all(&path, None).len(), all(&path, Some(9)).len(), all(&path, Some(0)).len()), (4, 4, 0));
    }

    #[test]
    fn a_line_without_an_end_is_kept_in_pieces_and_a_damaged_one_passed_over() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("log");
        let mut log = Log::open(&path).unwrap();
        log.write(Stream::Stdout, &vec![b'x'; 3 * LONGEST]).unwrap();
        log.write(Stream::Stdout, b"\n").unwrap();
        log.file.write_all(b"{broken\n").unwrap();
        log.write(Stream::Stdout, b"after\n").unwrap();
        let lengths: Vec<_> = all(&path, None).iter().map(|(_, text)| text.len()).collect();
        assert_eq!(lengths, [LONGEST, LONGEST, LONGEST, 1, 6]);
    }
}
