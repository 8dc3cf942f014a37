//! The proxy's access log, read back line by line.

use serde_json::Value;

use crate::labels::{ACCESS, field};

/// One line of the access log.
#[derive(Debug, Clone, PartialEq)]
pub struct LogLine(Value);

impl LogLine {
    /// The access-log lines among everything that the proxy has printed. A line that is still
    /// being written is not one yet.
    pub(crate) fn all(printed: &str) -> Vec<Self> {
        printed
            .lines()
            .filter_map(|line| serde_json::from_str::<Value>(line).ok())
            .filter(|line| line.get(field::LOG).is_some_and(|log| log == ACCESS))
            .map(Self)
            .collect()
    }

    /// The other lines: what the process says of itself.
    pub(crate) fn messages(printed: &str) -> Vec<Self> {
        printed
            .lines()
            .filter_map(|line| serde_json::from_str::<Value>(line).ok())
            .filter(|line| line.get(field::MESSAGE).is_some())
            .map(Self)
            .collect()
    }

    /// A field as text; empty when it is absent or null, so that a test can compare it at once.
    #[must_use]
    pub fn text(&self, name: &str) -> String {
        match self.0.get(name) {
            None | Some(Value::Null) => String::new(),
            Some(Value::String(text)) => text.clone(),
            Some(other) => other.to_string(),
        }
    }

    /// Why the connection ended.
    #[must_use]
    pub fn reason(&self) -> String {
        self.text(field::REASON)
    }

    /// Whether a line is of a direction and a reason.
    #[must_use]
    pub fn is(&self, direction: &str, reason: &str) -> bool {
        self.text(field::DIRECTION) == direction && self.reason() == reason
    }

    /// Whether any field's text holds `part`.
    #[must_use]
    pub fn mentions(&self, part: &str) -> bool {
        self.0.to_string().contains(part)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_whole_access_lines_are_taken() {
        let printed = "{\"level\":\"INFO\",\"message\":\"ready\"}\n\
            {\"log\":\"access\",\"direction\":\"inbound\",\"reason\":\"fin\",\"bytes\":7,\"rule\":null}\n\
            {\"log\":\"access\",\"direction\":\"inbound\",\"reas";
        let lines = LogLine::all(printed);
        assert_eq!(lines.len(), 1);
        assert!(lines[0].is("inbound", "fin"));
        assert_eq!(lines[0].text("bytes"), "7");
        assert_eq!(lines[0].text("rule"), "");
        assert!(lines[0].mentions("inbound") && !lines[0].mentions("ready"));
        let said = LogLine::messages(printed);
        assert_eq!(said.len(), 1);
        assert_eq!(said[0].text("message"), "ready");
    }
}
