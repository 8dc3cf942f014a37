//! The proxy's metrics, read back from the Prometheus text format.

use std::collections::BTreeMap;

use crate::Failure;

#[derive(Debug, Clone, PartialEq)]
struct Sample {
    name: String,
    labels: BTreeMap<String, String>,
    value: f64,
}

/// One scrape. See the Prometheus text-based exposition format, version 0.0.4.
#[derive(Debug, Clone, Default)]
pub struct Metrics(Vec<Sample>);

impl Metrics {
    /// Reads a scrape.
    ///
    /// # Errors
    /// A line that is no sample, named.
    pub fn parse(text: &str) -> Result<Self, Failure> {
        text.lines()
            .filter(|line| !line.is_empty() && !line.starts_with('#'))
            .map(|line| {
                sample(line).ok_or_else(|| Failure::Unexpected(format!("not a metric: {line}")))
            })
            .collect::<Result<_, _>>()
            .map(Self)
    }

    /// The sum of all series of `name` that carry all of `labels`; 0 when there is none, as a
    /// counter that has never moved may have no series yet.
    #[must_use]
    pub fn sum(&self, name: &str, labels: &[(&str, &str)]) -> f64 {
        let carries = |sample: &&Sample| {
            sample.name == name
                && labels
                    .iter()
                    .all(|(key, value)| sample.labels.get(*key).is_some_and(|has| has == value))
        };
        // An empty sum of floats is -0.0.
        self.0.iter().filter(carries).map(|sample| sample.value).sum::<f64>() + 0.0
    }

    /// The values that a label of `name` takes where the series is not 0, each with its sum.
    #[must_use]
    pub fn by(&self, name: &str, label: &str) -> BTreeMap<String, f64> {
        let mut sums = BTreeMap::new();
        for sample in self.0.iter().filter(|sample| sample.name == name && sample.value != 0.0) {
            if let Some(value) = sample.labels.get(label) {
                *sums.entry(value.clone()).or_insert(0.0) += sample.value;
            }
        }
        sums
    }
}

fn sample(line: &str) -> Option<Sample> {
    let name_end = line.find(['{', ' '])?;
    let (name, rest) = line.split_at_checked(name_end)?;
    let (labels, rest) = match rest.strip_prefix('{') {
        Some(rest) => labels(rest)?,
        None => (BTreeMap::new(), rest),
    };
    let value = rest.split_whitespace().next()?.parse().ok()?;
    Some(Sample { name: name.to_owned(), labels, value })
}

/// The labels after `{`, and what follows the `}`.
fn labels(text: &str) -> Option<(BTreeMap<String, String>, &str)> {
    let mut labels = BTreeMap::new();
    let mut rest = text;
    loop {
        rest = rest.trim_start_matches([',', ' ']);
        if let Some(after) = rest.strip_prefix('}') {
            return Some((labels, after));
        }
        let (key, after) = rest.split_once("=\"")?;
        let (value, after) = quoted(after)?;
        labels.insert(key.to_owned(), value);
        rest = after;
    }
}

/// A value up to its closing quote, without its escapes.
fn quoted(text: &str) -> Option<(String, &str)> {
    let mut value = String::new();
    let mut characters = text.chars();
    loop {
        match characters.next()? {
            '"' => return Some((value, characters.as_str())),
            '\\' => match characters.next()? {
                'n' => value.push('\n'),
                escaped => value.push(escaped),
            },
            plain => value.push(plain),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SCRAPE: &str = "# HELP a_total What is counted.\n# TYPE a_total counter\n\
        a_total{reason=\"fin\",rule=\"x, \\\"y\\\" }\"} 3\na_total{reason=\"rst\",rule=\"z\"} 4\n\
        a_total{reason=\"idle\"} 0\nup 1\n";

    #[test]
    fn series_are_summed_by_their_labels() {
        let metrics = Metrics::parse(SCRAPE).unwrap();
        assert_eq!(metrics.sum("a_total", &[]), 7.0);
        assert_eq!(metrics.sum("a_total", &[("reason", "fin")]), 3.0);
        assert_eq!(metrics.sum("a_total", &[("rule", "x, \"y\" }")]), 3.0);
        assert_eq!(metrics.sum("a_total", &[("reason", "fin"), ("rule", "z")]), 0.0);
        assert_eq!(metrics.sum("up", &[]), 1.0);
        assert_eq!(metrics.sum("a", &[]), 0.0, "a name is not a prefix");
        let reasons = metrics.by("a_total", "reason");
        assert_eq!(reasons.keys().collect::<Vec<_>>(), ["fin", "rst"]);
    }

    #[test]
    fn what_is_no_sample_is_an_error() {
        for line in ["a_total", "a_total{x=\"1\" 3", "a_total{x=\"1\"} many"] {
            assert!(Metrics::parse(line).is_err(), "{line}");
        }
    }
}
