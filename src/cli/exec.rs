// SPDX-License-Identifier: Apache-2.0
//! `coracle exec`: another program in a container that runs.

use std::io::{self, ErrorKind, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::ExitCode;
use std::thread::{self, JoinHandle};

use anyhow::Context;
use clap::Args;
use coracle::sandbox::{Agent, Handle, NotRun, ProcessStart, capabilities};
use coracle::signals;
use coracle::supervisor::{Container, describe};
use coracle_protocol::Task;

use super::boot::terminal::RawTerminal;
use super::create::{directory, environment};
use super::session::{self, Signals};
use super::{containers, error};

const EXAMPLES: &str = "\
Examples:
  coracle exec -it web sh
  coracle exec web cat /etc/hostname
  tar c . | coracle exec -i -w /srv web tar x

Exit status: the program's own; 128 and the signal's number where one killed it; 127 if it is not there; 126 if it
cannot be executed; 125 if Coracle failed.";

#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub struct ExecArgs {
    /// Leave it running, and do not show what it writes
    #[arg(short, long)]
    detach: bool,
    /// Pass standard input on
    #[arg(short, long)]
    interactive: bool,
    /// Give the program a terminal
    #[arg(short, long)]
    tty: bool,
    /// Set a variable: NAME=VALUE, or NAME to pass on one's own
    #[arg(short, long, value_name = "NAME[=VALUE]")]
    env: Vec<String>,
    /// Read variables from a file, one a line
    #[arg(long, value_name = "FILE")]
    env_file: Vec<PathBuf>,
    /// Directory to start in
    #[arg(short, long, value_name = "DIR", value_parser = directory)]
    workdir: Option<String>,
    /// Who to run as: USER[:GROUP], names or numbers
    #[arg(short, long, value_name = "USER")]
    user: Option<String>,
    /// Give the program all capabilities
    #[arg(long)]
    privileged: bool,
    /// Name, or id or its beginning
    container: String,
    /// The command, and its arguments
    #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true)]
    command: Vec<String>,
}

/// Runs it, and gives its exit status.
///
/// # Errors
/// The container does not run.
pub fn run(args: &ExecArgs) -> anyhow::Result<ExitCode> {
    let what = format!("cannot run a program in container {}", args.container);
    let (container, state) = containers::up(&args.container, &what)?;
    let (input, terminal) = (args.interactive && !args.detach, args.tty && !args.detach);
    session::check_terminal(terminal, input, &what)?;
    let signals = Signals::take().context("cannot catch signals")?;
    let mut environment = environment(&args.env_file, &args.env, &what)?;
    if args.tty {
        environment.insert(0, "TERM=xterm".to_owned());
    }
    let mut spec = container.config.process.clone();
    spec.arguments.clone_from(&args.command);
    spec.entrypoint = 0;
    let spec = spec.with(&environment, args.workdir.as_deref(), args.user.as_deref());
    let mut surroundings = container.config.surroundings.clone();
    if args.privileged {
        surroundings.capabilities = capabilities::ALL;
    }
    let window = args.tty.then(|| session::size().unwrap_or_default());
    let start = ProcessStart {
        container: None,
        process: describe::process(&spec, &surroundings, window),
        task: Task::Program,
        stdin: input,
        output: !args.detach,
    };
    let mut process = match Agent::connect(&Container::vsock(&state))?.start(start) {
        Ok(process) => process,
        Err(NotRun { failure, status }) => {
            error::report(&failure.into());
            return Ok(ExitCode::from(status));
        }
    };
    if args.detach {
        return Ok(ExitCode::SUCCESS);
    }
    let raw = if terminal { RawTerminal::enter()? } else { None };
    let handle = process.handle.clone();
    thread::spawn(move || signals::each(&signals.0, |signal| forward(&handle, signal, terminal)));
    if let Some(to) = process.stdin.take() {
        thread::spawn(move || pass_on(to));
    }
    let output = process.stdout.take().map(|from| copy(from, io::stdout()));
    let errors = process.stderr.take().map(|from| copy(from, io::stderr()));
    let ended = process.wait();
    // The last bytes are still on their way. A thread that panicked has said so itself.
    [output, errors].into_iter().flatten().for_each(|copying| _ = copying.join());
    drop(raw);
    Ok(ExitCode::from(ended?.status()))
}

/// What cannot be passed on goes to a process that has ended.
fn forward(handle: &Handle, signal: u8, terminal: bool) -> bool {
    match (i32::from(signal), session::size().filter(|_| terminal)) {
        (libc::SIGWINCH, Some(size)) => handle.resize(size.rows, size.columns).is_ok(),
        (libc::SIGWINCH, None) => true,
        _ => handle.signal(signal).is_ok(),
    }
}

/// Our input, to its end, which the process then sees too.
fn pass_on(mut to: UnixStream) {
    // The process may end, or close its input, before ours ends.
    let _ = io::copy(&mut io::stdin().lock(), &mut to);
    let _ = to.shutdown(Shutdown::Write);
}

/// Copies to the end, as it comes. When nobody reads what we write, the process hears of it.
fn copy(mut from: impl Read + Send + 'static, mut to: impl Write + Send + 'static) -> JoinHandle<()> {
    thread::spawn(move || {
        let mut buffer = vec![0; 64 << 10];
        loop {
            match from.read(&mut buffer) {
                Ok(count @ 1..) => {
                    let bytes = buffer.get(..count).unwrap_or_default();
                    if to.write_all(bytes).and_then(|()| to.flush()).is_err() {
                        break;
                    }
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                _ => break,
            }
        }
    })
}
