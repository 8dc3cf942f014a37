//! bench.svg: for each figure that a goal looks at, a bar for each stack.

use std::fmt::Write;

use super::summary::{Metric, Summary, digits, readable};
use crate::goals::GOALS;
use crate::stack::StackKind;

/// Two columns of panels.
const COLUMNS: usize = 2;
const PANEL_WIDTH: usize = 460;
const BAR_HEIGHT: usize = 18;
const LABEL_WIDTH: usize = 96;
const BAR_WIDTH: usize = 260;
const HEAD: usize = 64;
const TITLE: usize = 26;

struct Panel {
    title: String,
    better: &'static str,
    bars: Vec<(StackKind, f64)>,
}

/// A run as an SVG picture (SVG 1.1).
pub(crate) fn svg(run: &Summary) -> String {
    let panels = panels(run);
    let most = panels.iter().map(|panel| panel.bars.len()).max().unwrap_or(0);
    let height = TITLE + most * BAR_HEIGHT + 22;
    let rows = panels.len().div_ceil(COLUMNS);
    let mut text = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{width}\" height=\"{tall}\" \
         viewBox=\"0 0 {width} {tall}\" font-family=\"sans-serif\" font-size=\"12\">\n\
         <rect width=\"100%\" height=\"100%\" fill=\"#ffffff\"/>\n\
         <text x=\"16\" y=\"24\" font-size=\"16\" font-weight=\"bold\">Side by side: pods with \
         sidecars, the same rules and certificates</text>\n\
         <text x=\"16\" y=\"44\" fill=\"#555555\">{}</text>\n",
        escape(&format!("{}, {}, medians of {} rounds", run.date, run.machine, run.rounds)),
        width = COLUMNS * PANEL_WIDTH,
        tall = HEAD + rows * height,
    );
    for (index, panel) in panels.iter().enumerate() {
        let (x, y) = (index % COLUMNS * PANEL_WIDTH + 16, HEAD + index / COLUMNS * height);
        draw(panel, x, y, &mut text);
    }
    text.push_str("</svg>\n");
    text
}

fn panels(run: &Summary) -> Vec<Panel> {
    let mut seen: Vec<(&str, Metric)> = Vec::new();
    let mut panels = Vec::new();
    for goal in GOALS {
        let unit = run.loads.iter().find(|load| load.name == goal.load).map(|load| load.unit());
        let Some(unit) = unit.filter(|_| !seen.contains(&(goal.load, goal.metric))) else {
            continue;
        };
        seen.push((goal.load, goal.metric));
        let bar = |stack: &StackKind| {
            let figure = run.figure(goal.load, *stack, goal.metric)?;
            Some((*stack, readable(goal.metric, unit, figure).0))
        };
        let bars: Vec<_> = run.stacks.iter().filter_map(bar).collect();
        if bars.is_empty() {
            continue;
        }
        let named = readable(goal.metric, unit, 0.0).1;
        let higher = goal.metric == Metric::Throughput;
        let better = if higher { "more is better" } else { "less is better" };
        panels.push(Panel { title: format!("{}: {named}", goal.load), better, bars });
    }
    panels
}

fn draw(panel: &Panel, x: usize, y: usize, text: &mut String) {
    let _ = writeln!(
        text,
        "<text x=\"{x}\" y=\"{}\" font-weight=\"bold\">{} <tspan font-weight=\"normal\" \
         fill=\"#777777\">({})</tspan></text>",
        y + 14,
        escape(&panel.title),
        panel.better
    );
    let longest = panel.bars.iter().map(|bar| bar.1).fold(0.0, f64::max);
    for (index, (stack, value)) in panel.bars.iter().enumerate() {
        let top = y + TITLE + index * BAR_HEIGHT;
        let share = crate::stats::ratio(*value, longest).unwrap_or(0.0).clamp(0.0, 1.0);
        let length = share * BAR_WIDTH as f64;
        let end = (x + LABEL_WIDTH) as f64 + length + 6.0;
        let _ = writeln!(
            text,
            "<text x=\"{}\" y=\"{base}\" text-anchor=\"end\">{}</text>\
             <rect x=\"{}\" y=\"{top}\" width=\"{length:.1}\" height=\"{}\" fill=\"{}\"/>\
             <text x=\"{end:.1}\" y=\"{base}\">{}</text>",
            x + LABEL_WIDTH - 6,
            stack.name(),
            x + LABEL_WIDTH,
            BAR_HEIGHT - 4,
            colour(*stack),
            digits(*value),
            base = top + 11,
        );
    }
}

/// Ours stands out; no proxy is grey.
fn colour(stack: StackKind) -> &'static str {
    match stack {
        StackKind::Pillion => "#c2410c",
        StackKind::Passthrough => "#f59e0b",
        StackKind::Direct => "#9ca3af",
        StackKind::Copy => "#6b7280",
        _ => "#3b6ea5",
    }
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::summary::tests::{outcome, summary};

    /// The names of the elements, when they nest as they must.
    fn elements(text: &str) -> Result<Vec<String>, String> {
        let (mut open, mut all) = (Vec::new(), Vec::new());
        for part in text.split('<').skip(1) {
            let (tag, between) = part.split_once('>').ok_or_else(|| format!("open: {part}"))?;
            let name = tag.trim_start_matches('/').split([' ', '/']).next().unwrap_or("");
            if tag.matches('"').count() % 2 != 0 || between.contains('&') && !between.contains(';')
            {
                return Err(format!("bad text in {part}"));
            }
            if tag.starts_with('/') {
                let last: Option<String> = open.pop();
                if last.as_deref() != Some(name) {
                    return Err(format!("{last:?} is closed by {name}"));
                }
            } else {
                all.push(name.to_owned());
                if !tag.ends_with('/') {
                    open.push(name.to_owned());
                }
            }
        }
        if open.is_empty() { Ok(all) } else { Err(format!("never closed: {open:?}")) }
    }

    #[test]
    fn the_picture_is_well_formed_and_has_a_bar_for_each_figure() {
        let mut run = summary(&[
            ("http-1", StackKind::Pillion, outcome(40_000, 0)),
            ("http-1", StackKind::Envoy, outcome(20_000, 3)),
            ("idle", StackKind::Envoy, outcome(0, 3)),
        ]);
        run.machine = "a <strange> & long name".to_owned();
        let text = svg(&run);
        let found = elements(&text).unwrap();
        // Two of p50, one of the base memory, and the ground.
        assert_eq!(found.iter().filter(|name| *name == "rect").count(), 4, "{text}");
        assert!(text.contains("&lt;strange&gt; &amp; long"), "{text}");
    }

    #[test]
    fn an_empty_run_is_an_empty_picture() {
        assert_eq!(elements(&svg(&summary(&[]))).unwrap(), ["svg", "rect", "text", "text"]);
    }

    #[test]
    fn the_check_of_this_test_sees_a_broken_picture() {
        for bad in ["<svg><rect></svg>", "<svg>", "<a b=\"c></a>", "<a>x & y</a>"] {
            assert!(elements(bad).is_err(), "{bad}");
        }
    }
}
