// SPDX-License-Identifier: Apache-2.0
//! What `coracle-probe` does: it looks, on the host or in a sandbox, and prints what it has seen, a JSON object a line.

use std::io::{self, Read, Write};
use std::process::ExitCode;

use serde::{Deserialize, Serialize};

use super::catalogue::{self, Facts, Seen};
use super::{attack, sys, tenant, victim};

/// A line of what it prints.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Line {
    /// Name of the probe.
    pub probe: String,
    /// What it saw.
    pub seen: Seen,
}

/// The first line, when the process has its name.
pub const READY: &str = "ready";

/// Does what the words say: `look FACTS NAME,...`, `tenant FACTS`, `victim FILES`, or `attack MARKER FILES`.
pub fn main(words: &[String]) -> ExitCode {
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let result = match words.as_slice() {
        ["look", facts, names] => read(facts).and_then(|facts| look(&facts, names)),
        ["tenant", facts] => read(facts).and_then(|facts| tenant::main(&facts)),
        ["victim", files] => victim::main(files),
        ["attack", marker, files] => attack::main(marker, files),
        _ => Err(io::Error::other("it is started by `coracle bench isolation`")),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // With stderr closed there is no one to tell.
            let _ = writeln!(io::stderr(), "coracle-probe: {error}");
            ExitCode::FAILURE
        }
    }
}

fn read(facts: &str) -> io::Result<Facts> {
    Ok(serde_json::from_str(facts)?)
}

/// Takes a name by which the host can tell this process, and says that it has.
pub fn announce(name: &str) -> io::Result<()> {
    let name = std::ffi::CString::new(name)?;
    // PR_SET_NAME.
    sys::call(libc::SYS_prctl, [15.into(), name.as_c_str().into()])?;
    say(READY)
}

/// Prints a line at once.
pub fn say(line: &str) -> io::Result<()> {
    let mut stdout = io::stdout().lock();
    writeln!(stdout, "{line}")?;
    stdout.flush()
}

fn look(facts: &Facts, names: &str) -> io::Result<()> {
    announce(&format!("{}s", facts.marker))?;
    let names: Vec<&str> = names.split(',').collect();
    for probe in catalogue::all().filter(|probe| names.contains(&probe.name)) {
        if let Some(look) = probe.look {
            let seen = sys::alone(facts.patience, || look(facts));
            say(&serde_json::to_string(&Line { probe: probe.name.to_owned(), seen })?)?;
        }
    }
    // It stays until the host has seen it.
    io::stdin().read_to_end(&mut Vec::new()).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_read_back() {
        for seen in [Seen::Count(7), Seen::Done("x".into()), Seen::Refused("EPERM".into()), Seen::Value("\n\"".into())]
        {
            let line = Line { probe: "boot-id".to_owned(), seen };
            let text = serde_json::to_string(&line).unwrap();
            assert_eq!((text.lines().count(), serde_json::from_str::<Line>(&text).unwrap()), (1, line));
        }
    }
}
