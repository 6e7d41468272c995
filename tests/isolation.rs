// SPDX-License-Identifier: Apache-2.0
//! Containers with and without a VM do the same: each case is run with both kinds of isolation on the emulated host, and on
//! this one, where guests are slow, without a VM.

mod common;

use std::path::Path;
use std::process::Stdio;

use common::home::{Home, on_terminal, read_to, signal};
use common::{eventually, host, run};

/// Words, and the status, stdout and part of stderr that they lead to.
type Case<'a> = (&'a [&'a str], i32, &'a str, &'a str);

/// Runs `coracle run` or `create` with this kind of isolation.
fn words<'a>(kind: &'a str, words: &[&'a str]) -> Vec<&'a str> {
    [&words[..1], &["--isolation", kind], &words[1..]].concat()
}

fn programs_run(kind: &str) {
    let home = Home::new();
    let cases: [Case; 7] = [
        (&["run", "--rm", "IMAGE", "sh", "-c", "echo out; echo err >&2; exit 3"], 3, "out\n", "err"),
        (&["run", "--rm", "IMAGE", "no-such-program"], 127, "", "no-such-program"),
        (&["run", "--rm", "IMAGE", "/etc/passwd"], 126, "", "/etc/passwd"),
        (&["run", "--rm", "IMAGE", "sh", "-c", "sh -c 'kill -9 $$'; exit $?"], 137, "", ""),
        (&["run", "--rm", "-u", "nobody-is-that", "IMAGE", "true"], 125, "", "nobody-is-that"),
        (
            &[
                "run",
                "--rm",
                "--network",
                "none",
                "--read-only",
                "--hostname",
                "box",
                "-u",
                "7:8",
                "-e",
                "A=b c",
                "-w",
                "/tmp",
                "--tmpfs",
                "/run:size=1m",
                "--cap-add",
                "NET_ADMIN",
                "--cap-drop",
                "MKNOD",
                "--ulimit",
                "nofile=99:100",
                "--security-opt",
                "no-new-privileges",
                "--group-add",
                "9",
                "IMAGE",
                "sh",
                "-c",
                "hostname; id; echo $A $PWD $HOME; touch /file 2>/dev/null || echo full; df /run | tail -1 | awk '{print $2}'; \
                 grep -e CapBnd -e NoNewPrivs /proc/self/status | cut -f2; ulimit -n; ulimit -Hn; ls /sys/class/net",
            ],
            0,
            "box\nuid=7 gid=8 groups=8,9\nb c /tmp /\nfull\n1024\n00000000a00435fb\n1\n99\n100\nlo\n",
            "",
        ),
        (&["run", "--rm", "--oci-runtime", "/no/such/runtime", "IMAGE", "true"], 125, "", "untime"),
    ];
    for (case, status, stdout, stderr) in cases {
        let (found, out, errors) = home.run(&words(kind, case));
        assert_eq!((found, out.as_str()), (Some(status), stdout), "{kind}: {case:?}: {errors}");
        assert!(errors.contains(stderr), "{kind}: {case:?}: {errors}");
    }
    assert_eq!((home.left(), home.containers()), (0, 0));
}

/// A container over its life, with all that can be done with one.
fn lives(kind: &str) {
    let home = Home::new();
    let folder = home.path().join("data/folder");
    std::fs::create_dir_all(&folder).unwrap();
    std::fs::write(folder.join("x"), "from the host\n").unwrap();
    let share = format!("{}:/data", folder.display());
    let single = format!("{}:/single:ro", folder.join("x").display());
    let script = "trap 'echo bye; exit 5' TERM; cat /data/x /single; echo kept > /kept; while :; do sleep 0.1; done";
    let made =
        ["run", "-d", "--name", "box", "-v", &share, "-v", &single, "-v", "vol:/etc", "IMAGE", "sh", "-c", script];
    home.ok(&words(kind, &made));
    home.log_has("box", "from the host\nfrom the host");
    let listed = home.ok(&["ps", "--format", "{{.Names}} {{.State}} {{.Isolation}}"]);
    assert_eq!(listed, format!("box running {kind}"));
    assert_eq!(home.field("box", "{{.HostConfig.Isolation}}"), kind);
    // A volume has what the image has there; what is mounted can be written, or not.
    assert!(home.ok(&["exec", "box", "cat", "/etc/passwd"]).starts_with("root:"));
    let write = "echo new > /data/new && ! echo no > /single && grep -c trap /proc/1/cmdline";
    assert_eq!(home.ok(&["exec", "box", "sh", "-c", write]), "1");
    assert_eq!(std::fs::read_to_string(folder.join("new")).unwrap(), "new\n");
    for (case, status, stdout) in [
        (&["exec", "box", "sh", "-c", "exit 7"][..], 7, ""),
        (&["exec", "box", "no-such-program"], 127, ""),
        (
            &["exec", "-u", "7:8", "-e", "A=b", "-w", "/etc", "box", "sh", "-c", "id -u; echo $A $PWD > /dev/stdout"],
            0,
            "7\nb /etc\n",
        ),
        (&["exec", "box", "sh", "-c", "sleep 1000 & echo first"], 0, "first\n"),
    ] {
        let (found, out, errors) = home.run(case);
        assert_eq!((found, out.as_str()), (Some(status), stdout), "{kind}: {case:?}: {errors}");
    }
    let mut cat = home.spawn(&["exec", "-i", "box", "cat"]);
    std::io::Write::write_all(cat.stdin.as_mut().unwrap(), b"there and back\n").unwrap();
    read_to(&mut cat, "there and back\n");
    drop(cat.stdin.take());
    assert_eq!(cat.wait().unwrap().code(), Some(0));
    // An OCI runtime hands the terminal over as the program starts: its size may come a moment later.
    let output = on_terminal(
        &home,
        "exec -t box sh -c 'for i in $(seq 99); do stty size && break; sleep 0.1; done 2> /dev/null; tty'",
    )
    .stdin(Stdio::null())
    .output()
    .unwrap();
    let terminal = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(terminal.contains("30 100\r\n/dev/pts/"), "{terminal}");
    // What it uses, and who runs in it.
    // The shell, what `exec` has left, and the shell's own `sleep`, which is not there between two of them.
    eventually("three processes", || {
        let stats = home.ok(&["stats", "--no-stream", "--format", "{{.PIDs}} {{.MemUsage}}", "box"]);
        (stats.split(' ').next().unwrap().parse::<u32>().unwrap() >= 3).then_some(())
    });
    assert!(home.ok(&["top", "box"]).contains("sleep 1000"));
    home.ok(&["pause", "box"]);
    assert_eq!(home.field("box", "{{.State.Status}}"), "paused");
    home.ok(&["unpause", "box"]);
    // Files, out and in.
    home.ok(&["cp", "box:/kept", folder.join("out").to_str().unwrap()]);
    assert_eq!(std::fs::read_to_string(folder.join("out")).unwrap(), "kept\n");
    home.ok(&["cp", folder.to_str().unwrap(), "box:/tmp/"]);
    assert_eq!(home.ok(&["exec", "box", "cat", "/tmp/folder/x"]), "from the host");
    home.ok(&["rename", "box", "fox"]);
    home.ok(&["stop", "fox"]);
    assert_eq!(home.field("fox", "{{.State.Status}} {{.State.ExitCode}}"), "exited 5");
    assert!(home.ok(&["logs", "fox"]).ends_with("bye"));
    // Also where it does not run; and what it wrote is there when it runs again.
    home.ok(&["cp", folder.join("x").to_str().unwrap(), "fox:/put"]);
    home.ok(&["start", "fox"]);
    assert_eq!(home.ok(&["exec", "fox", "cat", "/kept", "/put", "/data/new"]), "kept\nfrom the host\nnew");
    home.ok(&["kill", "fox"]);
    assert_eq!(home.ok(&["wait", "fox"]), "137");
    home.ok(&["rm", "fox"]);
    home.ok(&["volume", "rm", "vol"]);
    assert_eq!((home.left(), home.containers()), (0, 0));
}

#[test]
fn main_path_programs_run_without_a_vm() {
    programs_run("container");
}

#[test]
fn programs_run_in_a_vm_as_without_one() {
    programs_run("vm");
}

#[test]
fn main_path_a_container_lives_without_a_vm() {
    lives("container");
}

#[test]
fn a_container_lives_in_a_vm_as_without_one() {
    lives("vm");
}

fn find_each_other(kind: &str) {
    let home = Home::new();
    home.ok(&["network", "create", "net"]);
    let serve =
        ["run", "-d", "--name", "web", "--network", "net", "-p", "127.0.0.1::80", "IMAGE", "httpd", "-f", "-h", "/etc"];
    home.ok(&words("container", &serve));
    let port = home.ok(&["port", "web", "80"]);
    let fetch = |url: &str| run(std::process::Command::new("curl").args(["-s", "-m", "5", url])).1;
    eventually("it serves", || fetch(&format!("http://{port}/passwd")).starts_with("root:").then_some(()));
    let address = home.field("web", "{{.NetworkSettings.Networks.net.IPAddress}}");
    assert!(fetch(&format!("http://{address}/passwd")).starts_with("root:"));
    let ask = ["run", "--rm", "--network", "net", "IMAGE", "wget", "-qO-", "http://web/passwd"];
    assert!(home.ok(&words(kind, &ask)).starts_with("root:"), "{kind}");
    home.ok(&["rm", "-f", "web"]);
    home.ok(&["network", "rm", "net"]);
    assert_eq!(home.left(), 0);
}

#[test]
fn main_path_containers_of_a_network_find_each_other() {
    find_each_other("container");
}

#[test]
fn a_vm_finds_a_container_of_its_network() {
    find_each_other("vm");
}

/// Control groups of containers on this host.
fn group(id: &str) -> bool {
    ["/sys/fs/cgroup", "/sys/fs/cgroup/unified"].iter().any(|place| Path::new(place).join("coracle").join(id).exists())
}

/// Children of a process.
fn children(pid: &str) -> Vec<String> {
    let tasks = Path::new("/proc").join(pid).join("task").read_dir().unwrap().flatten();
    let lists = tasks.map(|task| std::fs::read_to_string(task.path().join("children")).unwrap_or_default());
    lists.flat_map(|list| list.split_whitespace().map(str::to_owned).collect::<Vec<_>>()).collect()
}

#[test]
fn main_path_nothing_is_left_of_a_container_whose_monitor_was_killed() {
    let home = Home::new();
    for with_watcher in [false, true] {
        home.ok(&words("container", &["run", "-d", "--name", "box", "IMAGE", "sh", "-c", "sleep 1000 & sleep 1000"]));
        let (id, first) = (home.field("box", "{{.Id}}"), home.field("box", "{{.State.Pid}}"));
        let status = std::fs::read_to_string(format!("/proc/{first}/status")).unwrap();
        let monitor = status.lines().find_map(|line| line.strip_prefix("PPid:")).unwrap().trim().to_owned();
        let others: Vec<String> = children(&monitor).into_iter().filter(|pid| *pid != first).collect();
        assert!(group(&id) && others.len() == 1, "{others:?}");
        if with_watcher {
            signal(others[0].parse().unwrap(), libc::SIGKILL);
        }
        signal(monitor.parse().unwrap(), libc::SIGKILL);
        if !with_watcher {
            eventually("its processes end by themselves", || (!Path::new("/proc").join(&first).exists()).then_some(()));
        }
        // A killed process has its locks for a moment yet.
        let listed = || home.ok(&["ps", "-a", "--format", "{{.Names}} {{.State}}"]);
        eventually("the next command settles it", || (listed() == "box exited").then_some(()));
        assert_eq!(home.field("box", "{{.State.ExitCode}}"), "137");
        assert!(!group(&id), "with the watcher killed: {with_watcher}");
        // Its new parent may take a moment to bury it.
        eventually("its processes are gone", || (!Path::new("/proc").join(&first).exists()).then_some(()));
        assert_eq!(home.left(), 0);
        let links = host("ip", &["-brief", "link"]);
        let tap = home.ok(&["network", "inspect", "bridge"]);
        assert!(!tap.contains(&id), "{tap}{links}");
        // It can be started again, and removed.
        home.ok(&["start", "box"]);
        home.ok(&["rm", "-f", "box"]);
        assert!(!group(&id) && home.left() == 0);
    }
}
