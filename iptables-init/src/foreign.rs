//! Rules of others, as far as this program has to understand them: may one take a TCP connection
//! before our rules see it? Pure. What is not understood counts as one that may.

use std::collections::BTreeSet;

use ipnet::IpNet;

use crate::rules::{Family, loopback};

/// Targets after which the kernel goes on with the next rule (iptables-extensions(8)).
const GOES_ON: &[&str] =
    &["LOG", "NFLOG", "ULOG", "MARK", "CONNMARK", "SET", "TRACE", "AUDIT", "SECMARK", "LED"];

/// What follows the chain in a line of `*-save`, word by word, without quotes.
#[derive(Debug)]
pub(crate) struct Words(Vec<String>);

impl Words {
    /// Takes a line apart. A text with blanks in it, such as a comment, stands in double quotes,
    /// with a backslash before each quote and backslash of its own.
    pub(crate) fn of(body: &str) -> Self {
        let mut words = vec![String::new()];
        let (mut quoted, mut escaped) = (false, false);
        for c in body.chars() {
            match c {
                _ if escaped => escaped = false,
                '\\' if quoted => {
                    escaped = true;
                    continue;
                }
                '"' => {
                    quoted = !quoted;
                    continue;
                }
                ' ' if !quoted => {
                    words.push(String::new());
                    continue;
                }
                _ => {}
            }
            if let Some(word) = words.last_mut() {
                word.push(c);
            }
        }
        Self(words)
    }

    /// Where the rule leads.
    pub(crate) fn target(&self) -> Option<&str> {
        self.jump().map(|(_, target)| target)
    }

    /// `-j` or `-g`, and where it leads.
    fn jump(&self) -> Option<(&str, &str)> {
        let mut words = self.0.iter().map(String::as_str);
        let verb = words.find(|word| matches!(*word, "-j" | "-g"))?;
        Some((verb, words.next().unwrap_or_default()))
    }

    /// A match of the kernel's own and whether it is negated. These come first, before the
    /// matches of modules, whose values may be any text.
    fn own_match(&self, name: &str) -> Option<(bool, &str)> {
        let mut words = self.0.iter().map(String::as_str);
        let mut not = false;
        loop {
            match words.next()? {
                "!" => not = true,
                flag @ ("-s" | "-d" | "-i" | "-o" | "-p") => {
                    let value = words.next()?;
                    if flag == name {
                        return Some((not, value));
                    }
                    not = false;
                }
                _ => return None,
            }
        }
    }

    fn can_match_tcp(&self) -> bool {
        match self.own_match("-p") {
            None => true,
            Some((not, protocol)) => matches!(protocol, "tcp" | "6" | "all" | "0") != not,
        }
    }

    /// True when it matches nothing but destinations in loopback, which are the app's own business
    /// and never captured.
    pub(crate) fn is_to_loopback(&self, family: Family) -> bool {
        let destination = self.own_match("-d").filter(|(not, _)| !not);
        destination
            .and_then(|(_, net)| net.parse::<IpNet>().ok())
            .is_some_and(|net| loopback(family).contains(&net))
    }
}

/// Whether a connection over TCP may end its walk through a hook's chain at this rule, so that no
/// later rule sees it. `chain` gives the rules of a chain, and `None` for any other target.
pub(crate) fn can_end_the_walk(rule: &Words, chain: &dyn Fn(&str) -> Option<Vec<Words>>) -> bool {
    ends(rule, chain, &mut BTreeSet::new())
}

/// Looks into each chain once: one that can end the walk settles it, and one that cannot does not
/// anywhere else either.
fn ends(
    rule: &Words,
    chain: &dyn Fn(&str) -> Option<Vec<Words>>,
    seen: &mut BTreeSet<String>,
) -> bool {
    rule.can_match_tcp()
        && match rule.jump() {
            None => false,
            // nft makes chains of any name.
            Some(("-j", target)) => match chain(target) {
                None => !GOES_ON.contains(&target),
                // In a called chain, RETURN only leads back.
                Some(rules) => {
                    seen.insert(target.to_owned())
                        && rules.iter().any(|inner| {
                            !matches!(inner.jump(), Some(("-j", "RETURN")))
                                && ends(inner, chain, seen)
                        })
                }
            },
            Some(_) => true,
        }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn judged(rule: &str) -> bool {
        let chain = |name: &str| -> Option<Vec<Words>> {
            let rules: &[&str] = match name {
                "EMPTY" => &[],
                "BACK" => {
                    &["-p tcp -j LOG", "-j RETURN", "-p udp -j DNAT --to-destination 1.1.1.1"]
                }
                "DEEP" => &["-j BACK", "-p tcp -j DNAT --to-destination 1.1.1.1"],
                "GOTO" => &["-g BACK"],
                "LED" => &["-j DNAT --to-destination 1.1.1.1"],
                // The kernel has none of these.
                "LOOP" => &["-j LOOP", "-j LOOP"],
                "LATE" => &["-j LOOP", "-j BACK", "-j LATE", "-j DEEP"],
                _ => return None,
            };
            Some(rules.iter().map(|rule| Words::of(rule)).collect())
        };
        can_end_the_walk(&Words::of(rule), &chain)
    }

    #[test]
    fn what_is_not_known_to_go_on_ends_the_walk() {
        for rule in [
            "-j ACCEPT",
            "-j RETURN",
            "-j UNHEARD_OF",
            "-p tcp -m tcp --dport 80 -j REDIRECT --to-ports 1",
            "-p 6 -j ACCEPT",
            "! -p udp -j ACCEPT",
            "-s 10.0.0.0/8 ! -i eth0 -j DROP",
            "-j DEEP",
            "-j GOTO",
            "-g BACK",
            "-j LATE",
            "-j LED",
            // Text of a module is no protocol and no target.
            "-m comment --comment -p -j ACCEPT",
            "-m comment --comment \"-p udp -j LOG\" -j ACCEPT",
            "-m comment --comment -j -j ACCEPT",
        ] {
            assert!(judged(rule), "{rule}");
        }
        for rule in [
            "-m comment --comment counted",
            "-p tcp -j LOG --log-prefix \"-j ACCEPT\"",
            "-j MARK --set-xmark 0x3/0xffffffff",
            "-p udp -j ACCEPT",
            "! -p tcp -j ACCEPT",
            "-d 10.0.0.1/32 -p icmp -j DNAT --to-destination 1.1.1.1",
            "-j EMPTY",
            "-j BACK",
            "-j LOOP",
        ] {
            assert!(!judged(rule), "{rule}");
        }
    }

    #[test]
    fn only_a_range_within_loopback_is_loopback() {
        let is = |rule: &str, family| Words::of(rule).is_to_loopback(family);
        assert!(is("-d 127.0.0.11/32 -j X", Family::V4) && is("-d ::1/128 -j X", Family::V6));
        for rule in
            ["! -d 127.0.0.11/32 -j X", "-d 126.0.0.0/7 -j X", "-s 127.0.0.1/32 -j X", "-j X"]
        {
            assert!(!is(rule, Family::V4), "{rule}");
        }
        assert!(!is("-d ::/96 -j X", Family::V6));
    }
}
