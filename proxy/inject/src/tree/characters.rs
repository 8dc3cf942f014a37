//! Characters that readers of YAML take for different things.
//!
//! What Kubernetes' tools read YAML with ends a line at U+0085, U+2028 and U+2029, in comments as
//! anywhere (YAML 1.1, 4.2); the parser here does not (YAML 1.2.2, 5.4). So a key could stand where
//! we see a comment.

use crate::diagnostic::{Finding, Kind};

/// The first character that has to go.
pub(super) fn check(text: &str) -> Result<(), Finding> {
    let bad = text.char_indices().find_map(|(at, c)| Some((at, c, wrong(at, c)?)));
    let Some((at, c, cause)) = bad else { return Ok(()) };
    let code = u32::from(c);
    let message = format!(
        "the character U+{code:04X} {cause}; take it out, or write \"\\u{code:04x}\" in double quotes"
    );
    Err(Finding::new(Kind::YamlSyntax, at, message))
}

fn wrong(at: usize, c: char) -> Option<&'static str> {
    match c {
        '\u{85}' | '\u{2028}' | '\u{2029}' => Some("ends a line for some readers of YAML only"),
        '\u{feff}' if at > 0 => Some("is a byte order mark, which some readers of YAML skip"),
        '\t' | '\n' | '\r' | ' '..='~' => None,
        // YAML 1.2.2, 5.1.
        '\0'..='\u{9f}' | '\u{fffe}' | '\u{ffff}' => Some("is none of YAML's"),
        _ => None,
    }
}
