// SPDX-License-Identifier: Apache-2.0
//! Networks of containers with real guests, each test in a network namespace that stands for a host.

mod common;

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::chown;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread;

use common::{Guest, PATIENCE, eventually, host, in_a_network_of_its_own};
use coracle::network::{Attachment, Publish, Request, Store, attach_in};
use coracle::vmm::devices::virtio::net::NetBackend;

/// Runs `body` in a new network namespace with a default route, and looks whether it leaves anything there.
fn on_a_host(body: impl FnOnce(&Path) + Send + 'static) {
    in_a_network_of_its_own(|| {
        ip("link add up0 type veth peer name up1");
        ip("addr add 192.0.2.1/24 dev up0");
        ip("link set up0 up");
        ip("link set up1 up");
        ip("route add default via 192.0.2.2");
        let links = || host("ip", &["-o", "link"]).lines().count();
        let before = links();
        let folder = tempfile::tempdir().unwrap();
        body(folder.path());
        assert_eq!(links(), before);
        assert_eq!(host("nft", &["list", "ruleset"]), "");
    });
}

fn ip(words: &str) {
    host("ip", &words.split(' ').collect::<Vec<_>>());
}

fn request(name: &str, ports: &[&str]) -> Request {
    Request {
        network: "bridge".to_owned(),
        container: format!("{name}-id"),
        names: vec![name.to_owned()],
        address: None,
        mac: None,
        ports: ports.iter().flat_map(|word| Publish::parse(word).unwrap()).collect(),
        namespace: None,
        spare: false,
    }
}

/// Boots a guest whose card is given by `words`, and sets it up as the agent does for a container.
fn guest(words: &str, address: &str, gateway: &str) -> Guest {
    let mut guest = Guest::shell(&["--net", words]);
    guest.sh(&format!(
        "ip addr add {address} dev eth0 && ip link set eth0 up && ip route add default via {gateway} && \
         mkdir -p /etc && echo nameserver {gateway} > /etc/resolv.conf"
    ));
    guest
}

fn on_bridge(attachment: &Attachment) -> Guest {
    let NetBackend::Tap(tap) = &attachment.config().backend else { panic!("no TAP") };
    let words = format!("tap={tap},mac={}", attachment.mac);
    guest(&words, &attachment.addresses[0].to_string(), &attachment.gateways[0].to_string())
}

/// A web server of the host with one page, for one visitor.
fn page(address: &str) -> thread::JoinHandle<()> {
    let listener = TcpListener::bind(address).unwrap();
    thread::spawn(move || {
        let (stream, _) = listener.accept().unwrap();
        let mut lines = BufReader::new(&stream).lines();
        while lines.next().is_some_and(|line| !line.unwrap().is_empty()) {}
        (&stream).write_all(b"HTTP/1.0 200 OK\r\n\r\na page of the host").unwrap();
    })
}

/// What the one who listens at `address` says, when it is asked.
fn ask(address: std::net::SocketAddr) -> Option<String> {
    let mut stream = TcpStream::connect(address).ok()?;
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.write_all(b"?\n").ok()?;
    let mut text = String::new();
    stream.read_to_string(&mut text).ok().filter(|count| *count > 0)?;
    Some(text)
}

#[test]
fn main_path_a_guest_on_a_bridge_has_a_name_a_port_and_the_host() {
    on_a_host(|folder| {
        let store = Store::open_at(folder).unwrap();
        let other = attach_in(&store, &request("db", &[])).unwrap();
        let attachment = attach_in(&store, &request("web", &["80"])).unwrap();
        let mut guest = on_bridge(&attachment);
        let visited = page("192.0.2.1:8000");
        assert_eq!(guest.sh("wget -q -O - http://192.0.2.1:8000/").trim(), "a page of the host");
        visited.join().unwrap();
        let found = guest.sh("nslookup db");
        assert!(found.contains(&other.addresses[0].addr().to_string()), "{found}");
        guest.sh("(echo served; sleep 1) | nc -l -p 80 >/dev/null 2>&1 &");
        let published = attachment.ports[0].host;
        assert_eq!(eventually("the guest serves", || ask(published)).trim(), "served");
        assert_eq!(guest.power_off(), 0);
    });
}

/// No test unless the one below runs it: someone else than root, who attaches a container, and stays.
#[test]
fn a_user_attaches() {
    let Some(folder) = std::env::var_os("CORACLE_TEST_USER") else { return };
    let store = Store::open_at(Path::new(&folder)).unwrap();
    let attachment = attach_in(&store, &request("web", &["80"])).unwrap();
    let NetBackend::Passt(socket) = &attachment.config().backend else { panic!("no passt") };
    let (address, gateway, port) = (attachment.addresses[0], attachment.gateways[0], attachment.ports[0].host);
    println!("\nattached {} {} {address} {gateway} {port}", socket.display(), attachment.mac);
    let _ = std::io::stdin().read(&mut [0]);
}

/// Runs the test above as `nobody`; gives its words.
fn user(folder: &Path) -> (Child, Vec<String>) {
    chown(folder, Some(65534), None).unwrap();
    let mut child = Command::new("setpriv")
        .args(["--reuid=65534", "--regid=65534", "--clear-groups", "--inh-caps=-all"])
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", "a_user_attaches", "--nocapture", "--test-threads=1"])
        .env("CORACLE_TEST_USER", folder)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let line = lines.find_map(|line| line.unwrap().strip_prefix("attached ").map(str::to_owned)).expect("an outcome");
    // It says more at its end.
    thread::spawn(move || lines.for_each(drop));
    (child, line.split(' ').map(str::to_owned).collect())
}

#[test]
fn a_guest_behind_passt_has_a_port_and_the_host() {
    on_a_host(|folder| {
        let (mut child, words) = user(folder);
        let [socket, mac, address, gateway, port] = &words[..] else { panic!("{words:?}") };
        let mut guest = guest(&format!("passt={socket},mac={mac}"), address, gateway);
        assert_eq!(guest.sh("cat /sys/class/net/eth0/mtu").trim(), "65520");
        let visited = page("192.0.2.1:8000");
        assert_eq!(guest.sh("wget -q -O - http://192.0.2.1:8000/").trim(), "a page of the host");
        visited.join().unwrap();
        guest.sh("(echo served; sleep 1) | nc -l -p 80 >/dev/null 2>&1 &");
        let port = port.parse().unwrap();
        assert_eq!(eventually("the guest serves", || ask(port)).trim(), "served");
        assert_eq!(guest.power_off(), 0);
        drop(child.stdin.take());
        assert!(child.wait().unwrap().success());
    });
}
