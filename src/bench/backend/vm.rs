// SPDX-License-Identifier: Apache-2.0
//! `coracle run`, with and without a VM.

use super::super::measure::Until;
use super::{Backend, Kind, Run, Workload};

/// The one way to run it.
pub fn candidates(kind: Kind, workload: &Workload) -> Result<Vec<Backend>, String> {
    let cold = kind == Kind::VmCold;
    if cold && !workload.templates {
        return Err("this release has no templates: `vm` is cold already".to_owned());
    }
    let mut command = vec![workload.coracle.display().to_string()];
    command.extend(["run", "--rm", "--network", "none"].map(str::to_owned));
    command.extend(cold.then(|| "--no-template".to_owned()));
    if kind == Kind::Container {
        command.extend(["--isolation", "container"].map(str::to_owned));
    }
    command.extend(workload.entrypoint.iter().flat_map(|program| ["--entrypoint".to_owned(), program.clone()]));
    command.push(workload.image.id.hex().to_owned());
    command.extend(workload.words.iter().cloned());
    Ok(vec![Backend {
        kind,
        command,
        version: concat!("coracle ", env!("CARGO_PKG_VERSION")).to_owned(),
        notes: Vec::new(),
        beside: Vec::new(),
        run: Run::Program { root: None, until: Until::Exit },
    }])
}
