// SPDX-License-Identifier: Apache-2.0
//! What the agent tells the first process of a container that was made ahead: its `Start` as it came, through a pipe.

use alloc::vec;
use alloc::vec::Vec;

use coracle_protocol::{Decoder, ErrorCode, Frame, Message, Start};
use rustix::fd::OwnedFd;
use rustix::io::{Errno, Result};

use crate::sys;
use crate::workload::{Refusal, failed};

/// Bytes read at once: most starts fit.
const CHUNK: usize = 4096;

/// In the agent: tells it. A process that has died meanwhile is `PIPE`.
pub fn give(orders: &OwnedFd, start: &Frame) -> Result<()> {
    let mut bytes = Vec::new();
    start.encode(&mut bytes).map_err(|_| Errno::TOOBIG)?;
    let mut rest = bytes.as_slice();
    while !rest.is_empty() {
        match rustix::io::write(orders, rest) {
            Ok(count) => rest = rest.get(count..).unwrap_or_default(),
            Err(Errno::INTR) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// In the child: waits to be told. Does not return where the agent will never do so.
pub fn take(orders: &OwnedFd) -> core::result::Result<Start, Refusal> {
    let mut decoder = Decoder::new();
    let mut chunk = vec![0; CHUNK];
    loop {
        let count = match rustix::io::read(orders, &mut chunk[..]) {
            Ok(0) => sys::exit(0),
            Ok(count) => count,
            Err(Errno::INTR) => continue,
            Err(error) => return Err(failed("cannot hear what to run")(error)),
        };
        let not_understood = || (ErrorCode::MALFORMED, "cannot understand what to run".into());
        match decoder.feed(&mut chunk.get(..count).unwrap_or_default()) {
            Ok(None) => {}
            Ok(Some(frame)) => match Message::from_frame(&frame) {
                Ok(Message::Start(start)) => return Ok(*start),
                _ => return Err(not_understood()),
            },
            Err(_) => return Err(not_understood()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::boxed::Box;
    use coracle_protocol::{Process, Streams, Task};
    use rustix::pipe::{PipeFlags, pipe_with};

    fn start(argument: usize) -> Start {
        let process = Process { arguments: vec![vec![b'x'; argument], b"last".to_vec()], ..Process::default() };
        Start { container: None, process, streams: Streams::default(), task: Task::Program }
    }

    fn frame(start: &Start) -> Frame {
        Message::Start(Box::new(start.clone())).to_frame(7).unwrap()
    }

    #[test]
    fn orders_longer_than_a_pipe_arrive() {
        let start = start(300_000);
        let (its, ours) = pipe_with(PipeFlags::CLOEXEC).unwrap();
        let told = frame(&start);
        let teller = std::thread::spawn(move || give(&ours, &told));
        assert_eq!(take(&its).unwrap(), start);
        teller.join().unwrap().unwrap();
    }

    #[test]
    fn a_reader_that_has_gone_is_an_error() {
        let (its, ours) = pipe_with(PipeFlags::CLOEXEC).unwrap();
        drop(its);
        // SIGPIPE is ignored in tests, as it is by PID 1.
        assert_eq!(give(&ours, &frame(&start(1))), Err(Errno::PIPE));
    }
}
