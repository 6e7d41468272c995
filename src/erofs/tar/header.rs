// SPDX-License-Identifier: Apache-2.0
//! The 512 bytes before each entry: POSIX ustar, GNU and Unix V7.

use super::TarProblem;

/// Unit of all that is in an archive.
pub(super) const RECORD: usize = 512;

/// One header, its checksum verified.
pub(super) struct Header {
    bytes: [u8; RECORD],
}

/// Which dialect a header is of; it decides what the bytes from 345 mean.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Dialect {
    V7,
    Ustar,
    Gnu,
}

impl Header {
    /// Checks the checksum.
    pub(super) fn new(bytes: [u8; RECORD]) -> Result<Self, &'static str> {
        let header = Self { bytes };
        let claimed = number(header.field::<148, 8>()).ok_or("its checksum is no number")?;
        // Bytes were added as signed by some, and POSIX says unsigned. The checksum itself counts as spaces.
        let counted =
            header.bytes.iter().enumerate().map(|(at, byte)| if (148..156).contains(&at) { b' ' } else { *byte });
        let unsigned: i64 = counted.clone().map(i64::from).sum();
        let signed: i64 = counted.map(|byte| i64::from(byte.cast_signed())).sum();
        if claimed != unsigned && claimed != signed {
            return Err("its checksum is wrong");
        }
        Ok(header)
    }

    fn field<const AT: usize, const LENGTH: usize>(&self) -> &[u8] {
        self.bytes.get(AT..AT + LENGTH).unwrap_or(&[])
    }

    fn dialect(&self) -> Dialect {
        match self.field::<257, 8>() {
            b"ustar  \0" => Dialect::Gnu,
            magic if magic.starts_with(b"ustar") => Dialect::Ustar,
            _ => Dialect::V7,
        }
    }

    pub(super) fn type_flag(&self) -> u8 {
        self.bytes[156]
    }

    /// The name, with ustar's prefix.
    pub(super) fn name(&self) -> Vec<u8> {
        let name = text(self.field::<0, 100>());
        let prefix = match self.dialect() {
            Dialect::Ustar => text(self.field::<345, 155>()),
            Dialect::V7 | Dialect::Gnu => &[],
        };
        if prefix.is_empty() { name.to_vec() } else { [prefix, b"/", name].concat() }
    }

    pub(super) fn link(&self) -> Vec<u8> {
        text(self.field::<157, 100>()).to_vec()
    }

    pub(super) fn mode(&self) -> Result<i64, TarProblem> {
        number(self.field::<100, 8>()).ok_or(TarProblem::Number("mode"))
    }

    pub(super) fn uid(&self) -> Result<i64, TarProblem> {
        number(self.field::<108, 8>()).ok_or(TarProblem::Number("owner"))
    }

    pub(super) fn gid(&self) -> Result<i64, TarProblem> {
        number(self.field::<116, 8>()).ok_or(TarProblem::Number("group"))
    }

    pub(super) fn size(&self) -> Result<i64, TarProblem> {
        number(self.field::<124, 12>()).ok_or(TarProblem::Number("size"))
    }

    pub(super) fn mtime(&self) -> Result<i64, TarProblem> {
        number(self.field::<136, 12>()).ok_or(TarProblem::Number("time"))
    }

    /// Major and minor number.
    pub(super) fn device(&self) -> Result<(i64, i64), TarProblem> {
        let part = |field| number(field).ok_or(TarProblem::Number("device number"));
        match self.dialect() {
            Dialect::V7 => Ok((0, 0)),
            Dialect::Ustar | Dialect::Gnu => Ok((part(self.field::<329, 8>())?, part(self.field::<337, 8>())?)),
        }
    }

    /// The start of an old GNU sparse map: four pairs, whether more follow, and the size of the file.
    pub(super) fn sparse(&self) -> (&[u8], bool, Option<i64>) {
        (self.field::<386, 96>(), self.bytes[482] != 0, number(self.field::<483, 12>()))
    }
}

/// Up to the first NUL.
pub(super) fn text(field: &[u8]) -> &[u8] {
    field.split(|byte| *byte == 0).next().unwrap_or(&[])
}

/// A number: octal digits between spaces and NULs (nothing at all is 0), or GNU's base 256 in two's complement.
pub(super) fn number(field: &[u8]) -> Option<i64> {
    let first = *field.first()?;
    if first & 0x80 != 0 {
        // Bit 7 of the first byte marks the form, bit 6 is the sign.
        let start = i64::from((first << 1).cast_signed() >> 1);
        return field
            .iter()
            .skip(1)
            .try_fold(start, |value, byte| value.checked_mul(256)?.checked_add(i64::from(*byte)));
    }
    let trimmed = text(field).trim_ascii();
    trimmed.iter().try_fold(0i64, |value, digit| match digit {
        b'0'..=b'7' => value.checked_mul(8)?.checked_add(i64::from(digit - b'0')),
        _ => None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_in_all_forms() {
        assert_eq!(number(b"0000644\0"), Some(0o644));
        assert_eq!(number(b"   644 \0"), Some(0o644));
        assert_eq!(number(b"77777777777 "), Some(0o77_777_777_777));
        assert_eq!(number(&[0; 8]), Some(0));
        assert_eq!(number(b"0009000\0"), None);
        assert_eq!(number(b"-000001\0"), None);
        assert_eq!(number(&[0x80, 0, 0, 0, 0, 1, 0, 0]), Some(65536));
        assert_eq!(number(&[0xff; 12]), Some(-1));
        assert_eq!(number(&[0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xfe]), Some(-2));
        assert_eq!(number(&[0x80, 0, 0, 0, 0x80, 0, 0, 0, 0, 0, 0, 0]), None, "2^63 is too large");
        assert_eq!(number(b""), None);
    }
}
