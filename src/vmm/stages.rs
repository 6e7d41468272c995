// SPDX-License-Identifier: Apache-2.0
//! When a boot reached which stage, and what it had cost by then.

use std::fmt;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use serde::{Deserialize, Serialize};
use vmm_sys_util::eventfd::EventFd;

use super::bus::BusDevice;
use super::clock::{monotonic_ns, process_cpu_ns};
use super::stats::VcpuStats;

/// A guest can mark stages as well, so their number is bounded.
const MAX_MARKS: usize = 64;

/// A point that every boot passes, in their order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Stage {
    /// The VMM's process runs its own first instruction.
    ProcessStart,
    /// KVM has made the VM.
    KvmCreated,
    /// Guest memory is mapped and known to KVM.
    MemoryReady,
    /// The kernel is in guest memory and the vCPUs are at its entry.
    KernelLoaded,
    /// vCPUs and devices are where the snapshot has them.
    Restored,
    /// The first vCPU enters the guest.
    FirstRun,
    /// The guest has written its first byte to the console.
    FirstOutput,
    /// The guest's `/init` has begun.
    Init,
    /// The guest's agent takes requests.
    AgentReady,
    /// A byte on the boot timer port that has no name here.
    Guest(u8),
}

impl Stage {
    /// The stage that a byte on the boot timer port stands for.
    pub fn from_guest(byte: u8) -> Self {
        match byte {
            coracle_protocol::BOOT_STAGE_INIT => Stage::Init,
            coracle_protocol::BOOT_STAGE_READY => Stage::AgentReady,
            other => Stage::Guest(other),
        }
    }
}

impl fmt::Display for Stage {
    /// What a person calls it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Stage::ProcessStart => "process start",
            Stage::KvmCreated => "KVM created",
            Stage::MemoryReady => "memory ready",
            Stage::KernelLoaded => "kernel loaded",
            Stage::Restored => "restored",
            Stage::FirstRun => "first KVM_RUN",
            Stage::FirstOutput => "first output",
            Stage::Init => "/init",
            Stage::AgentReady => "agent ready",
            Stage::Guest(byte) => return f.pad(&format!("guest mark {byte:#04x}")),
        })
    }
}

/// What a boot had cost when it reached a stage.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mark {
    /// The stage.
    pub stage: Stage,
    /// Nanoseconds since the process was launched.
    pub wall_ns: u64,
    /// Nanoseconds of processor time of the VMM, its vCPUs included.
    pub cpu_ns: u64,
    /// Exits of the first vCPU to KVM, where the host counts them.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub exits: Option<u64>,
    /// Instructions of the first vCPU that KVM emulated, where the host counts them: on PVM all of the guest's kernel.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub emulated_instructions: Option<u64>,
}

#[derive(Debug, Default)]
struct Marks {
    all: Vec<Mark>,
    told: usize,
}

/// Records marks from any thread.
#[derive(Debug)]
pub struct Stages {
    launched_ns: u64,
    counters: OnceLock<VcpuStats>,
    marks: Mutex<Marks>,
    news: Arc<EventFd>,
}

impl Stages {
    /// A recorder; time counts from `launched_ns` of `CLOCK_MONOTONIC`, or from now. `news` tells of new marks
    /// once the guest runs.
    pub fn new(launched_ns: Option<u64>, news: Arc<EventFd>) -> Self {
        let now = monotonic_ns();
        let launched_ns = launched_ns.filter(|launched| *launched <= now).unwrap_or(now);
        Self { launched_ns, counters: OnceLock::new(), marks: Mutex::default(), news }
    }

    /// Counts exits and instructions from here on.
    pub fn count_with(&self, stats: VcpuStats) {
        // A second set of counters would be another VM's: there is one for each recorder.
        let _ = self.counters.set(stats);
    }

    /// The counters, where the host has them.
    pub fn counters(&self) -> Option<&VcpuStats> {
        self.counters.get()
    }

    /// The boot has reached `stage` now.
    pub fn mark(&self, stage: Stage) {
        let wall_ns = monotonic_ns() - self.launched_ns;
        let counters = self.counters.get();
        let mark = Mark {
            stage,
            wall_ns,
            cpu_ns: process_cpu_ns(),
            exits: counters.and_then(VcpuStats::exits),
            emulated_instructions: counters.and_then(VcpuStats::emulated_instructions),
        };
        let mut marks = self.marks.lock().unwrap_or_else(PoisonError::into_inner);
        if marks.all.len() < MAX_MARKS {
            marks.all.push(mark);
            // To tell of those before the guest runs would only keep it from running.
            if stage >= Stage::FirstRun {
                // Fails only when the counter is full, and then the news is pending anyway.
                let _ = self.news.write(1);
            }
        }
    }

    /// Marks that this has not given before.
    pub fn untold(&self) -> Vec<Mark> {
        let mut marks = self.marks.lock().unwrap_or_else(PoisonError::into_inner);
        let new = marks.all.iter().skip(marks.told).cloned().collect();
        marks.told = marks.all.len();
        new
    }
}

/// The boot timer port: each byte that the guest writes marks a stage.
impl BusDevice for Stages {
    fn read(&self, _offset: u64, _data: &mut [u8]) {}

    fn write(&self, _offset: u64, data: &[u8]) {
        if let [byte] = *data {
            self.mark(Stage::from_guest(byte));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn marks_are_told_once_and_bounded() {
        let news = Arc::new(EventFd::new(libc::EFD_NONBLOCK).unwrap());
        let stages = Stages::new(Some(monotonic_ns() - 1000), Arc::clone(&news));
        stages.mark(Stage::ProcessStart);
        assert!(news.read().is_err());
        stages.mark(Stage::Guest(9));
        assert_eq!(news.read().unwrap(), 1);
        let told = stages.untold();
        assert_eq!(told.len(), 2);
        assert!(told[0].wall_ns >= 1000 && told[1].wall_ns >= told[0].wall_ns);
        for _ in 0..1000 {
            stages.mark(Stage::Guest(9));
        }
        assert_eq!(stages.untold().len(), MAX_MARKS - 2);
        assert!(stages.untold().is_empty());
    }

    #[test]
    fn a_launch_in_the_future_counts_as_now() {
        let stages = Stages::new(Some(u64::MAX), Arc::new(EventFd::new(libc::EFD_NONBLOCK).unwrap()));
        stages.mark(Stage::ProcessStart);
        assert!(stages.untold()[0].wall_ns < 1_000_000_000);
    }
}
