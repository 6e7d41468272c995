// SPDX-License-Identifier: Apache-2.0
//! `coracle-vmm` without the command line and the monitor above it: where the time of a cold start goes.

use std::io::{BufRead, BufReader, Read};
use std::path::PathBuf;
use std::time::Duration;

use coracle_protocol::{Container, Process, Text};
use serde_json::json;

use super::{Backend, Failed, Kind, PATIENCE, Run, Sample, Workload, Workspace};
use crate::cache;
use crate::failure::Failure;
use crate::sandbox::{Agent, NotRun, ProcessSpec, ProcessStart, capabilities};
use crate::vmm::clock::monotonic_ns;
use crate::vmm::config::MachineConfig;
use crate::vmm::control::{Event, Request};
use crate::vmm::process::Vmm;
use crate::vmm::stages::{Mark, Stage};

/// Memory of the guest: that of `coracle run` where it is not told another.
pub const MEMORY_MIB: u64 = 128;
/// Bytes of `/dev/shm`, as `coracle run` has it.
const SHM: u64 = 64 << 20;

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
        kind: Kind::Vmm,
        command,
        version: concat!("coracle ", env!("CARGO_PKG_VERSION")).to_owned(),
        notes: vec![
            "its configuration goes through its control socket; 1 vCPU, 128 MiB, the image's disk, vsock".to_owned(),
        ],
        run: Run::Guest(guest),
    }])
}

impl Guest {
    /// Boots it, runs the command, and ends it.
    pub fn sample(&self) -> Result<Sample, Failed> {
        self.boot().map_err(|failure| Failed::Because(format!("{}: {}", failure.what, failure.why)))
    }

    fn boot(&self) -> Result<Sample, Failure> {
        let start = monotonic_ns();
        let since = || monotonic_ns().saturating_sub(start);
        let mut vmm = Vmm::start(self.config.clone())?;
        let marks = marks_until_ready(&vmm)?;
        let ready_ns = since();
        let start = ProcessStart {
            container: Some(container(&self.process)),
            process: process(&self.process),
            stdin: false,
            output: true,
            ..ProcessStart::default()
        };
        let told = |NotRun { failure, .. }| failure;
        let mut running = Agent::connect(&self.vsock)?.start(start).map_err(told)?;
        let started_ns = since();
        let mut first_byte_ns = None;
        let mut buffer = [0; 65536];
        let output = running.stdout.take();
        for mut stream in output.into_iter().chain(running.stderr.take()) {
            while stream.read(&mut buffer).map_err(|error| lost(&error))? > 0 {
                first_byte_ns.get_or_insert_with(since);
            }
        }
        let ended = running.wait()?;
        let exit_ns = since();
        // One that has gone already needs no stopping.
        let _ = Request::Stop.send(&vmm.control).and_then(|()| vmm.wait());
        match ended.status() {
            0 => Ok(Sample {
                ready_ns: Some(ready_ns),
                first_byte_ns,
                exit_ns: Some(exit_ns),
                cpu_ns: None,
                marks,
                started_ns: Some(started_ns),
            }),
            status => Err(lost(&format!("the command ended with status {status}"))),
        }
    }
}

/// Stages up to where the agent takes requests.
fn marks_until_ready(vmm: &Vmm) -> Result<Vec<Mark>, Failure> {
    let control = vmm.control.try_clone().map_err(|error| lost(&error))?;
    control.set_read_timeout(Some(Duration::from_secs(PATIENCE.as_secs()))).map_err(|error| lost(&error))?;
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

fn container(spec: &ProcessSpec) -> Container {
    Container {
        root: Text::new("/dev/vda"),
        hostname: Text::new(&spec.hostname),
        shm_size: SHM,
        ..Container::default()
    }
}

fn process(spec: &ProcessSpec) -> Process {
    let bytes = |words: &[String]| words.iter().map(|word| word.clone().into_bytes()).collect();
    Process {
        arguments: bytes(&spec.arguments),
        environment: bytes(&spec.environment),
        directory: spec.directory.clone().into_bytes(),
        user: spec.user.clone().into_bytes(),
        capabilities: capabilities::DEFAULT,
        ..Process::default()
    }
}
