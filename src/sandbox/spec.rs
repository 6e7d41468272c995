// SPDX-License-Identifier: Apache-2.0
//! What a container's process is: the image's configuration (OCI image specification, "config.md") with what the user
//! says instead.

use oci_spec::image::ImageConfiguration;
use serde::{Deserialize, Serialize};

use crate::failure::Failure;

/// Where programs are looked for if neither image nor user says so, as with Docker.
const PATH: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// A container's process.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessSpec {
    /// The program and its arguments; never empty.
    pub arguments: Vec<String>,
    /// So many of them, from the first on, are the entry point; the rest is the command.
    #[serde(default)]
    pub entrypoint: usize,
    /// `NAME=value`, each name once.
    pub environment: Vec<String>,
    /// Where it starts; absolute.
    pub directory: String,
    /// `user[:group]`; empty for root.
    pub user: String,
    /// Name of the machine.
    pub hostname: String,
}

/// What a user says instead of the image.
#[derive(Clone, Debug, Default)]
pub struct Overrides {
    /// Arguments; an image's command, but not its entry point, gives way to them.
    pub command: Vec<String>,
    /// The program in front of them; an empty one takes away the image's.
    pub entrypoint: Option<String>,
    /// `NAME=value`, or `NAME` for that of the caller's environment.
    pub environment: Vec<String>,
    /// Where it starts; relative to the image's directory.
    pub directory: Option<String>,
    /// `user[:group]`.
    pub user: Option<String>,
    /// It has a terminal, and `TERM` says which.
    pub terminal: bool,
}

impl ProcessSpec {
    /// The same on a machine of another name.
    #[must_use]
    pub fn renamed(mut self, hostname: &str) -> Self {
        let before = format!("HOSTNAME={}", self.hostname);
        self.environment
            .iter_mut()
            .filter(|entry| **entry == before)
            .for_each(|entry| *entry = format!("HOSTNAME={hostname}"));
        self.hostname = hostname.to_owned();
        self
    }

    /// Puts the two together, as Docker does.
    ///
    /// # Errors
    /// There is no program to run.
    pub fn new(image: &ImageConfiguration, overrides: &Overrides, hostname: &str) -> Result<Self, Failure> {
        let config = image.config().clone().unwrap_or_default();
        let mut arguments = match &overrides.entrypoint {
            Some(program) if program.is_empty() => Vec::new(),
            Some(program) => vec![program.clone()],
            None => config.entrypoint().clone().unwrap_or_default(),
        };
        let entrypoint = arguments.len();
        if overrides.command.is_empty() && overrides.entrypoint.is_none() {
            arguments.extend(config.cmd().clone().unwrap_or_default());
        }
        arguments.extend(overrides.command.iter().cloned());
        if arguments.is_empty() {
            let why = "neither the image nor the command line names a program";
            return Err(Failure::new("cannot start the container", why, "`coracle run IMAGE COMMAND`"));
        }
        let mut environment = vec![PATH.to_owned(), format!("HOSTNAME={hostname}")];
        environment.extend(overrides.terminal.then(|| "TERM=xterm".to_owned()));
        config.env().clone().unwrap_or_default().into_iter().for_each(|entry| set(&mut environment, entry));
        let base = config.working_dir().clone().filter(|directory| !directory.is_empty());
        let base = Self {
            arguments,
            entrypoint,
            environment,
            directory: base.unwrap_or_else(|| "/".to_owned()),
            user: config.user().clone().unwrap_or_default(),
            hostname: hostname.to_owned(),
        };
        Ok(base.with(&overrides.environment, overrides.directory.as_deref(), overrides.user.as_deref()))
    }

    /// The same with other settings: `NAME=value`, or `NAME` for that of the caller's environment; a directory, relative
    /// to this one's; `user[:group]`.
    #[must_use]
    pub fn with(mut self, environment: &[String], directory: Option<&str>, user: Option<&str>) -> Self {
        for entry in environment {
            match (entry.contains('='), std::env::var(entry)) {
                (true, _) => set(&mut self.environment, entry.clone()),
                (false, Ok(value)) => set(&mut self.environment, format!("{entry}={value}")),
                (false, Err(_)) => {}
            }
        }
        self.directory = match directory {
            Some(directory) if directory.starts_with('/') => directory.to_owned(),
            Some(directory) => format!("{}/{directory}", self.directory.trim_end_matches('/')),
            None => self.directory,
        };
        self.user = user.map_or(self.user, str::to_owned);
        self
    }
}

fn set(environment: &mut Vec<String>, entry: String) {
    let name = |entry: &str| entry.split('=').next().map(str::to_owned);
    match environment.iter_mut().find(|other| name(other) == name(&entry)) {
        Some(place) => *place = entry,
        None => environment.push(entry),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn image(config: &str) -> ImageConfiguration {
        let text = format!(
            r#"{{"architecture":"amd64","os":"linux","rootfs":{{"type":"layers","diff_ids":[]}},"config":{config}}}"#
        );
        serde_json::from_str(&text).unwrap()
    }

    fn words(list: &[&str]) -> Vec<String> {
        list.iter().map(|word| (*word).to_owned()).collect()
    }

    #[test]
    fn entrypoint_and_command_combine_as_dockers() {
        let both = image(r#"{"Entrypoint":["/entry","-v"],"Cmd":["serve"]}"#);
        let arguments = |command: &[&str], entrypoint: Option<&str>| {
            let entrypoint = entrypoint.map(str::to_owned);
            let overrides = Overrides { command: words(command), entrypoint, ..Overrides::default() };
            ProcessSpec::new(&both, &overrides, "h").map(|spec| spec.arguments)
        };
        assert_eq!(arguments(&[], None).unwrap(), ["/entry", "-v", "serve"]);
        assert_eq!(arguments(&["sh"], None).unwrap(), ["/entry", "-v", "sh"]);
        assert_eq!(arguments(&["-c"], Some("sh")).unwrap(), ["sh", "-c"]);
        assert_eq!(arguments(&[], Some("sh")).unwrap(), ["sh"]);
        assert_eq!(arguments(&["ls"], Some("")).unwrap(), ["ls"]);
        assert!(arguments(&[], Some("")).unwrap_err().why.contains("names a program"));
    }

    #[test]
    fn the_environment_has_each_name_once_and_the_user_last() {
        let base = image(r#"{"Env":["PATH=/bin","A=1","B=2"],"WorkingDir":"/srv","User":"web"}"#);
        let environment = words(&["B=3", "C=4=5", "CORACLE_TEST_THAT_IS_NOT_SET"]);
        let overrides = Overrides { command: words(&["x"]), environment, ..Overrides::default() };
        let spec = ProcessSpec::new(&base, &overrides, "box").unwrap();
        assert_eq!(spec.environment, ["PATH=/bin", "HOSTNAME=box", "A=1", "B=3", "C=4=5"]);
        assert_eq!((spec.directory.as_str(), spec.user.as_str()), ("/srv", "web"));
        let elsewhere = Overrides { directory: Some("sub".into()), user: Some("0".into()), ..overrides };
        let spec = ProcessSpec::new(&base, &elsewhere, "box").unwrap();
        assert_eq!((spec.directory.as_str(), spec.user.as_str()), ("/srv/sub", "0"));
    }
}
