//! Reads the documentation's tables, for the tests that hold them against the code.
#![allow(dead_code, reason = "each test file uses its part")]

use std::fmt::Debug;
use std::fs;
use std::path::PathBuf;

/// The top folder of the repository.
pub(crate) fn root() -> PathBuf {
    fs::canonicalize(concat!(env!("CARGO_MANIFEST_DIR"), "/..")).unwrap()
}

/// A file's text; its path is relative to [`root`].
#[track_caller]
pub(crate) fn read(path: &str) -> String {
    fs::read_to_string(root().join(path)).unwrap_or_else(|e| panic!("{path}: {e}"))
}

/// Text as a reader sees it, without the marks around code.
pub(crate) fn plain(text: &str) -> String {
    text.replace('`', "")
}

/// The table between `<!-- name -->` and `<!-- /name -->`: its rows without the
/// header, each cell trimmed and [`plain`].
#[track_caller]
pub(crate) fn rows(text: &str, name: &str) -> Vec<Vec<String>> {
    let (open, close) = (format!("<!-- {name} -->"), format!("<!-- /{name} -->"));
    let marked = text.split_once(&open).and_then(|(_, rest)| rest.split_once(&close));
    let (table, _) = marked.unwrap_or_else(|| panic!("no {open} ... {close}"));
    let lines = table.lines().map(str::trim).filter(|line| !line.is_empty());
    let mut rows: Vec<Vec<_>> = lines.map(cells).collect();
    assert!(rows.len() > 2 && rows[1].iter().all(|cell| cell == "---"), "{name}: no table");
    let header: Vec<_> = rows.drain(..2).next().unwrap();
    for row in &rows {
        assert_eq!(row.len(), header.len(), "{name}: {row:?} has not the columns {header:?}");
    }
    rows
}

/// The cells of one line of a table. A `|` inside of a cell would need an escape,
/// which no table has.
#[track_caller]
fn cells(line: &str) -> Vec<String> {
    let inner = line.strip_prefix('|').and_then(|line| line.strip_suffix('|'));
    let inner = inner.unwrap_or_else(|| panic!("not a table's line: {line}"));
    inner.split('|').map(|cell| plain(cell.trim())).collect()
}

/// The first `columns` cells of each row of a page's table.
#[track_caller]
pub(crate) fn documented(page: &str, name: &str, columns: usize) -> Vec<Vec<String>> {
    let mut rows = rows(&read(page), name);
    rows.iter_mut().for_each(|row| row.truncate(columns));
    rows
}

/// Fails with what only one of the two has, or, where both have the same, with the order.
#[track_caller]
pub(crate) fn same<T: Debug + PartialEq>(documented: &[T], ours: &[T]) {
    let without = |a: &[T], b: &[T]| -> String {
        a.iter().filter(|x| !b.contains(x)).map(|x| format!("\n  {x:?}")).collect()
    };
    let (stale, missing) = (without(documented, ours), without(ours, documented));
    assert!(
        stale.is_empty() && missing.is_empty(),
        "documented and not so in the code:{stale}\nin the code and not so documented:{missing}"
    );
    assert_eq!(documented, ours, "the same rows, in another order or more than once");
}
