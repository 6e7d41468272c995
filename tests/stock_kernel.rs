// SPDX-License-Identifier: Apache-2.0
//! A distribution's own kernel: it finds the devices through ACPI, with the modules that it comes with.

mod common;

use std::collections::HashMap;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use common::{CORACLE, Guest, cache, eventually, host, sha256};

const DRIVERS: [&str; 6] =
    ["virtio_mmio", "virtio_blk", "virtio-rng", "virtio_balloon", "vmw_vsock_virtio_transport", "virtio_pmem"];

const INIT: &str = "#!/bin/busybox sh
/bin/busybox --install -s /bin
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
exec < /dev/console > /dev/console 2>&1
for module in $(cat /modules/order); do insmod /modules/$module || echo cannot load $module; done
exec setsid cttyhack sh
";

/// Where scripts/debian-kernel has put the newest one.
fn debian_kernel() -> PathBuf {
    let entries = fs::read_dir(cache("debian-kernel")).expect("a folder").map(|entry| entry.expect("an entry").path());
    entries.filter(|path| path.join("release").exists()).max().expect("a kernel from scripts/debian-kernel")
}

/// `modules.dep` as a map from a module's name to its path and those of what it needs.
fn dependencies(folder: &Path) -> HashMap<String, Vec<String>> {
    let text = fs::read_to_string(folder.join("modules.dep")).expect("modules.dep");
    let parse = |line: &str| -> Option<(String, Vec<String>)> {
        let (module, needed) = line.split_once(':')?;
        let paths = std::iter::once(module).chain(needed.split_whitespace()).map(str::to_owned).collect();
        Some((name(module), paths))
    };
    text.lines().filter_map(parse).collect()
}

fn name(path: &str) -> String {
    let file = path.rsplit('/').next().expect("a name");
    file.split('.').next().expect("a stem").replace('_', "-")
}

/// Packs an initramfs with busybox and the drivers, in an order in which they load.
fn initramfs(kernel: &Path, folder: &Path) -> PathBuf {
    let release = fs::read_to_string(kernel.join("release")).expect("a release");
    let modules = kernel.join("lib/modules").join(release.trim());
    let root = folder.join("root");
    for directory in ["bin", "modules", "proc", "sys", "dev"] {
        fs::create_dir_all(root.join(directory)).unwrap();
    }
    fs::copy("/bin/busybox", root.join("bin/busybox")).unwrap();
    fs::write(root.join("init"), INIT).unwrap();
    fs::set_permissions(root.join("init"), fs::Permissions::from_mode(0o755)).unwrap();
    let needed = dependencies(&modules);
    let mut order: Vec<String> = Vec::new();
    for driver in DRIVERS {
        // What is needed most is named last.
        for path in needed.get(&name(driver)).unwrap_or_else(|| panic!("no module {driver}")).iter().rev() {
            let file = path.rsplit('/').next().unwrap().to_owned();
            if !order.contains(&file) {
                fs::copy(modules.join(path), root.join("modules").join(&file)).unwrap();
                order.push(file);
            }
        }
    }
    fs::write(root.join("modules/order"), order.join("\n")).unwrap();
    let archive = folder.join("initramfs.cpio");
    let pack = format!("cd {} && find . | cpio --quiet -o -H newc > {}", root.display(), archive.display());
    host("sh", &["-c", &pack]);
    archive
}

/// Boots Debian's kernel with 2 vCPUs, with an initramfs that is made in `folder`, and more words.
fn boot(folder: &Path, more: &[&str]) -> Guest {
    let kernel = debian_kernel();
    let initrd = initramfs(&kernel, folder);
    let vmlinuz = kernel.join("vmlinuz");
    let words = [vmlinuz.to_str().unwrap(), "--initrd", initrd.to_str().unwrap(), "--memory", "512M", "--cpus", "2"];
    // Without the devices on the command line, there is but one way to find them.
    let line = ["--no-default-cmdline", "--cmdline", "console=ttyS0 reboot=k panic=-1 mitigations=off"];
    Guest::start([&words[..], &line, more].concat())
}

#[test]
#[ignore = "needs hardware virtualization: a PVM host cannot run a stock kernel"]
fn a_stock_debian_kernel_finds_every_device_through_acpi() {
    let folder = tempfile::tempdir().unwrap();
    let (disk, pmem) = (folder.path().join("disk"), folder.path().join("pmem"));
    fs::write(&disk, vec![0; 1 << 20]).unwrap();
    fs::write(&pmem, vec![b'p'; 2 << 20]).unwrap();
    let mut guest = boot(
        folder.path(),
        &[
            "--disk",
            &format!("{},serial=STOCK", disk.display()),
            "--vsock",
            folder.path().join("vsock").to_str().unwrap(),
            "--pmem",
            pmem.to_str().unwrap(),
        ],
    );
    guest.log_in();
    assert_eq!(guest.sh("nproc").trim(), "2");
    assert!(guest.sh("ls /sys/bus/platform/devices").contains("LNRO0005:00"));
    for driver in ["virtio_blk", "virtio_rng", "virtio_balloon", "vmw_vsock_virtio_transport", "virtio_pmem"] {
        let bound = guest.sh(&format!("ls /sys/bus/virtio/drivers/{driver}"));
        assert!(bound.contains("virtio"), "{driver}: {bound}");
    }
    assert_eq!(guest.sh("cat /sys/block/vda/serial").trim(), "STOCK");
    guest.sh("dd if=/dev/hwrng of=/dev/vda bs=4k count=16 iflag=fullblock conv=fsync 2>/dev/null");
    let inside = guest.sh("sha256sum /dev/vda").split_whitespace().next().unwrap().to_owned();
    assert_eq!(sha256(&disk), inside);
    // The kernel's own way to switch off: the ACPI sleep control register.
    guest.type_in("poweroff -f\n");
    assert_eq!(guest.wait().0.code(), Some(0));
}

#[test]
#[ignore = "needs hardware virtualization: a PVM host cannot run a stock kernel"]
fn a_restored_stock_kernel_learns_that_it_is_a_clone() {
    let folder = tempfile::tempdir().unwrap();
    let word = |name: &str| folder.path().join(name).display().to_string();
    let mut guest = boot(folder.path(), &["--control", &word("control")]);
    guest.log_in();
    let reseeded = "dmesg | grep -c 'reseeded due to virtual machine fork' || true";
    assert_eq!(guest.sh(reseeded).trim(), "0");
    host(CORACLE, &["snapshot", "create", "--stop", &word("control"), &word("snapshot")]);
    assert_eq!(guest.wait().0.code(), Some(103));
    let mut clone = Guest::start(["--restore".to_owned(), word("snapshot")]);
    eventually("its generator starts anew", || (clone.sh(reseeded).trim() == "1").then_some(()));
    assert_eq!(clone.sh("nproc").trim(), "2");
    clone.type_in("poweroff -f\n");
    assert_eq!(clone.wait().0.code(), Some(0));
}
