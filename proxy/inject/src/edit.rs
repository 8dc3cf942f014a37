//! Changes of the text at exact places: everything else stays as it is, byte for byte.
//!
//! What is added comes first in its list or mapping, and a block of lines is always whole lines.
//! So to take it out again needs no memory of where it had been put.

use std::ops::Range;

use serde_json::Value as Json;

use crate::diagnostic::{Finding, Kind};
use crate::emit::{Layout, Pretty, entry_lines, item_lines, json, json_entry};
use crate::tree::{Entry, Id, Place, Style, Tree, Value};

/// Beyond this column nothing can be added in block style.
const MAX_COLUMN: usize = 4096;

/// What stands there now instead of these bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Edit {
    range: Range<usize>,
    text: String,
}

/// Changes of one text, and what tells where they go.
pub(crate) struct Editor<'t> {
    text: &'t str,
    tree: &'t Tree,
    eol: &'static str,
    /// Where each line begins.
    lines: Vec<usize>,
    edits: Vec<Edit>,
}

/// A text after its changes, which remembers where its parts come from.
#[derive(Debug)]
pub(crate) struct Edited {
    pub(crate) text: String,
    edits: Vec<Edit>,
}

impl Edited {
    /// Where an offset of the new text was in the old one.
    pub(crate) fn origin(&self, offset: usize) -> usize {
        let (mut old, mut new) = (0, 0);
        for edit in &self.edits {
            let kept = edit.range.start.saturating_sub(old);
            if offset < new + kept {
                break;
            }
            new += kept + edit.text.len();
            old = edit.range.end;
            if offset < new {
                return edit.range.start;
            }
        }
        old + offset.saturating_sub(new)
    }
}

type Done<T = ()> = Result<T, Finding>;

impl<'t> Editor<'t> {
    pub(crate) fn new(text: &'t str, tree: &'t Tree) -> Self {
        let first = text.find(['\r', '\n']).and_then(|at| text.get(at..));
        let eol = if first.is_some_and(|rest| rest.starts_with("\r\n")) { "\r\n" } else { "\n" };
        let bom = if text.starts_with('\u{feff}') { '\u{feff}'.len_utf8() } else { 0 };
        // A lone CR ends a line, too (YAML 1.2.2, 5.4).
        let bytes = text.bytes().zip(text.bytes().skip(1).chain([0])).enumerate();
        let ends =
            bytes.filter(|(_, pair)| pair.0 == b'\n' || (pair.0 == b'\r' && pair.1 != b'\n'));
        let lines = [bom].into_iter().chain(ends.map(|(at, _)| at + 1)).collect();
        Self { text, tree, eol, lines, edits: Vec::new() }
    }

    /// The new text. Two changes of one place are an error of layout.
    pub(crate) fn apply(mut self) -> Done<Edited> {
        self.edits.sort_by_key(|edit| (edit.range.start, edit.range.end));
        let mut text = String::with_capacity(self.text.len() + 4096);
        let mut old = 0;
        for edit in &self.edits {
            let Some(kept) = self.text.get(old..edit.range.start) else {
                return Err(layout(edit.range.start, "two changes meet here"));
            };
            text.push_str(kept);
            text.push_str(&edit.text);
            old = edit.range.end;
        }
        text.push_str(self.text.get(old..).unwrap_or_default());
        Ok(Edited { text, edits: self.edits })
    }

    /// The ranges of the old text that are replaced, in order.
    pub(crate) fn replaced(&self) -> Vec<Range<usize>> {
        let ranges = self.edits.iter().map(|edit| edit.range.clone());
        let mut ranges: Vec<_> = ranges.filter(|range| !range.is_empty()).collect();
        ranges.sort_by_key(|range| range.start);
        ranges
    }

    /// How the file indents around an entry whose value is a mapping in block style.
    pub(crate) fn layout(&self, map: &Entry, list: Option<&Entry>) -> Layout {
        let below = |entry: &Entry, start: usize| {
            self.column(start).checked_sub(self.column(self.tree.start(entry.key)))
        };
        let child = self.tree.entries(map.value).first().map(|entry| self.tree.start(entry.key));
        let step = child.and_then(|start| below(map, start)).filter(|step| (1..=8).contains(step));
        let dash = list.and_then(|list| {
            let first = self.tree.items(list.value).first()?.node;
            below(list, self.dash(first)?)
        });
        Layout { step: step.unwrap_or(2), dash: dash.filter(|dash| *dash <= 8).unwrap_or(0) }
    }

    /// A key that the mapping does not have yet; in block style before the entry `before`.
    pub(crate) fn insert_entry(
        &mut self,
        map: Place,
        before: Option<&Entry>,
        (key, value): (&str, &Json),
        layout_of: Layout,
    ) -> Done {
        let at = self.owned(map)?;
        let entries = self.tree.entries(map);
        match self.tree.value(map) {
            Some(Value::Map(Style::Block, _)) => {
                let own_line = |entry: &&Entry| self.own_line(self.tree.start(entry.key));
                let wanted = before.filter(|entry| entry.map == map.node).filter(own_line);
                let Some(next) = wanted.or_else(|| entries.iter().find(own_line)) else {
                    return Err(layout(at, "no key stands on a line of its own here"));
                };
                let previous = next.index.checked_sub(1).and_then(|index| entries.get(index));
                let bound = previous.map_or(0, |entry| self.end(entry.raw));
                let start = self.tree.start(next.key);
                self.insert_lines(start, bound, &entry_lines(key, value, layout_of));
                Ok(())
            }
            Some(Value::Map(Style::Flow, _)) => {
                let first = entries.first().map(|entry| self.tree.start(entry.key));
                self.insert_flow(map.node, first, |pretty| json_entry(key, value, pretty))
            }
            _ => Err(layout(at, "this mapping has no brackets of its own")),
        }
    }

    /// Items in front of those that the list has.
    pub(crate) fn insert_items(&mut self, list: Place, items: &[Json], layout_of: Layout) -> Done {
        let at = self.owned(list)?;
        let first = self.tree.items(list).first().map(|item| item.node);
        match self.tree.value(list) {
            Some(Value::Seq(Style::Block, raw)) => {
                let first = raw.first().and_then(|&item| self.dash(item));
                let Some(dash) = first.filter(|dash| self.own_line(*dash)) else {
                    return Err(layout(at, "the first dash does not begin its line"));
                };
                let lines: Vec<String> =
                    items.iter().flat_map(|item| item_lines(item, layout_of)).collect();
                self.insert_lines(dash, 0, &lines);
                Ok(())
            }
            Some(Value::Seq(Style::Flow, raw)) => {
                let first = raw.first().copied().or(first).map(|item| self.tree.start(item));
                for item in items {
                    self.insert_flow(list.node, first, |pretty| json(item, pretty))?;
                }
                Ok(())
            }
            _ => Err(layout(at, "this is no list")),
        }
    }

    /// A value for an entry that has none, or an empty one. Returns the bytes from the colon on.
    pub(crate) fn fill(&mut self, entry: &Entry, value: &Json, layout_of: Layout) -> Done<String> {
        self.owned(entry.value)?;
        let range = self.value_range(entry)?;
        let text = match self.style(entry.map) {
            Style::Block => {
                let column = self.column(self.tree.start(entry.key));
                // The key is there; what stands below it is wanted.
                let lines = entry_lines("k", value, layout_of);
                let below = lines.iter().skip(1);
                below.map(|line| format!("{}{:column$}{line}", self.eol, "")).collect()
            }
            Style::Flow | Style::Pair => format!(" {}", json(value, None)),
        };
        self.replace(range, text)
    }

    /// Another key and value for an entry. Returns the bytes that were there, and the column that
    /// they began in if they were in block style.
    pub(crate) fn exchange(
        &mut self,
        entry: &Entry,
        (key, value): (&str, &Json),
        layout_of: Layout,
    ) -> Done<(String, Option<usize>)> {
        self.free(entry)?;
        let (start, end) = (self.tree.start(entry.key), self.end(entry.raw));
        if self.style(entry.map) == Style::Block {
            let column = self.column(start);
            let lines = entry_lines(key, value, layout_of);
            let text = lines.join(&format!("{}{:column$}", self.eol, ""));
            return Ok((self.replace(start..end, text)?, Some(column)));
        }
        let pretty = self.own_line(start).then(|| {
            let column = self.column(start);
            let step = self.flow_step(entry.map, column);
            Pretty { column, step, eol: self.eol }
        });
        Ok((self.replace(start..end, json_entry(key, value, pretty))?, None))
    }

    /// What [`Self::fill`] would return.
    pub(crate) fn behind_colon(&self, entry: &Entry) -> Done<String> {
        let range = self.value_range(entry)?;
        Ok(self.text.get(range).unwrap_or_default().to_owned())
    }

    /// The bytes of [`Self::fill`] again.
    pub(crate) fn refill(&mut self, entry: &Entry, text: &str) -> Done {
        self.owned(entry.value)?;
        let range = self.value_range(entry)?;
        self.replace(range, text.to_owned())?;
        Ok(())
    }

    /// The bytes of [`Self::exchange`] again.
    pub(crate) fn restore(&mut self, entry: &Entry, text: &str) -> Done {
        self.free(entry)?;
        let range = self.tree.start(entry.key)..self.end(entry.raw);
        self.replace(range, text.to_owned())?;
        Ok(())
    }

    /// True when a text of this column, or of none, can go back to where the entry is.
    pub(crate) fn fits(&self, entry: &Entry, column: Option<usize>) -> bool {
        let start = self.tree.start(entry.key);
        let here = (self.style(entry.map) == Style::Block).then(|| self.column(start));
        here == column
    }

    /// Takes entries of one mapping out, and the lines that they have; not all of them.
    pub(crate) fn remove_entries(&mut self, map: Place, gone: &[usize]) -> Done {
        let at = self.owned(map)?;
        let Some(Value::Map(style, entries)) = self.tree.value(map) else {
            return Err(layout(at, "this is no mapping"));
        };
        let spans: Vec<Range<usize>> = entries
            .iter()
            .map(|&(key, value)| self.tree.start(key)..self.end(key).max(self.end(value)))
            .collect();
        self.remove(*style, &spans, gone)
    }

    /// Takes items out, likewise; not all of them.
    pub(crate) fn remove_items(&mut self, list: Place, gone: &[usize]) -> Done {
        let at = self.owned(list)?;
        let Some(Value::Seq(style, items)) = self.tree.value(list) else {
            return Err(layout(at, "this is no list"));
        };
        let start = |item: Id| match style {
            Style::Block => self.dash(item).ok_or_else(|| layout(at, "a dash is missing here")),
            _ => Ok(self.tree.start(item)),
        };
        let spans: Done<Vec<Range<usize>>> =
            items.iter().map(|&item| Ok(start(item)?..self.end(item))).collect();
        self.remove(*style, &spans?, gone)
    }

    fn remove(&mut self, style: Style, spans: &[Range<usize>], gone: &[usize]) -> Done {
        for (index, span) in spans.iter().enumerate().filter(|(index, _)| gone.contains(index)) {
            let next = spans.get(index + 1);
            let range = match style {
                Style::Block if self.own_line(span.start) => self.lines(span),
                Style::Flow if next.is_some() => span.start..next.map_or(span.end, |n| n.start),
                // The last one takes the comma before it along, and removed ones before that.
                Style::Flow => {
                    let kept = (0..index).rev().find(|index| !gone.contains(index));
                    let before = kept.and_then(|index| spans.get(index));
                    let start = before.map_or(span.start, |before| before.end);
                    self.edits.retain(|edit| edit.range.start < start || edit.range.end > span.end);
                    start..span.end
                }
                _ => return Err(layout(span.start, "this does not begin its line")),
            };
            self.replace(range, String::new())?;
        }
        Ok(())
    }

    /// Whole lines, with the end of the last; at the end of the file with the one before instead.
    fn lines(&self, span: &Range<usize>) -> Range<usize> {
        let start = self.line_start(span.start);
        let rest = self.text.get(span.end..).unwrap_or_default();
        match rest.find(['\r', '\n']) {
            Some(end) => {
                let eol = rest.get(end..).unwrap_or_default();
                start..span.end + end + if eol.starts_with("\r\n") { 2 } else { 1 }
            }
            None => {
                let before = self.text.get(..start).unwrap_or_default();
                let kept = before.strip_suffix('\n').unwrap_or(before);
                kept.strip_suffix('\r').unwrap_or(kept).len()..self.text.len()
            }
        }
    }

    fn replace(&mut self, range: Range<usize>, text: String) -> Done<String> {
        let Some(old) = self.text.get(range.clone()) else {
            return Err(layout(range.start, "what has to change has no place of its own"));
        };
        self.edits.push(Edit { range, text });
        Ok(old.to_owned())
    }

    /// Lines in front of the one that `start` begins, and of the comments that belong to it.
    fn insert_lines(&mut self, start: usize, bound: usize, lines: &[String]) {
        let column = self.column(start);
        let mut at = self.line_start(start);
        while let Some(above) = self.line_above(at).filter(|above| *above >= bound) {
            let line = self.text.get(above..at).unwrap_or_default();
            let bare = line.trim_start_matches(' ');
            if line.len() - bare.len() != column || !bare.starts_with('#') {
                break;
            }
            at = above;
        }
        let text = lines.iter().map(|line| format!("{:column$}{line}{}", "", self.eol)).collect();
        self.edits.push(Edit { range: at..at, text });
    }

    fn insert_flow(
        &mut self,
        node: Id,
        first: Option<usize>,
        write: impl Fn(Option<Pretty<'_>>) -> String,
    ) -> Done {
        let start = self.tree.start(node);
        let bracket = self.text.get(start..).and_then(|rest| rest.find(['[', '{']));
        let gap = first.zip(bracket).and_then(|(first, at)| self.text.get(start + at + 1..first));
        let (Some(first), Some(gap)) = (first, gap) else {
            return Err(layout(start, "there is no bracket here"));
        };
        let blank = |line: &str| line.trim().is_empty() || line.trim_start().starts_with('#');
        if !gap.split(['\r', '\n']).all(blank) {
            return Err(layout(first, "the first key has a question mark"));
        }
        let text = if self.own_line(first) {
            let column = self.column(first);
            let step = self.flow_step(node, column);
            let text = write(Some(Pretty { column, step, eol: self.eol }));
            format!("{text},{}{:column$}", self.eol, "")
        } else {
            format!("{}, ", write(None))
        };
        self.edits.push(Edit { range: first..first, text });
        Ok(())
    }

    /// Columns from the line of a flow collection's bracket to what is in it.
    fn flow_step(&self, node: Id, column: usize) -> usize {
        let start = self.tree.start(node);
        let line = self.text.get(self.line_start(start)..).unwrap_or_default();
        let indent = line.len() - line.trim_start_matches(' ').len();
        column.checked_sub(indent).filter(|step| (1..=8).contains(step)).unwrap_or(2)
    }

    /// From behind the colon to the value's end.
    fn value_range(&self, entry: &Entry) -> Done<Range<usize>> {
        let key_end = self.end(entry.key);
        let mut rest = self.text.get(key_end..).unwrap_or_default();
        loop {
            rest = rest.trim_start_matches([' ', '\t', '\r', '\n']);
            if !rest.starts_with('#') {
                break;
            }
            rest = rest.get(rest.find(['\r', '\n']).unwrap_or(rest.len())..).unwrap_or_default();
        }
        if !rest.starts_with(':') {
            return Err(layout(key_end, "this key has no colon"));
        }
        let start = self.text.len() - rest.len() + 1;
        Ok(start..self.end(entry.raw).max(start))
    }

    /// Where the node is; an error if to change it would change another place.
    fn owned(&self, place: Place) -> Done<usize> {
        match place.shared {
            None => Ok(self.tree.start(place.node)),
            Some(at) => Err(shared(at)),
        }
    }

    /// An error if the mapping of the entry is another place's, too.
    fn free(&self, entry: &Entry) -> Done {
        entry.shared.map_or(Ok(()), |at| Err(shared(at)))
    }

    fn style(&self, map: Id) -> Style {
        match self.tree.node(map).map(|node| &node.value) {
            Some(Value::Map(style, _) | Value::Seq(style, _)) => *style,
            _ => Style::Pair,
        }
    }

    fn end(&self, id: Id) -> usize {
        self.tree.node(id).map_or(0, |node| node.end)
    }

    /// The dash of an item in block style; lines of comments may be between the two.
    fn dash(&self, item: Id) -> Option<usize> {
        let mut end = self.tree.start(item);
        let mut start = self.line_start(end);
        loop {
            let line = self.text.get(start..end)?;
            let bare = line.trim_start_matches(' ');
            if bare.strip_prefix('-').is_some_and(is_blank) {
                return Some(start + line.len() - bare.len());
            }
            if !bare.starts_with('#') && !is_blank(bare) {
                return None;
            }
            (end, start) = (start, self.line_above(start)?);
        }
    }

    /// True when nothing but spaces is before it on its line.
    fn own_line(&self, at: usize) -> bool {
        let before = self.text.get(self.line_start(at)..at);
        before.is_some_and(|before| before.chars().all(|c| c == ' '))
    }

    /// In characters from 0, as far as anybody indents: JSON may be one line of megabytes.
    fn column(&self, at: usize) -> usize {
        let before = self.text.get(self.line_start(at)..at);
        before.map_or(0, |before| before.chars().take(MAX_COLUMN).count())
    }

    fn line_start(&self, at: usize) -> usize {
        let index = self.lines.partition_point(|start| *start <= at).saturating_sub(1);
        self.lines.get(index).copied().unwrap_or(0).min(at)
    }

    /// The start of the line before the one that begins here.
    fn line_above(&self, start: usize) -> Option<usize> {
        let index = self.lines.partition_point(|line| *line < start);
        self.lines.get(index.checked_sub(1)?).copied()
    }
}

/// White space alone, or that and a comment.
fn is_blank(text: &str) -> bool {
    let bare = text.trim_start();
    bare.is_empty() || (bare.starts_with('#') && bare.len() < text.len())
}

fn layout(at: usize, cause: &str) -> Finding {
    let message = format!("{cause}; write it in ordinary block style, a key to a line");
    Finding::new(Kind::Layout, at, message)
}

/// What an anchor, alias or merge key shares has to be written out.
pub(crate) fn shared(at: usize) -> Finding {
    let message = "the sidecar has to change what is shared here with another place by an anchor, \
                   an alias or a merge key; write it out where it is used";
    Finding::new(Kind::SharedNode, at, message)
}
