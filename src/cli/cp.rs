// SPDX-License-Identifier: Apache-2.0
//! `coracle cp`: files between the host and a container.

use std::ffi::OsString;
use std::fs;
use std::io::{self, IsTerminal, Read};
use std::os::unix::ffi::OsStringExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::thread;

use clap::Args;
use coracle::copy::{self, Extraction};
use coracle::failure::Failure;
use coracle::supervisor::visit::{Visit, visit};
use coracle_protocol::{Pack, Task, Unpack};

use super::containers;

/// Bytes of what the agent complains of that are shown.
const MAX_COMPLAINT: u64 = 4096;

const EXAMPLES: &str = "\
Examples:
  coracle cp web:/etc/nginx/nginx.conf .
  coracle cp site/. web:/srv/www
  coracle cp web:/var/log - | tar t

A directory that ends in `/.` stands for what is in it. Files belong to who runs this command, or in the container to root,
unless -a says otherwise. A container that does not run is looked into by a microVM that is started for that.";

#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub struct CpArgs {
    /// Keep owners and all of the modes
    #[arg(short, long)]
    archive: bool,
    /// Follow a link that is to be copied
    #[arg(short = 'L', long)]
    follow_link: bool,
    /// Say nothing of what is left out
    #[arg(short, long)]
    quiet: bool,
    /// What: CONTAINER:PATH, or a path of the host, or `-` for a tar archive on standard input
    #[arg(value_name = "FROM")]
    from: String,
    /// Where to: the other of the two, or `-` for a tar archive on standard output
    #[arg(value_name = "TO")]
    to: String,
}

/// Copies.
///
/// # Errors
/// What could not be copied.
pub fn run(args: &CpArgs) -> anyhow::Result<ExitCode> {
    let what = format!("cannot copy {} to {}", args.from, args.to);
    let advice = "`coracle cp CONTAINER:PATH PATH`, or `coracle cp PATH CONTAINER:PATH`";
    match (place(&args.from), place(&args.to)) {
        (Place::Container(container, path), Place::Host(to)) => out(args, &container, &path, to, &what),
        (Place::Host(from), Place::Container(container, path)) => into(args, from, &container, &path, &what),
        (Place::Host(_), Place::Host(_)) => Err(Failure::new(what, "neither is a place in a container", advice).into()),
        (Place::Container(..), Place::Container(..)) => {
            Err(Failure::new(what, "both are in containers", "by way of a directory of the host's").into())
        }
    }
}

/// Where files are.
#[derive(Debug, PartialEq, Eq)]
enum Place<'a> {
    Container(String, String),
    Host(&'a str),
}

/// As Docker tells them apart: paths of the host that have a colon begin with `/` or `.`.
fn place(text: &str) -> Place<'_> {
    match text.split_once(':') {
        Some((container, path)) if !container.is_empty() && !text.starts_with(['/', '.']) => {
            let path = if path.starts_with('/') { path.to_owned() } else { format!("/{path}") };
            Place::Container(container.to_owned(), path)
        }
        _ => Place::Host(text),
    }
}

/// The last name of a path; `None` where it stands for what is in a directory.
fn base(path: &str) -> Option<OsString> {
    match path.ends_with("/.") || path == "." {
        true => None,
        false => Path::new(path).file_name().map(OsString::from),
    }
}

fn out(args: &CpArgs, container: &str, path: &str, to: &str, what: &str) -> anyhow::Result<ExitCode> {
    let (container, state) = containers::find(container, what)?;
    let to_stdout = to == "-";
    if to_stdout && io::stdout().is_terminal() {
        let why = "an archive is nothing for a terminal";
        return Err(Failure::new(what, why, "the same with `| tar x` or `> FILE.tar`").into());
    }
    let base = base(path);
    let name = match (to_stdout, &base) {
        (true, Some(name)) => name.clone().into_vec(),
        (true, None) => b".".to_vec(),
        (false, _) => copy::NAME.as_bytes().to_vec(),
    };
    let task = Task::Pack(Pack { path: path.as_bytes().to_vec(), name, follow: args.follow_link });
    let mut visit = visit(&container, &state, task, false, what)?;
    let output = visit.process.stdout.take().ok_or_else(|| lost(what))?;
    if to_stdout {
        let copied = io::copy(&mut &output, &mut io::stdout().lock());
        drop(output);
        finish(visit, copied.map(drop), what)?;
        return Ok(ExitCode::SUCCESS);
    }
    let how = Extraction { to: PathBuf::from(to), name: base, archive: args.archive };
    // At the first thing that goes wrong the agent is told by the closed stream.
    let extracted = copy::extract(&output, &how);
    drop(output);
    let left = finish(visit, extracted, what)?;
    if !args.quiet {
        left.iter().for_each(|(name, why)| eprintln!("coracle: {} was left out: {why}", name.display()));
    }
    Ok(ExitCode::SUCCESS)
}

fn into(args: &CpArgs, from: &str, container: &str, path: &str, what: &str) -> anyhow::Result<ExitCode> {
    let (container, state) = containers::find(container, what)?;
    let mut unpack = Unpack { path: path.as_bytes().to_vec(), keep_owner: args.archive, ..Unpack::default() };
    let mut source = PathBuf::from(from);
    if from != "-" {
        let failed = |error: io::Error| Failure::new(what, format!("{from}: {error}"), "another path");
        if args.follow_link {
            source = fs::canonicalize(&source).map_err(failed)?;
        }
        // A path that ends in a slash is that of a directory, also where a link leads to it.
        let status = if from.ends_with('/') { fs::metadata(&source) } else { fs::symlink_metadata(&source) };
        unpack.directory = status.map_err(failed)?.is_dir();
        unpack.content = base(from).is_none();
        let name = base(from).unwrap_or_else(|| copy::NAME.into());
        unpack.name = Some(name.into_vec());
    }
    let mut visit = visit(&container, &state, Task::Unpack(unpack), true, what)?;
    let input = visit.process.stdin.take().ok_or_else(|| lost(what))?;
    let sent = match from {
        "-" => io::copy(&mut io::stdin().lock(), &mut &input).map(drop),
        _ => copy::pack(&source, io::BufWriter::with_capacity(64 << 10, &input)),
    };
    close(&input);
    finish(visit, sent, what)?;
    Ok(ExitCode::SUCCESS)
}

/// The end of the agent's input.
fn close(input: &UnixStream) {
    // It may have given up before.
    let _ = input.shutdown(std::net::Shutdown::Write);
}

/// Waits for the task's end. What the agent has to say counts more than what was seen of it here, but for what the host's
/// file system says.
fn finish<T>(mut visit: Visit, outcome: io::Result<T>, what: &str) -> Result<T, Failure> {
    let complaints = visit.process.stderr.take().map(|stderr| {
        thread::spawn(move || {
            let mut text = Vec::new();
            // What was read counts, whatever ended it.
            let _ = stderr.take(MAX_COMPLAINT).read_to_end(&mut text);
            String::from_utf8_lossy(&text).into_owned()
        })
    });
    let ended = visit.process.wait();
    let complaint = complaints.and_then(|thread| thread.join().ok()).unwrap_or_default();
    let advice = "other paths; `coracle exec CONTAINER ls` shows what is there";
    match (outcome, ended) {
        (_, Err(failure)) => Err(failure),
        (Ok(done), Ok(ended)) if ended.status() == 0 => Ok(done),
        (_, Ok(ended)) if ended.status() != 0 && !complaint.is_empty() => Err(Failure::new(what, complaint, advice)),
        (Err(error), Ok(_)) => Err(Failure::new(what, error, advice)),
        (Ok(_), Ok(ended)) => {
            let why = format!("the agent has failed with status {}", ended.status());
            Err(Failure::new(what, why, advice))
        }
    }
}

fn lost(what: &str) -> Failure {
    Failure::new(what, "the agent in the guest has no stream for it", "the same again")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_told_apart_as_docker_does() {
        let inside = |name: &str, path: &str| Place::Container(name.to_owned(), path.to_owned());
        assert_eq!(place("web:/a:b"), inside("web", "/a:b"));
        assert_eq!(place("web:a"), inside("web", "/a"));
        for text in ["/a:b", "./a:b", "../a:b", "a", "-", ":a"] {
            assert_eq!(place(text), Place::Host(text));
        }
    }

    #[test]
    fn a_dot_stands_for_what_is_in_a_directory() {
        let name = |text: &str| Some(OsString::from(text));
        assert_eq!((base("/a/b"), base("/a/b/"), base("b")), (name("b"), name("b"), name("b")));
        assert_eq!((base("/a/."), base("."), base("/")), (None, None, None));
    }
}
