// SPDX-License-Identifier: Apache-2.0
//! The kernel command line, built word by word and checked before it reaches the guest.

use super::MmioDevice;
use crate::failure::Failure;

/// Words for every guest: reset through the keyboard controller (the fastest way that the VMM sees), and no waiting
/// after a panic.
pub const DEFAULT_WORDS: &str = "reboot=k panic=-1";

/// A command line that cannot be given to a kernel.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum CommandLineError {
    /// Kernels take printable ASCII only.
    #[error("character {position} is {found:?}, and only printable ASCII is allowed")]
    Character {
        /// Offset in characters from the start of the given text, from 1.
        position: usize,
        /// The character.
        found: char,
    },
    /// It is longer than the kernel's buffer.
    #[error("it has {length} bytes, and this kernel takes at most {limit}")]
    TooLong {
        /// Its length in bytes, without the NUL.
        length: usize,
        /// The kernel's limit, without the NUL.
        limit: usize,
    },
}

impl CommandLineError {
    /// The next thing to try.
    pub fn advice(&self) -> String {
        match self {
            Self::Character { .. } => {
                "remove the character; pass such text to the guest in a file or over vsock instead".into()
            }
            Self::TooLong { length, limit } => {
                format!("remove at least {} bytes, or use fewer devices", length.saturating_sub(*limit))
            }
        }
    }
}

impl From<CommandLineError> for Failure {
    fn from(error: CommandLineError) -> Self {
        Self::new("cannot use the kernel command line", &error, error.advice())
    }
}

/// Builds a command line: words of the VMM first, the user's after them, so that for words given twice the user's
/// counts, and whatever follows the user's ` -- ` reaches `init`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct CommandLine {
    ours: String,
    users: String,
}

impl CommandLine {
    /// An empty command line.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds words of the VMM.
    ///
    /// # Errors
    /// A character that kernels do not take.
    pub fn add(&mut self, words: &str) -> Result<(), CommandLineError> {
        append(&mut self.ours, words)
    }

    /// Adds words of the user, which come after all of the VMM's.
    ///
    /// # Errors
    /// A character that kernels do not take.
    pub fn add_users(&mut self, words: &str) -> Result<(), CommandLineError> {
        append(&mut self.users, words)
    }

    /// Tells a kernel that cannot read ACPI where a virtio-mmio device is (Linux `virtio_mmio.device=`).
    pub fn add_mmio_device(&mut self, device: &MmioDevice) {
        let MmioDevice { address, size, gsi } = device;
        let size = if size % 1024 == 0 { format!("{}K", size / 1024) } else { size.to_string() };
        let separator = if self.ours.is_empty() { "" } else { " " };
        self.ours.push_str(&format!("{separator}virtio_mmio.device={size}@{address:#x}:{gsi}"));
    }

    /// The whole line, checked against the kernel's `limit` in bytes (without the NUL).
    ///
    /// # Errors
    /// It is longer.
    pub fn finish(&self, limit: usize) -> Result<String, CommandLineError> {
        let line = self.to_string();
        if line.len() > limit {
            return Err(CommandLineError::TooLong { length: line.len(), limit });
        }
        Ok(line)
    }
}

impl std::fmt::Display for CommandLine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let separator = if self.ours.is_empty() || self.users.is_empty() { "" } else { " " };
        write!(f, "{}{separator}{}", self.ours, self.users)
    }
}

/// Appends `words` with one space between, surrounding white space removed.
fn append(line: &mut String, words: &str) -> Result<(), CommandLineError> {
    if let Some((index, found)) = words.trim().chars().enumerate().find(|(_, c)| !matches!(c, ' '..='~')) {
        return Err(CommandLineError::Character { position: index + 1, found });
    }
    let words = words.trim();
    if !line.is_empty() && !words.is_empty() {
        line.push(' ');
    }
    line.push_str(words);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_users_words_come_last() {
        let mut line = CommandLine::new();
        line.add(DEFAULT_WORDS).unwrap();
        line.add_users("  panic=5 -- single ").unwrap();
        line.add_mmio_device(&MmioDevice { address: 0xd000_0000, size: 4096, gsi: 5 });
        let want = "reboot=k panic=-1 virtio_mmio.device=4K@0xd0000000:5 panic=5 -- single";
        assert_eq!(line.finish(2047).unwrap(), want);
    }

    #[test]
    fn nothing_gives_an_empty_line() {
        let mut line = CommandLine::new();
        line.add("").unwrap();
        line.add_users(" ").unwrap();
        assert_eq!(line.finish(0).unwrap(), "");
        line.add_users("quiet").unwrap();
        assert_eq!(line.finish(5).unwrap(), "quiet");
    }

    #[test]
    fn an_error_names_length_and_limit() {
        let mut line = CommandLine::new();
        line.add_users(&"x".repeat(2048)).unwrap();
        let error = line.finish(2047).unwrap_err();
        assert_eq!(error, CommandLineError::TooLong { length: 2048, limit: 2047 });
        assert_eq!(error.to_string(), "it has 2048 bytes, and this kernel takes at most 2047");
        assert_eq!(error.advice(), "remove at least 1 bytes, or use fewer devices");
        assert!(line.finish(2048).is_ok());
    }

    #[test]
    fn unprintable_characters_are_refused() {
        for (words, position, found) in
            [("a\0b", 2, '\0'), ("ab\ncd", 3, '\n'), ("é", 1, 'é'), ("abc\u{7f}", 4, '\u{7f}')]
        {
            let error = CommandLine::new().add_users(words).unwrap_err();
            assert_eq!(error, CommandLineError::Character { position, found });
        }
    }

    proptest! {
        #[test]
        fn any_words_give_one_printable_line(ours in ".{0,40}", users in ".{0,40}", limit in 0usize..100) {
            let mut line = CommandLine::new();
            let taken = [line.add(&ours).is_ok(), line.add_users(&users).is_ok()];
            for (words, taken) in [ours, users].iter().zip(taken) {
                prop_assert_eq!(taken, words.trim().bytes().all(|byte| (b' '..=b'~').contains(&byte)));
                if taken {
                    prop_assert!(line.to_string().contains(words.trim()));
                }
            }
            if let Ok(line) = line.finish(limit) {
                prop_assert!(line.len() <= limit);
                prop_assert!(line.bytes().all(|byte| (b' '..=b'~').contains(&byte)));
            }
        }
    }
}
