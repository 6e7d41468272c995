// SPDX-License-Identifier: Apache-2.0
//! `coracle-vmm` without the command line and the monitor above it: where the time of a cold start goes.

use std::io::{self, BufRead, BufReader, Read};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use coracle_protocol::Task;
use serde_json::json;

use super::super::measure::Stopwatch;
use super::{Backend, Failed, Kind, PATIENCE, Run, Sample, Workload, Workspace};
use crate::cache;
use crate::failure::Failure;
use crate::sandbox::{Agent, NotRun, ProcessSpec, ProcessStart, capabilities};
use crate::supervisor::{Surroundings, describe};
use crate::vmm::clock::monotonic_ns;
use crate::vmm::config::MachineConfig;
use crate::vmm::control::{Event, Request};
use crate::vmm::process::Vmm;
use crate::vmm::stages::{Mark, Stage};

/// Memory of the guest: that of `coracle run` where it is not told another.
pub const MEMORY_MIB: u64 = 128;
/// Bytes of `/dev/shm`, as `coracle run` has it.
pub const SHM: u64 = 64 << 20;

/// What is booted.
pub struct Guest {
    config: MachineConfig,
    vsock: PathBuf,
    process: ProcessSpec,
}

/// The one way to run it.
pub fn candidates(workload: &Workload, workspace: &Workspace) -> Result<Vec<Backend>, String> {
    let vsock = workspace.path().join("vsock");
    let config = json!({
        "kernel": cache::guest_kernel(),
        "initrd": cache::guest_initramfs(),
        "cpus": 1,
        "memory_mib": MEMORY_MIB,
        "console": "none",
        "disks": [{ "path": workload.disk, "read_only": true }],
        "vsock": { "path": vsock, "cid": 3 },
    });
    let command = vec!["coracle-vmm".to_owned(), "--control-fd".to_owned(), "3".to_owned()];
    let config = serde_json::from_value(config).map_err(|error| error.to_string())?;
    let guest = Guest { config, vsock, process: workload.process.clone() };
    Ok(vec![Backend {
        choice: Kind::Vmm.into(),
        command,
        version: concat!("coracle ", env!("CARGO_PKG_VERSION")).to_owned(),
        notes: vec![
            "its configuration goes through its control socket; 1 vCPU, 128 MiB, the image's disk, vsock".to_owned(),
        ],
        beside: Vec::new(),
        way: 0,
        run: Run::Guest(Box::new(guest)),
    }])
}

impl Guest {
    /// Boots it, runs the command, and ends it.
    pub fn sample(&self, stopwatch: &mut Stopwatch) -> Result<Sample, Failed> {
        let start = monotonic_ns();
        let vmm = Vmm::start(self.config.clone()).map_err(told)?;
        let control = vmm.control.try_clone()?;
        let (over, wait) = channel();
        thread::scope(|scope| {
            let watching = scope.spawn(move || watch(stopwatch, &control, &wait));
            let outcome = self.follow(vmm, start);
            drop(over);
            // A VM that was cut off has failed for that reason.
            let cut_off = watching.join().unwrap_or(None);
            cut_off.map_or_else(|| outcome.map_err(told), Err)
        })
    }

    fn follow(&self, mut vmm: Vmm, start: u64) -> Result<Sample, Failure> {
        let since = || monotonic_ns().saturating_sub(start);
        let marks = marks_until_ready(&vmm)?;
        let ready_ns = since();
        let request = ProcessStart {
            task: Task::Program,
            container: Some(describe::bare_container(&self.process, SHM)),
            process: describe::process(
                &self.process,
                &Surroundings { capabilities: capabilities::DEFAULT, ..Surroundings::default() },
                None,
            ),
            output: true,
            ..ProcessStart::default()
        };
        let mut running = Agent::connect(&self.vsock)?.start(request).map_err(|NotRun { failure, .. }| failure)?;
        let started_ns = since();
        // Read at the same time: a program that waits to write errors would not end.
        let errors = running.stderr.take().map(|mut from| thread::spawn(move || io::copy(&mut from, &mut io::sink())));
        let mut first_byte_ns = None;
        let mut buffer = [0; 65536];
        if let Some(mut output) = running.stdout.take() {
            while output.read(&mut buffer).map_err(|error| lost(&error))? > 0 {
                first_byte_ns.get_or_insert_with(since);
            }
        }
        let ended = running.wait()?;
        let exit_ns = since();
        // One that has gone already needs no stopping.
        let _ = Request::Stop.send(&vmm.control).and_then(|()| vmm.wait());
        // What it says of errors is nobody's here.
        let _ = errors.map(JoinHandle::join);
        match ended.status() {
            0 => Ok(Sample {
                spawned_ns: start,
                ready_ns: Some(ready_ns),
                first_byte_ns,
                exit_ns: Some(exit_ns),
                cpu_ns: None,
                read_bytes: None,
                marks,
                started_ns: Some(started_ns),
            }),
            status => Err(lost(&format!("the command ended with status {status}"))),
        }
    }
}

/// Cuts the VM off when the time is over or the user wants no more; says which.
fn watch(stopwatch: &mut Stopwatch, control: &UnixStream, over: &Receiver<()>) -> Option<Failed> {
    let begun = Instant::now();
    while over.recv_timeout(Duration::from_millis(100)) == Err(RecvTimeoutError::Timeout) {
        let reason = match (stopwatch.is_interrupted(), begun.elapsed() > PATIENCE) {
            (true, _) => Failed::Interrupted,
            (false, true) => Failed::Because(format!("it did not end within {} s", PATIENCE.as_secs())),
            (false, false) => continue,
        };
        // One that has gone already needs no stopping.
        let _ = Request::Stop.send(control);
        return Some(reason);
    }
    None
}

fn told(failure: Failure) -> Failed {
    Failed::Because(format!("{}: {}", failure.what, failure.why))
}

/// Stages up to where the agent takes requests.
fn marks_until_ready(vmm: &Vmm) -> Result<Vec<Mark>, Failure> {
    let control = vmm.control.try_clone().map_err(|error| lost(&error))?;
    let mut marks = Vec::new();
    for line in BufReader::new(control).lines() {
        let line = line.map_err(|error| lost(&error))?;
        match serde_json::from_str::<Event>(&line) {
            Ok(Event::Stage(mark)) => {
                let ready = mark.stage == Stage::AgentReady;
                marks.push(mark);
                if ready {
                    return Ok(marks);
                }
            }
            Ok(Event::Failed(failure)) => return Err(failure),
            Ok(Event::End { .. }) => break,
            _ => {}
        }
    }
    Err(lost(&"it ended before its agent was ready"))
}

fn lost(why: &impl std::fmt::Display) -> Failure {
    Failure::new("the guest has failed", why, "`coracle boot` with the same kernel and `guest/console.cpio`")
}
