// SPDX-License-Identifier: Apache-2.0
//! A vCPU's own counters, from KVM's binary statistics (`KVM_GET_STATS_FD`).

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd};
use std::os::unix::fs::FileExt;

use kvm_bindings::KVMIO;
use kvm_ioctls::VcpuFd;
use vmm_sys_util::ioctl::{_IOC_NONE, ioctl, ioctl_expr};

/// `_IO(KVMIO, 0xce)`.
const KVM_GET_STATS_FD: libc::c_ulong = ioctl_expr(_IOC_NONE, KVMIO, 0xce, 0);

/// Bytes of `struct kvm_stats_header`, and of `struct kvm_stats_desc` without its name.
const HEADER: usize = 24;
const DESCRIPTOR: usize = 16;
/// More than any KVM has; keeps a strange header from making us allocate much.
const MAX_NAME: usize = 256;
const MAX_DESCRIPTORS: usize = 1024;

/// Reads a vCPU's counters; one `pread` each, good from any thread.
#[derive(Debug)]
pub struct VcpuStats {
    file: File,
    exits: Option<u64>,
    emulated: Option<u64>,
}

impl VcpuStats {
    /// Opens the counters of `vcpu` and finds the interesting ones.
    ///
    /// # Errors
    /// Hosts before Linux 5.14 have none.
    pub fn open(vcpu: &VcpuFd) -> io::Result<Self> {
        // SAFETY: the ioctl takes no argument and gives a new descriptor; `vcpu` is an open vCPU.
        let fd = unsafe { ioctl(vcpu, KVM_GET_STATS_FD) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: `fd` was just returned by the kernel and nothing else owns it.
        let file = unsafe { File::from_raw_fd(fd) };
        let mut stats = Self { file, exits: None, emulated: None };
        stats.find_counters()?;
        Ok(stats)
    }

    fn find_counters(&mut self) -> io::Result<()> {
        let mut header = [0; HEADER];
        self.file.read_exact_at(&mut header, 0)?;
        let field = |at: usize| word(&header, at);
        let (name_size, count) = (field(4).min(MAX_NAME), field(8).min(MAX_DESCRIPTORS));
        let (descriptors, data) = (field(16), field(20));
        let mut table = vec![0; (DESCRIPTOR + name_size) * count];
        self.file.read_exact_at(&mut table, descriptors as u64)?;
        for entry in table.chunks_exact(DESCRIPTOR + name_size) {
            let (fixed, name) = entry.split_at(DESCRIPTOR);
            let offset = Some((data + word(fixed, 8)) as u64);
            match name.split(|byte| *byte == 0).next() {
                Some(b"exits") => self.exits = offset,
                Some(b"insn_emulation") => self.emulated = offset,
                _ => {}
            }
        }
        Ok(())
    }

    fn read(&self, offset: Option<u64>) -> Option<u64> {
        let mut value = [0; 8];
        self.file.read_exact_at(&mut value, offset?).ok()?;
        Some(u64::from_le_bytes(value))
    }

    /// Exits to KVM so far.
    pub fn exits(&self) -> Option<u64> {
        self.read(self.exits)
    }

    /// Instructions that KVM emulated so far. On PVM hosts that is every instruction of the guest's kernel; on VMX and
    /// SVM only the few that access devices.
    pub fn emulated_instructions(&self) -> Option<u64> {
        self.read(self.emulated)
    }
}

impl AsRawFd for VcpuStats {
    fn as_raw_fd(&self) -> std::os::fd::RawFd {
        self.file.as_raw_fd()
    }
}

fn word(bytes: &[u8], at: usize) -> usize {
    let mut value = [0; 4];
    for (to, from) in value.iter_mut().zip(bytes.iter().skip(at)) {
        *to = *from;
    }
    usize::try_from(u32::from_le_bytes(value)).unwrap_or(usize::MAX)
}
