// SPDX-License-Identifier: Apache-2.0
//! What the kernel command line asks of the agent.
//!
//! The kernel gives `name=value` words that it does not know to PID 1 as environment, but not those with a dot in the
//! name (`unknown_bootoption()` in `init/main.c`). Hence `coracle_console`, not `coracle.console`: reading
//! `/proc/cmdline` instead would take a mount and three more system calls.

use core::ffi::CStr;

/// What the kernel command line asks of the agent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Settings {
    /// `coracle_console=shell|none`.
    pub console: Console,
}

/// What to do with `/dev/console`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Console {
    /// Start a shell if the initramfs has one.
    #[default]
    IfPresent,
    /// Start a shell; not having one is an error.
    Shell,
    /// Leave it alone.
    None,
}

impl Settings {
    /// Reads the environment. Of words that contradict each other the last counts, as for the kernel's own.
    pub fn read<'a>(environment: impl Iterator<Item = &'a CStr>) -> Self {
        let mut settings = Self::default();
        for word in environment {
            match word.to_bytes() {
                b"coracle_console=shell" => settings.console = Console::Shell,
                b"coracle_console=none" => settings.console = Console::None,
                _ => {}
            }
        }
        settings
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn console(words: &[&CStr]) -> Console {
        Settings::read(words.iter().copied()).console
    }

    #[test]
    fn the_last_word_counts() {
        assert_eq!(console(&[c"HOME=/", c"TERM=linux"]), Console::IfPresent);
        assert_eq!(console(&[c"coracle_console=none", c"coracle_console=shell"]), Console::Shell);
        assert_eq!(console(&[c"coracle_console=shell", c"coracle_console=none", c"x"]), Console::None);
    }
}
