// SPDX-License-Identifier: Apache-2.0
//! How a failed command ends: three lines on stderr and exit status 125.

use std::io::{self, Write};
use std::process::ExitCode;

use coracle::failure::{EXIT_FAILURE, Failure};

/// Prints the failure and gives the exit status to end with.
pub fn report(error: &anyhow::Error) -> ExitCode {
    // The reader of our output has gone (`coracle doctor | head -1`): there is nobody to tell, and nothing failed.
    if error.downcast_ref::<io::Error>().is_some_and(|e| e.kind() == io::ErrorKind::BrokenPipe) {
        return ExitCode::SUCCESS;
    }
    // With stderr closed there is no one left to tell; the exit status still says it.
    let _ = writeln!(io::stderr(), "{}", to_failure(error));
    ExitCode::from(EXIT_FAILURE)
}

/// Errors that no verb has explained are at least put in the same form.
fn to_failure(error: &anyhow::Error) -> Failure {
    if let Some(failure) = error.chain().find_map(|cause| cause.downcast_ref::<Failure>()) {
        return failure.clone();
    }
    let causes: Vec<String> = error.chain().skip(1).map(ToString::to_string).collect();
    let why = if causes.is_empty() { "no cause was given".to_owned() } else { causes.join(": ") };
    Failure::new(error.to_string(), why, "the same command with CORACLE_LOG=debug shows what led to it")
}

#[cfg(test)]
mod tests {
    use anyhow::{Context, anyhow};

    use super::*;

    #[test]
    fn a_failure_survives_context_added_above_it() {
        let failure = Failure::new("cannot read `a`", "it is empty", "another file");
        let error = Err::<(), _>(anyhow::Error::new(failure.clone())).context("while booting").unwrap_err();
        assert_eq!(to_failure(&error), failure);
    }

    #[test]
    fn other_errors_say_their_causes_once() {
        let error = anyhow!("no space left").context("cannot write `log`");
        let failure = to_failure(&error);
        assert_eq!((failure.what.as_str(), failure.why.as_str()), ("cannot write `log`", "no space left"));
    }
}
