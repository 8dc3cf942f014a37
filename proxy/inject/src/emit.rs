//! Values of ours as YAML text in block style, or as JSON, which is YAML's flow style, too.

use serde_json::{Map, Value};

/// How the file around it indents.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Layout {
    /// Columns from a key to the keys below it.
    pub(crate) step: usize,
    /// Columns from a key to the dashes of a list below it; 0 is common.
    pub(crate) dash: usize,
}

/// `key: value`, without indentation and line ends.
pub(crate) fn entry_lines(key: &str, value: &Value, layout: Layout) -> Vec<String> {
    let key = scalar(key);
    match value {
        Value::Object(map) if !map.is_empty() => {
            let mut lines = vec![format!("{key}:")];
            lines.extend(indented(map_lines(map, layout), layout.step));
            lines
        }
        Value::Array(items) if !items.is_empty() => {
            let mut lines = vec![format!("{key}:")];
            let items = items.iter().flat_map(|item| item_lines(item, layout));
            lines.extend(indented(items, layout.dash));
            lines
        }
        other => vec![format!("{key}: {}", leaf(other))],
    }
}

/// `- value`, likewise.
pub(crate) fn item_lines(value: &Value, layout: Layout) -> Vec<String> {
    match value {
        Value::Object(map) if !map.is_empty() => {
            let lines = map_lines(map, layout).into_iter().enumerate();
            lines
                .map(|(n, line)| if n == 0 { format!("- {line}") } else { indent(&line, 2) })
                .collect()
        }
        other => vec![format!("- {}", leaf(other))],
    }
}

fn map_lines(map: &Map<String, Value>, layout: Layout) -> Vec<String> {
    map.iter().flat_map(|(key, value)| entry_lines(key, value, layout)).collect()
}

fn indented(lines: impl IntoIterator<Item = String>, by: usize) -> impl Iterator<Item = String> {
    lines.into_iter().map(move |line| indent(&line, by))
}

fn indent(line: &str, by: usize) -> String {
    format!("{:by$}{line}", "")
}

fn leaf(value: &Value) -> String {
    match value {
        Value::String(text) => scalar(text),
        other => json(other, None),
    }
}

/// A string that every reader of YAML, 1.1 or 1.2, takes for this string.
fn scalar(text: &str) -> String {
    if is_plain(text) {
        text.to_owned()
    } else if text.chars().all(|c| c == ' ' || c.is_ascii_graphic()) {
        format!("'{}'", text.replace('\'', "''"))
    } else {
        json(&Value::String(text.to_owned()), None)
    }
}

/// No number, boolean, null, date or indicator in any version of YAML.
fn is_plain(text: &str) -> bool {
    const WORDS: [&str; 9] = ["true", "false", "null", "yes", "no", "on", "off", "y", "n"];
    let plain = |c: char| c.is_ascii_alphanumeric() || "_./:-".contains(c);
    let starts = text.starts_with(|c: char| c.is_ascii_alphabetic() || c == '/' || c == '_');
    let digits = text.trim_start_matches(|c: char| c.is_ascii_digit());
    let quantity = digits.len() < text.len() && matches!(digits, "m" | "Ki" | "Mi" | "Gi");
    text.chars().all(plain)
        && !text.ends_with(':')
        && !WORDS.contains(&text.to_ascii_lowercase().as_str())
        && (starts || quantity)
}

/// Where JSON over several lines stands.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Pretty<'e> {
    /// The column of the value's first character.
    pub(crate) column: usize,
    /// Columns from a bracket's line to what is in it.
    pub(crate) step: usize,
    pub(crate) eol: &'e str,
}

/// JSON in ASCII; on one line, or over several.
///
/// `$` is escaped, too: a container's environment has references (`$(NAME)`) in it that the
/// kubelet expands, and we have none.
pub(crate) fn json(value: &Value, pretty: Option<Pretty<'_>>) -> String {
    match value {
        Value::Object(map) => {
            let entry = |(key, value): (&String, &Value)| {
                let value = json(value, pretty.map(|p| Pretty { column: p.column + p.step, ..p }));
                format!("{}: {value}", quoted(key))
            };
            brackets('{', '}', map.iter().map(entry).collect(), pretty)
        }
        Value::Array(items) => {
            let inner = pretty.map(|p| Pretty { column: p.column + p.step, ..p });
            let items = items.iter().map(|item| json(item, inner));
            brackets('[', ']', items.collect(), pretty)
        }
        Value::String(text) => quoted(text),
        other => other.to_string(),
    }
}

fn brackets(open: char, close: char, parts: Vec<String>, pretty: Option<Pretty<'_>>) -> String {
    match pretty {
        Some(Pretty { column, step, eol }) if !parts.is_empty() => {
            let inner = format!("{eol}{:1$}", "", column + step);
            let outer = format!("{eol}{:column$}", "");
            format!("{open}{inner}{}{outer}{close}", parts.join(&format!(",{inner}")))
        }
        _ => format!("{open}{}{close}", parts.join(", ")),
    }
}

/// One entry of a JSON object.
pub(crate) fn json_entry(key: &str, value: &Value, pretty: Option<Pretty<'_>>) -> String {
    format!("{}: {}", quoted(key), json(value, pretty))
}

fn quoted(text: &str) -> String {
    let mut out = String::with_capacity(text.len() + 2);
    let mut units = [0_u16; 2];
    for c in Value::from(text).to_string().chars() {
        if c.is_ascii() && c != '\u{7f}' && c != '$' {
            out.push(c);
        } else {
            for unit in c.encode_utf16(&mut units) {
                out.push_str(&format!("\\u{unit:04x}"));
            }
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn strings_stay_strings() {
        for (text, want) in [
            ("pillion-init:0.1.0", "pillion-init:0.1.0"),
            ("/var/run", "/var/run"),
            ("10m", "10m"),
            ("256Mi", "256Mi"),
            ("true", "'true'"),
            ("No", "'No'"),
            ("1e3", "'1e3'"),
            ("0x1f", "'0x1f'"),
            ("12:30", "'12:30'"),
            ("", "''"),
            ("a:", "'a:'"),
            ("80,443", "'80,443'"),
            ("it's", "'it''s'"),
            ("a\nb", "\"a\\nb\""),
            ("\u{85}\u{1f600}", "\"\\u0085\\ud83d\\ude00\""),
        ] {
            assert_eq!(scalar(text), want);
        }
    }

    #[test]
    fn block_style_follows_the_layout() {
        let value = json!({"a": [{"b": 1, "c": {"d": true}}, "e"], "f": {}, "g": []});
        let lines = |step, dash| entry_lines("k", &value, Layout { step, dash }).join("\n");
        assert_eq!(
            lines(2, 0),
            "k:\n  a:\n  - b: 1\n    c:\n      d: true\n  - e\n  f: {}\n  g: []"
        );
        assert_eq!(
            lines(4, 2),
            "k:\n    a:\n      - b: 1\n        c:\n            d: true\n      - e\n    f: {}\n    g: []"
        );
    }

    #[test]
    fn json_is_json() {
        let value = json!({"a": [1, {"b": "ü$(X)\u{2028}"}], "c": []});
        assert_eq!(json(&value, None), r#"{"a": [1, {"b": "\u00fc\u0024(X)\u2028"}], "c": []}"#);
        let pretty = Pretty { column: 2, step: 2, eol: "\r\n" };
        let text = json(&value, Some(pretty));
        assert!(
            text.starts_with("{\r\n    \"a\": [\r\n      1,\r\n      {\r\n        \"b\""),
            "{text}"
        );
        assert!(text.ends_with("\r\n  }"), "{text}");
        assert_eq!(serde_json::from_str::<Value>(&text).unwrap(), value);
    }
}
