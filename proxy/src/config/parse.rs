//! Reads typed values and collects what is wrong with them.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Display;
use std::net::SocketAddr;
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use pillion_app_probes::AppProbe;

use super::vars::{VARIABLES, find};
use super::{Config, ConfigError, ConfigErrors};

/// Reads variables by name, remembering every error.
pub(super) struct Reader {
    vars: BTreeMap<String, String>,
    errors: Vec<ConfigError>,
}

impl Reader {
    pub(super) fn new(mut vars: BTreeMap<String, String>) -> Self {
        vars.retain(|name, value| match name.strip_prefix("PILLION_") {
            Some(_) => !value.starts_with("tcp://"),
            None => find(name).is_some(),
        });
        Self { vars, errors: Vec::new() }
    }

    pub(super) fn error(&mut self, name: &str, problem: impl Into<String>) {
        self.errors.push(ConfigError { name: name.to_owned(), problem: problem.into() });
    }

    /// The value that is set, or the table's default; `None` when both are empty.
    fn value(&self, name: &'static str) -> Option<String> {
        let set = self.vars.get(name).map(|v| v.trim().to_owned()).filter(|v| !v.is_empty());
        set.or_else(|| find(name).map(|v| v.default.to_owned()).filter(|v| !v.is_empty()))
    }

    pub(super) fn path(&mut self, name: &'static str) -> PathBuf {
        self.optional_path(name).unwrap_or_default()
    }

    pub(super) fn optional_path(&mut self, name: &'static str) -> Option<PathBuf> {
        self.value(name).map(PathBuf::from)
    }

    pub(super) fn refuse_both(&mut self, one: &str, other: &str) {
        if self.vars.contains_key(one) && self.vars.contains_key(other) {
            self.error(
                other,
                format!("{one} is set too, and it takes this one's place: unset one"),
            );
        }
    }

    /// For a variable of which "not set" and "set to nothing" must not be the same.
    pub(super) fn refuse_blank(&mut self, name: &str) {
        if self.vars.get(name).is_some_and(|value| value.trim().is_empty()) {
            self.error(name, "it is set, and empty: name a file, or unset it");
        }
    }

    /// For a variable that means nothing beside `other`.
    pub(super) fn refuse_beside(&mut self, name: &str, other: &str) {
        if self.vars.contains_key(name) {
            self.error(name, format!("it means nothing with {other}: unset one"));
        }
    }

    /// For a variable that `other` needs.
    pub(super) fn required<T>(&mut self, name: &'static str, other: &str) -> Option<T>
    where
        T: FromStr,
        T::Err: Display,
    {
        if self.value(name).is_none() {
            self.error(name, format!("{other} needs it"));
        }
        self.parsed(name)
    }

    pub(super) fn parsed<T>(&mut self, name: &'static str) -> Option<T>
    where
        T: FromStr,
        T::Err: Display,
    {
        match self.value(name)?.parse() {
            Ok(value) => Some(value),
            Err(e) => {
                self.error(name, format!("{e}"));
                None
            }
        }
    }

    pub(super) fn choice<T: Copy>(&mut self, name: &'static str, choices: &[(&str, T)]) -> T {
        let value = self.value(name).unwrap_or_default();
        let found = choices.iter().find(|(word, _)| *word == value);
        if found.is_none() {
            let words: Vec<_> = choices.iter().map(|(word, _)| *word).collect();
            self.error(name, format!("`{value}` is none of {}", words.join(", ")));
        }
        // The list is a literal of the caller's; its first entry stands in after
        // an error, which `finish` turns into a refusal to start.
        #[allow(clippy::indexing_slicing)]
        found.unwrap_or(&choices[0]).1
    }

    pub(super) fn duration(&mut self, name: &'static str) -> Duration {
        let value = self.value(name).unwrap_or_default();
        match parse_duration(&value) {
            Some(d) if d >= Duration::from_millis(1) && d <= Duration::from_secs(86_400) => d,
            Some(_) => {
                self.error(name, format!("`{value}` is not between 1ms and 24h"));
                Duration::from_secs(1)
            }
            None => {
                self.error(name, format!("`{value}` is no duration: a number with its unit (ms, s, m or h), such as 500ms or 10s"));
                Duration::from_secs(1)
            }
        }
    }

    pub(super) fn number(
        &mut self,
        name: &'static str,
        range: RangeInclusive<usize>,
    ) -> Option<usize> {
        self.optional_number(name, range)
    }

    pub(super) fn optional_number(
        &mut self,
        name: &'static str,
        range: RangeInclusive<usize>,
    ) -> Option<usize> {
        let value = self.value(name)?;
        match value.parse::<usize>() {
            Ok(n) if range.contains(&n) => Some(n),
            _ => {
                self.error(
                    name,
                    format!(
                        "`{value}` is no whole number from {} to {}",
                        range.start(),
                        range.end()
                    ),
                );
                None
            }
        }
    }

    /// A range of ports; `None` for `off`. Those below 1024 are for the privileged (ip(7)).
    pub(super) fn ports(&mut self, name: &'static str) -> Option<RangeInclusive<u16>> {
        let value = self.value(name)?;
        if value == "off" {
            return None;
        }
        let ends = value.split_once('-').map(|(first, last)| (first.parse(), last.parse()));
        match ends {
            Some((Ok(first), Ok(last))) if (1024..=last).contains(&first) => Some(first..=last),
            _ => {
                self.error(
                    name,
                    format!("`{value}` is no range of ports from 1024 to 65535, such as 61000-65535, nor off"),
                );
                None
            }
        }
    }

    /// A list with commas. `loopback`: the endpoint would be an open door on any
    /// other address, so nothing but a loopback address is taken.
    pub(super) fn addresses(&mut self, name: &'static str, loopback: bool) -> Vec<SocketAddr> {
        let value = self.value(name).unwrap_or_default();
        let mut addresses = Vec::new();
        for item in value.split(',').map(str::trim).filter(|i| !i.is_empty()) {
            match item.parse::<SocketAddr>() {
                Ok(a) if a.port() == 0 => {
                    self.error(
                        name,
                        format!("`{item}` has no port that redirect rules could name"),
                    );
                }
                Ok(a) if loopback && !a.ip().is_loopback() => {
                    self.error(name, format!("`{item}` is not a loopback address, and this endpoint must be reachable from the pod alone: use 127.0.0.1 or [::1]"));
                }
                Ok(a) => addresses.push(a),
                Err(_) => self.error(
                    name,
                    format!("`{item}` is no address and port, such as 0.0.0.0:15006 or [::]:15006"),
                ),
            }
        }
        if value.split(',').all(|item| item.trim().is_empty()) {
            self.error(name, "no address is named; unset it for the default");
        }
        addresses
    }

    pub(super) fn log_filter(&mut self, name: &'static str) -> String {
        let value = self.value(name).unwrap_or_default();
        if let Err(e) = value.parse::<tracing_subscriber::EnvFilter>() {
            self.error(name, format!("`{value}` is no log filter: {e}"));
        }
        value
    }

    /// The app's probes; none where there are none.
    pub(super) fn app_probes(&mut self, name: &'static str) -> Vec<AppProbe> {
        let Some(text) = self.value(name) else { return Vec::new() };
        pillion_app_probes::read(&text).unwrap_or_else(|problems| {
            for problem in problems {
                self.error(name, problem.to_string());
            }
            Vec::new()
        })
    }

    /// What is wrong so far.
    pub(super) fn into_errors(self) -> Result<(), ConfigErrors> {
        if self.errors.is_empty() { Ok(()) } else { Err(ConfigErrors(dedup(self.errors))) }
    }

    pub(super) fn finish(self, config: Config) -> Result<(Config, Vec<String>), ConfigErrors> {
        let Self { vars, errors } = self;
        Self { vars: BTreeMap::new(), errors }.into_errors()?;
        let warnings = vars
            .keys()
            // pillion-init reads its own from the same pod spec.
            .filter(|name| find(name).is_none() && !name.starts_with("PILLION_INIT_"))
            .map(|name| match nearest(name) {
                Some(near) => format!("{name} means nothing here; did you mean {near}?"),
                None => format!("{name} means nothing here"),
            })
            .collect();
        Ok((config, warnings))
    }
}

fn dedup(errors: Vec<ConfigError>) -> Vec<ConfigError> {
    let mut seen = BTreeSet::new();
    errors.into_iter().filter(|e| seen.insert((e.name.clone(), e.problem.clone()))).collect()
}

/// `500ms`, `10s`, `5m`, `1h`: a unit is required, so that nobody guesses one. `None`: it is no
/// such text, or too long a time.
pub fn parse_duration(text: &str) -> Option<Duration> {
    let split = text.find(|c: char| !c.is_ascii_digit())?;
    let (digits, unit) = text.split_at_checked(split)?;
    let n: u64 = digits.parse().ok()?;
    match unit {
        "ms" => Some(Duration::from_millis(n)),
        "s" => Some(Duration::from_secs(n)),
        "m" => n.checked_mul(60).map(Duration::from_secs),
        "h" => n.checked_mul(3600).map(Duration::from_secs),
        _ => None,
    }
}

/// CPUs that this process may use (std reads the affinity mask and the cgroup's
/// quota), at most 2: a sidecar beside one app rarely earns a third.
pub(super) fn default_workers() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from).min(2)
}

/// The known name with the fewest edits, when it is near enough to be meant.
fn nearest(name: &str) -> Option<&'static str> {
    VARIABLES
        .iter()
        .map(|v| (strsim::damerau_levenshtein(name, v.name), v.name))
        .min()
        .filter(|(distance, _)| *distance <= 4)
        .map(|(_, near)| near)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_want_a_unit() {
        assert_eq!(parse_duration("500ms"), Some(Duration::from_millis(500)));
        assert_eq!(parse_duration("2m"), Some(Duration::from_secs(120)));
        assert_eq!(parse_duration("1h"), Some(Duration::from_secs(3600)));
        for bad in [
            "",
            "5",
            "s",
            "-1s",
            "5 s",
            "5d",
            "1.5s",
            "99999999999999999999s",
            "18446744073709551615h",
        ] {
            assert_eq!(parse_duration(bad), None, "{bad}");
        }
    }

    #[test]
    fn every_variable_has_the_prefix_and_no_name_that_a_service_would_inject() {
        for v in VARIABLES {
            let standard = v.name == "SPIFFE_ENDPOINT_SOCKET";
            assert!(v.name.starts_with("PILLION_") || standard, "{}", v.name);
            assert!(!v.name.ends_with("_PORT") && !v.name.ends_with("_HOST"), "{}", v.name);
        }
    }
}
