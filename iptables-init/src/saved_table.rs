//! What is in one table, as `*-save` prints it, and what of it is ours.

use std::collections::BTreeMap;

use ipnet::IpNet;

use crate::foreign::{Words, can_end_the_walk};
use crate::render::{chain_line, table_text};
use crate::rules::{CHAIN_PREFIX, Chain, Family, RuleSet, TableName, Target};

/// A table: its chains and its rules, in the kernel's order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SavedTable {
    name: TableName,
    chains: Vec<String>,
    rules: Vec<SavedRule>,
}

/// A rule as `*-save` prints it.
#[derive(Clone, Debug, PartialEq, Eq)]
struct SavedRule {
    chain: String,
    /// All of what follows the chain.
    body: String,
    /// Its place in its chain, from 1, as `-I` counts.
    number: usize,
}

/// A rule of others that stands ahead of one of our jumps.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ahead {
    /// As `*-save` prints it.
    pub rule: String,
    /// The chain.
    pub hook: &'static str,
    /// Its place there, from 1.
    pub number: usize,
}

impl SavedRule {
    fn append(&self) -> String {
        format!("-A {} {}", self.chain, self.body)
    }

    fn delete(&self) -> String {
        format!("-D {} {}", self.chain, self.body)
    }

    fn insert(&self) -> String {
        format!("-I {} {} {}", self.chain, self.number, self.body)
    }

    fn is_in_ours(&self) -> bool {
        self.chain.starts_with(CHAIN_PREFIX)
    }

    /// A rule in a chain that is not ours, and that leads to one of ours.
    fn is_jump(&self) -> bool {
        let words = Words::of(&self.body);
        !self.is_in_ours() && words.target().is_some_and(|to| to.starts_with(CHAIN_PREFIX))
    }
}

impl SavedTable {
    /// Reads a table in the output of `*-save`. Comments, counters, policies and other tables are
    /// left out; without the table there is nothing to read.
    #[must_use]
    pub fn parse(name: TableName, text: &str) -> Self {
        let (mut chains, mut rules) = (Vec::new(), Vec::new());
        let begin = format!("*{}", name.name());
        let table = text.lines().skip_while(|line| *line != begin);
        for line in table.take_while(|line| *line != "COMMIT") {
            if let Some(chain) = line.strip_prefix(':') {
                chains.extend(chain.split_whitespace().next().map(str::to_owned));
            } else if let Some(rule) = line.strip_prefix("-A ") {
                // A rule that only counts has nothing behind its chain, and has a place as well.
                let (chain, body) = rule.split_once(' ').unwrap_or((rule, ""));
                rules.push((chain.to_owned(), body.trim_end().to_owned()));
            }
        }
        Self::new(name, chains, rules)
    }

    /// A table of these chains and rules, the latter as chain and as what follows it.
    #[must_use]
    pub fn new(
        name: TableName,
        chains: Vec<String>,
        rules: impl IntoIterator<Item = (String, String)>,
    ) -> Self {
        let mut numbers = BTreeMap::new();
        let rules = rules.into_iter().map(|(chain, body)| {
            let number = numbers.entry(chain.clone()).or_insert(0);
            *number += 1;
            SavedRule { chain, body, number: *number }
        });
        let rules = rules.collect();
        Self { name, chains, rules }
    }

    /// True when something in it is ours.
    #[must_use]
    pub fn has_ours(&self) -> bool {
        self.our_chains().next().is_some()
    }

    /// True when there is any rule, ours or not.
    #[must_use]
    pub fn has_rules(&self) -> bool {
        !self.rules.is_empty()
    }

    fn our_chains(&self) -> impl Iterator<Item = &String> {
        self.chains.iter().filter(|chain| chain.starts_with(CHAIN_PREFIX))
    }

    fn jumps(&self) -> impl Iterator<Item = &SavedRule> {
        self.rules.iter().filter(|rule| rule.is_jump())
    }

    fn jump_deletions(&self) -> impl Iterator<Item = String> {
        self.jumps().map(SavedRule::delete)
    }

    /// The transaction that replaces what is ours in here by `rules`. What has our prefix and is
    /// not in the model goes.
    ///
    /// A jump returns to the place that it had: at the end, a rule that others had put behind it
    /// would take what was captured before. The guard's comes first: it refuses what nobody else
    /// may let pass.
    #[must_use]
    pub fn replacement(&self, rules: &RuleSet) -> String {
        let wanted = self.wanted();
        let unknown: Vec<&String> =
            self.our_chains().filter(|chain| !wanted.contains(&chain.as_str())).collect();
        let empty = wanted.iter().copied().chain(unknown.iter().map(|chain| chain.as_str()));
        let rules = rules.of(self.name).map(|rule| {
            let append = rule.to_string();
            let hook = rule.chain.name();
            let place = match rule.chain {
                Chain::Sent => self.rules.iter().any(|rule| rule.chain == hook).then_some(1),
                _ => self.jumps().find(|jump| jump.chain == hook).map(|jump| jump.number),
            };
            match (place, append.strip_prefix(&format!("-A {hook}"))) {
                (Some(number), Some(body)) => format!("-I {hook} {number}{body}"),
                _ => append,
            }
        });
        let drop = unknown.iter().map(|chain| format!("-X {chain}"));
        let lines = empty.map(chain_line).chain(self.jump_deletions()).chain(rules).chain(drop);
        table_text(self.name, lines)
    }

    /// The chains that are to be in here.
    fn wanted(&self) -> Vec<&'static str> {
        let (_, ours) = Chain::of(self.name);
        ours.iter().map(|chain| chain.name()).collect()
    }

    /// The first rule of others that may take a TCP connection before our jump in its chain can.
    #[must_use]
    pub fn ahead(&self, rules: &RuleSet, family: Family) -> Option<Ahead> {
        let jumps = rules.of(self.name).filter(|rule| {
            matches!(rule.target, Target::Jump(_)) && !rule.chain.name().starts_with(CHAIN_PREFIX)
        });
        let mut hooks = jumps.map(|rule| rule.chain);
        hooks.find_map(|hook| {
            let chain = |name: &str| -> Option<Vec<Words>> {
                self.chains.iter().any(|chain| chain == name).then(|| {
                    let inside = self.rules.iter().filter(|rule| rule.chain == name);
                    inside.map(|rule| Words::of(&rule.body)).collect()
                })
            };
            let walk = self.rules.iter().filter(|rule| rule.chain == hook.name());
            walk.take_while(|rule| !rule.is_jump())
                .find(|rule| {
                    let words = Words::of(&rule.body);
                    let spared = hook == Chain::Output && words.is_to_loopback(family);
                    !spared && can_end_the_walk(&words, &chain)
                })
                .map(|rule| Ahead { rule: rule.append(), hook: hook.name(), number: rule.number })
        })
    }

    /// The transaction that removes all that is ours; `None` when nothing is.
    #[must_use]
    pub fn removal(&self) -> Option<String> {
        self.has_ours().then(|| {
            let chains: Vec<&String> = self.our_chains().collect();
            let empty = chains.iter().map(|chain| chain_line(chain));
            let drop = chains.iter().map(|chain| format!("-X {chain}"));
            table_text(self.name, empty.chain(self.jump_deletions()).chain(drop))
        })
    }

    /// The transaction that brings what was ours in `self` back, from the state `now`. Jumps
    /// return to the places they had.
    #[must_use]
    pub fn return_from(&self, now: &SavedTable) -> String {
        let mut chains: Vec<&String> = self.our_chains().chain(now.our_chains()).collect();
        chains.sort_unstable();
        chains.dedup();
        let empty = chains.iter().map(|chain| chain_line(chain));
        let rules = self.rules.iter().filter(|rule| rule.is_in_ours()).map(SavedRule::append);
        let jumps = self.jumps().map(SavedRule::insert);
        let gone = chains.iter().filter(|chain| !self.chains.contains(chain));
        let drop = gone.map(|chain| format!("-X {chain}"));
        let lines = empty.chain(now.jump_deletions()).chain(rules).chain(jumps).chain(drop);
        table_text(self.name, lines)
    }

    /// The first difference between what is ours in here and `rules`; `None` when there is none.
    #[must_use]
    pub fn difference(&self, rules: &RuleSet) -> Option<String> {
        let mut chains: Vec<&str> = self.our_chains().map(String::as_str).collect();
        chains.sort_unstable();
        if chains != self.wanted() {
            return Some(format!("the chains are [{}]", chains.join(" ")));
        }
        let wanted: Vec<(&str, String)> = rules
            .of(self.name)
            .map(|rule| (rule.chain.name(), canonical(&rule.to_string())))
            .collect();
        let found: Vec<(&str, String)> = self
            .rules
            .iter()
            .filter(|rule| rule.is_in_ours() || rule.is_jump())
            .map(|rule| (rule.chain.as_str(), canonical(&rule.append())))
            .collect();
        // Only the order within a chain means something.
        let mut chains: Vec<&str> = wanted.iter().chain(&found).map(|(chain, _)| *chain).collect();
        chains.sort_unstable();
        chains.dedup();
        let of = |rules: &[(&str, String)], chain: &str| -> Vec<String> {
            rules.iter().filter(|(of, _)| *of == chain).map(|(_, rule)| rule.clone()).collect()
        };
        chains.into_iter().find_map(|chain| first_change(&of(&wanted, chain), &of(&found, chain)))
    }
}

/// The first difference between the rules of one chain.
fn first_change(wanted: &[String], found: &[String]) -> Option<String> {
    if let Some((wanted, found)) = wanted.iter().zip(found).find(|(wanted, found)| wanted != found)
    {
        return Some(format!("`{found}` stands where `{wanted}` should"));
    }
    let missing = wanted.get(found.len()).map(|rule| format!("`{rule}` is missing"));
    missing.or_else(|| found.get(wanted.len()).map(|rule| format!("`{rule}` is one too many")))
}

/// One spelling for each address: the C library writes a few IPv6 addresses otherwise than Rust
/// does (`::1.2.3.4`).
fn canonical(rule: &str) -> String {
    let words = rule.split_whitespace();
    let spelled = words
        .map(|word| word.parse::<IpNet>().map_or_else(|_| word.to_owned(), |net| net.to_string()));
    spelled.collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;
    use crate::render::transaction;
    use crate::snapshot::Snapshot;

    fn nat(text: &str) -> SavedTable {
        SavedTable::parse(TableName::Nat, text)
    }

    fn rules(arguments: &[&str], family: Family) -> RuleSet {
        RuleSet::new(&Config::from_arguments(arguments, &[]).unwrap(), family)
    }

    fn installed(family: Family) -> String {
        let text = transaction(&rules(&[], family));
        format!("# Generated\n*mangle\n:PILLION_X - [0:0]\nCOMMIT\n{text}# Completed\n")
    }

    #[test]
    fn what_was_written_is_no_difference() {
        for family in Family::ALL {
            let now = nat(&installed(family));
            assert_eq!(now.difference(&rules(&[], family)), None);
            assert!(now.difference(&rules(&["--proxy-uid=7"], family)).is_some());
        }
    }

    #[test]
    fn each_change_is_a_difference() {
        let wanted = rules(&[], Family::V4);
        let text = installed(Family::V4);
        let jump = "-A OUTPUT -p tcp -j PILLION_OUTPUT\n";
        let last = "-A PILLION_REDIRECT -p tcp -j REDIRECT --to-ports 15001\n";
        for (changed, says) in [
            (text.replace(jump, ""), "-j PILLION_OUTPUT` is missing"),
            (text.replace(jump, &jump.repeat(2)), "-j PILLION_OUTPUT` is one too many"),
            (text.replace(last, ""), "is missing"),
            (text.replace(last, &last.repeat(2)), "is one too many"),
            (text.replace(last, &format!("-A PILLION_REDIRECT -j RETURN\n{last}")), "RETURN"),
            (text.replace(":PILLION_REDIRECT - [0:0]\n", ""), "the chains are"),
            (String::new(), "the chains are []"),
        ] {
            let difference = nat(&changed).difference(&wanted).unwrap();
            assert!(difference.contains(says), "{says}: {difference}");
        }
    }

    #[test]
    fn rules_of_others_and_the_order_of_chains_are_no_difference() {
        let text = installed(Family::V4)
            .replace("-A PREROUTING", "-A OUTPUT -p tcp -j DOCKER_OUTPUT\n-A PREROUTING");
        assert_eq!(nat(&text).difference(&rules(&[], Family::V4)), None);
    }

    #[test]
    fn an_address_in_the_spelling_of_the_c_library_is_the_same() {
        let wanted = rules(&["--outbound-exclude-cidrs=::102:304"], Family::V6);
        let text = transaction(&wanted).replace("::102:304/128", "::1.2.3.4/128");
        assert!(text.contains("::1.2.3.4"));
        assert_eq!(nat(&text).difference(&wanted), None);
    }

    #[test]
    fn removal_takes_ours_and_stale_chains_and_nothing_else() {
        let text = "*nat\n:OUTPUT ACCEPT [3:4]\n:DOCKER - [0:0]\n:PILLION_OLD - [0:0]\n\
                    -A OUTPUT -d 10.0.0.0/8 -j DOCKER\n-A OUTPUT -p tcp -j PILLION_OLD\n\
                    -A PILLION_OLD -j RETURN\nCOMMIT\n";
        assert_eq!(
            nat(text).removal().unwrap(),
            "*nat\n:PILLION_OLD - [0:0]\n-D OUTPUT -p tcp -j PILLION_OLD\n-X PILLION_OLD\nCOMMIT\n"
        );
        assert_eq!(nat("*nat\n:OUTPUT ACCEPT [0:0]\nCOMMIT\n").removal(), None);
        assert_eq!(nat("").removal(), None);
    }

    #[test]
    fn a_rule_without_words_has_a_place() {
        let text = "*nat\n:OUTPUT ACCEPT [0:0]\n:PILLION_OUTPUT - [0:0]\n-A OUTPUT\n\
                    -A OUTPUT -p tcp -j PILLION_OUTPUT\nCOMMIT\n";
        let now = nat(text);
        let wanted = rules(&[], Family::V4);
        assert!(now.replacement(&wanted).contains("-I OUTPUT 2 -p tcp -j PILLION_OUTPUT"));
        assert_eq!(now.ahead(&wanted, Family::V4), None);
    }

    #[test]
    fn a_comment_that_reads_like_a_jump_is_none() {
        let text = "*nat\n:OUTPUT ACCEPT [0:0]\n:PILLION_OLD - [0:0]\n\
                    -A OUTPUT -m comment --comment \"a \\\" -j PILLION_OLD\" -j LOG\nCOMMIT\n";
        assert!(!nat(text).removal().unwrap().contains("-D"), "{text}");
    }

    #[test]
    fn a_replacement_keeps_the_places_and_drops_what_the_model_does_not_know() {
        let before =
            nat("*nat\n:OUTPUT ACCEPT [0:0]\n:PILLION_OUTPUT - [0:0]\n:PILLION_OLD - [0:0]\n\
             -A OUTPUT -j X\n-A OUTPUT -p tcp -j PILLION_OLD\n\
             -A OUTPUT -p tcp -j PILLION_OUTPUT\n-A OUTPUT -j Y\nCOMMIT\n");
        let text = before.replacement(&rules(&[], Family::V4));
        let place = |line: &str| {
            text.find(&format!("{line}\n")).unwrap_or_else(|| panic!("{line}: {text}"))
        };
        let order = [
            ":PILLION_REDIRECT - [0:0]",
            ":PILLION_OLD - [0:0]",
            "-D OUTPUT -p tcp -j PILLION_OLD",
            "-D OUTPUT -p tcp -j PILLION_OUTPUT",
            "-A PREROUTING -p tcp -j PILLION_INBOUND",
            "-I OUTPUT 2 -p tcp -j PILLION_OUTPUT",
            "-A PILLION_REDIRECT -p tcp -j REDIRECT --to-ports 15001",
            "-X PILLION_OLD",
        ];
        assert!(order.is_sorted_by_key(|line| place(line)), "{text}");
        assert_eq!(
            Snapshot::parse("").replacement(&rules(&[], Family::V4)),
            transaction(&rules(&[], Family::V4))
        );
    }

    #[test]
    fn what_takes_tcp_ahead_of_a_jump_is_named() {
        let wanted = rules(&[], Family::V4);
        let ahead = |hook: &str, rule: &str, chains: &str| {
            let jump = format!("-A {hook} -p tcp -j PILLION_");
            let text = installed(Family::V4)
                .replace(&jump, &format!("-A {hook} {rule}\n{jump}"))
                .replace("*nat\n", &format!("*nat\n{chains}"));
            nat(&text).ahead(&wanted, Family::V4).map(|ahead| ahead.rule)
        };
        let accept = "-p tcp -m tcp --dport 80 -j ACCEPT";
        for hook in ["PREROUTING", "OUTPUT"] {
            assert_eq!(ahead(hook, accept, ""), Some(format!("-A {hook} {accept}")));
            assert_eq!(ahead(hook, "-p udp -j ACCEPT", ""), None);
        }
        let docker = "-d 127.0.0.11/32 -j DOCKER_OUTPUT";
        let dns =
            ":DOCKER_OUTPUT - [0:0]\n-A DOCKER_OUTPUT -p tcp -j DNAT --to-destination 1.2.3.4:5\n";
        assert_eq!(ahead("OUTPUT", docker, dns), None);
        assert!(ahead("PREROUTING", docker, dns).is_some());
        assert!(ahead("OUTPUT", "-j DOCKER_OUTPUT", dns).is_some());
        assert_eq!(ahead("OUTPUT", "-j EMPTY", ":EMPTY - [0:0]\n"), None);
        // What stands behind the jump is not asked.
        let behind =
            installed(Family::V4).replace("COMMIT\n#", &format!("-A OUTPUT {accept}\nCOMMIT\n#"));
        assert!(behind.contains(accept));
        assert_eq!(nat(&behind).ahead(&wanted, Family::V4), None);
    }

    #[test]
    fn a_return_puts_jumps_where_they_were() {
        let before = nat("*nat\n:OUTPUT ACCEPT [0:0]\n:PILLION_OUTPUT - [0:0]\n-A OUTPUT -j X\n\
             -A OUTPUT -p tcp -j PILLION_OUTPUT\n-A OUTPUT -j Y\n\
             -A PILLION_OUTPUT -o lo -j RETURN\nCOMMIT\n");
        let now =
            nat("*nat\n:OUTPUT ACCEPT [0:0]\n:PILLION_NEW - [0:0]\n:PILLION_OUTPUT - [0:0]\n\
             -A OUTPUT -j X\n-A OUTPUT -j Y\n-A OUTPUT -p tcp -j PILLION_OUTPUT\nCOMMIT\n");
        assert_eq!(
            before.return_from(&now),
            "*nat\n:PILLION_NEW - [0:0]\n:PILLION_OUTPUT - [0:0]\n\
             -D OUTPUT -p tcp -j PILLION_OUTPUT\n-A PILLION_OUTPUT -o lo -j RETURN\n\
             -I OUTPUT 2 -p tcp -j PILLION_OUTPUT\n-X PILLION_NEW\nCOMMIT\n"
        );
    }
}
