// SPDX-License-Identifier: Apache-2.0
//! What a probe is, and all of them.

use std::io;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::{boundary, reach, shared, sys};

/// What a probe saw.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", tag = "kind", content = "value")]
pub enum Seen {
    /// It read this.
    Value(String),
    /// It counted so many.
    Count(u64),
    /// It got what it tried for.
    Done(String),
    /// There is such a thing, and it was refused.
    Refused(String),
    /// There is no such thing where it looked.
    Missing(String),
}

impl Seen {
    /// What an error says of what was tried.
    pub fn of_error(error: &io::Error) -> Self {
        let name = sys::name(error);
        match error.raw_os_error() {
            Some(
                libc::ENOENT
                | libc::ENXIO
                | libc::ENODEV
                | libc::ENOTDIR
                | libc::ESRCH
                | libc::ENOSYS
                | libc::ENOKEY
                | libc::EAFNOSUPPORT
                | libc::EPROTONOSUPPORT
                | libc::ECONNREFUSED
                | libc::ENETUNREACH
                | libc::EHOSTUNREACH,
            ) => Self::Missing(name),
            _ => Self::Refused(name),
        }
    }

    /// In a few words.
    pub fn text(&self) -> String {
        match self {
            Self::Value(text) | Self::Done(text) => text.clone(),
            Self::Count(number) => number.to_string(),
            Self::Refused(why) => format!("refused: {why}"),
            Self::Missing(why) => format!("not there: {why}"),
        }
    }
}

/// What the host has laid out for probes to find, and where.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Facts {
    /// A name that nobody else uses.
    pub marker: String,
    /// A user of the host's that nobody else is.
    pub uid: u32,
    /// A port of the host's loopback that is listened on.
    pub port: u16,
    /// A file of the host's.
    pub file: PathBuf,
    /// Key of a System V shared memory segment of the host's.
    pub key: i32,
    /// Numbers of a disk of the host's.
    pub disk: Option<(u32, u32)>,
    /// Where the two files are of which the host has one in its page cache.
    pub shared: PathBuf,
    /// Seconds that one probe may take.
    pub patience: u32,
}

/// Where in the report a probe stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum Group {
    /// What tenant and host have in common.
    Shared,
    /// What of the kernel a tenant can reach.
    Reached,
    /// What a tenant that breaks out has then.
    Escape,
    /// What one tenant does to another.
    Neighbour,
}

impl Group {
    /// All, in the order of reports.
    pub const ALL: [Self; 4] = [Self::Shared, Self::Reached, Self::Escape, Self::Neighbour];

    /// Its heading.
    pub fn title(self) -> &'static str {
        match self {
            Self::Shared => "What is shared",
            Self::Reached => "What can be reached",
            Self::Escape => "What an escape would find",
            Self::Neighbour => "What a bad neighbour does",
        }
    }
}

/// How what a probe saw is judged, against what the same probe sees on the host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Method {
    /// The same value is shared.
    Equal,
    /// A list of which nine tenths are on the host's as well is shared: drivers come and go.
    Alike,
    /// A count between the host's before and the host's after is the host's.
    Window,
    /// A text with the marker in it is shared.
    Marker,
    /// What the host has laid out is found or not.
    Find,
    /// What is done is done to the kernel that answers.
    Reach,
    /// How much of what the host's processes have.
    Level,
}

/// A probe.
pub struct Probe {
    /// Its name on the command line and in reports.
    pub name: &'static str,
    /// Where it stands.
    pub group: Group,
    /// How it is judged.
    pub method: Method,
    /// What it tries.
    pub tries: &'static str,
    /// What it means for a tenant where it is shared.
    pub means: &'static str,
    /// What looks, inside; `None` for what the host sees from outside.
    pub look: Option<fn(&Facts) -> io::Result<Seen>>,
}

/// The probe that says which kernel answers.
pub const KERNEL: &str = "boot-id";

/// All of them but neighbours, in the order of reports.
pub fn all() -> impl Iterator<Item = &'static Probe> {
    shared::PROBES.iter().chain(reach::PROBES).chain(boundary::PROBES)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn names_are_names_and_each_is_there_once() {
        let names: Vec<&str> = all().map(|probe| probe.name).collect();
        assert!(names.len() >= 45, "{}", names.len());
        assert_eq!(names.iter().collect::<BTreeSet<_>>().len(), names.len());
        assert!(names.contains(&KERNEL));
        for probe in all() {
            assert!(probe.name.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-'));
            assert!(!probe.tries.is_empty() && !probe.means.is_empty());
        }
    }

    #[test]
    fn errors_say_whether_there_is_such_a_thing() {
        let seen = |code| Seen::of_error(&io::Error::from_raw_os_error(code));
        assert_eq!(seen(libc::ENOENT), Seen::Missing("ENOENT".to_owned()));
        assert_eq!(seen(libc::EPERM), Seen::Refused("EPERM".to_owned()));
        assert_eq!(seen(libc::EPERM).text(), "refused: EPERM");
    }
}
