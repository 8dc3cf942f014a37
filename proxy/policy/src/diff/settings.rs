//! What a file says once, and not for each connection.

use std::collections::{BTreeMap, BTreeSet};

use pillion_certs::spiffe::TrustDomain;

use super::space::PortClasses;
use super::{Effect, Setting};
use crate::{AppAddress, Enforcement, Mode, Policy};

pub(super) fn changes(old: &Policy, new: &Policy) -> Vec<Setting> {
    let mut all: Vec<Setting> = modes(old, new);
    let (was, now) = (old.enforcement(), new.enforcement());
    if was != now {
        let audit = now == Enforcement::Audit;
        all.push(Setting {
            effect: if audit { Effect::Loosens } else { Effect::Tightens },
            key: "enforcement",
            ports: None,
            was: was.as_str().to_owned(),
            now: now.as_str().to_owned(),
            meaning: if audit { "denials are only reported" } else { "denials act" }.to_owned(),
        });
    }
    all.extend(domains(old, new));
    let address = |policy: &Policy| match policy.app_address() {
        AppAddress::PodIp => "podIP".to_owned(),
        AppAddress::Loopback => "127.0.0.1".to_owned(),
    };
    if old.app_address() != new.app_address() {
        all.push(Setting {
            effect: Effect::Changes,
            key: "inbound.appAddress",
            ports: None,
            was: address(old),
            now: address(new),
            meaning: "the application must listen there".to_owned(),
        });
    }
    all.sort();
    all
}

fn domains(old: &Policy, new: &Policy) -> Vec<Setting> {
    let list = |policy: &Policy| -> BTreeSet<TrustDomain> {
        policy.trust_domains().iter().cloned().collect()
    };
    let (was, now) = (list(old), list(new));
    let words = |set: &BTreeSet<TrustDomain>| {
        set.iter().map(TrustDomain::as_str).collect::<Vec<_>>().join(", ")
    };
    let setting = |effect, domain: &TrustDomain, meaning: &str| Setting {
        effect,
        key: "trustDomains",
        ports: None,
        was: words(&was),
        now: words(&now),
        meaning: format!("peers of {domain} are {meaning}"),
    };
    let gained = now.difference(&was).map(|d| setting(Effect::Loosens, d, "now accepted"));
    let lost = was.difference(&now).map(|d| setting(Effect::Tightens, d, "no longer accepted"));
    gained.chain(lost).collect()
}

fn modes(old: &Policy, new: &Policy) -> Vec<Setting> {
    let listed = [old, new].into_iter().flat_map(|policy| policy.inbound.ports.iter());
    let of = |port| (old.inbound_mode(port), new.inbound_mode(port));
    let said: BTreeMap<u16, (Mode, Mode)> = listed.map(|(port, _)| (*port, of(*port))).collect();
    let classes = PortClasses::new(said, (old.inbound.mtls, new.inbound.mtls)).classes;
    let changed = classes.into_iter().filter(|((was, now), _)| was != now);
    let setting = |((was, now), ports): ((Mode, Mode), _)| {
        let effect = Effect::of(was, now);
        let meaning = match (was, now) {
            (Mode::Strict, Mode::Permissive) => "plaintext is now accepted",
            (Mode::Strict, _) => {
                "TLS ends here no more: plaintext is accepted, nobody has an identity"
            }
            (_, Mode::Strict) => "plaintext is now refused",
            (_, Mode::Permissive) => "peers that offer mTLS are now identified",
            (_, Mode::Disable) => "TLS ends here no more: nobody has an identity",
        };
        Setting {
            effect,
            key: "mtls",
            ports: Some(ports),
            was: was.as_str().to_owned(),
            now: now.as_str().to_owned(),
            meaning: meaning.to_owned(),
        }
    };
    changed.map(setting).collect()
}
