// SPDX-License-Identifier: Apache-2.0
//! The checks as text and as JSON.

use std::io::{self, Write};

use anstyle::{AnsiColor, Style};
use coracle::vmm::host::Host;
use serde_json::json;

use super::{Section, Status, count};

/// Width of the column of names.
const NAME: usize = 18;

/// Writes the table. Styles are written always: the stream drops them where the terminal or `NO_COLOR` asks for that.
pub fn table(host: &Host, sections: &[Section], out: &mut impl Write) -> io::Result<()> {
    let (bold, dim) = (Style::new().bold(), Style::new().dimmed());
    writeln!(out, "{bold}Host{bold:#}  {host}")?;
    for section in sections {
        writeln!(out, "\n{bold}{}{bold:#}", section.name)?;
        for check in &section.checks {
            let (mark, color) = match check.status {
                Status::Ok => ('✓', AnsiColor::Green),
                Status::Warning => ('!', AnsiColor::Yellow),
                Status::Missing => ('✗', AnsiColor::Red),
            };
            let color = color.on_default();
            writeln!(out, "  {color}{mark}{color:#} {:<NAME$} {}", check.name, check.found)?;
            for (label, text) in [("costs:", &check.cost), ("mend: ", &check.remedy)] {
                if !text.is_empty() {
                    writeln!(out, "    {:NAME$} {dim}{label}{dim:#} {text}", "")?;
                }
            }
        }
    }
    writeln!(out, "\n{bold}{}{bold:#}", verdict(sections))
}

fn verdict(sections: &[Section]) -> String {
    let warnings = match count(sections, Status::Warning) {
        0 => String::new(),
        1 => "; 1 thing could be better (!)".to_owned(),
        n => format!("; {n} things could be better (!)"),
    };
    match count(sections, Status::Missing) {
        0 => format!("This host can run microVMs{warnings}."),
        n => format!("This host cannot run microVMs: {n} required (✗){warnings}."),
    }
}

/// Writes one JSON object.
pub fn json(host: &Host, sections: &[Section], out: &mut impl Write) -> io::Result<()> {
    let report = json!({
        "canRun": count(sections, Status::Missing) == 0,
        "host": { "vendor": host.vendor.to_string(), "description": host.to_string() },
        "sections": sections,
    });
    writeln!(out, "{report:#}")
}

#[cfg(test)]
mod tests {
    use super::super::Check;
    use super::*;

    fn sections() -> [Section; 1] {
        let checks = vec![
            Check::ok("TUN", "/dev/net/tun opens"),
            Check::missing("device", "no /dev/kvm", "no microVM can run", "sudo modprobe kvm_amd"),
        ];
        [Section { name: "KVM", checks }]
    }

    #[test]
    fn the_table_says_cost_and_remedy_only_of_what_lacks() {
        let mut out = Vec::new();
        table(&Host::detect(), &sections(), &mut anstream::StripStream::new(&mut out)).unwrap();
        let text = String::from_utf8(out).unwrap();
        assert!(text.contains("  ✓ TUN                /dev/net/tun opens\n  ✗ device "), "{text}");
        assert_eq!(text.matches("mend:").count(), 1);
        assert!(text.ends_with("This host cannot run microVMs: 1 required (✗).\n"), "{text}");
    }

    #[test]
    fn json_has_the_same_facts() {
        let mut out = Vec::new();
        json(&Host::detect(), &sections(), &mut out).unwrap();
        let report: serde_json::Value = serde_json::from_slice(&out).unwrap();
        assert_eq!(report["canRun"], false);
        assert_eq!(report["sections"][0]["checks"][1]["remedy"], "sudo modprobe kvm_amd");
        assert_eq!(report["sections"][0]["checks"][0].get("cost"), None);
    }
}
