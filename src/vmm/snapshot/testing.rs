// SPDX-License-Identifier: Apache-2.0
//! A state that no VM ever had, for tests and fuzzers.

use super::State;
use super::host_print::HostPrint;
use super::memory;
use crate::vmm::arch::state::{VcpuState, VmState};
use crate::vmm::memory as ram;

/// Of a VM with one vCPU, 16 MiB of memory, and no devices.
///
/// # Panics
/// Without a temporary file, or memory.
pub fn state() -> State {
    let config =
        r#"{"kernel": "vmlinux", "cpus": 1, "memory_mib": 16, "console": "none", "rng": false, "balloon": false}"#;
    let ram = ram::allocate(16 << 20).expect("memory");
    let file = tempfile::tempfile().expect("a temporary file");
    State {
        software: "test".to_owned(),
        taken_at: 1_700_000_000,
        host: HostPrint { vendor: "SVM".to_owned(), cpu: "none".to_owned(), cpuid: 7 },
        host_tsc: 0,
        config: serde_json::from_str(config).expect("a configuration"),
        command_line: "reboot=k".to_owned(),
        memory: memory::write(&ram, &file).expect("a memory file"),
        base: None,
        vm: VmState::default(),
        vcpus: vec![VcpuState::default()],
        devices: Vec::new(),
        serial: None,
    }
}
