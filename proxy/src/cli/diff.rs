//! `diff`: what another file would change.

use std::io::{self, Write};
use std::path::PathBuf;
use std::sync::Arc;

use clap::Args;
use pillion_certs::spiffe::TrustDomain;
use pillion_policy::Policy;
use pillion_policy::diff::{
    Change, Diff, Identities, MOST_CLASSES, Outcome, Ports, Setting, What, Who, diff,
};
use serde_json::{Value, json};

use super::{EXIT_BAD_FILE, EXIT_CHANGED, EXIT_OK, EXIT_USAGE, Output, UNKNOWN_DOMAIN, load};

/// Options of `diff`.
#[derive(Debug, Args)]
pub struct DiffArgs {
    /// The policy file as it is.
    old: PathBuf,
    /// The policy file as it would be.
    new: PathBuf,
    /// Our own trust domain; needed unless both files have trustDomains and neither has
    /// `namespace/service-account`.
    #[arg(long)]
    trust_domain: Option<TrustDomain>,
    /// Also connections that fare as before, by another rule or with another report, and two names
    /// where one of them alone has a line of that effect.
    #[arg(long)]
    all: bool,
    /// How to print what was found.
    #[arg(short, long, value_enum, default_value_t = Output::Text)]
    output: Output,
}

pub(super) fn run(args: &DiffArgs, out: &mut dyn Write, err: &mut dyn Write) -> io::Result<u8> {
    let mut both = Vec::new();
    let mut worst = EXIT_OK;
    // Errors of both files at once.
    for path in [&args.old, &args.new] {
        match load(path, args.trust_domain.as_ref(), err)? {
            Ok(policy) => both.push(policy),
            Err(code) => worst = worst.max(code),
        }
    }
    let [old, new] = &*both else { return Ok(worst) };
    let unknown = |policy: &Policy| policy.trust_domains().is_empty();
    if args.trust_domain.is_none() && (unknown(old) || unknown(new)) {
        writeln!(err, "{UNKNOWN_DOMAIN}")?;
        return Ok(EXIT_USAGE);
    }
    let found = match diff(old, new, MOST_CLASSES) {
        Ok(found) => found,
        Err(too_large) => {
            writeln!(
                err,
                "the two files divide connections into more than {} classes, and a part of them \
                 would be no answer; compare smaller files, or merge CIDRs and ports that belong \
                 together",
                too_large.limit
            )?;
            return Ok(EXIT_BAD_FILE);
        }
    };
    let (shown, hidden): (Vec<_>, Vec<_>) =
        found.changes.iter().partition(|change| args.all || !change.is_detail());
    let changed = !(shown.is_empty() && found.settings.is_empty());
    match args.output {
        Output::Json => writeln!(out, "{:#}", report(&found, &shown, hidden.len()))?,
        Output::Text => {
            for setting in &found.settings {
                writeln!(out, "{setting}")?;
            }
            for change in &shown {
                writeln!(out, "{change}")?;
            }
            if !changed {
                writeln!(out, "nothing changes")?;
            }
            if !hidden.is_empty() {
                writeln!(
                    out,
                    "{} more: the same verdict by another rule or with another report, or what two \
                     names share with one (--all)",
                    hidden.len()
                )?;
            }
        }
    }
    Ok(if changed { EXIT_CHANGED } else { EXIT_OK })
}

fn report(found: &Diff, shown: &[&Change], hidden: usize) -> Value {
    json!({
        "settings": found.settings.iter().map(setting).collect::<Vec<_>>(),
        "changes": shown.iter().map(|one| change(one)).collect::<Vec<_>>(),
        "hidden": hidden,
    })
}

fn setting(one: &Setting) -> Value {
    json!({
        "effect": one.effect.as_str(), "key": one.key, "ports": one.ports.as_ref().map(ports),
        "was": one.was, "now": one.now, "meaning": one.meaning,
    })
}

fn change(one: &Change) -> Value {
    let (what, servers) = match &one.what {
        What::Verdict => ("verdict", None),
        What::ServersGained(ids) => ("serversGained", Some(ids)),
        What::ServersLost(ids) => ("serversLost", Some(ids)),
        What::TunnelReuse => ("tunnelReuse", None),
    };
    let addresses: Vec<String> = one.addresses.iter().map(ToString::to_string).collect();
    json!({
        "effect": one.effect.as_str(),
        "what": what,
        "servers": servers.map(|ids| ids.iter().map(identities).collect::<Vec<_>>()),
        "direction": if one.inbound { "inbound" } else { "outbound" },
        "ports": ports(&one.ports),
        "addresses": addresses,
        "everyone": one.everyone,
        "who": one.who.iter().map(who).collect::<Vec<_>>(),
        "was": outcome(&one.was),
        "now": outcome(&one.now),
    })
}

fn ports(ports: &Ports) -> Value {
    match ports {
        Ports::Only(list) => json!({"only": list}),
        Ports::AllBut(list) => json!({"allBut": list}),
    }
}

fn identities(ids: &Identities) -> Value {
    let texts = |list: &[Arc<str>]| list.iter().map(ToString::to_string).collect();
    let (matching, but_not): (Vec<String>, Vec<String>) =
        (texts(&ids.matching), texts(&ids.but_not));
    json!({"matching": matching, "butNot": but_not})
}

fn who(who: &Who) -> Value {
    match who {
        Who::Plaintext => json!({"kind": "plaintext"}),
        Who::Probe(path) => json!({"kind": "probe", "path": path}),
        Who::Identities(ids) => json!({"kind": "identities", "identities": identities(ids)}),
        Who::Stranger => json!({"kind": "otherTrustDomain"}),
        Who::NoName => json!({"kind": "noName"}),
        Who::Name(name) => json!({"kind": "name", "name": &**name}),
        Who::Names(one, other) => {
            let texts =
                |list: &[Arc<str>]| list.iter().map(ToString::to_string).collect::<Vec<_>>();
            json!({"kind": "names", "names": [texts(one), texts(other)]})
        }
    }
}

fn outcome(one: &Outcome) -> Value {
    let reported = one.reported.as_ref().map(
        |(allow, rule)| json!({"verdict": if *allow { "allow" } else { "deny" }, "rule": &**rule}),
    );
    json!({"verdict": one.verdict, "rule": &*one.rule, "reported": reported})
}
