// SPDX-License-Identifier: Apache-2.0
//! Users and groups of an image by name, as a container runtime wants them by number.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use rustix::fs::{CWD, Mode, OFlags, ResolveFlags, openat2};

/// Bytes read of a file of users.
const LIMIT: u64 = 1 << 20;

/// A user by numbers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct User {
    /// User.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Other groups.
    pub groups: Vec<u32>,
    /// Home directory.
    pub home: String,
}

/// `user[:group]` in the image whose files are below `root`.
pub fn look_up(text: &str, root: &Path) -> Result<User, String> {
    resolve(text, &read(root, "etc/passwd"), &read(root, "etc/group"))
}

/// A file of an image, whose links lead nowhere out of it. One that is not there is empty.
fn read(root: &Path, name: &str) -> String {
    let opened = openat2(CWD, root, OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty(), ResolveFlags::empty())
        .and_then(|root| openat2(root, name, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty(), ResolveFlags::IN_ROOT));
    let mut text = Vec::new();
    if let Ok(file) = opened {
        // What cannot be read has no users.
        let _ = File::from(file).take(LIMIT).read_to_end(&mut text);
    }
    String::from_utf8_lossy(&text).into_owned()
}

fn resolve(text: &str, passwd: &str, group: &str) -> Result<User, String> {
    let (user, wanted_group) = text.split_once(':').map_or((text, None), |(user, group)| (user, Some(group)));
    let user = if user.is_empty() { "0" } else { user };
    let fields = |line: &str| line.split(':').map(str::to_owned).collect::<Vec<_>>();
    let number = |entry: &[String], at: usize| entry.get(at).and_then(|text| text.parse::<u32>().ok());
    let numeric = user.parse::<u32>().ok();
    let found = passwd.lines().map(fields).find(|entry| match numeric {
        Some(uid) => number(entry, 2) == Some(uid),
        None => entry.first().map(String::as_str) == Some(user),
    });
    let uid = numeric.or_else(|| number(found.as_ref()?, 2));
    let uid = uid.ok_or_else(|| format!("the image has no user `{user}`"))?;
    let name = found.as_ref().and_then(|entry| entry.first().cloned());
    let gid = match wanted_group {
        Some(group_name) => {
            let of_name = group.lines().map(fields).find(|entry| entry.first().map(String::as_str) == Some(group_name));
            let gid = group_name.parse().ok().or_else(|| number(&of_name?, 2));
            gid.ok_or_else(|| format!("the image has no group `{group_name}`"))?
        }
        None => found.as_ref().and_then(|entry| number(entry, 3)).unwrap_or(0),
    };
    // As with Docker, only those of a user without a group of the user's choice.
    let member = |entry: &[String]| {
        let members = entry.get(3).map(String::as_str).unwrap_or_default();
        name.as_deref().is_some_and(|name| members.split(',').any(|member| member == name))
    };
    let groups = group.lines().map(fields).filter(|entry| wanted_group.is_none() && member(entry));
    let groups = groups.filter_map(|entry| number(&entry, 2)).collect();
    let home = found.and_then(|entry| entry.get(5).cloned()).unwrap_or_else(|| "/".to_owned());
    Ok(User { uid, gid, groups, home })
}

#[cfg(test)]
mod tests {
    use super::*;

    const PASSWD: &str = "root:x:0:0:root:/root:/bin/sh\napp:x:1000:1001:A:/home/app:/bin/sh\nbroken\n";
    const GROUP: &str = "root:x:0:\napp:x:1001:\nextra:x:2000:other,app\n";

    #[test]
    fn names_and_numbers_are_found() {
        let user = |text| resolve(text, PASSWD, GROUP);
        let root = User { home: "/root".into(), ..User::default() };
        assert_eq!((user(""), user("0"), user("root")), (Ok(root.clone()), Ok(root.clone()), Ok(root)));
        let app = User { uid: 1000, gid: 1001, groups: vec![2000], home: "/home/app".into() };
        assert_eq!((user("app"), user("1000")), (Ok(app.clone()), Ok(app)));
        assert_eq!(user("app:extra").map(|user| (user.gid, user.groups)), Ok((2000, vec![])));
        assert_eq!(user("77:88"), Ok(User { uid: 77, gid: 88, groups: vec![], home: "/".into() }));
        assert!(user("nobody").unwrap_err().contains("`nobody`") && user("app:none").unwrap_err().contains("`none`"));
    }

    #[test]
    fn links_do_not_lead_out_of_the_image() {
        let root = tempfile::tempdir().unwrap();
        std::fs::create_dir(root.path().join("etc")).unwrap();
        let outside = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(outside.path(), "app:x:5:5::/:\n").unwrap();
        std::os::unix::fs::symlink(outside.path(), root.path().join("etc/passwd")).unwrap();
        assert!(look_up("app", root.path()).is_err());
    }
}
