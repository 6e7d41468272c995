// SPDX-License-Identifier: Apache-2.0
//! A user of `coracle` under test, with images and containers of its own.

use std::io::Read;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Instant;

use tempfile::TempDir;

use super::{CORACLE, PATIENCE, cache, eventually, run};

/// A place for all that is kept, and for what is temporary. What is still there at the end is a failure.
pub struct Home(TempDir);

impl Default for Home {
    fn default() -> Self {
        Self::new()
    }
}

impl Home {
    /// An empty one.
    pub fn new() -> Self {
        let home = Self(tempfile::tempdir().unwrap());
        ["tmp", "run"].iter().for_each(|name| std::fs::create_dir(home.0.path().join(name)).unwrap());
        home
    }

    /// `coracle` with these words; `IMAGE` among them is the busybox image.
    pub fn command(&self, words: &[&str]) -> Command {
        let image = format!("oci:{}", cache("images/busybox").display());
        let mut command = Command::new(CORACLE);
        command.args(words.iter().map(|word| if *word == "IMAGE" { image.as_str() } else { word }));
        for (name, place) in [("CORACLE_DATA", "data"), ("CORACLE_RUN", "run"), ("TMPDIR", "tmp")] {
            command.env(name, self.0.path().join(place));
        }
        // Those of tests/spare.rs alone: they wait for a minute with what is theirs.
        command.env("CORACLE_SPARES", "0");
        command
    }

    /// Runs `coracle` with these words; gives status, stdout and stderr.
    pub fn run(&self, words: &[&str]) -> (Option<i32>, String, String) {
        run(&mut self.command(words))
    }

    /// Runs `coracle` with these words, which must succeed; gives stdout without what is blank around it.
    pub fn ok(&self, words: &[&str]) -> String {
        let (status, stdout, stderr) = self.run(words);
        assert_eq!(status, Some(0), "coracle {words:?}: {stdout}{stderr}");
        stdout.trim().to_owned()
    }

    /// Starts `coracle` with these words, its output to be read.
    pub fn spawn(&self, words: &[&str]) -> Child {
        self.command(words).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap()
    }

    /// Waits until the log of a container has this text.
    pub fn log_has(&self, container: &str, text: &str) {
        eventually(&format!("{text} in the log of {container}"), || {
            let (_, stdout, stderr) = self.run(&["logs", container]);
            (stdout + &stderr).contains(text).then_some(())
        });
    }

    /// A field of a container, as `inspect --format` prints it.
    pub fn field(&self, container: &str, template: &str) -> String {
        self.ok(&["inspect", "--format", template, container])
    }

    /// Where all of it is.
    pub fn path(&self) -> &Path {
        self.0.path()
    }

    /// Directories of containers, also of such as nobody lists.
    pub fn containers(&self) -> usize {
        self.0.path().join("data/containers").read_dir().unwrap().count()
    }

    /// Sockets and temporary files that are left. Monitors end a moment after their containers.
    pub fn left(&self) -> usize {
        let count = |place: &str| self.0.path().join(place).read_dir().unwrap().count();
        let deadline = Instant::now() + PATIENCE / 10;
        loop {
            let left = count("tmp") + count("run");
            if left == 0 || Instant::now() > deadline {
                return left;
            }
            std::thread::sleep(std::time::Duration::from_millis(20));
        }
    }
}

impl Drop for Home {
    fn drop(&mut self) {
        // A test that has failed leaves its containers to be ended here.
        let (_, ids, _) = self.run(&["ps", "-aq"]);
        let ids: Vec<&str> = ids.split_whitespace().collect();
        if !ids.is_empty() {
            self.run(&[&["rm", "-f"], &ids[..]].concat());
        }
    }
}

/// Reads up to a line with this text; gives what came before it.
pub fn read_to(child: &mut Child, text: &str) -> String {
    let output = child.stdout.as_mut().expect("a pipe");
    let (mut seen, mut byte) = (Vec::new(), [0]);
    while !String::from_utf8_lossy(&seen).contains(text) {
        assert_eq!(output.read(&mut byte).unwrap(), 1, "no {text:?} in {:?}", String::from_utf8_lossy(&seen));
        seen.push(byte[0]);
    }
    String::from_utf8_lossy(&seen).into_owned()
}

/// `coracle` with these words on a terminal of 30 lines and 100 columns.
pub fn on_terminal(home: &Home, words: &str) -> Command {
    let coracle = format!("stty rows 30 cols 100; exec {} {words}", CORACLE);
    let mut command = Command::new("script");
    command.args(["--quiet", "--return", "--command", &coracle, "/dev/null"]);
    for (name, value) in home.command(&[]).get_envs() {
        command.env(name, value.unwrap());
    }
    command.stdin(Stdio::piped()).stdout(Stdio::piped());
    command
}

/// Sends a signal to a process that we have started and not waited for.
pub fn signal(pid: u32, signal: i32) {
    // SAFETY: kill(2) takes two numbers; the process is ours.
    assert_eq!(unsafe { libc::kill(pid.try_into().unwrap(), signal) }, 0);
}
