// SPDX-License-Identifier: Apache-2.0
//! `coracle login` and `coracle logout`: who one is to a registry.

use std::io::{self, BufRead, IsTerminal, Read, Write};
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context;
use clap::Args;
use coracle::failure::Failure;
use coracle::image::registry::{Access, Credentials, login};
use coracle::image::{Name, default_registry};
use rustix::termios::{LocalModes, OptionalActions, tcgetattr, tcsetattr};

use super::store;

#[derive(Debug, Args)]
pub struct LoginArgs {
    /// The registry, as HOST[:PORT]; the default one if there is none
    server: Option<String>,
    /// Who
    #[arg(short, long, value_name = "NAME")]
    username: Option<String>,
    /// The password; others on this host can see it
    #[arg(short, long, value_name = "PASSWORD", conflicts_with = "password_stdin")]
    password: Option<String>,
    /// Read the password from stdin
    #[arg(long)]
    password_stdin: bool,
    /// Refuse a registry without TLS or with a certificate that is not trusted (on by default, `=false` for off)
    #[arg(long, value_name = "BOOL", default_value_t = true, hide_default_value = true, num_args = 0..=1,
          require_equals = true, default_missing_value = "true", action = clap::ArgAction::Set)]
    tls_verify: bool,
    /// Certificates to trust (*.crt) and to show (*.cert, *.key) instead of those in /etc/docker/certs.d/HOST and the like
    #[arg(long, value_name = "DIR")]
    cert_dir: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub struct LogoutArgs {
    /// The registry, as HOST[:PORT]; the default one if there is none
    server: Option<String>,
}

/// Asks the registry, and keeps the password only if it is right.
///
/// # Errors
/// It is not, or cannot be kept.
pub fn run(args: &LoginArgs) -> anyhow::Result<ExitCode> {
    let server = args.server.clone().unwrap_or_else(default_registry);
    let what = format!("cannot log in to {server}");
    Name::of_registry(&server).map_err(store::explain(&what))?;
    let user = match &args.username {
        Some(user) => user.clone(),
        None => ask(&what, "Username: ", false)?,
    };
    let password = match &args.password {
        Some(password) => password.clone(),
        None if args.password_stdin => {
            let mut text = String::new();
            io::stdin().read_to_string(&mut text).context("cannot read the password")?;
            text.trim_end_matches(['\n', '\r']).to_owned()
        }
        None => ask(&what, "Password: ", true)?,
    };
    let credentials = Credentials::Password { user, password };
    let access =
        Access { tls_verify: args.tls_verify, cert_dir: args.cert_dir.clone(), credentials: Some(credentials.clone()) };
    login::check(&server, &access).map_err(store::explain(&what))?;
    let place = login::store(&server, &credentials).map_err(store::explain(&what))?;
    eprintln!("The password is kept {place}");
    writeln!(io::stdout(), "Login Succeeded")?;
    Ok(ExitCode::SUCCESS)
}

/// Forgets the credentials.
///
/// # Errors
/// They cannot be forgotten.
pub fn run_logout(args: &LogoutArgs) -> anyhow::Result<ExitCode> {
    let server = args.server.clone().unwrap_or_else(default_registry);
    let what = format!("cannot log out of {server}");
    let text = match login::forget(&server).map_err(store::explain(&what))? {
        true => format!("Removing login credentials for {server}"),
        false => format!("Not logged in to {server}"),
    };
    writeln!(io::stdout(), "{text}")?;
    Ok(ExitCode::SUCCESS)
}

/// Asks on the terminal; a secret is not shown while it is typed.
fn ask(what: &str, question: &str, is_secret: bool) -> anyhow::Result<String> {
    let stdin = io::stdin();
    if !stdin.is_terminal() {
        let why = "there is no terminal to ask on";
        return Err(Failure::new(what, why, "`--username NAME --password-stdin < FILE`").into());
    }
    eprint!("{question}");
    let before = tcgetattr(&stdin).context("cannot look at the terminal")?;
    if is_secret {
        let mut hidden = before.clone();
        hidden.local_modes.remove(LocalModes::ECHO);
        tcsetattr(&stdin, OptionalActions::Now, &hidden).context("cannot hide what is typed")?;
    }
    let mut line = String::new();
    let read = stdin.lock().read_line(&mut line);
    if is_secret {
        tcsetattr(&stdin, OptionalActions::Now, &before).context("cannot restore the terminal")?;
        eprintln!();
    }
    read.context("cannot read the terminal")?;
    Ok(line.trim_end_matches(['\n', '\r']).to_owned())
}
