// SPDX-License-Identifier: Apache-2.0
//! The `coracle-vmm` process: one microVM, for one owner.
//!
//! `coracle-vmm --control-fd N` reads the VM's configuration from the connected socket N and reports there;
//! `coracle-vmm --config FILE` runs alone. The console is on standard input and output.

use std::io::{BufRead, BufReader};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;

use coracle::failure::{EXIT_FAILURE, Failure};
use coracle::signals;
use coracle::vmm::clock::monotonic_ns;
use coracle::vmm::control::{Connection, Event};
use coracle::vmm::machine;
use coracle::vmm::run::{self, Company};
use coracle::vmm::snapshot::{self, Launch};
use coracle::vmm::stages::{Stage, Stages};
use vmm_sys_util::eventfd::EventFd;

const USAGE: &str = "usage: coracle-vmm --control-fd N | --config FILE";

fn main() -> ExitCode {
    let started = monotonic_ns();
    // Threads allocate next to nothing: an arena for each would cost memory, and system calls at its start.
    // SAFETY: it takes two numbers, and there is one thread yet.
    unsafe { libc::mallopt(libc::M_ARENA_MAX, 1) };
    coracle::logging::start();
    let mut owner = None;
    match start(&mut owner, started) {
        Ok(code) => ExitCode::from(code),
        Err(failure) => {
            let told = owner.is_some_and(|mut owner| owner.send(&Event::Failed(failure.clone())).is_ok());
            if !told {
                eprintln!("{failure}");
            }
            ExitCode::from(EXIT_FAILURE)
        }
    }
}

fn start(owner: &mut Option<Connection>, started: u64) -> Result<u8, Failure> {
    let mut launch = match std::env::args_os().collect::<Vec<_>>().as_slice() {
        [_, flag, number] if flag == "--control-fd" => from_owner(owner, number.to_str())?,
        [_, flag, path] if flag == "--config" => from_file(Path::new(path))?,
        _ => return Err(Failure::new("cannot start", "arguments are missing or unknown", USAGE)),
    };
    launch.jail().prepare();
    let news = EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC).map(Arc::new);
    let news = news.map_err(|error| Failure::new("cannot start", error, "raise the limit of open files"))?;
    let stages = Arc::new(Stages::new(launch.launched_ns().or(Some(started)), Arc::clone(&news)));
    stages.mark(Stage::ProcessStart);
    let ended_by = [libc::SIGTERM, libc::SIGINT, libc::SIGHUP];
    let signals = signals::readable(&ended_by)
        .map_err(|error| Failure::new("cannot catch signals", error, "raise the limit of open files (`ulimit -n`)"))?;
    let listener = launch.control().map(|path| listen(path)).transpose()?;
    let machine = match launch {
        Launch::Boot(config) => machine::build(*config, stages, news),
        Launch::Restore(config) => snapshot::restore(&config, stages, news),
    };
    let machine = machine.inspect_err(|_| {
        if let Some((_, path)) = &listener {
            // Whoever tries again, from the kernel where it was a snapshot, needs the place.
            let _ = std::fs::remove_file(path);
        }
    })?;
    let company = Company { owner: owner.take(), listener, signals };
    run::run(machine, company).map(|end| end.exit_code())
}

fn from_owner(owner: &mut Option<Connection>, number: Option<&str>) -> Result<Launch, Failure> {
    let bad = |error: &dyn std::fmt::Display| Failure::new("cannot take the control socket", error, USAGE);
    let number = number.and_then(|number| number.parse().ok()).ok_or_else(|| bad(&"not a number"))?;
    let stream = run::adopt_owner(number).map_err(|error| bad(&error))?;
    let mut line = String::new();
    // Nothing follows the first line until we have said something, so the reader holds nothing back.
    BufReader::new(&stream).read_line(&mut line).map_err(|error| bad(&error))?;
    *owner = Some(Connection::new(stream).map_err(|error| bad(&error))?);
    parse(&line)
}

fn from_file(path: &Path) -> Result<Launch, Failure> {
    let text = std::fs::read_to_string(path).map_err(|error| {
        Failure::new(format!("cannot read {}", path.display()), error, "the path of a configuration file")
    })?;
    let mut launch = parse(&text)?;
    launch.without_owner();
    Ok(launch)
}

fn parse(text: &str) -> Result<Launch, Failure> {
    let advice = "see `MachineConfig` and `RestoreConfig` in src/vmm for the fields";
    Launch::parse(text).map_err(|error| Failure::new("cannot use the configuration", error, advice))
}

/// Binds the control socket for others than the owner; a file that is there already is somebody else's.
fn listen(path: &Path) -> Result<(UnixListener, PathBuf), Failure> {
    let listener = UnixListener::bind(path).map_err(|error| {
        let what = format!("cannot listen on control socket {}", path.display());
        Failure::new(what, error, "another path; remove the file if no VM uses it")
    })?;
    Ok((listener, path.to_owned()))
}
