//! YAML text to a small tree that knows its places.
//!
//! Built from the parser's event stream, so that nothing is resolved on the way: no anchors, no
//! aliases (they grow without bound, "the billion laughs"), no tags, no types guessed. A policy
//! is read by people in reviews; what it says must be what stands there.
//!
//! Rules and destinations leave the tree as soon as they are complete, so that no more of a large
//! file is in memory as nodes than one of them.

use saphyr_parser::{Event, Marker, Parser, ScalarStyle};

use super::characters::{self, Ahead, Characters, MAX_AHEAD};
use super::diagnostic::{Kind, Sink};

/// The largest policy file that is read, in bytes.
pub const MAX_FILE_BYTES: usize = 7 << 20;
/// The most keys and values that one rule or destination has together with the rest of the file.
pub(super) const MAX_VALUES: u32 = 310_000;
/// The format itself needs 8.
const MAX_DEPTH: usize = 16;

/// The lists whose items are read one by one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stream {
    /// `inbound.rules`.
    Rules,
    /// `outbound.destinations`.
    Destinations,
}

impl Stream {
    /// The list that is open at the innermost place, if it is one of them.
    fn of(open: &[Open]) -> Option<Self> {
        let [document, part, Open { body: Body::List(_), .. }] = open else { return None };
        match (document.key()?, part.key()?) {
            ("inbound", "rules") => Some(Self::Rules),
            ("outbound", "destinations") => Some(Self::Destinations),
            _ => None,
        }
    }
}

/// A place in the file, both from 1; columns are characters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Pos {
    pub(super) line: u32,
    pub(super) col: u32,
}

impl Pos {
    pub(super) const START: Self = Self { line: 1, col: 1 };

    /// Of a mark of the parser's; what it sees further right than it stands is on the `shifted`
    /// line.
    fn of(mark: &Marker, shifted: Option<(usize, usize)>) -> Self {
        let clamp = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
        let by = shifted.filter(|(line, _)| *line == mark.line()).map_or(0, |(_, by)| by);
        let col = mark.col().saturating_sub(by).saturating_add(1);
        Self { line: clamp(mark.line().max(1)), col: clamp(col) }
    }
}

#[derive(Debug)]
pub(super) struct Node {
    pub(super) pos: Pos,
    pub(super) value: Value,
}

#[derive(Debug)]
pub(super) enum Value {
    /// `plain` scalars, those without quotes, may be numbers, booleans or null.
    Scalar {
        text: Box<str>,
        plain: bool,
    },
    List(Vec<Node>),
    Map(Vec<(Key, Node)>),
}

#[derive(Debug)]
pub(super) struct Key {
    pub(super) pos: Pos,
    pub(super) text: Box<str>,
}

/// A list or mapping that is still open.
struct Open {
    pos: Pos,
    body: Body,
}

enum Body {
    List(Vec<Node>),
    Map(Vec<(Key, Node)>, Option<Key>),
}

impl Open {
    /// The key whose value is awaited.
    fn key(&self) -> Option<&str> {
        match &self.body {
            Body::Map(_, Some(key)) => Some(&key.text),
            Body::Map(_, None) | Body::List(_) => None,
        }
    }
}

/// The one document of `text`, without the items of the [`Stream`] lists: those go to `item`.
/// `None` after an error, which alone is in `sink` then.
pub(super) fn parse<'t>(
    text: &str,
    sink: &mut Sink<'t>,
    mut item: impl FnMut(Stream, &Node, &mut Sink<'t>),
) -> Option<Node> {
    small_enough(text, sink)?;
    let mut open: Vec<Open> = Vec::new();
    let mut root: Option<Node> = None;
    let mut documents = 0_u32;
    // Nodes in memory: outside of streamed items, and with those of the item at hand.
    let (mut outside, mut values) = (0_u32, 0_u32);
    let (ahead, shifted) = (Ahead::default(), characters::shifted(text));
    let mut last = Pos::START;
    for event in Parser::new_from_iter(Characters::new(text, &ahead)) {
        if ahead.is_over() {
            return endless(sink, last);
        }
        let (event, span) = match event {
            Ok(event) => event,
            Err(error) => {
                let pos = Pos::of(error.marker(), shifted);
                sink.only(Kind::YamlSyntax, pos, format!("this is not YAML: {}", error.info()));
                return None;
            }
        };
        ahead.told();
        let pos = Pos::of(&span.start, shifted);
        last = pos;
        let done = match event {
            Event::DocumentStart(_) => {
                documents += 1;
                if documents > 1 {
                    let message =
                        "a second document; a policy file has one: put it in its own file";
                    sink.only(Kind::SecondDocument, pos, message);
                    return None;
                }
                continue;
            }
            Event::Alias(_) => {
                return feature(sink, pos, "an alias (\"*name\"); write the value out");
            }
            Event::Scalar(_, _, anchor, ref tag)
            | Event::SequenceStart(anchor, ref tag)
            | Event::MappingStart(anchor, ref tag)
                if anchor != 0 || tag.is_some() =>
            {
                return feature(sink, pos, if tag.is_some() { TAG } else { ANCHOR });
            }
            Event::Scalar(text, style, ..) => {
                let plain = style == ScalarStyle::Plain;
                Some(Node { pos, value: Value::Scalar { text: text.into(), plain } })
            }
            Event::SequenceStart(..) | Event::MappingStart(..) => {
                shallow_enough(open.len(), pos, sink)?;
                let body = match event {
                    Event::SequenceStart(..) => Body::List(Vec::new()),
                    _ => Body::Map(Vec::new(), None),
                };
                open.push(Open { pos, body });
                continue;
            }
            Event::SequenceEnd | Event::MappingEnd => open.pop().map(close),
            Event::Nothing | Event::StreamStart | Event::StreamEnd | Event::DocumentEnd => continue,
        };
        let Some(node) = done else { continue };
        values += 1;
        few_enough(values, pos, sink)?;
        match (Stream::of(&open), open.last_mut()) {
            (Some(stream), _) => {
                item(stream, &node, sink);
                values = outside;
            }
            (None, Some(parent)) => attach(parent, node, sink)?,
            (None, None) => root = Some(node),
        }
        if open.len() < 3 {
            outside = values;
        }
    }
    root.filter(|node| !node.is_null()).or_else(|| {
        let message = "the file holds no policy; begin with \"apiVersion: pillion/v1alpha1\"";
        sink.only(Kind::EmptyFile, Pos::START, message);
        None
    })
}

fn endless(sink: &mut Sink<'_>, after: Pos) -> Option<Node> {
    let message = format!(
        "what follows has more than {MAX_AHEAD} commas, colons and brackets before it can be told \
         from a key; write the lists in it an item a line, each after \"- \""
    );
    sink.only(Kind::TooMany, after, message);
    None
}

const TAG: &str = "a tag (\"!name\"); leave it out, or quote the value";
const ANCHOR: &str = "an anchor (\"&name\"); leave it out and write values where they are used";

fn small_enough(text: &str, sink: &mut Sink<'_>) -> Option<()> {
    if text.len() > MAX_FILE_BYTES {
        let message = format!(
            "the file has {} bytes and {MAX_FILE_BYTES} is the most; merge neighbouring CIDRs or \
             use identities",
            text.len()
        );
        sink.only(Kind::FileTooLarge, Pos::START, message);
        return None;
    }
    Some(())
}

fn shallow_enough(depth: usize, pos: Pos, sink: &mut Sink<'_>) -> Option<()> {
    if depth == MAX_DEPTH {
        let message = format!(
            "nested deeper than {MAX_DEPTH} levels, which no policy is; look for a bracket too many"
        );
        sink.only(Kind::TooDeep, pos, message);
        return None;
    }
    Some(())
}

fn few_enough(values: u32, pos: Pos, sink: &mut Sink<'_>) -> Option<()> {
    if values > MAX_VALUES {
        let message = format!(
            "more than {MAX_VALUES} keys and values outside of the rules and destinations, or \
                 in one of them; split it or merge its CIDRs"
        );
        sink.only(Kind::TooMany, pos, message);
        return None;
    }
    Some(())
}

fn feature(sink: &mut Sink<'_>, pos: Pos, what: &str) -> Option<Node> {
    sink.only(Kind::YamlFeature, pos, format!("a policy file can't have {what}"));
    None
}

fn close(open: Open) -> Node {
    let value = match open.body {
        Body::List(mut items) => {
            items.shrink_to_fit();
            Value::List(items)
        }
        Body::Map(mut entries, _) => {
            entries.shrink_to_fit();
            Value::Map(entries)
        }
    };
    Node { pos: open.pos, value }
}

fn attach(parent: &mut Open, node: Node, sink: &mut Sink<'_>) -> Option<()> {
    match &mut parent.body {
        Body::List(items) => items.push(node),
        Body::Map(entries, pending) => match pending.take() {
            Some(key) => entries.push((key, node)),
            None => match node.value {
                Value::Scalar { text, .. } => *pending = Some(Key { pos: node.pos, text }),
                Value::List(_) | Value::Map(_) => {
                    let message = "a key must be one word; write \"key: value\"";
                    sink.only(Kind::WrongType, node.pos, message);
                    return None;
                }
            },
        },
    }
    Some(())
}

impl Node {
    /// Nothing, `~` or `null`.
    pub(super) fn is_null(&self) -> bool {
        matches!(&self.value, Value::Scalar { text, plain: true }
            if matches!(&**text, "" | "~" | "null" | "Null" | "NULL"))
    }

    /// What stands there, for an error message.
    pub(super) fn describe(&self) -> String {
        match &self.value {
            _ if self.is_null() => "nothing".to_owned(),
            Value::Scalar { text, .. } => format!("\"{}\"", short(text)),
            Value::List(_) => "a list".to_owned(),
            Value::Map(_) => "a mapping".to_owned(),
        }
    }
}

/// Enough of a value to recognise it in a message, with nothing that a terminal obeys.
pub(super) fn short(text: &str) -> String {
    let mut out: String =
        text.chars().take(80).map(|c| if c.is_control() { '?' } else { c }).collect();
    if out.len() < text.len() {
        out.push_str("...");
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(text: &str) -> (Kind, u32, u32) {
        let mut sink = Sink::new("t", text);
        assert!(parse(text, &mut sink, |_, _, _| {}).is_none(), "{text:?}");
        let all = sink.finish().unwrap_err();
        let first = &all.as_slice()[0];
        (first.kind, first.line, first.column)
    }

    #[test]
    fn what_yaml_can_and_a_policy_cannot() {
        for (text, want) in [
            ("", (Kind::EmptyFile, 1, 1)),
            ("# only a comment\n", (Kind::EmptyFile, 1, 1)),
            ("---\n", (Kind::EmptyFile, 1, 1)),
            ("null", (Kind::EmptyFile, 1, 1)),
            ("a: [", (Kind::YamlSyntax, 2, 1)),
            ("a: 1\n---\nb: 2\n", (Kind::SecondDocument, 2, 1)),
            ("a: &x 1\n", (Kind::YamlFeature, 1, 7)),
            ("a: &x [1]\nb: *x\n", (Kind::YamlFeature, 1, 7)),
            ("a: !!str 1\n", (Kind::YamlFeature, 1, 10)),
            ("? [a]\n: b\n", (Kind::WrongType, 1, 3)),
        ] {
            let got = refused(text);
            assert_eq!(got.0, want.0, "{text:?}");
            assert_eq!(got.1, want.1, "{text:?}");
        }
    }

    #[test]
    fn depth_and_size_have_an_end() {
        let nested = |n: usize| "[".repeat(n) + &"]".repeat(n);
        assert_eq!(refused(&nested(MAX_DEPTH + 1)).0, Kind::TooDeep);
        assert!(parse(&nested(MAX_DEPTH), &mut Sink::new("t", ""), |_, _, _| {}).is_some());
        // Without a limit the parser keeps what may be a key, and tells nothing of it.
        for endless in ["a,", "a: b, ", "[a],", "\"a\":1,"] {
            for begin in ["[", "a:\n  - {b: [", "a:\n  [", "? ["] {
                // What the parser looks at before it tells of the key is told with that.
                let text = format!("{begin}{}", endless.repeat(MAX_AHEAD + 20));
                assert_eq!(refused(&text).0, Kind::TooMany, "{begin}{endless}");
            }
        }
        let json = format!("{{\"a\": [{}]}}", "1,".repeat(4 * MAX_AHEAD));
        assert!(parse(&json, &mut Sink::new("t", ""), |_, _, _| {}).is_some(), "as it comes");
        // The parser itself may give up first.
        assert!(matches!(refused(&nested(100_000)).0, Kind::TooDeep | Kind::YamlSyntax));
        assert_eq!(refused(&" ".repeat(MAX_FILE_BYTES + 1)).0, Kind::FileTooLarge);
    }

    #[test]
    fn rules_leave_the_tree_one_by_one_and_the_rest_has_an_end() {
        let text = "inbound: {rules: [{a: [1]}, b], ports: [c]}\noutbound: {destinations: [d]}\n";
        let mut seen = Vec::new();
        let note = |stream, node: &Node, _: &mut Sink<'_>| seen.push((stream, node.pos.col));
        let root = parse(text, &mut Sink::new("t", text), note).unwrap();
        assert_eq!(seen, [(Stream::Rules, 19), (Stream::Rules, 29), (Stream::Destinations, 27)]);
        let Value::Map(entries) = root.value else { panic!("a mapping") };
        let Value::Map(inbound) = &entries[0].1.value else { panic!("a mapping") };
        assert!(matches!(&inbound[0].1.value, Value::List(items) if items.is_empty()));
        assert!(matches!(&inbound[1].1.value, Value::List(items) if items.len() == 1));

        let most = usize::try_from(MAX_VALUES).unwrap();
        let list = |n: usize| format!("\n{}", "    - a\n".repeat(n));
        assert_eq!(refused(&list(most + 1)).0, Kind::TooMany);
        let rules = |n: usize| format!("inbound:\n  rules:\n  -{0}  -{0}", list(n));
        assert_eq!(refused(&rules(most)).0, Kind::TooMany);
        let two = rules(most - 100);
        assert!(parse(&two, &mut Sink::new("t", ""), |_, _, _| {}).is_some());
        // What is outside counts together, with rules in between or without.
        let around = |n: usize| format!("a:{0}inbound: {{rules: [b, c]}}\nd:{0}", list(n));
        assert_eq!(refused(&around(most / 2)).0, Kind::TooMany);
        assert!(parse(&around(most / 2 - 100), &mut Sink::new("t", ""), |_, _, _| {}).is_some());
    }

    #[test]
    fn places_are_those_of_the_text_in_json_too() {
        let text = "# c\n{\"a\": [\n  {\"b\": 1}], \"c\":\n2}\n";
        let root = parse(text, &mut Sink::new("t", text), |_, _, _| {}).unwrap();
        let Value::Map(entries) = root.value else { panic!("a mapping") };
        let at = |pos: Pos| (pos.line, pos.col);
        assert_eq!((at(root.pos), at(entries[0].0.pos)), ((2, 1), (2, 2)));
        let Value::List(items) = &entries[0].1.value else { panic!("a list") };
        assert_eq!((at(entries[0].1.pos), at(items[0].pos)), ((2, 7), (3, 3)));
        assert_eq!((at(entries[1].0.pos), at(entries[1].1.pos)), ((3, 14), (4, 1)));
        assert_eq!(refused("{a: 1, b: !x y}"), (Kind::YamlFeature, 1, 11));
        assert_eq!(refused("{a: 1}}").1, 1);
    }

    #[test]
    fn places_are_those_of_the_text() {
        let text = "a:\n  - {b: 'c'}\n";
        let mut sink = Sink::new("t", text);
        let root = parse(text, &mut sink, |_, _, _| {}).unwrap();
        let Value::Map(entries) = root.value else { panic!("a mapping") };
        let Value::List(items) = &entries[0].1.value else { panic!("a list") };
        let Value::Map(inner) = &items[0].value else { panic!("a mapping") };
        assert_eq!(inner[0].0.pos, Pos { line: 2, col: 6 });
        assert_eq!(inner[0].1.pos, Pos { line: 2, col: 9 });
        assert!(
            matches!(&inner[0].1.value, Value::Scalar { text, plain: false } if &**text == "c")
        );
    }

    #[test]
    fn a_limit_is_the_most_that_is_taken() {
        let taken = |judge: fn(&mut Sink<'_>) -> Option<()>| {
            let mut sink = Sink::new("p.yaml", "a: 1\n");
            judge(&mut sink).is_some()
        };
        assert!(taken(|sink| few_enough(MAX_VALUES, Pos::START, sink)));
        assert!(!taken(|sink| few_enough(MAX_VALUES + 1, Pos::START, sink)));
        assert!(!taken(|sink| few_enough(MAX_VALUES + 2, Pos::START, sink)));
        assert!(taken(|sink| small_enough(&" ".repeat(MAX_FILE_BYTES), sink)));
        assert!(!taken(|sink| small_enough(&" ".repeat(MAX_FILE_BYTES + 1), sink)));
        assert!(!taken(|sink| small_enough(&" ".repeat(MAX_FILE_BYTES + 2), sink)));
    }

    #[test]
    fn a_value_is_shown_as_far_as_it_helps() {
        assert_eq!(short("a\u{7}b"), "a?b");
        assert_eq!(short(&"a".repeat(80)), "a".repeat(80));
        assert_eq!(short(&"a".repeat(81)), format!("{}...", "a".repeat(80)));
    }
}
