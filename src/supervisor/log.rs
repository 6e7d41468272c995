// SPDX-License-Identifier: Apache-2.0
//! What a container wrote, kept in a file: a JSON object a line, as Docker's `json-file` driver has them.

use std::fs::{self, File, OpenOptions};
use std::io::{self, BufRead, BufReader, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::wire::Stream;

/// A line without an end in sight is kept in pieces of so many bytes, as Docker does.
const LONGEST: usize = 16 << 10;

/// Bytes after which a log is put aside and another begun; only one is kept aside.
const MAX_SIZE: u64 = 64 << 20;

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
    path: PathBuf,
    file: File,
    size: u64,
    limit: u64,
    /// What has come since the last newline, for each stream.
    parts: [Vec<u8>; 2],
}

impl Log {
    /// Goes on with the log at `path`, or begins it.
    ///
    /// # Errors
    /// The file system's.
    pub fn open(path: &Path) -> io::Result<Self> {
        let file = open(path)?;
        let size = file.metadata()?.len();
        Ok(Self { path: path.to_owned(), file, size, limit: MAX_SIZE, parts: [Vec::new(), Vec::new()] })
    }

    /// Adds what was written just now.
    ///
    /// # Errors
    /// The file system's.
    pub fn write(&mut self, stream: Stream, bytes: &[u8]) -> io::Result<()> {
        let (mut lines, now) = (Vec::new(), Timestamp::now());
        let part = &mut self.parts[index(stream)];
        for line in bytes.split_inclusive(|byte| *byte == b'\n') {
            for piece in line.chunks(LONGEST) {
                if part.len() + piece.len() > LONGEST {
                    append(&mut lines, stream, part, now)?;
                }
                part.extend(piece);
            }
            if part.ends_with(b"\n") {
                append(&mut lines, stream, part, now)?;
            }
        }
        self.append(&lines)
    }

    /// Adds what has no newline at its end yet, since nothing will follow.
    ///
    /// # Errors
    /// The file system's.
    pub fn finish(&mut self) -> io::Result<()> {
        let (mut lines, now) = (Vec::new(), Timestamp::now());
        for stream in [Stream::Stdout, Stream::Stderr] {
            append(&mut lines, stream, &mut self.parts[index(stream)], now)?;
        }
        self.append(&lines)
    }

    fn append(&mut self, lines: &[u8]) -> io::Result<()> {
        if self.size >= self.limit {
            fs::rename(&self.path, aside(&self.path))?;
            (self.file, self.size) = (open(&self.path)?, 0);
        }
        self.size += u64::try_from(lines.len()).unwrap_or(u64::MAX);
        self.file.write_all(lines)
    }
}

/// Where an older part of a log is.
fn aside(path: &Path) -> PathBuf {
    path.with_extension("log.1")
}

fn open(path: &Path) -> io::Result<File> {
    OpenOptions::new().append(true).create(true).mode(0o600).open(path)
}

fn index(stream: Stream) -> usize {
    usize::from(stream == Stream::Stderr)
}

fn append(lines: &mut Vec<u8>, stream: Stream, part: &mut Vec<u8>, time: Timestamp) -> io::Result<()> {
    if !part.is_empty() {
        let entry = Entry { log: String::from_utf8_lossy(part).into_owned(), stream, time };
        serde_json::to_writer(&mut *lines, &entry)?;
        lines.push(b'\n');
        part.clear();
    }
    Ok(())
}

/// Reads a container's log, also while it is written.
#[derive(Debug)]
pub struct Reader {
    path: PathBuf,
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
        let opened = |path: &Path| {
            Ok::<_, io::Error>(Self {
                path: path.to_owned(),
                file: BufReader::new(File::open(path)?),
                begun: Vec::new(),
            })
        };
        // The older part first, if there is one; it says by its name where the log goes on.
        let mut reader = opened(path)?;
        if let Ok(file) = File::open(aside(path)) {
            reader.file = BufReader::new(file);
        }
        let Some(tail) = tail else { return Ok(reader) };
        let mut count = 0;
        while reader.next_entry()?.is_some() {
            count += 1;
        }
        let mut reader = Self::open(path, None)?;
        for _ in 0..usize::saturating_sub(count, tail) {
            reader.next_entry()?;
        }
        Ok(reader)
    }

    /// The next entry; `None` where there is none yet.
    ///
    /// # Errors
    /// The file system's. A damaged line is passed over.
    pub fn next_entry(&mut self) -> io::Result<Option<Entry>> {
        loop {
            self.file.read_until(b'\n', &mut self.begun)?;
            if !self.begun.ends_with(b"\n") {
                if self.begun.is_empty() && self.goes_on_elsewhere()? {
                    continue;
                }
                return Ok(None);
            }
            let entry = serde_json::from_slice(&self.begun);
            self.begun.clear();
            if let Ok(entry) = entry {
                return Ok(Some(entry));
            }
        }
    }

    /// Turns to the newer part of the log where this one has been put aside.
    fn goes_on_elsewhere(&mut self) -> io::Result<bool> {
        let (ours, newest) = (self.file.get_ref().metadata()?, File::open(&self.path)?);
        let is_newest = (ours.dev(), ours.ino()) == newest.metadata().map(|data| (data.dev(), data.ino()))?;
        if !is_newest {
            self.file = BufReader::new(newest);
        }
        Ok(!is_newest)
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

    #[test]
    fn a_log_does_not_grow_for_ever_and_is_read_across_its_parts() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("output.log");
        let mut log = Log::open(&path).unwrap();
        log.limit = 1000;
        let mut follower = Reader::open(&path, None).unwrap();
        for number in 0..100 {
            log.write(Stream::Stdout, format!("{number}\n").as_bytes()).unwrap();
            assert_eq!(follower.next_entry().unwrap().map(|entry| entry.log), Some(format!("{number}\n")));
        }
        let kept = all(&path, None);
        assert!((10..90).contains(&kept.len()) && kept.last().unwrap().1 == "99\n", "{kept:?}");
        assert_eq!(all(&path, Some(2)).len(), 2);
        assert!(folder.path().read_dir().unwrap().count() == 2 && path.metadata().unwrap().len() < 1200);
    }
}
