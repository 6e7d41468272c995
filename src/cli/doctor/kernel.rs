// SPDX-License-Identifier: Apache-2.0
//! What the host's kernel offers beside KVM.

use std::fs::{self, OpenOptions};
use std::io;
use std::path::Path;

use io_uring::IoUring;

use super::Check;

pub fn checks() -> Vec<Check> {
    vec![
        tun(),
        file_system("overlay", "containers in namespaces get no writable layer over a shared image"),
        file_system("erofs", "containers in namespaces cannot mount an image (microVMs mount it in the guest)"),
        cgroups(Path::new("/sys/fs/cgroup")),
        vhost(),
        huge_pages(Path::new("/sys/kernel/mm/transparent_hugepage/shmem_enabled")),
        userfaultfd(),
        io_uring(),
    ]
}

fn tun() -> Check {
    let (name, cost) = ("TUN", "no guest can have a network (--net)");
    match OpenOptions::new().read(true).write(true).open("/dev/net/tun") {
        Ok(_) => Check::ok(name, "/dev/net/tun opens"),
        Err(error) => {
            let remedy = match error.kind() {
                io::ErrorKind::PermissionDenied => {
                    "sudo chmod 666 /dev/net/tun (in a container: --device /dev/net/tun)"
                }
                _ => "sudo modprobe tun (in a container: --device /dev/net/tun)",
            };
            Check::warning(name, format!("/dev/net/tun: {error}"), cost, remedy)
        }
    }
}

fn file_system(name: &'static str, cost: &str) -> Check {
    let known = fs::read_to_string("/proc/filesystems").unwrap_or_default();
    if known.split_whitespace().any(|word| word == name) {
        return Check::ok(name, "in the kernel");
    }
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let modules = Path::new("/lib/modules").join(release.trim()).join("modules.dep");
    if fs::read_to_string(modules).is_ok_and(|list| list.contains(&format!("/{name}.ko"))) {
        return Check::ok(name, "a module, loaded when first used");
    }
    Check::warning(name, "this kernel does not have it", cost, format!("sudo modprobe {name}, or another kernel"))
}

fn cgroups(root: &Path) -> Check {
    let (name, cost) = ("cgroup", "no limits on a VM's or container's CPU, memory, I/O and processes");
    let Ok(controllers) = fs::read_to_string(root.join("cgroup.controllers")) else {
        let found = match root.join("unified").exists() {
            true => "v1, with a v2 tree beside it that has no controllers",
            false if root.join("memory").exists() => "v1",
            false => "none is mounted at /sys/fs/cgroup",
        };
        return Check::warning(name, found, cost, "boot the host with systemd.unified_cgroup_hierarchy=1");
    };
    let present: Vec<&str> = controllers.split_whitespace().collect();
    let lacking: Vec<&str> = ["cpu", "memory", "io", "pids"].into_iter().filter(|c| !present.contains(c)).collect();
    if lacking.is_empty() {
        return Check::ok(name, format!("v2 ({})", present.join(" ")));
    }
    let found = format!("v2 without the controllers {}", lacking.join(", "));
    Check::warning(name, found, cost, "delegate them from the parent group's cgroup.subtree_control")
}

/// Reported because other VMMs need it and people look for it here.
fn vhost() -> Check {
    let has = |node: &str| if Path::new(node).exists() { "present" } else { "absent" };
    let (net, vsock) = (has("/dev/vhost-net"), has("/dev/vhost-vsock"));
    Check::ok("vhost", format!("net {net}, vsock {vsock}; not needed: both devices run in coracle-vmm"))
}

/// Guest memory is a memfd, to which the setting for shared memory applies and not the general one.
fn huge_pages(setting: &Path) -> Check {
    let (name, cost) = ("huge pages", "guest memory in 4 KiB pages: more TLB misses and page faults");
    let text = fs::read_to_string(setting).unwrap_or_default();
    match text.split_once('[').and_then(|(_, rest)| rest.split_once(']')) {
        Some((mode @ ("always" | "advise" | "within_size" | "force"), _)) => {
            Check::ok(name, format!("transparent, for shared memory: {mode}"))
        }
        Some((mode, _)) => Check::warning(
            name,
            format!("{mode}, for shared memory"),
            cost,
            format!("echo advise | sudo tee {}", setting.display()),
        ),
        None => Check::warning(name, "this kernel has no transparent huge pages", cost, "another kernel"),
    }
}

fn userfaultfd() -> Check {
    let name = "userfaultfd";
    if OpenOptions::new().read(true).write(true).open("/dev/userfaultfd").is_ok() {
        return Check::ok(name, "/dev/userfaultfd opens");
    }
    // SAFETY: the call takes flags only; the descriptor it returns is owned by nobody else.
    let fd = unsafe { libc::syscall(libc::SYS_userfaultfd, libc::O_CLOEXEC) };
    let error = io::Error::last_os_error();
    if let Ok(fd) = i32::try_from(fd)
        && fd >= 0
    {
        // SAFETY: `fd` was just returned to this function and is closed once.
        unsafe { libc::close(fd) };
        return Check::ok(name, "the system call is allowed");
    }
    let cost = "a snapshot's memory is read as a whole before the guest resumes";
    Check::warning(name, error.to_string(), cost, "sudo sysctl vm.unprivileged_userfaultfd=1")
}

fn io_uring() -> Check {
    match IoUring::new(2) {
        Ok(_) => Check::ok("io_uring", "allowed"),
        Err(error) => {
            let cost = "disks fall back to preadv and pwritev: fewer requests in flight";
            Check::warning("io_uring", error.to_string(), cost, "sudo sysctl kernel.io_uring_disabled=0")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::Status;
    use super::*;

    #[test]
    fn cgroup_versions_are_told_apart() {
        let root = tempfile::tempdir().unwrap();
        assert!(cgroups(root.path()).found.contains("none is mounted"));
        fs::create_dir(root.path().join("memory")).unwrap();
        assert_eq!(cgroups(root.path()).found, "v1");
        fs::create_dir(root.path().join("unified")).unwrap();
        assert!(cgroups(root.path()).found.contains("v2 tree beside it"));
        fs::write(root.path().join("cgroup.controllers"), "cpu memory pids\n").unwrap();
        assert!(cgroups(root.path()).found.ends_with("controllers io"));
        fs::write(root.path().join("cgroup.controllers"), "cpuset cpu io memory pids\n").unwrap();
        assert_eq!(cgroups(root.path()).status, Status::Ok);
    }

    #[test]
    fn the_bracketed_huge_page_mode_counts() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let mode = |text: &str| {
            fs::write(file.path(), text).unwrap();
            huge_pages(file.path())
        };
        assert_eq!(mode("always within_size [advise] never deny force\n").status, Status::Ok);
        assert_eq!(mode("always within_size advise [never] deny force\n").status, Status::Warning);
        assert!(mode("").found.contains("no transparent huge pages"));
    }

    #[test]
    fn a_file_system_that_no_kernel_has_is_not_found() {
        assert_eq!(file_system("coracle-no-such-fs", "cost").status, Status::Warning);
    }
}
