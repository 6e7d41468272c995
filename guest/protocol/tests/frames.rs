// SPDX-License-Identifier: Apache-2.0
//! The protocol against any bytes and any messages.

use std::io::{self, Read};

use coracle_protocol::{
    Address, Adopt, Assembly, BootFacts, Container, Decoder, Ended, EndedBy, ErrorCode, Failure, File, Frame,
    FrameError, HEADER_LEN, Hello, Interface, MAGIC, MAX_PAYLOAD, Message, MessageError, Mount, Pack, Ping, Process,
    ProcessFacts, Processes, ReadError, Ready, Reconnected, Renew, Resize, ResourceLimit, Shutdown, ShutdownMode,
    Signal, Source, Start, Streams, Sysctl, Task, Text, Unpack, Upper, Usage, Versions, WindowSize, read_frame,
    write_frame,
};
use proptest::prelude::*;

fn text() -> impl Strategy<Value = Text> {
    any::<String>().prop_map(|raw| Text::new(&raw))
}

fn message() -> impl Strategy<Value = Message> {
    let hello = (any::<(u16, u16)>(), text())
        .prop_map(|((oldest, newest), software)| Hello { versions: Versions { oldest, newest }, software });
    let ready = (any::<(u16, u64, u32, u64)>(), text()).prop_map(|((version, uptime_ms, cpus, memory_kib), kernel)| {
        Ready { version, facts: BootFacts { kernel, uptime_ms, cpus, memory_kib } }
    });
    let mode = prop_oneof![Just(ShutdownMode::PowerOff), Just(ShutdownMode::Reboot)];
    prop_oneof![
        hello.prop_map(Message::Hello),
        ready.prop_map(Message::Ready),
        any::<u64>().prop_map(|token| Message::Ping(Ping { token })),
        any::<u64>().prop_map(|token| Message::Pong(Ping { token })),
        Just(Message::Ack),
        (any::<u16>(), text()).prop_map(|(code, message)| Message::Error(Failure { code: ErrorCode(code), message })),
        Just(Message::Prepare),
        (mode, any::<u32>()).prop_map(|(mode, grace_ms)| Message::Shutdown(Shutdown { mode, grace_ms })),
        (bytes(), any::<u64>(), prop::option::of(text()), any::<Vec<[u8; 6]>>()).prop_map(
            |(entropy, realtime_ns, hostname, macs)| Message::Renew(Renew { entropy, realtime_ns, hostname, macs })
        ),
        start().prop_map(|start| Message::Start(Box::new(start))),
        (container(), any::<u64>(), bytes(), bytes()).prop_map(|(container, capabilities, program, path)| {
            Message::Assemble(Box::new(Assembly { container, capabilities, program, path }))
        }),
        adopt().prop_map(|adopt| Message::Adopt(Box::new(adopt))),
        Just(Message::Started),
        any::<(bool, u8, bool)>().prop_map(|(killed, n, oom)| {
            Message::Ended(Ended { by: if killed { EndedBy::Signal(n) } else { EndedBy::Exit(n) }, oom })
        }),
        any::<(u32, u8, bool)>().prop_map(|(process, signal, all)| Message::Signal(Signal { process, signal, all })),
        prop_oneof![
            Just(Message::Pause),
            Just(Message::Resume),
            Just(Message::Reclaim),
            Just(Message::Stats),
            Just(Message::Top)
        ],
        usage().prop_map(Message::Usage),
        processes().prop_map(Message::Processes),
        any::<(u32, u16, u16)>().prop_map(|(process, rows, columns)| Message::Resize(Resize {
            process,
            size: WindowSize { rows, columns },
        })),
    ]
}

fn words() -> impl Strategy<Value = Vec<Vec<u8>>> {
    prop::collection::vec(bytes(), 0..4)
}

fn bytes() -> impl Strategy<Value = Vec<u8>> {
    prop::collection::vec(any::<u8>(), 0..20)
}

fn container() -> impl Strategy<Value = Container> {
    let flags = any::<(bool, bool, bool, u64, Option<u32>)>();
    let lists = (
        prop::collection::vec(mount(), 0..3),
        prop::collection::vec(file(), 0..3),
        prop::collection::vec(interface(), 0..3),
        prop::collection::vec((bytes(), bytes()), 0..3),
    );
    (text(), text(), upper(), flags, lists).prop_map(
        |(
            root,
            hostname,
            upper,
            (read_only, privileged, init, shm_size, pids_limit),
            (mounts, files, network, sysctls),
        )| Container {
            root,
            upper,
            read_only,
            hostname,
            shm_size,
            mounts,
            files,
            network,
            pids_limit,
            privileged,
            sysctls: sysctls.into_iter().map(|(name, value)| Sysctl { name, value }).collect(),
            init,
        },
    )
}

fn upper() -> impl Strategy<Value = Upper> {
    prop_oneof![any::<Option<u64>>().prop_map(Upper::Memory), text().prop_map(Upper::Disk)]
}

fn mount() -> impl Strategy<Value = Mount> {
    let source = prop_oneof![
        bytes().prop_map(Source::Memory),
        text().prop_map(Source::Shared),
        text().prop_map(Source::Filled),
        (text(), bytes()).prop_map(|(tag, name)| Source::SharedFile(tag, name)),
    ];
    (bytes(), source, any::<u32>()).prop_map(|(target, source, flags)| Mount { target, source, flags })
}

fn file() -> impl Strategy<Value = File> {
    (bytes(), any::<u32>(), bytes()).prop_map(|(path, mode, content)| File { path, mode, content })
}

fn interface() -> impl Strategy<Value = Interface> {
    let addresses = prop::collection::vec(any::<(std::net::IpAddr, u8)>(), 0..3);
    (text(), any::<Option<u32>>(), addresses, any::<Vec<std::net::IpAddr>>()).prop_map(
        |(name, mtu, addresses, gateways)| Interface {
            name,
            mtu,
            addresses: addresses.into_iter().map(|(address, prefix)| Address { address, prefix }).collect(),
            gateways,
        },
    )
}

fn usage() -> impl Strategy<Value = Usage> {
    any::<[u64; 8]>().prop_map(|[cpu_ns, memory, memory_limit, pids, received, sent, read, written]| Usage {
        cpu_ns,
        memory,
        memory_limit,
        pids,
        received,
        sent,
        read,
        written,
    })
}

fn processes() -> impl Strategy<Value = Processes> {
    let facts = (any::<(u32, u32, Option<u32>, u64, u64)>(), text(), text()).prop_map(
        |((pid, parent, terminal, cpu_ms, age_ms), user, command)| ProcessFacts {
            pid,
            parent,
            user,
            terminal,
            cpu_ms,
            age_ms,
            command,
        },
    );
    prop::collection::vec(facts, 0..4).prop_map(|list| Processes { list })
}

prop_compose! {
    fn limit()((resource, soft, hard) in any::<(u8, u64, u64)>()) -> ResourceLimit {
        ResourceLimit { resource, soft, hard }
    }
}

prop_compose! {
    fn process()(
        (arguments, environment, groups) in (words(), words(), words()),
        (directory, user) in (bytes(), bytes()),
        (capabilities, no_new_privileges) in any::<(u64, bool)>(),
        limits in prop::collection::vec(limit(), 0..3),
        size in any::<Option<(u16, u16)>>(),
    ) -> Process {
        let terminal = size.map(|(rows, columns)| WindowSize { rows, columns });
        Process {
            arguments, environment, directory, user, groups, capabilities, no_new_privileges, limits, terminal,
        }
    }
}

fn task() -> impl Strategy<Value = Task> {
    let pack = (bytes(), bytes(), any::<bool>()).prop_map(|(path, name, follow)| Pack { path, name, follow });
    let unpack = (bytes(), prop::option::of(bytes()), any::<[bool; 3]>());
    let unpack = unpack.prop_map(|(path, name, [directory, content, keep_owner])| Unpack {
        path,
        name,
        directory,
        content,
        keep_owner,
    });
    prop_oneof![Just(Task::Program), pack.prop_map(Task::Pack), unpack.prop_map(Task::Unpack)]
}

prop_compose! {
    fn start()(
        container in prop::option::of(container()),
        process in process(),
        streams in streams(),
        task in task(),
    ) -> Start {
        Start { container, process, streams, task }
    }
}

prop_compose! {
    fn streams()((stdin, stdout, stderr) in any::<(Option<u32>, Option<u32>, Option<u32>)>()) -> Streams {
        Streams { stdin, stdout, stderr }
    }
}

fn adopt() -> impl Strategy<Value = Adopt> {
    let former = prop::collection::vec(any::<(std::net::IpAddr, u8)>(), 0..3);
    let former = former.prop_map(|all| all.into_iter().map(|(address, prefix)| Address { address, prefix }).collect());
    let network = (interface(), any::<[u8; 6]>(), former).prop_map(|(interface, mac, former)| Reconnected {
        interface,
        mac,
        former,
    });
    (streams(), text(), prop::collection::vec(file(), 0..3), prop::collection::vec(network, 0..3))
        .prop_map(|(streams, hostname, files, network)| Adopt { streams, hostname, files, network })
}

/// A reader that counts what is taken and gives at most `step` bytes at a time.
struct Dribble<'a> {
    bytes: &'a [u8],
    step: usize,
}

impl Read for Dribble<'_> {
    fn read(&mut self, space: &mut [u8]) -> io::Result<usize> {
        let count = space.len().min(self.step).min(self.bytes.len());
        let (taken, rest) = self.bytes.split_at(count);
        space[..count].copy_from_slice(taken);
        self.bytes = rest;
        Ok(count)
    }
}

proptest! {
    #[test]
    fn messages_survive_the_journey(messages in prop::collection::vec((any::<u32>(), message()), 0..8), step in 1usize..64) {
        let mut bytes = Vec::new();
        for (id, message) in &messages {
            message.encode(*id, &mut bytes).unwrap();
        }

        let mut reader = Dribble { bytes: &bytes, step };
        for (id, message) in &messages {
            let frame = read_frame(&mut reader).unwrap().unwrap();
            prop_assert_eq!(frame.id, *id);
            prop_assert_eq!(&Message::from_frame(&frame).unwrap(), message);
        }
        prop_assert_eq!(read_frame(&mut reader).unwrap(), None);

        let mut decoder = Decoder::new();
        let mut decoded = Vec::new();
        for mut piece in bytes.chunks(step) {
            while let Some(frame) = decoder.feed(&mut piece).unwrap() {
                decoded.push((frame.id, Message::from_frame(&frame).unwrap()));
            }
        }
        prop_assert_eq!(decoded, messages);
        prop_assert!(decoder.is_between_frames());
    }

    #[test]
    fn any_bytes_are_survived(mut bytes in prop::collection::vec(any::<u8>(), 0..512), magic: bool, step in 1usize..64) {
        if magic {
            bytes.insert(0, MAGIC);
        }
        let mut reader = Dribble { bytes: &bytes, step };
        while let Ok(Some(frame)) = read_frame(&mut reader) {
            prop_assert!(frame.payload.len() <= bytes.len());
            let _ = Message::from_frame(&frame);
        }
    }

    #[test]
    fn any_payload_is_survived(message_type in 0u8..0x30, flags: u16, payload in prop::collection::vec(any::<u8>(), 0..256)) {
        let frame = Frame { message_type, flags, id: 1, payload };
        match Message::from_frame(&frame) {
            Ok(message) => {
                prop_assert_eq!(flags & 0xff00, 0);
                prop_assert_eq!(message.message_type() as u8, message_type);
                // What was understood can be said again.
                let again = message.to_frame(1).unwrap();
                prop_assert_eq!(Message::from_frame(&again).unwrap(), message);
            }
            Err(MessageError::Unknown { .. }) => prop_assert!(flags & 0xff00 != 0 || !matches!(message_type, 0x01..=0x06 | 0x10..=0x11 | 0x20..=0x2a)),
            Err(MessageError::Malformed { .. }) => prop_assert!(!frame.payload.is_empty() || ![0x05, 0x10, 0x21, 0x25, 0x26, 0x27, 0x29].contains(&message_type)),
        }
    }

    #[test]
    fn a_cut_frame_is_truncated(message in message(), cut: prop::sample::Index) {
        let mut bytes = Vec::new();
        message.encode(9, &mut bytes).unwrap();
        let cut = 1 + cut.index(bytes.len() - 1);
        let outcome = read_frame(&mut &bytes[..cut]);
        prop_assert!(matches!(outcome, Err(ReadError::Truncated)), "{:?}", outcome);
    }

    #[test]
    fn fields_appended_by_a_later_version_are_ignored(message in message(), extra in prop::collection::vec(any::<u8>(), 0..32)) {
        let mut frame = message.to_frame(3).unwrap();
        frame.payload.extend(extra);
        prop_assert_eq!(Message::from_frame(&frame).unwrap(), message);
    }
}

fn header(length: u32) -> Vec<u8> {
    let mut bytes = vec![MAGIC, 3, 0, 0, 1, 0, 0, 0];
    bytes.extend(length.to_le_bytes());
    bytes
}

#[test]
fn the_layout_is_fixed() {
    let mut bytes = Vec::new();
    write_frame(&mut bytes, &Message::Ping(Ping { token: 5 }).to_frame(0x0403_0201).unwrap()).unwrap();
    assert_eq!(bytes, [0xc1, 0x03, 0, 0, 1, 2, 3, 4, 1, 0, 0, 0, 5]);
    assert_eq!(HEADER_LEN, 12);
    let shutdown = Message::Shutdown(Shutdown { mode: ShutdownMode::Reboot, grace_ms: 300 });
    assert_eq!(shutdown.to_frame(1).unwrap().payload, [1, 0xac, 0x02]);
}

#[test]
fn the_largest_payload_passes_and_one_byte_more_does_not() {
    let frame = Frame { message_type: 0x7f, flags: 0, id: 1, payload: vec![7; MAX_PAYLOAD] };
    let mut bytes = Vec::new();
    write_frame(&mut bytes, &frame).unwrap();
    assert_eq!(read_frame(&mut bytes.as_slice()).unwrap().unwrap(), frame);

    let frame = Frame { payload: vec![7; MAX_PAYLOAD + 1], ..frame };
    let mut out = Vec::new();
    assert_eq!(frame.encode(&mut out), Err(FrameError::TooLong(MAX_PAYLOAD as u64 + 1)));
    assert!(out.is_empty());
}

#[test]
fn a_lying_length_is_refused_before_anything_is_held() {
    for length in [u32::MAX, u32::try_from(MAX_PAYLOAD).unwrap() + 1] {
        let bytes = header(length);
        let outcome = read_frame(&mut bytes.as_slice());
        assert!(
            matches!(outcome, Err(ReadError::Frame(FrameError::TooLong(l))) if l == u64::from(length)),
            "{outcome:?}"
        );
    }
}

#[test]
fn a_broken_stream_stays_broken() {
    let mut decoder = Decoder::new();
    assert_eq!(decoder.feed(&mut &b"GET /"[..]), Err(FrameError::Magic(b'G')));
    let mut good = Vec::new();
    Message::Ack.encode(1, &mut good).unwrap();
    assert_eq!(decoder.feed(&mut good.as_slice()), Err(FrameError::Magic(b'G')));
}

#[test]
fn text_from_the_wire_is_cleaned() {
    // code 5 as a varint, then a string of 4 bytes.
    let frame = Frame { message_type: 6, flags: 0, id: 1, payload: b"\x05\x04\x1b[2J".to_vec() };
    let Message::Error(failure) = Message::from_frame(&frame).unwrap() else { panic!("not an error") };
    assert_eq!(failure.message.as_str(), "\u{fffd}[2J");
}
