//! The characters of a file as the YAML parser gets them.
//!
//! A bracket at the place of a key may be one (`{a: b}: c`), so the parser keeps all that follows it
//! until it is closed, and tells of nothing: the limits of what is read would come too late. So the
//! parser gets only so much between two events.

use std::cell::Cell;
use std::iter::Chain;
use std::str::Chars;

/// The most commas, colons and brackets that the parser may keep to itself. For each it keeps up to
/// three tokens, of some 100 bytes.
pub(super) const MAX_AHEAD: usize = 64 * 1024;

/// Written before the bracket that a file in JSON begins with: after it that is no key, and what it
/// holds is told as it comes.
const DOCUMENT: &str = "--- ";

/// How far the parser is ahead of what it has told.
#[derive(Debug, Default)]
pub(super) struct Ahead {
    marks: Cell<usize>,
    is_over: Cell<bool>,
}

impl Ahead {
    /// The parser has told something.
    pub(super) fn told(&self) {
        self.marks.set(0);
    }

    /// Whether it wanted more than [`MAX_AHEAD`]. It was told that the file ends there.
    pub(super) fn is_over(&self) -> bool {
        self.is_over.get()
    }
}

/// The characters of a file.
pub(super) struct Characters<'a> {
    text: Chain<Chain<Chars<'a>, Chars<'static>>, Chars<'a>>,
    ahead: &'a Ahead,
    before: char,
}

impl<'a> Characters<'a> {
    pub(super) fn new(text: &'a str, ahead: &'a Ahead) -> Self {
        let (head, document, rest) = match text.split_at_checked(start_of_json(text)) {
            Some((head, rest)) if rest.starts_with('{') => (head, DOCUMENT, rest),
            _ => ("", "", text),
        };
        let text = head.chars().chain(document.chars()).chain(rest.chars());
        Self { text, ahead, before: '\n' }
    }
}

impl Iterator for Characters<'_> {
    type Item = char;

    fn next(&mut self) -> Option<char> {
        if self.ahead.is_over() {
            return None;
        }
        let next = self.text.next()?;
        let before = std::mem::replace(&mut self.before, next);
        // Many a colon is one of an address or an identity.
        let is_mark = match next {
            ',' | '[' | '{' => true,
            ':' => before == '"' || before == '\'',
            _ => before == ':' && next.is_ascii_whitespace(),
        };
        if is_mark {
            let marks = self.ahead.marks.get() + 1;
            self.ahead.marks.set(marks);
            if marks > MAX_AHEAD {
                self.ahead.is_over.set(true);
                return None;
            }
        }
        Some(next)
    }
}

/// Where the first line begins that is neither empty nor a comment.
fn start_of_json(text: &str) -> usize {
    let before = text.split_inclusive('\n').take_while(|line| {
        let line = line.trim();
        line.is_empty() || line.starts_with('#')
    });
    before.map(str::len).sum()
}

/// The line, from 1, on which the parser sees everything so many characters further right than it
/// stands in the file.
pub(super) fn shifted(text: &str) -> Option<(usize, usize)> {
    let (head, rest) = text.split_at_checked(start_of_json(text))?;
    rest.starts_with('{').then(|| (head.matches('\n').count() + 1, DOCUMENT.len()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> (String, bool) {
        let ahead = Ahead::default();
        let read = Characters::new(text, &ahead).collect();
        (read, ahead.is_over())
    }

    #[test]
    fn a_file_is_read_as_it_is() {
        for text in ["", "\n", "a: {b: c}\n", "# {\na: 1\n", " {a: 1}", "[a]", "#", "a: '\n# é\n'"]
        {
            assert_eq!(read(text), (text.to_owned(), false));
            assert_eq!(shifted(text), None, "{text}");
        }
    }

    #[test]
    fn json_is_a_document_of_its_own() {
        for (text, want, line) in [
            ("{\"a\": 1}", "--- {\"a\": 1}", 1),
            ("\n# c\n  # d\n\n{a: 1}\n", "\n# c\n  # d\n\n--- {a: 1}\n", 5),
        ] {
            assert_eq!(read(text), (want.to_owned(), false));
            assert_eq!(shifted(text), Some((line, 4)));
        }
    }

    #[test]
    fn so_much_is_given_between_two_events() {
        let most = ", fd00:66::/64".repeat(MAX_AHEAD);
        assert_eq!(read(&most), (most.clone(), false));
        let entries = "a: b,\"c\":1,".repeat(MAX_AHEAD / 4);
        assert_eq!(read(&entries), (entries.clone(), false));
        for mark in [",", "[", "{", ": ", "\":"] {
            let (read, is_over) = read(&format!("{most}{mark}a"));
            assert!(is_over && read.len() < most.len() + mark.len(), "{mark}");
        }

        let ahead = Ahead::default();
        let text = format!("{most}{most}");
        let mut characters = Characters::new(&text, &ahead);
        assert_eq!(characters.by_ref().take(most.len()).count(), most.len());
        ahead.told();
        assert_eq!(characters.count(), most.len());
        assert!(!ahead.is_over());
    }
}
