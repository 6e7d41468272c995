// SPDX-License-Identifier: Apache-2.0
//! Files of the host in containers, volumes, and files copied between the two.

mod common;

use std::fs;
use std::io::Write;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown, symlink};
use std::path::Path;
use std::process::Stdio;

use common::home::{Home, signal};
use common::{Guest, eventually};
use tempfile::TempDir;

/// Runs until it is asked to end.
const WAITS: &str = "trap 'exit 0' TERM; echo here; while :; do sleep 0.1; done";

/// A directory of the host's with a file that belongs to somebody.
fn shared() -> TempDir {
    let place = tempfile::tempdir().unwrap();
    fs::set_permissions(place.path(), fs::Permissions::from_mode(0o755)).unwrap();
    fs::write(place.path().join("from-host"), "of the host\n").unwrap();
    chown(place.path().join("from-host"), Some(1000), Some(77)).unwrap();
    place
}

fn mount(place: &Path, rest: &str) -> String {
    format!("{}:{rest}", place.display())
}

/// Process numbers of virtiofsd below a directory for sockets.
fn serving(home: &Home, container: &str) -> Vec<u32> {
    let id = home.field(container, "{{.Id}}");
    let needle = format!("/{}/mount", &id[..12]);
    let pid = |entry: fs::DirEntry| -> Option<u32> {
        let pid = entry.file_name().to_str()?.parse().ok()?;
        let words = fs::read_to_string(entry.path().join("cmdline")).ok()?;
        (words.contains("virtiofsd") && words.contains(&needle)).then_some(pid)
    };
    fs::read_dir("/proc").unwrap().flatten().filter_map(pid).collect()
}

#[test]
fn main_path_a_container_reads_and_writes_what_is_mounted_and_no_more() {
    let (home, place) = (Home::new(), shared());
    fs::write(place.path().join("single"), "only this\n").unwrap();
    let (rw, ro) = (mount(place.path(), "/data"), mount(place.path(), "/ro:ro"));
    let file = mount(&place.path().join("single"), "/etc/single:ro");
    let script = "stat -c %u:%g /data/from-host; cat /data/from-host /etc/single; \
                  echo of the container > /data/new; chown 5:6 /data/new; cat /ro/new; \
                  for place in /ro/no /etc/single; do (echo x > $place) 2>/dev/null && echo $place; done; \
                  mount -o remount,rw /ro 2>/dev/null; ls /etc";
    let words = ["run", "--rm", "-v", &rw, "-v", &ro, "-v", &file, "IMAGE", "sh", "-c", script];
    let output = home.ok(&words);
    let expected =
        "1000:77\nof the host\nonly this\nof the container\ngroup\nhostname\nhosts\npasswd\nresolv.conf\nsingle";
    assert_eq!(output, expected);
    let new = fs::metadata(place.path().join("new")).unwrap();
    assert_eq!((new.uid(), new.gid(), new.len()), (5, 6, 17));
    assert_eq!((home.left(), place.path().join("no").exists()), (0, false));
}

#[test]
fn a_guest_that_is_root_cannot_write_where_the_host_forbids_it() {
    let place = shared();
    let share = format!("tag=t,path={},ro", place.path().display());
    let mut guest = Guest::shell(&["--fs", &share]);
    // Mounted for writing: that it fails is the host's doing.
    guest.sh("mkdir /m && mount -t virtiofs t /m && grep -q '/m virtiofs rw' /proc/mounts");
    assert_eq!(guest.sh("cat /m/from-host").trim(), "of the host");
    for command in ["echo x > /m/from-host", "touch /m/new", "rm /m/from-host", "chmod 0 /m/from-host", "mkdir /m/d"] {
        assert_ne!(guest.try_sh(command).0, 0, "{command}");
    }
    assert!(guest.try_sh("ls /m/..").1.lines().all(|line| line != "from-host"), "the mount's parent is the guest's");
    assert_eq!(guest.power_off(), 0);
    assert_eq!(fs::read(place.path().join("from-host")).unwrap(), b"of the host\n");
}

#[test]
fn a_volume_starts_with_the_images_content_and_outlasts_containers() {
    let home = Home::new();
    home.ok(&["volume", "create", "--label", "a=1", "etc"]);
    let first = ["run", "--rm", "-v", "etc:/etc", "IMAGE", "sh", "-c", "cat /etc/passwd; echo kept > /etc/own"];
    assert_eq!(home.ok(&first), "root:x:0:0:root:/root:/bin/sh");
    // Not filled again, and not over what is there.
    let second = ["run", "--name", "user", "-v", "etc:/elsewhere", "-v", "/anonymous", "IMAGE", "sh", "-c"];
    let output =
        home.ok(&[&second[..], &["cat /elsewhere/own /elsewhere/group; touch /anonymous/x; ls /anonymous"]].concat());
    assert_eq!(output, "kept\nroot:x:0:\nx");
    assert_eq!(home.ok(&["volume", "ls", "--format", "{{.Driver}} {{.Labels}}", "--filter", "name=etc"]), "local a=1");
    let (status, _, stderr) = home.run(&["volume", "rm", "etc"]);
    assert!(status == Some(1) && stderr.contains("in use by container user"), "{stderr}");
    assert_eq!(home.ok(&["volume", "ls", "-q"]).lines().count(), 2);
    let place = home.ok(&["volume", "inspect", "--format", "{{.Mountpoint}}", "etc"]);
    assert_eq!(fs::read_to_string(Path::new(&place).join("own")).unwrap(), "kept\n");
    assert_eq!(home.field("user", "{{len .Mounts}}"), "2");
    // What was made for the container goes with it, where that is said.
    home.ok(&["rm", "-v", "user"]);
    assert_eq!(home.ok(&["volume", "ls", "-q"]), "etc");
    assert!(home.ok(&["volume", "prune", "-af"]).contains("etc"));
    assert_eq!((home.ok(&["volume", "ls", "-q"]).as_str(), Path::new(&place).exists()), ("", false));
}

#[test]
fn volumes_are_what_their_options_say_and_are_passed_on() {
    let (home, place) = (Home::new(), shared());
    home.ok(&["volume", "create", "-o", "type=tmpfs", "-o", "o=size=1m", "mem"]);
    let device = format!("device={}", place.path().display());
    home.ok(&["volume", "create", "-o", "o=bind,ro", "-o", &device, "srv"]);
    let (_, _, stderr) = home.run(&["volume", "create", "-o", "type=nfs", "no"]);
    assert!(stderr.contains("not mounted for volumes") && stderr.lines().count() == 3, "{stderr}");
    let unnamed = home.ok(&["volume", "create", "--label", "k=v"]);
    assert_eq!(home.ok(&["volume", "ls", "--format", "{{.Name}}", "--filter", "label=k=v"]), unnamed);
    let data = home.ok(&["volume", "inspect", "--format", "{{.Mountpoint}}", "mem"]);
    let words = ["run", "-d", "--name", "web", "-v", "mem:/mem", "-v", "srv:/srv", "IMAGE", "sh", "-c"];
    home.ok(&[
        &words[..],
        &["echo kept > /mem/x; cat /srv/from-host; trap 'exit 0' TERM; while :; do sleep 0.1; done"],
    ]
    .concat());
    home.log_has("web", "of the host");
    assert_eq!(fs::read_to_string(Path::new(&data).join("x")).unwrap(), "kept\n");
    // The other container has the same, and may less.
    let script = "cat /mem/x /srv/from-host; echo x > /mem/y || echo refused; df -k /mem | grep -o ' 1024 '";
    let other = home.ok(&["run", "--rm", "--volumes-from", "web:ro", "IMAGE", "sh", "-c", script]);
    assert_eq!(other, "kept\nof the host\nrefused\n 1024");
    let (_, _, stderr) = home.run(&["create", "--volumes-from", "web:x", "IMAGE"]);
    assert!(stderr.contains("there are ro and rw"), "{stderr}");
    home.ok(&["stop", "web"]);
    // What was in memory has gone with the last that used it.
    eventually("it is empty", || (fs::read_dir(&data).unwrap().count() == 0).then_some(()));
    let pruned = home.ok(&["system", "prune", "-f", "--volumes"]);
    assert!(pruned.contains("Deleted Containers:") && pruned.contains(&unnamed), "{pruned}");
    let listed = home.ok(&["system", "df", "-v"]);
    assert!(listed.contains("mem") && listed.contains("srv") && !listed.contains("web"), "{listed}");
}

#[test]
fn a_virtiofsd_that_is_killed_gives_errors_and_no_hang() {
    let (home, place) = (Home::new(), shared());
    let (data, other) = (mount(place.path(), "/data"), mount(place.path(), "/other"));
    home.ok(&["run", "-d", "--name", "web", "-v", &data, "-v", &other, "IMAGE", "sh", "-c", WAITS]);
    home.log_has("web", "here");
    // Requests are under way when it happens.
    let load = "while echo x >> /data/load; do :; done; echo ended";
    let mut busy = home.command(&["exec", "web", "sh", "-c", load]).stdout(Stdio::piped()).spawn().unwrap();
    eventually("the file grows", || fs::metadata(place.path().join("load")).ok().filter(|file| file.len() > 20));
    let before = serving(&home, "web");
    // Two processes each: one waits for the other.
    assert_eq!(before.len(), 4);
    for pid in before {
        let words = fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        if words.contains("mount0") {
            // One of them may have gone with the other.
            // SAFETY: kill(2) takes two numbers; the process is our container's.
            unsafe { libc::kill(pid.try_into().unwrap(), libc::SIGKILL) };
        }
    }
    eventually("the load ends", || busy.try_wait().unwrap());
    let (status, stdout, _) =
        home.run(&["exec", "web", "sh", "-c", "cat /data/from-host; echo $?; cat /other/from-host"]);
    assert_eq!((status, stdout.as_str()), (Some(0), "1\nof the host\n"));
    let log = Path::new(&home.field("web", "{{.LogPath}}")).with_file_name("monitor.log");
    let log = fs::read_to_string(log).unwrap();
    assert!(log.contains("file system `mount0` is lost") && !log.contains("`mount1` is lost"), "{log}");
    home.ok(&["rm", "-f", "web"]);
    assert_eq!(home.left(), 0);
}

#[test]
fn nothing_serves_files_once_the_monitor_is_killed() {
    let (home, place) = (Home::new(), shared());
    home.ok(&["run", "-d", "--name", "web", "-v", &mount(place.path(), "/data"), "IMAGE", "sh", "-c", WAITS]);
    let id = home.field("web", "{{.Id}}");
    let vmm: u32 = home.field("web", "{{.State.Pid}}").parse().unwrap();
    let stat = fs::read_to_string(format!("/proc/{vmm}/stat")).unwrap();
    let monitor: u32 = stat.rsplit(") ").next().and_then(|rest| rest.split(' ').nth(1)).unwrap().parse().unwrap();
    assert_eq!(serving(&home, "web").len(), 2);
    signal(monitor, libc::SIGKILL);
    eventually("virtiofsd has gone", || serving(&home, &id).is_empty().then_some(()));
    assert_eq!(home.field("web", "{{.State.ExitCode}}"), "137");
    home.ok(&["rm", "web"]);
    assert_eq!(home.left(), 0);
}

#[test]
fn what_cannot_be_mounted_is_said_in_three_lines() {
    let (home, place) = (Home::new(), shared());
    let missing = place.path().join("missing");
    let (bind, made) = (format!("type=bind,source={},target=/x", missing.display()), mount(&missing, "/x"));
    for (words, why) in [
        (&["--mount", &bind][..], "No such file"),
        (&["-v", "a/b:/x"], "no name of a volume"),
        (&["-v", "data:x"], "no absolute path"),
        (&["-v", "/a:/x", "--tmpfs", "/x"], "two are to be mounted"),
        (&["--mount", "type=nfs,target=/x"], "no type of mount"),
        (&["--restart", "always"], "not there yet"),
    ] {
        let (status, stdout, stderr) = home.run(&[&["create"], words, &["IMAGE", "true"]].concat());
        assert_eq!((status, stdout.as_str()), (Some(125), ""), "{words:?}: {stderr}");
        assert!(stderr.contains(why) && stderr.lines().count() == 3, "{words:?}: {stderr}");
    }
    assert_eq!((home.ok(&["ps", "-aq"]).as_str(), home.ok(&["volume", "ls", "-q"]).as_str()), ("", ""));
    // Docker makes what is missing with -v.
    home.ok(&["run", "--rm", "--restart", "no", "-v", &made, "IMAGE", "touch", "/x/y"]);
    assert!(missing.join("y").exists());
}

#[test]
fn files_are_copied_out_of_and_into_a_container_that_runs_or_not() {
    let (home, place) = (Home::new(), shared());
    let at = |name: &str| place.path().join(name).display().to_string();
    fs::create_dir_all(place.path().join("tree/sub")).unwrap();
    fs::write(place.path().join("tree/sub/large"), vec![7; 300_000]).unwrap();
    symlink("sub/large", place.path().join("tree/link")).unwrap();
    home.ok(&["run", "-d", "--name", "web", "-v", "vol:/vol", "IMAGE", "sh", "-c", WAITS]);
    home.log_has("web", "here");
    home.ok(&["cp", &at("tree"), "web:/new"]);
    home.ok(&["cp", &at("from-host"), "web:/vol/"]);
    home.ok(&["cp", "-a", &at("from-host"), "web:/kept"]);
    let script = "stat -c '%u %s' /new/sub/large /vol/from-host /kept; readlink /new/link; echo made > /new/made";
    assert_eq!(home.ok(&["exec", "web", "sh", "-c", script]), "0 300000\n0 12\n1000 12\nsub/large");
    home.ok(&["cp", "web:/new/.", &at("tree")]);
    assert_eq!(fs::read(place.path().join("tree/made")).unwrap(), b"made\n");
    let (status, _, stderr) = home.run(&["cp", "web:/not/there", &at("x")]);
    assert!(status == Some(125) && stderr.contains("no such file") && stderr.lines().count() == 3, "{stderr}");
    home.ok(&["stop", "web"]);
    // It does not run any more.
    home.ok(&["cp", "web:/new", &at("copy")]);
    assert!(fs::read(place.path().join("copy/sub/large")).unwrap() == vec![7; 300_000]);
    let archive = home.command(&["cp", "web:/vol", "-"]).output().unwrap();
    assert!(archive.status.success() && archive.stdout.starts_with(b"vol/"), "{archive:?}");
    let mut back = home.command(&["cp", "-", "web:/new/sub"]).stdin(Stdio::piped()).spawn().unwrap();
    back.stdin.take().unwrap().write_all(&archive.stdout).unwrap();
    assert!(back.wait().unwrap().success());
    home.ok(&["cp", "web:/new/sub/vol/from-host", &at("again")]);
    assert_eq!(fs::read(place.path().join("again")).unwrap(), b"of the host\n");
    home.ok(&["rm", "web"]);
    assert_eq!(home.left(), 0);
}
