//! One JSON line for each connection that ended.

use std::io::Write;
use std::net::SocketAddr;
use std::time::{Duration, SystemTime};

use serde::Serialize;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use tracing_appender::non_blocking::NonBlocking;

use super::{CloseReason, Direction};
use crate::config::AccessLogMode;

/// What is known of a connection when it ends. Absent facts are left out of the
/// line rather than filled with a made-up value.
#[derive(Clone, Debug)]
pub struct Record<'a> {
    /// Which way it went.
    pub direction: Direction,
    /// Who connected.
    pub source: SocketAddr,
    /// Where to, before redirection.
    pub destination: Option<SocketAddr>,
    /// The verified identity of the other end.
    pub peer: Option<&'a str>,
    /// `mtls`, `plaintext` or `passthrough`.
    pub tls: Option<&'static str>,
    /// `allow` or `deny`.
    pub verdict: Option<&'static str>,
    /// The rule that decided.
    pub rule: Option<&'a str>,
    /// What the audit rules would have decided, where that differs: verdict and rule.
    pub shadow: Option<(&'static str, &'a str)>,
    /// Why it ended.
    pub reason: CloseReason,
    /// More on the reason.
    pub detail: Option<&'a str>,
    /// Bytes to the app.
    pub bytes_to_app: u64,
    /// Bytes from the app.
    pub bytes_from_app: u64,
    /// From accept to the end.
    pub duration: Duration,
}

/// The shape of a line; the order of the fields is the order in the output.
#[derive(Serialize)]
struct Line<'a> {
    time: String,
    log: &'static str,
    direction: &'static str,
    source: SocketAddr,
    #[serde(skip_serializing_if = "Option::is_none")]
    destination: Option<SocketAddr>,
    #[serde(skip_serializing_if = "Option::is_none")]
    peer: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    tls: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    verdict: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    rule: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    shadow_verdict: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    shadow_rule: Option<&'a str>,
    reason: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    detail: Option<&'a str>,
    bytes_to_app: u64,
    bytes_from_app: u64,
    duration_ms: u64,
}

/// Writes lines into the log's bounded queue; never blocks.
#[derive(Clone, Debug)]
pub struct AccessLog {
    mode: AccessLogMode,
    writer: NonBlocking,
}

impl AccessLog {
    /// A log that writes what `mode` wants to `writer`.
    pub fn new(mode: AccessLogMode, writer: NonBlocking) -> Self {
        Self { mode, writer }
    }

    /// Writes the line of a connection that ended, if the mode wants it.
    pub fn write(&self, record: &Record<'_>) {
        let wanted = match self.mode {
            AccessLogMode::Off => false,
            AccessLogMode::Denied => !record.reason.is_clean(),
            AccessLogMode::All => true,
        };
        if !wanted {
            return;
        }
        if let Some(line) = render(record, SystemTime::now()) {
            // The queue drops and counts what does not fit; the writer can't fail otherwise.
            let _ = self.writer.clone().write_all(&line);
        }
    }
}

fn render(record: &Record<'_>, now: SystemTime) -> Option<Vec<u8>> {
    let line = Line {
        time: OffsetDateTime::from(now).format(&Rfc3339).ok()?,
        log: "access",
        direction: record.direction.label(),
        source: record.source,
        destination: record.destination,
        peer: record.peer,
        tls: record.tls,
        verdict: record.verdict,
        rule: record.rule,
        shadow_verdict: record.shadow.map(|(verdict, _)| verdict),
        shadow_rule: record.shadow.map(|(_, rule)| rule),
        reason: record.reason.label(),
        detail: record.detail,
        bytes_to_app: record.bytes_to_app,
        bytes_from_app: record.bytes_from_app,
        duration_ms: u64::try_from(record.duration.as_millis()).unwrap_or(u64::MAX),
    };
    let mut bytes = serde_json::to_vec(&line).ok()?;
    bytes.push(b'\n');
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_json_with_what_is_known_and_nothing_else() {
        let record = Record {
            direction: Direction::Inbound,
            source: "10.0.0.1:4000".parse().unwrap(),
            destination: Some("[fd00::2]:80".parse().unwrap()),
            peer: None,
            tls: Some("plaintext"),
            verdict: Some("deny"),
            rule: Some("default"),
            shadow: None,
            reason: CloseReason::Denied,
            detail: Some("a \"quoted\"\nline"),
            bytes_to_app: 0,
            bytes_from_app: 0,
            duration: Duration::from_millis(12),
        };
        let bytes = render(&record, SystemTime::UNIX_EPOCH).unwrap();
        assert_eq!(bytes.iter().filter(|b| **b == b'\n').count(), 1);
        let line: serde_json::Value = serde_json::from_slice(&bytes).unwrap();
        assert_eq!(line["time"], "1970-01-01T00:00:00Z");
        assert_eq!(line["destination"], "[fd00::2]:80");
        assert_eq!(line["reason"], "denied");
        assert_eq!(line["detail"], "a \"quoted\"\nline");
        assert!(line.get("peer").is_none() && line.get("shadow_rule").is_none());
    }
}
