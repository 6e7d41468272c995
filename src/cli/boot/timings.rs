// SPDX-License-Identifier: Apache-2.0
//! `--timings`: what a boot had cost at each stage.

use std::fmt::Write;

use coracle::vmm::stages::{Mark, Stage};

/// A table: one line a stage, in the order they were reached. Instructions are the guest kernel's where `pvm`.
pub fn table(marks: &[Mark], pvm: bool) -> String {
    let mut text = format!("{:<16}{:>12}{:>12}{:>12}{:>16}\n", "stage", "wall ms", "CPU ms", "exits", "kernel insns");
    for mark in marks {
        let count = |value: Option<u64>| value.map_or_else(|| "-".to_owned(), |value| value.to_string());
        let instructions = if pvm { mark.emulated_instructions } else { None };
        let milliseconds = |ns: u64| format!("{}.{:03}", ns / 1_000_000, ns / 1000 % 1000);
        // Writing to a String cannot fail.
        let _ = writeln!(
            text,
            "{:<16}{:>12}{:>12}{:>12}{:>16}",
            mark.stage,
            milliseconds(mark.wall_ns),
            milliseconds(mark.cpu_ns),
            count(mark.exits),
            count(instructions),
        );
    }
    if let Some(instructions) = kernel_instructions(marks).filter(|_| pvm) {
        let _ = writeln!(text, "guest-kernel instructions, first KVM_RUN to agent ready: {instructions}");
    }
    text
}

/// Instructions between the first entry of the guest and the agent's readiness.
fn kernel_instructions(marks: &[Mark]) -> Option<u64> {
    let at = |stage| marks.iter().find(|mark| mark.stage == stage)?.emulated_instructions;
    at(Stage::AgentReady)?.checked_sub(at(Stage::FirstRun)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mark(stage: Stage, instructions: Option<u64>) -> Mark {
        Mark { stage, wall_ns: 1_234_567, cpu_ns: 1000, exits: Some(9), emulated_instructions: instructions }
    }

    #[test]
    fn the_table_aligns_and_sums() {
        let marks = [mark(Stage::FirstRun, Some(10)), mark(Stage::AgentReady, Some(8_000_010))];
        let text = table(&marks, true);
        assert!(text.contains("agent ready            1.234       0.001           9         8000010\n"), "{text}");
        assert!(text.ends_with("agent ready: 8000000\n"), "{text}");
        assert!(!table(&marks, false).contains("8000010"));
    }

    #[test]
    fn what_a_host_does_not_count_is_a_dash() {
        assert!(table(&[mark(Stage::Init, None)], true).contains("-\n"));
    }
}
