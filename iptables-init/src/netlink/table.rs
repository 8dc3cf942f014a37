//! The tables of one family as the kernel lists them: chains, rules, and their handles. Pure.

use super::decode;
use super::kernel::{
    NFT_MSG_NEWCHAIN, NFT_MSG_NEWRULE, NFTA_CHAIN_NAME, NFTA_CHAIN_TABLE, NFTA_RULE_CHAIN,
    NFTA_RULE_EXPRESSIONS, NFTA_RULE_HANDLE, NFTA_RULE_TABLE,
};
use super::wire::{Malformed, messages};
use super::{family_number, is_nf_tables};
use crate::rules::{CHAIN_PREFIX, Family, TableName};
use crate::saved_table::SavedTable;
use crate::snapshot::Snapshot;

/// The tables that our rules stand in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tables([Table; 2]);

/// One of them; one that does not exist has neither chains nor rules.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Table {
    pub(super) name: TableName,
    pub(super) chains: Vec<String>,
    pub(super) rules: Vec<Row>,
}

/// A rule as the kernel lists it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Row {
    pub(super) chain: String,
    /// Its name in the kernel, unique within the table.
    pub(super) handle: u64,
    /// What it says, in the words of `*-save`.
    pub(super) body: String,
    /// The chain that it leads to.
    pub(super) leads_to: Option<String>,
}

impl Row {
    /// A rule in a chain that is not ours, and that leads to one of ours.
    pub(super) fn is_jump(&self) -> bool {
        let to_ours = self.leads_to.as_ref().is_some_and(|chain| chain.starts_with(CHAIN_PREFIX));
        to_ours && !self.chain.starts_with(CHAIN_PREFIX)
    }
}

impl Default for Tables {
    fn default() -> Self {
        Self(TableName::ALL.map(Table::empty))
    }
}

impl Tables {
    /// Takes the kernel's answers to a request for all chains and for all rules apart.
    ///
    /// # Errors
    /// An answer is cut off, or lacks what each chain or rule has.
    pub fn of(family: Family, answers: &[Vec<u8>]) -> Result<Self, Malformed> {
        let of = |name| Table::of(name, family, answers);
        Ok(Self([of(TableName::Nat)?, of(TableName::Filter)?]))
    }

    pub(super) fn each(&self) -> &[Table] {
        &self.0
    }

    /// The same in the words of `*-save`.
    #[must_use]
    pub fn snapshot(&self) -> Snapshot {
        let [nat, filter] = &self.0;
        Snapshot::of(|name| if name == nat.name { nat.saved() } else { filter.saved() })
    }
}

impl Table {
    pub(super) fn empty(name: TableName) -> Self {
        Self { name, chains: Vec::new(), rules: Vec::new() }
    }

    fn of(name: TableName, family: Family, answers: &[Vec<u8>]) -> Result<Self, Malformed> {
        let mut table = Self::empty(name);
        for message in answers.iter().map(|answer| messages(answer)) {
            for message in message? {
                if is_nf_tables(message.kind, NFT_MSG_NEWCHAIN) {
                    let (number, attributes) = message.netfilter()?;
                    let of = attributes.text(NFTA_CHAIN_TABLE);
                    if number == family_number(family) && of.as_deref() == Some(name.name()) {
                        table.chains.push(attributes.text(NFTA_CHAIN_NAME).ok_or(Malformed)?);
                    }
                } else if is_nf_tables(message.kind, NFT_MSG_NEWRULE) {
                    let (number, attributes) = message.netfilter()?;
                    let of = attributes.text(NFTA_RULE_TABLE);
                    if number == family_number(family) && of.as_deref() == Some(name.name()) {
                        let decoded =
                            decode::rule(&attributes.nested(NFTA_RULE_EXPRESSIONS)?, family)?;
                        table.rules.push(Row {
                            chain: attributes.text(NFTA_RULE_CHAIN).ok_or(Malformed)?,
                            handle: attributes.u64(NFTA_RULE_HANDLE)?.ok_or(Malformed)?,
                            body: decoded.body,
                            leads_to: decoded.leads_to,
                        });
                    }
                }
            }
        }
        Ok(table)
    }

    fn saved(&self) -> SavedTable {
        let rules = self.rules.iter().map(|rule| (rule.chain.clone(), rule.body.clone()));
        SavedTable::new(self.name, self.chains.clone(), rules)
    }

    pub(super) fn has(&self, chain: &str) -> bool {
        self.chains.iter().any(|it| it == chain)
    }

    pub(super) fn our_chains(&self) -> impl Iterator<Item = &str> {
        self.chains.iter().map(String::as_str).filter(|chain| chain.starts_with(CHAIN_PREFIX))
    }

    pub(super) fn jumps(&self) -> impl Iterator<Item = &Row> {
        self.rules.iter().filter(|rule| rule.is_jump())
    }
}

#[cfg(test)]
mod tests {
    use super::super::EarlierChain;
    use super::super::kernel::{
        NFPROTO_INET, NFTA_CHAIN_HOOK, NFTA_CHAIN_TYPE, NFTA_HOOK_HOOKNUM, NFTA_HOOK_PRIORITY,
    };
    use super::super::transaction::{Batch, Change, Purpose};
    use super::super::wire::{Message, messages};
    use super::super::{encode, nf_tables};
    use super::*;
    use crate::config::Config;
    use crate::render::transaction;
    use crate::rules::{Chain, RuleSet};

    fn rules(arguments: &[&str], family: Family) -> RuleSet {
        RuleSet::new(&Config::from_arguments(arguments, &[]).unwrap(), family)
    }

    fn chain(family: Family, table: &str, name: &str) -> Vec<u8> {
        let mut message = Message::new(nf_tables(NFT_MSG_NEWCHAIN), 2, 0, family_number(family), 0);
        message.put_text(NFTA_CHAIN_TABLE, table).put_text(NFTA_CHAIN_NAME, name);
        message.finish()
    }

    fn listed(
        family: Family,
        chain: Chain,
        handle: u64,
        fill: impl FnOnce(&mut Message),
    ) -> Vec<u8> {
        let mut message = Message::new(nf_tables(NFT_MSG_NEWRULE), 2, 0, family_number(family), 0);
        message.put_text(NFTA_RULE_TABLE, chain.table().name());
        message.put_text(NFTA_RULE_CHAIN, chain.name()).put_u64(NFTA_RULE_HANDLE, handle);
        fill(&mut message);
        message.finish()
    }

    /// What the kernel would list after these rules had been written.
    fn answers(rules: &RuleSet, family: Family) -> Vec<Vec<u8>> {
        let chains = TableName::ALL.map(|table| <[&[Chain]; 2]>::from(Chain::of(table)).concat());
        let chains = chains.iter().flatten();
        let mut answers: Vec<Vec<u8>> =
            chains.map(|it| chain(family, it.table().name(), it.name())).collect();
        answers.extend(rules.rules().iter().zip(1..).map(|(rule, handle)| {
            listed(family, rule.chain, handle, |message| {
                encode::rule(message, rule, family);
            })
        }));
        answers
    }

    const FLAGS: &[&str] = &[
        "--inbound-ports=1-2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,65535",
        "--inbound-exclude-cidrs=10.9.0.0/16,2001:db8:9::/48,10.128.0.0/9,fd00:8000::/17",
        "--outbound-cidrs=10.0.0.0/8,192.168.3.1,0.0.0.0/0,128.0.0.0/1,fd00::/8,::/0,8000::/1",
        "--outbound-exclude-ports=25",
        "--exclude-interfaces=net1,tap+,averylongname15",
        "--proxy-gid=4294967294",
    ];

    #[test]
    fn what_was_written_reads_as_it_was_meant() {
        for family in Family::ALL {
            for arguments in [&[], FLAGS] {
                let rules = rules(arguments, family);
                let tables = Tables::of(family, &answers(&rules, family)).unwrap();
                assert_eq!(tables.snapshot().difference(&rules), None);
                assert_eq!(tables.each().iter().flat_map(Table::jumps).count(), 3);
                let rows = tables.each().iter().flat_map(|table| &table.rules);
                let bodies: Vec<String> =
                    rows.map(|row| format!("-A {} {}", row.chain, row.body)).collect();
                let text = transaction(&rules);
                let lines: Vec<&str> = text.lines().filter(|line| line.starts_with("-A")).collect();
                assert_eq!(bodies, lines);
            }
        }
    }

    #[test]
    fn other_tables_and_families_are_left_out() {
        let mut all = answers(&rules(&[], Family::V6), Family::V6);
        all.push(chain(Family::V4, "mangle", "PILLION_X"));
        assert_eq!(Tables::of(Family::V4, &all).unwrap(), Tables::default());
        let [cut, ..] = &mut all[..] else { panic!("there are some") };
        cut.truncate(30);
        assert!(Tables::of(Family::V4, &all).is_err());
    }

    /// The types of a batch's messages, without its edges.
    fn kinds(change: &Change<'_>, tables: &Tables) -> Vec<u16> {
        let mut batch = Batch::new();
        for table in tables.each() {
            batch.change(change, table);
        }
        let bytes = batch.acknowledged().finish(Purpose::Commit(7));
        let all = messages(&bytes).unwrap();
        assert!(all.iter().zip(0..).all(|(message, number)| message.sequence == number));
        let acknowledged = all.iter().filter(|message| message.flags & 4 != 0).count();
        assert!(acknowledged == 1 && all[all.len() - 2].flags & 4 != 0);
        all[1..all.len() - 1].iter().map(|message| message.kind & 0xff).collect()
    }

    #[test]
    fn a_first_run_makes_what_is_missing_and_a_second_replaces() {
        let rules = rules(&[], Family::V4);
        let replace = Change::Replace(Family::V4, &rules);
        let [nat, filter] = TableName::ALL.map(|table| rules.of(table).count());
        // A table, two hooks, four chains; then the rules. In filter, one hook and one chain.
        let first = [vec![0], vec![3; 6], vec![6; nat], vec![0], vec![3; 2], vec![6; filter]];
        assert_eq!(kinds(&replace, &Tables::default()), first.concat());

        let tables = Tables::of(Family::V4, &answers(&rules, Family::V4)).unwrap();
        // Our chains emptied, the jumps put before the old ones, these removed, the rest.
        let again = [vec![8; 4], vec![6; 2], vec![8; 2], vec![6; nat - 2]].concat();
        let guard = [vec![8], vec![6], vec![8], vec![6; filter - 1]].concat();
        assert_eq!(kinds(&replace, &tables), [again, guard].concat());

        let remove = Change::Remove(Family::V4);
        let gone = [vec![8; 6], vec![5; 4], vec![8; 2], vec![5]].concat();
        assert_eq!(kinds(&remove, &tables), gone);
        let mut nothing = Batch::new();
        for table in Tables::default().each() {
            nothing.change(&remove, table);
        }
        assert!(nothing.is_empty());
    }

    #[test]
    fn an_unfinished_batch_is_only_checked() {
        let mut batch = Batch::new();
        batch.foundation(Family::V6, &Table::empty(TableName::Nat));
        let bytes = batch.acknowledged().finish(Purpose::Check);
        let kinds: Vec<u16> = messages(&bytes).unwrap().iter().map(|it| it.kind).collect();
        assert_eq!(kinds, [0x10, 0x0a00, 0x0a03, 0x0a03]);
    }

    #[test]
    fn earlier_chains_are_those_with_rules_and_no_later_priority() {
        let chain = |name: &str, kind: &str, hook: u32, priority: i32| {
            let mut message = Message::new(nf_tables(NFT_MSG_NEWCHAIN), 2, 0, NFPROTO_INET, 0);
            message.put_text(NFTA_CHAIN_TABLE, "x").put_text(NFTA_CHAIN_NAME, name);
            message.nest(NFTA_CHAIN_HOOK, |inner| {
                inner.put_u32(NFTA_HOOK_HOOKNUM, hook);
                inner.put(NFTA_HOOK_PRIORITY, &priority.to_be_bytes());
            });
            message.put_text(NFTA_CHAIN_TYPE, kind);
            message.finish()
        };
        let rule = |chain: &str| {
            let mut message = Message::new(nf_tables(NFT_MSG_NEWRULE), 2, 0, NFPROTO_INET, 0);
            message.put_text(NFTA_RULE_TABLE, "x").put_text(NFTA_RULE_CHAIN, chain);
            message.finish()
        };
        let answers = [
            chain("early", "nat", 0, -110),
            chain("same", "nat", 3, -100),
            chain("late", "nat", 3, -99),
            chain("empty", "nat", 0, -110),
            chain("filter", "filter", 0, -300),
            chain("source", "nat", 4, -110),
            ["early", "same", "late", "filter", "source"].map(rule).concat(),
        ];
        let found: Vec<String> =
            EarlierChain::find(&answers).unwrap().iter().map(ToString::to_string).collect();
        let wanted =
            ["inet x early (prerouting, priority -110)", "inet x same (output, priority -100)"];
        assert_eq!(found, wanted);
    }
}
