//! Typed reading of the tree: each helper notes what is wrong and goes on, so that all the errors
//! of a file come at once.

use std::collections::HashSet;
use std::str::FromStr;

use super::diagnostic::{Kind, Sink};
use super::yaml::{Key, Node, Pos, Value, short};

/// The keys of one mapping in the format.
#[derive(Debug)]
pub(super) struct Section {
    /// Where the mapping stands, for example `inbound.rules[]`; empty for the document itself.
    pub(super) path: &'static str,
    /// Each key, and whether it is required.
    pub(super) keys: &'static [(&'static str, bool)],
}

impl Section {
    fn name(&self) -> &'static str {
        if self.path.is_empty() { "the document" } else { self.path }
    }
}

/// The values of a mapping, by the index of their key in the section.
pub(super) struct Fields<'n> {
    section: &'static Section,
    pub(super) pos: Pos,
    values: Vec<Option<(&'n Key, &'n Node)>>,
}

impl<'n> Fields<'n> {
    pub(super) fn get(&self, key: &str) -> Option<&'n Node> {
        self.entry(key).map(|(_, node)| node)
    }

    /// Where the key itself stands; the mapping's start when it isn't there.
    pub(super) fn key_pos(&self, key: &str) -> Pos {
        self.entry(key).map_or(self.pos, |(key, _)| key.pos)
    }

    fn entry(&self, key: &str) -> Option<(&'n Key, &'n Node)> {
        debug_assert!(self.section.keys.iter().any(|(k, _)| *k == key), "{key} is in no section");
        let at = self.section.keys.iter().position(|(k, _)| *k == key)?;
        self.values.get(at).copied().flatten()
    }
}

impl Sink<'_> {
    /// Reads a mapping: unknown, duplicate and missing keys are noted. `None` when it is none.
    pub(super) fn fields<'n>(
        &mut self,
        node: &'n Node,
        section: &'static Section,
    ) -> Option<Fields<'n>> {
        let Value::Map(entries) = &node.value else {
            self.wrong_type(node, "a mapping (\"key: value\")");
            return None;
        };
        let mut values = vec![None; section.keys.len()];
        for (key, value) in entries {
            let at = section.keys.iter().position(|(name, _)| **name == *key.text);
            match at.and_then(|at| values.get_mut(at)) {
                None => self.unknown_key(key, section),
                Some(Some(_)) => self.duplicate_key(key),
                Some(slot) => *slot = Some((key, value)),
            }
        }
        for ((name, required), value) in section.keys.iter().zip(&values) {
            if *required && value.is_none() {
                let message = format!("{} needs the key \"{name}\"; add it", section.name());
                self.add(Kind::MissingKey, node.pos, message);
            }
        }
        Some(Fields { section, pos: node.pos, values })
    }

    /// Reads a mapping whose keys are values themselves. Duplicate keys are noted and left out.
    pub(super) fn entries<'n>(&mut self, node: &'n Node) -> Vec<(&'n Key, &'n Node)> {
        let Value::Map(entries) = &node.value else {
            self.wrong_type(node, "a mapping (\"key: value\")");
            return Vec::new();
        };
        let mut seen = HashSet::new();
        let mut out = Vec::with_capacity(entries.len());
        for (key, value) in entries {
            if seen.insert(&*key.text) {
                out.push((key, value));
            } else {
                self.duplicate_key(key);
            }
        }
        out
    }

    /// Reads a list; `None` when it is none.
    pub(super) fn list<'n>(&mut self, node: &'n Node) -> Option<&'n [Node]> {
        match &node.value {
            Value::List(items) => Some(items),
            _ => {
                self.wrong_type(node, "a list (\"[a, b]\")");
                None
            }
        }
    }

    /// Reads a list of at least one item; `cure` says what to write in place of an empty one.
    pub(super) fn some_list<'n>(&mut self, node: &'n Node, cure: &str) -> Option<&'n [Node]> {
        let items = self.list(node)?;
        if items.is_empty() {
            self.add(Kind::BadValue, node.pos, format!("the list is empty; {cure}"));
            return None;
        }
        Some(items)
    }

    /// Reads text. A plain scalar that YAML takes for a number, a boolean or null is refused:
    /// whoever wrote `no` or `1.10` meant something, and quotes tell what.
    pub(super) fn text<'n>(&mut self, node: &'n Node) -> Option<&'n str> {
        match &node.value {
            Value::Scalar { text, plain } if !(*plain && is_not_text(text)) => Some(text),
            Value::Scalar { text, .. } if !text.is_empty() => {
                let message =
                    format!("text is needed and {text} is a number, a boolean or null; quote it");
                self.add(Kind::WrongType, node.pos, message);
                None
            }
            _ => {
                self.wrong_type(node, "text");
                None
            }
        }
    }

    /// Reads text and parses it; `what` names it in the error.
    pub(super) fn parsed<T: FromStr>(&mut self, node: &Node, what: &str) -> Option<T>
    where
        T::Err: std::fmt::Display,
    {
        let text = self.text(node)?;
        match text.parse() {
            Ok(value) => Some(value),
            Err(error) => {
                let message = format!("\"{}\" is no {what}: {error}", short(text));
                self.add(Kind::BadValue, node.pos, message);
                None
            }
        }
    }

    /// Reads one of a few words.
    pub(super) fn choice<T: Copy>(&mut self, node: &Node, words: &[(&str, T)]) -> Option<T> {
        let Value::Scalar { text, .. } = &node.value else {
            self.wrong_type(node, &one_of(words));
            return None;
        };
        if let Some((_, value)) = words.iter().find(|(word, _)| **word == **text) {
            return Some(*value);
        }
        let names = words.iter().map(|(word, _)| *word);
        let message = format!(
            "{} is not {}{}",
            node.describe(),
            one_of(words),
            suggest(text, names)
                .map_or(String::new(), |word| format!("; did you mean \"{word}\"?"))
        );
        self.add(Kind::BadValue, node.pos, message);
        None
    }

    /// Reads `true` or `false`.
    pub(super) fn boolean(&mut self, node: &Node) -> Option<bool> {
        match &node.value {
            Value::Scalar { text, plain: true } if &**text == "true" => Some(true),
            Value::Scalar { text, plain: true } if &**text == "false" => Some(false),
            _ => {
                self.wrong_type(node, "true or false, without quotes");
                None
            }
        }
    }

    /// Reads a TCP port, 1 to 65535, from a number without quotes.
    pub(super) fn port(&mut self, node: &Node) -> Option<u16> {
        match &node.value {
            Value::Scalar { text, plain: true } => self.port_text(text, node.pos),
            _ => {
                self.wrong_type(node, "a port number, 1 to 65535, without quotes");
                None
            }
        }
    }

    /// Reads a TCP port from a mapping's key; quotes are fine there, JSON has no other keys.
    pub(super) fn port_text(&mut self, text: &str, pos: Pos) -> Option<u16> {
        let digits = !text.starts_with('0') && text.bytes().all(|b| b.is_ascii_digit());
        let port = if digits { text.parse().ok() } else { None };
        if port.is_none() {
            let message = format!(
                "\"{}\" is no port; write a number from 1 to 65535, with no sign and no leading \
                 zero",
                short(text)
            );
            self.add(Kind::BadValue, pos, message);
        }
        port
    }

    fn wrong_type(&mut self, node: &Node, wanted: &str) {
        let message = format!("{wanted} is needed here, not {}", node.describe());
        self.add(Kind::WrongType, node.pos, message);
    }

    fn unknown_key(&mut self, key: &Key, section: &Section) {
        if self.is_full() {
            return self.add(Kind::UnknownKey, key.pos, "");
        }
        let names = || section.keys.iter().map(|(name, _)| *name);
        let cure = match suggest(&key.text, names()) {
            Some(name) => format!("did you mean \"{name}\"?"),
            None => format!("it has {}", names().collect::<Vec<_>>().join(", ")),
        };
        let message = format!("{} has no key \"{}\"; {cure}", section.name(), short(&key.text));
        self.add(Kind::UnknownKey, key.pos, message);
    }

    fn duplicate_key(&mut self, key: &Key) {
        let message = format!("the key \"{}\" stands twice; keep one", short(&key.text));
        self.add(Kind::DuplicateKey, key.pos, message);
    }
}

fn one_of<T>(words: &[(&str, T)]) -> String {
    let mut out = String::new();
    for (at, (word, _)) in words.iter().enumerate() {
        if at > 0 {
            out.push_str(if at + 1 == words.len() { " or " } else { ", " });
        }
        out.push_str(word);
    }
    out
}

/// The word that `text` was probably meant to be, if one is near.
fn suggest<'w>(text: &str, words: impl Iterator<Item = &'w str>) -> Option<&'w str> {
    let text: String = text.chars().take(40).collect::<String>().to_lowercase();
    words
        .map(|word| (strsim::damerau_levenshtein(&text, &word.to_lowercase()), word))
        .filter(|(distance, word)| *distance <= 1 + word.len() / 4)
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, word)| word)
}

/// What the YAML 1.2 core schema resolves to something else than text, and the words that YAML
/// 1.1 readers, kubectl among them, take for booleans.
fn is_not_text(text: &str) -> bool {
    let word = text.to_ascii_lowercase();
    matches!(&*word, "" | "~" | "null" | "true" | "false" | "yes" | "no" | "on" | "off")
        || (text.starts_with(|c: char| c.is_ascii_digit() || "+-.".contains(c))
            && (text.parse::<f64>().is_ok() || word.starts_with("0x") || word.starts_with("0o")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn near_words_are_suggested_and_far_ones_are_not() {
        let words = || ["mtls", "defaultAction", "ports"].into_iter();
        assert_eq!(suggest("mtsl", words()), Some("mtls"));
        assert_eq!(suggest("defaultaction", words()), Some("defaultAction"));
        assert_eq!(suggest("port", words()), Some("ports"));
        assert_eq!(suggest("frobnicate", words()), None);
    }

    #[test]
    fn what_yaml_takes_for_something_else_is_no_text() {
        for text in ["", "null", "~", "true", "No", "1", "1.10", "-3", "0x1f", "1e3", ".5"] {
            assert!(is_not_text(text), "{text}");
        }
        for text in ["a", "10.0.0.1", "fd00::/8", "1password", "0abc", "::1", "-x", "inf", "nan"] {
            assert!(!is_not_text(text), "{text}");
        }
    }
}
