// SPDX-License-Identifier: Apache-2.0
//! QEMU's microvm machine with the bundled kernel and initramfs, set up as fast as its documentation makes it.

use coracle_protocol::{BOOT_STAGE_READY, BOOT_TIMER_PORT};

use super::super::measure::Until;
use super::guest::MEMORY_MIB;
use super::{Backend, Choice, Run, Workload};
use crate::cache;
use crate::vmm::host::{Host, Vendor};

/// The one way to run it.
pub fn candidates(choice: &Choice, workload: &Workload) -> Result<Vec<Backend>, String> {
    let version = choice.version()?;
    let host = Host::detect();
    // PVM has no way to hide this from a guest, and QEMU refuses to promise it.
    let cpu = if host.vendor == Vendor::Pvm { "host,-arch-capabilities" } else { "host" };
    let path = |path: std::path::PathBuf| path.display().to_string();
    let append = format!("reboot=k panic=-1 {}", host.guest_command_line());
    // In `-drive` a comma ends a value, and two are one.
    let drive = format!(
        "file={},if=none,id=root,format=raw,read-only=on",
        workload.disk.display().to_string().replace(',', ",,")
    );
    let (memory, kernel, initrd) =
        (MEMORY_MIB.to_string(), path(cache::guest_kernel()), path(cache::guest_initramfs()));
    let port = format!("isa-debugcon,iobase={BOOT_TIMER_PORT:#x},chardev=timer");
    let words = [
        &[&choice.program, "-M", "microvm,pit=off,pic=off,rtc=off,acpi=off,isa-serial=off", "-enable-kvm"][..],
        &["-cpu", cpu, "-smp", "1", "-m", &memory, "-nodefaults", "-no-user-config", "-no-reboot"],
        &["-display", "none", "-global", "virtio-mmio.force-legacy=off", "-device", "virtio-rng-device"],
        &["-device", "virtio-balloon-device,free-page-reporting=on"],
        &["-drive", &drive, "-device", "virtio-blk-device,drive=root"],
        &["-kernel", &kernel, "-initrd", &initrd, "-append", &append],
        // The boot timer: a debug console on its port passes the byte on.
        &["-chardev", "stdio,id=timer,signal=off", "-device", &port],
    ];
    Ok(vec![Backend {
        choice: choice.clone(),
        command: words.concat().into_iter().map(str::to_owned).collect(),
        version,
        notes: vec![
            "its guest has no vsock, which needs /dev/vhost-vsock: one device less than coracle-vmm".to_owned(),
        ],
        beside: Vec::new(),
        way: 0,
        run: Run::Program { root: None, until: Until::Byte(BOOT_STAGE_READY) },
    }])
}
