//! What is in the tables of a family, and what of it is ours.

use crate::rules::{Family, RuleSet, TableName};
use crate::saved_table::{Ahead, SavedTable};

/// The tables that our rules stand in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Snapshot {
    nat: SavedTable,
    filter: SavedTable,
}

impl Snapshot {
    /// Reads the tables in the output of `*-save`.
    #[must_use]
    pub fn parse(text: &str) -> Self {
        Self::of(|name| SavedTable::parse(name, text))
    }

    /// Of each table what `table` says is in it.
    pub fn of(mut table: impl FnMut(TableName) -> SavedTable) -> Self {
        Self { nat: table(TableName::Nat), filter: table(TableName::Filter) }
    }

    fn tables(&self) -> [&SavedTable; 2] {
        [&self.nat, &self.filter]
    }

    /// True when something in them is ours.
    #[must_use]
    pub fn has_ours(&self) -> bool {
        self.tables().into_iter().any(SavedTable::has_ours)
    }

    /// True when there is any rule in the nat table, ours or not.
    #[must_use]
    pub fn has_nat_rules(&self) -> bool {
        self.nat.has_rules()
    }

    /// The transactions, one a table, that replace what is ours by `rules`; see
    /// [`SavedTable::replacement`].
    #[must_use]
    pub fn replacement(&self, rules: &RuleSet) -> String {
        self.tables().map(|table| table.replacement(rules)).concat()
    }

    /// The first rule of others that may take a TCP connection before it is redirected.
    #[must_use]
    pub fn ahead(&self, rules: &RuleSet, family: Family) -> Option<Ahead> {
        self.nat.ahead(rules, family)
    }

    /// The transactions that remove all that is ours; `None` when nothing is.
    #[must_use]
    pub fn removal(&self) -> Option<String> {
        let texts: Vec<String> =
            self.tables().into_iter().filter_map(SavedTable::removal).collect();
        (!texts.is_empty()).then(|| texts.concat())
    }

    /// The transactions that bring what was ours in `self` back, from the state `now`.
    #[must_use]
    pub fn return_from(&self, now: &Snapshot) -> String {
        self.nat.return_from(&now.nat) + &self.filter.return_from(&now.filter)
    }

    /// The first difference between what is ours in here and `rules`; `None` when there is none.
    #[must_use]
    pub fn difference(&self, rules: &RuleSet) -> Option<String> {
        self.tables().into_iter().find_map(|table| table.difference(rules))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;
    use crate::render::transaction;

    #[test]
    fn each_table_is_compared_removed_and_brought_back() {
        let rules = RuleSet::new(&Config::from_arguments(&[], &[]).unwrap(), Family::V4);
        let text = transaction(&rules);
        let all = Snapshot::parse(&text);
        assert_eq!(all.difference(&rules), None);
        let unguarded = Snapshot::parse(text.split_once("*filter").unwrap().0);
        assert_eq!(unguarded.difference(&rules).unwrap(), "the chains are []");
        let open = text.replace("REJECT --reject-with tcp-reset", "RETURN");
        let difference = Snapshot::parse(&open).difference(&rules).unwrap();
        assert!(difference.contains("tcp-reset` should"), "{difference}");

        assert!(!unguarded.removal().unwrap().contains("*filter"));
        let removal = all.removal().unwrap();
        assert!(removal.contains("*nat\n") && removal.contains("-X PILLION_GUARD\n"), "{removal}");
        let guard = Snapshot::parse(&format!("*filter{}", text.split_once("*filter").unwrap().1));
        assert!(guard.has_ours() && !guard.has_nat_rules());
        let nothing = Snapshot::parse("");
        assert!(!nothing.has_ours() && nothing.removal().is_none());
        assert!(nothing.return_from(&guard).ends_with("-X PILLION_GUARD\nCOMMIT\n"));
    }
}
