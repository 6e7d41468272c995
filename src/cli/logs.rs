// SPDX-License-Identifier: Apache-2.0
//! `coracle logs`: what a container wrote.

use std::io::{self, ErrorKind, Write};
use std::process::ExitCode;
use std::thread;
use std::time::Duration;

use clap::Args;
use coracle::failure::Failure;
use coracle::supervisor::log::{Entry, Reader};
use coracle::supervisor::wire::Stream;
use coracle::supervisor::{Container, LogDriver};
use jiff::{SignedDuration, Timestamp};

use super::containers;

/// How often a log is looked at that is followed.
const PERIOD: Duration = Duration::from_millis(50);

#[derive(Debug, Args)]
pub struct LogsArgs {
    /// Go on as more comes, until the container ends
    #[arg(short, long)]
    follow: bool,
    /// With the time of each line
    #[arg(short, long)]
    timestamps: bool,
    /// The last N lines only
    #[arg(short = 'n', long, value_name = "N", default_value = "all", value_parser = tail)]
    tail: Tail,
    /// Only what is newer: a time (2026-01-31T12:00:00Z), seconds since 1970, or how long ago (10m)
    #[arg(long, value_name = "TIME", value_parser = time)]
    since: Option<Timestamp>,
    /// Only what is older
    #[arg(long, value_name = "TIME", value_parser = time)]
    until: Option<Timestamp>,
    /// Name, or id or its beginning
    container: String,
}

#[derive(Clone, Copy, Debug)]
struct Tail(Option<usize>);

fn tail(text: &str) -> Result<Tail, String> {
    match text {
        "all" => Ok(Tail(None)),
        // As with Docker, a negative number means all.
        _ if text.starts_with('-') => Ok(Tail(None)),
        _ => {
            text.parse().map(|number| Tail(Some(number))).map_err(|_| format!("`{text}` is neither a number nor `all`"))
        }
    }
}

fn time(text: &str) -> Result<Timestamp, String> {
    if let Ok(time) = text.parse::<Timestamp>() {
        return Ok(time);
    }
    if let Ok(seconds) = text.parse::<i64>() {
        return Timestamp::from_second(seconds).map_err(|error| error.to_string());
    }
    let ago = text.parse::<SignedDuration>().map_err(|_| format!("`{text}` is no time"))?;
    Timestamp::now().checked_sub(ago).map_err(|error| error.to_string())
}

/// Prints it, what went to standard error there to standard error here.
///
/// # Errors
/// There is no such container, or it keeps no log.
pub fn run(args: &LogsArgs) -> anyhow::Result<ExitCode> {
    let what = format!("cannot show the log of container {}", args.container);
    let (container, _) = containers::find(&args.container, &what)?;
    if container.config.log == LogDriver::None {
        return Err(Failure::new(what, "it was made with `--log-driver none`", "`coracle attach`, or a new one").into());
    }
    let mut reader = open(&container, args, &what)?;
    loop {
        // First, so that nothing is missed that is written before the end.
        let goes_on = args.follow && container.state().is_ok_and(|state| state.status.is_up());
        if let Some(reader) = &mut reader {
            while let Some(entry) = reader.next_entry()? {
                if args.until.is_none_or(|until| entry.time <= until)
                    && args.since.is_none_or(|since| entry.time >= since)
                {
                    args.print(&entry)?;
                }
            }
        } else {
            reader = open(&container, args, &what)?;
        }
        if !goes_on {
            return Ok(ExitCode::SUCCESS);
        }
        thread::sleep(PERIOD);
    }
}

/// A container that never ran has no log.
fn open(container: &Container, args: &LogsArgs, what: &str) -> Result<Option<Reader>, Failure> {
    match Reader::open(&container.log(), args.tail.0) {
        Ok(reader) => Ok(Some(reader)),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(Failure::new(what, error, "look at the directory's owner")),
    }
}

impl LogsArgs {
    fn print(&self, entry: &Entry) -> io::Result<()> {
        let time = if self.timestamps { format!("{:.9} ", entry.time) } else { String::new() };
        match entry.stream {
            Stream::Stdout => write!(io::stdout(), "{time}{}", entry.log).and_then(|()| io::stdout().flush()),
            Stream::Stderr => write!(io::stderr(), "{time}{}", entry.log),
        }
    }
}
