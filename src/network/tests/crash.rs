// SPDX-License-Identifier: Apache-2.0
//! Monitors that are killed.

use std::process::{Child, Stdio};

use super::super::attach::reconcile_in;
use super::super::manage;
use super::*;

/// Where a process that is to be killed finds its networks.
const FOLDER: &str = "CORACLE_TEST_NETWORKS";

/// A process that attaches a container, says so, and stays.
fn monitor(store: &Store, name: &str) -> Child {
    Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "network::tests::crash::a_monitor", "--nocapture", "--test-threads=1"])
        .env(FOLDER, store.root())
        .env("CORACLE_TEST_NAME", name)
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap()
}

/// No test unless [`monitor`] runs it: a monitor that lives until it is killed.
#[test]
fn a_monitor() {
    let Some(folder) = std::env::var_os(FOLDER) else { return };
    let store = Store::open_at(folder.as_ref()).unwrap();
    let name = std::env::var("CORACLE_TEST_NAME").unwrap();
    let attachment = attach_in(&store, &request("bridge", &name, &["8080:80", "8080:80/udp"])).unwrap();
    println!("\nattached {}", attachment.addresses[0]);
    loop {
        thread::park();
    }
}

fn wait_attached(child: &mut Child) {
    let mut seen = String::new();
    let mut stdout = child.stdout.take().unwrap();
    while !seen.contains("\nattached") {
        let mut chunk = [0; 256];
        let count = stdout.read(&mut chunk).unwrap();
        assert!(count > 0, "the monitor ended: {seen}");
        seen += &String::from_utf8_lossy(&chunk[..count]);
    }
}

fn attached(store: &Store) -> usize {
    store.list().unwrap().iter().flat_map(|network| network.leases.values()).filter(|lease| lease.attached).count()
}

#[test]
fn what_a_killed_monitor_left_is_removed() {
    on_a_host("crash::what_a_killed_monitor_left_is_removed", |store| {
        let before = left_behind();
        let mut child = monitor(store, "a");
        wait_attached(&mut child);
        reconcile_in(store).unwrap();
        assert_eq!(attached(store), 1, "whoever lives is left alone");
        assert!(left_behind().matches("cor").count() >= 2);
        child.kill().unwrap();
        child.wait().unwrap();
        assert_eq!(attached(store), 1, "as far as the file says");
        reconcile_in(store).unwrap();
        assert_eq!((attached(store), left_behind()), (0, before));
        assert_eq!(std::fs::read_dir(store.root().join("live")).unwrap().count(), 0);
        // The ports are free, and the next one cleans up by itself.
        let mut child = monitor(store, "b");
        wait_attached(&mut child);
        child.kill().unwrap();
        child.wait().unwrap();
        drop(attach_in(store, &request("bridge", "c", &["8080:80"])).unwrap());
        assert_eq!(attached(store), 0);
    });
}

#[test]
fn a_monitor_may_be_killed_at_any_moment() {
    on_a_host("crash::a_monitor_may_be_killed_at_any_moment", |store| {
        let before = left_behind();
        let start = Instant::now();
        let mut child = monitor(store, "a");
        wait_attached(&mut child);
        let whole = start.elapsed();
        child.kill().unwrap();
        child.wait().unwrap();
        for step in 0..40 {
            let mut child = monitor(store, "a");
            thread::sleep(whole * step / 40);
            child.kill().unwrap();
            child.wait().unwrap();
            reconcile_in(store).unwrap();
            assert_eq!((attached(store), left_behind()), (0, before.clone()), "killed in step {step}");
        }
    });
}

#[test]
fn what_others_took_away_is_put_back() {
    on_a_host("crash::what_others_took_away_is_put_back", |store| {
        let world = outside();
        let server = world.run(|| whoami("192.0.2.2:80"));
        let guest = Guest::start(store, &request("bridge", "a", &[]));
        output("nft", &["flush", "ruleset"]);
        assert_ne!(guest.run(move || ask_whoami(server)).as_deref(), Some("192.0.2.1"), "no address translation");
        reconcile_in(store).unwrap();
        assert_eq!(guest.run(move || seen_by(server)), "192.0.2.1");
        manage::create(store, &new("unused")).unwrap();
        let pruned = manage::prune(store, |_| true).unwrap();
        assert_eq!(pruned.iter().map(|removed| removed.name.as_str()).collect::<Vec<_>>(), ["unused"]);
        drop(guest);
        no_outside();
    });
}
