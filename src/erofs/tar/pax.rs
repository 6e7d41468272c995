// SPDX-License-Identifier: Apache-2.0
//! Extended headers: POSIX.1-2017 `pax`, "pax Extended Header", with the records that GNU tar, star and Go add.

use std::collections::BTreeMap;

use super::TarProblem;
use crate::erofs::format::Time;

/// What an extended header says about the next entry. An empty value takes a record back.
#[derive(Debug, Default)]
pub(super) struct Extended {
    pub(super) path: Option<Vec<u8>>,
    pub(super) link: Option<Vec<u8>>,
    pub(super) size: Option<u64>,
    pub(super) uid: Option<i64>,
    pub(super) gid: Option<i64>,
    pub(super) mtime: Option<Time>,
    /// By full name.
    pub(super) xattrs: BTreeMap<Box<[u8]>, Box<[u8]>>,
    pub(super) sparse: SparseRecords,
}

/// The `GNU.sparse` records, of formats 0.0, 0.1 and 1.0 ("Storing Sparse Files" in GNU tar's manual).
#[derive(Debug, Default)]
pub(super) struct SparseRecords {
    pub(super) name: Option<Vec<u8>>,
    /// Size of the file with its holes.
    pub(super) size: Option<u64>,
    /// The map is at the start of the data (format 1.0).
    pub(super) map_in_data: bool,
    /// Offsets and lengths in turn.
    pub(super) map: Vec<u64>,
}

impl Extended {
    pub(super) fn parse(mut bytes: &[u8]) -> Result<Self, TarProblem> {
        let mut extended = Self::default();
        while !bytes.is_empty() {
            let (key, value, rest) = record(bytes).ok_or(TarProblem::Pax)?;
            extended.set(key, value).ok_or_else(|| TarProblem::PaxValue(key.into()))?;
            bytes = rest;
        }
        Ok(extended)
    }

    fn set(&mut self, key: &[u8], value: &[u8]) -> Option<()> {
        match key {
            b"path" => self.path = name(value)?,
            b"linkpath" => self.link = name(value)?,
            b"size" => self.size = optional(value, decimal)?,
            b"uid" => self.uid = optional(value, |text| i64::try_from(decimal(text)?).ok())?,
            b"gid" => self.gid = optional(value, |text| i64::try_from(decimal(text)?).ok())?,
            b"mtime" => self.mtime = optional(value, time)?,
            b"GNU.sparse.name" => self.sparse.name = name(value)?,
            b"GNU.sparse.size" | b"GNU.sparse.realsize" => self.sparse.size = Some(decimal(value)?),
            b"GNU.sparse.major" => self.sparse.map_in_data = decimal(value)? == 1,
            b"GNU.sparse.offset" | b"GNU.sparse.numbytes" => self.sparse.map.push(decimal(value)?),
            b"GNU.sparse.map" => {
                let numbers = value.split(|byte| *byte == b',').filter(|number| !number.is_empty());
                self.sparse.map = numbers.map(decimal).collect::<Option<_>>()?;
            }
            _ => {
                if let Some(xattr) = key.strip_prefix(b"SCHILY.xattr.") {
                    let xattr = (!xattr.is_empty() && !xattr.contains(&0)).then_some(xattr)?;
                    // POSIX has no empty values, and so unpackers in Go have no empty attributes.
                    if value.is_empty() {
                        self.xattrs.remove(xattr);
                    } else {
                        self.xattrs.insert(xattr.into(), value.into());
                    }
                }
            }
        }
        Some(())
    }
}

/// Splits off the first record, `LENGTH KEY=VALUE\n`, whose length counts all of it.
fn record(bytes: &[u8]) -> Option<(&[u8], &[u8], &[u8])> {
    let space = bytes.iter().position(|byte| *byte == b' ')?;
    let length = usize::try_from(decimal(bytes.get(..space)?)?).ok()?;
    let (record, rest) = bytes.split_at_checked(length)?;
    let pair = record.get(space + 1..)?.strip_suffix(b"\n")?;
    let equals = pair.iter().position(|byte| *byte == b'=').filter(|at| *at > 0)?;
    Some((pair.get(..equals)?, pair.get(equals + 1..)?, rest))
}

fn optional<T>(value: &[u8], parse: impl Fn(&[u8]) -> Option<T>) -> Option<Option<T>> {
    if value.is_empty() { Some(None) } else { parse(value).map(Some) }
}

fn name(value: &[u8]) -> Option<Option<Vec<u8>>> {
    optional(value, |name| (!name.contains(&0)).then(|| name.to_vec()))
}

/// Decimal digits, and nothing else.
pub(super) fn decimal(text: &[u8]) -> Option<u64> {
    if text.is_empty() {
        return None;
    }
    text.iter().try_fold(0u64, |value, digit| match digit {
        b'0'..=b'9' => value.checked_mul(10)?.checked_add(u64::from(digit - b'0')),
        _ => None,
    })
}

/// Decimal seconds with a fraction, of which nanoseconds are kept.
fn time(text: &[u8]) -> Option<Time> {
    let (negative, text) = match text.strip_prefix(b"-") {
        Some(rest) => (true, rest),
        None => (false, text),
    };
    let mut parts = text.splitn(2, |byte| *byte == b'.');
    let seconds = i64::try_from(decimal(parts.next()?)?).ok()?;
    let fraction = parts.next().unwrap_or(&[]);
    let digits = fraction.iter().map(|digit| digit.is_ascii_digit().then(|| u32::from(digit - b'0')));
    let digits: Vec<u32> = digits.collect::<Option<_>>()?;
    let nanoseconds = (0..9).fold(0, |value, at| value * 10 + digits.get(at).unwrap_or(&0));
    Some(match (negative, nanoseconds) {
        (false, _) => Time { seconds, nanoseconds },
        (true, 0) => Time { seconds: -seconds, nanoseconds },
        (true, _) => Time { seconds: -seconds - 1, nanoseconds: 1_000_000_000 - nanoseconds },
    })
}

#[cfg(test)]
mod tests {
    use super::super::testing::record;
    use super::*;

    fn time_of(text: &str) -> Option<(i64, u32)> {
        time(text.as_bytes()).map(|time| (time.seconds, time.nanoseconds))
    }

    #[test]
    fn times_count_forward() {
        assert_eq!(time_of("1350244992.023960108"), Some((1_350_244_992, 23_960_108)));
        assert_eq!(time_of("12.5"), Some((12, 500_000_000)));
        assert_eq!(time_of("12."), Some((12, 0)));
        assert_eq!(time_of("12.12345678999"), Some((12, 123_456_789)));
        assert_eq!(time_of("-1.25"), Some((-2, 750_000_000)));
        assert_eq!(time_of("-1"), Some((-1, 0)));
        assert_eq!(time_of(".5"), None);
        assert_eq!(time_of("1.x"), None);
        assert_eq!(time_of("99999999999999999999"), None);
    }

    #[test]
    fn records_are_split_by_their_length() {
        let records = [record(b"path", b"a\nb=c/\xff\xfe "), record(b"size", b"99999999999")].concat();
        let records = [records, record(b"SCHILY.xattr.user.k", b"v\0\n\x01\x02w")].concat();
        let extended = Extended::parse(&records).expect("valid records");
        assert_eq!(extended.path.as_deref(), Some(&b"a\nb=c/\xff\xfe "[..]));
        assert_eq!(extended.size, Some(99_999_999_999));
        assert_eq!(extended.xattrs.get(&b"user.k"[..]).map(|value| &value[..]), Some(&b"v\0\n\x01\x02w"[..]));
    }

    #[test]
    fn damaged_records_are_refused() {
        for bytes in [
            &b"x"[..],
            b"9 path=a",
            b"99 path=a\n",
            b"3 \n",
            b"0 a=b\n",
            b"5 =b\n",
            b"18446744073709551616 a=b\n",
            b"10 path=a\0\n",
            b"9 size=x\n",
            b"10 uid=-1\n",
        ] {
            assert!(Extended::parse(bytes).is_err(), "{}", bytes.escape_ascii());
        }
        assert!(Extended::parse(b"").is_ok());
        assert_eq!(Extended::parse(b"9 path=a\n8 path=\n").expect("valid").path, None);
        let twice = [record(b"SCHILY.xattr.user.k", b"v"), record(b"SCHILY.xattr.user.k", b"")].concat();
        assert!(Extended::parse(&twice).expect("valid").xattrs.is_empty());
    }
}
