//! A batch: one transaction of nf_tables over both families, all of it or nothing. Pure.
//!
//! The rules that captured connections depend on are replaced within it, so that no packet ever
//! meets the table without them.

use super::encode;
use super::kernel::{
    NF_ACCEPT, NF_INET_LOCAL_OUT, NF_INET_PRE_ROUTING, NF_IP_PRI_FILTER, NF_IP_PRI_NAT_DST,
    NFNL_BATCH_GENID, NFNL_MSG_BATCH_BEGIN, NFNL_MSG_BATCH_END, NFNL_SUBSYS_NFTABLES,
    NFPROTO_UNSPEC, NFT_MSG_DELCHAIN, NFT_MSG_DELRULE, NFT_MSG_NEWCHAIN, NFT_MSG_NEWRULE,
    NFT_MSG_NEWTABLE, NFTA_CHAIN_HOOK, NFTA_CHAIN_NAME, NFTA_CHAIN_POLICY, NFTA_CHAIN_TABLE,
    NFTA_CHAIN_TYPE, NFTA_HOOK_HOOKNUM, NFTA_HOOK_PRIORITY, NFTA_RULE_CHAIN, NFTA_RULE_HANDLE,
    NFTA_RULE_POSITION, NFTA_RULE_TABLE, NFTA_TABLE_FLAGS, NFTA_TABLE_NAME, NLM_F_ACK,
    NLM_F_APPEND, NLM_F_CREATE, NLM_F_REQUEST,
};
use super::socket::Failure;
use super::table::Table;
use super::wire::Message;
use super::{family_number, nf_tables};
use crate::rules::{CHAIN_PREFIX, Chain, Family, Rule, RuleSet, TableName};

/// What is to become of a family's tables.
#[derive(Clone, Copy, Debug)]
pub enum Change<'a> {
    /// What is ours in them becomes these rules; what has our prefix and is not in the model goes.
    Replace(Family, &'a RuleSet),
    /// What is ours in them goes.
    Remove(Family),
}

impl Change<'_> {
    /// Whose table.
    #[must_use]
    pub fn family(&self) -> Family {
        match *self {
            Change::Replace(family, _) | Change::Remove(family) => family,
        }
    }
}

/// Whether the batch is to be carried out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Purpose {
    /// Yes, if nobody has changed anything since this generation.
    Commit(u32),
    /// No: without its end, the kernel checks a batch and takes it back (`nfnetlink_rcv_batch`).
    Check,
}

/// Where a chain is.
type Place = (Family, TableName);

/// Where in its chain a new rule is put.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Position {
    First,
    /// Before the rule with this handle.
    Before(u64),
    Last,
}

/// Messages in order.
#[derive(Debug)]
pub(super) struct Batch {
    messages: Vec<Message>,
    names: Names,
}

/// What each message of a batch is, for the error that names it.
#[derive(Clone, Debug, Default)]
pub(super) struct Names(Vec<String>);

impl Names {
    /// What the message is that was refused.
    pub(super) fn get(&self, failure: &Failure) -> &str {
        let Failure::Refused { sequence, .. } = failure else { return "the transaction" };
        let index = usize::try_from(*sequence).ok().and_then(|number| number.checked_sub(1));
        index.and_then(|index| self.0.get(index)).map_or("the transaction", String::as_str)
    }
}

impl Batch {
    /// An empty one.
    pub(super) fn new() -> Self {
        Self { messages: Vec::new(), names: Names::default() }
    }

    /// True when nothing is to be done.
    pub(super) fn is_empty(&self) -> bool {
        self.messages.is_empty()
    }

    /// The sequence number of the one message that the kernel acknowledges: the last that does
    /// something. Kernels before 6.10 acknowledge no end.
    pub(super) fn last_sequence(&self) -> u32 {
        u32::try_from(self.messages.len()).unwrap_or(u32::MAX)
    }

    /// What its messages are.
    pub(super) fn names(&self) -> Names {
        self.names.clone()
    }

    /// The datagram.
    pub(super) fn finish(self, purpose: Purpose) -> Vec<u8> {
        let edge = |kind, sequence| {
            let subsystem = NFNL_SUBSYS_NFTABLES;
            Message::new(kind, NLM_F_REQUEST, sequence, NFPROTO_UNSPEC, subsystem)
        };
        let end = self.last_sequence().saturating_add(1);
        let mut begin = edge(NFNL_MSG_BATCH_BEGIN, 0);
        if let Purpose::Commit(generation) = purpose {
            begin.put_u32(NFNL_BATCH_GENID, generation);
        }
        let mut bytes = begin.finish();
        bytes.extend(self.messages.into_iter().flat_map(Message::finish));
        if let Purpose::Commit(_) = purpose {
            bytes.extend(edge(NFNL_MSG_BATCH_END, end).finish());
        }
        bytes
    }

    fn add(
        &mut self,
        (kind, flags): (u8, u16),
        family: Family,
        name: String,
        fill: impl FnOnce(&mut Message),
    ) {
        let sequence = self.last_sequence().saturating_add(1);
        let flags = NLM_F_REQUEST | flags;
        let mut message = Message::new(nf_tables(kind), flags, sequence, family_number(family), 0);
        fill(&mut message);
        self.messages.push(message);
        self.names.0.push(format!("{} {name}", family.name()));
    }

    /// Asks for the acknowledgement.
    pub(super) fn acknowledged(mut self) -> Self {
        if let Some(last) = self.messages.last_mut() {
            last.add_flags(NLM_F_ACK);
        }
        self
    }

    /// Adds what one family's change takes in a table, from the state that it is in.
    pub(super) fn change(&mut self, change: &Change<'_>, table: &Table) {
        let place = (change.family(), table.name);
        let wanted: &[Chain] = match change {
            Change::Replace(..) => Chain::of(table.name).1,
            Change::Remove(_) => &[],
        };
        if let Change::Replace(..) = change {
            self.foundation(change.family(), table);
        }
        for chain in wanted.iter().filter(|chain| !table.has(chain.name())) {
            self.new_chain(place, chain.name(), None);
        }
        for chain in table.our_chains() {
            self.delete_rules(place, chain, None);
        }
        let rules: Vec<&Rule> = match change {
            Change::Replace(_, rules) => rules.of(table.name).collect(),
            Change::Remove(_) => Vec::new(),
        };
        // The jumps come first. Each takes the place of the one that was there: at the end, a rule
        // that others had put behind it would take what was captured before. The guard's comes
        // first: it refuses what nobody else may let pass.
        let (ours, jumps): (Vec<&Rule>, Vec<&Rule>) =
            rules.into_iter().partition(|rule| rule.chain.name().starts_with(CHAIN_PREFIX));
        for jump in jumps {
            let old = table.jumps().find(|old| old.chain == jump.chain.name());
            let at = match (jump.chain, old) {
                (Chain::Sent, _) => Position::First,
                (_, Some(old)) => Position::Before(old.handle),
                (_, None) => Position::Last,
            };
            self.new_rule(place, jump, at);
        }
        for old in table.jumps() {
            self.delete_rules(place, &old.chain, Some(old.handle));
        }
        for rule in ours {
            self.new_rule(place, rule, Position::Last);
        }
        for chain in table.our_chains().filter(|name| !wanted.iter().any(|it| it.name() == *name)) {
            self.delete_chain(place, chain);
        }
    }

    /// The table and the kernel's hooks, as iptables-nft makes them, where they are missing.
    pub(super) fn foundation(&mut self, family: Family, table: &Table) {
        let name = table.name;
        if table.chains.is_empty() {
            let text = format!("table {}", name.name());
            self.add((NFT_MSG_NEWTABLE, NLM_F_CREATE), family, text, |message| {
                message.put_text(NFTA_TABLE_NAME, name.name()).put_u32(NFTA_TABLE_FLAGS, 0);
            });
        }
        let (hooks, _) = Chain::of(name);
        for chain in hooks.iter().filter(|chain| !table.has(chain.name())) {
            let number = match chain {
                Chain::Prerouting => NF_INET_PRE_ROUTING,
                _ => NF_INET_LOCAL_OUT,
            };
            self.new_chain((family, name), chain.name(), Some(number));
        }
    }

    fn new_chain(&mut self, (family, table): Place, chain: &str, hook: Option<u32>) {
        let name = format!("chain {chain}");
        self.add((NFT_MSG_NEWCHAIN, NLM_F_CREATE), family, name, |message| {
            message.put_text(NFTA_CHAIN_TABLE, table.name()).put_text(NFTA_CHAIN_NAME, chain);
            let Some(hook) = hook else { return };
            let priority = match table {
                TableName::Nat => NF_IP_PRI_NAT_DST,
                TableName::Filter => NF_IP_PRI_FILTER,
            };
            message.nest(NFTA_CHAIN_HOOK, |inner| {
                inner.put_u32(NFTA_HOOK_HOOKNUM, hook);
                inner.put(NFTA_HOOK_PRIORITY, &priority.to_be_bytes());
            });
            message.put(NFTA_CHAIN_POLICY, &NF_ACCEPT.to_be_bytes());
            // A chain has the type that its table is named after.
            message.put_text(NFTA_CHAIN_TYPE, table.name());
        });
    }

    fn new_rule(&mut self, (family, table): Place, rule: &Rule, at: Position) {
        let flags = NLM_F_CREATE | if at == Position::Last { NLM_F_APPEND } else { 0 };
        let name = format!("rule `{rule}`");
        self.add((NFT_MSG_NEWRULE, flags), family, name, |message| {
            message.put_text(NFTA_RULE_TABLE, table.name());
            message.put_text(NFTA_RULE_CHAIN, rule.chain.name());
            if let Position::Before(handle) = at {
                message.put_u64(NFTA_RULE_POSITION, handle);
            }
            encode::rule(message, rule, family);
        });
    }

    /// One rule, or all of a chain.
    fn delete_rules(&mut self, (family, table): Place, chain: &str, handle: Option<u64>) {
        let name = format!("removal of rules from {chain}");
        self.add((NFT_MSG_DELRULE, 0), family, name, |message| {
            message.put_text(NFTA_RULE_TABLE, table.name()).put_text(NFTA_RULE_CHAIN, chain);
            if let Some(handle) = handle {
                message.put_u64(NFTA_RULE_HANDLE, handle);
            }
        });
    }

    fn delete_chain(&mut self, (family, table): Place, chain: &str) {
        self.add((NFT_MSG_DELCHAIN, 0), family, format!("removal of chain {chain}"), |message| {
            message.put_text(NFTA_CHAIN_TABLE, table.name()).put_text(NFTA_CHAIN_NAME, chain);
        });
    }
}
