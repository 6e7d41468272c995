// SPDX-License-Identifier: Apache-2.0

use std::os::unix::fs::PermissionsExt;

use super::*;

/// A container as small as its file can be.
fn config() -> Config {
    let digest = format!("sha256:{}", "0".repeat(64));
    serde_json::from_value(serde_json::json!({
        "id": "0", "name": "one", "created": "2026-01-01T00:00:00Z",
        "image": { "name": "image", "id": digest, "manifest": digest },
        "process": { "arguments": ["sh"], "environment": [], "directory": "/", "user": "", "hostname": "one" },
        "shape": { "cpus": 1, "memory_mib": 128 },
        "terminal": false, "interactive": false, "remove": false, "stop_signal": 15, "stop_timeout": 10, "labels": {},
        "log": "json-file", "storage_size": null, "network": null,
        "surroundings": {
            "read_only": false, "tmpfs": [], "shm_size": 0, "pids_limit": null, "capabilities": 0, "privileged": false,
            "init": false, "no_new_privileges": false, "limits": [], "groups": [], "sysctls": [], "hosts": [],
        },
    }))
    .unwrap()
}

struct Place {
    _folder: tempfile::TempDir,
    snapshots: Snapshots,
}

impl Place {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let containers = Containers::open(folder.path()).unwrap();
        Self { snapshots: Snapshots::beside(&containers).unwrap(), _folder: folder }
    }

    fn take(&self, name: &str, id: &str) -> Result<(), Failure> {
        let begun = self.snapshots.begin(name, "what")?;
        let rootfs = FileIdentity::of(begun.new.files()[0]).unwrap();
        let record = Snapshot {
            name: name.to_owned(),
            id: id.to_owned(),
            created: Timestamp::UNIX_EPOCH,
            config: config(),
            addresses: vec!["10.0.0.2/24".parse().unwrap()],
            rootfs,
            disk: None,
            base: None,
        };
        begun.publish(&record, "what")
    }

    fn names(&self) -> Vec<String> {
        self.snapshots.all().unwrap().into_iter().map(|one| one.name).collect()
    }

    fn entries(&self) -> usize {
        self.snapshots.root.read_dir().unwrap().count()
    }
}

#[test]
fn what_is_taken_is_found_under_its_name_and_no_other() {
    let place = Place::new();
    place.take("two", "b").unwrap();
    place.take("one", "a").unwrap();
    assert_eq!(place.names(), ["one", "two"]);
    let found = place.snapshots.find("one", "what").unwrap();
    assert_eq!((found.id.as_str(), found.config), ("a", config()));
    for (name, why) in [("three", "no snapshot"), ("../containers", "no snapshot"), ("", "no snapshot")] {
        assert!(place.snapshots.find(name, "what").unwrap_err().why.contains(why), "{name}");
    }
    assert!(place.take("one", "c").unwrap_err().why.contains("there is a snapshot one"));
    assert!(place.take("no/name", "c").unwrap_err().why.contains("no name"));
    let origin = |id: &str| Origin { snapshot: "one".into(), id: id.into() };
    assert!(place.snapshots.origin(&origin("a"), "what").is_ok());
    assert!(place.snapshots.origin(&origin("b"), "what").unwrap_err().why.contains("another than the one"));
    place.snapshots.remove("one").unwrap();
    assert!(place.snapshots.remove("one").is_err() && place.snapshots.remove("../containers").is_err());
    assert_eq!((place.names(), place.entries()), (vec!["two".to_owned()], 1));
}

#[test]
fn one_that_is_being_taken_is_seen_by_nobody_and_left_by_nobody() {
    let place = Place::new();
    let killed = place.snapshots.root.join(format!("{NEW_PREFIX}killed"));
    fs::create_dir(&killed).unwrap();
    let begun = place.snapshots.begin("one", "what").unwrap();
    assert!(!killed.exists(), "nobody took it any more");
    assert_eq!((place.names().len(), place.entries()), (0, 1));
    // Another that begins meanwhile leaves it alone.
    drop(place.snapshots.begin("two", "what").unwrap());
    assert_eq!(place.entries(), 1);
    // Two of one name: the first to be ready has it.
    place.take("one", "first").unwrap();
    let rootfs = FileIdentity::of(begun.new.files()[0]).unwrap();
    let found = place.snapshots.find("one", "what").unwrap();
    let late = Snapshot { id: "late".into(), rootfs, ..found };
    assert!(begun.publish(&late, "what").unwrap_err().why.contains("there is a snapshot one"));
    assert_eq!((place.snapshots.find("one", "what").unwrap().id.as_str(), place.entries()), ("first", 1));
}

#[test]
fn each_flipped_bit_of_a_record_is_found() {
    let place = Place::new();
    place.take("one", "a").unwrap();
    let path = place.snapshots.place("one").join(RECORD);
    let good = fs::read(&path).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
    let read = |bytes: &[u8]| {
        fs::write(&path, bytes).unwrap();
        place.snapshots.find("one", "what")
    };
    for at in 0..good.len() - 1 {
        for bit in [0, 6] {
            let mut bytes = good.clone();
            bytes[at] ^= 1 << bit;
            assert!(read(&bytes).is_err(), "byte {at}, bit {bit}");
        }
    }
    for length in [0, 1, good.len() / 2, good.len() - 2] {
        assert!(read(&good[..length]).is_err(), "{length} bytes");
    }
    assert!(place.names().is_empty());
    read(&good).unwrap();
}
