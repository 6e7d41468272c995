// SPDX-License-Identifier: Apache-2.0
//! Who a process runs as: `user[:group]` of an image's configuration, looked up in the image's own `passwd(5)` and
//! `group(5)`, as Docker does.

use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

/// What a process's credentials are made of.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Identity {
    /// User id.
    pub user: u32,
    /// Group id.
    pub group: u32,
    /// Supplementary groups, that one among them.
    pub groups: Vec<u32>,
    /// Home directory.
    pub home: Vec<u8>,
}

/// Why there is no such user.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Unknown {
    /// The name is not in `/etc/passwd`.
    User,
    /// The name of its group is not in `/etc/group`.
    Group,
    /// This name of another group is not in `/etc/group`.
    More(Vec<u8>),
}

impl Unknown {
    /// For people; `wanted` is what was looked up.
    #[must_use]
    pub fn explain(&self, wanted: &[u8]) -> String {
        let wanted = String::from_utf8_lossy(wanted);
        match self {
            Self::User => format!("user `{wanted}` is not in the image's /etc/passwd"),
            Self::Group => format!("the group of `{wanted}` is not in the image's /etc/group"),
            Self::More(name) => format!("group `{}` is not in the image's /etc/group", String::from_utf8_lossy(name)),
        }
    }
}

/// Looks `wanted` up, and `more` groups; empty is root. A number need not be in the files.
///
/// # Errors
/// [`Unknown`].
pub fn find(wanted: &[u8], more: &[Vec<u8>], passwd: &[u8], group: &[u8]) -> Result<Identity, Unknown> {
    let (user, named_group) = match wanted.iter().position(|byte| *byte == b':') {
        Some(at) => (&wanted[..at], Some(&wanted[at + 1..])),
        None => (wanted, None),
    };
    let user = if user.is_empty() { b"0" } else { user };
    let number = parse(user);
    let entry =
        records(passwd).find(|entry| entry.first() == Some(&user) || number.is_some() && field(entry, 2) == number);
    let mut identity = match (&entry, number) {
        (Some(entry), _) => Identity {
            user: field(entry, 2).ok_or(Unknown::User)?,
            group: field(entry, 3).unwrap_or(0),
            groups: Vec::new(),
            home: entry.get(5).copied().unwrap_or_default().to_vec(),
        },
        (None, Some(user)) => Identity { user, ..Identity::default() },
        (None, None) => return Err(Unknown::User),
    };
    if let Some(named) = named_group.filter(|name| !name.is_empty()) {
        identity.group = find_group(named, group).ok_or(Unknown::Group)?;
    } else if let Some(name) = entry.as_ref().and_then(|entry| entry.first()) {
        let member_of = |entry: &Vec<&[u8]>| {
            entry.get(3).is_some_and(|members| members.split(|byte| *byte == b',').any(|member| member == *name))
        };
        identity.groups = records(group).filter(member_of).filter_map(|entry| field(&entry, 2)).collect();
    }
    for name in more {
        let id = find_group(name, group).ok_or_else(|| Unknown::More(name.clone()))?;
        if !identity.groups.contains(&id) {
            identity.groups.push(id);
        }
    }
    // As with Docker since 20.10.18: a file that shuts its group out shuts it out also under another group.
    if !identity.groups.contains(&identity.group) {
        identity.groups.insert(0, identity.group);
    }
    if identity.home.is_empty() {
        identity.home = b"/".to_vec();
    }
    Ok(identity)
}

fn find_group(name: &[u8], group: &[u8]) -> Option<u32> {
    let listed = records(group).find(|entry| entry.first() == Some(&name)).and_then(|entry| field(&entry, 2));
    listed.or_else(|| parse(name))
}

/// The name of a user, if it has one.
pub fn name(user: u32, passwd: &[u8]) -> Option<String> {
    let entry = records(passwd).find(|entry| field(entry, 2) == Some(user))?;
    core::str::from_utf8(entry.first()?).ok().map(String::from)
}

fn records(file: &[u8]) -> impl Iterator<Item = Vec<&[u8]>> {
    file.split(|byte| *byte == b'\n').map(|line| line.split(|byte| *byte == b':').collect())
}

fn field(entry: &[&[u8]], number: usize) -> Option<u32> {
    parse(entry.get(number)?)
}

fn parse(text: &[u8]) -> Option<u32> {
    // The last number means "no change" to the kernel.
    core::str::from_utf8(text).ok()?.parse().ok().filter(|id| *id != u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::vec;

    const PASSWD: &[u8] = b"root:x:0:0:root:/root:/bin/sh\nweb:x:33:34:w:/var/www:/bin/false\nbroken:x:many\n";
    const GROUP: &[u8] = b"root:x:0:\nwww:x:34:\nlog:x:40:other,web\nssl:x:41:web\n";

    #[test]
    fn users_are_found_as_docker_finds_them() {
        let who = |wanted: &str| find(wanted.as_bytes(), &[], PASSWD, GROUP);
        let web = Identity { user: 33, group: 34, groups: vec![34, 40, 41], home: b"/var/www".to_vec() };
        assert_eq!(who("web"), Ok(web.clone()));
        assert_eq!(who("33"), Ok(web.clone()));
        assert_eq!(who("web:ssl"), Ok(Identity { group: 41, groups: vec![41], ..web.clone() }));
        assert_eq!(who("web:7"), Ok(Identity { group: 7, groups: vec![7], ..web }));
        assert_eq!(who("").unwrap(), Identity { home: b"/root".to_vec(), groups: vec![0], ..Identity::default() });
        assert_eq!(
            who("1000").unwrap(),
            Identity { user: 1000, home: b"/".to_vec(), groups: vec![0], ..Identity::default() }
        );
        assert_eq!(who("nobody"), Err(Unknown::User));
        assert_eq!(who("broken"), Err(Unknown::User));
        assert_eq!(who("4294967295"), Err(Unknown::User));
        assert_eq!(who("web:nogroup"), Err(Unknown::Group));
        assert_eq!(find(b"0", &[], b"", b"").unwrap().home, b"/");
        let more = |names: &[&str]| {
            let names: Vec<Vec<u8>> = names.iter().map(|name| name.as_bytes().to_vec()).collect();
            find(b"web", &names, PASSWD, GROUP).map(|who| who.groups)
        };
        assert_eq!(more(&["www", "log", "5"]), Ok(vec![40, 41, 34, 5]));
        assert_eq!(more(&["none"]), Err(Unknown::More(b"none".to_vec())));
    }
}
