// SPDX-License-Identifier: Apache-2.0
use std::fs::File;
use std::time::Duration;

use super::super::super::super::testing::{FakeDriver, is_readable};
use super::super::{Transfer, Work};
use super::*;

/// A read that does not end by itself: from a pipe that nobody writes to.
fn endless(driver: &mut FakeDriver) -> Job {
    let mut queue = driver.queue();
    driver.add(&[(0x10_0000, 512, true), (0x18_0000, 1, true)]);
    let chain = queue.pop().unwrap().unwrap();
    let vectors = chain.writer().io_vectors(512).unwrap().collect();
    Job::new(0, chain, 512, Work::Transfer(Transfer::new(false, false, 0, 512, vectors)))
}

fn pipe() -> (File, File) {
    let (reader, writer) = std::io::pipe().unwrap();
    (File::from(std::os::fd::OwnedFd::from(reader)), File::from(std::os::fd::OwnedFd::from(writer)))
}

#[test]
fn what_is_in_flight_is_cancelled_and_waited_for() {
    let (reader, _writer) = pipe();
    let mut ring = Ring::new().unwrap();
    for count in 1..=CAPACITY as usize {
        assert!(!ring.is_full());
        ring.start(endless(&mut FakeDriver::new(8)), reader.as_raw_fd()).unwrap();
        assert_eq!(ring.in_flight(), count);
    }
    assert!(ring.is_full());
    ring.submit().unwrap();
    ring.reap(reader.as_raw_fd(), |_, _| panic!("nothing can have ended")).unwrap();
    assert!(ring.drain());
    assert_eq!(ring.in_flight(), 0);
    // It is as good as new.
    ring.start(endless(&mut FakeDriver::new(8)), reader.as_raw_fd()).unwrap();
    assert_eq!(ring.in_flight(), 1);
}

#[test]
fn a_cancellation_from_another_thread_ends_too() {
    let (reader, _writer) = pipe();
    let mut ring = Ring::new().unwrap();
    ring.start(endless(&mut FakeDriver::new(8)), reader.as_raw_fd()).unwrap();
    ring.submit().unwrap();
    let drained = thread::scope(|scope| scope.spawn(|| ring.drain()).join().unwrap());
    assert!(drained);
    assert_eq!(ring.in_flight(), 0);
}

#[test]
fn the_descriptor_is_readable_while_there_are_completions() {
    use std::io::Write;
    let readable = |ring: &Ring| is_readable(ring.as_raw_fd(), Duration::from_millis(200));
    let (reader, mut writer) = pipe();
    let mut ring = Ring::new().unwrap();
    ring.start(endless(&mut FakeDriver::new(8)), reader.as_raw_fd()).unwrap();
    ring.submit().unwrap();
    assert!(!readable(&ring));
    writer.write_all(&[7; 512]).unwrap();
    assert!(readable(&ring));
    let mut done = Vec::new();
    ring.reap(reader.as_raw_fd(), |job, status| done.push((job.filled(), status))).unwrap();
    assert_eq!(done, [(512, Status::Ok)]);
    assert!(!readable(&ring));
}

#[test]
fn what_disks_do_not_need_is_refused() {
    let mut ring = IoUring::builder().build(8).unwrap();
    let nothing = |ring: &mut IoUring| {
        // SAFETY: the entry refers to no memory.
        unsafe { ring.submission().push(&opcode::Nop::new().build()) }.unwrap();
        ring.submit_and_wait(1).unwrap();
        ring.completion().next().unwrap().result()
    };
    assert_eq!(nothing(&mut ring), 0);
    assert_eq!(nothing(&mut Ring::new().unwrap().ring), -libc::EACCES);
}
