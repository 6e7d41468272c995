// SPDX-License-Identifier: Apache-2.0
//! Writes archives for tests, right and wrong ones.

/// One entry; the default is an empty file of root's.
#[derive(Clone, Debug)]
pub struct Member {
    /// Name in the header, cut to 100 bytes.
    pub name: Vec<u8>,
    /// Type flag.
    pub flag: u8,
    /// Permissions.
    pub mode: u32,
    /// Owner and group.
    pub owner: (u32, u32),
    /// Seconds since 1970.
    pub mtime: u64,
    /// Target of a link.
    pub link: Vec<u8>,
    /// Major and minor number.
    pub device: (u32, u32),
    /// The data that follows.
    pub data: Vec<u8>,
    /// Size in the header, if not that of the data.
    pub size: Option<u64>,
    /// PAX records before the entry.
    pub pax: Vec<(Vec<u8>, Vec<u8>)>,
}

impl Member {
    /// An entry of this type.
    pub fn new(flag: u8, name: impl AsRef<[u8]>) -> Self {
        Self {
            name: name.as_ref().to_vec(),
            flag,
            mode: if flag == b'5' { 0o755 } else { 0o644 },
            owner: (0, 0),
            mtime: 1_700_000_000,
            link: Vec::new(),
            device: (0, 0),
            data: Vec::new(),
            size: None,
            pax: Vec::new(),
        }
    }

    /// A regular file.
    pub fn file(name: impl AsRef<[u8]>, data: impl AsRef<[u8]>) -> Self {
        Self { data: data.as_ref().to_vec(), ..Self::new(b'0', name) }
    }

    /// A directory.
    pub fn directory(name: impl AsRef<[u8]>) -> Self {
        Self::new(b'5', name)
    }

    /// A symbolic link.
    pub fn symlink(name: impl AsRef<[u8]>, target: impl AsRef<[u8]>) -> Self {
        Self { link: target.as_ref().to_vec(), ..Self::new(b'2', name) }
    }

    /// One more name for `target`.
    pub fn hard_link(name: impl AsRef<[u8]>, target: impl AsRef<[u8]>) -> Self {
        Self { link: target.as_ref().to_vec(), ..Self::new(b'1', name) }
    }

    /// With one more PAX record.
    pub fn with_pax(mut self, key: &str, value: impl AsRef<[u8]>) -> Self {
        self.pax.push((key.into(), value.as_ref().to_vec()));
        self
    }
}

/// An archive of these, with its end.
pub fn archive(members: &[Member]) -> Vec<u8> {
    let mut bytes = Vec::new();
    members.iter().for_each(|member| append(&mut bytes, member));
    bytes.extend([0; 1024]);
    bytes
}

/// Appends an entry and its extended header.
pub fn append(bytes: &mut Vec<u8>, member: &Member) {
    if !member.pax.is_empty() {
        let data: Vec<u8> = member.pax.iter().flat_map(|(key, value)| record(key, value)).collect();
        append(bytes, &Member { data, ..Member::new(b'x', "pax") });
    }
    bytes.extend(header(member));
    bytes.extend(&member.data);
    bytes.resize(bytes.len().next_multiple_of(512), 0);
}

/// A PAX record, whose length counts its own digits.
pub fn record(key: &[u8], value: &[u8]) -> Vec<u8> {
    let rest = [b" ", key, b"=", value, b"\n"].concat();
    let length =
        (1..).map(|digits| rest.len() + digits).find(|length| rest.len() + length.to_string().len() == *length);
    [length.expect("some length fits").to_string().into_bytes(), rest].concat()
}

/// A ustar header.
pub fn header(member: &Member) -> [u8; 512] {
    let mut header = [0; 512];
    let mut put = |at: usize, field: &[u8]| header[at..at + field.len()].copy_from_slice(field);
    put(0, &member.name[..member.name.len().min(100)]);
    put(100, format!("{:07o}\0", member.mode).as_bytes());
    put(108, format!("{:07o}\0", member.owner.0).as_bytes());
    put(116, format!("{:07o}\0", member.owner.1).as_bytes());
    put(124, format!("{:011o}\0", member.size.unwrap_or(member.data.len() as u64)).as_bytes());
    put(136, format!("{:011o}\0", member.mtime).as_bytes());
    put(148, b"        ");
    put(156, &[member.flag]);
    put(157, &member.link[..member.link.len().min(100)]);
    put(257, b"ustar\x0000");
    put(329, format!("{:07o}\0", member.device.0).as_bytes());
    put(337, format!("{:07o}\0", member.device.1).as_bytes());
    seal(&mut header);
    header
}

/// Makes the checksum right again.
pub fn seal(header: &mut [u8; 512]) {
    header[148..156].copy_from_slice(b"        ");
    let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
    header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
}
