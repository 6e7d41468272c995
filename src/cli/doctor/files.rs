// SPDX-License-Identifier: Apache-2.0
//! Limits, memory, disk space, programs, and what has been built for the guest.

use std::env;
use std::ffi::CString;
use std::fs;
use std::io;
use std::mem::MaybeUninit;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use coracle::cache;

use super::Check;

const GIB: f64 = 1024.0 * 1024.0 * 1024.0;

/// What a fleet of microVMs runs out of.
pub fn resources() -> Vec<Check> {
    vec![open_files(), memory(), disk()]
}

fn open_files() -> Check {
    let mut limit = MaybeUninit::<libc::rlimit>::uninit();
    // SAFETY: the pointer is to memory of the right type, which the call fills.
    if unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, limit.as_mut_ptr()) } != 0 {
        return Check::warning(
            "open files",
            io::Error::last_os_error().to_string(),
            "the limit is not known",
            "ulimit -n",
        );
    }
    // SAFETY: the call succeeded, so the value is there.
    let limit = unsafe { limit.assume_init() };
    let found = format!("{} ({} at most)", limit.rlim_cur, limit.rlim_max);
    if limit.rlim_max >= 4096 {
        return Check::ok("open files", found);
    }
    Check::warning("open files", found, "one process cannot supervise many microVMs", "ulimit -Hn 65536 (as root)")
}

fn memory() -> Check {
    let text = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let Some(kib) = available_memory(&text) else {
        return Check::warning(
            "memory",
            "MemAvailable is not in /proc/meminfo",
            "it is not known what fits",
            "a newer kernel",
        );
    };
    #[expect(clippy::cast_precision_loss, reason = "shown with one decimal")]
    let gib = kib as f64 * 1024.0 / GIB;
    let found = format!("{gib:.1} GiB available");
    if gib >= 0.5 {
        return Check::ok("memory", found);
    }
    Check::warning("memory", found, "few or no microVMs fit", "end other programs, or add memory")
}

fn available_memory(meminfo: &str) -> Option<u64> {
    meminfo.lines().find_map(|line| line.strip_prefix("MemAvailable:")?.split_whitespace().next()?.parse().ok())
}

fn disk() -> Check {
    let cache = cache::directory();
    // The cache need not exist yet: what counts is the file system that it will be made on.
    let existing = cache.ancestors().find(|path| path.exists()).unwrap_or(Path::new("/"));
    match free_bytes(existing) {
        Ok(bytes) => {
            let found = format!("{:.1} GiB free for {}", bytes / GIB, cache.display());
            if bytes >= 4.0 * GIB {
                return Check::ok("disk", found);
            }
            Check::warning(
                "disk",
                found,
                "building the guest kernel needs about 4 GiB",
                "set CORACLE_CACHE to a larger disk",
            )
        }
        Err(error) => {
            let found = format!("{}: {error}", existing.display());
            Check::warning("disk", found, "nothing can be kept there", "set CORACLE_CACHE to a directory you can write")
        }
    }
}

#[expect(clippy::cast_precision_loss, reason = "shown with one decimal")]
fn free_bytes(path: &Path) -> io::Result<f64> {
    let path = CString::new(path.as_os_str().as_bytes())?;
    let mut stat = MaybeUninit::<libc::statvfs>::uninit();
    // SAFETY: the path ends with NUL, and the other pointer is to memory of the right type, which the call fills.
    if unsafe { libc::statvfs(path.as_ptr(), stat.as_mut_ptr()) } != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the call succeeded, so the value is there.
    let stat = unsafe { stat.assume_init() };
    Ok(stat.f_bavail as f64 * stat.f_frsize as f64)
}

/// Programs that Coracle executes, or that its tests and benchmarks compare with.
const PROGRAMS: &[(&[&str], &str, &str)] = &[
    (&["ip"], "iproute2", "TAP devices have to be made some other way"),
    (&["qemu-system-x86_64"], "qemu-system-x86", "no emulated host (scripts/svm-host), no QEMU to compare with"),
    (&["mkfs.ext4"], "e2fsprogs", "no ext4 disks for guests"),
    (&["nft"], "nftables", "no networks of containers as root"),
    (&["passt"], "passt", "no network for containers without root"),
    (&["virtiofsd"], "qemu-system-common", "no files of the host and no volumes in guests"),
    (&["crun", "runc"], "crun", "no namespace containers to compare with (to come)"),
];

/// Directories that are not in every user's `PATH`, or in none's.
const MORE_DIRECTORIES: &[&str] = &["/usr/sbin", "/sbin", "/usr/libexec", "/usr/lib/qemu"];

/// Looks for the programs; runs none of them.
pub fn programs() -> Vec<Check> {
    let path = env::var_os("PATH").unwrap_or_default();
    let directories: Vec<PathBuf> = env::split_paths(&path).chain(MORE_DIRECTORIES.iter().map(PathBuf::from)).collect();
    let check = |&(names, package, cost): &(&[&'static str], &str, &str)| {
        let name = names.first().copied().unwrap_or_default();
        match names.iter().find_map(|name| find_program(&directories, name)) {
            Some(found) => Check::ok(name, found.display().to_string()),
            None => Check::warning(name, "not found", cost, format!("sudo apt-get install {package}")),
        }
    };
    PROGRAMS.iter().map(check).collect()
}

fn find_program(directories: &[PathBuf], name: &str) -> Option<PathBuf> {
    directories.iter().map(|directory| directory.join(name)).find(|path| {
        fs::metadata(path).is_ok_and(|metadata| metadata.is_file() && metadata.permissions().mode() & 0o111 != 0)
    })
}

/// What `coracle boot` takes where it is given no kernel of the user's own.
pub fn guest() -> Vec<Check> {
    vec![
        built("kernel", &cache::guest_kernel(), "bring a kernel of your own", "guest/kernel/build"),
        built("initramfs", &cache::guest_initramfs(), "bring an initramfs of your own", "scripts/build-initramfs"),
    ]
}

fn built(name: &'static str, path: &Path, cost: &str, remedy: &str) -> Check {
    match fs::metadata(path) {
        Ok(metadata) if metadata.len() > 0 => Check::ok(name, path.display().to_string()),
        Ok(_) => Check::warning(name, format!("{} is empty", path.display()), cost, remedy),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            Check::warning(name, format!("not built: no {}", path.display()), cost, remedy)
        }
        Err(error) => Check::warning(name, format!("{}: {error}", path.display()), cost, remedy),
    }
}

#[cfg(test)]
mod tests {
    use super::super::Status;
    use super::*;

    #[test]
    fn available_memory_is_read_in_kib() {
        assert_eq!(available_memory("MemTotal: 9 kB\nMemAvailable:   23784 kB\n"), Some(23784));
        assert_eq!(available_memory("MemTotal: 9 kB\n"), None);
    }

    #[test]
    fn a_program_must_be_executable() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("prog");
        fs::write(&path, "").unwrap();
        let directories = [directory.path().to_owned()];
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
        assert_eq!(find_program(&directories, "prog"), None);
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        assert_eq!(find_program(&directories, "prog"), Some(path));
    }

    #[test]
    fn an_empty_artifact_is_not_a_kernel() {
        let file = tempfile::NamedTempFile::new().unwrap();
        assert_eq!(built("kernel", file.path(), "", "").status, Status::Warning);
        fs::write(file.path(), "x").unwrap();
        assert_eq!(built("kernel", file.path(), "", "").status, Status::Ok);
    }
}
