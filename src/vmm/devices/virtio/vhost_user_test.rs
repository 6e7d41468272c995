// SPDX-License-Identifier: Apache-2.0
use std::io::Write;
use std::thread::{self, JoinHandle};

use proptest::prelude::*;

use super::super::testing::FakeDriver;
use super::*;

const GOOD: u64 = REQUIRED | PROTOCOL_FEATURES;

/// A message: number, flags, payload.
fn message(number: u32, flags: u32, payload: &[u8]) -> Vec<u8> {
    let words = [number, flags, u32::try_from(payload.len()).unwrap()];
    words.iter().flat_map(|word| word.to_ne_bytes()).chain(payload.iter().copied()).collect()
}

fn reply(request: Request, value: u64) -> Vec<u8> {
    message(request as u32, VERSION | REPLY, &value.to_ne_bytes())
}

/// What a front end makes of a back end that says this whatever it is asked, and then goes.
fn hears(says: &[u8]) -> Result<Backend, VhostUserError> {
    let (ours, mut its) = UnixStream::pair().unwrap();
    its.write_all(says).unwrap();
    // Its own end stays readable, so that our requests do not fail.
    its.shutdown(std::net::Shutdown::Write).unwrap();
    Backend::greet(ours)
}

/// A request: its number and its payload.
type Got = (u32, Vec<u8>);

/// A back end that acknowledges all, but answers this request with that; gives the requests that it got.
fn play(mut socket: UnixStream, odd: Option<(Request, u64)>) -> JoinHandle<Vec<Got>> {
    thread::spawn(move || {
        let mut got = Vec::new();
        loop {
            let mut header = [0; 12];
            if socket.read_exact(&mut header).is_err() {
                return got;
            }
            let word = |at: usize| u32::from_ne_bytes(header[at..at + 4].try_into().unwrap());
            let (number, flags) = (word(0), word(4));
            let mut payload = vec![0; word(8).try_into().unwrap()];
            socket.read_exact(&mut payload).unwrap();
            let value = match number {
                n if n == Request::GetFeatures as u32 => Some(GOOD),
                n if n == Request::GetProtocolFeatures as u32 => Some(u64::MAX),
                n if n == Request::GetVringBase as u32 => Some(u64::from(payload[0])),
                _ => (flags & NEED_REPLY != 0).then_some(0),
            };
            let value = odd.filter(|(request, _)| *request as u32 == number).map(|(_, value)| value).or(value);
            if let Some(value) = value {
                socket.write_all(&message(number, VERSION | REPLY, &value.to_ne_bytes())).unwrap();
            }
            got.push((number, payload));
        }
    })
}

fn handed_over(odd: Option<(Request, u64)>) -> (Result<(), VhostUserError>, Vec<Got>) {
    let (ours, its) = UnixStream::pair().unwrap();
    let playing = play(its, odd);
    let driver = FakeDriver::new(8);
    let queue = driver.queue();
    let (kick, call) = (driver.kick().as_raw_fd(), driver.interrupt().line().as_raw_fd());
    let served = Served { rings: queue.rings(), kick, call };
    let mut backend = Backend::greet(ours).unwrap();
    let outcome = backend.start(driver.memory(), REQUIRED, &[served, served]).and_then(|()| backend.stop(1));
    drop(backend);
    (outcome, playing.join().unwrap())
}

#[test]
fn a_queue_is_handed_over_whole_and_taken_back() {
    let (outcome, got) = handed_over(None);
    outcome.unwrap();
    let numbers: Vec<u32> = got.iter().map(|(number, _)| *number).collect();
    assert_eq!(numbers, [3, 1, 15, 16, 2, 5, 8, 10, 9, 13, 12, 8, 10, 9, 13, 12, 18, 18, 11]);
    let rings = FakeDriver::new(8).queue().rings();
    let words = |payload: &[u8]| -> Vec<u64> {
        payload.chunks_exact(8).map(|word| u64::from_ne_bytes(word.try_into().unwrap())).collect()
    };
    // One region: guest address, size, "user address", place in the file.
    assert_eq!(words(&got[5].1), [1, 0, 16 << 20, 0, 0]);
    assert_eq!(words(&got[6].1), [8 << 32]);
    assert_eq!(words(&got[8].1), [0, rings.descriptors, rings.used, rings.available, 0]);
    assert_eq!(words(&got[13].1), [1, rings.descriptors, rings.used, rings.available, 0]);
    assert_eq!((words(&got[10].1), words(&got[15].1)), (vec![0], vec![1]));
}

#[test]
fn a_refusal_and_a_wrong_queue_are_told() {
    let (outcome, _) = handed_over(Some((Request::SetMemTable, 7)));
    assert!(matches!(outcome, Err(VhostUserError::Refused { request: Request::SetMemTable, code: 7 })), "{outcome:?}");
    let (outcome, _) = handed_over(Some((Request::GetVringBase, 0)));
    assert!(matches!(outcome, Err(VhostUserError::Answer { request: Request::GetVringBase })), "{outcome:?}");
}

#[test]
fn only_the_answer_to_what_was_asked_counts() {
    let good = reply(Request::GetFeatures, GOOD);
    let all = [good.clone(), reply(Request::GetProtocolFeatures, 0)].concat();
    assert_eq!(hears(&all).unwrap().features, GOOD);
    for (says, why) in [
        (reply(Request::GetProtocolFeatures, GOOD), "no sense"),
        (message(1, VERSION, &GOOD.to_ne_bytes()), "no sense"),
        (message(1, 2 | REPLY, &GOOD.to_ne_bytes()), "no sense"),
        (message(1, VERSION | REPLY, &[0; 7]), "no sense"),
        ([&good[..8], &u32::MAX.to_ne_bytes()[..], &good[12..]].concat(), "no sense"),
        (reply(Request::GetFeatures, PROTOCOL_FEATURES), "VIRTIO_F_VERSION_1"),
        (good[..15].to_vec(), "ended"),
        (Vec::new(), "ended"),
    ] {
        let error = hears(&says).unwrap_err().to_string();
        assert!(error.contains(why), "{says:?}: {error}");
    }
}

#[test]
fn an_answer_in_drops_takes_no_longer_than_one_at_once() {
    let (ours, mut its) = UnixStream::pair().unwrap();
    let mut backend = Backend { socket: ours, patience: Duration::from_millis(200), features: 0, acknowledges: false };
    let dripping = thread::spawn(move || {
        // One byte in 50 ms: each comes in time, the answer would take a second.
        reply(Request::GetFeatures, GOOD).iter().all(|byte| {
            thread::sleep(Duration::from_millis(50));
            its.write_all(&[*byte]).is_ok()
        })
    });
    let started = Instant::now();
    let error = backend.ask_number(Request::GetFeatures).unwrap_err();
    assert!(matches!(&error, VhostUserError::Socket { source, .. } if source.kind() == ErrorKind::TimedOut), "{error}");
    assert!(started.elapsed() < Duration::from_millis(900));
    drop(backend);
    assert!(!dripping.join().unwrap());
}

proptest! {
    #[test]
    fn whatever_a_back_end_says_is_survived(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        // Noise has no twelve bytes of a header that fit.
        prop_assert!(hears(&bytes).is_err());
    }

    #[test]
    fn a_changed_byte_of_a_header_is_noticed(at in 0usize..12, to: u8) {
        let mut says = [reply(Request::GetFeatures, GOOD), reply(Request::GetProtocolFeatures, 0)].concat();
        let flags = 4..8;
        let changed = says[at] != to;
        says[at] = to;
        let outcome = hears(&says);
        // Flags beyond those that are defined may be anything.
        let matters = !flags.contains(&at) || (at == 4 && to & 7 != 5);
        prop_assert_eq!(outcome.is_err(), changed && matters);
    }
}
