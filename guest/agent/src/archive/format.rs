// SPDX-License-Identifier: Apache-2.0
//! Headers of tar archives: POSIX `pax` is written (IEEE 1003.1, "pax"); that, ustar and GNU's long names are read.

use alloc::format;
use alloc::vec;
use alloc::vec::Vec;

/// What an archive consists of.
pub const BLOCK: usize = 512;
/// Bytes of names before a header, and of extended attributes.
const EXTENDED_MAX: u64 = 1 << 20;
/// How extended attributes are called.
const XATTR: &[u8] = b"SCHILY.xattr.";

/// What a member is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    File,
    HardLink,
    Symlink,
    Character,
    Block,
    Directory,
    Fifo,
}

impl Kind {
    const ALL: [(Self, u8); 7] = [
        (Self::File, b'0'),
        (Self::HardLink, b'1'),
        (Self::Symlink, b'2'),
        (Self::Character, b'3'),
        (Self::Block, b'4'),
        (Self::Directory, b'5'),
        (Self::Fifo, b'6'),
    ];
}

/// A member of an archive, without its data.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    pub path: Vec<u8>,
    /// Target of a link.
    pub link: Vec<u8>,
    pub kind: Kind,
    pub mode: u32,
    pub user: u32,
    pub group: u32,
    /// Bytes of data that follow.
    pub size: u64,
    /// Seconds since 1970.
    pub time: u64,
    /// Major and minor number.
    pub device: (u32, u32),
    pub attributes: Vec<(Vec<u8>, Vec<u8>)>,
}

/// Appends a member's headers to `out`.
pub fn encode(member: &Member, out: &mut Vec<u8>) {
    let mut records = Vec::new();
    let mut record = |key: &[u8], value: &[u8]| {
        // The length counts its own digits.
        let rest = key.len() + value.len() + 3;
        let mut length = rest + 1;
        while length != rest + format!("{length}").len() {
            length = rest + format!("{length}").len();
        }
        records.extend_from_slice(format!("{length} ").as_bytes());
        [key, b"=", value, b"\n"].iter().for_each(|part| records.extend_from_slice(part));
    };
    if member.path.len() > 100 {
        record(b"path", &member.path);
    }
    if member.link.len() > 100 {
        record(b"linkpath", &member.link);
    }
    for (key, value, digits) in [
        (&b"uid"[..], u64::from(member.user), 7),
        (b"gid", u64::from(member.group), 7),
        (b"size", member.size, 11),
        (b"mtime", member.time, 11),
    ] {
        if value >> (3 * digits) != 0 {
            record(key, format!("{value}").as_bytes());
        }
    }
    for (name, value) in &member.attributes {
        record(&[XATTR, name].concat(), value);
    }
    if !records.is_empty() {
        let size = records.len() as u64;
        let extended = Member { path: b"pax".to_vec(), size, attributes: Vec::new(), link: Vec::new(), ..*member };
        block(&extended, b'x', out);
        out.append(&mut records);
        out.resize(out.len() + padding(size), 0);
    }
    let flag = Kind::ALL.iter().find(|(kind, _)| *kind == member.kind).map_or(b'0', |(_, flag)| *flag);
    block(member, flag, out);
}

/// Zeroes between the end of data of this size and the next header.
pub fn padding(size: u64) -> usize {
    let over = usize::try_from(size % BLOCK as u64).unwrap_or(0);
    if over == 0 { 0 } else { BLOCK - over }
}

/// Numbers that do not fit are in the records before.
fn block(member: &Member, flag: u8, out: &mut Vec<u8>) {
    let mut header = vec![0; BLOCK];
    let mut put = |at: usize, width: usize, value: &[u8]| {
        header.iter_mut().skip(at).take(width).zip(value).for_each(|(to, from)| *to = *from);
    };
    let number = |value: u64, digits: usize| {
        let value = if value >> (3 * digits) == 0 { value } else { 0 };
        format!("{value:0digits$o}").into_bytes()
    };
    put(0, 100, &member.path);
    put(100, 7, &number((member.mode & 0o7777).into(), 7));
    put(108, 7, &number(member.user.into(), 7));
    put(116, 7, &number(member.group.into(), 7));
    put(124, 11, &number(member.size, 11));
    put(136, 11, &number(member.time, 11));
    put(148, 8, b"        ");
    put(156, 1, &[flag]);
    put(157, 100, &member.link);
    put(257, 8, b"ustar\x0000");
    put(329, 7, &number(member.device.0.into(), 7));
    put(337, 7, &number(member.device.1.into(), 7));
    let sum: u64 = header.iter().map(|byte| u64::from(*byte)).sum();
    let sum = format!("{sum:06o}\0 ");
    header.iter_mut().skip(148).zip(sum.bytes()).for_each(|(to, from)| *to = from);
    out.append(&mut header);
}

/// What has been read of a member before its own header.
#[derive(Debug, Default)]
pub struct Pending {
    path: Option<Vec<u8>>,
    link: Option<Vec<u8>>,
    size: Option<u64>,
    time: Option<u64>,
    user: Option<u64>,
    group: Option<u64>,
    attributes: Vec<(Vec<u8>, Vec<u8>)>,
}

/// What a block is.
#[derive(Debug, PartialEq, Eq)]
pub enum Header {
    /// The archive's end.
    End,
    /// So many bytes follow, which [`Pending::take`] wants with this flag.
    Before(u8, usize),
    /// A member.
    Member(Member),
}

impl Pending {
    /// Reads a header.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn header(&mut self, block: &[u8; BLOCK]) -> Result<Header, &'static str> {
        if block.iter().all(|byte| *byte == 0) {
            return Ok(Header::End);
        }
        let field = |at: usize, width: usize| block.get(at..at + width).unwrap_or_default();
        let sum = block.iter().enumerate().map(|(at, byte)| match at {
            148..156 => u64::from(b' '),
            _ => u64::from(*byte),
        });
        if number(field(148, 8)) != Some(sum.sum()) {
            return Err("a header's checksum is wrong: this is no tar archive");
        }
        let size = number(field(124, 12)).ok_or("a size is no number")?;
        let flag = block.get(156).copied().unwrap_or_default();
        if matches!(flag, b'x' | b'g' | b'L' | b'K') {
            let length = usize::try_from(size).ok().filter(|_| size <= EXTENDED_MAX);
            return Ok(Header::Before(flag, length.ok_or("a header is too long")?));
        }
        let kind = match flag {
            // Unix V7, and contiguous files.
            0 | b'7' => Kind::File,
            flag => Kind::ALL.iter().find(|(_, other)| *other == flag).ok_or("a kind of file is not known here")?.0,
        };
        let mut path = text(field(0, 100)).to_vec();
        let prefix = text(field(345, 155));
        if field(257, 6) == b"ustar\0" && !prefix.is_empty() {
            path = [prefix, b"/", &path].concat();
        }
        let before = core::mem::take(self);
        let small = |own: Option<u64>, at| {
            let value = own.or_else(|| number(field(at, 8))).ok_or("an owner is no number")?;
            u32::try_from(value).map_err(|_| "an owner has too high a number")
        };
        // V7 archives know directories by their names.
        let kind = if flag == 0 && path.ends_with(b"/") { Kind::Directory } else { kind };
        let mode = number(field(100, 8)).and_then(|mode| u32::try_from(mode).ok()).ok_or("a mode is no number")?;
        let device = |at| number(field(at, 8)).and_then(|number| u32::try_from(number).ok()).unwrap_or(0);
        let with_data = matches!(kind, Kind::File);
        Ok(Header::Member(Member {
            path: before.path.unwrap_or(path),
            link: before.link.unwrap_or_else(|| text(field(157, 100)).to_vec()),
            kind,
            mode: mode & 0o7777,
            user: small(before.user, 108)?,
            group: small(before.group, 116)?,
            size: if with_data { before.size.unwrap_or(size) } else { 0 },
            time: before.time.or_else(|| number(field(136, 12))).unwrap_or(0),
            device: (device(329), device(337)),
            attributes: before.attributes,
        }))
    }

    /// Takes what follows a header of names or records.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn take(&mut self, flag: u8, mut data: &[u8]) -> Result<(), &'static str> {
        match flag {
            b'L' => self.path = Some(text(data).to_vec()),
            b'K' => self.link = Some(text(data).to_vec()),
            // Records for all members say nothing that matters here.
            b'g' => {}
            _ => {
                while !data.is_empty() {
                    let wrong = "a record of an extended header is broken";
                    let blank = data.iter().position(|byte| *byte == b' ').ok_or(wrong)?;
                    let length = decimal(data.get(..blank).unwrap_or_default()).and_then(|n| usize::try_from(n).ok());
                    let (record, rest) = data.split_at_checked(length.ok_or(wrong)?).ok_or(wrong)?;
                    let record = record.get(blank + 1..).and_then(|record| record.strip_suffix(b"\n")).ok_or(wrong)?;
                    let equals = record.iter().position(|byte| *byte == b'=').ok_or(wrong)?;
                    let (key, value) = record.split_at(equals);
                    self.record(key, value.get(1..).unwrap_or_default())?;
                    data = rest;
                }
            }
        }
        Ok(())
    }

    fn record(&mut self, key: &[u8], value: &[u8]) -> Result<(), &'static str> {
        // Fractions of a second are left out.
        let whole = value.split(|byte| *byte == b'.').next().unwrap_or_default();
        let number = || decimal(whole).ok_or("a number in an extended header is none");
        match key {
            b"path" => self.path = Some(value.to_vec()),
            b"linkpath" => self.link = Some(value.to_vec()),
            b"size" => self.size = Some(number()?),
            // Before 1970 is 1970.
            b"mtime" => self.time = Some(decimal(whole).unwrap_or(0)),
            b"uid" => self.user = Some(number()?),
            b"gid" => self.group = Some(number()?),
            _ => {
                if let Some(name) = key.strip_prefix(XATTR) {
                    self.attributes.push((name.to_vec(), value.to_vec()));
                }
            }
        }
        Ok(())
    }
}

/// Up to the first zero.
fn text(field: &[u8]) -> &[u8] {
    field.split(|byte| *byte == 0).next().unwrap_or_default()
}

/// Octal digits, or with the highest bit set a number in base 256 (GNU).
fn number(field: &[u8]) -> Option<u64> {
    if let Some((first @ 0x80.., rest)) = field.split_first() {
        let high = u64::from(first & 0x7f);
        return rest.iter().try_fold(high, |number, byte| number.checked_mul(256)?.checked_add(u64::from(*byte)));
    }
    let digits = field.iter().skip_while(|byte| **byte == b' ').take_while(|byte| !matches!(**byte, 0 | b' '));
    digits.copied().try_fold(0u64, |number, byte| match byte {
        b'0'..=b'7' => number.checked_mul(8)?.checked_add(u64::from(byte - b'0')),
        _ => None,
    })
}

fn decimal(digits: &[u8]) -> Option<u64> {
    if digits.is_empty() {
        return None;
    }
    digits.iter().try_fold(0u64, |number, byte| match byte {
        b'0'..=b'9' => number.checked_mul(10)?.checked_add(u64::from(byte - b'0')),
        _ => None,
    })
}
