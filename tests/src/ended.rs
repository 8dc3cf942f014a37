//! How connections have ended, told twice: by the metric and by the access log.

use crate::labels::metric;
use crate::{Failure, LogLine, Sidecar};

impl Sidecar {
    /// [`Sidecar::metric`], of what is counted.
    ///
    /// # Errors
    /// As there, or it is no whole number from 0 up.
    pub fn count(&self, name: &str, labels: &[(&str, &str)]) -> Result<usize, Failure> {
        let value = self.metric(name, labels)?;
        let whole = value.to_string().parse();
        whole.map_err(|_| Failure::Unexpected(format!("{name}{labels:?}: {value} is no count")))
    }

    /// Waits until exactly `count` connections of a direction have ended for a reason: by the
    /// metric, and by the access log, where each has one line. Returns these lines.
    ///
    /// # Errors
    /// There are fewer after 30 s, or more.
    pub fn wait_ended(
        &self,
        direction: &str,
        reason: &str,
        count: usize,
    ) -> Result<Vec<LogLine>, Failure> {
        let labels = [("direction", direction), ("reason", reason)];
        self.wait_metric(metric::CLOSED, &labels, count as f64)?;
        let lines = self.wait_logs(reason, count, |line| line.is(direction, reason))?;
        if lines.len() == count {
            return Ok(lines);
        }
        let found = lines.len();
        Err(Failure::Unexpected(format!(
            "{direction} {reason}: {found} lines of {count}: {lines:?}"
        )))
    }
}
