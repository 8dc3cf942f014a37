//! The record of what was there before, in an annotation of the pod.
//!
//! A comment would not survive the API server, and what the proxy is told of a probe
//! (`PILLION_APP_PROBES`) is not what its author wrote: ports are numbers there, and comments gone.

use std::collections::BTreeMap;

use serde_json::{Map, Value as Json, json};

use crate::emit::json as ascii_json;

/// The annotation that marks a pod as ours.
pub const RECORD: &str = "pillion.dev/injected";

/// The bytes that a change of ours took away.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Record {
    /// What stood behind the colon of a key that was there and empty, such as ` []`.
    pub(crate) empty: BTreeMap<String, String>,
    /// Handlers by the path that replaces them, and the column where they began in block style.
    pub(crate) probes: BTreeMap<String, (String, Option<usize>)>,
}

impl Record {
    /// As the annotation has it: JSON in ASCII.
    pub(crate) fn write(&self) -> String {
        let mut record = Map::new();
        record.insert("version".to_owned(), env!("CARGO_PKG_VERSION").into());
        if !self.empty.is_empty() {
            let empty = self.empty.iter().map(|(key, text)| (key.clone(), text.clone().into()));
            record.insert("empty".to_owned(), Json::Object(empty.collect()));
        }
        if !self.probes.is_empty() {
            let probe = |(path, (text, column)): (&String, &(String, Option<usize>))| {
                let was = match column {
                    Some(column) => json!({"text": text, "column": column}),
                    None => json!({"text": text}),
                };
                (path.clone(), was)
            };
            let probes = self.probes.iter().map(probe);
            record.insert("probes".to_owned(), Json::Object(probes.collect()));
        }
        ascii_json(&record.into(), None)
    }

    /// `None` for what [`Self::write`] cannot have written.
    pub(crate) fn read(text: &str) -> Option<Self> {
        let record: Json = serde_json::from_str(text).ok()?;
        let part = |key| match record.get(key) {
            None => Some(Map::new()),
            Some(part) => part.as_object().cloned(),
        };
        record.get("version")?.as_str()?;
        let empty = part("empty")?.into_iter().map(|(key, text)| Some((key, string(&text)?)));
        let probe = |(path, was): (String, Json)| {
            let column = match was.get("column") {
                None => None,
                Some(column) => Some(usize::try_from(column.as_u64()?).ok()?),
            };
            Some((path, (string(was.get("text")?)?, column)))
        };
        let probes = part("probes")?.into_iter().map(probe);
        Some(Self { empty: empty.collect::<Option<_>>()?, probes: probes.collect::<Option<_>>()? })
    }
}

fn string(value: &Json) -> Option<String> {
    value.as_str().map(ToOwned::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_is_read_as_it_was_written() {
        let mut record = Record::default();
        assert_eq!(Record::read(&record.write()), Some(record.clone()));
        record.empty.insert("volumes".to_owned(), " []".to_owned());
        let text = "httpGet:\r\n  path: /ü # 'x'\u{2028}".to_owned();
        record.probes.insert("/app-health/web/livenessProbe".to_owned(), (text, Some(10)));
        record.probes.insert("/x".to_owned(), ("\"grpc\": {}".to_owned(), None));
        assert!(record.write().is_ascii());
        assert_eq!(Record::read(&record.write()), Some(record));
    }

    #[test]
    fn what_was_not_written_is_not_read() {
        for text in [
            "",
            "{}",
            "[]",
            r#"{"version": 1}"#,
            r#"{"version":"1","probes":{"a":{}}}"#,
            r#"{"version":"1","empty":{"a":1}}"#,
            r#"{"version":"1","probes":{"a":{"text":"","column":-1}}}"#,
        ] {
            assert_eq!(Record::read(text), None, "{text}");
        }
    }
}
