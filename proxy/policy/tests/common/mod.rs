//! Random policy files, and a second reading of what they mean.
//!
//! Nothing here is the engine's: a file is what was written, its meaning plain loops over that,
//! and the crate is used by its public functions alone.
#![allow(dead_code, unreachable_pub, reason = "each test binary takes what it needs")]

pub mod random;
pub mod reference;
pub mod written;

use std::num::NonZero;
use std::sync::atomic::{AtomicU64, Ordering};

use std::collections::BTreeSet;

use fastrand::Rng;
use pillion_certs::spiffe::TrustDomain;
use pillion_policy::{Kind, Policy, load};
use written::File;

/// The trust domain that stands for our own.
pub const OWN: &str = "cluster.local";

/// How many pairs of a policy and a connection a test judges: a million, or `PILLION_TEST_PAIRS`,
/// which mutation tests set low.
#[expect(clippy::disallowed_methods, reason = "how long a test runs is no setting of the proxy")]
pub fn pairs() -> u64 {
    match std::env::var("PILLION_TEST_PAIRS") {
        Ok(text) => text.parse().unwrap_or_else(|_| panic!("PILLION_TEST_PAIRS={text}: a number")),
        Err(_) => 1_000_000,
    }
}

/// Runs `one` for each seed below `count` on every CPU, and gives the sum of what it returns. A
/// failure names its seed, and is the same when that seed is run alone.
pub fn for_each_seed(count: u64, one: impl Fn(u64, &mut Rng) -> u64 + Sync) -> u64 {
    let threads = std::thread::available_parallelism().map_or(1, NonZero::get) as u64;
    let (next, sum) = (AtomicU64::new(0), AtomicU64::new(0));
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= count {
                        break;
                    }
                    sum.fetch_add(one(seed, &mut Rng::with_seed(seed)), Ordering::Relaxed);
                }
            });
        }
    });
    sum.into_inner()
}

/// A policy, and what it was made of.
pub struct Loaded {
    /// Without the rules that decide nothing.
    pub file: File,
    pub text: String,
    pub policy: Policy,
    /// The names of the rules, then of the destinations, that decide nothing.
    pub dead: [BTreeSet<String>; 2],
}

/// Loads a file without those of its rules that the check refuses.
pub fn loaded(mut file: File, own: Option<&TrustDomain>, place: &str) -> Loaded {
    let mut dead = [BTreeSet::new(), BTreeSet::new()];
    loop {
        let text = file.text();
        let errors = match load("t", &text, own) {
            Ok(compiled) => return Loaded { file, text, policy: compiled.policy, dead },
            Err(errors) => errors,
        };
        for error in errors.as_slice() {
            assert_eq!(error.kind, Kind::UnreachableRule, "{place}: {error}\n{text}");
            let name = error.message.split('"').nth(1).unwrap().to_owned();
            dead[usize::from(name.starts_with('d'))].insert(name);
        }
        file.rules.retain(|rule| !dead[0].contains(&rule.name));
        file.destinations.retain(|one| !dead[1].contains(&one.name));
    }
}
