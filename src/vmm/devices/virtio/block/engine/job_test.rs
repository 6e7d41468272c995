// SPDX-License-Identifier: Apache-2.0
use super::super::super::super::testing::FakeDriver;
use super::*;

fn job(work: impl FnOnce(&Chain) -> Work) -> Job {
    let mut driver = FakeDriver::new(8);
    let mut queue = driver.queue();
    driver.add(&[(0x10_0000, 16, false), (0x20_0000, 1000, true), (0x30_0000, 3097, true)]);
    let chain = queue.pop().unwrap().unwrap();
    let work = work(&chain);
    Job::new(0, chain, 4096, work)
}

fn transfer(chain: &Chain) -> Work {
    Work::Transfer(Transfer::new(false, false, 512, 4096, chain.writer().io_vectors(4096).unwrap().collect()))
}

fn lengths(job: &Job) -> Vec<usize> {
    let Work::Transfer(transfer) = &job.work else { panic!("no transfer") };
    transfer.vectors().iter().map(|vector| vector.iov_len).collect()
}

#[test]
fn a_short_transfer_goes_on_where_it_stopped() {
    let mut job = job(transfer);
    let first = |job: &Job| match &job.work {
        Work::Transfer(transfer) => (transfer.vectors()[0].iov_base as usize, transfer.offset),
        _ => panic!("no transfer"),
    };
    let (start, _) = first(&job);
    for (count, expected, left) in [(10, vec![990, 3096], 4086), (990, vec![3096], 3096), (96, vec![3000], 3000)] {
        assert_eq!(job.progress(Ok(count)), Progress::More);
        assert_eq!((lengths(&job), job.left(), job.filled()), (expected, left, 4096 - left));
        if left == 4086 {
            assert_eq!(first(&job), (start + 10, 522));
        }
    }
    assert_eq!(job.progress(Ok(3000)), Progress::Done(Status::Ok));
    assert_eq!(job.filled(), 4096);
}

#[test]
fn the_end_of_the_file_in_the_middle_is_an_error() {
    let mut job = job(transfer);
    assert_eq!(job.progress(Ok(512)), Progress::More);
    assert_eq!(job.progress(Ok(0)), Progress::Done(Status::IoError));
}

#[test]
fn an_interrupted_step_is_repeated_but_not_for_ever() {
    for number in [libc::EINTR, libc::EAGAIN] {
        let mut job = job(transfer);
        let mut interrupt = || job.progress(Err(io::Error::from_raw_os_error(number)));
        for _ in 0..MAX_RETRIES {
            assert_eq!(interrupt(), Progress::More);
        }
        assert_eq!(interrupt(), Progress::Done(Status::IoError));
    }
    assert_eq!(
        job(transfer).progress(Err(io::Error::from_raw_os_error(libc::ENOSPC))),
        Progress::Done(Status::IoError)
    );
}

#[test]
fn ranges_are_cleared_in_another_way_where_one_is_missing() {
    let missing = || Err(io::Error::from_raw_os_error(libc::EOPNOTSUPP));
    let range = |clearing| Range { offset: 0, length: 512, clearing };
    let clear = |list: &[Clearing], durable| {
        let ranges = list.iter().map(|clearing| range(*clearing)).collect();
        job(|_| Work::Clear { ranges, tried_other: false, durable })
    };
    let mut zero = clear(&[Clearing::Zero, Clearing::Unmap], false);
    assert_eq!(zero.progress(missing()), Progress::More);
    assert!(matches!(&zero.work, Work::Clear { ranges, .. } if ranges[1].clearing == Clearing::Zero));
    assert_eq!(zero.progress(Ok(0)), Progress::More);
    assert_eq!(zero.progress(missing()), Progress::More);
    assert_eq!(zero.progress(missing()), Progress::Done(Status::Unsupported));
    let mut hint = clear(&[Clearing::Discard, Clearing::Discard], false);
    assert_eq!(hint.progress(missing()), Progress::More);
    assert_eq!(hint.progress(missing()), Progress::Done(Status::Ok));
    let mut durable = clear(&[Clearing::Zero], true);
    assert_eq!(durable.progress(Ok(0)), Progress::More);
    assert!(matches!(durable.work, Work::Flush));
    assert_eq!(durable.progress(Ok(0)), Progress::Done(Status::Ok));
}
