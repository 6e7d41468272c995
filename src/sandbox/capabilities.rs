// SPDX-License-Identifier: Apache-2.0
//! Capabilities by their names and as the kernel's mask (`linux/capability.h`, capabilities(7)).

/// Names without `CAP_`, in the order of their numbers.
pub const NAMES: [&str; 41] = [
    "CHOWN",
    "DAC_OVERRIDE",
    "DAC_READ_SEARCH",
    "FOWNER",
    "FSETID",
    "KILL",
    "SETGID",
    "SETUID",
    "SETPCAP",
    "LINUX_IMMUTABLE",
    "NET_BIND_SERVICE",
    "NET_BROADCAST",
    "NET_ADMIN",
    "NET_RAW",
    "IPC_LOCK",
    "IPC_OWNER",
    "SYS_MODULE",
    "SYS_RAWIO",
    "SYS_CHROOT",
    "SYS_PTRACE",
    "SYS_PACCT",
    "SYS_ADMIN",
    "SYS_BOOT",
    "SYS_NICE",
    "SYS_RESOURCE",
    "SYS_TIME",
    "SYS_TTY_CONFIG",
    "MKNOD",
    "LEASE",
    "AUDIT_WRITE",
    "AUDIT_CONTROL",
    "SETFCAP",
    "MAC_OVERRIDE",
    "MAC_ADMIN",
    "SYSLOG",
    "WAKE_ALARM",
    "BLOCK_SUSPEND",
    "AUDIT_READ",
    "PERFMON",
    "BPF",
    "CHECKPOINT_RESTORE",
];

/// All of them.
pub const ALL: u64 = (1 << NAMES.len()) - 1;

/// What Docker leaves a container (moby `oci/caps/defaults.go`).
pub const DEFAULT: u64 = 0xa804_25fb;

/// The mask of one, by its name in any case, with or without `CAP_`; of all for `ALL`.
pub fn mask(name: &str) -> Option<u64> {
    let name = name.to_ascii_uppercase();
    let name = name.strip_prefix("CAP_").unwrap_or(&name);
    match name {
        "ALL" => Some(ALL),
        _ => NAMES.iter().position(|known| *known == name).map(|number| 1 << number),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_have_the_kernel_s_numbers() {
        let default = [
            "chown",
            "dac_override",
            "fsetid",
            "fowner",
            "mknod",
            "net_raw",
            "setgid",
            "setuid",
            "setfcap",
            "setpcap",
            "net_bind_service",
            "sys_chroot",
            "kill",
            "CAP_AUDIT_WRITE",
        ];
        assert_eq!(default.iter().filter_map(|name| mask(name)).fold(0, |all, one| all | one), DEFAULT);
        assert_eq!((mask("SYS_ADMIN"), mask("cap_bpf"), mask("all")), (Some(1 << 21), Some(1 << 39), Some(ALL)));
        assert_eq!((mask("SYS"), mask("CAP_CAP_KILL")), (None, None));
    }
}
