// SPDX-License-Identifier: Apache-2.0
//! A container in a guest, as the host's side of the agent's protocol has it: its processes, what they find, and what
//! is told of them.

mod common;

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use common::{Guest, cache, eventually, host, kernel};
use coracle::image::{PullOptions, PullPolicy, Store};
use coracle::sandbox::{Agent, NotRun, ProcessStart, Running, capabilities};
use coracle_protocol::{
    Address, Container, Ended, EndedBy, File, Interface, Mount, Process, ResourceLimit, Source, Sysctl, Task, Text,
    Upper, WindowSize,
};
use tempfile::TempDir;

const SIGTERM: u8 = 15;
const SIGKILL: u8 = 9;
const MS_RDONLY: u32 = 1;
const MS_NOEXEC: u32 = 8;

/// A guest with the busybox image as its first disk.
struct Vm {
    guest: Guest,
    folder: TempDir,
}

impl Vm {
    fn boot(more: &[&str]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open_at(&folder.path().join("data")).unwrap();
        let name = format!("oci:{}", cache("images/busybox").display());
        let image = store.obtain(&name, PullPolicy::Missing, &PullOptions::default(), &()).unwrap();
        let rootfs = store.rootfs(&image).unwrap();
        let mut words = vec![kernel().display().to_string(), "--console=none".into()];
        words.push(format!("--initrd={}", cache("guest/initramfs.cpio").display()));
        words.push(format!("--disk={},ro", rootfs.display()));
        words.push(format!("--vsock={}", folder.path().join("vsock").display()));
        words.extend(more.iter().map(|word| (*word).to_owned()));
        Self { guest: Guest::start(words), folder }
    }

    /// With a container that does nothing for a long time.
    fn with_container(container: Container) -> (Self, Running) {
        let vm = Self::boot(&[]);
        let running = vm.start(Some(container), process(&["sleep", "1000"])).unwrap();
        (vm, running)
    }

    fn vsock(&self) -> PathBuf {
        self.folder.path().join("vsock")
    }

    fn agent(&self) -> Agent {
        eventually("the agent listens", || Agent::connect(&self.vsock()).ok())
    }

    fn start(&self, container: Option<Container>, process: Process) -> Result<Running, NotRun> {
        self.agent().start(ProcessStart { container, process, task: Task::Program, stdin: true, output: true })
    }

    /// Runs another process to its end.
    fn exec(&self, process: Process) -> (u8, String, String) {
        finish(self.start(None, process).unwrap())
    }

    /// Runs a script that is to succeed; gives what it writes.
    fn sh(&self, script: &str) -> String {
        let (status, stdout, stderr) = self.exec(process(&["sh", "-c", script]));
        assert_eq!(status, 0, "{script}\n{stdout}\n{stderr}");
        stdout
    }

    /// How many sockets of the host's are left.
    fn ports(&self) -> usize {
        let names = self.folder.path().read_dir().unwrap().map(|entry| entry.unwrap().file_name());
        names.filter(|name| name.to_string_lossy().starts_with("vsock_")).count()
    }
}

fn container() -> Container {
    Container { root: Text::new("/dev/vda"), hostname: Text::new("box"), shm_size: 64 << 20, ..Container::default() }
}

fn process(words: &[&str]) -> Process {
    let bytes = |words: &[&str]| words.iter().map(|word| word.as_bytes().to_vec()).collect();
    Process {
        arguments: bytes(words),
        environment: bytes(&["PATH=/bin", "TERM=xterm"]),
        directory: b"/".to_vec(),
        capabilities: capabilities::DEFAULT,
        ..Process::default()
    }
}

fn sh(script: &str) -> Process {
    process(&["sh", "-c", script])
}

/// Without input, to the end.
fn finish(mut running: Running) -> (u8, String, String) {
    drop(running.stdin.take());
    fn read(mut stream: impl Read + Send + 'static) -> thread::JoinHandle<String> {
        thread::spawn(move || {
            let mut text = String::new();
            stream.read_to_string(&mut text).unwrap();
            text
        })
    }
    let stdout = read(running.stdout.take().unwrap());
    let stderr = running.stderr.take().map(read);
    let ended = running.wait().unwrap();
    (ended.status(), stdout.join().unwrap(), stderr.map(|text| text.join().unwrap()).unwrap_or_default())
}

/// Reads until this has come; gives what came before it.
fn expect(stream: &mut Option<UnixStream>, text: &str) -> String {
    let stream = stream.as_mut().unwrap();
    stream.set_read_timeout(Some(common::PATIENCE)).unwrap();
    let mut seen = String::new();
    let mut buffer = [0; 4096];
    while !seen.contains(text) {
        let count = stream.read(&mut buffer).unwrap_or(0);
        assert_ne!(count, 0, "no {text:?} came, but {seen:?}");
        seen.push_str(&String::from_utf8_lossy(&buffer[..count]));
    }
    seen.split_once(text).map(|(before, _)| before.to_owned()).unwrap()
}

fn ended(by: EndedBy) -> Ended {
    Ended { by, oom: false }
}

#[test]
fn main_path_another_process_joins_with_a_terminal_and_hears_signals() {
    let (vm, mut first) = Vm::with_container(container());
    let size = WindowSize { rows: 33, columns: 77 };
    let script = "trap 'echo winch $(stty size)' WINCH; trap 'echo interrupted; exit 5' INT; \
                  echo $(hostname) $(tty) $(stty size) $$; while :; do sleep 0.2; done";
    let mut second = vm.start(None, Process { terminal: Some(size), ..sh(script) }).unwrap();
    assert!(second.stderr.is_none());
    let line = expect(&mut second.stdout, "\r\n");
    let words: Vec<&str> = line.split(' ').collect();
    assert_eq!(words[..4], ["box", "/dev/pts/0", "33", "77"], "{line}");
    assert_ne!(words[4], "1");
    second.handle.resize(40, 100).unwrap();
    expect(&mut second.stdout, "winch 40 100\r\n");
    second.stdin.as_mut().unwrap().write_all(b"\x03").unwrap();
    expect(&mut second.stdout, "interrupted\r\n");
    assert_eq!(second.wait().unwrap(), ended(EndedBy::Exit(5)));
    // To the container's first process, which ends, and all others with it.
    let mut third = vm.start(None, process(&["sleep", "1000"])).unwrap();
    first.handle.signal(SIGKILL).unwrap();
    assert_eq!(first.wait().unwrap(), ended(EndedBy::Signal(SIGKILL)));
    assert_eq!(third.wait().unwrap(), ended(EndedBy::Signal(SIGKILL)));
    // That for errors is there for as long as somebody may read them, since there have been none.
    assert_eq!(vm.ports(), 2);
    for process in [&mut first, &mut third] {
        assert_eq!(process.stderr.take().unwrap().read(&mut [0]).unwrap(), 0);
    }
    assert_eq!(vm.ports(), 0);
    // And then there is none to join; but the same guest can have another one.
    let refused = vm.start(None, process(&["true"])).unwrap_err();
    assert_eq!((refused.status, refused.failure.why.as_str()), (125, "no container runs"));
    assert_eq!(finish(vm.start(Some(container()), process(&["echo", "again"])).unwrap()).1, "again\n");
}

#[test]
fn a_joining_process_is_as_the_first_and_ends_as_it_likes() {
    let (vm, _first) = Vm::with_container(container());
    // The same namespaces as PID 1, and the group of the container.
    let script = "for ns in mnt uts ipc cgroup pid; do \
                    [ $(readlink /proc/1/ns/$ns) = $(readlink /proc/self/ns/$ns) ] || echo other $ns; done; \
                  cat /proc/self/cgroup; grep Cap /proc/self/status | sort | uniq | cut -f 2 | tr '\\n' ' '; kill -9 $$";
    let (status, stdout, _) = vm.exec(sh(script));
    let capabilities = "00000000a80425fb 00000000a80425fb 00000000a80425fb 0000000000000000 0000000000000000 ";
    let mut found: Vec<&str> = stdout.trim_start_matches("0::/\n").split_whitespace().collect();
    found.sort_unstable_by(|a, b| b.cmp(a));
    assert_eq!((status, format!("{} ", found.join(" ")).as_str()), (128 + SIGKILL, capabilities), "{stdout}");
    // Found as with the first: its program, its user, its directory.
    for (process, status, why) in [
        (process(&["no-such-program"]), 127, "is not in the image"),
        (process(&["/dev"]), 126, "permission denied"),
        (Process { user: b"somebody".to_vec(), ..process(&["true"]) }, 125, "user `somebody`"),
        (Process { groups: vec![b"crew".to_vec()], ..process(&["true"]) }, 125, "group `crew`"),
        (Process { directory: b"/tmp/x".to_vec(), ..process(&["true"]) }, 127, "directory `/tmp/x`"),
    ] {
        let refused = vm.start(None, process).unwrap_err();
        assert_eq!(refused.status, status, "{}", refused.failure);
        assert!(refused.failure.why.contains(why), "{}", refused.failure);
    }
    let user =
        Process { user: b"1000:77".to_vec(), groups: vec![b"5".to_vec()], directory: b"/tmp".to_vec(), ..sh("") };
    let script = "id -u; id -g; id -G; pwd; grep CapEff /proc/self/status; echo opened > /dev/stdout";
    let (status, stdout, stderr) = vm.exec(Process { arguments: sh(script).arguments, ..user });
    assert_eq!(stdout, "1000\n77\n77 5\n/tmp\nCapEff:\t0000000000000000\nopened\n", "{stderr}");
    assert_eq!(status, 0);
    // Limits and privileges are those that were asked for.
    let limits = vec![ResourceLimit { resource: 7, soft: 100, hard: 200 }];
    let limited = Process { limits, no_new_privileges: true, capabilities: 1 << 5, ..sh("") };
    let script = "ulimit -n; ulimit -Hn; grep -E 'NoNewPrivs|CapBnd' /proc/self/status";
    let (_, stdout, _) = vm.exec(Process { arguments: sh(script).arguments, ..limited });
    assert_eq!(stdout, "100\n200\nCapBnd:\t0000000000000020\nNoNewPrivs:\t1\n");
}

#[test]
fn arguments_are_as_many_as_linux_takes() {
    let vm = Vm::boot(&[]);
    let word = "x".repeat(16_000);
    let script = "for word do n=$((n+${#word})); done; echo $# $n";
    let mut words = vec!["sh", "-c", script, "sh"];
    words.extend([word.as_str(); 125]);
    let (status, stdout, stderr) = finish(vm.start(Some(container()), process(&words)).unwrap());
    assert_eq!((status, stdout.as_str()), (0, "125 2000000\n"), "{stderr}");
    for count in [200, 300] {
        let mut words = vec!["echo"];
        words.resize(count, &word);
        let refused = vm.start(Some(container()), process(&words)).unwrap_err();
        assert_eq!(refused.status, 126, "{}", refused.failure);
        assert!(refused.failure.why.contains("too long"), "{}", refused.failure);
    }
}

#[test]
fn what_a_process_leaves_running_does_not_keep_its_streams() {
    let (vm, _first) = Vm::with_container(container());
    let started = Instant::now();
    let (status, stdout, _) = vm.exec(sh("sleep 100 & echo done"));
    assert_eq!((status, stdout.as_str()), (0, "done\n"));
    let terminal = Process { terminal: Some(WindowSize::default()), ..sh("trap '' HUP; sleep 100 & echo done") };
    assert_eq!(vm.exec(terminal).1, "done\r\n");
    assert!(started.elapsed() < Duration::from_secs(60));
    // All that was written comes all the same.
    let (_, stdout, _) = vm.exec(sh("sleep 100 & head -c 3000000 /dev/zero | tr '\\0' x"));
    assert_eq!(stdout.len(), 3_000_000);
}

#[test]
fn many_processes_join_at_once() {
    let (vm, _first) = Vm::with_container(container());
    thread::scope(|scope| {
        let all: Vec<_> =
            (0..20).map(|n| (n, scope.spawn(|| vm.exec(sh("read line; sleep 0.5; echo $line$$"))))).collect();
        for (n, one) in all {
            let (status, stdout, stderr) = one.join().unwrap();
            assert!(status == 0 && stdout.trim().parse::<u32>().is_ok(), "{n}: {status} {stdout} {stderr}");
        }
    });
    // The first process's, which may have errors yet.
    assert_eq!(vm.ports(), 1);
}

#[test]
fn a_container_finds_what_the_host_has_put_together() {
    let file = |path: &str, content: &str| File { path: path.into(), mode: 0o644, content: content.into() };
    let sysctl = |name: &str, value: &str| Sysctl { name: name.into(), value: value.into() };
    let memory = |target: &str, options: &str, flags| Mount {
        target: target.into(),
        source: Source::Memory(options.into()),
        flags,
    };
    let spec = Container {
        read_only: true,
        shm_size: 1 << 20,
        files: vec![
            file("/etc/hosts", "127.0.0.1 localhost\n"),
            file("/etc/resolv.conf", "nameserver 10.0.0.1\n"),
            file("/new/place/file", "made\n"),
        ],
        mounts: vec![memory("/scratch/area", "size=8192,mode=1770", MS_NOEXEC), memory("/sealed", "", MS_RDONLY)],
        sysctls: vec![sysctl("net.ipv4.ip_unprivileged_port_start", "0"), sysctl("kernel.shm_rmid_forced", "1")],
        pids_limit: Some(50),
        ..container()
    };
    let (vm, _first) = Vm::with_container(spec);
    assert_eq!(
        vm.sh("cat /etc/hosts /etc/resolv.conf /new/place/file"),
        "127.0.0.1 localhost\nnameserver 10.0.0.1\nmade\n"
    );
    let refused = "for place in / /etc /bin /sealed /proc/sys/kernel/shm_rmid_forced; do \
                     (echo > $place/x || echo > $place) 2>/dev/null && echo wrote $place; done; true";
    assert_eq!(vm.sh(refused), "");
    assert_eq!(
        vm.sh("echo more >> /etc/hosts && wc -l < /etc/hosts && echo kept > /scratch/area/x && echo > /dev/shm/x"),
        "2\n"
    );
    assert_eq!(vm.sh("df -k /dev/shm /scratch/area | awk '{print $2}' | tail -2 | tr '\\n' ' '"), "1024 8 ");
    assert_eq!(vm.sh("stat -c %a /scratch/area; grep ' /scratch/area ' /proc/mounts | grep -c noexec"), "1770\n1\n");
    assert_eq!(vm.sh("cat /proc/sys/net/ipv4/ip_unprivileged_port_start /proc/sys/kernel/shm_rmid_forced"), "0\n1\n");
    assert_eq!(
        vm.sh("cat /sys/fs/cgroup/pids.max; ls -A /sys/firmware | wc -l; ls /dev | grep -c vda || true"),
        "50\n0\n0\n"
    );
    let bomb = "n=0; while [ $n -lt 80 ]; do sleep 1000 & n=$((n+1)); done";
    let (status, _, stderr) = vm.exec(sh(bomb));
    assert!(status != 0 && stderr.contains("fork"), "{status}: {stderr}");
}

#[test]
fn a_privileged_container_sees_the_guest() {
    let spec = Container { privileged: true, ..container() };
    let (vm, _first) = Vm::with_container(spec);
    let all = |script| Process { capabilities: capabilities::ALL, ..sh(script) };
    let script = "ls /dev/vda /dev/null /dev/pts/ptmx /dev/fd/0; mkdir /sys/fs/cgroup/mine; \
                  echo 1 > /proc/sys/kernel/shm_rmid_forced; mkdir /m; mount -t tmpfs x /m; grep -c ' /m ' /proc/mounts";
    let (status, stdout, stderr) = vm.exec(all(script));
    assert_eq!(stdout, "/dev/fd/0\n/dev/null\n/dev/pts/ptmx\n/dev/vda\n1\n", "{stderr}");
    assert_eq!(status, 0, "{stderr}");
}

#[test]
fn a_first_process_with_a_terminal_has_a_console() {
    let vm = Vm::boot(&[]);
    let terminal = Some(WindowSize { rows: 24, columns: 80 });
    let script = "tty; test -c /dev/console && echo console > /dev/console; cat";
    let mut running = vm.start(Some(container()), Process { terminal, ..sh(script) }).unwrap();
    expect(&mut running.stdout, "/dev/pts/0\r\nconsole\r\n");
    running.stdin.as_mut().unwrap().write_all(b"typed\n\x04").unwrap();
    expect(&mut running.stdout, "typed\r\ntyped\r\n");
    assert_eq!(running.wait().unwrap(), ended(EndedBy::Exit(0)));
}

#[test]
fn an_init_reaps_and_passes_signals_on() {
    let vm = Vm::boot(&[]);
    let spec = Container { init: true, ..container() };
    let script =
        "trap 'echo heard; exit 9' TERM; (sleep 0.1 &) ; echo $$ $(cat /proc/1/comm); while :; do sleep 0.1; done";
    let mut running = vm.start(Some(spec), sh(script)).unwrap();
    assert_eq!(expect(&mut running.stdout, "\n"), "2 init");
    assert_eq!(vm.sh("sleep 1; grep -l '^State:.Z' /proc/[0-9]*/status | wc -l"), "0\n");
    running.handle.signal(SIGTERM).unwrap();
    expect(&mut running.stdout, "heard\n");
    assert_eq!(running.wait().unwrap(), ended(EndedBy::Exit(9)));
    // One that is killed is told as a shell tells it.
    let spec = Container { init: true, ..container() };
    assert_eq!(finish(vm.start(Some(spec), sh("kill -9 $$")).unwrap()).0, 128 + SIGKILL);
}

#[test]
fn it_can_be_watched_paused_and_signalled_as_a_whole() {
    let (vm, mut first) = Vm::with_container(container());
    let mut agent = vm.agent();
    let mut busy = vm.start(None, sh("while :; do :; done")).unwrap();
    let usage = eventually("time on CPUs", || Some(agent.usage().unwrap()).filter(|usage| usage.cpu_ns > 200_000_000));
    assert_eq!(usage.pids, 2);
    assert!(usage.memory > 1 << 20 && usage.memory < usage.memory_limit && usage.memory_limit < 128 << 20, "{usage:?}");
    assert!(usage.read > 4096, "{usage:?}");
    let list = eventually("time of the busy one", || {
        Some(agent.processes().unwrap()).filter(|list| list.get(1).is_some_and(|busy| busy.cpu_ms >= 100))
    });
    let commands: Vec<_> =
        list.iter().map(|one| (one.pid, one.parent, one.user.as_str(), one.command.as_str())).collect();
    assert_eq!(commands.first(), Some(&(1, 0, "root", "sleep 1000")), "{list:?}");
    assert_eq!((list.len(), list[1].command.as_str()), (2, "sh -c while :; do :; done"));
    assert!(list[1].age_ms >= list[1].cpu_ms, "{list:?}");

    agent.pause(true).unwrap();
    let before = agent.usage().unwrap().cpu_ns;
    thread::sleep(Duration::from_millis(500));
    assert_eq!(agent.usage().unwrap().cpu_ns, before);
    assert_eq!(vm.start(None, process(&["true"])).unwrap_err().failure.why, "the container is paused");
    agent.pause(false).unwrap();
    eventually("it goes on", || (agent.usage().unwrap().cpu_ns > before).then_some(()));

    agent.signal_all(SIGTERM).unwrap();
    assert_eq!(busy.wait().unwrap(), ended(EndedBy::Signal(SIGTERM)));
    // One that stands can be ended all the same, and does not make the next one stand.
    agent.pause(true).unwrap();
    agent.signal_all(SIGKILL).unwrap();
    assert_eq!(first.wait().unwrap(), ended(EndedBy::Signal(SIGKILL)));
    assert_eq!(finish(vm.start(Some(container()), process(&["true"])).unwrap()).0, 0);
    assert_eq!(agent.usage().unwrap_err().why, "no container runs");
}

#[test]
fn memory_that_runs_out_is_told() {
    let vm = Vm::boot(&[]);
    let (status, ..) = finish(vm.start(Some(container()), sh("exit 137")).unwrap());
    assert_eq!(status, 137);
    let mut running = vm.start(Some(container()), sh("x=x; while :; do x=$x$x; done")).unwrap();
    assert_eq!(running.wait().unwrap(), Ended { by: EndedBy::Signal(SIGKILL), oom: true });
    let mut running = vm.start(Some(container()), sh("exit 1")).unwrap();
    assert_eq!(running.wait().unwrap(), ended(EndedBy::Exit(1)));
}

#[test]
fn a_written_layer_can_be_on_a_disk_or_bounded() {
    let folder = tempfile::tempdir().unwrap();
    let disk = folder.path().join("upper");
    std::fs::File::create(&disk).unwrap().set_len(64 << 20).unwrap();
    host("mkfs.ext4", &["-q", disk.to_str().unwrap()]);
    for (script, output) in [("echo one > /kept; rm /etc/group; sync", ""), ("cat /kept; ls /etc", "one\npasswd\n")] {
        let vm = Vm::boot(&["--disk", disk.to_str().unwrap()]);
        let spec = Container { upper: Upper::Disk(Text::new("/dev/vdb")), ..container() };
        let (status, stdout, stderr) = finish(vm.start(Some(spec), sh(script)).unwrap());
        assert_eq!((status, stdout.as_str()), (0, output), "{stderr}");
        vm.agent().shut_down(Duration::from_secs(1)).unwrap();
        assert!(vm.guest.wait().0.success());
        let state = host("dumpe2fs", &["-h", disk.to_str().unwrap()]);
        assert!(!state.contains("needs_recovery"), "{state}");
    }
    let vm = Vm::boot(&[]);
    let spec = Container { upper: Upper::Memory(Some(1 << 20)), ..container() };
    let script = "head -c 2000000 /dev/zero > /big || wc -c < /big";
    let (_, stdout, stderr) = finish(vm.start(Some(spec), sh(script)).unwrap());
    assert!(stdout.trim().parse::<u32>().is_ok_and(|size| size <= 1 << 20), "{stdout}{stderr}");
}

#[test]
fn interfaces_have_their_addresses_and_routes() {
    // A network namespace would hide the VMM's sockets from nobody: the tap alone is in the way of others.
    let tap = format!("cc{}", std::process::id() % 100_000);
    host("ip", &["tuntap", "add", &tap, "mode", "tap"]);
    let vm = Vm::boot(&["--net", &format!("tap={tap},mac=02:00:00:00:00:07")]);
    let address = |text: &str, prefix| Address { address: text.parse().unwrap(), prefix };
    let network = vec![Interface {
        name: Text::new("eth0"),
        mtu: Some(1400),
        addresses: vec![address("192.0.2.2", 24), address("2001:db8::2", 64)],
        gateways: vec!["192.0.2.1".parse().unwrap(), "2001:db8::1".parse().unwrap()],
    }];
    let script = "ip address show eth0; ip route; ip -6 route; ping -c 1 127.0.0.1; ping -c 1 ::1";
    let outcome = finish(vm.start(Some(Container { network, ..container() }), sh(script)).unwrap());
    let network =
        vec![Interface { name: Text::new("eth0"), addresses: vec![address("192.0.2.3", 24)], ..Interface::default() }];
    let script = "ip address show eth0; ping -c 1 ::1";
    let without_ipv6 = finish(vm.start(Some(Container { network, ..container() }), sh(script)).unwrap());
    let none = vec![Interface { name: Text::new("eth7"), ..Interface::default() }];
    let refused = vm.start(Some(Container { network: none, ..container() }), sh(script)).unwrap_err();
    drop(vm);
    let _ = Command::new("ip").args(["link", "del", &tap]).status();
    let (status, stdout, stderr) = outcome;
    for part in
        ["mtu 1400", "inet 192.0.2.2/24 brd 192.0.2.255", "inet6 2001:db8::2/64", "default via 192.0.2.1 dev eth0"]
    {
        assert!(stdout.contains(part), "no {part} in {stdout}\n{stderr}");
    }
    assert!(stdout.contains("default via 2001:db8::1 dev eth0"), "{stdout}\n{stderr}");
    assert_eq!(status, 0, "{stdout}\n{stderr}");
    let (status, stdout, stderr) = without_ipv6;
    assert!(stdout.contains("inet 192.0.2.3/24") && !stdout.contains("inet6"), "{stdout}\n{stderr}");
    assert_eq!(status, 0, "{stdout}\n{stderr}");
    assert!(refused.failure.why.contains("network"), "{}", refused.failure);
}
