//! Writes data as YAML in any style: block and flow, every indentation, comments anywhere.

use fastrand::Rng;
use serde_json::Value;

/// Documents with markers between them, and any line ends.
pub(crate) fn stream(rng: &mut Rng, documents: &[Value]) -> String {
    let mut out = String::new();
    for (number, document) in documents.iter().enumerate() {
        if number > 0 || rng.bool() {
            out.push_str("---");
            out.push_str(comment(rng));
            out.push('\n');
        }
        if rng.u32(0..6) == 0 {
            out.push_str(&format!("{document:#}\n"));
        } else {
            Writer { rng, out: &mut out, literal: false }.root(document);
        }
    }
    if rng.u32(0..4) == 0 && out.ends_with(['}', '\n']) && !out.ends_with("\n\n") {
        // A block scalar at the end would lose its own line end.
        let cut = out.trim_end_matches('\n').to_owned();
        if !cut.lines().rev().take(12).any(|line| line.contains('|')) {
            out = cut;
        }
    }
    if rng.u32(0..3) == 0 { out.replace('\n', "\r\n") } else { out }
}

fn comment(rng: &mut Rng) -> &'static str {
    const COMMENTS: [&str; 6] = ["", "", "", " # why", "  # { [ : - '", " #ü: ---"];
    COMMENTS[rng.usize(..COMMENTS.len())]
}

struct Writer<'a> {
    rng: &'a mut Rng,
    out: &'a mut String,
    /// The last line is a block scalar's, which would take what follows for its own.
    literal: bool,
}

impl Writer<'_> {
    fn root(&mut self, value: &Value) {
        let Value::Object(map) = value else { return };
        for (key, value) in map {
            self.between(0);
            self.entry(0, key, value);
        }
    }

    /// Blank lines, and comments in any column.
    fn between(&mut self, indent: usize) {
        if std::mem::take(&mut self.literal) {
            return;
        }
        while self.rng.u32(0..5) == 0 {
            let column = if self.rng.bool() { indent } else { self.rng.usize(0..9) };
            match self.rng.u32(0..3) {
                0 => self.out.push('\n'),
                1 => self.out.push_str(&format!("{:column$}# - a: comment\n", "")),
                _ => self.out.push_str(&format!("{:column$}#\n", "")),
            }
        }
    }

    /// `key: value`, from where the key goes to the end of the last line.
    fn entry(&mut self, column: usize, key: &str, value: &Value) {
        match self.rng.u32(0..6) {
            0 => self.out.push_str(&format!("\"{key}\":")),
            1 => self.out.push_str(&format!("'{key}' :")),
            _ => self.out.push_str(&format!("{key}:")),
        }
        let block = self.rng.u32(0..6) > 0;
        match value {
            Value::Object(map) if block && !map.is_empty() => {
                self.line_end();
                let column = column + self.rng.usize(1..6);
                for (key, value) in map {
                    self.between(column);
                    self.out.push_str(&format!("{:column$}", ""));
                    self.entry(column, key, value);
                }
            }
            Value::Array(items) if block && !items.is_empty() => {
                self.line_end();
                let dash = column + self.rng.usize(0..5);
                for item in items {
                    self.between(dash);
                    self.item(dash, item);
                }
            }
            Value::Null if self.rng.bool() => self.line_end(),
            Value::String(text)
                if block && text.contains('\n') && !text.starts_with([' ', '\n']) =>
            {
                self.literal(column, text);
            }
            other => {
                self.out.push(' ');
                self.flow(column + 1, other);
                self.line_end();
            }
        }
    }

    fn item(&mut self, dash: usize, item: &Value) {
        self.out.push_str(&format!("{:dash$}-", ""));
        match item {
            Value::Object(map) if !map.is_empty() && self.rng.u32(0..6) > 0 => {
                let gap = self.rng.usize(1..5);
                let column = dash + 1 + gap;
                let mut inline = self.rng.u32(0..4) > 0;
                if !inline {
                    self.line_end();
                }
                for (key, value) in map {
                    if inline {
                        self.out.push_str(&format!("{:gap$}", ""));
                        inline = false;
                    } else {
                        self.between(column);
                        self.out.push_str(&format!("{:column$}", ""));
                    }
                    self.entry(column, key, value);
                }
            }
            other => {
                self.out.push(' ');
                self.flow(dash + 1, other);
                self.line_end();
            }
        }
    }

    fn line_end(&mut self) {
        let comment = comment(self.rng);
        self.out.push_str(comment);
        self.out.push('\n');
    }

    fn literal(&mut self, column: usize, text: &str) {
        self.literal = true;
        let body = text.trim_end_matches('\n');
        let chomping = match text.len() - body.len() {
            0 => "-",
            1 => "",
            _ => "+",
        };
        let column = column + self.rng.usize(1..4);
        self.out.push_str(&format!(" |{chomping}\n"));
        for line in text.trim_end_matches('\n').split('\n') {
            match line {
                "" => self.out.push('\n'),
                line => self.out.push_str(&format!("{:column$}{line}\n", "")),
            }
        }
        self.out.push_str(&"\n".repeat((text.len() - body.len()).saturating_sub(1)));
    }

    /// On one line, or with a line for each part; `column` is the least of any line.
    fn flow(&mut self, column: usize, value: &Value) {
        let (open, close, count) = match value {
            Value::Object(map) => ('{', '}', map.len()),
            Value::Array(items) => ('[', ']', items.len()),
            Value::String(text) => return self.scalar(text),
            other => return self.out.push_str(&other.to_string()),
        };
        self.out.push(open);
        let lines = count > 0 && self.rng.u32(0..4) == 0;
        let inner = column + self.rng.usize(1..5);
        for index in 0..count {
            if index > 0 {
                self.out.push(',');
            }
            if lines {
                self.line_end();
                self.between(inner);
                self.out.push_str(&format!("{:inner$}", ""));
            } else if self.rng.bool() || index > 0 {
                self.out.push(' ');
            }
            match value {
                Value::Object(map) => {
                    let (key, value) = map.iter().nth(index).expect("counted");
                    let quote = if self.rng.bool() { "\"" } else { "" };
                    self.out.push_str(&format!("{quote}{key}{quote}: "));
                    self.flow(inner, value);
                }
                other => self.flow(inner, &other[index]),
            }
        }
        if lines {
            self.line_end();
            self.out.push_str(&format!("{:column$}", ""));
        } else if self.rng.bool() {
            self.out.push(' ');
        }
        self.out.push(close);
    }

    fn scalar(&mut self, text: &str) {
        let plain = !text.is_empty()
            && text != "true"
            && text.chars().all(|c| c.is_alphanumeric())
            && text.starts_with(|c: char| c.is_alphabetic());
        match self.rng.u32(0..3) {
            0 if plain => self.out.push_str(text),
            1 if !text.contains('\n') => {
                self.out.push_str(&format!("'{}'", text.replace('\'', "''")));
            }
            _ => self.out.push_str(&Value::from(text).to_string()),
        }
    }
}
