//! What the kernel lists of our tables: any bytes are tables, or malformed.

use std::sync::LazyLock;

use pillion_init::config::Config;
use pillion_init::netlink::{Change, EarlierChain, Tables, datagram};
use pillion_init::rules::{Family, RuleSet};

static RULES: LazyLock<[(Family, RuleSet); 2]> = LazyLock::new(|| {
    let config = Config::from_arguments(&[], &[]).expect("the defaults are good");
    Family::ALL.map(|family| (family, RuleSet::new(&config, family)))
});

const NEW_RULE: u16 = 0x0a06;
const DELETE_RULE: u16 = 0x0a08;
const DELETE_CHAIN: u16 = 0x0a05;

/// Reads an answer, and holds the transactions for the table that it is against it.
pub fn check(answer: &[u8]) {
    let answers = [answer.to_vec()];
    let _ = EarlierChain::find(&answers);
    for (family, rules) in &*RULES {
        let Ok(tables) = Tables::of(*family, &answers) else { continue };
        let snapshot = tables.snapshot();
        if let Some(ahead) = snapshot.ahead(rules, *family) {
            assert!(!ahead.rule.contains(char::is_control), "{:?}", ahead.rule);
        }
        let replace = datagram(&[Change::Replace(*family, rules)], std::slice::from_ref(&tables));
        let written = Written::of(&replace);
        assert_eq!(written.new_rules, rules.rules().len());
        written.check(answer);

        let remove = datagram(&[Change::Remove(*family)], &[tables]);
        let written = Written::of(&remove);
        assert_eq!(written.new_rules, 0);
        let ours = snapshot.has_ours();
        assert_eq!(written.chains.is_empty(), !ours);
        written.check(answer);
    }
}

/// A second reading of a datagram: no more than what deletes.
#[derive(Default)]
struct Written {
    new_rules: usize,
    chains: Vec<Vec<u8>>,
    handles: Vec<[u8; 8]>,
}

impl Written {
    fn of(mut datagram: &[u8]) -> Self {
        let mut written = Self::default();
        while let Some((header, _)) = datagram.split_first_chunk::<20>() {
            let [a, b, c, d, kind, of, ..] = *header;
            let length = u32::from_ne_bytes([a, b, c, d]) as usize;
            let attributes = attributes(&datagram[20..length]);
            let value = |kind| attributes.iter().find(|(it, _)| *it == kind).map(|(_, v)| *v);
            match u16::from_ne_bytes([kind, of]) {
                NEW_RULE => written.new_rules += 1,
                DELETE_RULE => match value(3) {
                    Some(handle) => written.handles.push(handle.try_into().expect("a handle")),
                    // All rules of a chain.
                    None => {
                        let chain = value(2).expect("a chain");
                        assert!(chain.starts_with(b"PILLION_"), "{chain:?} is not ours");
                    }
                },
                DELETE_CHAIN => written.chains.push(value(3).expect("a name").to_vec()),
                _ => {}
            }
            datagram = &datagram[length..];
        }
        assert!(datagram.is_empty(), "all of it is messages");
        written
    }

    /// What is deleted is ours, and was in the answer.
    fn check(&self, answer: &[u8]) {
        let has = |bytes: &[u8]| answer.windows(bytes.len()).any(|part| part == bytes);
        for chain in &self.chains {
            let name = chain.strip_suffix(&[0]).expect("a text ends with NUL");
            let name = str::from_utf8(name).expect("we write text");
            // What is no UTF-8 in the answer has been replaced.
            let stem = name.split('\u{fffd}').next().unwrap_or_default();
            assert!(name.starts_with("PILLION_") && has(stem.as_bytes()), "{name}");
        }
        assert!(self.handles.iter().all(|handle| has(handle)));
    }
}

fn attributes(mut bytes: &[u8]) -> Vec<(u16, &[u8])> {
    let mut found = Vec::new();
    while let [a, b, kind, flags, ..] = *bytes {
        let length = usize::from(u16::from_ne_bytes([a, b]));
        found.push((u16::from_ne_bytes([kind, flags]) & 0x3fff, &bytes[4..length]));
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    found
}
