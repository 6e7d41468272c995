// SPDX-License-Identifier: Apache-2.0
//! Text from the other side, safe to print.

use alloc::string::String;
use core::fmt;

use serde::{Deserialize, Deserializer, Serialize};

/// Longest [`Text`] in bytes.
pub const MAX_TEXT: usize = 512;

/// A short line of text that cannot drive a terminal: control characters are replaced by `U+FFFD` and anything beyond
/// [`MAX_TEXT`] bytes is cut, when made here as well as when received.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Text(String);

impl Text {
    /// Cleans `raw`.
    #[must_use]
    pub fn new(raw: &str) -> Self {
        let mut clean = String::new();
        for character in raw.chars() {
            let character = if is_printable(character) { character } else { char::REPLACEMENT_CHARACTER };
            if clean.len() + character.len_utf8() > MAX_TEXT {
                break;
            }
            clean.push(character);
        }
        Self(clean)
    }

    /// The text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// Bidirectional overrides reorder what a person reads, so they count as control characters (Unicode TR 9).
fn is_printable(character: char) -> bool {
    !character.is_control()
        && !matches!(character, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

impl fmt::Display for Text {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for Text {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        <&str>::deserialize(deserializer).map(Self::new)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn escapes_are_defused() {
        assert_eq!(Text::new("a\x1b[2Jb\n\u{9b}c\u{202e}").as_str(), "a\u{fffd}[2Jb\u{fffd}\u{fffd}c\u{fffd}");
    }

    #[test]
    fn long_text_is_cut_between_characters() {
        let text = Text::new(&"é".repeat(MAX_TEXT));
        assert_eq!(text.as_str().len(), MAX_TEXT);
        assert!(Text::new(&alloc::format!("x{}", "é".repeat(MAX_TEXT))).as_str().len() < MAX_TEXT);
    }
}
