// SPDX-License-Identifier: Apache-2.0
//! Containers over time: detached, listed, entered, stopped, started again, killed with all that looks after them.

mod common;

use std::fs;
use std::io::{Read, Write};
use std::thread;

use common::eventually;
use common::home::{Home, on_terminal, read_to, signal};

/// Ends with 3 when asked to.
const SERVER: &str = "trap 'echo bye; exit 3' TERM; echo out; echo err >&2; while :; do sleep 0.1; done";

#[test]
fn main_path_a_container_lives_on_is_entered_and_stops() {
    let home = Home::new();
    let id = home.ok(&["run", "-d", "--name", "web", "-e", "A=1", "IMAGE", "sh", "-c", SERVER]);
    assert_eq!(id.len(), 64);
    home.log_has("web", "out");
    let line = home.ok(&["ps", "--format", "{{.ID}} {{.Names}} {{.State}} {{.Isolation}}"]);
    assert_eq!(line, format!("{} web running vm", &id[..12]));
    assert_eq!(home.ok(&["exec", "-e", "B=2", "web", "sh", "-c", "echo $A$B; hostname"]), format!("12\n{}", &id[..12]));
    assert_eq!(home.run(&["exec", "web", "sh", "-c", "exit 4"]).0, Some(4));
    assert_eq!(home.ok(&["stop", "web"]), "web");
    assert_eq!((home.ok(&["ps", "-q"]).as_str(), home.ok(&["wait", "web"]).as_str()), ("", "3"));
    let (_, stdout, stderr) = home.run(&["logs", "web"]);
    assert_eq!((stdout.as_str(), stderr.as_str()), ("out\nbye\n", "err\n"));
    assert!(home.ok(&["ps", "-a"]).contains("Exited (3)"));
    assert_eq!(home.ok(&["rm", "web"]), "web");
    assert_eq!((home.left(), home.ok(&["ps", "-aq"]).as_str()), (0, ""));
}

#[test]
fn what_a_guest_caches_goes_back_to_the_host_when_asked_for() {
    let home = Home::new();
    let script = "dd if=/dev/zero of=/file bs=1M count=24 2>/dev/null; sync; echo written; read end";
    home.ok(&["run", "-d", "-i", "--name", "full", "--no-reclaim", "--network", "none", "IMAGE", "sh", "-c", script]);
    assert_eq!(home.field("full", "{{.HostConfig.KeepsCaches}}"), "true");
    home.log_has("full", "written");
    let vmm = home.field("full", "{{.State.Pid}}");
    let own = || {
        let status = fs::read_to_string(format!("/proc/{vmm}/status")).unwrap();
        let value = status.lines().find_map(|line| line.strip_prefix("RssAnon:")).unwrap();
        value.trim().strip_suffix(" kB").unwrap().parse::<u64>().unwrap() >> 10
    };
    let before = own();
    assert!(before > 24, "{before} MiB");
    assert_eq!(home.ok(&["reclaim", "full"]), "full");
    eventually("most of it has come back", || (own() + 20 < before).then_some(()));
    assert_eq!(home.ok(&["exec", "full", "wc", "-c", "/file"]), "25165824 /file");
    home.ok(&["pause", "full"]);
    let (status, _, stderr) = home.run(&["reclaim", "full"]);
    assert_eq!(status, Some(1));
    assert!(stderr.contains("it is paused"), "{stderr}");
    home.ok(&["rm", "-f", "full"]);
}

#[test]
fn a_container_is_made_started_twice_renamed_and_removed() {
    let home = Home::new();
    home.ok(&["create", "--name", "one", "--label", "a=b", "IMAGE", "sh", "-c", SERVER]);
    assert_eq!(home.field("one", "{{.State.Status}} {{.Config.Labels.a}}"), "created b");
    for _ in 0..2 {
        assert_eq!(home.ok(&["start", "one"]), "one");
        assert_eq!(home.field("one", "{{.State.Running}}"), "true");
        assert_eq!(home.ok(&["restart", "-t", "5", "one"]), "one");
        assert_eq!(home.ok(&["kill", "one"]), "one");
        assert_eq!(home.ok(&["wait", "one"]), "137");
    }
    // What it writes is kept until it is removed.
    home.ok(&["start", "one"]);
    home.ok(&["exec", "one", "sh", "-c", "echo kept > /kept && rm /etc/group"]);
    home.ok(&["restart", "-t", "5", "one"]);
    assert_eq!(home.ok(&["exec", "one", "sh", "-c", "cat /kept; test -e /etc/group || echo gone"]), "kept\ngone");
    home.ok(&["stop", "one"]);
    home.ok(&["rename", "one", "two"]);
    assert_eq!(home.ok(&["ps", "-a", "--filter", "name=two", "--format", "{{.Names}}"]), "two");
    // What one start wrote is kept by the next.
    assert!(home.ok(&["logs", "--tail", "all", "two"]).lines().filter(|line| *line == "out").count() >= 3);
    assert!(home.ok(&["logs", "--tail", "1", "two"]).lines().count() <= 1);
    home.ok(&["rm", "two"]);
    assert_eq!(home.ok(&["ps", "-aq"]), "");
}

#[test]
fn what_is_asked_wrongly_is_explained() {
    let home = Home::new();
    home.ok(&["create", "--name", "web", "IMAGE", "true"]);
    for (words, status, why) in [
        (&["create", "--name", "web", "IMAGE", "true"][..], 125, "has that name"),
        (&["create", "--name", "-", "IMAGE", "true"], 125, "a name is"),
        (&["run", "--name", "web", "IMAGE", "true"], 125, "has that name"),
        (&["start", "nobody"], 1, "no container of that name"),
        (&["stop", "nobody"], 1, "no container of that name"),
        (&["rm", "nobody"], 1, "no container of that name"),
        (&["logs", "nobody"], 125, "no container of that name"),
        (&["exec", "nobody", "true"], 125, "no container of that name"),
        (&["exec", "web", "true"], 125, "it is created, not running"),
        (&["kill", "web"], 1, "it is created, not running"),
        (&["attach", "web"], 125, "it is created, not running"),
        (&["reclaim", "web"], 1, "it is created, not running"),
        (&["inspect", "nobody"], 125, "no such container or image"),
    ] {
        let (found, stdout, stderr) = home.run(words);
        assert_eq!((found, stdout.trim_start_matches("[]\n")), (Some(status), ""), "{words:?}: {stderr}");
        assert!(stderr.contains(why) && stderr.lines().count() == 3, "{words:?}: {stderr}");
    }
    assert_eq!(home.ok(&["rm", "-f", "nobody", "web"]), "web");
}

#[test]
fn programs_that_are_run_in_a_container_have_streams_of_their_own() {
    let home = Home::new();
    home.ok(&["run", "-d", "--name", "box", "IMAGE", "sleep", "1000"]);
    let (status, stdout, stderr) = home.run(&["exec", "-u", "7", "-w", "/tmp", "box", "sh", "-c", "id -u; pwd; ls /x"]);
    assert_eq!((status, stdout.as_str()), (Some(1), "7\n/tmp\n"));
    assert!(stderr.contains("/x"), "{stderr}");
    assert_eq!(home.run(&["exec", "box", "no-such-program"]).0, Some(127));
    // A directory is made for a container, not for who comes later.
    assert_eq!(home.run(&["exec", "-w", "/nowhere", "box", "true"]).0, Some(127));
    let list = home.path().join("list");
    std::fs::write(&list, "# variables\nA=from a file\n").unwrap();
    assert_eq!(home.ok(&["exec", "--env-file", list.to_str().unwrap(), "box", "sh", "-c", "echo $A"]), "from a file");
    assert_eq!(home.run(&["exec", "box", "/etc/passwd"]).0, Some(126));
    assert_eq!(home.run(&["exec", "box", "sh", "-c", "kill -9 $$"]).0, Some(137));
    // Both see the same processes and files.
    home.ok(&["exec", "-d", "box", "sh", "-c", "echo here > /file; exec sleep 999"]);
    eventually("the detached one's file", || (home.run(&["exec", "box", "cat", "/file"]).1 == "here\n").then_some(()));
    assert!(home.ok(&["exec", "box", "ps"]).contains("sleep 999"));
    // A pattern that repeats only after 251 bytes shows any loss or reordering.
    let sent: Vec<u8> = (0..8u32 << 20).map(|n| (n % 251) as u8).collect();
    let mut child = home.spawn(&["exec", "-i", "box", "cat"]);
    let (mut input, data) = (child.stdin.take().unwrap(), sent.clone());
    let writing = thread::spawn(move || input.write_all(&data).unwrap());
    let mut back = Vec::new();
    child.stdout.take().unwrap().read_to_end(&mut back).unwrap();
    writing.join().unwrap();
    assert!(back == sent, "{} bytes of {} came back, or changed", back.len(), sent.len());
    assert_eq!(child.wait().unwrap().code(), Some(0));
    let killed = std::time::Instant::now();
    home.ok(&["rm", "-f", "box"]);
    assert!(killed.elapsed() < common::PATIENCE / 4);
    assert_eq!(home.left(), 0);
}

#[test]
fn what_a_program_wrote_is_kept_also_when_it_will_not_stop() {
    let home = Home::new();
    let script = "trap '' TERM; [ -f /file ] || head -c 1000000 /dev/urandom > /file; md5sum < /file; \
                  while :; do sleep 1; done";
    home.ok(&["run", "-d", "--name", "deaf", "IMAGE", "sh", "-c", script]);
    let sums = |count: usize| {
        eventually("a sum", || Some(home.ok(&["logs", "deaf"])).filter(|log| log.lines().count() == count))
    };
    let before = sums(1);
    home.ok(&["stop", "-t", "0", "deaf"]);
    assert_eq!(home.ok(&["inspect", "-f", "{{.State.ExitCode}}", "deaf"]), "137");
    home.ok(&["start", "deaf"]);
    assert_eq!(sums(2), format!("{before}\n{before}"));
    home.ok(&["rm", "-f", "deaf"]);
    assert_eq!(home.left(), 0);
}

#[test]
fn a_terminal_is_a_real_one() {
    let home = Home::new();
    let image = format!("oci:{}", common::cache("images/busybox").display());
    let mut child = on_terminal(&home, &format!("run --rm -it --name term {image} sh")).spawn().unwrap();
    let mut input = child.stdin.take().unwrap();
    read_to(&mut child, "# ");
    input.write_all(b"stty size; tty; echo $TERM; cat\n").unwrap();
    let seen = read_to(&mut child, "xterm\r\n");
    assert!(seen.contains("30 100") && seen.contains("/dev/pts/0"), "{seen}");
    // Ctrl-C is the program's, not ours.
    input.write_all(b"\x03").unwrap();
    read_to(&mut child, "# ");
    let mut other = on_terminal(&home, "exec -it term sh -c 'tty; exit 5'").spawn().unwrap();
    assert!(read_to(&mut other, "/dev/pts/1").contains("/dev/pts/1"));
    assert_eq!(other.wait().unwrap().code(), Some(5));
    // Ctrl-P Ctrl-Q leaves it running.
    input.write_all(b"\x10\x11").unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(0));
    assert_eq!(home.field("term", "{{.State.Running}} {{.Config.Tty}}"), "true true");
    let mut child = on_terminal(&home, "attach term").spawn().unwrap();
    child.stdin.as_mut().unwrap().write_all(b"\nexit 9\n").unwrap();
    read_to(&mut child, "exit 9");
    assert_eq!(child.wait().unwrap().code(), Some(9));
    assert_eq!((home.left(), home.ok(&["ps", "-aq"]).as_str()), (0, ""));
    let (status, _, stderr) = home.run(&["run", "-it", "IMAGE", "true"]);
    assert_eq!(status, Some(125));
    assert!(stderr.contains("not a TTY"), "{stderr}");
}

#[test]
fn logs_are_followed_to_the_end() {
    let home = Home::new();
    home.ok(&[
        "run",
        "-d",
        "--name",
        "log",
        "IMAGE",
        "sh",
        "-c",
        "for i in 1 2 3; do echo $i; sleep 1; done; echo -n end",
    ]);
    let (status, stdout, _) = home.run(&["logs", "-f", "log"]);
    assert_eq!((status, stdout.as_str()), (Some(0), "1\n2\n3\nend"));
    let stamped = home.ok(&["logs", "-t", "--tail", "2", "log"]);
    assert!(stamped.lines().all(|line| line.starts_with("20")) && stamped.lines().count() == 2, "{stamped}");
    home.ok(&["run", "--name", "quiet", "--log-driver", "none", "IMAGE", "echo", "x"]);
    assert!(home.run(&["logs", "quiet"]).2.contains("--log-driver none"));
}

/// The monitor of a container: the parent of its VMM.
fn monitor(home: &Home, name: &str) -> (u32, u32) {
    let vmm: u32 = home.field(name, "{{.State.Pid}}").parse().unwrap();
    let status = std::fs::read_to_string(format!("/proc/{vmm}/status")).unwrap();
    let parent = status.lines().find_map(|line| line.strip_prefix("PPid:")).unwrap();
    (parent.trim().parse().unwrap(), vmm)
}

#[test]
fn whatever_is_killed_the_rest_stays_in_order() {
    let home = Home::new();
    let run = ["run", "-d", "--name", "box", "IMAGE", "sleep", "1000"];
    home.ok(&run);
    let (watching, vmm) = monitor(&home, "box");
    signal(watching, libc::SIGKILL);
    eventually("the VMM ends with its monitor", || {
        (!std::path::Path::new(&format!("/proc/{vmm}")).exists()).then_some(())
    });
    assert_eq!(home.field("box", "{{.State.Status}} {{.State.ExitCode}}"), "exited 137");
    assert_eq!(home.left(), 0);
    home.ok(&["start", "box"]);
    // The VMM: the container has ended, and says so.
    signal(monitor(&home, "box").1, libc::SIGKILL);
    assert_eq!(home.ok(&["wait", "box"]), "137");
    home.ok(&["rm", "box"]);
    // Who has started it: the container stays.
    let mut child = home.spawn(&["run", "--name", "box", "IMAGE", "sh", "-c", "echo here; sleep 1000"]);
    read_to(&mut child, "here");
    child.kill().unwrap();
    child.wait().unwrap();
    assert_eq!(home.ok(&["exec", "box", "echo", "still"]), "still");
    home.ok(&["rm", "-f", "box"]);
    assert_eq!((home.left(), home.ok(&["ps", "-aq"]).as_str()), (0, ""));
}

/// A field of `/proc/PID/status` in KiB.
fn memory(pid: u32, field: &str) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix(field)).unwrap();
    line.trim_matches([':', '\t', ' ', 'k', 'B']).parse().unwrap()
}

#[test]
fn much_output_of_exec_takes_little_memory() {
    let home = Home::new();
    home.ok(&["run", "-d", "--name", "box", "IMAGE", "sleep", "1000"]);
    let (watching, vmm) = monitor(&home, "box");
    // A number in front of each round, so that no two lie alike in the buffers.
    let script = "seq 1000000 1131071 > /piece; for i in $(seq 16); do echo $i; cat /piece; done";
    let mut child = home.spawn(&["exec", "box", "sh", "-c", script]);
    let mut back = Vec::new();
    let mut output = child.stdout.take().unwrap();
    output.by_ref().take(15 << 20).read_to_end(&mut back).unwrap();
    // Of the VMM's the guest's memory is the rest, which is shared.
    let own = memory(vmm, "RssAnon") + memory(vmm, "RssFile");
    for (who, taken) in [("exec", memory(child.id(), "VmHWM")), ("monitor", memory(watching, "VmHWM")), ("VMM", own)] {
        assert!(taken < 32 << 10, "{who}: {taken} KiB");
    }
    output.read_to_end(&mut back).unwrap();
    let piece: String = (1_000_000..1_131_072).map(|number| format!("{number}\n")).collect();
    let expected: String = (1..=16).map(|round| format!("{round}\n{piece}")).collect();
    assert!(back == expected.as_bytes(), "{} bytes of {} came, or others", back.len(), expected.len());
    assert_eq!(child.wait().unwrap().code(), Some(0));
    home.ok(&["rm", "-f", "box"]);
}

#[test]
fn several_clients_see_the_same() {
    let home = Home::new();
    home.ok(&["run", "-di", "--name", "cat", "IMAGE", "cat"]);
    let mut clients = [home.spawn(&["attach", "cat"]), home.spawn(&["attach", "--no-stdin", "cat"])];
    clients[0].stdin.as_mut().unwrap().write_all(b"hello\n").unwrap();
    clients.iter_mut().for_each(|client| _ = read_to(client, "hello\n"));
    // The end of the input is the end of `cat`, and so of both.
    drop(clients[0].stdin.take());
    clients.iter_mut().for_each(|client| assert_eq!(client.wait().unwrap().code(), Some(0)));
    assert_eq!(home.ok(&["wait", "cat"]), "0");
}
