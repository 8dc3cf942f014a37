//! Makes a [`Tree`] of the parser's events, and finds where each node ends, which they leave open.

use std::borrow::Cow;
use std::collections::HashMap;

use saphyr_parser::{Event, Parser, ScalarStyle, Span, Tag};

use super::{Id, Node, Style, Tree, Value};
use crate::diagnostic::{Finding, Kind};

/// Far deeper than the schemas in definitions of custom resources.
pub(super) const MAX_DEPTH: usize = 200;

struct Open {
    start: usize,
    style: Style,
    anchor: usize,
    is_map: bool,
    children: Vec<Id>,
}

struct Builder<'t> {
    text: &'t str,
    /// Byte of each character, where they differ.
    bytes: Option<Vec<usize>>,
    nodes: Vec<Node>,
    open: Vec<Open>,
    documents: Vec<Id>,
    anchors: HashMap<usize, Id>,
}

/// Reads every document of `text`.
pub(super) fn parse(text: &str) -> Result<Tree, Finding> {
    let bytes = (!text.is_ascii()).then(|| text.char_indices().map(|(byte, _)| byte).collect());
    let mut builder = Builder {
        text,
        bytes,
        nodes: Vec::new(),
        open: Vec::new(),
        documents: Vec::new(),
        anchors: HashMap::new(),
    };
    for event in Parser::new_from_str(text) {
        match event {
            Ok((event, span)) => builder.take(event, span)?,
            Err(error) => {
                let at = builder.byte(error.marker().index());
                let tab = builder.tab_around(at);
                let message = match tab {
                    Some(_) => "a tab stands where YAML wants spaces; write spaces".to_owned(),
                    None => format!("this is not YAML: {}; mend it here", error.info()),
                };
                let at = tab.unwrap_or(at);
                return Err(Finding::new(Kind::YamlSyntax, at, message));
            }
        }
    }
    Ok(Tree { nodes: builder.nodes, documents: builder.documents })
}

impl Builder<'_> {
    fn byte(&self, index: usize) -> usize {
        match &self.bytes {
            None => index.min(self.text.len()),
            Some(bytes) => bytes.get(index).copied().unwrap_or(self.text.len()),
        }
    }

    fn take(&mut self, event: Event<'_>, span: Span) -> Result<(), Finding> {
        let (start, span_end) = (self.byte(span.start.index()), self.byte(span.end.index()));
        match event {
            Event::Scalar(text, style, anchor, tag) => {
                check_tag(start, tag.as_ref())?;
                let quote = match style {
                    ScalarStyle::SingleQuoted => Some('\''),
                    ScalarStyle::DoubleQuoted => Some('"'),
                    _ => None,
                };
                let end = quote.and_then(|quote| self.quoted_end(start, quote));
                let end = end.unwrap_or_else(|| self.trimmed(span_end).max(start));
                let value =
                    Value::Scalar { text: text.into_owned(), plain: style == ScalarStyle::Plain };
                self.finish(value, start, end, anchor);
            }
            Event::Alias(anchor) => {
                let Some(&target) = self.anchors.get(&anchor) else {
                    let message = "an alias inside of what it stands for; write the value out";
                    return Err(Finding::new(Kind::YamlSyntax, start, message));
                };
                if let Some(node) = self.nodes.get_mut(target) {
                    node.shared = true;
                }
                self.finish(Value::Alias(target), start, self.trimmed(span_end), 0);
            }
            Event::SequenceStart(anchor, tag) => {
                check_tag(start, tag.as_ref())?;
                self.begin(false, anchor, start, span_end)?;
            }
            Event::MappingStart(anchor, tag) => {
                check_tag(start, tag.as_ref())?;
                self.begin(true, anchor, start, span_end)?;
            }
            // The span of a bracket goes on to the next token.
            Event::SequenceEnd | Event::MappingEnd => self.close(start + 1),
            Event::Nothing
            | Event::StreamStart
            | Event::StreamEnd
            | Event::DocumentStart(_)
            | Event::DocumentEnd => {}
        }
        Ok(())
    }

    /// A tab at this byte, or among the white space before it.
    fn tab_around(&self, at: usize) -> Option<usize> {
        if self.text.get(at..)?.starts_with('\t') {
            return Some(at);
        }
        let before = self.text.get(..at)?;
        let space = before.trim_end_matches([' ', '\t']).len();
        Some(space + before.get(space..)?.find('\t')?)
    }

    /// After the closing quote: the event's span goes on to the next token.
    fn quoted_end(&self, start: usize, quote: char) -> Option<usize> {
        let rest = without_properties(self.text.get(start..)?);
        let mut rest = rest.strip_prefix(quote)?;
        loop {
            let mut chars = rest.get(rest.find([quote, '\\'])?..)?.chars();
            let backslash = chars.next()? == '\\';
            let after = chars.as_str();
            // `\"` escapes in double quotes, and `''` in single ones.
            let escape =
                if backslash { quote == '"' } else { quote == '\'' && after.starts_with('\'') };
            if !escape && !backslash {
                return Some(self.text.len() - after.len());
            }
            if escape {
                chars.next();
            }
            rest = chars.as_str();
        }
    }

    fn trimmed(&self, end: usize) -> usize {
        let before = self.text.get(..end).unwrap_or_default();
        before.trim_end_matches([' ', '\t', '\r', '\n']).len()
    }

    fn begin(
        &mut self,
        is_map: bool,
        anchor: usize,
        start: usize,
        end: usize,
    ) -> Result<(), Finding> {
        if self.open.len() == MAX_DEPTH {
            let message = format!(
                "nested deeper than {MAX_DEPTH} levels, which no manifest is; \
                 look for a bracket too many"
            );
            return Err(Finding::new(Kind::TooDeep, start, message));
        }
        // The event's own bytes are tag and anchor, the bracket if there is one, and what is
        // between that and the next token.
        let own = without_properties(self.text.get(start..end).unwrap_or_default());
        let in_flow = self.open.last().is_some_and(|open| open.style != Style::Block);
        let style = match in_flow {
            _ if own.starts_with(['{', '[']) => Style::Flow,
            true => Style::Pair,
            false => Style::Block,
        };
        self.open.push(Open { start, style, anchor, is_map, children: Vec::new() });
        Ok(())
    }

    fn close(&mut self, end: usize) {
        let Some(Open { start, style, anchor, is_map, children }) = self.open.pop() else { return };
        let last = children.last().and_then(|&id| self.nodes.get(id)).map(|node| node.end);
        let end = if style == Style::Flow { end } else { last.unwrap_or(start) };
        let value = if is_map {
            let pairs = children.chunks_exact(2);
            Value::Map(style, pairs.filter_map(|c| Some((*c.first()?, *c.last()?))).collect())
        } else {
            Value::Seq(style, children)
        };
        self.finish(value, start, end, anchor);
    }

    fn finish(&mut self, value: Value, start: usize, end: usize, anchor: usize) {
        let id = self.nodes.len();
        self.nodes.push(Node { value, start, end, shared: false });
        if anchor != 0 {
            self.anchors.insert(anchor, id);
        }
        match self.open.last_mut() {
            Some(parent) => parent.children.push(id),
            None => self.documents.push(id),
        }
    }
}

/// A tag of YAML's own that makes another text of a scalar, such as `!!binary`, or a merge of any
/// key: what Kubernetes' tools would read is not what stands here.
fn check_tag(at: usize, tag: Option<&Cow<'_, Tag>>) -> Result<(), Finding> {
    const CORE: &str = "tag:yaml.org,2002:";
    const PLAIN: [&str; 7] = ["str", "int", "bool", "float", "null", "map", "seq"];
    let Some(tag) = tag else { return Ok(()) };
    let name = format!("{}{}", tag.handle, tag.suffix);
    let own = name.strip_prefix(CORE).or_else(|| name.strip_prefix("!!"));
    if own.is_none_or(|own| PLAIN.contains(&own)) && !name.contains('%') {
        return Ok(());
    }
    let message = "a tag that makes another value of what stands here; write the value itself";
    Err(Finding::new(Kind::YamlSyntax, at, message))
}

/// What comes after a node's tag and anchor.
fn without_properties(text: &str) -> &str {
    let space = [' ', '\t', '\r', '\n'];
    let mut rest = text;
    while rest.starts_with(['&', '!']) {
        let token = rest.find(space).unwrap_or(rest.len());
        rest = rest.get(token..).unwrap_or_default().trim_start_matches(space);
    }
    rest
}
