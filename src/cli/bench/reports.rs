// SPDX-License-Identifier: Apache-2.0
//! What all benchmarks have in common: the image, what they say meanwhile, and how a result is printed and kept.

use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Args, ValueEnum};
use coracle::failure::Failure;
use coracle::image::{Image, Platform, PullOptions, PullPolicy, Store};
use serde::Serialize;

use super::super::pull_progress::{ProgressKind, PullProgress};
use super::super::registry_access::AccessArgs;
use super::super::units;

/// Exit status of what the user has interrupted, as shells have it.
const INTERRUPTED: u8 = 130;

/// How the result is told.
#[derive(Debug, Args)]
pub struct ResultArgs {
    /// How to print the result
    #[arg(long, value_enum, default_value_t)]
    format: ResultFormat,
    /// Write index.html, result.json and a CSV file into this directory as well
    #[arg(long, value_name = "DIR")]
    report: Option<PathBuf>,
    /// Print nothing of what is being done
    #[arg(short, long)]
    quiet: bool,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
enum ResultFormat {
    /// For people
    #[default]
    #[value(alias = "text")]
    Table,
    /// For programs: see docs/benchmark.md
    Json,
    /// Each run, for a spreadsheet
    Csv,
}

impl ResultArgs {
    /// Makes the directory, before minutes are spent.
    ///
    /// # Errors
    /// It cannot be made.
    pub fn prepare(&self) -> Result<(), Failure> {
        let Some(directory) = &self.report else { return Ok(()) };
        let what = || format!("cannot write to {}", directory.display());
        std::fs::create_dir_all(directory).map_err(|error| Failure::new(what(), error, "another --report"))
    }

    /// Gets the image.
    ///
    /// # Errors
    /// It is neither here nor to be had.
    pub fn obtain(&self, store: &Store, name: &str, access: &AccessArgs) -> Result<Image, Failure> {
        let progress = PullProgress::new(if self.quiet { ProgressKind::None } else { ProgressKind::Auto });
        let options = PullOptions { platform: Platform::native(), access: access.access() };
        let image = store.obtain(name, PullPolicy::Missing, &options, &progress);
        progress.finish();
        Ok(image?)
    }

    /// Says what is being done.
    pub fn tell(&self) -> impl FnMut(&str) {
        let quiet = self.quiet;
        move |text| {
            if !quiet {
                // With stderr closed there is no one to tell.
                let _ = writeln!(io::stderr(), "{}", units::printable(text));
            }
        }
    }

    /// Prints a result, and writes what is to be kept of it; `csv` has the name of its file with it.
    ///
    /// # Errors
    /// One of them cannot be written.
    pub fn publish(
        &self,
        report: &impl Serialize,
        interrupted: bool,
        csv: (&str, String),
        page: impl FnOnce() -> String,
        table: impl FnOnce(&mut dyn Write) -> io::Result<()>,
    ) -> anyhow::Result<ExitCode> {
        let json = serde_json::to_string_pretty(report)? + "\n";
        match self.format {
            ResultFormat::Table => table(&mut anstream::stdout().lock())?,
            ResultFormat::Json => io::stdout().write_all(json.as_bytes())?,
            ResultFormat::Csv => io::stdout().write_all(csv.1.as_bytes())?,
        }
        if let Some(directory) = &self.report {
            save(directory, &[("index.html", page()), ("result.json", json), csv])?;
        }
        Ok(if interrupted { ExitCode::from(INTERRUPTED) } else { ExitCode::SUCCESS })
    }
}

/// Writes what must be known of a result; some of it may be the words of an image's program.
pub fn write_notes(notes: &[String], out: &mut (impl Write + ?Sized)) -> io::Result<()> {
    notes.iter().try_for_each(|note| writeln!(out, "- {}", units::printable(note)))
}

fn save(directory: &Path, files: &[(&str, String)]) -> Result<(), Failure> {
    for (name, content) in files {
        let path = directory.join(name);
        let why = |error| {
            Failure::new(format!("cannot write {}", path.display()), error, "another --report; the result is above")
        };
        std::fs::write(&path, content).map_err(why)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_program_says_steers_no_terminal() {
        let mut out = Vec::new();
        write_notes(&["fio: \x1b]0;title\x07\nsecond".to_owned()], &mut out).unwrap();
        assert_eq!(String::from_utf8(out).unwrap(), "- fio:  ]0;title  second\n");
    }
}
