// SPDX-License-Identifier: Apache-2.0
//! The kinds of sandbox that are compared, and how a user names them.

use std::fmt;
use std::str::FromStr;

use super::super::machine;

/// A way to run a command of an image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// `coracle run`, as users have it.
    Vm,
    /// `coracle run` without a template.
    VmCold,
    /// `coracle run --isolation container`.
    Container,
    /// `crun run` of an OCI bundle.
    Crun,
    /// `runc run` of an OCI bundle.
    Runc,
    /// `podman run`.
    Podman,
    /// `msb run`, of microsandbox.
    Microsandbox,
    /// `coracle-vmm` alone, and what its guest says of its stages.
    Vmm,
    /// QEMU's microvm machine with the same kernel and initramfs, up to where the agent is ready.
    QemuMicrovm,
}

/// What is no choice of a backend.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum UnknownChoice {
    /// A name that is none.
    #[error("it is one of vm, vm-cold, container, crun, runc, podman, microsandbox, vmm, qemu-microvm")]
    Name,
    /// A program for what is our own.
    #[error("it is Coracle's own: no other program can be named for it")]
    Own,
    /// An equals sign with nothing behind it.
    #[error("behind `=` is the program: its path, or its name")]
    NoProgram,
}

impl Kind {
    /// All of them, in the order of reports.
    pub const ALL: [Self; 9] = [
        Self::Vm,
        Self::VmCold,
        Self::Container,
        Self::Crun,
        Self::Runc,
        Self::Podman,
        Self::Microsandbox,
        Self::Vmm,
        Self::QemuMicrovm,
    ];

    /// Its name on the command line and in reports.
    pub fn name(self) -> &'static str {
        match self {
            Self::Vm => "vm",
            Self::VmCold => "vm-cold",
            Self::Container => "container",
            Self::Crun => "crun",
            Self::Runc => "runc",
            Self::Podman => "podman",
            Self::Microsandbox => "microsandbox",
            Self::Vmm => "vmm",
            Self::QemuMicrovm => "qemu-microvm",
        }
    }

    /// What it is, for who reads a report.
    pub fn what(self) -> &'static str {
        match self {
            Self::Vm => "coracle run, as users have it",
            Self::VmCold => "coracle run, booted from the kernel",
            Self::Container => "coracle run --isolation container",
            Self::Crun => "crun run, of a bundle that lies ready",
            Self::Runc => "runc run, of a bundle that lies ready",
            Self::Podman => "podman run, of an image that it has",
            Self::Microsandbox => "msb run, of an image that it has",
            Self::Vmm => "coracle-vmm alone, cold, to the agent and on to the command",
            Self::QemuMicrovm => "QEMU microvm, same kernel and initramfs, to the agent only",
        }
    }

    /// The program that is started where the user names none; `None` for Coracle's own.
    pub fn program(self) -> Option<&'static str> {
        match self {
            Self::Vm | Self::VmCold | Self::Container | Self::Vmm => None,
            Self::Crun => Some("crun"),
            Self::Runc => Some("runc"),
            Self::Podman => Some("podman"),
            Self::Microsandbox => Some("msb"),
            Self::QemuMicrovm => Some("qemu-system-x86_64"),
        }
    }

    /// Whether it keeps images of its own, and takes one from an archive.
    pub fn keeps_images(self) -> bool {
        matches!(self, Self::Podman | Self::Microsandbox)
    }

    /// Whether it is a namespace container.
    pub fn is_container(self) -> bool {
        matches!(self, Self::Container | Self::Crun | Self::Runc | Self::Podman)
    }

    /// Runs after which it is as quick as it will be: a fourth start is from the image's template.
    pub(super) fn first_runs(self) -> usize {
        if self == Self::Vm { 4 } else { 1 }
    }

    /// Whether it is our own command line, which tells how far it has come.
    pub fn tells_milestones(self) -> bool {
        matches!(self, Self::Vm | Self::VmCold | Self::Container)
    }

    /// Whether it can have an address that the host reaches, and so a network.
    pub fn can_serve(self) -> bool {
        matches!(self, Self::Vm | Self::VmCold | Self::Container | Self::Podman)
    }

    /// Whether its figures are of the boot alone, which no container has.
    pub fn is_boot(self) -> bool {
        matches!(self, Self::Vmm | Self::QemuMicrovm)
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// A backend as the user asks for it: `NAME`, or `NAME=PROGRAM` where it is not Coracle's own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Choice {
    /// Which.
    pub kind: Kind,
    /// Name or path of the program that is started; empty for Coracle's own.
    pub program: String,
}

impl Choice {
    /// What its program says of its version.
    ///
    /// # Errors
    /// It is not there: why, and what to do.
    pub fn version(&self) -> Result<String, String> {
        let install = match self.kind {
            kind if kind.program() != Some(&self.program) => None,
            Kind::Microsandbox => Some("pip install microsandbox".to_owned()),
            Kind::QemuMicrovm => Some("apt-get install qemu-system-x86".to_owned()),
            kind => Some(format!("apt-get install {kind}")),
        };
        machine::version(&self.program).ok_or_else(|| match install {
            Some(how) => format!("it is not installed: {how}"),
            None => format!("`{} --version` does not work", self.program),
        })
    }
}

impl From<Kind> for Choice {
    fn from(kind: Kind) -> Self {
        Self { kind, program: kind.program().unwrap_or_default().to_owned() }
    }
}

impl FromStr for Choice {
    type Err = UnknownChoice;

    fn from_str(text: &str) -> Result<Self, UnknownChoice> {
        let (name, program) = text.split_once('=').map_or((text, None), |(name, program)| (name, Some(program)));
        let kind = Kind::ALL.into_iter().find(|kind| kind.name() == name).ok_or(UnknownChoice::Name)?;
        match (program, kind.program()) {
            (None, _) => Ok(kind.into()),
            (Some(_), None) => Err(UnknownChoice::Own),
            (Some(""), _) => Err(UnknownChoice::NoProgram),
            (Some(program), _) => Ok(Self { kind, program: program.to_owned() }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_back() {
        for kind in Kind::ALL {
            assert_eq!(kind.name().parse(), Ok(Choice::from(kind)));
            let own = kind.program().is_none();
            let named = format!("{kind}=/opt/a=b").parse();
            assert_eq!(
                named,
                if own { Err(UnknownChoice::Own) } else { Ok(Choice { kind, program: "/opt/a=b".into() }) }
            );
        }
        assert_eq!("docker".parse::<Choice>(), Err(UnknownChoice::Name));
        assert_eq!("crun=".parse::<Choice>(), Err(UnknownChoice::NoProgram));
        assert!(Kind::ALL.iter().all(|kind| UnknownChoice::Name.to_string().contains(kind.name())));
    }
}
