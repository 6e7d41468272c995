// SPDX-License-Identifier: Apache-2.0
//! Containers that are reached from the host, from each other, and that reach it; and what is left of that.

mod common;

use common::home::{Home, signal};
use common::{eventually, fetch, host, run};

/// Answers with its name on port 80.
const SERVER: &str = "hostname > /index.html; exec httpd -f -p 80 -h /";

/// Links and rules of ours on the host.
fn traces() -> (usize, usize) {
    let links = host("ip", &["-brief", "link"]);
    let rules = host("nft", &["list", "tables"]);
    (links.lines().filter(|line| line.starts_with("cor")).count(), rules.matches("coracle").count())
}

#[test]
fn containers_are_reached_from_the_host_and_by_name_and_leave_nothing() {
    let home = Home::new();
    let id = home.ok(&["run", "-d", "--name", "web", "-p", "80", "IMAGE", "sh", "-c", SERVER]);
    let address = home.ok(&["port", "web", "80"]);
    assert!(address.starts_with("127.0.0.1:"), "{address}");
    assert_eq!(fetch(&address), id[..12]);
    assert!(home.ok(&["ps"]).contains(&format!("{address}->80/tcp")));
    let script = "wget -q -O - http://web/index.html; wget -q -O - http://WEB/index.html; ping -c 1 -W 30 $0 | grep -c '1 packets received'";
    let gateway = home.field("web", "{{.NetworkSettings.IPAddress}}");
    let gateway = format!("{}.1", gateway.rsplit_once('.').unwrap().0);
    let seen = home.ok(&["run", "--rm", "IMAGE", "sh", "-c", script, &gateway]);
    assert_eq!(seen, format!("{0}\n{0}\n1", &id[..12]));
    // The address is kept over a restart.
    let before = home.field("web", "{{.NetworkSettings.IPAddress}}");
    home.ok(&["restart", "-t", "0", "web"]);
    assert_eq!(home.field("web", "{{.NetworkSettings.IPAddress}}"), before);
    home.ok(&["rm", "-f", "web"]);
    assert_eq!((home.left(), traces()), (0, (0, 0)));
}

#[test]
fn a_network_of_one_s_own_is_apart_and_none_is_none() {
    let home = Home::new();
    home.ok(&["network", "create", "--subnet", "10.213.7.0/24", "back"]);
    let ip = ["--network", "back", "--ip", "10.213.7.9", "--network-alias", "db", "--add-host", "other:10.1.2.3"];
    home.ok(&[&["run", "-d", "--name", "one"], &ip[..], &["IMAGE", "sh", "-c", SERVER]].concat());
    let seen = home.ok(&["run", "--rm", "--network", "back", "IMAGE", "sh", "-c", "ping -c 1 -W 30 db | head -1"]);
    assert!(seen.contains("10.213.7.9"), "{seen}");
    assert!(home.ok(&["exec", "one", "cat", "/etc/hosts"]).contains("10.1.2.3\tother"));
    let (status, _, _) = home.run(&["run", "--rm", "IMAGE", "wget", "-T", "5", "-q", "-O", "-", "http://10.213.7.9/"]);
    assert_ne!(status, Some(0), "networks are apart");
    assert_eq!(home.ok(&["run", "--rm", "--network", "none", "IMAGE", "ls", "/sys/class/net"]), "lo");
    home.ok(&["rm", "-f", "one"]);
    assert_eq!(home.ok(&["network", "rm", "back"]), "back");
    assert_eq!(traces(), (0, 0));
}

#[test]
fn what_cannot_be_connected_is_explained() {
    let home = Home::new();
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = format!("{}:80", taken.local_addr().unwrap().port());
    for (words, why) in [
        (&["-p", &port, "IMAGE", "true"][..], "in use"),
        (&["--network", "nowhere", "IMAGE", "true"], "nowhere"),
        (&["--network", "host", "IMAGE", "true"], "share the host's"),
        (&["--network", "none", "-p", "80", "IMAGE", "true"], "no ports to publish"),
        (&["--ip", "192.0.2.7", "IMAGE", "true"], "192.0.2.7"),
    ] {
        let (status, stdout, stderr) = home.run(&[&["run", "--rm"], words].concat());
        assert_eq!((status, stdout.as_str()), (Some(125), ""), "{words:?}: {stderr}");
        assert!(stderr.contains(why) && stderr.lines().count() == 3, "{words:?}: {stderr}");
    }
    assert_eq!((home.left(), home.ok(&["ps", "-aq"]).as_str(), traces()), (0, "", (0, 0)));
}

#[test]
fn a_killed_monitor_s_network_is_cleaned_up() {
    let home = Home::new();
    home.ok(&["run", "-d", "--name", "web", "-p", "127.0.0.1:0:80", "IMAGE", "sleep", "1000"]);
    assert_ne!(traces(), (0, 0));
    let vmm = home.field("web", "{{.State.Pid}}");
    let (_, parent, _) = run(std::process::Command::new("ps").args(["-o", "ppid=", "-p", &vmm]));
    signal(parent.trim().parse().unwrap(), libc::SIGKILL);
    eventually("the state is settled", || home.ok(&["ps", "-a"]).contains("Exited (137)").then_some(()));
    assert_eq!(traces(), (0, 0));
}
