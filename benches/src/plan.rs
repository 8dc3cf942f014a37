//! The loads, as data: what each does, in which set it is and which stacks it tells something of.

use crate::error::Error;
use crate::load::Kind;
use crate::stack::StackKind;

/// What one unit of a load is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Unit {
    /// Bytes: reported in Gbit/s, and CPU in seconds a GB.
    Byte,
    /// Requests or messages: reported by the second, and CPU in microseconds each.
    Request,
    /// Connections made: the same.
    Connection,
    /// Connections held: memory for each.
    Held,
}

/// One load.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Load {
    /// Its name, in the report and on the command line.
    pub(crate) name: String,
    /// What its connections do.
    pub(crate) kind: Kind,
    /// How many there are.
    pub(crate) connections: u32,
    /// The size of an echo's message, in bytes.
    pub(crate) size: u32,
    /// Whether the quick set has it.
    quick: bool,
}

/// The closed loop whose rates the open loop's rate is taken from.
pub(crate) const CLOSED_LOOP: &str = "http-32";

impl Load {
    fn new(name: &str, kind: Kind, connections: u32, quick: bool) -> Self {
        Self { name: name.to_owned(), kind, connections, size: 1, quick }
    }

    /// What one unit is.
    pub(crate) fn unit(&self) -> Unit {
        match self.kind {
            Kind::BulkUp | Kind::BulkDown => Unit::Byte,
            Kind::Http | Kind::HttpOpen | Kind::Echo => Unit::Request,
            Kind::Churn => Unit::Connection,
            Kind::Idle => Unit::Held,
        }
    }

    /// Whether it tells something of a stack. Plaintext proxies are measured where a goal looks
    /// at them, and a stack without proxies holds no memory.
    pub(crate) fn suits(&self, stack: StackKind, full: bool) -> bool {
        match stack {
            StackKind::Direct => self.kind != Kind::Idle,
            StackKind::Passthrough | StackKind::Copy => {
                full || self.name == "bulk-up-1" || self.name == CLOSED_LOOP
            }
            _ => true,
        }
    }
}

/// All loads, in the order of a round: memory first, on proxies that have done nothing yet, and
/// the closed loop before the open one, whose rate comes from it.
pub(crate) fn all(idle: u32) -> Vec<Load> {
    let mut loads = vec![
        Load::new("idle", Kind::Idle, idle, true),
        Load::new("bulk-up-1", Kind::BulkUp, 1, true),
        Load::new("bulk-up-8", Kind::BulkUp, 8, false),
        Load::new("bulk-up-64", Kind::BulkUp, 64, false),
        Load::new("bulk-down-1", Kind::BulkDown, 1, true),
        Load::new("bulk-down-8", Kind::BulkDown, 8, false),
        Load::new("http-1", Kind::Http, 1, true),
        Load::new(CLOSED_LOOP, Kind::Http, 32, true),
        Load::new("http-open-32", Kind::HttpOpen, 32, true),
        Load::new("churn-16", Kind::Churn, 16, true),
    ];
    for (size, name) in [(1, "1B"), (1024, "1KiB"), (16 * 1024, "16KiB")] {
        for connections in [1, 8, 64] {
            let name = format!("echo-{name}-{connections}");
            let load = Load::new(&name, Kind::Echo, connections, name == "echo-16KiB-8");
            loads.push(Load { size, ..load });
        }
    }
    loads
}

/// The loads of a set, or those that are named; `x*` stands for all that begin with x.
///
/// # Errors
/// A name that no load has.
pub(crate) fn choose(idle: u32, full: bool, named: &[String]) -> Result<Vec<Load>, Error> {
    let loads = all(idle);
    let matches = |load: &Load, name: &str| match name.strip_suffix('*') {
        Some(beginning) => load.name.starts_with(beginning),
        None => load.name == name,
    };
    if let Some(wrong) = named.iter().find(|name| !loads.iter().any(|load| matches(load, name))) {
        let known: Vec<_> = loads.iter().map(|load| load.name.as_str()).collect();
        let (name, known) = (wrong.clone(), known.join(", "));
        return Err(Error::Unknown { kind: "load", name, known });
    }
    let wanted = |load: &Load| match named {
        [] => full || load.quick,
        names => names.iter().any(|name| matches(load, name)),
    };
    Ok(loads.into_iter().filter(wanted).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(full: bool, named: &[&str]) -> Vec<String> {
        let named: Vec<_> = named.iter().map(|&name| name.to_owned()).collect();
        choose(10, full, &named).unwrap().into_iter().map(|load| load.name).collect()
    }

    #[test]
    fn a_star_names_all_that_begin_so() {
        assert_eq!(names(false, &["http-1", "bulk-up*"]).len(), 4);
        assert_eq!(names(false, &["echo*"]).len(), 9);
    }

    #[test]
    fn the_quick_set_is_part_of_the_full_one_and_has_every_goal() {
        let (quick, full) = (names(false, &[]), names(true, &[]));
        assert!(quick.iter().all(|name| full.contains(name)));
        for goal in crate::goals::GOALS {
            assert!(quick.iter().any(|name| name == goal.load), "{}", goal.load);
        }
    }

    #[test]
    fn the_closed_loop_comes_before_the_open_one() {
        let names = names(true, &[]);
        let at = |name: &str| names.iter().position(|other| other == name);
        assert!(at(CLOSED_LOOP) < at("http-open-32"));
        assert_eq!(at("idle"), Some(0));
    }

    #[test]
    fn an_unknown_load_is_an_error_with_the_known_ones() {
        let error = choose(10, false, &["http-31".to_owned()]).unwrap_err().to_string();
        assert!(error.contains("http-31") && error.contains("http-32"), "{error}");
    }
}
