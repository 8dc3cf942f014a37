//! What is wrong with a manifest, where, and what cures it.

use std::fmt;

/// At most this many errors are shown of one file; the rest are counted.
const MAX_SHOWN: usize = 100;
/// A longer source line is cut around the caret, in characters.
const MAX_LINE: usize = 120;

macro_rules! kinds {
    ($($(#[doc = $doc:literal])+ $name:ident = $slug:literal, $severity:ident;)+) => {
        /// The sort of a diagnostic. Its slug is stable and the reference page lists it.
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

            /// An error refuses the whole run; a warning does so only under `--strict`.
            #[must_use]
            pub fn severity(self) -> Severity {
                match self { $(Self::$name => Severity::$severity),+ }
            }
        }
    };
}

/// Whether a diagnostic refuses the run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Severity {
    /// Nothing is written.
    Error,
    /// The manifest is written; its author should know.
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
    /// The input is larger than 16 MiB.
    TooLarge = "too-large", Error;
    /// It is not YAML, or not UTF-8.
    YamlSyntax = "yaml-syntax", Error;
    /// Nested deeper than any manifest is.
    TooDeep = "too-deep", Error;
    /// The same key twice in one mapping.
    DuplicateKey = "duplicate-key", Error;
    /// A list where a mapping is needed, or the like.
    WrongType = "wrong-type", Error;
    /// What would have to change is shared by an anchor, an alias or a merge key.
    SharedNode = "shared-node", Error;
    /// YAML written in a way that leaves no place for what has to go there.
    Layout = "layout", Error;
    /// The pod has the node's network namespace.
    HostNetwork = "host-network", Error;
    /// The pod is for Windows.
    Windows = "windows", Error;
    /// The app has the proxy's user or group.
    ProxyId = "proxy-id", Error;
    /// The app has one of the proxy's ports.
    PortClash = "port-clash", Error;
    /// A container or volume of the app has a name of ours, or mounts a volume of ours.
    ReservedName = "reserved-name", Error;
    /// A container sees the proxy's process and may trace it.
    ProcessNamespace = "process-namespace", Error;
    /// The pod's own `resources` are less than what its containers request with the sidecar.
    PodResources = "pod-resources", Error;
    /// Two containers of one name, or one without.
    ContainerName = "container-name", Error;
    /// A probe that cannot be understood.
    Probe = "probe", Error;
    /// An annotation of ours that does not exist.
    UnknownAnnotation = "unknown-annotation", Error;
    /// An annotation of ours at a place where nobody reads it.
    MisplacedAnnotation = "misplaced-annotation", Error;
    /// An option whose value cannot be used.
    BadValue = "bad-value", Error;
    /// A `functionConfig` that is not ours.
    FunctionConfig = "function-config", Error;
    /// The record of what was there before cannot be read, or does not fit.
    BadRecord = "bad-record", Error;
    /// The result could not be undone byte for byte.
    NotReversible = "not-reversible", Error;
    /// A container can get around the proxy.
    Bypass = "bypass", Warning;
    /// A container has the Secret with the proxy's key, by another way than the proxy's.
    SharedKey = "shared-key", Warning;
    /// A probe asks another machine, and is left alone.
    ProbeHost = "probe-host", Warning;
    /// A template of pods in a kind that is unknown here, and that passes through.
    NotInjected = "not-injected", Warning;
    /// A hook that the kubelet makes over the network, and that is left alone.
    Hook = "hook", Warning;
}

/// The resource that a diagnostic is about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Resource {
    /// `apps/v1` and the like.
    pub api_version: String,
    /// `Deployment` and the like.
    pub kind: String,
    /// `metadata.name`; empty where there is none.
    pub name: String,
    /// `metadata.namespace`; empty where there is none.
    pub namespace: String,
}

/// One error or warning, with its place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Diagnostic {
    /// What sort it is.
    pub kind: Kind,
    /// The file's name as it was given, `<stdin>` for standard input.
    pub file: String,
    /// Line, from 1.
    pub line: usize,
    /// Column in characters, from 1.
    pub column: usize,
    /// The resource, if it is about one.
    pub resource: Option<Resource>,
    /// What is wrong and what cures it: `cause; cure`.
    pub message: String,
    /// The source line, cut to a terminal's width and with control characters replaced.
    pub source: String,
    /// Where the caret stands in [`Self::source`], in characters from 0.
    pub caret: usize,
}

impl fmt::Display for Diagnostic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { file, line, column, source, caret, .. } = self;
        write!(f, "{file}:{line}:{column}: {}: ", self.kind.severity().as_str())?;
        match &self.resource {
            Some(Resource { kind, name, .. }) if name.is_empty() => write!(f, "{kind}: ")?,
            Some(Resource { kind, name, .. }) => write!(f, "{kind} {}: ", printable(name))?,
            None => {}
        }
        writeln!(f, "{} [{}]", self.message, self.kind.slug())?;
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
    /// Warnings as reasons to refuse; `None` without any.
    pub(crate) fn of_warnings(warnings: &[Diagnostic]) -> Option<Self> {
        (!warnings.is_empty()).then(|| Self { shown: warnings.to_vec(), left_out: 0 })
    }

    /// The errors: at least one, at most 100.
    #[must_use]
    pub fn as_slice(&self) -> &[Diagnostic] {
        &self.shown
    }

    /// How many there are beyond those of [`Self::as_slice`].
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

/// A diagnostic whose place is still an offset into the text, in bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Finding {
    pub(crate) kind: Kind,
    pub(crate) at: usize,
    pub(crate) message: String,
    pub(crate) resource: Option<Box<Resource>>,
}

impl Finding {
    pub(crate) fn new(kind: Kind, at: usize, message: impl Into<String>) -> Self {
        Self { kind, at, message: message.into(), resource: None }
    }
}

/// What refuses a run, with its places in `text`.
pub(crate) fn errors(file: &str, text: &str, found: Vec<Finding>) -> Diagnostics {
    let wanted = |finding: &Finding| finding.kind.severity() == Severity::Error;
    let errors: Vec<Finding> = found.into_iter().filter(wanted).collect();
    let count = errors.len();
    let shown = placed(file, text, errors);
    Diagnostics { left_out: count.saturating_sub(shown.len()), shown }
}

/// What a run that succeeds has to say.
pub(crate) fn placed(file: &str, text: &str, mut found: Vec<Finding>) -> Vec<Diagnostic> {
    // Stable: what one place has against it stays in the order of the checks.
    found.sort_by_key(|finding| finding.at);
    let mut places = Places::new(text);
    let show = |finding: Finding| {
        let Finding { kind, at, message, resource } = finding;
        let (line, column, whole) = places.at(at);
        let (source, caret) = excerpt(whole, column);
        let (file, resource) = (file.to_owned(), resource.map(|resource| *resource));
        Diagnostic { kind, file, line, column, resource, message, source, caret }
    };
    found.into_iter().take(MAX_SHOWN).map(show).collect()
}

/// Walks a text once, line by line as YAML counts them: a lone CR ends one, too (YAML 1.2.2, 5.4).
struct Places<'t> {
    rest: &'t str,
    start: usize,
    number: usize,
}

impl<'t> Places<'t> {
    fn new(text: &'t str) -> Self {
        Self { rest: text, start: 0, number: 1 }
    }

    /// Line, column and the whole line of an offset; offsets must not decrease.
    fn at(&mut self, offset: usize) -> (usize, usize, &'t str) {
        loop {
            let line = self.rest.split(['\r', '\n']).next().unwrap_or_default();
            let after = self.rest.get(line.len()..).unwrap_or_default();
            let end = if after.starts_with("\r\n") { 2 } else { after.len().min(1) };
            if end == 0 || offset < self.start + line.len() + end {
                let before = line.get(..offset.saturating_sub(self.start)).unwrap_or(line);
                return (self.number, before.chars().count() + 1, line);
            }
            self.rest = after.get(end..).unwrap_or_default();
            self.start += line.len() + end;
            self.number += 1;
        }
    }
}

/// The part of `line` around column `col` (from 1), and the caret's place in it.
fn excerpt(line: &str, col: usize) -> (String, usize) {
    let at = col.saturating_sub(1);
    let start = if at < MAX_LINE - 20 { 0 } else { at - MAX_LINE / 2 };
    let text: String = line.chars().skip(start).take(MAX_LINE).map(visible).collect();
    (text, at - start)
}

fn visible(c: char) -> char {
    match c {
        '\t' => ' ',
        c if c.is_control() => '?',
        c => c,
    }
}

/// Enough of a value to recognise it in a message, with nothing that a terminal obeys.
pub(crate) fn printable(text: &str) -> String {
    let mut out: String = text.chars().take(80).map(visible).collect();
    if out.len() < text.len() {
        out.push_str("...");
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn judged(text: &str, at: usize) -> Diagnostic {
        let found = vec![Finding::new(Kind::Probe, at, "no; yes")];
        errors("f", text, found).as_slice()[0].clone()
    }

    #[test]
    fn a_place_is_counted_as_yaml_counts_it() {
        for (text, at, want) in [
            ("abc", 0, (1, 1, "abc")),
            ("abc", 3, (1, 4, "abc")),
            ("a\nb\nthird", 4, (3, 1, "third")),
            ("a\rb\rthird", 5, (3, 2, "third")),
            ("a\r\nb\r\nthird", 6, (3, 1, "third")),
            ("\u{fc}x: y", 4, (1, 4, "\u{fc}x: y")),
            ("a\n", 2, (2, 1, "")),
        ] {
            let found = judged(text, at);
            assert_eq!((found.line, found.column, found.source.as_str()), want, "{text:?}");
        }
    }

    #[test]
    fn errors_hide_warnings_and_come_in_the_order_of_the_file() {
        let found = vec![
            Finding::new(Kind::Probe, 4, "third"),
            Finding::new(Kind::Bypass, 2, "warning"),
            Finding::new(Kind::Probe, 0, "first"),
        ];
        let all = errors("p", "a\nb\nc", found);
        let messages: Vec<_> = all.as_slice().iter().map(|d| d.message.as_str()).collect();
        assert_eq!(messages, ["first", "third"]);
    }

    #[test]
    fn a_diagnostic_shows_its_place_resource_line_and_caret() {
        let mut finding = Finding::new(Kind::HostNetwork, 10, "cause; cure");
        let text = |s: &str| s.to_owned();
        finding.resource = Some(Box::new(Resource {
            api_version: text("v1"),
            kind: text("Pod"),
            name: text("web\u{1b}"),
            namespace: String::new(),
        }));
        let shown = errors("p.yaml", "a: 1\nbb: [x,\ty]\n", vec![finding]).to_string();
        let want =
            "p.yaml:2:6: error: Pod web?: cause; cure [host-network]\n 2 | bb: [x, y]\n   |      ^";
        assert_eq!(shown, want);
    }

    #[test]
    fn a_long_line_is_cut_around_its_caret() {
        let line: String = ('a'..='z').cycle().take(1000).collect();
        for col in [1, 2, 90, 99, 100, 101, 500, 1000] {
            let (text, caret) = excerpt(&line, col);
            assert!(text.len() <= MAX_LINE, "{col}");
            assert_eq!(text.as_bytes()[caret], line.as_bytes()[col - 1], "{col}");
        }
    }

    #[test]
    fn many_errors_are_counted_not_printed() {
        let many = (0..1000).map(|at| Finding::new(Kind::Probe, at, "no")).collect();
        let all = errors("p", "a", many);
        assert_eq!((all.as_slice().len(), all.left_out()), (100, 900));
        assert!(all.to_string().ends_with("and 900 more; mend these first"));
    }

    #[test]
    fn slugs_are_unique() {
        let slugs: std::collections::HashSet<_> = Kind::ALL.iter().map(|k| k.slug()).collect();
        assert_eq!(slugs.len(), Kind::ALL.len());
    }
}
