// SPDX-License-Identifier: Apache-2.0
//! VMs that wait for the next container of their kind: who gets one does not notice, and none stays for ever.

mod common;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use common::home::{Home, signal};
use common::{PATIENCE, eventually, fetch, in_a_network_of_its_own};
use serde_json::Value;

const RUN: [&str; 4] = ["run", "--rm", "--network", "none"];

/// A user who has spares.
struct User(Home);

impl User {
    /// One with a template of the image for `sh`.
    fn new() -> Self {
        let user = Self(Home::new());
        user.ok(&["template", "warm", "--network", "none", "IMAGE", "sh"]);
        user
    }

    fn command(&self, words: &[&str]) -> Command {
        let mut command = self.0.command(words);
        // However slow a host is, they are still there.
        command.env("CORACLE_SPARES", "900");
        command
    }

    /// Runs `coracle`, which must succeed; gives stdout.
    fn ok(&self, words: &[&str]) -> String {
        let (status, stdout, stderr) = common::run(&mut self.command(words));
        assert_eq!(status, Some(0), "coracle {words:?}: {stdout}{stderr}");
        stdout.trim().to_owned()
    }

    fn sh(&self, more: &[&str], script: &str) -> String {
        self.ok(&[&RUN[..], more, &["IMAGE", "sh", "-c", script]].concat())
    }

    /// Where spares are.
    fn places(&self) -> Vec<PathBuf> {
        let entries = self.0.path().join("run").read_dir().unwrap().map(|entry| entry.unwrap().path());
        entries.filter(|path| path.file_name().unwrap().to_string_lossy().starts_with("spare-")).collect()
    }

    /// Who has which addresses in a network.
    fn leases(&self, network: &str) -> Value {
        let text = fs::read(self.0.path().join(format!("data/networks/{network}.json"))).unwrap();
        serde_json::from_slice::<Value>(&text).unwrap()["leases"].take()
    }

    /// Addresses of the one that waits in a network.
    fn addresses(&self, network: &str) -> Vec<String> {
        let leases = self.leases(network);
        let spare = leases.as_object().unwrap().values().find(|lease| lease["spare"] == true).unwrap();
        ["ipv4", "ipv6"].iter().filter_map(|name| spare[name].as_str()).map(str::to_owned).collect()
    }

    /// Waits until there is none.
    fn gone(&self) {
        eventually("none waits", || self.places().is_empty().then_some(()));
    }

    /// The only one, once it is ready: its process.
    fn ready(&self) -> u32 {
        let place = eventually("a spare that is ready", || {
            let place = self.places().pop()?;
            place.join("ready").exists().then_some(place)
        });
        process(&place).expect("a process")
    }
}

impl Drop for User {
    fn drop(&mut self) {
        let deadline = Instant::now() + PATIENCE;
        for place in self.places() {
            // Just after a run it is about to become one.
            while place.exists() && Instant::now() < deadline {
                if let Some(pid) = process(&place) {
                    signal(pid, libc::SIGKILL);
                    break;
                }
                thread::sleep(Duration::from_millis(50));
            }
        }
    }
}

/// The process that is the spare of this place.
fn process(place: &Path) -> Option<u32> {
    let place = place.to_str().unwrap();
    let pids = fs::read_dir("/proc").unwrap().filter_map(|entry| entry.unwrap().file_name().to_str()?.parse().ok());
    pids.into_iter().find(|pid: &u32| {
        let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        let words: Vec<_> = line.split(|byte| *byte == 0).collect();
        words.get(1) == Some(&&b"spare"[..]) && words.get(2) == Some(&place.as_bytes())
    })
}

/// What is each container's own: its name, its random numbers.
const OWN: &str = "hostname; cat /etc/hostname; head -c 16 /dev/urandom | md5sum; cat /proc/sys/kernel/random/boot_id";

#[test]
fn main_path_a_container_gets_the_microvm_that_waits_and_leaves_another() {
    let user = User::new();
    let mut seen: Vec<Vec<String>> = Vec::new();
    let mut monitors = Vec::new();
    for _ in 0..3 {
        let told = user.sh(&[], OWN);
        let own: Vec<_> = told.lines().map(str::to_owned).collect();
        assert_eq!((own.len(), &own[0]), (4, &own[1]), "{told}");
        seen.iter().flat_map(|other| other.iter().zip(&own)).for_each(|(one, other)| assert_ne!(one, other));
        seen.push(own);
        monitors.push(user.ready());
        let listed = user.ok(&["template", "ls", "--format", "json"]);
        assert!(listed.contains("\"Waiting\":1"), "{listed}");
    }
    // The one that waited looked after the next container, and waits again: it is the same process.
    assert!(monitors.windows(2).all(|pair| pair[0] == pair[1]), "{monitors:?}");
    // What is said of a container comes after the wait.
    let words = ["--read-only", "-u", "7:8", "-w", "/tmp", "-e", "A=b", "--hostname", "box", "-i"];
    let script = "id -u; id -g; pwd; echo $A; hostname; echo > /file || echo refused; cat; exit 7";
    let mut command = user.command(&[&RUN[..], &words, &["IMAGE", "sh", "-c", script]].concat());
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
    std::io::Write::write_all(&mut child.stdin.take().unwrap(), b"given\n").unwrap();
    let output = child.wait_with_output().unwrap();
    let told = String::from_utf8(output.stdout).unwrap();
    assert_eq!(told.lines().collect::<Vec<_>>(), ["7", "8", "/tmp", "b", "box", "refused", "given"]);
    assert_eq!(output.status.code(), Some(7));
    assert_eq!(user.ready(), monitors[0]);
    assert_eq!(user.0.containers(), 0);
}

#[test]
fn main_path_who_wants_none_has_none() {
    let user = User::new();
    assert_eq!(user.sh(&["--no-spare"], "echo alone"), "alone");
    assert_eq!(user.0.run(&[&RUN[..], &["IMAGE", "sh", "-c", "exit 0"]].concat()).0, Some(0));
    assert_eq!(user.0.left(), 0);
    user.sh(&[], "exit 0");
    let waiting = user.ready();
    assert_eq!(user.sh(&["--no-spare"], "echo alone"), "alone");
    // In other circumstances another one is left waiting; and those that are kept have none.
    let elsewhere = || user.command(&[&RUN[..], &["IMAGE", "sh", "-c", "exit 3"]].concat());
    assert_eq!(common::run(elsewhere().env("CORACLE_LOG", "error")).0, Some(3));
    user.ok(&["run", "--network", "none", "--name", "kept", "IMAGE", "sh", "-c", "exit 0"]);
    user.ok(&["rm", "kept"]);
    let both: Vec<_> = user.places().iter().filter_map(|place| process(place)).collect();
    assert!(both.len() == 2 && both.contains(&waiting), "{both:?}");
}

#[test]
fn main_path_what_a_killed_one_leaves_is_no_hindrance() {
    let user = User::new();
    user.sh(&[], "exit 0");
    let killed = user.ready();
    let vmm = fs::read_to_string(format!("/proc/{killed}/task/{killed}/children")).unwrap();
    signal(killed, libc::SIGKILL);
    eventually("the end of its VMM", || {
        vmm.split_whitespace().all(|pid| !PathBuf::from(format!("/proc/{pid}/exe")).exists()).then_some(())
    });
    assert_eq!(user.sh(&[], "echo there"), "there");
    assert_ne!(user.ready(), killed);
    // Its VMM alone has gone: the container gets another.
    let waiting = user.ready();
    let vmm = fs::read_to_string(format!("/proc/{waiting}/task/{waiting}/children"));
    let vmm: Vec<u32> = vmm.unwrap().split_whitespace().map(|pid| pid.parse().unwrap()).collect();
    vmm.iter().for_each(|pid| signal(*pid, libc::SIGKILL));
    let stat = |pid: &u32| fs::read_to_string(format!("/proc/{pid}/stat"));
    let ended = |pid: &u32| stat(pid).map_or(true, |stat| stat.contains(") Z "));
    eventually("the end of its VMM", || vmm.iter().all(ended).then_some(()));
    assert_eq!(user.sh(&[], "echo there"), "there");
    // So it is where its template has gone.
    user.ready();
    user.ok(&["template", "rm", "--all"]);
    assert_eq!(user.sh(&[], "echo there"), "there");
    assert_eq!(user.0.containers(), 0);
}

#[test]
fn main_path_nobody_else_is_taken_for_one() {
    let user = User::new();
    user.sh(&[], "exit 0");
    let waiting = user.ready();
    // Where somebody else has made the directory, whoever listens there is not asked.
    let place = user.places().pop().unwrap();
    std::os::unix::fs::chown(&place, Some(12345), None).unwrap();
    assert_eq!(user.sh(&[], "echo there"), "there");
    assert_eq!(process(&place), Some(waiting), "it still waits");
}

#[test]
fn main_path_many_at_once_each_have_a_microvm() {
    let user = User::new();
    user.sh(&[], "exit 0");
    user.ready();
    let told: Vec<_> = thread::scope(|scope| {
        let all: Vec<_> = (0..4).map(|_| scope.spawn(|| user.sh(&[], "cat /proc/sys/kernel/random/boot_id"))).collect();
        all.into_iter().map(|one| one.join().unwrap()).collect()
    });
    let different: std::collections::HashSet<_> = told.iter().collect();
    assert_eq!(different.len(), 4, "{told:?}");
    user.ready();
    assert_eq!(user.places().len(), 1);
}

/// Runs `body` for a user on a host of its own, with a template of IMAGE in the default network.
fn on_a_host(body: impl FnOnce(&User) + Send + 'static) {
    in_a_network_of_its_own(|| {
        let user = User(Home::new());
        user.ok(&["template", "warm", "IMAGE", "sh"]);
        body(&user);
    });
}

/// Says "there" if the gateway answers.
const PING: &str = "ping -c 1 -w 30 $(ip route | sed -n 's/^default via \\([^ ]*\\).*/\\1/p') >/dev/null && echo there";

#[test]
fn main_path_one_that_waits_in_a_network_is_heard_of_by_nobody() {
    on_a_host(|user| {
        let leased = || user.leases("bridge").to_string();
        let taps = || common::host("ip", &["-o", "link", "show", "type", "tun"]);
        let run = || user.ok(&["run", "--rm", "IMAGE", "sh", "-c", PING]);
        assert!(run().ends_with("there"));
        let waiting = user.ready();
        for _ in 0..2 {
            let tap = taps();
            assert!(tap.lines().count() == 1 && tap.contains("state DOWN") && !tap.contains("master"), "{tap}");
            assert!(leased().contains("\"spare\":true"), "{}", leased());
            let told = user.ok(&["network", "inspect", "bridge"]);
            assert!(!told.contains("spare-") && !told.contains("MacAddress"), "{told}");
            assert!(run().ends_with("there"));
            assert_eq!(user.ready(), waiting);
        }
        // What a killed one had is free again.
        signal(waiting, libc::SIGKILL);
        eventually("its addresses", || {
            user.ok(&["network", "ls"]);
            (!leased().contains("spare-")).then_some(())
        });
        assert_eq!(taps(), "");
        // It is in the way of nobody who removes its network, and goes with it.
        user.ok(&["network", "create", "other"]);
        let other = || user.ok(&["run", "--rm", "--network", "other", "IMAGE", "sh", "-c", "echo there"]);
        for remove in
            [&["network", "rm", "other"][..], &["network", "prune", "--force"], &["system", "prune", "--force"]]
        {
            assert_eq!(other(), "there");
            let waiting = user.ready();
            user.ok(&["network", "prune", "--force", "--filter", "until=24h"]);
            assert_eq!(user.ready(), waiting, "its network is kept");
            user.ok(remove);
            assert_eq!(taps(), "");
            user.gone();
            user.ok(&["network", "create", "other"]);
        }
        assert_eq!(user.0.containers(), 0);
    });
}

/// Answers with what its card has on port 80.
const SERVER: &str = "ip -o addr show eth0 > /index.html; exec httpd -f -p 80 -h /";

#[test]
fn main_path_ports_names_and_addresses_are_the_container_s_and_free_at_its_end() {
    on_a_host(|user| {
        user.ok(&["network", "create", "--ipv6", "--subnet", "10.213.7.0/24", "app"]);
        let app = |words: &[&str], script: &str| {
            user.ok(&[&["run", "--rm", "--network", "app"], words, &["IMAGE", "sh", "-c", script]].concat())
        };
        app(&[], "exit 0");
        for _ in 0..2 {
            user.ready();
            let addresses = user.addresses("app");
            assert_eq!(addresses.len(), 2);
            app(&["-d", "--name", "web", "--network-alias", "db", "-p", "8080:80"], SERVER);
            let seen = fetch("127.0.0.1:8080");
            assert!(addresses.iter().all(|address| seen.contains(address)), "{addresses:?} are not in {seen}");
            assert!(app(&[], "wget -q -O - http://db/index.html").contains(&addresses[0]));
            user.ok(&["stop", "-t", "0", "web"]);
            assert_eq!(user.ok(&["ps", "-aq"]), "");
        }
        for _ in 0..2 {
            app(&["--name", "web", "-p", "8080:80"], "exit 0");
        }
        // Who wants an address gets it, and the next is not held up by the one that had it.
        user.ready();
        let wanted = user.addresses("app").remove(0);
        assert!(app(&["--ip", &wanted], "ip -o addr show eth0").contains(&wanted));
        assert_eq!(app(&[], "echo there"), "there");
    });
}

#[test]
fn main_path_one_that_nobody_calls_takes_its_network_with_it() {
    on_a_host(|user| {
        let rules = || common::host("nft", &["list", "ruleset"]);
        let run = || user.command(&["run", "--rm", "IMAGE", "sh", "-c", PING]);
        let there = || assert_eq!(common::run(&mut run()).0, Some(0));
        let nothing_is_left = || {
            user.gone();
            eventually("bridge and rules gone", || {
                (rules().is_empty() && !common::host("ip", &["-brief", "link"]).contains("cor")).then_some(())
            });
        };
        assert_eq!(common::run(run().env("CORACLE_SPARES", "10")).0, Some(0));
        assert_eq!(user.places().len(), 1);
        nothing_is_left();
        // What others took away is put back, or another VM is started.
        there();
        user.ready();
        common::host("nft", &["flush", "ruleset"]);
        there();
        user.ready();
        assert!(rules().contains("masquerade"), "{}", rules());
        let links = common::host("ip", &["-brief", "link"]);
        let ours =
            links.lines().filter_map(|line| line.split_whitespace().next()).filter(|name| name.starts_with("cor"));
        ours.for_each(|name| _ = common::host("ip", &["link", "del", name]));
        there();
        user.ready();
        user.ok(&["system", "prune", "--force"]);
        nothing_is_left();
    });
}
