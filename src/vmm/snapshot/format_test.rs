// SPDX-License-Identifier: Apache-2.0

use super::super::testing::state;
use super::*;
use proptest::prelude::*;

fn file() -> Vec<u8> {
    encode(&state()).unwrap()
}

#[test]
fn what_is_written_is_read() {
    let file = file();
    let again = decode(&file).unwrap();
    again.check().unwrap();
    assert_eq!(encode(&again).unwrap(), file);
    assert_eq!(again.config, state().config);
}

#[test]
fn every_bit_of_the_header_counts() {
    let good = file();
    for bit in 0..HEADER * 8 {
        let mut file = good.clone();
        file[bit / 8] ^= 1 << (bit % 8);
        assert!(decode(&file).is_err(), "bit {bit}");
    }
}

#[test]
fn every_length_but_the_right_one_is_refused() {
    let good = file();
    for length in 0..good.len() {
        assert!(decode(&good[..length]).is_err(), "{length} bytes");
    }
    assert!(matches!(decode(&[&good[..], &[0]].concat()), Err(SnapshotError::Length { .. })));
}

/// A payload that its checksum vouches for, and that is yet none of ours, gives an error or a state, and no panic.
#[test]
fn forged_payloads_are_errors_or_states() {
    let good = file();
    let payload = &good[HEADER..];
    let mut refused = 0;
    for at in 0..payload.len() {
        let mut forged = payload.to_vec();
        forged[at] ^= 0xff;
        refused += u32::from(decode(&seal(VERSION, &forged)).and_then(|state| state.check()).is_err());
        assert!(decode(&seal(VERSION, &payload[..at])).is_err(), "{at} bytes");
    }
    assert!(refused > 50, "{refused}");
    assert!(matches!(decode(&seal(VERSION + 1, payload)), Err(SnapshotError::Version(_))));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(12_000))]

    #[test]
    fn damage_is_found(places in prop::collection::vec((any::<prop::sample::Index>(), 1..=255u8), 1..8)) {
        thread_local!(static GOOD: Vec<u8> = file());
        let good = GOOD.with(Clone::clone);
        let mut file = good.clone();
        for (place, change) in places {
            file[place.index(good.len())] ^= change;
        }
        // Two changes of one place can undo each other.
        prop_assert_eq!(decode(&file).is_ok(), file == good);
    }

    #[test]
    fn any_payload_is_taken_without_panic(payload in prop::collection::vec(any::<u8>(), 0..300)) {
        let _ = decode(&seal(VERSION, &payload)).map(|state| state.check());
    }
}
