//! Chains of native nft tables that take part in destination NAT before ours do. Pure.

use std::fmt;

use super::kernel::{
    NF_INET_LOCAL_OUT, NF_INET_PRE_ROUTING, NF_IP_PRI_NAT_DST, NFPROTO_INET, NFPROTO_IPV4,
    NFPROTO_IPV6, NFT_MSG_NEWCHAIN, NFT_MSG_NEWRULE, NFTA_CHAIN_HOOK, NFTA_CHAIN_NAME,
    NFTA_CHAIN_TABLE, NFTA_CHAIN_TYPE, NFTA_HOOK_HOOKNUM, NFTA_HOOK_PRIORITY, NFTA_RULE_CHAIN,
    NFTA_RULE_TABLE,
};
use super::wire::{Malformed, messages};
use super::{NAT, is_nf_tables};
use crate::rules::{Chain, Family};

/// A chain with rules that the kernel asks before ours, or may: of two with the same priority, the
/// younger one is asked first, and the kernel does not say which that is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EarlierChain {
    family: u8,
    table: String,
    chain: String,
    hook: &'static str,
    priority: i32,
}

impl EarlierChain {
    /// Finds them in the kernel's lists of all chains and all rules.
    ///
    /// # Errors
    /// A list is cut off, or lacks what each chain or rule has.
    pub fn find(answers: &[Vec<u8>]) -> Result<Vec<Self>, Malformed> {
        let (mut chains, mut with_rules) = (Vec::new(), Vec::new());
        for answer in answers {
            for message in messages(answer)? {
                if is_nf_tables(message.kind, NFT_MSG_NEWCHAIN) {
                    let (family, attributes) = message.netfilter()?;
                    let hook = attributes.nested(NFTA_CHAIN_HOOK)?;
                    let name = match hook.u32(NFTA_HOOK_HOOKNUM)? {
                        Some(NF_INET_PRE_ROUTING) => "prerouting",
                        Some(NF_INET_LOCAL_OUT) => "output",
                        _ => continue,
                    };
                    let priority = hook.i32(NFTA_HOOK_PRIORITY)?.ok_or(Malformed)?;
                    if attributes.text(NFTA_CHAIN_TYPE).as_deref() == Some(NAT)
                        && [NFPROTO_INET, NFPROTO_IPV4, NFPROTO_IPV6].contains(&family)
                        && priority <= NF_IP_PRI_NAT_DST
                    {
                        chains.push(Self {
                            family,
                            table: attributes.text(NFTA_CHAIN_TABLE).ok_or(Malformed)?,
                            chain: attributes.text(NFTA_CHAIN_NAME).ok_or(Malformed)?,
                            hook: name,
                            priority,
                        });
                    }
                } else if is_nf_tables(message.kind, NFT_MSG_NEWRULE) {
                    let (family, attributes) = message.netfilter()?;
                    let table = attributes.text(NFTA_RULE_TABLE).ok_or(Malformed)?;
                    let chain = attributes.text(NFTA_RULE_CHAIN).ok_or(Malformed)?;
                    with_rules.push((family, table, chain));
                }
            }
        }
        // A chain without rules takes nothing.
        chains.retain(|it| {
            with_rules.iter().any(|(family, table, chain)| {
                (*family, table, chain) == (it.family, &it.table, &it.chain)
            })
        });
        Ok(chains)
    }

    /// True when it sees connections of this family.
    #[must_use]
    pub fn sees(&self, family: Family) -> bool {
        self.family == NFPROTO_INET || self.family == super::family_number(family)
    }

    /// True when it is the chain in which the jumps to our rules stand when they are in nf_tables.
    #[must_use]
    pub fn is_of_iptables(&self) -> bool {
        let hooks = [Chain::Prerouting.name(), Chain::Output.name()];
        self.family != NFPROTO_INET && self.table == NAT && hooks.contains(&self.chain.as_str())
    }

    /// The command that shows it.
    #[must_use]
    pub fn command(&self) -> String {
        format!("nft list chain {} {} {}", self.family_name(), self.table, self.chain)
    }

    fn family_name(&self) -> &'static str {
        match self.family {
            NFPROTO_IPV4 => "ip",
            NFPROTO_IPV6 => "ip6",
            _ => "inet",
        }
    }
}

impl fmt::Display for EarlierChain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (table, chain) = (self.table.escape_debug(), self.chain.escape_debug());
        let family = self.family_name();
        write!(f, "{family} {table} {chain} ({}, priority {})", self.hook, self.priority)
    }
}
