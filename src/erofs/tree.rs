// SPDX-License-Identifier: Apache-2.0
//! The image's names while layers are laid over each other: what a file system would know, and no more.
//!
//! Files that are not directories are already written; of them only the place is kept.

mod path;
mod whiteout;

use std::collections::BTreeMap;

use super::blocks::Extent;
use super::error::Problem;
use super::format::{Attributes, FileType, Time};
pub(super) use path::components;
pub(super) use whiteout::Name;

/// Extended attributes by full name.
pub(super) type Xattrs = BTreeMap<Box<[u8]>, Box<[u8]>>;

/// Index of a node in the tree.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct NodeId(u32);

impl NodeId {
    pub(super) const ROOT: Self = Self(0);
}

#[derive(Debug)]
pub(super) enum Node {
    Directory(Box<Directory>),
    Leaf(Leaf),
    /// Free for the next node.
    Unused,
}

#[derive(Debug)]
pub(super) struct Directory {
    pub(super) parent: NodeId,
    pub(super) attributes: Attributes,
    pub(super) xattrs: Xattrs,
    pub(super) children: BTreeMap<Box<[u8]>, Child>,
    /// The inode's number, once it has one.
    pub(super) nid: u64,
    /// The last layer that has this directory, or something in it.
    touched: u32,
    /// The last layer in which a whiteout left nothing here of layers below.
    purged: u32,
}

/// A name in a directory.
#[derive(Clone, Copy, Debug)]
pub(super) struct Child {
    pub(super) node: NodeId,
    /// The layer that has this name, for files that are not directories.
    touched: u32,
}

/// A file that is not a directory, and is written already.
#[derive(Debug)]
pub(super) struct Leaf {
    pub(super) file_type: FileType,
    /// Whether the inode is of the smaller form.
    pub(super) compact: bool,
    pub(super) links: u32,
    /// The inode's number: where it is.
    pub(super) nid: u64,
    /// Bytes of the inode with what follows it.
    pub(super) length: u16,
    /// The data's blocks.
    pub(super) extent: Extent,
    /// A symbolic link's target, for paths through it.
    pub(super) target: Option<Box<[u8]>>,
}

/// The directory that an entry brings, or its absence implies.
#[derive(Debug)]
pub(super) struct NewDirectory {
    pub(super) attributes: Attributes,
    pub(super) xattrs: Xattrs,
}

impl NewDirectory {
    /// A directory that no layer describes: as `mkdir` by root makes it, but with the same time always.
    fn implied() -> Self {
        Self { attributes: Attributes { mode: 0o755, uid: 0, gid: 0, mtime: Time::default() }, xattrs: Xattrs::new() }
    }
}

/// All names of the image.
#[derive(Debug)]
pub(super) struct Tree {
    nodes: Vec<Node>,
    unused: Vec<NodeId>,
    /// Files that lost their last name since it was last asked for.
    dead: Vec<Leaf>,
    /// The current layer, from 1.
    layer: u32,
    /// Names there are, and the bytes of names and targets: what bounds memory.
    names: u64,
    text: u64,
}

impl Tree {
    pub(super) fn new() -> Self {
        let root = Node::Directory(Box::new(Directory::new(NodeId::ROOT, NewDirectory::implied(), 0)));
        Self { nodes: vec![root], unused: Vec::new(), dead: Vec::new(), layer: 0, names: 0, text: 0 }
    }

    /// What follows is of the next layer.
    pub(super) fn next_layer(&mut self) {
        self.layer += 1;
    }

    /// Names, without the root.
    pub(super) fn names(&self) -> u64 {
        self.names
    }

    /// Bytes of all names and of the targets of symbolic links.
    pub(super) fn text(&self) -> u64 {
        self.text
    }

    /// Slots of nodes, used or not.
    pub(super) fn node_ids(&self) -> impl Iterator<Item = NodeId> + use<> {
        (0..u32::try_from(self.nodes.len()).unwrap_or(u32::MAX)).map(NodeId)
    }

    pub(super) fn node(&self, id: NodeId) -> &Node {
        usize::try_from(id.0).ok().and_then(|at| self.nodes.get(at)).unwrap_or(&Node::Unused)
    }

    fn node_mut(&mut self, id: NodeId) -> Option<&mut Node> {
        usize::try_from(id.0).ok().and_then(|at| self.nodes.get_mut(at))
    }

    pub(super) fn directory(&self, id: NodeId) -> Option<&Directory> {
        match self.node(id) {
            Node::Directory(directory) => Some(directory),
            _ => None,
        }
    }

    pub(super) fn directory_mut(&mut self, id: NodeId) -> Option<&mut Directory> {
        match self.node_mut(id) {
            Some(Node::Directory(directory)) => Some(directory),
            _ => None,
        }
    }

    pub(super) fn child(&self, directory: NodeId, name: &[u8]) -> Option<Child> {
        self.directory(directory)?.children.get(name).copied()
    }

    /// Files that lost their last name, and whose room can be used again.
    pub(super) fn take_dead(&mut self) -> Vec<Leaf> {
        std::mem::take(&mut self.dead)
    }

    /// Makes a directory of this name, or changes the one that is there. Anything else of that name goes.
    pub(super) fn put_directory(&mut self, parent: NodeId, name: &[u8], new: NewDirectory) -> NodeId {
        if let Some(child) = self.child(parent, name) {
            if self.directory(child.node).is_some() {
                self.change_directory(child.node, new);
                return child.node;
            }
            self.remove(parent, name);
        }
        let id = self.add(Node::Directory(Box::new(Directory::new(parent, new, self.layer))));
        self.link(parent, name, id);
        id
    }

    /// Gives a directory the metadata of the current layer.
    pub(super) fn change_directory(&mut self, id: NodeId, new: NewDirectory) {
        if let Some(directory) = self.directory_mut(id) {
            directory.attributes = new.attributes;
            directory.xattrs = new.xattrs;
        }
        self.touch(id);
    }

    /// Gives a new file a name that is free.
    pub(super) fn put_leaf(&mut self, parent: NodeId, name: &[u8], leaf: Leaf) {
        self.text += leaf.target.as_ref().map_or(0, |target| target.len() as u64);
        let id = self.add(Node::Leaf(leaf));
        self.link(parent, name, id);
    }

    /// Gives a file that is there one more name, which must be free.
    ///
    /// # Errors
    /// `target` is a directory.
    pub(super) fn put_link(&mut self, parent: NodeId, name: &[u8], target: NodeId) -> Result<(), Problem> {
        match self.node_mut(target) {
            Some(Node::Leaf(leaf)) => leaf.links += 1,
            _ => return Err(Problem::LinkToDirectory(name.into())),
        }
        self.link(parent, name, target);
        Ok(())
    }

    fn add(&mut self, node: Node) -> NodeId {
        if let Some(id) = self.unused.pop() {
            if let Some(slot) = self.node_mut(id) {
                *slot = node;
            }
            return id;
        }
        // Names are limited to fewer than 2^32, and there are no more nodes than names.
        let id = NodeId(u32::try_from(self.nodes.len()).unwrap_or(u32::MAX));
        self.nodes.push(node);
        id
    }

    fn link(&mut self, parent: NodeId, name: &[u8], node: NodeId) {
        self.names += 1;
        self.text += name.len() as u64;
        let touched = self.layer;
        if let Some(directory) = self.directory_mut(parent) {
            directory.children.insert(name.into(), Child { node, touched });
        }
        self.touch(parent);
    }

    /// Marks a directory, and those above it, as being of the current layer.
    pub(super) fn touch(&mut self, mut id: NodeId) {
        let layer = self.layer;
        while let Some(directory) = self.directory_mut(id)
            && directory.touched != layer
        {
            directory.touched = layer;
            id = directory.parent;
        }
    }

    /// Removes a name with all below it.
    pub(super) fn remove(&mut self, parent: NodeId, name: &[u8]) {
        let Some(child) = self.directory_mut(parent).and_then(|directory| directory.children.remove(name)) else {
            return;
        };
        self.names -= 1;
        self.text -= name.len() as u64;
        let mut doomed = vec![child.node];
        while let Some(id) = doomed.pop() {
            let Some(node) = self.node_mut(id) else { continue };
            match node {
                Node::Leaf(leaf) if leaf.links > 1 => leaf.links -= 1,
                _ => {
                    let node = std::mem::replace(node, Node::Unused);
                    self.unused.push(id);
                    match node {
                        Node::Leaf(leaf) => {
                            self.text -= leaf.target.as_ref().map_or(0, |target| target.len() as u64);
                            self.dead.push(leaf);
                        }
                        Node::Directory(directory) => {
                            self.names -= directory.children.len() as u64;
                            self.text -= directory.children.keys().map(|name| name.len() as u64).sum::<u64>();
                            doomed.extend(directory.children.values().map(|child| child.node));
                        }
                        Node::Unused => {}
                    }
                }
            }
        }
    }
}

impl Directory {
    fn new(parent: NodeId, new: NewDirectory, layer: u32) -> Self {
        let NewDirectory { attributes, xattrs } = new;
        Self { parent, attributes, xattrs, children: BTreeMap::new(), nid: 0, touched: layer, purged: 0 }
    }
}
