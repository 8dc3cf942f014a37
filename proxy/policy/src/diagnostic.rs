//! What is wrong with a policy file, where, and what cures it.

use std::fmt;

use super::yaml::Pos;

/// At most this many errors are shown of one file; the rest are counted.
const MAX_SHOWN: usize = 100;
/// A longer source line is cut around the caret, in characters.
const MAX_LINE: usize = 120;

macro_rules! kinds {
    ($($(#[doc = $doc:literal])+ $name:ident = $slug:literal, $severity:ident;)+) => {
        /// The sort of a diagnostic. Its slug is stable: `check -o json` prints it and the
        /// reference page lists it.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        pub enum Kind { $($(#[doc = $doc])+ $name,)+ }

        impl Kind {
            /// Every kind, in the order of the reference page.
            pub const ALL: &'static [Self] = &[$(Self::$name),+];

            /// The stable name, in kebab case.
            #[must_use]
            pub fn slug(self) -> &'static str {
                match self { $(Self::$name => $slug),+ }
            }

            /// An error refuses the file; a warning does so only under `check --strict`.
            #[must_use]
            pub fn severity(self) -> Severity {
                match self { $(Self::$name => Severity::$severity),+ }
            }
        }
    };
}

/// Whether a diagnostic refuses the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Severity {
    /// The file isn't used.
    Error,
    /// The file is used; the author probably meant something else.
    Warning,
}

impl Severity {
    /// `error` or `warning`.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Error => "error",
            Self::Warning => "warning",
        }
    }
}

kinds! {
    /// The file is larger than 7 MiB.
    FileTooLarge = "file-too-large", Error;
    /// There is no document in the file.
    EmptyFile = "empty-file", Error;
    /// It is not YAML.
    YamlSyntax = "yaml-syntax", Error;
    /// An anchor, an alias or a tag.
    YamlFeature = "yaml-feature", Error;
    /// More rules, CIDRs, identities or the like than are read.
    TooMany = "too-many", Error;
    /// Nested deeper than any policy is.
    TooDeep = "too-deep", Error;
    /// More than one YAML document.
    SecondDocument = "second-document", Error;
    /// A key that the format doesn't know.
    UnknownKey = "unknown-key", Error;
    /// The same key twice in one mapping.
    DuplicateKey = "duplicate-key", Error;
    /// A required key isn't there.
    MissingKey = "missing-key", Error;
    /// A list where a word is needed, or the like.
    WrongType = "wrong-type", Error;
    /// The right type, and a value that means nothing here.
    BadValue = "bad-value", Error;
    /// A CIDR with bits set to the right of its prefix.
    HostBits = "host-bits", Error;
    /// An IPv4-mapped CIDR whose prefix is under 96.
    MappedPrefix = "mapped-prefix", Error;
    /// An `except` outside its `cidr`.
    ExceptOutside = "except-outside", Error;
    /// An mtls destination that doesn't say who may answer.
    MissingServerIdentities = "missing-server-identities", Error;
    /// An identity of a trust domain whose peers are never accepted.
    ForeignTrustDomain = "foreign-trust-domain", Error;
    /// Two rules, or two destinations, of one name.
    DuplicateName = "duplicate-name", Error;
    /// A rule that can never decide anything.
    UnreachableRule = "unreachable-rule", Error;
    /// `permissive` on a port whose protocol lets the server speak first.
    PermissiveServerFirst = "permissive-server-first", Error;
    /// Allow rules that add nothing to `defaultAction: allow`.
    AllowUnderDefaultAllow = "allow-under-default-allow", Warning;
    /// A deny by identity where plaintext, which has none, is taken too.
    DenyIdentityOnPermissive = "deny-identity-on-permissive", Warning;
    /// Every address is allowed without an identity.
    OpenToAll = "open-to-all", Warning;
    /// Two mtls destinations share addresses and differ in who may answer.
    MtlsOverlap = "mtls-overlap", Warning;
    /// A host of one label, which is looked up as it is.
    HostWithoutDot = "host-without-dot", Warning;
}

/// One error or warning, with the place in the file that it is about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Diagnostic {
    /// What sort it is.
    pub kind: Kind,
    /// The file's name as it was given to [`load`](super::load).
    pub file: String,
    /// Line, from 1.
    pub line: u32,
    /// Column in characters, from 1.
    pub column: u32,
    /// What is wrong and what cures it, in one sentence or two.
    pub message: String,
    /// The source line, cut to a terminal's width and with control characters replaced: a policy
    /// file must not be able to write escape sequences into a log.
    pub source: String,
    /// Where the caret stands in [`Self::source`], in characters from 0.
    pub caret: usize,
}

impl fmt::Display for Diagnostic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { file, line, column, message, source, caret, .. } = self;
        writeln!(f, "{file}:{line}:{column}: {}: {message}", self.kind.severity().as_str())?;
        let gutter = line.to_string();
        writeln!(f, " {gutter} | {source}")?;
        write!(f, " {:1$} | {2:3$}^", "", gutter.len(), "", caret)
    }
}

/// All the errors of a file, in the file's order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Diagnostics {
    shown: Vec<Diagnostic>,
    left_out: usize,
}

impl Diagnostics {
    /// The errors, in the file's order: at least one, at most 100.
    #[must_use]
    pub fn as_slice(&self) -> &[Diagnostic] {
        &self.shown
    }

    /// How many further errors there are beyond those of [`Self::as_slice`].
    #[must_use]
    pub fn left_out(&self) -> usize {
        self.left_out
    }
}

impl fmt::Display for Diagnostics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, diagnostic) in self.shown.iter().enumerate() {
            if at > 0 {
                writeln!(f)?;
            }
            write!(f, "{diagnostic}")?;
        }
        if self.left_out > 0 {
            write!(f, "\nand {} more; mend these first", self.left_out)?;
        }
        Ok(())
    }
}

impl std::error::Error for Diagnostics {}

/// Collects what the stages of loading find. Rendering waits until the end: a good file pays
/// nothing for it.
#[derive(Debug)]
pub(super) struct Sink<'t> {
    file: &'t str,
    text: &'t str,
    found: Vec<(Pos, Kind, String)>,
    errors: usize,
    warnings: usize,
}

impl<'t> Sink<'t> {
    pub(super) fn new(file: &'t str, text: &'t str) -> Self {
        Self { file, text, found: Vec::new(), errors: 0, warnings: 0 }
    }

    /// Notes a diagnostic. Of a file that is wrong in every line, only so many are kept.
    pub(super) fn add(&mut self, kind: Kind, pos: Pos, message: impl Into<String>) {
        let kept = match kind.severity() {
            Severity::Error => &mut self.errors,
            Severity::Warning => &mut self.warnings,
        };
        *kept += 1;
        if *kept <= MAX_SHOWN {
            self.found.push((pos, kind, message.into()));
        }
    }

    /// Whether what is noted now is only counted, so that its words need not be sought.
    pub(super) fn is_full(&self) -> bool {
        self.errors >= MAX_SHOWN
    }

    /// Notes an error that leaves no document to read: what was found in its beginning is dropped.
    pub(super) fn only(&mut self, kind: Kind, pos: Pos, message: impl Into<String>) {
        self.found.clear();
        (self.errors, self.warnings) = (0, 0);
        self.add(kind, pos, message);
    }

    /// How many warnings [`Sink::finish`] leaves out.
    pub(super) fn warnings_left_out(&self) -> usize {
        self.warnings.saturating_sub(MAX_SHOWN)
    }

    /// The warnings of a good file, or every error of a bad one.
    pub(super) fn finish(self) -> Result<Vec<Diagnostic>, Diagnostics> {
        if self.errors > 0 { Err(self.fail()) } else { Ok(self.render(Severity::Warning)) }
    }

    /// The errors, of a file that can't be read on.
    pub(super) fn fail(self) -> Diagnostics {
        let errors = self.errors;
        let shown = self.render(Severity::Error);
        Diagnostics { left_out: errors.saturating_sub(shown.len()), shown }
    }

    fn render(mut self, wanted: Severity) -> Vec<Diagnostic> {
        // Stable: what one place has against it stays in the order of the stages.
        self.found.sort_by_key(|(pos, ..)| *pos);
        let mut shown: Vec<Diagnostic> = Vec::new();
        let mut lines = lines(self.text);
        let (mut number, mut line) = (0, "");
        for (pos, kind, message) in self.found {
            if kind.severity() != wanted || shown.len() == MAX_SHOWN {
                continue;
            }
            while number < pos.line {
                line = lines.next().unwrap_or("");
                number += 1;
            }
            let (source, caret) = excerpt(line, pos.col);
            let file = self.file.to_owned();
            let (line, column) = (pos.line, pos.col);
            shown.push(Diagnostic { kind, file, line, column, message, source, caret });
        }
        shown
    }
}

/// The lines of a text as YAML counts them: a lone CR ends one, too (YAML 1.2.2, 5.4).
fn lines(text: &str) -> impl Iterator<Item = &str> {
    let mut rest = Some(text);
    std::iter::from_fn(move || {
        let text = rest?;
        let Some((line, after)) = text.split_once(['\r', '\n']) else { return rest.take() };
        let crlf = text.as_bytes().get(line.len()) == Some(&b'\r') && after.starts_with('\n');
        rest = Some(if crlf { after.get(1..).unwrap_or_default() } else { after });
        Some(line)
    })
}

/// The place behind the first `length` bytes of a text.
pub(super) fn end_of(text: &str, length: usize) -> Pos {
    let before = text.get(..length).unwrap_or_default();
    let number = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
    let last = lines(before).last().unwrap_or_default();
    Pos { line: number(lines(before).count()), col: number(last.chars().count() + 1) }
}

/// The part of `line` around column `col` (from 1), and the caret's place in it.
fn excerpt(line: &str, col: u32) -> (String, usize) {
    let at = usize::try_from(col).unwrap_or(1).saturating_sub(1);
    let start = if at < MAX_LINE - 20 { 0 } else { at - MAX_LINE / 2 };
    let clean = |c: char| match c {
        '\t' => ' ',
        c if c.is_control() => '?',
        c => c,
    };
    let text: String = line.chars().skip(start).take(MAX_LINE).map(clean).collect();
    (text, at - start)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_line_is_cut_around_its_caret() {
        let line: String = ('a'..='z').cycle().take(1000).collect();
        let caret_at = |col| excerpt(&line, col).1;
        assert_eq!(
            (caret_at(100), caret_at(101)),
            (99, 60),
            "the line's beginning, as far as it goes"
        );
        for col in [1, 2, 90, 99, 100, 101, 500, 1000] {
            let (text, caret) = excerpt(&line, col);
            let at = usize::try_from(col).unwrap() - 1;
            assert!(text.len() <= MAX_LINE, "{col}");
            assert_eq!(text.as_bytes()[caret], line.as_bytes()[at], "{col}");
            // There is something to see on both sides of it.
            assert!(caret >= at.min(10) && text.len() - caret >= (1000 - at).min(10), "{col}");
        }
        assert_eq!(excerpt("a\tb\u{1b}c", 3), ("a b?c".to_owned(), 2));
    }

    #[test]
    fn a_diagnostic_shows_its_place_line_and_caret() {
        let mut sink = Sink::new("p.yaml", "a: 1\nbb: [x,\ty]\n");
        sink.add(Kind::BadValue, Pos { line: 2, col: 9 }, "no y here; write x");
        let all = sink.finish().unwrap_err().to_string();
        assert_eq!(all, "p.yaml:2:9: error: no y here; write x\n 2 | bb: [x, y]\n   |         ^");
    }

    #[test]
    fn errors_come_in_the_order_of_the_file_and_without_the_warnings() {
        let mut sink = Sink::new("p", "a\nb\nc");
        sink.add(Kind::BadValue, Pos { line: 3, col: 1 }, "third");
        sink.add(Kind::OpenToAll, Pos { line: 2, col: 1 }, "warning");
        sink.add(Kind::BadValue, Pos { line: 1, col: 1 }, "first");
        let all = sink.finish().unwrap_err();
        let messages: Vec<_> = all.as_slice().iter().map(|d| d.message.as_str()).collect();
        assert_eq!(messages, ["first", "third"]);
        assert_eq!(all.left_out(), 0);
    }

    #[test]
    fn the_line_shown_is_the_one_that_yaml_counts() {
        for text in ["a\nb\nthird\nd", "a\rb\rthird\rd", "a\r\nb\r\nthird\r\nd", "a\rb\nthird"] {
            let mut sink = Sink::new("p", text);
            sink.add(Kind::BadValue, Pos { line: 3, col: 1 }, "no");
            assert_eq!(sink.finish().unwrap_err().as_slice()[0].source, "third", "{text:?}");
        }
        assert_eq!(lines("a\r\n\rb\n").collect::<Vec<_>>(), ["a", "", "b", ""]);
    }

    #[test]
    fn many_errors_are_counted_not_printed() {
        let mut sink = Sink::new("p", "a");
        for _ in 0..1000 {
            sink.add(Kind::BadValue, Pos { line: 1, col: 1 }, "no");
        }
        let all = sink.finish().unwrap_err();
        assert_eq!((all.as_slice().len(), all.left_out()), (100, 900));
        assert!(all.to_string().ends_with("and 900 more; mend these first"));
    }

    #[test]
    fn a_long_line_is_cut_around_the_caret_and_escapes_do_not_get_through() {
        let line = format!("{}\u{1b}[31m{}", "x".repeat(5000), "y".repeat(5000));
        let (text, caret) = excerpt(&line, 5001);
        assert_eq!(text.chars().count(), MAX_LINE);
        assert_eq!(text.chars().nth(caret), Some('?'));
        assert!(!text.contains('\u{1b}'));
    }

    #[test]
    fn the_caret_is_under_its_character_wherever_that_is() {
        let line: String = ('a'..='z').cycle().take(3 * MAX_LINE).collect();
        for col in (1..).take(2 * MAX_LINE) {
            let (text, caret) = excerpt(&line, col);
            let at = usize::try_from(col).unwrap() - 1;
            assert_eq!(text.chars().nth(caret), line.chars().nth(at), "column {col}");
        }
    }

    #[test]
    fn slugs_are_unique() {
        let slugs: std::collections::HashSet<_> = Kind::ALL.iter().map(|k| k.slug()).collect();
        assert_eq!(slugs.len(), Kind::ALL.len());
    }
}
