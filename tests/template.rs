// SPDX-License-Identifier: Apache-2.0
//! Containers as clones of a template: the first makes it, and nobody notices but by the time.

mod common;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::Command;

use common::home::Home;
use common::{cache, eventually};
use tempfile::TempDir;

/// A user with a cache of its own, so that there is no template yet.
struct User {
    home: Home,
    cache: TempDir,
}

impl User {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        for name in ["kernel", "guest", "images"] {
            std::os::unix::fs::symlink(cache(name).canonicalize().unwrap(), folder.path().join(name)).unwrap();
        }
        Self { home: Home::new(), cache: folder }
    }

    fn command(&self, words: &[&str]) -> Command {
        let mut command = self.home.command(words);
        command.env("CORACLE_CACHE", self.cache.path());
        command
    }

    /// Runs `coracle`, which must succeed; gives stdout.
    fn ok(&self, words: &[&str]) -> String {
        let (status, stdout, stderr) = common::run(&mut self.command(words));
        assert_eq!(status, Some(0), "coracle {words:?}: {stdout}{stderr}");
        stdout.trim().to_owned()
    }

    fn templates(&self) -> Vec<String> {
        self.ok(&["template", "ls", "-q"]).lines().map(str::to_owned).collect()
    }

    fn file(&self, template: &str, name: &str) -> PathBuf {
        self.cache.path().join("templates").join(template).join(name)
    }

    fn inode(&self, template: &str) -> u64 {
        use std::os::unix::fs::MetadataExt;
        fs::metadata(self.file(template, "state")).unwrap().ino()
    }
}

const RUN: [&str; 4] = ["run", "--rm", "--network", "none"];

#[test]
fn main_path_the_first_container_makes_the_template_of_all() {
    let user = User::new();
    assert_eq!(user.templates(), [""; 0]);
    let identify = "cat /proc/sys/kernel/random/boot_id; head -c 16 /dev/urandom | md5sum; hostname";
    let answers = [(); 2].map(|()| user.ok(&[&RUN[..], &["IMAGE", "sh", "-c", identify]].concat()));
    let templates = user.templates();
    assert_eq!(templates.len(), 1);
    let lines = answers.each_ref().map(|answer| answer.lines().map(str::to_owned).collect::<Vec<_>>());
    assert_eq!((lines[0].len(), lines[1].len()), (3, 3), "{lines:?}");
    lines[0].iter().zip(&lines[1]).for_each(|(one, other)| assert_ne!(one, other));
    assert_eq!(user.home.left(), 0);
}

#[test]
fn the_cold_way_leaves_no_template() {
    let user = User::new();
    assert_eq!(user.ok(&[&RUN[..], &["--no-template", "IMAGE", "echo", "cold"]].concat()), "cold");
    assert_eq!(user.templates(), [""; 0]);
}

#[test]
fn a_template_that_is_no_good_is_made_anew() {
    let user = User::new();
    let name = user.ok(&["template", "warm"]);
    assert_eq!(user.templates(), std::slice::from_ref(&name));
    // There are no templates of images for containers with `--init`.
    let run = || user.ok(&[&RUN[..], &["--init", "IMAGE", "echo", "there"]].concat());
    let old = user.inode(&name);
    assert_eq!(run(), "there");
    assert_eq!(user.inode(&name), old, "a good one stays");
    for file in ["state", "memory"] {
        let path = user.file(&name, file);
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        let mut content = fs::read(&path).unwrap();
        let place = content.iter().rposition(|byte| *byte != 0).unwrap() / 2;
        content[place] ^= 0x40;
        fs::write(&path, content).unwrap();
        assert_eq!(run(), "there", "{file} is damaged, and the container starts all the same");
        assert_eq!(user.templates(), [""; 0], "what is no good is not kept");
        assert_eq!(run(), "there");
        assert_eq!(user.templates(), std::slice::from_ref(&name));
    }
    assert_eq!(user.ok(&["template", "rm", &name]), "");
    let (status, _, stderr) = common::run(&mut user.command(&["template", "rm", &name]));
    assert_eq!((status, stderr.lines().count()), (Some(125), 3), "{stderr}");
    let (status, ..) = common::run(&mut user.command(&["template", "rm", "../kernel"]));
    assert_eq!(status, Some(125));
    assert!(cache("kernel").exists());
    // Whoever can write there decides what guests are made of.
    fs::set_permissions(user.cache.path().join("templates"), fs::Permissions::from_mode(0o777)).unwrap();
    let (status, _, stderr) = common::run(&mut user.command(&["template", "warm"]));
    assert_eq!((status, stderr.lines().count()), (Some(125), 3), "{stderr}");
    assert!(stderr.contains("mode 777: others may write there"), "{stderr}");
}

/// What can be seen from within a container, in lines that are the same in each, and then lines that are its own.
const LOOK: &str = "cat /proc/mounts /proc/1/limits /proc/1/cgroup /etc/hosts; grep -e Cap -e NoNew /proc/1/status
    ls -l /dev / | grep -v ' proc$' | cut -c1-50; pwd
    echo OWN; read name < /proc/sys/kernel/hostname; echo $name; cat /etc/hostname /proc/sys/kernel/random/boot_id
    head -c 16 /dev/urandom | md5sum; cut -d ' ' -f 28 /proc/1/stat";

#[test]
fn main_path_what_is_started_again_and_again_has_a_template_of_its_image() {
    let user = User::new();
    let look = |program: &str, more: &[&str]| {
        let text = user.ok(&[&RUN[..], more, &["IMAGE", program, "-c", LOOK]].concat());
        let (same, own) = text.split_once("OWN\n").expect("two parts");
        (same.replace("/bin/sh", "sh"), own.lines().map(str::to_owned).collect::<Vec<_>>())
    };
    let seen = look("sh", &[]);
    (0..2).for_each(|_| _ = user.ok(&[&RUN[..], &["IMAGE", "sh", "-c", "exit 0"]].concat()));
    let template = eventually("a template of the image", || {
        let list: serde_json::Value = serde_json::from_str(&user.ok(&["template", "ls", "--format", "json"])).unwrap();
        let of_image = list.as_array().unwrap().iter().find(|one| one["Image"]["Program"] == "sh");
        of_image.map(|one| one["Name"].as_str().unwrap().to_owned())
    });
    assert_eq!(user.ok(&["template", "warm", "--network", "none", "IMAGE", "sh"]), template, "it is there already");
    let used = || fs::metadata(user.file(&template, "about.json")).unwrap().modified().unwrap();
    let mut last = used();
    let clones: Vec<_> = (0..2)
        .map(|_| {
            let seen = look("sh", &[]);
            assert!(std::mem::replace(&mut last, used()) < last, "it came from the template");
            seen
        })
        .collect();
    for clone in &clones {
        assert_eq!(clone.0, seen.0, "the same container");
        assert_eq!(clone.1[0], clone.1[1], "its own name");
    }
    // Names, random numbers, and where things lie in memory.
    let all: Vec<_> = std::iter::once(&seen).chain(&clones).collect();
    for (number, one) in all.iter().enumerate() {
        assert_eq!(one.1.len(), 5, "{one:?}");
        all[..number].iter().flat_map(|other| other.1.iter().zip(&one.1)).for_each(|(a, b)| assert_ne!(a, b));
    }
    // What is said of a container comes after the template.
    let words = ["--read-only", "-u", "7:8", "-w", "/tmp", "-e", "A=b", "--hostname", "box", "--ulimit", "nofile=99"];
    let script = "id -u; id -g; pwd; echo $A; hostname; ulimit -n; echo > /file || echo refused; exit 7";
    let (status, told, _) =
        common::run(&mut user.command(&[&RUN[..], &words, &["IMAGE", "sh", "-c", script]].concat()));
    assert_eq!(told.lines().collect::<Vec<_>>(), ["7", "8", "/tmp", "b", "box", "99", "refused"]);
    assert_eq!(status, Some(7));
    assert!(last < used());
    // One that is no good is no hindrance.
    let state = user.file(&template, "state");
    fs::set_permissions(&state, fs::Permissions::from_mode(0o600)).unwrap();
    fs::write(&state, "nonsense").unwrap();
    assert_eq!(user.ok(&[&RUN[..], &["IMAGE", "sh", "-c", "echo there"]].concat()), "there");
    assert!(!user.templates().contains(&template));
    assert_eq!(user.home.left(), 0);
}

#[test]
fn each_shape_and_each_kind_of_device_has_its_own() {
    let user = User::new();
    user.ok(&[&RUN[..], &["IMAGE", "true"]].concat());
    let large = user.ok(&[&RUN[..], &["--cpus", "2", "-m", "256m", "IMAGE", "nproc"]].concat());
    assert_eq!(large, "2");
    // One that is kept has a disk, and finds on it what it wrote before it was stopped.
    let words = ["run", "--network", "none", "--name", "kept", "IMAGE", "sh", "-c"];
    assert_eq!(user.ok(&[&words[..], &["cat /file || echo first > /file"]].concat()), "");
    user.ok(&["start", "-a", "kept"]);
    assert_eq!(user.ok(&["logs", "kept"]).lines().last(), Some("first"));
    user.ok(&["rm", "kept"]);
    assert_eq!(user.templates().len(), 3);
    let listed: serde_json::Value = serde_json::from_str(&user.ok(&["template", "ls", "--format", "json"])).unwrap();
    let sizes: Vec<_> = listed.as_array().unwrap().iter().map(|one| one["Bytes"].as_u64().unwrap() >> 20).collect();
    assert!(sizes.iter().all(|mib| (4..128).contains(mib)), "{listed}");
    user.ok(&["template", "rm", "--all"]);
    assert_eq!(user.templates(), [""; 0]);
}

#[test]
fn two_first_containers_make_one_template() {
    let user = User::new();
    let words = [&RUN[..], &["IMAGE", "hostname"]].concat();
    let spawn = || user.command(&words).stdout(std::process::Stdio::piped()).spawn().unwrap();
    let both = [spawn(), spawn()].map(|child| child.wait_with_output().unwrap());
    assert!(both.iter().all(|output| output.status.success() && !output.stdout.is_empty()), "{both:?}");
    assert_ne!(both[0].stdout, both[1].stdout);
    assert_eq!(user.templates().len(), 1);
    let left = fs::read_dir(user.cache.path().join("templates")).unwrap();
    let left = left.filter(|entry| entry.as_ref().unwrap().file_name().to_string_lossy().starts_with(".snapshot"));
    assert_eq!(left.count(), 0);
}
