// SPDX-License-Identifier: Apache-2.0
//! An error as a person reads it: what failed, why, and what to try next.

use std::fmt;

use serde::{Deserialize, Serialize};

/// Exit status where Coracle itself has failed, as opposed to what it runs (Docker's convention).
pub const EXIT_FAILURE: u8 = 125;

/// A failure in three lines.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    /// What failed, on which object, in the user's own spelling: "cannot read kernel `vmlinux`".
    pub what: String,
    /// The reason: "it is an AArch64 image".
    pub why: String,
    /// The next thing to do, as a command where there is one.
    pub try_next: String,
}

impl Failure {
    /// A failure with its three parts.
    pub fn new(what: impl Into<String>, why: impl fmt::Display, try_next: impl Into<String>) -> Self {
        Self { what: what.into(), why: why.to_string(), try_next: try_next.into() }
    }
}

impl fmt::Display for Failure {
    /// The three lines, without a newline at the end. Control characters are escaped, since parts may quote input.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (what, why, next) = (one_line(&self.what), one_line(&self.why), one_line(&self.try_next));
        write!(f, "coracle: {what}\n  why: {why}\n  try: {next}")
    }
}

impl std::error::Error for Failure {}

fn one_line(text: &str) -> String {
    let escaped = |c: char| if c.is_control() { c.escape_default().to_string() } else { c.to_string() };
    text.trim_end().chars().map(escaped).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_three_lines_whatever_it_quotes() {
        let failure = Failure::new("cannot open disk `a\nb\x1b[2J`", "no such file\n", "check the path");
        let text = failure.to_string();
        assert_eq!(text.lines().count(), 3);
        assert!(!text.contains('\x1b'));
        assert!(text.starts_with("coracle: cannot open disk `a\\nb\\u{1b}[2J`\n  why: no such file\n"));
    }
}
