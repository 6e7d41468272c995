// SPDX-License-Identifier: Apache-2.0
//! Any sequence of entries, over any number of layers: the image has what a simple model has.

use proptest::collection::vec;
use proptest::prelude::*;

use super::*;

#[derive(Clone, Debug)]
enum Step {
    File(String, usize, u32),
    Directory(String, u32),
    Symlink(String),
    Link(String, String),
    Whiteout(String),
    Opaque(String),
    NextLayer,
}

fn path() -> impl Strategy<Value = String> {
    vec(prop_oneof![Just("a"), Just("b"), Just("c-"), Just("z.long-name")], 1..4).prop_map(|parts| parts.join("/"))
}

fn step() -> impl Strategy<Value = Step> {
    let owner = prop_oneof![Just(0u32), Just(1000), Just(100_000)];
    let size = prop_oneof![3 => 0..200usize, 2 => 3900..4200usize, 1 => 12_000..40_000usize];
    prop_oneof![
        6 => (path(), size, owner.clone()).prop_map(|(path, size, owner)| Step::File(path, size, owner)),
        3 => (path(), owner).prop_map(|(path, owner)| Step::Directory(path, owner)),
        1 => path().prop_map(Step::Symlink),
        2 => (path(), path()).prop_map(|(path, target)| Step::Link(path, target)),
        2 => path().prop_map(Step::Whiteout),
        1 => path().prop_map(Step::Opaque),
        2 => Just(Step::NextLayer),
    ]
}

/// What a name leads to: for files an identity, so that hard links can be told.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Kept {
    Directory(u32),
    File { identity: usize, data: Vec<u8>, owner: u32 },
    Symlink { identity: usize },
}

/// Names as a set of whole paths, each with the layer that last had it.
#[derive(Default)]
struct Model {
    names: BTreeMap<String, (Kept, usize)>,
    layer: usize,
}

impl Model {
    fn is_below(path: &str, above: &str) -> bool {
        path.strip_prefix(above).is_some_and(|rest| rest.starts_with('/'))
    }

    /// The directories above exist afterwards, unless something else is in their place.
    fn parents(&mut self, path: &str) -> bool {
        let ends: Vec<usize> = path.match_indices('/').map(|(at, _)| at).collect();
        if ends
            .iter()
            .any(|end| self.names.get(&path[..*end]).is_some_and(|(kept, _)| !matches!(kept, Kept::Directory(_))))
        {
            return false;
        }
        for end in ends {
            let above = self.names.entry(path[..end].into()).or_insert((Kept::Directory(0), self.layer));
            above.1 = self.layer;
        }
        true
    }

    fn remove(&mut self, path: &str) {
        self.names.retain(|name, _| name != path && !Self::is_below(name, path));
    }

    fn put(&mut self, path: &str, kept: Kept) {
        let both = |old: &(Kept, usize)| matches!((&old.0, &kept), (Kept::Directory(_), Kept::Directory(_)));
        if !self.names.get(path).is_some_and(both) {
            self.remove(path);
        }
        self.names.insert(path.into(), (kept, self.layer));
    }

    /// Keeps what the current layer has, and so the directories above that.
    fn hide(&mut self, directory: &str) {
        let layer = self.layer;
        self.names.retain(|name, (_, touched)| !Self::is_below(name, directory) || *touched == layer);
    }

    /// Does the step, or says that it cannot be done. Paths through symbolic links have tests of their own.
    fn apply(&mut self, step: &Step, identity: usize) -> bool {
        match step {
            Step::NextLayer => self.layer += 1,
            Step::File(path, size, owner) => {
                if !self.parents(path) {
                    return false;
                }
                self.put(path, Kept::File { identity, data: content(identity, *size), owner: *owner });
            }
            Step::Directory(path, owner) => {
                if !self.parents(path) {
                    return false;
                }
                self.put(path, Kept::Directory(*owner));
            }
            Step::Symlink(path) => {
                if !self.parents(path) {
                    return false;
                }
                self.put(path, Kept::Symlink { identity });
            }
            Step::Link(path, target) => {
                let found = self.names.get(target).filter(|(kept, _)| !matches!(kept, Kept::Directory(_)));
                // The name's own removal may take the target away.
                let Some((kept, _)) = found.filter(|_| path != target && !Self::is_below(target, path)).cloned() else {
                    return false;
                };
                if !self.parents(path) {
                    return false;
                }
                self.put(path, kept);
            }
            Step::Whiteout(path) | Step::Opaque(path) => {
                let mut above = path.match_indices('/').map(|(at, _)| &path[..at]);
                let is_file =
                    |path: &str| self.names.get(path).is_some_and(|(kept, _)| !matches!(kept, Kept::Directory(_)));
                if above.any(is_file) || matches!(step, Step::Opaque(_)) && is_file(path) {
                    return false;
                }
                self.hide(path);
                if matches!(step, Step::Whiteout(_))
                    && self.names.get(path).is_some_and(|(_, touched)| *touched != self.layer)
                {
                    self.remove(path);
                }
            }
        }
        true
    }
}

fn content(identity: usize, size: usize) -> Vec<u8> {
    (0..size).map(|at| u8::try_from((at * 7 + identity * 31) % 251).expect("a byte")).collect()
}

fn member(step: &Step, identity: usize) -> Member {
    let whiteout = |path: &str| match path.rsplit_once('/') {
        Some((above, name)) => format!("{above}/.wh.{name}"),
        None => format!(".wh.{path}"),
    };
    match step {
        Step::File(path, size, owner) => Member { owner: (*owner, 0), ..Member::file(path, content(identity, *size)) },
        Step::Directory(path, owner) => Member { owner: (*owner, 0), ..Member::directory(path) },
        Step::Symlink(path) => Member::symlink(path, format!("/nowhere/{identity}")),
        Step::Link(path, target) => Member::hard_link(path, target),
        Step::Whiteout(path) => Member::file(whiteout(path), ""),
        Step::Opaque(path) => Member::file(format!("{path}/.wh..wh..opq"), ""),
        Step::NextLayer => unreachable!("not an entry"),
    }
}

/// Whether a path goes through a symbolic link, which the model does not follow.
fn goes_through_symlink(model: &Model, step: &Step) -> bool {
    let through = |path: &str, itself: bool| {
        let above = path.match_indices('/').map(|(at, _)| &path[..at]).chain(itself.then_some(path));
        above.into_iter().any(|path| matches!(model.names.get(path), Some((Kept::Symlink { .. }, _))))
    };
    match step {
        Step::File(path, ..) | Step::Directory(path, _) | Step::Symlink(path) | Step::Whiteout(path) => {
            through(path, false)
        }
        Step::Link(path, target) => through(path, false) || through(target, false),
        Step::Opaque(path) => through(path, true),
        Step::NextLayer => false,
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn the_image_has_what_the_layers_say(steps in vec(step(), 1..60)) {
        let mut model = Model::default();
        let mut layers: Vec<Vec<Member>> = vec![Vec::new()];
        for (identity, step) in steps.iter().enumerate() {
            if goes_through_symlink(&model, step) {
                continue;
            }
            let possible = model.apply(step, identity);
            if matches!(step, Step::NextLayer) {
                layers.push(Vec::new());
                continue;
            }
            let layer = layers.last_mut().expect("at least one");
            layer.push(member(step, identity));
            if !possible {
                let layers: Vec<_> = layers.iter().map(|layer| &layer[..]).collect();
                prop_assert!(build(&layers).is_err(), "{:?}", step);
                return Ok(());
            }
        }
        let layers: Vec<_> = layers.iter().map(|layer| &layer[..]).collect();
        let files = build(&layers);
        prop_assert!(files.is_ok(), "{}", files.expect_err("checked"));
        let mut files = files.expect("checked");
        files.remove(&b""[..]);
        prop_assert_eq!(
            files.keys().map(|path| String::from_utf8_lossy(path).into_owned()).collect::<Vec<_>>(),
            model.names.keys().cloned().collect::<Vec<_>>()
        );
        let mut numbers: BTreeMap<usize, u64> = BTreeMap::new();
        let mut links: BTreeMap<usize, u32> = BTreeMap::new();
        for (kept, _) in model.names.values() {
            if let Kept::File { identity, .. } | Kept::Symlink { identity } = kept {
                *links.entry(*identity).or_default() += 1;
            }
        }
        for (path, (kept, _)) in &model.names {
            let file = &files[path.as_bytes()];
            match kept {
                Kept::Directory(owner) => prop_assert_eq!((file.mode >> 12, file.owner.0), (4, *owner)),
                Kept::File { identity, data, owner } => {
                    prop_assert_eq!((file.mode >> 12, file.owner.0, file.links), (8, *owner, links[identity]));
                    prop_assert!(&file.data == data, "content of {}", path);
                    prop_assert_eq!(*numbers.entry(*identity).or_insert(file.nid), file.nid);
                }
                Kept::Symlink { identity } => {
                    let target = format!("/nowhere/{identity}");
                    prop_assert_eq!(&file.data, target.as_bytes());
                    prop_assert_eq!(*numbers.entry(*identity).or_insert(file.nid), file.nid);
                }
            }
        }
    }
}
