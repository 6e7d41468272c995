// SPDX-License-Identifier: Apache-2.0

use proptest::prelude::*;

use super::*;

fn message(name: &[u8], more: &[u8], additional: u8) -> Vec<u8> {
    let mut bytes = vec![0xab, 0xcd, 1, 0, 0, 1, 0, 0, 0, 0, 0, additional];
    bytes.extend_from_slice(name);
    bytes.extend_from_slice(&[0, 1, 0, 1]);
    bytes.extend_from_slice(more);
    bytes
}

const WEB: &[u8] = b"\x03WeB\x03app\x00";
const EDNS: &[u8] = &[0, 0, 41, 4, 208, 0, 0, 0, 0, 0, 0];

#[test]
fn a_query_is_read() {
    let query = parse(&message(WEB, EDNS, 1)).unwrap();
    assert_eq!(
        (query.id, query.name.as_deref(), query.kind, query.class),
        (0xabcd, Some("web.app"), kind::A, CLASS_IN)
    );
    assert_eq!((query.udp_size, query.question.len()), (1232, WEB.len() + 4));
    assert_eq!(parse(&message(b"\x00", &[], 0)).unwrap().name.as_deref(), Some(""));
    assert_eq!(parse(&message(b"\x03a\x00b\x00", &[], 0)).unwrap().name, None, "readable, but nobody's name");
    assert_eq!(parse(&message(b"\x03a.b\x00", &[], 0)).unwrap().name, None, "a dot within a label is no dot");
}

#[test]
fn what_is_no_good_query_is_refused_or_dropped() {
    let good = message(WEB, &[], 0);
    for length in 0..12 {
        assert_eq!(parse(&good[..length]), Err(Bad::NoQuery));
    }
    for length in 12..good.len() {
        assert_eq!(parse(&good[..length]), Err(Bad::Query(0xabcd, Code::Format)));
    }
    let changed = |at: usize, value| {
        let mut bytes = good.clone();
        bytes[at] = value;
        parse(&bytes)
    };
    assert_eq!(changed(2, 0x80), Err(Bad::NoQuery), "an answer");
    assert_eq!(changed(2, 0x28), Err(Bad::Query(0xabcd, Code::NotKnown)), "an update");
    for at in [5, 7, 9, 11] {
        assert_eq!(changed(at, 2), Err(Bad::Query(0xabcd, Code::Format)), "count at {at}");
    }
    assert_eq!(changed(12, 0xc0), Err(Bad::Query(0xabcd, Code::Format)), "a pointer, to itself");
    let label = [&[63][..], &[b'a'; 63]].concat();
    let long = [label.repeat(4), vec![0]].concat();
    assert_eq!(parse(&message(&long, &[], 0)), Err(Bad::Query(0xabcd, Code::Format)), "257 bytes of name");
    assert!(parse(&message(&[label.repeat(3), vec![0]].concat(), &[], 0)).is_ok());
    assert_eq!(parse(&message(WEB, &[0], 0)), Err(Bad::Query(0xabcd, Code::Format)), "bytes behind the end");
}

#[test]
fn an_answer_has_the_question_and_its_records() {
    let query = parse(&message(WEB, &[], 0)).unwrap();
    let bytes = answer(&query, Code::Ok, &[Record::Address("10.0.0.2".parse().unwrap())], 10);
    let mut wanted = vec![0xab, 0xcd, 0x81, 0x80, 0, 1, 0, 1, 0, 0, 0, 0];
    wanted.extend_from_slice(WEB);
    wanted.extend_from_slice(&[0, 1, 0, 1, 0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 10, 0, 4, 10, 0, 0, 2]);
    assert_eq!(bytes, wanted);
    assert!(answers(&bytes, 0xabcd, &query.question) && !answers(&bytes, 0xabce, &query.question));
    let mut long = bytes.clone();
    long.resize(600, 0);
    truncate(&mut long, &query);
    assert_eq!((long.len(), long[2] & 2, long[7]), (12 + query.question.len(), 2, 0));
    let none = answer(&query, Code::Ok, &[Record::Name("a".repeat(64))], 10);
    assert_eq!(none[7], 0, "what cannot be encoded is left out");
    assert_eq!(refusal(7, Code::Format), [0, 7, 0x80, 0x81, 0, 0, 0, 0, 0, 0, 0, 0]);
}

proptest! {
    #[test]
    fn any_bytes_are_survived(bytes in proptest::collection::vec(any::<u8>(), 0..600)) {
        let _ = parse(&bytes);
        let _ = answers(&bytes, 1, &bytes);
    }

    #[test]
    fn any_question_is_echoed(name in proptest::collection::vec("[a-z0-9_-]{1,20}", 0..8), change in any::<(u16, u8)>()) {
        let labels = name.iter().flat_map(|label| {
            std::iter::once(u8::try_from(label.len()).unwrap()).chain(label.bytes())
        });
        let mut bytes = message(&labels.chain([0]).collect::<Vec<_>>(), EDNS, 1);
        let query = parse(&bytes).unwrap();
        prop_assert_eq!(query.name.clone().unwrap(), name.join("."));
        prop_assert!(answers(&answer(&query, Code::NoName, &[], 0), query.id, &query.question));
        // One byte changed anywhere.
        let at = usize::from(change.0) % bytes.len();
        bytes[at] = change.1;
        if let Ok(query) = parse(&bytes) {
            prop_assert!(answer(&query, Code::Ok, &[], 0).len() <= 12 + 255 + 4);
        }
    }
}
