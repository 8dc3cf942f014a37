//! bench.json: every sample, the medians, the goals.

use serde_json::{Map, Value, json};

use super::summary::{Metric, Summary};
use crate::goals::GOALS;

/// A run as one JSON object.
pub(crate) fn document(run: &Summary) -> Value {
    let samples = run.samples.iter().map(|sample| {
        json!({
            "round": sample.round,
            "stack": sample.stack.name(),
            "load": sample.load,
            "outcome": sample.outcome,
        })
    });
    let goals = GOALS.iter().filter_map(|goal| {
        let found = goal.look(run)?;
        Some(json!({
            "goal": goal.title,
            "load": goal.load,
            "metric": name(goal.metric),
            "value": found.ours,
            "against": found.whose.name(),
            "against_value": found.theirs,
            "ratio": found.ratio,
            "wanted": goal.bound.text(),
            "ok": found.ok,
        }))
    });
    json!({
        "date": run.date,
        "machine": run.machine,
        "rounds": run.rounds,
        "seconds": run.seconds,
        "open_loop_rate": run.rate,
        "goals": goals.collect::<Vec<_>>(),
        "medians": medians(run),
        "samples": samples.collect::<Vec<_>>(),
    })
}

/// By load, then by stack.
fn medians(run: &Summary) -> Value {
    let mut loads = Map::new();
    for load in &run.loads {
        let mut stacks = Map::new();
        for stack in run.stacks.iter().filter(|stack| run.of(&load.name, **stack).next().is_some())
        {
            let mut figures = Map::new();
            for (metric, name) in Metric::NAMES {
                if let Some(figure) = run.figure(&load.name, *stack, metric) {
                    figures.insert(name.to_owned(), figure.into());
                }
            }
            figures.insert("failures".to_owned(), run.failures(&load.name, *stack).into());
            stacks.insert(stack.name().to_owned(), figures.into());
        }
        loads.insert(load.name.clone(), stacks.into());
    }
    loads.into()
}

fn name(metric: Metric) -> &'static str {
    Metric::NAMES.into_iter().find(|(other, _)| *other == metric).map_or("", |(_, name)| name)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::summary::tests::{outcome, summary};
    use crate::stack::StackKind;

    #[test]
    fn the_document_has_samples_medians_and_goals() {
        let document = document(&summary(&[
            ("http-32", StackKind::Pillion, outcome(40_000, 0)),
            ("http-32", StackKind::Envoy, outcome(20_000, 3)),
        ]));
        assert_eq!(document["samples"].as_array().unwrap().len(), 2);
        let envoy = &document["medians"]["http-32"]["envoy"];
        assert_eq!(envoy["units_per_second"], 20_000.0);
        assert_eq!(envoy["failures"], 3);
        let goal = &document["goals"][0];
        assert_eq!((&goal["against"], &goal["ratio"]), (&json!("envoy"), &json!(2.0)));
    }

    #[test]
    fn every_metric_has_a_name() {
        assert_eq!(name(Metric::MemoryPerUnit), "rss_kib_per_unit");
        assert!(GOALS.iter().all(|goal| !name(goal.metric).is_empty()));
    }
}
