// SPDX-License-Identifier: Apache-2.0
//! SIGKILL to the command, the monitor and the VMM of a container, at moments all over its life: the next command settles
//! what has happened, `rm -f` works, and nothing is left.

mod common;

use std::path::Path;
use std::time::{Duration, Instant};

use common::home::Home;
use common::{PATIENCE, eventually, host};

/// Processes that belong to this home, with what they were started as.
fn processes(home: &Home) -> Vec<(u32, String)> {
    let place = home.path().to_str().unwrap().to_owned();
    let entries = Path::new("/proc").read_dir().unwrap().flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    let of = |pid: u32, file: &str| {
        // It may have ended by now.
        let bytes = std::fs::read(format!("/proc/{pid}/{file}")).unwrap_or_default();
        String::from_utf8_lossy(&bytes).replace('\0', " ")
    };
    pids.filter(|pid| of(*pid, "environ").contains(&place)).map(|pid| (pid, of(pid, "cmdline"))).collect()
}

/// Kills those processes whose command line has this in it; whether there was one.
fn kill(home: &Home, part: &str) -> bool {
    let mut found = false;
    for (pid, _) in processes(home).into_iter().filter(|(_, line)| line.contains(part)) {
        // SAFETY: kill(2) takes two numbers. The process was seen to be of this home just now.
        found |= unsafe { libc::kill(pid.try_into().unwrap(), libc::SIGKILL) } == 0;
    }
    found
}

fn links() -> usize {
    host("ip", &["-brief", "link"]).lines().filter(|line| line.starts_with("cor")).count()
}

#[test]
fn whenever_one_is_killed_the_next_command_settles_it() {
    let home = Home::new();
    let words = ["run", "--name", "box", "-p", "80", "IMAGE", "sh", "-c", "echo here; sleep 2"];
    // The first makes the image's disk and the template; the second shows how long a life takes without that.
    home.ok(&words);
    home.ok(&["rm", "box"]);
    let started = Instant::now();
    home.ok(&words);
    home.ok(&["rm", "box"]);
    let life = started.elapsed();
    let (before, mut killed) = (links(), 0);
    for round in 0..12u32 {
        // One of the three, at the start, at a quarter, a half and three quarters of a life after it came to be.
        let part = ["coracle run", "coracle monitor", "coracle-vmm"][round as usize % 3];
        let mut child = home.spawn(&words);
        eventually("it is there to be killed", || {
            let there = processes(&home).iter().any(|(_, line)| line.contains(part));
            (there || child.try_wait().unwrap().is_some()).then_some(())
        });
        std::thread::sleep(life * (round / 3) / 4);
        killed += u32::from(kill(&home, part));
        // Whatever has become of it: it can be asked for, and is not said to do what it does not.
        home.ok(&["ps", "-a"]);
        eventually("the command ends", || child.try_wait().unwrap());
        let listed = home.ok(&["ps", "-a", "--format", "{{.Names}} {{.State}}"]);
        assert!(["", "box created", "box running", "box exited"].contains(&listed.as_str()), "{listed}");
        if listed == "box running" && home.run(&["exec", "box", "true"]).0 != Some(0) {
            // Its monitor may be about to write down that it has ended.
            eventually(&format!("round {round}: it is not said to run"), || {
                (home.field("box", "{{.State.Status}}") != "running").then_some(())
            });
        }
        home.ok(&["rm", "-f", "box"]);
        let deadline = Instant::now() + PATIENCE / 4;
        while !processes(&home).is_empty() && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(20));
        }
        assert_eq!(processes(&home), [], "round {round}: {part} was killed");
        assert_eq!((home.left(), home.ok(&["ps", "-aq"]).as_str(), links()), (0, "", before), "round {round}: {part}");
    }
    // Late ones may have ended on their own.
    assert!(killed >= 6, "only {killed} of 12 were there to be killed");
    // The next container finds its place clean.
    home.ok(&["run", "--rm", "IMAGE", "true"]);
    assert_eq!(home.containers(), 0);
}
