// SPDX-License-Identifier: Apache-2.0
//! The host's end of a connection, against agents that mean harm.

use std::os::unix::net::UnixStream;
use std::time::Duration;

use coracle_protocol::{
    BootFacts, CallError, Channel, ErrorCode, Failure, Frame, Hello, Message, Ping, ReadError, Ready, Text, VERSIONS,
    Versions, read_frame, write_frame,
};

const PING: Message = Message::Ping(Ping { token: 1 });

/// Says all of `script`, whatever the host says, which it hears meanwhile.
fn agent(script: Vec<Frame>) -> UnixStream {
    let (ours, mut theirs) = UnixStream::pair().unwrap();
    ours.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    let mut hears = theirs.try_clone().unwrap();
    std::thread::spawn(move || while let Ok(Some(_)) = read_frame(&mut hears) {});
    std::thread::spawn(move || {
        for frame in script {
            if write_frame(&mut theirs, &frame).is_err() {
                return;
            }
        }
        // The host may have gone.
        let _ = theirs.shutdown(std::net::Shutdown::Write);
    });
    ours
}

fn frame(id: u32, message: &Message) -> Frame {
    message.to_frame(id).unwrap()
}

fn hello(versions: Versions) -> Frame {
    frame(0, &Message::Hello(Hello { versions, software: Text::new("bad \x1b[31m agent") }))
}

fn ready(version: u16) -> Frame {
    frame(1, &Message::Ready(Ready { version, facts: BootFacts::default() }))
}

fn call(answers: Vec<Frame>) -> Result<Message, CallError> {
    let mut script = vec![hello(VERSIONS), ready(VERSIONS.newest)];
    script.extend(answers);
    Channel::open(agent(script), "test").unwrap().call(&PING)
}

#[test]
fn an_answer_is_found_among_other_messages() {
    let pong = Message::Pong(Ping { token: 1 });
    let answers = vec![frame(1, &Message::Ack), frame(77, &PING), frame(0, &pong), frame(2, &pong)];
    assert_eq!(call(answers).unwrap(), pong);
}

#[test]
fn an_agent_that_talks_without_end_is_given_up() {
    for other in [Message::Ack, PING] {
        let outcome = call(vec![frame(99, &other); 10_000]);
        assert!(matches!(outcome, Err(CallError::NoAnswer)), "{outcome:?}");
    }
}

#[test]
fn refusals_and_ends_are_told_apart() {
    let failure = Failure { code: ErrorCode::FAILED, message: Text::new("no") };
    for id in [0, 2] {
        let outcome = call(vec![frame(id, &Message::Error(failure.clone()))]);
        assert!(matches!(&outcome, Err(CallError::Refused(refused)) if *refused == failure), "{outcome:?}");
    }
    let outcome = call(vec![]);
    assert!(matches!(outcome, Err(CallError::Closed)), "{outcome:?}");
    let unknown = Frame { message_type: 0xee, flags: 0, id: 2, payload: vec![] };
    let outcome = call(vec![unknown]);
    assert!(matches!(outcome, Err(CallError::Answer(_))), "{outcome:?}");
}

#[test]
fn an_agent_of_another_version_is_named() {
    let later = Versions { oldest: VERSIONS.newest + 1, newest: VERSIONS.newest + 3 };
    let error = Channel::open(agent(vec![hello(later)]), "test").unwrap_err();
    assert!(matches!(error, CallError::Version(_)));
    let text = error.to_string();
    assert!(text.contains("bad \u{fffd}[31m agent") && text.contains("same release"), "{text}");
}

#[test]
fn a_session_opens_only_by_the_rules() {
    let unexpected = |script| matches!(Channel::open(agent(script), "test"), Err(CallError::Unexpected(_)));
    assert!(unexpected(vec![ready(1)]), "Ready before Hello");
    assert!(unexpected(vec![hello(VERSIONS), ready(VERSIONS.newest + 1)]), "a version that was not agreed on");
    assert!(unexpected(vec![hello(VERSIONS), frame(1, &Message::Ack)]), "Ack for Hello");
}

#[test]
fn another_protocol_is_recognised() {
    let (ours, mut theirs) = UnixStream::pair().unwrap();
    std::io::Write::write_all(&mut theirs, b"SSH-2.0-OpenSSH_9.2\r\n").unwrap();
    let error = Channel::open(ours, "test").unwrap_err();
    assert!(matches!(error, CallError::Read(ReadError::Frame(_))), "{error:?}");
}
