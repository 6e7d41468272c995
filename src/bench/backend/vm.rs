// SPDX-License-Identifier: Apache-2.0
//! `coracle run`.

use super::super::measure::Until;
use super::{Backend, Kind, Run, Workload};

/// The one way to run it; `cold` without a template.
pub fn candidates(workload: &Workload, cold: bool) -> Result<Vec<Backend>, String> {
    if cold && !workload.templates {
        return Err("this release has no templates: `vm` is cold already".to_owned());
    }
    let mut command = vec![workload.coracle.display().to_string()];
    command.extend(["run", "--rm", "--network", "none"].map(str::to_owned));
    command.extend(cold.then(|| "--no-template".to_owned()));
    command.extend(workload.entrypoint.iter().flat_map(|program| ["--entrypoint".to_owned(), program.clone()]));
    command.push(workload.image.id.hex().to_owned());
    command.extend(workload.words.iter().cloned());
    Ok(vec![Backend {
        kind: if cold { Kind::VmCold } else { Kind::Vm },
        command,
        version: concat!("coracle ", env!("CARGO_PKG_VERSION")).to_owned(),
        notes: Vec::new(),
        run: Run::Program { root: None, until: Until::Exit },
    }])
}
