// SPDX-License-Identifier: Apache-2.0
//! What a volume is made of, in the words of Docker's driver `local`: options `type`, `device` and `o`, as of `mount(8)`.

use std::collections::BTreeMap;
use std::ffi::{CStr, CString};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use super::mounts::Misunderstood;

/// What a volume is made of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Backing {
    /// A directory of its own.
    Directory,
    /// A directory of somebody else's.
    Bind {
        /// Absolute.
        path: PathBuf,
        /// No container may write there.
        read_only: bool,
    },
    /// A file system in the host's memory, for as long as a container that uses it runs.
    Memory(Tmpfs),
}

/// How a tmpfs is mounted.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tmpfs {
    /// Flags of `mount(2)`.
    flags: libc::c_ulong,
    /// Options of the file system (`tmpfs(5)`).
    data: String,
}

const FORMS: &str = "-o type=tmpfs -o o=size=64m,mode=1777, or -o o=bind -o device=/HOST/PATH";
/// What a tmpfs knows, each with a value.
const OF_TMPFS: [&str; 7] = ["size", "nr_blocks", "nr_inodes", "mode", "uid", "gid", "huge"];

impl Backing {
    /// Understands what a volume was made with.
    ///
    /// # Errors
    /// [`Misunderstood`].
    pub fn read(options: &BTreeMap<String, String>) -> Result<Self, Misunderstood> {
        let wrong = |why: String| Err(Misunderstood { why, instead: FORMS });
        if let Some(key) = options.keys().find(|key| !["type", "device", "o"].contains(&key.as_str())) {
            return wrong(format!("`{key}` is no option of a volume: there are type, device and o"));
        }
        let option = |key: &str| options.get(key).map_or("", String::as_str);
        let words: Vec<&str> = option("o").split(',').filter(|word| !word.is_empty()).collect();
        let is_bind = words.iter().any(|word| matches!(*word, "bind" | "rbind"));
        match (option("type"), option("device")) {
            ("", "") if words.is_empty() => Ok(Self::Directory),
            ("tmpfs", _) if !is_bind => tmpfs(&words),
            ("" | "none" | "bind", device) if is_bind => {
                let mut read_only = false;
                for word in words {
                    match word {
                        "ro" => read_only = true,
                        "rw" => read_only = false,
                        "bind" | "rbind" | "private" | "rprivate" => {}
                        _ => return wrong(format!("`{word}` means nothing here to a bind: there are ro and rw")),
                    }
                }
                match device.starts_with('/') {
                    true => Ok(Self::Bind { path: device.into(), read_only }),
                    false => wrong(format!("device `{device}` is no absolute path")),
                }
            }
            ("", "") => wrong("o says how to mount, and nothing says what".to_owned()),
            ("tmpfs", _) => wrong("a tmpfs is no bind".to_owned()),
            ("" | "none" | "bind", _) => {
                wrong("without `bind` among o there is nothing to mount a device as".to_owned())
            }
            (kind, _) => Err(Misunderstood {
                why: format!("file systems of type `{kind}` are not mounted for volumes"),
                instead: "mount it on the host, then -o o=bind -o device=/WHERE",
            }),
        }
    }
}

fn tmpfs(words: &[&str]) -> Result<Backing, Misunderstood> {
    // As Docker mounts any volume of the driver: with what is said, and nothing else.
    let (mut flags, mut data) = (0, Vec::new());
    for word in words {
        let flag = match word.strip_prefix("no").unwrap_or(word) {
            "suid" => libc::MS_NOSUID,
            "dev" => libc::MS_NODEV,
            "exec" => libc::MS_NOEXEC,
            "atime" => libc::MS_NOATIME,
            "ro" | "rw" => libc::MS_RDONLY,
            _ => 0,
        };
        let is_known = word.split_once('=').is_some_and(|(key, value)| OF_TMPFS.contains(&key) && !value.is_empty());
        match (flag, *word) {
            (0, _) if is_known => data.push(*word),
            (0, _) | (_, "noro" | "norw") => {
                let why = format!("`{word}` is no option of a tmpfs: there are {}", OF_TMPFS.join(", "));
                return Err(Misunderstood { why, instead: FORMS });
            }
            (flag, "ro") => flags |= flag,
            (flag, word) if word.starts_with("no") => flags |= flag,
            (flag, _) => flags &= !flag,
        }
    }
    Ok(Backing::Memory(Tmpfs { flags, data: data.join(",") }))
}

impl Tmpfs {
    /// Mounts it on `directory`, where others may have done so.
    ///
    /// # Errors
    /// The kernel's: it is for root, or an option has a value that it does not understand.
    pub fn mount(&self, directory: &Path) -> io::Result<()> {
        if is_mounted(directory)? {
            return Ok(());
        }
        let (at, data) = (c_string(directory)?, CString::new(self.data.as_str())?);
        let kind: &CStr = c"tmpfs";
        // SAFETY: all strings end in NUL and live through the call.
        let result =
            unsafe { libc::mount(kind.as_ptr(), at.as_ptr(), kind.as_ptr(), self.flags, data.as_ptr().cast()) };
        if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    }
}

/// Takes away what is mounted on `directory`, once nobody has it open; that nothing is, is no error.
///
/// # Errors
/// The kernel's.
pub fn unmount(directory: &Path) -> io::Result<()> {
    if !is_mounted(directory)? {
        return Ok(());
    }
    let at = c_string(directory)?;
    // SAFETY: the string ends in NUL and lives through the call.
    let result = unsafe { libc::umount2(at.as_ptr(), libc::MNT_DETACH | libc::UMOUNT_NOFOLLOW) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// A volume's own directory is in the file system of the directory above it, unless one is mounted there.
fn is_mounted(directory: &Path) -> io::Result<bool> {
    let device = |path: &Path| path.symlink_metadata().map(|status| status.dev());
    Ok(device(directory)? != device(directory.parent().unwrap_or(directory))?)
}

fn c_string(path: &Path) -> io::Result<CString> {
    Ok(CString::new(path.as_os_str().as_bytes())?)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(words: &[(&str, &str)]) -> Result<Backing, String> {
        let options = words.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
        Backing::read(&options).map_err(|wrong| wrong.why)
    }

    #[test]
    fn options_are_read_as_dockers_local_driver_has_them() {
        let memory = |flags, data: &str| Ok(Backing::Memory(Tmpfs { flags, data: data.into() }));
        let bind = |path: &str, read_only| Ok(Backing::Bind { path: path.into(), read_only });
        for (words, expected) in [
            (&[][..], Ok(Backing::Directory)),
            (&[("type", "tmpfs"), ("device", "tmpfs")], memory(0, "")),
            (&[("type", "tmpfs"), ("o", "size=1m,uid=5,noexec,nosuid,suid")], memory(libc::MS_NOEXEC, "size=1m,uid=5")),
            (&[("type", "none"), ("device", "/srv"), ("o", "bind")], bind("/srv", false)),
            (&[("device", "/srv"), ("o", "rbind,ro")], bind("/srv", true)),
        ] {
            assert_eq!(read(words), expected, "{words:?}");
        }
        for (words, why) in [
            (&[("size", "1g")][..], "no option of a volume"),
            (&[("type", "nfs"), ("device", ":/x"), ("o", "addr=10.0.0.1")], "`nfs` are not mounted"),
            (&[("type", "tmpfs"), ("o", "bind")], "no bind"),
            (&[("type", "tmpfs"), ("o", "size")], "no option of a tmpfs"),
            (&[("type", "tmpfs"), ("o", "noro")], "no option of a tmpfs"),
            (&[("device", "srv"), ("o", "bind")], "no absolute path"),
            (&[("o", "bind")], "no absolute path"),
            (&[("device", "/srv")], "without `bind`"),
            (&[("o", "ro")], "nothing says what"),
            (&[("device", "/srv"), ("o", "bind,shared")], "means nothing"),
        ] {
            assert!(read(words).is_err_and(|found| found.contains(why)), "{words:?}: {:?}", read(words));
        }
    }
}
