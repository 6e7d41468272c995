// SPDX-License-Identifier: Apache-2.0
//! Without root: passt.

use std::net::UdpSocket;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::{Child, Stdio};

use super::super::dns::Resolvers;
use super::*;

const FOLDER: &str = "CORACLE_TEST_PASST";
/// `nobody`.
const USER: u32 = 65534;

/// No test unless [`user`] runs it: a monitor without any rights.
#[test]
fn a_user() {
    let Some(folder) = std::env::var_os(FOLDER) else { return };
    let store = Store::open_at(folder.as_ref()).unwrap();
    let words = std::env::var("CORACLE_TEST_PORTS").unwrap();
    let words: Vec<&str> = words.split_whitespace().collect();
    let refused = attach_in(&store, &request("blue", "a", &[])).unwrap_err();
    assert!(refused.why.contains("for root"), "{refused}");
    match attach_in(&store, &request("bridge", "a", &words)) {
        Ok(attachment) => {
            let NetBackend::Passt(socket) = &attachment.backend else { panic!("no passt") };
            let ports: Vec<String> = attachment.ports.iter().map(|port| port.host.to_string()).collect();
            let (address, gateway) = (attachment.addresses[0], attachment.gateways[0]);
            assert_eq!(attachment.nameservers, Resolvers::read().beyond_loopback());
            println!("\nattached {} {address} {gateway} {} {}.", socket.display(), attachment.mac, ports.join(" "));
            let _ = std::io::stdin().read(&mut [0]);
        }
        Err(failure) => println!("\nattached {failure}."),
    }
}

/// Someone else than root attaches a container; gives what became of it, in words.
fn user(store: &Store, ports: &str) -> (Child, Vec<String>) {
    rustix::fs::chown(store.root(), Some(rustix::fs::Uid::from_raw(USER)), None).unwrap();
    let live = store.root().join("live");
    rustix::fs::chown(live, Some(rustix::fs::Uid::from_raw(USER)), None).unwrap();
    let mut child = Command::new("setpriv")
        .args([&format!("--reuid={USER}"), &format!("--regid={USER}"), "--clear-groups", "--inh-caps=-all"])
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", "network::tests::passt::a_user", "--nocapture", "--test-threads=1"])
        .envs([(FOLDER, store.root().as_os_str()), ("CORACLE_TEST_PORTS", ports.as_ref())])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let (mut seen, mut stdout) = (String::new(), child.stdout.take().unwrap());
    while !seen.split_once("\nattached ").is_some_and(|(_, words)| words.contains(".\n")) {
        let mut chunk = [0; 512];
        let count = stdout.read(&mut chunk).unwrap();
        assert!(count > 0, "it ended: {seen}");
        seen += &String::from_utf8_lossy(&chunk[..count]);
    }
    // It says more at its end.
    child.stdout = Some(stdout);
    let words = seen.split_once("\nattached ").and_then(|(_, words)| words.split_once(".\n")).expect("an outcome").0;
    (child, words.split_whitespace().map(str::to_owned).collect())
}

/// The network stack of a namespace behind passt's socket.
fn guest(words: &[String]) -> (Namespace, thread::JoinHandle<()>) {
    let (socket, address, gateway, mac) = (PathBuf::from(&words[0]), &words[1], &words[2], &words[3]);
    let namespace = Namespace::new();
    let set_up = [
        format!("link set eth0 address {mac} up"),
        format!("addr add {address} dev eth0"),
        format!("route add default via {gateway}"),
    ];
    let tap = namespace.run(move || {
        Tap::create("eth0").unwrap();
        let tap = Tap::open("eth0").unwrap();
        set_up.iter().for_each(|words| ip(words));
        tap
    });
    let mut stream = UnixStream::connect(socket).unwrap();
    let mut reader = stream.try_clone().unwrap();
    // SAFETY: the descriptor is open, and each copy is owned by its file alone.
    let [mut from, mut to] = [(); 2].map(|()| unsafe { File::from_raw_fd(libc::dup(tap.as_raw_fd())) });
    thread::spawn(move || {
        let mut frame = vec![0; 1 << 17];
        loop {
            poll(&mut [PollFd::new(&from, PollFlags::IN)], None).unwrap();
            // Behind twelve bytes of virtio header.
            let Ok(count) = from.read(&mut frame) else { continue };
            let length = u32::try_from(count - 12).unwrap().to_be_bytes();
            if stream.write_all(&[&length, &frame[12..count]].concat()).is_err() {
                return;
            }
        }
    });
    let pump = thread::spawn(move || {
        let _tap = tap;
        let mut length = [0; 4];
        while reader.read_exact(&mut length).is_ok() {
            let mut frame = vec![0; 12 + usize::try_from(u32::from_be_bytes(length)).unwrap()];
            if reader.read_exact(&mut frame[12..]).is_err() {
                return;
            }
            let _ = to.write(&frame);
        }
    });
    (namespace, pump)
}

/// The first free port of the host, which is soon someone's.
fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

#[test]
fn main_path_a_user_has_a_network_without_root() {
    on_a_host("passt::main_path_a_user_has_a_network_without_root", |store| {
        let world = outside();
        ip("route add default via 192.0.2.2");
        let server = world.run(|| whoami("192.0.2.2:80"));
        let on_loopback = whoami("127.0.0.1:0").port();
        let on_host = whoami("192.0.2.1:0");
        let port = free_port();
        let (mut child, words) =
            user(store, &format!("{port}:80 81 9000:9000/udp [::1]:{port}:81 127.0.0.2:9000:9000/udp"));
        let any: SocketAddr = words[5].parse().unwrap();
        assert_eq!(words[4], format!("127.0.0.1:{port}"));
        let (guest, pump) = guest(&words);
        let gateway: IpAddr = words[2].parse().unwrap();
        let seen = guest.run(move || seen_by(server));
        assert_eq!(seen, "192.0.2.1");
        guest.run(move || seen_by(on_host));
        let back = SocketAddr::new(gateway, on_loopback);
        assert_eq!(guest.run(move || ask_whoami(back)), None, "not what trusts whoever is on this host");
        // Published ports, of both protocols.
        let six = format!("[::1]:{port}").parse().unwrap();
        guest.run(|| [80, 81].into_iter().for_each(greeter));
        for outside in [SocketAddr::new(Publish::LOOPBACK, port), any, six] {
            let seen = eventually("a server behind a port", || greet(outside));
            assert_eq!(seen, gateway.to_string(), "{outside}");
        }
        guest.run(|| {
            let socket = UdpSocket::bind("0.0.0.0:9000").unwrap();
            thread::spawn(move || {
                let mut datagram = [0; 100];
                while let Ok((count, from)) = socket.recv_from(&mut datagram) {
                    let _ = socket.send_to(&datagram[..count], from);
                }
            });
        });
        for outside in ["127.0.0.1:9000", "127.0.0.2:9000"] {
            let client = UdpSocket::bind("127.0.0.1:0").unwrap();
            client.connect(outside).unwrap();
            client.set_read_timeout(Some(MOMENT)).unwrap();
            eventually("a datagram comes back", || {
                client.send(b"datagram").unwrap();
                let mut buffer = [0; 100];
                client.recv(&mut buffer).ok().map(|count| assert_eq!(&buffer[..count], b"datagram"))
            });
        }
        // A monitor that is killed takes passt with it, and the next one finds no trace.
        let socket = PathBuf::from(&words[0]);
        child.kill().unwrap();
        child.wait().unwrap();
        pump.join().unwrap();
        eventually("the ports are free", || TcpListener::bind(("127.0.0.1", port)).ok());
        let (mut child, again) = user(store, "");
        assert_eq!(again[0], socket.display().to_string());
        drop(child.stdin.take());
        assert!(child.wait().unwrap().success());
        assert!(!socket.exists());
        assert_eq!(std::fs::read_dir(store.root().join("live")).unwrap().count(), 0);
        eventually("passt ends", || output("ss", &["-Hlxp"]).lines().all(|line| !line.contains("passt")).then_some(()));
        end_servers(&[on_host, SocketAddr::new(Publish::LOOPBACK, on_loopback)]);
        no_outside();
    });
}

/// As `whoami`, for a client that speaks first: the guest's side of a connection comes to be, with the passt of
/// Debian 12, when the client has sent something.
fn greeter(port: u16) {
    let listener = TcpListener::bind(("0.0.0.0", port)).unwrap();
    thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            stream.read_exact(&mut [0]).unwrap();
            stream.write_all(stream.peer_addr().unwrap().ip().to_string().as_bytes()).unwrap();
        }
    });
}

fn greet(address: SocketAddr) -> Option<String> {
    let mut stream = TcpStream::connect_timeout(&address, MOMENT).ok()?;
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.write_all(b"?").unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).ok().filter(|count| *count > 0)?;
    Some(text)
}

#[test]
fn what_passt_cannot_do_is_said() {
    on_a_host("passt::what_passt_cannot_do_is_said", |store| {
        let world = outside();
        ip("route add default via 192.0.2.2");
        for (ports, why) in [("80:80", "for root"), ("192.0.2.7:8080:80", "does not have")] {
            let (mut child, words) = user(store, ports);
            let text = words.join(" ");
            assert!(text.contains(why), "{text}");
            child.wait().unwrap();
        }
        no_outside();
        drop(world);
    });
}
