//! The tables, in Markdown.

use std::fmt::Write;

use super::summary::{Metric, Summary, digits, readable};
use crate::goals::GOALS;
use crate::plan::{Load, Unit};
use crate::stack::StackKind;

/// All tables of a run: the goals, then each load.
pub(crate) fn markdown(run: &Summary) -> String {
    let mut text = format!(
        "{}, {}; {} rounds of {} s each, medians. RSS and CPU are those of both proxies.\n\n",
        run.date,
        run.machine,
        run.rounds,
        digits(run.seconds)
    );
    goals(run, &mut text);
    for load in &run.loads {
        of_load(run, load, &mut text);
    }
    failures(run, &mut text);
    text
}

fn goals(run: &Summary, text: &mut String) {
    text.push_str("| goal | pillion | best peer | ratio | wanted | |\n|---|---|---|---|---|---|\n");
    for goal in GOALS {
        let unit = run.loads.iter().find(|load| load.name == goal.load).map(Load::unit);
        let (Some(found), Some(unit)) = (goal.look(run), unit) else { continue };
        let (ours, named) = readable(goal.metric, unit, found.ours);
        let (theirs, _) = readable(goal.metric, unit, found.theirs);
        let _ = writeln!(
            text,
            "| {}, {named} | {} | {} ({}) | {:.2} | {} | {} |",
            goal.title,
            digits(ours),
            digits(theirs),
            found.whose.name(),
            found.ratio,
            goal.bound.text(),
            if found.ok { "ok" } else { "not" }
        );
    }
    text.push('\n');
}

/// What is shown of a load.
fn columns(unit: Unit) -> &'static [Metric] {
    match unit {
        Unit::Byte => &[
            Metric::Throughput,
            Metric::Cpu,
            Metric::Switches,
            Metric::Memory,
            Metric::MemorySlope,
        ],
        Unit::Held => &[Metric::BaseMemory, Metric::Memory, Metric::MemoryPerUnit],
        Unit::Request | Unit::Connection => &[
            Metric::Throughput,
            Metric::Cpu,
            Metric::P50,
            Metric::P99,
            Metric::P999,
            Metric::Switches,
            Metric::Memory,
            Metric::MemorySlope,
        ],
    }
}

fn of_load(run: &Summary, load: &Load, text: &mut String) {
    let measured: Vec<StackKind> = run
        .stacks
        .iter()
        .copied()
        .filter(|stack| run.of(&load.name, *stack).next().is_some())
        .collect();
    if measured.is_empty() {
        return;
    }
    let metrics = columns(load.unit());
    let heads = metrics.iter().map(|metric| readable(*metric, load.unit(), 0.0).1);
    let heads: Vec<_> = heads.collect();
    let rate = match run.rate {
        Some(rate) if load.kind == crate::load::Kind::HttpOpen => format!(" at {rate:.0}/s"),
        _ => String::new(),
    };
    let _ = writeln!(text, "| {}{rate} | {} |", load.name, heads.join(" | "));
    let _ = writeln!(text, "|---|{}", "---|".repeat(metrics.len()));
    for stack in measured {
        let mark = if run.failures(&load.name, stack) > 0 { " (failures)" } else { "" };
        let _ = write!(text, "| {}{mark} |", stack.name());
        for metric in metrics {
            let figure = run.figure(&load.name, stack, *metric);
            let shown = figure.map(|figure| digits(readable(*metric, load.unit(), figure).0));
            let _ = write!(text, " {} |", shown.as_deref().unwrap_or("-"));
        }
        text.push('\n');
    }
    text.push('\n');
}

fn failures(run: &Summary, text: &mut String) {
    for sample in run.samples.iter().filter(|sample| sample.outcome.failures > 0) {
        let _ = writeln!(
            text,
            "- {} under {}, round {}: {} failures, the first: {}",
            sample.load,
            sample.stack.name(),
            sample.round,
            sample.outcome.failures,
            sample.outcome.failure.as_deref().unwrap_or("not known")
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::summary::tests::{outcome, summary};

    #[test]
    fn a_table_has_a_row_for_each_stack_and_says_what_failed() {
        let text = markdown(&summary(&[
            ("http-32", StackKind::Pillion, outcome(40_000, 0)),
            ("http-32", StackKind::Envoy, outcome(20_000, 3)),
        ]));
        assert!(text.contains("| pillion | 40000 | 25.0 | 0.020 |"), "{text}");
        assert!(text.contains("| envoy (failures) | 20000 |"), "{text}");
        assert!(text.contains("3 failures, the first: a request: refused"), "{text}");
        assert!(text.contains("| 40000 | 20000 (envoy) | 2.00 | ≥ 1.3 | not |"), "{text}");
        assert!(!text.contains("haproxy"), "it was not measured:\n{text}");
    }

    #[test]
    fn every_row_is_as_wide_as_its_head() {
        let loads = crate::plan::all(10);
        let samples: Vec<_> = loads
            .iter()
            .flat_map(|load| StackKind::ALL.map(|stack| (load.name.as_str(), stack, outcome(9, 0))))
            .collect();
        let text = markdown(&summary(&samples));
        for table in text.split("\n\n").filter(|part| part.starts_with('|')) {
            let widths: Vec<_> = table.lines().map(|line| line.matches('|').count()).collect();
            assert!(widths.iter().all(|width| Some(width) == widths.first()), "{table}");
        }
    }
}
