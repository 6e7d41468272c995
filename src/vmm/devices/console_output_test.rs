// SPDX-License-Identifier: Apache-2.0
use std::io::{PipeReader, Read};
use std::os::fd::OwnedFd;

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use super::*;
use crate::vmm::event_loop::{EventLoop, Token};
use vmm_sys_util::epoll::EventSet;

fn to_pipe() -> (PipeReader, ConsoleOutput) {
    let (reader, writer) = io::pipe().unwrap();
    let file = File::from(OwnedFd::from(writer));
    (reader, ConsoleOutput::new().unwrap().to_terminal(file).unwrap())
}

/// Waits for the timer as the event loop does; `false` where it does not expire.
fn wait_and_write(output: &mut ConsoleOutput, timeout_ms: i32) -> bool {
    let events = EventLoop::new().unwrap();
    events.add(output.timer(), EventSet::IN, Token::Machine(0)).unwrap();
    let mut due = false;
    events.wait(timeout_ms, |_, _| due = true).unwrap();
    if due {
        output.write_out();
    }
    due
}

fn read(reader: &mut PipeReader, count: usize) -> Vec<u8> {
    let mut data = vec![0; count];
    reader.read_exact(&mut data).unwrap();
    data
}

#[test]
fn a_line_is_written_at_once_and_a_prompt_soon() {
    let (mut reader, mut output) = to_pipe();
    for byte in b"boot\nlogin: " {
        output.push(&[*byte]);
    }
    assert_eq!(read(&mut reader, 5), b"boot\n");
    assert!(wait_and_write(&mut output, 5000));
    assert_eq!(read(&mut reader, 7), b"login: ");
    assert!(!wait_and_write(&mut output, 50), "nothing waits, so no timer runs");
    assert_eq!(output.counts(), (12, 0));
}

#[test]
fn the_first_byte_is_told_once() {
    let (_reader, output) = to_pipe();
    let calls = Arc::new(AtomicU32::new(0));
    let counter = Arc::clone(&calls);
    let mut output = output.on_first_byte(move || {
        counter.fetch_add(1, Ordering::SeqCst);
    });
    output.push(b"");
    assert_eq!(calls.load(Ordering::SeqCst), 0);
    output.push(b"a");
    output.push(b"b");
    assert_eq!(calls.load(Ordering::SeqCst), 1);
}

#[test]
fn a_stuck_reader_costs_neither_time_nor_memory_and_is_told_what_it_missed() {
    let (mut reader, mut output) = to_pipe();
    output.set_patience(Duration::MAX);
    let start = Instant::now();
    let line = [b'x'; 99].into_iter().chain([b'\n']).collect::<Vec<_>>();
    for _ in 0..40_000 {
        output.push(&line);
    }
    assert!(start.elapsed() < Duration::from_secs(20), "{:?}", start.elapsed());
    let (bytes, dropped) = output.counts();
    assert_eq!(bytes, 4_000_000);
    assert_eq!(output.sinks[0].pending.len(), BOUND);
    assert!(!output.ready(), "the guest has to wait");
    output.set_patience(Duration::ZERO);
    assert!(output.ready(), "but not for ever");

    output.set_patience(Duration::MAX);
    // The reader wakes up: everything that was kept comes, then the gap, then what is new.
    let collect = std::thread::spawn(move || {
        let mut all = Vec::new();
        reader.read_to_end(&mut all).unwrap();
        all
    });
    while !output.sinks[0].pending.is_empty() {
        wait_and_write(&mut output, 5000);
    }
    assert!(output.ready());
    output.push(b"new\n");
    output.finish(Duration::from_secs(5));
    drop(output);
    let all = collect.join().unwrap();
    let tail = format!("\r\n[coracle: {dropped} bytes of output dropped]\r\nnew\n");
    assert!(all.ends_with(tail.as_bytes()));
    assert_eq!((all.len() - tail.len()) as u64 + dropped + 4, bytes + 4);
}

#[test]
fn a_log_takes_a_burst_and_then_its_rate() {
    let mut file = tempfile::tempfile().unwrap();
    let mut output = ConsoleOutput::new().unwrap().to_log(file.try_clone().unwrap()).unwrap();
    let start = Instant::now();
    for _ in 0..100 {
        output.push(&[b'y'; 100_000]);
        assert!(output.ready(), "a log never slows the guest");
    }
    output.finish(Duration::from_secs(5));
    let (bytes, dropped) = output.counts();
    assert_eq!(bytes, 10_000_000);
    let mut all = String::new();
    io::Seek::rewind(&mut file).unwrap();
    file.read_to_string(&mut all).unwrap();
    assert!(all.ends_with(&format!("[coracle: {dropped} bytes of output dropped]\r\n")));
    let kept = all.bytes().filter(|byte| *byte == b'y').count() as u64 - 1;
    // "bytes" in the line that tells of the gap has the one other y.
    assert_eq!(kept + dropped, bytes);
    let most = LOG_BURST + LOG_RATE * (start.elapsed().as_secs() + 1);
    assert!((LOG_BURST..most).contains(&kept), "{kept}");
}

#[test]
fn a_reader_that_has_gone_is_no_error() {
    let (reader, mut output) = to_pipe();
    drop(reader);
    output.push(b"into the void\n");
    assert_eq!(output.counts(), (14, 14));
    assert!(output.ready());
}

#[test]
fn output_without_readers_is_counted() {
    let mut output = ConsoleOutput::new().unwrap();
    output.push(b"lost\n");
    assert!(output.ready());
    assert_eq!(output.counts(), (5, 0));
}
