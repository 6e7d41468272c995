// SPDX-License-Identifier: Apache-2.0
//! The end of a PID 1 that has a bug.

use core::fmt::{self, Write};
use core::panic::PanicInfo;

/// Says where and why on the console, then ends the machine as one whose kernel has panicked.
#[panic_handler]
fn panic(info: &PanicInfo<'_>) -> ! {
    // Nothing is left to do if even this fails.
    let _ = writeln!(Console, "coracle-agent: {info}");
    coracle_agent::fail()
}

struct Console;

impl Write for Console {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        coracle_agent::say(text.as_bytes());
        Ok(())
    }
}
