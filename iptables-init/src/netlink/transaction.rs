//! A batch: one transaction of nf_tables over both families, all of it or nothing. Pure.
//!
//! The rules that captured connections depend on are replaced within it, so that no packet ever
//! meets the table without them.

use super::encode;
use super::kernel::{
    NF_ACCEPT, NF_INET_LOCAL_OUT, NF_INET_PRE_ROUTING, NF_IP_PRI_NAT_DST, NFNL_BATCH_GENID,
    NFNL_MSG_BATCH_BEGIN, NFNL_MSG_BATCH_END, NFNL_SUBSYS_NFTABLES, NFPROTO_UNSPEC,
    NFT_MSG_DELCHAIN, NFT_MSG_DELRULE, NFT_MSG_NEWCHAIN, NFT_MSG_NEWRULE, NFT_MSG_NEWTABLE,
    NFTA_CHAIN_HOOK, NFTA_CHAIN_NAME, NFTA_CHAIN_POLICY, NFTA_CHAIN_TABLE, NFTA_CHAIN_TYPE,
    NFTA_HOOK_HOOKNUM, NFTA_HOOK_PRIORITY, NFTA_RULE_CHAIN, NFTA_RULE_HANDLE, NFTA_RULE_POSITION,
    NFTA_RULE_TABLE, NFTA_TABLE_FLAGS, NFTA_TABLE_NAME, NLM_F_ACK, NLM_F_APPEND, NLM_F_CREATE,
    NLM_F_REQUEST,
};
use super::socket::Failure;
use super::table::Table;
use super::wire::Message;
use super::{NAT, family_number, nf_tables};
use crate::rules::{CHAIN_PREFIX, Chain, Family, Rule, RuleSet};

/// What is to become of a family's nat table.
#[derive(Clone, Copy, Debug)]
pub enum Change<'a> {
    /// What is ours in it becomes these rules; what has our prefix and is not in the model goes.
    Replace(Family, &'a RuleSet),
    /// What is ours in it goes.
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

    /// Adds what one family's change takes, from the state that its table is in.
    pub(super) fn change(&mut self, change: &Change<'_>, table: &Table) {
        let family = change.family();
        let wanted: &[Chain] = match change {
            Change::Replace(..) => &Chain::OURS,
            Change::Remove(_) => &[],
        };
        if let Change::Replace(..) = change {
            self.foundation(family, table);
        }
        for chain in wanted.iter().filter(|chain| !table.has(chain.name())) {
            self.new_chain(family, chain.name(), None);
        }
        for chain in table.our_chains() {
            self.delete_rules(family, chain, None);
        }
        let mut rules: &[Rule] = match change {
            Change::Replace(_, rules) => rules.rules(),
            Change::Remove(_) => &[],
        };
        // The jumps come first. Each takes the place of the one that was there: at the end, a rule
        // that others had put behind it would take what was captured before.
        while let Some((jump, rest)) = rules.split_first()
            && !jump.chain.name().starts_with(CHAIN_PREFIX)
        {
            let old = table.jumps().find(|old| old.chain == jump.chain.name());
            self.new_rule(family, jump, old.map(|old| old.handle));
            rules = rest;
        }
        for old in table.jumps() {
            self.delete_rules(family, &old.chain, Some(old.handle));
        }
        for rule in rules {
            self.new_rule(family, rule, None);
        }
        for chain in table.our_chains().filter(|name| !wanted.iter().any(|it| it.name() == *name)) {
            self.delete_chain(family, chain);
        }
    }

    /// The table and the kernel's hooks, as iptables-nft makes them, where they are missing.
    pub(super) fn foundation(&mut self, family: Family, table: &Table) {
        if table.chains.is_empty() {
            self.add((NFT_MSG_NEWTABLE, NLM_F_CREATE), family, "table nat".to_owned(), |message| {
                message.put_text(NFTA_TABLE_NAME, NAT).put_u32(NFTA_TABLE_FLAGS, 0);
            });
        }
        let hooks = [(Chain::Prerouting, NF_INET_PRE_ROUTING), (Chain::Output, NF_INET_LOCAL_OUT)];
        for (chain, hook) in hooks.into_iter().filter(|(chain, _)| !table.has(chain.name())) {
            self.new_chain(family, chain.name(), Some(hook));
        }
    }

    fn new_chain(&mut self, family: Family, chain: &str, hook: Option<u32>) {
        let name = format!("chain {chain}");
        self.add((NFT_MSG_NEWCHAIN, NLM_F_CREATE), family, name, |message| {
            message.put_text(NFTA_CHAIN_TABLE, NAT).put_text(NFTA_CHAIN_NAME, chain);
            if let Some(hook) = hook {
                message.nest(NFTA_CHAIN_HOOK, |inner| {
                    inner.put_u32(NFTA_HOOK_HOOKNUM, hook);
                    inner.put(NFTA_HOOK_PRIORITY, &NF_IP_PRI_NAT_DST.to_be_bytes());
                });
                message.put(NFTA_CHAIN_POLICY, &NF_ACCEPT.to_be_bytes());
                message.put_text(NFTA_CHAIN_TYPE, NAT);
            }
        });
    }

    /// At the end of its chain, or before the rule with a handle.
    fn new_rule(&mut self, family: Family, rule: &Rule, before: Option<u64>) {
        let place = if before.is_none() { NLM_F_APPEND } else { 0 };
        let name = format!("rule `{rule}`");
        self.add((NFT_MSG_NEWRULE, NLM_F_CREATE | place), family, name, |message| {
            message.put_text(NFTA_RULE_TABLE, NAT).put_text(NFTA_RULE_CHAIN, rule.chain.name());
            if let Some(handle) = before {
                message.put_u64(NFTA_RULE_POSITION, handle);
            }
            encode::rule(message, rule, family);
        });
    }

    /// One rule, or all of a chain.
    fn delete_rules(&mut self, family: Family, chain: &str, handle: Option<u64>) {
        let name = format!("removal of rules from {chain}");
        self.add((NFT_MSG_DELRULE, 0), family, name, |message| {
            message.put_text(NFTA_RULE_TABLE, NAT).put_text(NFTA_RULE_CHAIN, chain);
            if let Some(handle) = handle {
                message.put_u64(NFTA_RULE_HANDLE, handle);
            }
        });
    }

    fn delete_chain(&mut self, family: Family, chain: &str) {
        self.add((NFT_MSG_DELCHAIN, 0), family, format!("removal of chain {chain}"), |message| {
            message.put_text(NFTA_CHAIN_TABLE, NAT).put_text(NFTA_CHAIN_NAME, chain);
        });
    }
}
