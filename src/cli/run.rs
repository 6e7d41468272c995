// SPDX-License-Identifier: Apache-2.0
//! `coracle run`: a container from an image, in a microVM of its own.

use std::io::{self, Write};
use std::process::ExitCode;

use anyhow::Context;
use clap::{ArgAction, Args, ValueEnum};
use coracle::milestones::reach;
use coracle::supervisor::Connection;
use coracle::supervisor::wire::Request;

use super::create::ContainerArgs;
use super::session::{self, Signals, Wiring};

const EXAMPLES: &str = "\
Examples:
  coracle run --rm busybox echo hello
  coracle run --rm -it debian
  echo data | coracle run --rm -i busybox sha256sum
  coracle run -d --name web -e NAME=value --memory 256M nginx
  coracle run --rm oci:layout:latest
  coracle run -d --from ready -p 8081:80

Exit status: the program's own; 128 and the signal's number where one killed it; 127 if it is not in the image; 126 if
it cannot be executed; 125 if Coracle failed. Ctrl-P Ctrl-Q leaves a program with a terminal running.";

#[derive(Debug, Args)]
#[command(after_help = EXAMPLES, disable_help_flag = true)]
pub struct RunArgs {
    /// Leave it running, and print the container's id
    #[arg(short, long)]
    detach: bool,
    /// Connect only these of stdin, stdout and stderr
    #[arg(short, long, value_name = "STREAM", conflicts_with = "detach")]
    attach: Vec<Attached>,
    /// Pass signals on to the program
    #[arg(long, value_name = "BOOL", default_value_t = true, action = ArgAction::Set)]
    sig_proxy: bool,
    /// Use no microVM that waits for such a container, and leave none waiting
    #[arg(long)]
    no_spare: bool,
    #[command(flatten)]
    container: ContainerArgs,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Attached {
    Stdin,
    Stdout,
    Stderr,
}

/// Runs it, and gives its exit status.
///
/// # Errors
/// What could not be done, in three lines.
pub fn run(args: &RunArgs) -> anyhow::Result<ExitCode> {
    reach("command line read");
    let what = format!("cannot run {}", args.container.origin());
    let (has_input, has_terminal) = args.container.program(&what)?;
    let foreground = !args.detach;
    let connects = |stream| foreground && (args.attach.is_empty() || args.attach.contains(&stream));
    let input = has_input && connects(Attached::Stdin);
    let terminal = has_terminal && foreground;
    session::check_terminal(terminal, input, &what)?;
    let container = args.container.create(&what)?;
    reach("image found, container recorded");
    let tell_ports = || {
        let ports = args.container.unspoken_ports();
        if !ports.is_empty() {
            eprintln!("coracle: published for this host only: {}; `-p 0.0.0.0:…` is for others too", ports.join(", "));
        }
    };
    let signals = foreground.then(Signals::take).transpose().context("cannot catch signals")?;
    let size = session::size().filter(|_| terminal);
    let request = Request::Attach { input, output: foreground, size };
    let connection = Connection::start(&container, &request, !args.no_spare)?;
    if args.detach {
        if let Some(status) = session::started(&connection, &what)? {
            return Ok(status);
        }
        tell_ports();
        writeln!(io::stdout(), "{}", container.config.id)?;
        return Ok(ExitCode::SUCCESS);
    }
    let (stdout, stderr) = (connects(Attached::Stdout), connects(Attached::Stderr));
    let wiring = Wiring { input, stdout, stderr, terminal, signals: args.sig_proxy };
    session::finish(session::run(&container, &connection, wiring, signals, tell_ports, &what)?)
}
