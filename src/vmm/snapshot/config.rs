// SPDX-License-Identifier: Apache-2.0
//! What is said at a restore: where the snapshot is, and what the VM has otherwise than when it was taken.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::SnapshotError;
use super::state::State;
use crate::vmm::config::MachineConfig;
use crate::vmm::devices::virtio::block::BlockConfig;
use crate::vmm::devices::virtio::net::NetConfig;
use crate::vmm::devices::virtio::pmem::PmemConfig;
use crate::vmm::devices::virtio::state::DeviceState;
use crate::vmm::devices::virtio::vsock::VsockConfig;
use crate::vmm::jail::Jail;

/// A microVM from a snapshot. What is named here takes the place of what the snapshot names; it may be another file,
/// and the guest is told of a disk's new size. What is not named has to be as it was.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RestoreConfig {
    /// The state file.
    pub restore: PathBuf,
    /// The memory file.
    pub memory: PathBuf,
    /// Where the memory file is that this one differs from, where that is not to be taken from the state.
    #[serde(default)]
    pub base: Option<PathBuf>,
    /// Block devices, all of them.
    #[serde(default)]
    pub disks: Option<Vec<BlockConfig>>,
    /// Network cards, all of them.
    #[serde(default)]
    pub nets: Option<Vec<NetConfig>>,
    /// Sockets between host and guest.
    #[serde(default)]
    pub vsock: Option<VsockConfig>,
    /// Persistent memory, all of it.
    #[serde(default)]
    pub pmem: Option<Vec<PmemConfig>>,
    /// As [`MachineConfig::log_file`].
    #[serde(default)]
    pub log_file: Option<PathBuf>,
    /// As [`MachineConfig::launched_ns`].
    #[serde(default)]
    pub launched_ns: Option<u64>,
    /// As [`MachineConfig::sample_interval_us`].
    #[serde(default)]
    pub sample_interval_us: Option<u64>,
    /// As [`MachineConfig::control`].
    #[serde(default)]
    pub control: Option<PathBuf>,
    /// As [`MachineConfig::jail`].
    #[serde(default)]
    pub jail: Jail,
}

impl RestoreConfig {
    /// The VM of `state` with what is otherwise now. Files that are named anew need not be those of the snapshot, so
    /// what that knows of them is forgotten.
    ///
    /// # Errors
    /// [`SnapshotError::Devices`], where it is not as many.
    pub fn apply(&self, state: &mut State) -> Result<MachineConfig, SnapshotError> {
        let mut config = state.config.clone();
        replace(&mut config.disks, self.disks.as_ref(), "disks")?;
        replace(&mut config.nets, self.nets.as_ref(), "network cards")?;
        replace(&mut config.pmem, self.pmem.as_ref(), "regions of persistent memory")?;
        // How many queues a disk has is a matter of the machine's shape.
        for (disk, then) in config.disks.iter_mut().zip(&state.config.disks) {
            disk.queues = then.queues;
        }
        for (net, then) in config.nets.iter_mut().zip(&state.config.nets) {
            net.mac = net.mac.or(Some(then.address()));
        }
        match (&mut config.vsock, &self.vsock) {
            (Some(vsock), Some(new)) => vsock.clone_from(new),
            (None, Some(_)) => return Err(SnapshotError::Devices { what: "vsock devices", then: 0, now: 1 }),
            _ => {}
        }
        for device in &mut state.devices {
            match &mut device.device {
                DeviceState::Block { disk, .. } if self.disks.is_some() => *disk = None,
                DeviceState::Pmem { file, .. } if self.pmem.is_some() => *file = None,
                _ => {}
            }
        }
        config.log_file.clone_from(&self.log_file);
        config.launched_ns = self.launched_ns;
        config.sample_interval_us = self.sample_interval_us;
        config.control.clone_from(&self.control);
        config.jail = self.jail;
        Ok(config)
    }
}

fn replace<T: Clone>(old: &mut Vec<T>, new: Option<&Vec<T>>, what: &'static str) -> Result<(), SnapshotError> {
    let Some(new) = new else { return Ok(()) };
    if new.len() != old.len() {
        return Err(SnapshotError::Devices { what, then: old.len(), now: new.len() });
    }
    old.clone_from(new);
    Ok(())
}

/// How a VM comes to be: the first line on the control socket.
#[derive(Clone, Debug)]
pub enum Launch {
    /// From a kernel.
    Boot(Box<MachineConfig>),
    /// From a snapshot.
    Restore(Box<RestoreConfig>),
}

impl Launch {
    /// Reads what [`Launch::line`] wrote, or a person.
    ///
    /// # Errors
    /// Where it describes neither.
    pub fn parse(text: &str) -> serde_json::Result<Self> {
        let value: serde_json::Value = serde_json::from_str(text)?;
        Ok(match value.get("restore") {
            Some(_) => Self::Restore(serde_json::from_value(value)?),
            None => Self::Boot(serde_json::from_value(value)?),
        })
    }

    /// The line, with its end.
    ///
    /// # Errors
    /// A path that is not UTF-8.
    pub fn line(&self) -> serde_json::Result<Vec<u8>> {
        let mut line = match self {
            Self::Boot(config) => serde_json::to_vec(config)?,
            Self::Restore(config) => serde_json::to_vec(config)?,
        };
        line.push(b'\n');
        Ok(line)
    }

    /// `CLOCK_MONOTONIC` in nanoseconds when the VMM was launched.
    pub fn launched_ns(&mut self) -> &mut Option<u64> {
        match self {
            Self::Boot(config) => &mut config.launched_ns,
            Self::Restore(config) => &mut config.launched_ns,
        }
    }

    /// How the VM's process is locked up.
    pub fn jail(&self) -> Jail {
        match self {
            Self::Boot(config) => config.jail,
            Self::Restore(config) => config.jail,
        }
    }

    /// Has the VM's process remove its sockets itself, since there is no owner to do so.
    pub fn without_owner(&mut self) {
        let jail = match self {
            Self::Boot(config) => &mut config.jail,
            Self::Restore(config) => &mut config.jail,
        };
        if *jail == Jail::Full {
            *jail = Jail::Alone;
        }
    }

    /// Where others than the owner can connect.
    pub fn control(&self) -> Option<&PathBuf> {
        match self {
            Self::Boot(config) => config.control.as_ref(),
            Self::Restore(config) => config.control.as_ref(),
        }
    }

    /// The vsock, where one is named.
    pub fn vsock(&self) -> Option<&VsockConfig> {
        match self {
            Self::Boot(config) => config.vsock.as_ref(),
            Self::Restore(config) => config.vsock.as_ref(),
        }
    }
}

impl From<MachineConfig> for Launch {
    fn from(config: MachineConfig) -> Self {
        Self::Boot(Box::new(config))
    }
}

impl From<RestoreConfig> for Launch {
    fn from(config: RestoreConfig) -> Self {
        Self::Restore(Box::new(config))
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::state;
    use super::*;

    fn request(more: &str) -> RestoreConfig {
        let text = format!(r#"{{"restore": "state", "memory": "memory"{more}}}"#);
        let Launch::Restore(request) = Launch::parse(&text).unwrap() else { panic!("no restore: {text}") };
        *request
    }

    #[test]
    fn what_is_named_anew_takes_the_place_of_what_was() {
        let mut state = state();
        state.config.disks = serde_json::from_str(r#"[{"path": "old", "queues": 4}]"#).unwrap();
        state.config.nets = serde_json::from_str(r#"[{"backend": {"tap": "tap0"}}]"#).unwrap();
        let same = request("").apply(&mut state).unwrap();
        assert_eq!((same.disks[0].path.to_str(), same.disks[0].queues), (Some("old"), 4));
        let more = r#", "disks": [{"path": "new", "read_only": true}], "nets": [{"backend": {"tap": "tap9"}}],
            "control": "c.sock", "launched_ns": 7"#;
        let config = request(more).apply(&mut state).unwrap();
        let disk = &config.disks[0];
        assert_eq!((disk.path.to_str(), disk.read_only, disk.queues), (Some("new"), true, 4));
        assert_eq!(config.nets[0].address(), state.config.nets[0].address(), "a card keeps its address");
        assert_eq!((config.control, config.launched_ns), (Some("c.sock".into()), Some(7)));
    }

    #[test]
    fn another_number_of_devices_is_refused() {
        for (more, what) in [
            (r#", "disks": [{"path": "new"}]"#, "disks"),
            (r#", "nets": [{"backend": {"tap": "tap9"}}]"#, "network cards"),
            (r#", "pmem": [{"path": "new"}]"#, "regions of persistent memory"),
            (r#", "vsock": {"path": "new"}"#, "vsock devices"),
        ] {
            let error = request(more).apply(&mut state()).unwrap_err();
            assert!(
                matches!(error, SnapshotError::Devices { what: found, then: 0, now: 1 } if found == what),
                "{error}"
            );
        }
    }

    #[test]
    fn a_line_says_whether_it_is_a_boot() {
        let config = state().config;
        let line = Launch::from(config.clone()).line().unwrap();
        assert!(
            matches!(Launch::parse(std::str::from_utf8(&line).unwrap()), Ok(Launch::Boot(same)) if *same == config)
        );
        let line = Launch::from(request("")).line().unwrap();
        assert!(matches!(Launch::parse(std::str::from_utf8(&line).unwrap()), Ok(Launch::Restore(_))));
        assert!(Launch::parse(r#"{"restore": "state", "memory": "memory", "cpus": 2}"#).is_err());
    }
}
