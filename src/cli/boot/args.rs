// SPDX-License-Identifier: Apache-2.0
//! The words of `coracle boot`, and what they mean.

use std::path::PathBuf;

use clap::{Args, ValueEnum};

use coracle::vmm::boot::ProtocolChoice;
use coracle::vmm::config::{ConsoleKind, MachineConfig};
use coracle::vmm::devices::virtio::block::BlockConfig;
use coracle::vmm::devices::virtio::fs::{FsConfig, MAX_TAG};
use coracle::vmm::devices::virtio::net::{NetBackend, NetConfig};
use coracle::vmm::devices::virtio::pmem::PmemConfig;
use coracle::vmm::devices::virtio::vsock::VsockConfig;
use coracle::vmm::jail::Jail;
use coracle::vmm::snapshot::{self, MEMORY_FILE, RestoreConfig};
use coracle::vmm::virtiofsd::Share;

const EXAMPLES: &str = "\
Examples:
  coracle boot vmlinux --initrd initramfs.cpio           a kernel and its first programs
  coracle boot bzImage --disk root.img --cmdline 'root=/dev/vda rw'
  coracle boot vmlinux --initrd i.cpio --net tap=tap0 --vsock /tmp/vm.sock --cpus 2 --memory 512M
  coracle boot vmlinux --initrd i.cpio --console none --timings=json
  coracle boot vmlinux --initrd i.cpio --profile=boot.svg
  coracle boot --restore ready --vsock /tmp/clone.sock   a clone of a snapshot

On the console, Ctrl-] ends the VM.

Exit status: 0 the guest switched itself off, 100 it asked for a reboot, 101 its kernel panicked,
102 it ended in a triple fault, 103 it was stopped from outside, 125 Coracle failed, 2 wrong usage.";

/// Words that are about a kernel's start, or about what a snapshot decides.
const OF_A_BOOT: [&str; 10] = [
    "kernel",
    "initrd",
    "cpus",
    "memory",
    "cmdline",
    "no_default_cmdline",
    "console",
    "protocol",
    "no_rng",
    "no_balloon",
];

/// Boot a guest from a kernel image, or go on from a snapshot.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub struct BootArgs {
    /// Kernel: an ELF `vmlinux` or a `bzImage`.
    #[arg(required_unless_present = "restore")]
    pub kernel: Option<PathBuf>,
    /// Go on from a snapshot instead, as `coracle snapshot create` makes them. What --disk, --net, --vsock and --pmem name
    /// takes the place of what it had; the rest has to be as it was.
    #[arg(long, value_name = "DIR", conflicts_with_all = OF_A_BOOT)]
    pub restore: Option<PathBuf>,
    /// The snapshot's memory, where it is not beside its state.
    #[arg(long, value_name = "FILE", requires = "restore")]
    pub memory_file: Option<PathBuf>,
    /// The memory that a snapshot of `snapshot create --diff` differs from, where that is not where it was.
    #[arg(long, value_name = "FILE", requires = "restore")]
    pub base_file: Option<PathBuf>,
    /// Leave the asking of the restored guest's agent for a clock and random numbers of its own to somebody else.
    #[arg(long, requires = "restore")]
    pub no_renew: bool,
    /// Initial RAM file system (a cpio archive, compressed or not).
    #[arg(long, value_name = "FILE")]
    pub initrd: Option<PathBuf>,
    /// Attach a raw disk: PATH[,ro][,serial=TEXT]. Repeat for more; they are /dev/vda, /dev/vdb, ...
    #[arg(long = "disk", value_name = "PATH[,ro][,serial=…]", value_parser = disk)]
    pub disks: Vec<BlockConfig>,
    /// Attach a network card: to a TAP device with tap=NAME[,mac=aa:bb:cc:dd:ee:ff], to passt with passt=SOCKET[,mac=…].
    /// Repeat for more.
    #[arg(long = "net", value_name = "tap=NAME[,mac=…]", value_parser = net)]
    pub nets: Vec<NetConfig>,
    /// Sockets between host and guest, by a unix socket at PATH.
    #[arg(long, value_name = "PATH")]
    pub vsock: Option<PathBuf>,
    /// Map a file into the guest as read-only persistent memory. Repeat for more; they are /dev/pmem0, ...
    #[arg(long = "pmem", value_name = "PATH")]
    pub pmem: Vec<PathBuf>,
    /// Share a directory, which the guest mounts as virtiofs by its tag: tag=TEXT,path=DIR[,ro], or tag=TEXT,socket=PATH
    /// for a virtiofsd that runs already. Repeat for more.
    #[arg(long = "fs", value_name = "tag=TEXT,path=DIR[,ro]", value_parser = fs)]
    pub fs: Vec<FsArg>,
    /// Number of vCPUs, 1 to 8.
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub cpus: u32,
    /// Guest memory, in MiB or with a unit (K, M, G).
    #[arg(long, value_name = "SIZE", default_value = "128M", value_parser = memory_mib)]
    pub memory: u64,
    /// Words for the kernel's command line; they come last and so count.
    #[arg(long, value_name = "WORDS", default_value = "", hide_default_value = true)]
    pub cmdline: String,
    /// Give the kernel only the words of --cmdline.
    #[arg(long)]
    pub no_default_cmdline: bool,
    /// The guest's console.
    #[arg(long, value_name = "KIND", value_enum, default_value_t)]
    pub console: ConsoleArg,
    /// Append the console's output to FILE as well.
    #[arg(long, value_name = "FILE")]
    pub log_file: Option<PathBuf>,
    /// Tell when the boot reached which stage, and what it had cost by then: `--timings` or `--timings=json`.
    #[arg(long, value_name = "FORMAT", value_enum, num_args = 0..=1, require_equals = true, default_missing_value = "table")]
    pub timings: Option<TimingsFormat>,
    /// Tell where the guest spends its time; with =FILE also as folded stacks, or as a flame graph where it ends in .svg.
    #[arg(long, value_name = "FILE", num_args = 0..=1, require_equals = true, default_missing_value = "")]
    pub profile: Option<PathBuf>,
    /// Microseconds between two samples of the profile.
    #[arg(long, value_name = "µs", default_value_t = 1000, requires = "profile", value_parser = clap::value_parser!(u64).range(100..))]
    pub profile_interval: u64,
    /// How the kernel is entered.
    #[arg(long, value_name = "PROTOCOL", value_enum, default_value_t)]
    pub protocol: ProtocolArg,
    /// Leave the entropy device out.
    #[arg(long)]
    pub no_rng: bool,
    /// Leave the memory balloon out.
    #[arg(long)]
    pub no_balloon: bool,
    /// Leave the VMM its user's rights and all system calls, for debugging a guest that you trust.
    #[arg(long)]
    pub no_jail: bool,
    /// Also take requests (info, metrics, pause, resume, snapshot, stop) on a unix socket at PATH.
    #[arg(long, value_name = "PATH")]
    pub control: Option<PathBuf>,
}

/// See [`ConsoleKind`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum ConsoleArg {
    /// 16550 serial port (ttyS0)
    #[default]
    Serial,
    /// virtio console (hvc0): faster, knows the terminal's size
    Virtio,
    /// no console
    None,
}

/// How `--timings` prints.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum TimingsFormat {
    /// A line a stage, on standard error
    Table,
    /// An array of objects, on standard error
    Json,
}

/// See [`ProtocolChoice`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum ProtocolArg {
    /// Linux 64-bit protocol where the kernel has it, else PVH
    #[default]
    Auto,
    /// Linux 64-bit boot protocol
    Linux,
    /// PVH
    Pvh,
}

impl BootArgs {
    /// The VM that these words make of a snapshot, where they name one.
    pub fn restore(&self) -> Option<RestoreConfig> {
        let restore = snapshot::state_file(self.restore.as_deref()?);
        let memory = self.memory_file.clone().unwrap_or_else(|| restore.with_file_name(MEMORY_FILE));
        let pmem: Vec<_> = self.pmem.iter().cloned().map(|path| PmemConfig { path }).collect();
        Some(RestoreConfig {
            restore,
            memory,
            base: self.base_file.clone(),
            disks: (!self.disks.is_empty()).then(|| self.disks.clone()),
            nets: (!self.nets.is_empty()).then(|| self.nets.clone()),
            vsock: self.vsock.clone().map(|path| VsockConfig { path, cid: GUEST_CID }),
            pmem: (!pmem.is_empty()).then_some(pmem),
            log_file: self.log_file.clone(),
            launched_ns: None,
            sample_interval_us: self.profile.is_some().then_some(self.profile_interval),
            control: self.control.clone(),
            jail: self.jail(),
        })
    }

    /// The VM that these words describe.
    pub fn config(&self) -> MachineConfig {
        let console = match self.console {
            ConsoleArg::Serial => ConsoleKind::Serial,
            ConsoleArg::Virtio => ConsoleKind::Virtio,
            ConsoleArg::None => ConsoleKind::None,
        };
        let protocol = match self.protocol {
            ProtocolArg::Auto => ProtocolChoice::Auto,
            ProtocolArg::Linux => ProtocolChoice::Linux64,
            ProtocolArg::Pvh => ProtocolChoice::Pvh,
        };
        let queues = u16::try_from(self.cpus).unwrap_or(1).clamp(1, 8);
        MachineConfig {
            kernel: self.kernel.clone().unwrap_or_default(),
            protocol,
            initrd: self.initrd.clone(),
            command_line: self.cmdline.clone(),
            default_command_line: !self.no_default_cmdline,
            cpus: self.cpus,
            memory_mib: self.memory,
            console,
            log_file: self.log_file.clone(),
            disks: self.disks.iter().cloned().map(|disk| BlockConfig { queues, ..disk }).collect(),
            nets: self.nets.clone(),
            vsock: self.vsock.clone().map(|path| VsockConfig { path, cid: GUEST_CID }),
            pmem: self.pmem.iter().cloned().map(|path| PmemConfig { path }).collect(),
            fs: self.fs.iter().filter_map(FsArg::served).cloned().collect(),
            rng: !self.no_rng,
            balloon: !self.no_balloon,
            launched_ns: None,
            sample_interval_us: self.profile.is_some().then_some(self.profile_interval),
            control: self.control.clone(),
            jail: self.jail(),
        }
    }

    fn jail(&self) -> Jail {
        if self.no_jail { Jail::None } else { Jail::Full }
    }
}

/// A directory for the guest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FsArg {
    /// Somebody serves it.
    Served(FsConfig),
    /// It is to be served.
    Share(Share),
}

impl FsArg {
    fn served(&self) -> Option<&FsConfig> {
        match self {
            Self::Served(config) => Some(config),
            Self::Share(_) => None,
        }
    }

    /// What it takes a virtiofsd for.
    pub fn share(&self) -> Option<&Share> {
        match self {
            Self::Served(_) => None,
            Self::Share(share) => Some(share),
        }
    }
}

/// The guest's address on its vsock: the first that is not reserved (virtio 1.3 §5.10.4).
const GUEST_CID: u64 = 3;

/// `PATH[,ro][,serial=TEXT]`; a comma in the path is written twice.
fn disk(text: &str) -> Result<BlockConfig, String> {
    let mut words = split(text);
    let path = words.next().filter(|path| !path.is_empty()).ok_or("a path comes first")?;
    let mut config = BlockConfig { path: path.into(), read_only: false, serial: None, queues: 1 };
    for word in words {
        match word.split_once('=') {
            None if word == "ro" => config.read_only = true,
            Some(("serial", serial)) if (1..=20).contains(&serial.len()) => config.serial = Some(serial.to_owned()),
            Some(("serial", _)) => return Err("a serial has 1 to 20 bytes".to_owned()),
            _ => return Err(format!("unknown option `{word}`: there are `ro` and `serial=TEXT`")),
        }
    }
    Ok(config)
}

/// `tap=NAME[,mac=ADDRESS]` or `passt=SOCKET[,mac=ADDRESS]`.
fn net(text: &str) -> Result<NetConfig, String> {
    let (mut backend, mut mac) = (None, None);
    for word in split(text) {
        let set = match word.split_once('=') {
            Some(("tap", name)) if !name.is_empty() => backend.replace(NetBackend::Tap(name.to_owned())).is_some(),
            Some(("passt", path)) if !path.is_empty() => backend.replace(NetBackend::Passt(path.into())).is_some(),
            Some(("mac", address)) => {
                mac.replace(address.parse().map_err(|error| format!("mac={address}: {error}"))?).is_some()
            }
            _ => {
                let known = "`tap=NAME`, `passt=SOCKET` and `mac=ADDRESS`";
                return Err(format!("unknown option `{word}`: there are {known}"));
            }
        };
        if set {
            return Err(format!("`{word}` comes after another of its kind"));
        }
    }
    Ok(NetConfig { backend: backend.ok_or("`tap=NAME` or `passt=SOCKET` is missing")?, mac })
}

/// `tag=TEXT,path=DIR[,ro]` or `tag=TEXT,socket=PATH`.
fn fs(text: &str) -> Result<FsArg, String> {
    let (mut tag, mut path, mut socket, mut read_only) = (None, None, None, false);
    for word in split(text) {
        let place = match word.split_once('=') {
            None if word == "ro" && !read_only => {
                read_only = true;
                continue;
            }
            Some(("tag", tag)) if !(1..=MAX_TAG).contains(&tag.len()) || tag.contains('/') => {
                return Err(format!("a tag has 1 to {MAX_TAG} bytes, and no `/` among them"));
            }
            Some(("tag", text)) => tag.replace(text.to_owned()),
            Some(("path", text)) if !text.is_empty() => path.replace(text.to_owned()),
            Some(("socket", text)) if !text.is_empty() => socket.replace(text.to_owned()),
            _ => {
                return Err(format!(
                    "unknown option `{word}`: there are `tag=TEXT`, `path=DIR`, `socket=PATH` and `ro`"
                ));
            }
        };
        if place.is_some() {
            return Err(format!("`{word}` comes after another of its kind"));
        }
    }
    let tag = tag.ok_or("`tag=TEXT` is missing")?;
    match (path, socket, read_only) {
        (Some(path), None, read_only) => Ok(FsArg::Share(Share { tag, source: path.into(), read_only })),
        (None, Some(socket), false) => Ok(FsArg::Served(FsConfig { tag, socket: socket.into() })),
        (None, Some(_), true) => Err("who runs virtiofsd decides whether the guest may write".to_owned()),
        _ => Err("one of `path=DIR` and `socket=PATH` is needed".to_owned()),
    }
}

/// Splits at commas; two commas in a row are one that belongs to the word.
fn split(text: &str) -> impl Iterator<Item = String> {
    let mut words = vec![String::new()];
    let mut letters = text.chars().peekable();
    while let Some(letter) = letters.next() {
        if letter == ',' && letters.next_if_eq(&',').is_none() {
            words.push(String::new());
        } else if let Some(word) = words.last_mut() {
            word.push(letter);
        }
    }
    words.into_iter()
}

/// A size in MiB: a number of MiB, or with K, M or G (and an optional B or iB) after it.
fn memory_mib(text: &str) -> Result<u64, String> {
    let digits = text.trim_end_matches(|letter: char| letter.is_ascii_alphabetic());
    let unit = text.get(digits.len()..).unwrap_or_default().to_ascii_lowercase();
    let number: u64 = digits.parse().map_err(|_| "a number of MiB, or one with K, M or G after it".to_owned())?;
    let bytes_shift = match unit.trim_end_matches("ib").trim_end_matches('b') {
        "" | "m" => 20,
        "k" => 10,
        "g" => 30,
        _ => return Err(format!("unknown unit `{unit}`: there are K, M and G")),
    };
    let bytes = number.checked_mul(1 << bytes_shift).ok_or("too large")?;
    if bytes.is_multiple_of(1 << 20) { Ok(bytes >> 20) } else { Err("not a whole number of MiB".to_owned()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn disks_are_read() {
        let config = disk("/a,,b.img,ro,serial=x=1").unwrap();
        assert_eq!(
            (config.path.to_str(), config.read_only, config.serial.as_deref()),
            (Some("/a,b.img"), true, Some("x=1"))
        );
        for text in ["", ",ro", "x,rw", "x,serial=", "x,serial=123456789012345678901"] {
            assert!(disk(text).is_err(), "{text}");
        }
    }

    #[test]
    fn networks_are_read() {
        assert_eq!(net("tap=tap0").unwrap().backend, NetBackend::Tap("tap0".to_owned()));
        assert_eq!(net("passt=/run/a,,b").unwrap().backend, NetBackend::Passt("/run/a,b".into()));
        assert!(net("tap=tap0,mac=02:00:00:00:00:01").unwrap().mac.is_some());
        for text in ["", "tap=", "tap0", "mac=02:00:00:00:00:01", "tap=a,mac=02:00", "tap=a,b=c"] {
            assert!(net(text).is_err(), "{text}");
        }
    }

    #[test]
    fn shared_directories_are_read() {
        let share = |read_only| FsArg::Share(Share { tag: "t".into(), source: "/a,b".into(), read_only });
        assert_eq!((fs("tag=t,path=/a,,b"), fs("ro,path=/a,,b,tag=t")), (Ok(share(false)), Ok(share(true))));
        assert_eq!(fs("tag=t,socket=/s").unwrap().served().map(|config| config.tag.as_str()), Some("t"));
        let long = format!("tag={},path=/a", "x".repeat(37));
        for text in
            ["", "tag=t", "path=/a", "tag=,path=/a", "tag=../t,path=/a", "tag=t,path=/a,socket=/s", "tag=t,path="]
        {
            assert!(fs(text).is_err(), "{text}");
        }
        assert!(fs(&long).is_err() && fs("tag=t,socket=/s,ro").is_err() && fs("tag=t,tag=u,path=/a").is_err());
    }

    #[test]
    fn memory_is_read_with_units() {
        for (text, mib) in [("128", 128), ("128M", 128), ("1G", 1024), ("2GiB", 2048), ("2048k", 2), ("512mb", 512)] {
            assert_eq!(memory_mib(text), Ok(mib), "{text}");
        }
        for text in ["", "G", "1T", "1.5G", "-1", "1000K", "99999999999G"] {
            assert!(memory_mib(text).is_err(), "{text}");
        }
    }
}
