//! What is wrong with the text, and where.

use std::fmt;

/// One step from the object to a place in it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// A key of an object.
    Key(Box<str>),
    /// An item of a list, from 0.
    Item(usize),
}

impl Step {
    pub(crate) fn key(key: &str) -> Self {
        Self::Key(key.into())
    }
}

/// What is wrong, and where.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// From the path of a probe to the place in it; empty where it is about the text as a whole.
    pub place: Vec<Step>,
    /// The cause, with its cure where that does not go without saying.
    pub what: String,
}

impl Problem {
    pub(crate) fn new(place: impl IntoIterator<Item = Step>, what: impl Into<String>) -> Self {
        Self { place: place.into_iter().collect(), what: what.into() }
    }

    pub(crate) fn of_path(path: &serde_path_to_error::Path, what: String) -> Self {
        use serde_path_to_error::Segment;
        let step = |segment: &Segment| match segment {
            Segment::Seq { index } => Some(Step::Item(*index)),
            Segment::Map { key } => Some(Step::key(key)),
            Segment::Enum { .. } | Segment::Unknown => None,
        };
        let problem = Self::new(path.iter().map_while(step), what);
        // The place is known better than by line and column of one long line.
        match problem.what.rsplit_once(" at line ") {
            Some((what, _)) if !problem.place.is_empty() => {
                Self { what: what.to_owned(), ..problem }
            }
            _ => problem,
        }
    }

    /// The same, of a part of what this key stands for.
    pub(crate) fn below(mut self, key: impl Into<Box<str>>) -> Self {
        self.place.insert(0, Step::Key(key.into()));
        self
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, step) in self.place.iter().enumerate() {
            match step {
                Step::Key(key) if at == 0 => write!(f, "{key}")?,
                Step::Key(key) => write!(f, ".{key}")?,
                Step::Item(item) => write!(f, "[{item}]")?,
            }
        }
        let colon = if self.place.is_empty() { "" } else { ": " };
        write!(f, "{colon}{}", self.what)
    }
}

impl std::error::Error for Problem {}
