// SPDX-License-Identifier: Apache-2.0
//! How sources that are no registry are spelled, as skopeo and Podman spell them.

use std::fmt;
use std::path::PathBuf;

/// What kind of thing images are in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// `oci:` an OCI image layout.
    Layout,
    /// `oci-archive:` the same as a tar archive.
    OciArchive,
    /// `docker-archive:` what `docker save` writes.
    DockerArchive,
}

/// A file or directory with images.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Source {
    /// What it is.
    pub kind: Kind,
    /// Where it is.
    pub path: PathBuf,
    /// Which of its images, by the name that it has there.
    pub name: Option<String>,
}

const KINDS: [(&str, Kind); 3] =
    [("oci:", Kind::Layout), ("oci-archive:", Kind::OciArchive), ("docker-archive:", Kind::DockerArchive)];

impl Source {
    /// Reads `KIND:PATH[:NAME]`; `None` where it is something else, such as a reference.
    pub fn parse(text: &str) -> Option<Self> {
        let (rest, kind) = KINDS.iter().find_map(|(prefix, kind)| Some((text.strip_prefix(prefix)?, *kind)))?;
        // A path has no colon, as with skopeo, so that names may have several.
        let (path, name) = rest.split_once(':').map_or((rest, None), |(path, name)| (path, Some(name.to_owned())));
        (!path.is_empty()).then(|| Self { kind, path: path.into(), name })
    }
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let prefix = KINDS.iter().find(|(_, kind)| *kind == self.kind).map_or("", |(prefix, _)| prefix);
        write!(f, "{prefix}{}", self.path.display())?;
        self.name.as_ref().map_or(Ok(()), |name| write!(f, ":{name}"))
    }
}
