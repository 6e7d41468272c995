// SPDX-License-Identifier: Apache-2.0
//! Maps of sparse files: where in a file the bytes go that the archive holds.

use super::TarProblem;
use super::header::number;

/// Most pieces that a sparse file may have.
pub(super) const PIECES_MAX: usize = 1 << 16;

/// A piece of a sparse file that is not a hole. In bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Piece {
    /// Where it is in the file.
    pub offset: u64,
    /// Its length.
    pub length: u64,
}

/// Makes pieces of offsets and lengths in turn, and checks that they follow each other, lie in the file, and take all
/// `stored` bytes.
pub(super) fn pieces(numbers: &[u64], size: u64, stored: u64) -> Result<Vec<Piece>, TarProblem> {
    let (pairs, rest) = numbers.as_chunks::<2>();
    if !rest.is_empty() {
        return Err(TarProblem::Sparse("an offset without a length"));
    }
    if pairs.len() > PIECES_MAX {
        return Err(TarProblem::Sparse("it has too many pieces"));
    }
    let mut end = 0u64;
    let mut total = 0u64;
    for [offset, length] in pairs {
        if *offset < end {
            return Err(TarProblem::Sparse("its pieces overlap or are not in order"));
        }
        end = offset
            .checked_add(*length)
            .filter(|end| *end <= size)
            .ok_or(TarProblem::Sparse("a piece is beyond the end"))?;
        total += length;
    }
    if total != stored {
        return Err(TarProblem::Sparse("its pieces are not what the archive holds"));
    }
    Ok(pairs.iter().map(|[offset, length]| Piece { offset: *offset, length: *length }).collect())
}

/// Adds pairs of an old GNU map; an empty one ends it.
pub(super) fn read_old_pairs(field: &[u8], numbers: &mut Vec<u64>) -> Result<(), TarProblem> {
    let (pairs, _) = field.as_chunks::<24>();
    for pair in pairs.iter().take_while(|pair| pair[0] != 0) {
        let (offset, length) = pair.split_at(12);
        for part in [offset, length] {
            let value = number(part).and_then(|value| u64::try_from(value).ok());
            numbers.push(value.ok_or(TarProblem::Number("sparse file's map"))?);
        }
    }
    if numbers.len() > 2 * PIECES_MAX {
        return Err(TarProblem::Sparse("it has too many pieces"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn maps_must_agree_with_the_file() {
        assert_eq!(pieces(&[0, 5, 10, 5, 20, 0], 20, 10).expect("valid").len(), 3);
        assert_eq!(pieces(&[], 1 << 40, 0).expect("one hole"), []);
        for (numbers, size, stored) in [
            (&[0, 5, 4, 5][..], 20, 10),
            (&[10, 5, 0, 5], 20, 10),
            (&[0, 5, 10], 20, 5),
            (&[0, 21], 20, 21),
            (&[u64::MAX, 2], 20, 2),
            (&[0, 5], 20, 6),
            (&[0, u64::MAX, u64::MAX, u64::MAX], u64::MAX, 0),
        ] {
            assert!(pieces(numbers, size, stored).is_err(), "{numbers:?}");
        }
    }
}
