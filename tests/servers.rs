// SPDX-License-Identifier: Apache-2.0
//! The images that people really run, with the clients that they really use. `scripts/test-images` makes them.
//!
//! With `--nocapture` each says how long its server took to answer, and to stop.

mod common;

use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use common::home::{Home, on_terminal, read_to};
use common::{host, run};

/// Seconds to end in: on a busy host more than the usual ten. One that is killed has another status.
const GRACE: &str = "100";

/// A program of some size faults its pages in one by one, which takes a while where a guest's kernel is interpreted.
const START: Duration = Duration::from_secs(600);

fn image(name: &str) -> String {
    let place = coracle::cache::directory().join("images").join(name);
    assert!(place.exists(), "{} is missing: run scripts/test-images {name}", place.display());
    format!("oci:{}", place.display())
}

/// A server in a container, whose port is published.
struct Server {
    home: Home,
    name: &'static str,
    started: Instant,
}

impl Server {
    fn start(name: &'static str, flags: &[&str]) -> Self {
        let (home, image, started) = (Home::new(), image(name), Instant::now());
        home.ok(&[&["run", "-d", "--name", name], flags, &[&image]].concat());
        Self { home, name, started }
    }

    /// Address and port on the host.
    fn address(&self, port: &str) -> (String, String) {
        let address = self.home.ok(&["port", self.name, port]);
        let (host, port) = address.rsplit_once(':').expect("an address and a port");
        (host.to_owned(), port.to_owned())
    }

    /// Asks a client until it succeeds; gives what it said.
    fn answers(&self, client: &str, words: &[&str]) -> String {
        let answer = loop {
            let (status, stdout, stderr) = run(Command::new(client).args(words));
            if status == Some(0) {
                break stdout;
            }
            assert!(self.started.elapsed() < START, "{client} gets no answer from {}: {stdout}{stderr}", self.name);
            std::thread::sleep(Duration::from_millis(200));
        };
        eprintln!("{}: answers after {:.1} s", self.name, self.started.elapsed().as_secs_f64());
        answer
    }

    /// Takes a shell on a terminal, has its log followed to the end, and stops in its time, with this status.
    fn ends_well(self, logged: &str, status: &str) {
        let words = format!("exec -it {} sh -c 'stty size; tty; exit 5'", self.name);
        let mut shell = on_terminal(&self.home, &words).spawn().unwrap();
        let seen = read_to(&mut shell, "/dev/pts/0");
        assert!(seen.contains("30 100"), "{seen}");
        assert_eq!(shell.wait().unwrap().code(), Some(5));
        let mut follow = self.home.command(&["logs", "-f", self.name]);
        let mut follow = follow.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let stopping = Instant::now();
        self.home.ok(&["stop", "-t", GRACE, self.name]);
        eprintln!("{}: stopped after {:.1} s", self.name, stopping.elapsed().as_secs_f64());
        let mut lines: Vec<String> =
            BufReader::new(follow.stdout.take().unwrap()).lines().map_while(Result::ok).collect();
        lines.extend(BufReader::new(follow.stderr.take().unwrap()).lines().map_while(Result::ok));
        assert_eq!(follow.wait().unwrap().code(), Some(0));
        assert!(lines.iter().any(|line| line.contains(logged)), "no {logged:?} in {lines:?}");
        assert_eq!(self.home.ok(&["wait", self.name]), status);
        self.home.ok(&["rm", self.name]);
        assert_eq!((self.home.left(), self.home.ok(&["ps", "-aq"]).as_str()), (0, ""));
    }
}

#[test]
fn main_path_nginx_answers_curl() {
    let server = Server::start("nginx", &["-p", "80"]);
    let (address, port) = server.address("80");
    let page = server.answers("curl", &["--silent", "--fail", "-A", "a client", &format!("http://{address}:{port}/")]);
    assert!(page.contains("Welcome to nginx!"), "{page}");
    server.ends_well("a client", "0");
}

#[test]
fn redis_answers_redis_cli_and_its_benchmark() {
    let server = Server::start("redis", &["-p", "6379"]);
    let (address, port) = server.address("6379");
    let at = ["-h", &address, "-p", &port];
    let cli = |words: &[&str]| server.answers("redis-cli", &[&at[..], words].concat());
    assert_eq!(cli(&["PING"]), "PONG\n");
    assert_eq!(cli(&["SET", "name", "coracle"]), "OK\n");
    assert_eq!(cli(&["GET", "name"]), "coracle\n");
    let report = host("redis-benchmark", &[&at[..], &["-n", "500", "-c", "5", "-t", "set,get", "--csv"]].concat());
    assert_eq!(report.lines().filter(|line| line.starts_with("\"SET\"") || line.starts_with("\"GET\"")).count(), 2);
    eprintln!("{report}");
    server.ends_well("Ready to accept connections", "0");
}

/// While it is busy; its data is in memory, and what its image would have as a volume as well.
#[test]
fn redis_goes_on_three_times_from_one_snapshot() {
    let server = Server::start("redis", &["-p", "6379", "--tmpfs", "/var/lib/redis"]);
    let home = &server.home;
    let cli = |container: &'static str, words: &[&str]| {
        let at = home.ok(&["port", container, "6379"]);
        let (host, port) = at.rsplit_once(':').expect("an address and a port");
        let words = [&["-h", host, "-p", port], words].concat();
        common::eventually("an answer of redis", || {
            let (status, stdout, _) = run(Command::new("redis-cli").args(&words));
            (status == Some(0)).then(|| stdout.trim().to_owned())
        })
    };
    let value = "a value of some length ".repeat(20);
    assert_eq!(cli("redis", &["SET", "name", &value]), "OK");
    let (address, port) = server.address("6379");
    let load = ["-h", &address, "-p", &port, "-c", "3", "-t", "set,incr", "-r", "50", "-l", "-q"];
    let mut load = Command::new("redis-benchmark").args(load).stdout(Stdio::null()).spawn().unwrap();
    common::eventually("load", || (cli("redis", &["DBSIZE"]).parse::<u32>().unwrap() > 10).then_some(()));
    home.ok(&["snapshot", "create", "redis", "busy"]);
    assert!(load.try_wait().unwrap().is_none(), "the clients of the one that goes on have not noticed");
    load.kill().unwrap();
    load.wait().unwrap();
    let mut seen = std::collections::BTreeSet::new();
    for clone in ["first", "second", "third"] {
        home.ok(&["run", "-d", "--rm", "--from", "busy", "--name", clone, "-p", "6379"]);
        seen.insert(home.field(clone, "{{.NetworkSettings.IPAddress}}"));
        seen.insert(home.ok(&["exec", clone, "cat", "/proc/sys/kernel/random/uuid", "/etc/hostname"]));
    }
    assert_eq!(seen.len(), 6, "{seen:?}");
    for clone in ["first", "second", "third"] {
        assert_eq!(cli(clone, &["GET", "name"]), value.trim());
        assert!(cli(clone, &["DBSIZE"]).parse::<u32>().unwrap() > 10);
        // What one is told is not heard by another.
        assert_eq!(cli(clone, &["EXISTS", "own"]), "0");
        assert_eq!(cli(clone, &["SET", "own", clone]), "OK");
    }
    for clone in ["first", "second", "third"] {
        assert_eq!(cli(clone, &["GET", "own"]), clone);
        home.ok(&["stop", "-t", GRACE, clone]);
    }
    server.ends_well("Ready to accept connections", "0");
}

#[test]
fn postgresql_answers_psql_and_pgbench() {
    let server = Server::start("postgresql", &["-p", "5432", "--memory", "512m"]);
    let (address, port) = server.address("5432");
    let psql = |sql: &str| {
        let words = ["-h", &address, "-p", &port, "-U", "postgres", "--no-align", "--tuples-only", "-c", sql];
        server.answers("psql", &words)
    };
    assert_eq!(psql("create table t as select generate_series(1, 1000) as n"), "SELECT 1000\n");
    assert_eq!(psql("select sum(n) from t"), "500500\n");
    let pgbench = |words: &[&str]| server.home.ok(&[&["exec", "postgresql", "pgbench"], words].concat());
    pgbench(&["--initialize", "--quiet"]);
    let report = pgbench(&["--transactions", "10", "--client", "2"]);
    assert!(report.contains("number of transactions actually processed: 20/20"), "{report}");
    eprintln!("{report}");
    assert_eq!(psql("select count(*) from pgbench_history"), "20\n");
    server.ends_well("ready to accept connections", "0");
}

#[test]
fn a_python_application_answers_python() {
    let server = Server::start("python", &["-p", "8000", "-e", "GREETING=good day"]);
    let (address, port) = server.address("8000");
    let script = "import json, sys, urllib.request; answer = urllib.request.urlopen(sys.argv[1], timeout=60); \
                  assert answer.headers['Content-Type'] == 'application/json'; \
                  body = json.load(answer); print(body['path'], body['greeting'])";
    let answer = server.answers("python3", &["-c", script, &format!("http://{address}:{port}/a?b=c")]);
    assert_eq!(answer, "/a?b=c good day\n");
    server.ends_well("listening on port 8000", "0");
}

/// Says `hello`, and ends with 3 when asked to.
const PROGRAM: &str = "trap 'echo bye; exit 3' TERM; echo hello; while :; do sleep 0.1; done";

fn shell(name: &'static str, shell: &str) {
    let (home, image) = (Home::new(), image(name));
    let started = Instant::now();
    home.ok(&["run", "-d", "--name", name, &image, shell, "-c", PROGRAM]);
    home.log_has(name, "hello");
    assert_eq!(home.ok(&["exec", name, shell, "-c", "echo $((6 * 7))"]), "42");
    Server { home, name, started }.ends_well("bye", "3");
}

#[test]
fn busybox_runs_a_script() {
    shell("busybox", "sh");
}

#[test]
fn debian_runs_a_script() {
    shell("debian", "bash");
}
