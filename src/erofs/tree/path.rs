// SPDX-License-Identifier: Apache-2.0
//! Paths of entries, resolved in the tree as it is so far, as an unpacker would that runs with the image as its root.

use std::collections::VecDeque;

use super::{Child, NewDirectory, Node, NodeId, Tree};
use crate::erofs::error::Problem;

const NAME_MAX: usize = 255;
const PATH_MAX: usize = 4095;
/// Symbolic links followed in one path, as in Linux (`MAXSYMLINKS`).
const LINKS_MAX: u32 = 40;
/// Directories that symbolic links may bring into one path: bounds the work that a short name can cause.
const DETOUR_MAX: usize = 256;

/// Splits a name into its parts. It counts from the image's root with or without a leading `/`, and `..` takes back the
/// part before it, as all unpackers do; `..` out of the root is refused, as Docker does.
///
/// # Errors
/// The name leads out of the image, or is too long. `what` says whose name it is.
pub(in crate::erofs) fn components<'p>(path: &'p [u8], what: &'static str) -> Result<Vec<&'p [u8]>, Problem> {
    if path.len() > PATH_MAX {
        return Err(Problem::PathTooLong { what });
    }
    let mut components = Vec::new();
    for part in path.split(|byte| *byte == b'/') {
        match part {
            b"" | b"." => {}
            b".." => drop(components.pop().ok_or(Problem::OutsideRoot { what })?),
            part if part.len() > NAME_MAX => return Err(Problem::NameTooLong),
            part => components.push(part),
        }
    }
    Ok(components)
}

/// What to do where a directory is missing.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Missing {
    Make,
    Stop,
}

impl Tree {
    /// Finds the directory of these parts. Symbolic links are followed, never out of the root; missing directories are
    /// made.
    ///
    /// # Errors
    /// A part is not a directory, or symbolic links lead in circles.
    pub(in crate::erofs) fn make_directories(&mut self, parts: &[&[u8]]) -> Result<NodeId, Problem> {
        self.resolve(parts, Missing::Make).map(|id| id.unwrap_or(NodeId::ROOT))
    }

    /// Finds the directory of these parts, if there is one.
    ///
    /// # Errors
    /// A part is not a directory, or symbolic links lead in circles.
    pub(in crate::erofs) fn find_directory(&mut self, parts: &[&[u8]]) -> Result<Option<NodeId>, Problem> {
        self.resolve(parts, Missing::Stop)
    }

    fn resolve(&mut self, parts: &[&[u8]], missing: Missing) -> Result<Option<NodeId>, Problem> {
        let mut current = NodeId::ROOT;
        // Parts of symbolic links' targets, which come before the rest of `parts`.
        let mut detour: VecDeque<Box<[u8]>> = VecDeque::new();
        let (mut links, mut detours) = (0, 0);
        let mut parts = parts.iter();
        loop {
            let popped = detour.pop_front();
            let part = match (&popped, parts.as_slice().first()) {
                (Some(part), _) => &part[..],
                (None, Some(part)) => {
                    parts.next();
                    part
                }
                (None, None) => return Ok(Some(current)),
            };
            if part == b".." {
                current = self.directory(current).map_or(NodeId::ROOT, |directory| directory.parent);
                continue;
            }
            let Some(Child { node, .. }) = self.child(current, part) else {
                if missing == Missing::Stop {
                    return Ok(None);
                }
                if part.len() > NAME_MAX {
                    return Err(Problem::NameTooLong);
                }
                current = self.put_directory(current, part, NewDirectory::implied());
                continue;
            };
            let target = match self.node(node) {
                Node::Directory(_) => {
                    current = node;
                    continue;
                }
                Node::Leaf(leaf) => leaf.target.as_ref(),
                Node::Unused => None,
            };
            let target = target.ok_or_else(|| Problem::NotADirectory(part.into()))?;
            if target.first() == Some(&b'/') {
                current = NodeId::ROOT;
            }
            let steps = target.split(|byte| *byte == b'/').filter(|part| !matches!(*part, b"" | b"."));
            let steps: Vec<Box<[u8]>> = steps.map(Box::from).collect();
            links += 1;
            detours += steps.len();
            if links > LINKS_MAX || detours > DETOUR_MAX {
                return Err(Problem::SymlinkLoop);
            }
            for step in steps.into_iter().rev() {
                detour.push_front(step);
            }
        }
    }
}
