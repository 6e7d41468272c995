// SPDX-License-Identifier: Apache-2.0
//! A real registry on loopback, and a line to it that can be cut.

use std::fs;
use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use super::common::{eventually, host};

/// User and password of a registry that wants them.
pub const LOGIN: &str = "captain:s3cret";

/// Debian's `docker-registry`, in a directory of its own.
pub struct Registry {
    child: Child,
    pub directory: PathBuf,
    pub address: SocketAddr,
    secured: bool,
}

/// A port that nobody listens on, as far as can be known.
pub fn free_port() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap()
}

impl Registry {
    /// Without TLS and login.
    pub fn plain(directory: &Path) -> Self {
        Self::start(directory, free_port(), false)
    }

    /// With TLS by a CA of its own, and a login.
    pub fn secured(directory: &Path) -> Self {
        fs::create_dir_all(directory.join("ca")).unwrap();
        let (user, password) = LOGIN.split_once(':').unwrap();
        fs::write(directory.join("htpasswd"), host("htpasswd", &["-Bbn", user, password])).unwrap();
        let script = "
            set -e; cd \"$1\"; curve='ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes'
            openssl req -x509 -newkey $curve -keyout ca.key -out ca/ca.crt -days 2 -subj '/CN=CA of a test'
            openssl req -newkey $curve -keyout server.key -out server.csr -subj /CN=registry
            echo subjectAltName=IP:127.0.0.1 > extensions
            openssl x509 -req -in server.csr -CA ca/ca.crt -CAkey ca.key -CAcreateserial -out server.crt -days 2 \
              -extfile extensions";
        host("sh", &["-c", script, "sh", directory.to_str().unwrap()]);
        Self::start(directory, free_port(), true)
    }

    fn start(directory: &Path, address: SocketAddr, secured: bool) -> Self {
        fs::create_dir_all(directory).unwrap();
        let path = directory.display();
        let mut config = format!(
            "version: 0.1\nlog: {{accesslog: {{disabled: false}}}}\n\
             storage: {{filesystem: {{rootdirectory: {path}/storage}}, delete: {{enabled: true}}}}\n\
             http: {{addr: '{address}'"
        );
        config += &match secured {
            true => format!(
                ", tls: {{certificate: {path}/server.crt, key: {path}/server.key}}}}\n\
                 auth: {{htpasswd: {{realm: test, path: {path}/htpasswd}}}}\n"
            ),
            false => "}\n".to_owned(),
        };
        fs::write(directory.join("config.yml"), config).unwrap();
        let log = fs::OpenOptions::new().create(true).append(true).open(directory.join("log")).unwrap();
        let child = Command::new("docker-registry")
            .arg("serve")
            .arg(directory.join("config.yml"))
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .expect("docker-registry: scripts/setup test");
        eventually("a registry that answers", || TcpStream::connect(address).ok());
        Self { child, directory: directory.to_owned(), address, secured }
    }

    /// Kills it.
    pub fn kill(&mut self) {
        // One that has ended needs no ending.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// Starts it again at the same place.
    pub fn restart(&mut self) {
        self.kill();
        let next = Self::start(&self.directory, self.address, self.secured);
        drop(std::mem::replace(self, next));
    }

    /// Pushes a tag of an OCI layout under `name`, with more words for skopeo.
    pub fn push(&self, layout: &Path, name: &str, more: &[&str]) {
        let source = format!("oci:{}:latest", layout.display());
        let target = format!("docker://{}/{name}", self.address);
        let mut words = vec!["copy", "--quiet", "--insecure-policy", "--dest-tls-verify=false"];
        if self.secured {
            words.extend(["--dest-creds", LOGIN]);
        }
        words.extend(more);
        words.extend([source.as_str(), target.as_str()]);
        host("skopeo", &words);
    }

    /// Lines of its log that ask for a blob: method, path and status are in them.
    pub fn blob_lines(&self) -> Vec<String> {
        let log = fs::read_to_string(self.directory.join("log")).unwrap();
        log.lines().filter(|line| line.contains("\"GET /v2/") && line.contains("/blobs/")).map(str::to_owned).collect()
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        self.kill();
    }
}

/// A line to a registry: slow, and cut after some bytes.
pub struct Line {
    pub address: SocketAddr,
    spare: Arc<AtomicU64>,
}

/// No limit.
pub const ENDLESS: u64 = u64::MAX / 2;

impl Line {
    /// A line that carries `spare` bytes from the registry, in pieces of 64 KiB with `pause` after each, and is then cut.
    pub fn to(registry: SocketAddr, spare: u64, pause: Duration) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let spare = Arc::new(AtomicU64::new(spare));
        let left = Arc::clone(&spare);
        thread::spawn(move || {
            for client in listener.incoming() {
                let client = client.unwrap();
                // The registry may be dead: then the line is as well.
                let Ok(server) = TcpStream::connect(registry) else { continue };
                let (mut from_client, mut to_server) = (client.try_clone().unwrap(), server.try_clone().unwrap());
                thread::spawn(move || {
                    let _ = std::io::copy(&mut from_client, &mut to_server);
                    let _ = to_server.shutdown(Shutdown::Write);
                });
                let left = Arc::clone(&left);
                thread::spawn(move || carry(server, client, &left, pause));
            }
        });
        Self { address, spare }
    }

    /// Whether it is cut.
    pub fn is_cut(&self) -> bool {
        self.spare.load(Ordering::Relaxed) == 0
    }

    /// Mends it.
    pub fn mend(&self) {
        self.spare.store(ENDLESS, Ordering::Relaxed);
    }
}

fn carry(mut from: TcpStream, mut to: TcpStream, left: &AtomicU64, pause: Duration) {
    let mut buffer = [0; 1 << 16];
    while let Ok(count @ 1..) = from.read(&mut buffer) {
        let wanted = u64::try_from(count).unwrap();
        let before =
            left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| Some(left.saturating_sub(wanted))).unwrap();
        let count = count.min(usize::try_from(before).unwrap_or(usize::MAX));
        if to.write_all(&buffer[..count]).is_err() || before < wanted {
            break;
        }
        thread::sleep(pause);
    }
    let _ = (to.shutdown(Shutdown::Both), from.shutdown(Shutdown::Both));
}
