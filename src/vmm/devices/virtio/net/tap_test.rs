// SPDX-License-Identifier: Apache-2.0
//! Real TAP interfaces, each test in a network namespace of its own.

use std::net::UdpSocket;
use std::os::fd::AsRawFd;
use std::process::Command;
use std::time::{Duration, Instant};

use super::super::super::VirtioDevice;
use super::super::super::testing::FakeDriver;
use super::super::{MacAddress, Net, NetBackend, NetConfig};
use super::*;
use virtio_bindings::virtio_net::*;
use vmm_sys_util::epoll::EventSet;

/// Runs `body` in a new network namespace: in a thread as root, else by running this test again as root of a new user
/// namespace.
fn in_network_namespace(test: &str, body: impl FnOnce() + Send + 'static) {
    // SAFETY: the call has no preconditions.
    if unsafe { libc::geteuid() } != 0 {
        let this = std::env::current_exe().unwrap();
        let name = format!("{}::{test}", module_path!().trim_start_matches("coracle::"));
        let run = Command::new("unshare")
            .args(["--user", "--map-root-user", "--net"])
            .arg(this)
            .args(["--exact", &name])
            .output();
        let run = run.expect("`unshare` of util-linux, to test TAPs without root");
        let output = String::from_utf8_lossy(&run.stdout);
        assert!(
            run.status.success() && output.contains("1 passed"),
            "TAPs can be tested only as root, or with unprivileged user namespaces allowed and {TUN} open to all:\n{output}{}",
            String::from_utf8_lossy(&run.stderr)
        );
        return;
    }
    let thread = std::thread::spawn(|| {
        // SAFETY: affects this thread only, which shares no file-system or user state by this flag.
        let result = unsafe { libc::unshare(libc::CLONE_NEWNET) };
        assert_eq!(result, 0, "no new network namespace, which TAP tests need: {}", io::Error::last_os_error());
        body();
    });
    if let Err(panic) = thread.join() {
        std::panic::resume_unwind(panic);
    }
}

fn ip(arguments: &str) {
    let run = Command::new("ip").args(arguments.split(' ')).output().expect("`ip` of iproute2, to make TAPs");
    assert!(run.status.success(), "ip {arguments}: {}", String::from_utf8_lossy(&run.stderr));
}

/// The kernel drops what is sent before it has taken note, up to a second later, that someone has attached.
fn wait_for_carrier(name: &str) {
    let socket = control_socket().unwrap();
    for _ in 0..1000 {
        let request = ask(&socket, name, libc::SIOCGIFFLAGS, "SIOCGIFFLAGS").unwrap();
        // SAFETY: SIOCGIFFLAGS filled in the flags; any bit pattern is a valid short.
        if c_int::from(unsafe { request.ifr_ifru.ifru_flags }) & libc::IFF_RUNNING != 0 {
            return;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    panic!("{name} has no carrier after 10 s");
}

fn config(tap: &str) -> NetConfig {
    NetConfig { backend: NetBackend::Tap(tap.to_owned()), mac: Some(MacAddress::new([2, 0, 0, 0, 0, 9]).unwrap()) }
}

fn interface_exists(name: &str) -> bool {
    index_of(&CString::new(name).unwrap()).is_some()
}

#[test]
fn names_that_no_interface_has_are_refused() {
    for name in ["", "0123456789abcdef", "a/b", "a b", ".", "..", "a\0b", "a\nb"] {
        assert!(matches!(Tap::open(name), Err(NetError::Name { .. })), "{name:?}");
    }
}

#[test]
fn a_missing_tap_is_not_created() {
    in_network_namespace("a_missing_tap_is_not_created", || {
        let error = Tap::open("t0").unwrap_err();
        assert!(matches!(error, NetError::Missing { .. }), "{error}");
        assert!(error.try_next().contains("ip tuntap add t0 mode tap"), "{error}");
        assert!(!interface_exists("t0"));
    });
}

#[test]
fn interfaces_that_cannot_be_used_are_told_apart() {
    in_network_namespace("interfaces_that_cannot_be_used_are_told_apart", || {
        ip("tuntap add t0 mode tap");
        ip("tuntap add t1 mode tun");
        ip("tuntap add t2 mode tap multi_queue");
        let first = Tap::open("t0").unwrap();
        assert!(matches!(Tap::open("t0"), Err(NetError::Busy { .. })));
        drop(first);
        Tap::open("t0").unwrap();
        assert!(Tap::is_down("t0") && !Tap::is_down("t9"));
        ip("link set t0 up");
        assert!(!Tap::is_down("t0"));
        for other in ["lo", "t1", "t2"] {
            assert!(matches!(Tap::open(other), Err(NetError::NotTap { .. })), "{other}");
        }
    });
}

#[test]
fn the_interface_of_another_user_is_not_permitted() {
    in_network_namespace("the_interface_of_another_user_is_not_permitted", || {
        let refused = refusal("t0", io::Error::from_raw_os_error(libc::EPERM));
        assert!(matches!(refused, NetError::NotPermitted { .. }));
        // A user namespace made without root has one user, and so no other one that could own the interface.
        let users = std::fs::read_to_string("/proc/self/uid_map").unwrap();
        if users.split_whitespace().nth(2) == Some("1") {
            return;
        }
        ip("tuntap add t0 mode tap user 65534");
        // Dropping its capabilities makes this thread alone a user without rights on the interface.
        let (header, none) = ([0x2008_0522u32, 0], [0u32; 6]);
        // SAFETY: version 3 of the capability header, and the two sets of three words that it asks for.
        assert_eq!(unsafe { libc::syscall(libc::SYS_capset, header.as_ptr(), none.as_ptr()) }, 0);
        let error = Tap::open("t0").unwrap_err();
        assert!(matches!(error, NetError::NotPermitted { .. }), "{error}");
    });
}

#[test]
fn a_file_that_is_no_tap_is_refused() {
    let other = File::open("/dev/null").unwrap();
    assert!(matches!(Tap::from_file(other), Err(NetError::Format)));
    in_network_namespace("a_file_that_is_no_tap_is_refused", || {
        ip("tuntap add t0 mode tap");
        for (flags, good) in [(IFF_TAP | IFF_NO_PI, false), (FORMAT, true)] {
            let file = OpenOptions::new().read(true).write(true).open(TUN).unwrap();
            let (mut request, _) = request("t0").unwrap();
            request.ifr_ifru.ifru_flags = short(flags);
            interface_ioctl(file.as_raw_fd(), libc::TUNSETIFF, &mut request).unwrap();
            assert_eq!(Tap::from_file(file).is_ok(), good, "{flags:#x}");
        }
    });
}

#[test]
fn the_mtu_of_the_interface_is_the_guests() {
    in_network_namespace("the_mtu_of_the_interface_is_the_guests", || {
        ip("tuntap add t0 mode tap");
        for (mtu, offered) in [(1400u16, true), (9000, true), (1279, false)] {
            ip(&format!("link set t0 mtu {mtu}"));
            let net = Net::open(&config("t0")).unwrap();
            assert_eq!(net.features() & 1 << VIRTIO_NET_F_MTU != 0, offered);
            let mut space = [0; 12];
            net.read_config(0, &mut space);
            assert_eq!(space[..8], [2, 0, 0, 0, 0, 9, 1, 0]);
            assert_eq!(space[10..] == mtu.to_le_bytes(), offered);
        }
    });
}

/// Reads the TAP until `count` frames are there; the kernel sends some of its own (multicast membership).
fn wait_for(net: &mut Net, session: &mut super::super::super::Session, mut done: impl FnMut() -> bool) {
    let end = Instant::now() + Duration::from_secs(10);
    while !done() {
        assert!(Instant::now() < end, "no frame in 10 s");
        net.source_event(0, EventSet::IN, session).unwrap();
        std::thread::sleep(Duration::from_millis(1));
    }
}

const UDP: usize = super::super::HEADER + 14 + 20 + 8;

/// Frames with their number of buffers, of IPv4 UDP only.
fn udp_frames(driver: &mut FakeDriver, address: impl Fn(u32) -> u64) -> Vec<(u16, Vec<u8>)> {
    let mut frames = Vec::new();
    while let Some((head, length)) = driver.used() {
        let mut frame = driver.read(address(head), length as usize);
        let count = u16::from_le_bytes([frame[10], frame[11]]);
        for _ in 1..count {
            let (head, length) = driver.used().unwrap();
            frame.extend(driver.read(address(head), length as usize));
        }
        if frame.len() >= UDP && frame[24..26] == [8, 0] && frame[35] == 17 {
            frames.push((count, frame));
        }
    }
    frames
}

#[test]
fn datagrams_go_both_ways_through_a_real_tap() {
    in_network_namespace("datagrams_go_both_ways_through_a_real_tap", || {
        ip("tuntap add t0 mode tap");
        ip("addr add 10.9.0.1/24 dev t0");
        ip("link set t0 address 02:00:00:00:00:01 up");
        ip("neigh add 10.9.0.2 lladdr 02:00:00:00:00:09 nud permanent dev t0");
        let mut net = Net::open(&config("t0")).unwrap();
        wait_for_carrier("t0");
        let features = net.features();
        for bit in [VIRTIO_NET_F_CSUM, VIRTIO_NET_F_HOST_TSO4, VIRTIO_NET_F_GUEST_CSUM, VIRTIO_NET_F_GUEST_TSO4] {
            assert!(features & 1 << bit != 0, "feature {bit}");
        }
        let (mut session, mut drivers) = FakeDriver::attach(&mut net, features).unwrap();
        let mut transmit = drivers.pop().unwrap();
        let mut receive = drivers.pop().unwrap();
        let address = |head: u32| 0x10_0000 + u64::from(head) * 0x1000;
        for head in 0..200 {
            receive.add(&[(address(head), 1536, true)]);
        }

        let host = UdpSocket::bind("10.9.0.1:7").unwrap();
        host.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        host.send_to(&[0x5a; 333], "10.9.0.2:9").unwrap();
        let mut frames = Vec::new();
        wait_for(&mut net, &mut session, || {
            frames.extend(udp_frames(&mut receive, address));
            !frames.is_empty()
        });
        let (count, mut frame) = frames.remove(0);
        assert_eq!((count, frame.len()), (1, UDP + 333));
        assert!(frame[UDP..].iter().all(|&byte| byte == 0x5a));
        assert_eq!(frame[0] & 1, 1, "the checksum is left to the guest");

        // The same frame back, with addresses and ports turned round: the checksums stay right.
        for (a, b, length) in [(12, 18, 6), (38, 42, 4), (46, 48, 2)] {
            for at in 0..length {
                frame.swap(a + at, b + at);
            }
        }
        transmit.write(0x80_0000, &frame);
        transmit.add(&[(0x80_0000, u32::try_from(frame.len()).unwrap(), false)]);
        net.queue_event(1, &mut session).unwrap();
        let mut data = [0; 1000];
        let (length, from) = host.recv_from(&mut data).unwrap();
        assert_eq!((length, from.to_string().as_str()), (333, "10.9.0.2:9"));

        // A header that contradicts its frame is the kernel's to refuse: the frame is lost, the device is not.
        frame[1] = 0xff;
        frame[2..10].fill(0xff);
        transmit.write(0x80_0000, &frame);
        transmit.add(&[(0x80_0000, u32::try_from(frame.len()).unwrap(), false)]);
        net.queue_event(1, &mut session).unwrap();
        let drops = net.metrics().into_iter().find(|(name, _)| *name == "tx_drops").unwrap();
        assert_eq!(drops.1, 1);
    });
}

#[test]
fn a_segmented_datagram_comes_as_one_frame_over_many_buffers() {
    in_network_namespace("a_segmented_datagram_comes_as_one_frame_over_many_buffers", || {
        ip("tuntap add t0 mode tap");
        ip("addr add 10.9.0.1/24 dev t0");
        ip("link set t0 up");
        ip("neigh add 10.9.0.2 lladdr 02:00:00:00:00:09 nud permanent dev t0");
        let mut net = Net::open(&config("t0")).unwrap();
        wait_for_carrier("t0");
        let offered = net.features();
        // With UDP segmentation left to the guest (Linux 6.2) one frame comes, without it one a segment.
        for (features, whole) in
            [(offered, offered & 1 << VIRTIO_NET_F_GUEST_USO4 != 0), (1 << VIRTIO_NET_F_MRG_RXBUF, false)]
        {
            let (mut session, mut drivers) = FakeDriver::attach(&mut net, features).unwrap();
            let mut receive = drivers.remove(0);
            let address = |head: u32| 0x10_0000 + u64::from(head) * 0x1000;
            for head in 0..250 {
                receive.add(&[(address(head), 1536, true)]);
            }
            let host = UdpSocket::bind("10.9.0.1:0").unwrap();
            let segment: c_int = 1000;
            let length = libc::socklen_t::try_from(size_of::<c_int>()).unwrap();
            // SAFETY: the option is one int behind the pointer, which outlives the call.
            let result = unsafe {
                libc::setsockopt(
                    host.as_raw_fd(),
                    libc::SOL_UDP,
                    libc::UDP_SEGMENT,
                    (&raw const segment).cast(),
                    length,
                )
            };
            check(result).unwrap();
            let data: Vec<_> = (0..40_000usize).map(|at| at.to_le_bytes()[0] ^ at.to_le_bytes()[1]).collect();
            host.send_to(&data, "10.9.0.2:9").unwrap();
            let mut seen = Vec::new();
            let mut counts = Vec::new();
            wait_for(&mut net, &mut session, || {
                for (count, frame) in udp_frames(&mut receive, address) {
                    counts.push(count);
                    seen.extend_from_slice(&frame[UDP..]);
                }
                seen.len() >= data.len()
            });
            assert_eq!(counts, if whole { vec![27] } else { vec![1; 40] });
            assert!(seen == data, "the data arrives unchanged");
            net.reset(&mut session);
        }
    });
}

#[test]
fn deleting_the_interface_takes_the_link_down() {
    in_network_namespace("deleting_the_interface_takes_the_link_down", || {
        ip("tuntap add t0 mode tap");
        ip("link set t0 up");
        let mut net = Net::open(&config("t0")).unwrap();
        let features = net.features();
        let (mut session, mut drivers) = FakeDriver::attach(&mut net, features).unwrap();
        drivers[0].add(&[(0x10_0000, 1536, true)]);
        drivers[1].add(&[(0x10_0000, 100, false)]);
        ip("link del t0");
        net.source_event(0, EventSet::ERROR, &mut session).unwrap();
        let mut status = [9; 2];
        net.read_config(6, &mut status);
        assert_eq!(status, [0, 0]);
        net.queue_event(1, &mut session).unwrap();
        assert_eq!(drivers[1].used(), Some((0, 0)), "frames are dropped, the device lives");
        net.reset(&mut session);
        FakeDriver::attach(&mut net, features).unwrap();
        net.read_config(6, &mut status);
        assert_eq!(status, [0, 0], "a driver that comes later sees no link either");
    });
}
