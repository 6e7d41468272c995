// SPDX-License-Identifier: Apache-2.0
//! A container that runs for as long as the benchmark does: made by `coracle run` or by podman, in which programs are
//! executed and servers are reached.

use std::fs;
use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::Value;

use super::super::backend::Workspace;
use super::super::backend::{Failed, Kind, podman};
use super::super::interrupt::Interrupt;
use super::super::machine::has_cgroup2;
use super::program::ask;
use super::workload::{IPERF_PORT, REDIS_PORT, VOLUME, iperf_server, redis_server};

/// How long it takes to start one, or a server in it, on the slowest of hosts.
const STARTING: Duration = Duration::from_secs(300);
/// Between two looks at whether a server is there: to refuse is work for a guest.
const BETWEEN: Duration = Duration::from_millis(250);
/// How long a server may take to answer.
const ANSWERING: Duration = Duration::from_secs(5);

/// What each of them is made of.
#[derive(Debug)]
pub struct Ground<'a> {
    /// The image, as `coracle run` finds it.
    pub image: &'a str,
    /// An archive of it, for podman.
    pub archive: &'a Path,
    /// Our own program.
    pub coracle: &'a Path,
    /// A directory on the disk that containers are on, with a volume for each.
    pub volumes: &'a Path,
    /// Bytes of memory.
    pub memory: u64,
    /// Which of the servers are needed, and whether the volume is.
    pub needs: Needs,
}

/// What is needed of a sandbox.
#[derive(Clone, Copy, Debug, Default)]
pub struct Needs {
    /// The volume.
    pub volume: bool,
    /// iperf3.
    pub iperf: bool,
    /// redis.
    pub redis: bool,
}

/// One that runs; it is removed when this is dropped.
#[derive(Debug)]
pub struct Sandbox {
    /// Which.
    pub kind: Kind,
    /// How it was started.
    pub command: Vec<String>,
    /// Its version.
    pub version: String,
    /// What is to be known of its figures.
    pub notes: Vec<String>,
    /// Whether it has the volume; else the reason.
    pub volume: Result<(), String>,
    /// Where iperf3 listens; else the reason.
    pub iperf: Result<SocketAddr, String>,
    /// Where redis is reached.
    pub redis: Result<SocketAddr, String>,
    /// Words before a verb.
    globals: Vec<String>,
    id: String,
}

impl Sandbox {
    /// Starts one, and its servers.
    ///
    /// # Errors
    /// It cannot be had, or the user wants no more.
    pub fn start(
        kind: Kind,
        ground: &Ground<'_>,
        workspace: &Workspace,
        interrupt: &mut Interrupt,
    ) -> Result<Self, Failed> {
        let coracle = vec![ground.coracle.display().to_string()];
        let ours = concat!("coracle ", env!("CARGO_PKG_VERSION")).to_owned();
        let words = |words: &[&str]| words.iter().map(|&word| word.to_owned()).collect::<Vec<_>>();
        let limits = words(&["--cpus", "1", "--memory", &format!("{}m", ground.memory >> 20)]);
        let unlimited = "its memory and CPUs are not limited, since this host has no controllers for that";
        // Words before the verb, flags, and what is to be said of it; the first that works is taken.
        let mut ways: Vec<(Vec<String>, Vec<String>, Vec<String>)> = Vec::new();
        let (image, version) = match kind {
            Kind::Vm => {
                ways.push((coracle, limits, Vec::new()));
                (ground.image.to_owned(), ours)
            }
            Kind::Container => {
                let notes = if has_cgroup2() { Vec::new() } else { words(&[unlimited]) };
                ways.push((coracle, [words(&["--isolation", "container"]), limits].concat(), notes));
                (ground.image.to_owned(), ours)
            }
            Kind::Podman => {
                let (globals, version, image) =
                    podman::prepared(&kind.into(), ground.archive, workspace).map_err(Failed::Because)?;
                for (more, flags, note) in podman::ways() {
                    let limited = !flags.iter().any(|flag| flag == "--cgroups=disabled");
                    let mut notes = words(&["its writable layer lies in memory, which is in its favour"]);
                    notes.extend((!note.is_empty()).then(|| note.to_owned()));
                    notes.extend((!limited).then(|| unlimited.to_owned()));
                    let limits = if limited { limits.clone() } else { Vec::new() };
                    let flags = [words(&["--pull=never", "--network", "podman"]), flags, limits].concat();
                    ways.push(([globals.clone(), more].concat(), flags, notes));
                }
                (image, version)
            }
            _ => return Err(Failed::Because("it does not go on".to_owned())),
        };
        let volume = ground.volumes.join(kind.name());
        fs::create_dir_all(&volume)?;
        let mut volume: Option<PathBuf> = ground.needs.volume.then_some(volume);
        let mut no_volume = "it is not needed".to_owned();
        loop {
            let mut reasons: Vec<String> = Vec::new();
            for (globals, flags, notes) in &ways {
                let mut command = [globals.clone(), words(&["run", "--detach"]), flags.clone()].concat();
                command.extend(["--publish".to_owned(), format!("127.0.0.1::{REDIS_PORT}")]);
                let mount = |path: &PathBuf| ["--volume".to_owned(), format!("{}:{VOLUME}", path.display())];
                command.extend(volume.iter().flat_map(mount));
                command.extend(words(&["--user", "0", "--entrypoint", "sleep", &image, "100000"]));
                match ask(&command, STARTING, interrupt) {
                    Ok(said) => {
                        let mut sandbox = Self {
                            kind,
                            command,
                            version,
                            notes: notes.clone(),
                            volume: volume.map(drop).ok_or(no_volume),
                            iperf: Err("it is not needed".to_owned()),
                            redis: Err("it is not needed".to_owned()),
                            globals: globals.clone(),
                            id: said.lines().last().unwrap_or("").trim().to_owned(),
                        };
                        sandbox.serve(ground.needs, interrupt)?;
                        return Ok(sandbox);
                    }
                    Err(Failed::Interrupted) => return Err(Failed::Interrupted),
                    Err(Failed::Because(why)) if reasons.contains(&why) => {}
                    Err(Failed::Because(why)) => reasons.push(why),
                }
            }
            // Perhaps it can be had without a volume.
            no_volume = reasons.join("; otherwise: ");
            if volume.take().is_none() {
                return Err(Failed::Because(no_volume));
            }
        }
    }

    /// A verb about it, and more words.
    fn words(&self, verb: &[&str], more: &[String]) -> Vec<String> {
        let verb = verb.iter().map(|&word| word.to_owned());
        [self.globals.clone(), verb.collect(), vec![self.id.clone()], more.to_vec()].concat()
    }

    /// The command line that runs a program in it.
    pub fn exec(&self, program: &[String]) -> Vec<String> {
        self.words(&["exec", "--user", "0"], program)
    }

    fn serve(&mut self, needs: Needs, interrupt: &mut Interrupt) -> Result<(), Failed> {
        if needs.iperf {
            let address = self.address(interrupt).map(|address| SocketAddr::new(address, IPERF_PORT));
            self.iperf = self.serving(address, &iperf_server(), is_there, interrupt)?;
        }
        if needs.redis {
            let address = self.published(interrupt);
            self.redis = self.serving(address, &redis_server(), is_redis, interrupt)?;
        }
        Ok(())
    }

    /// Starts a server and waits until it is there; else the reason.
    fn serving(
        &self,
        address: Result<SocketAddr, Failed>,
        server: &[String],
        there: fn(SocketAddr) -> std::io::Result<bool>,
        interrupt: &mut Interrupt,
    ) -> Result<Result<SocketAddr, String>, Failed> {
        let started = address.and_then(|address| {
            ask(&self.words(&["exec", "--detach", "--user", "0"], server), STARTING, interrupt).map(|_| address)
        });
        let address = match started {
            Ok(address) => address,
            Err(Failed::Because(why)) => return Ok(Err(why)),
            Err(Failed::Interrupted) => return Err(Failed::Interrupted),
        };
        let begun = Instant::now();
        while !there(address).unwrap_or(false) {
            if interrupt.has_come() {
                return Err(Failed::Interrupted);
            }
            if begun.elapsed() > STARTING {
                let name = server.first().map_or("the server", String::as_str);
                return Ok(Err(format!("{name} does not answer at {address}")));
            }
            thread::sleep(BETWEEN);
        }
        Ok(Ok(address))
    }

    /// Its own address, as `inspect` has it.
    fn address(&self, interrupt: &mut Interrupt) -> Result<IpAddr, Failed> {
        let text = ask(&self.words(&["inspect"], &[]), STARTING, interrupt)?;
        let all: Value = serde_json::from_str(&text).unwrap_or_default();
        let settings = all.pointer("/0/NetworkSettings").cloned().unwrap_or_default();
        let networks = settings.get("Networks").and_then(Value::as_object);
        let mut all = std::iter::once(&settings).chain(networks.into_iter().flat_map(|all| all.values()));
        let found = all.find_map(|one| one.get("IPAddress")?.as_str()?.parse().ok());
        found.ok_or_else(|| Failed::Because("it has no address that the host reaches".to_owned()))
    }

    /// Where redis is published.
    fn published(&self, interrupt: &mut Interrupt) -> Result<SocketAddr, Failed> {
        let text = ask(&self.words(&["port"], &[format!("{REDIS_PORT}/tcp")]), STARTING, interrupt)?;
        let found = text.lines().find_map(|line| line.rsplit(' ').next()?.trim().parse().ok());
        found.ok_or_else(|| Failed::Because("its port is not published".to_owned()))
    }
}

impl Drop for Sandbox {
    fn drop(&mut self) {
        // The user has had enough of waiting already, if he wants no more: this is not asked about.
        let words = self.words(&["rm", "--force"], &[]);
        if let [program, arguments @ ..] = &words[..] {
            // One that has gone by itself needs no removing.
            let _ = std::process::Command::new(program).args(arguments).output();
        }
    }
}

fn is_there(address: SocketAddr) -> std::io::Result<bool> {
    TcpStream::connect_timeout(&address, ANSWERING).map(|_| true)
}

/// Whether it answers a PING. A published port may be open before there is someone behind it.
fn is_redis(address: SocketAddr) -> std::io::Result<bool> {
    let mut stream = TcpStream::connect_timeout(&address, ANSWERING)?;
    stream.set_read_timeout(Some(ANSWERING))?;
    stream.write_all(b"PING\r\n")?;
    let mut answer = [0; 5];
    stream.read_exact(&mut answer)?;
    Ok(&answer == b"+PONG")
}
