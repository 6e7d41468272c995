// SPDX-License-Identifier: Apache-2.0
//! Ids and names of containers.

use std::io;

use rustix::rand::{GetRandomFlags, getrandom};

const QUALITIES: [&str; 32] = [
    "able", "brave", "brisk", "calm", "clear", "deft", "early", "fair", "fleet", "fresh", "gentle", "glad", "hardy",
    "keen", "kind", "light", "lively", "lucid", "merry", "neat", "nimble", "patient", "plain", "quick", "quiet",
    "ready", "sound", "steady", "still", "swift", "trim", "wise",
];
const BOATS: [&str; 32] = [
    "barge", "bark", "brig", "canoe", "caravel", "clipper", "cog", "currach", "cutter", "dhow", "dinghy", "dory",
    "ferry", "galley", "gig", "junk", "kayak", "ketch", "launch", "lugger", "pinnace", "pram", "proa", "punt", "raft",
    "sampan", "schooner", "skiff", "sloop", "tender", "wherry", "yawl",
];

/// 256 random bits in hexadecimal digits, as Docker's ids are.
///
/// # Errors
/// The kernel's.
pub fn new_id() -> io::Result<String> {
    Ok(random::<32>()?.iter().map(|byte| format!("{byte:02x}")).collect())
}

/// A name that nobody has chosen: a quality and a boat, and a number where `is_taken` says that there is need for one.
///
/// # Errors
/// The kernel's.
pub fn new_name(is_taken: impl Fn(&str) -> bool) -> io::Result<String> {
    let pick = |words: &[&'static str; 32], random: u8| words[usize::from(random % 32)];
    let mut suffix = String::new();
    loop {
        let [quality, boat, number] = random::<3>()?;
        let name = format!("{}_{}{suffix}", pick(&QUALITIES, quality), pick(&BOATS, boat));
        if !is_taken(&name) {
            return Ok(name);
        }
        suffix += &number.to_string();
    }
}

/// Whether Docker would take this name: `[a-zA-Z0-9][a-zA-Z0-9_.-]+`.
pub fn is_name(text: &str) -> bool {
    let ordinary = |c: char| c.is_ascii_alphanumeric();
    text.starts_with(ordinary)
        && (2..=128).contains(&text.len())
        && text.chars().all(|c| ordinary(c) || "_.-".contains(c))
}

fn random<const N: usize>() -> io::Result<[u8; N]> {
    let mut bytes = [0; N];
    // Up to 256 bytes come at once, once the kernel has any to give.
    getrandom(&mut bytes[..], GetRandomFlags::empty())?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    #[test]
    fn ids_and_names_are_dockers() {
        let id = new_id().unwrap();
        assert!(id.len() == 64 && id.bytes().all(|byte| byte.is_ascii_hexdigit()) && id != new_id().unwrap());
        let asked = Cell::new(0);
        let name = new_name(|_| asked.replace(asked.get() + 1) < 2).unwrap();
        assert!(is_name(&name) && name.ends_with(|c: char| c.is_ascii_digit()), "{name}");
        for (text, fits) in [("web", true), ("a.b_c-1", true), ("a", false), ("-a", false), ("a/b", false), ("", false)]
        {
            assert_eq!(is_name(text), fits, "{text}");
        }
    }
}
