//! A connection told by the admin endpoint and read back is judged as the one that is open.

use pillion_certs::spiffe::TrustDomain;
use pillion_policy::{NoHosts, load};
use serde_json::json;

use super::*;

const OWN: &str = "cluster.local";
const CART: &str = "spiffe://cluster.local/ns/shop/sa/cart";

fn policy(head: &str, inbound: &str, outbound: &str) -> Policy {
    let text = format!(
        "apiVersion: pillion/v1alpha1\nkind: SidecarPolicy\nmetadata: {{name: t}}\n{head}\
         inbound: {{{inbound}}}\noutbound: {{{outbound}}}\n"
    );
    let own: TrustDomain = OWN.parse().unwrap();
    load("t", &text, Some(&own)).unwrap_or_else(|e| panic!("{e}\n{text}")).policy
}

/// Policies between which something of every stage changes.
fn policies() -> Vec<Policy> {
    let allow = "rules: [{name: cart, action: allow, from: [{identities: [shop/cart]}]}]";
    let deny = "rules: [{name: net, action: deny, from: [{ipBlocks: [10.1.0.0/16]}]}]";
    let to = |action: &str, server: &str| {
        format!(
            "defaultAction: passthrough, destinations: [{{name: d, hosts: [db.example], \
             ipBlocks: [10.2.0.0/16], action: {action}{server}}}]"
        )
    };
    let pass = "defaultAction: passthrough";
    vec![
        policy("", &format!("mtls: strict, defaultAction: deny, {allow}"), pass),
        policy("", &format!("mtls: permissive, defaultAction: allow, {deny}"), pass),
        policy(
            "",
            "mtls: strict, defaultAction: deny, probes: [{port: 80, path: /ready}]",
            &to("deny", ""),
        ),
        policy(
            "",
            "mtls: disable, defaultAction: allow",
            &to("mtls", ", serverIdentities: [shop/db]"),
        ),
        policy(
            "trustDomains: [partner.example]\n",
            "mtls: strict, defaultAction: allow",
            &to("passthrough", ""),
        ),
        policy("", "mtls: strict, defaultAction: deny", "defaultAction: deny"),
    ]
}

fn told(item: &Value) -> Told {
    Told::from_json(item).unwrap_or_else(|e| panic!("{e}: {item}"))
}

/// Every stage, way, protection, peer and name, each with each.
fn all() -> Vec<Told> {
    let mut all = Vec::new();
    for (stage, probe) in
        [("opening", None), ("allowed", None), ("exempt", None), ("probe", Some("/ready"))]
    {
        for tls in [None, Some("mtls"), Some("plaintext"), Some("passthrough")] {
            for peer in [None, Some(CART), Some("spiffe://partner.example/x")] {
                for (source, destination) in
                    [("10.1.0.1:4000", Some("10.2.0.1:80")), ("10.9.0.1:1", None)]
                {
                    for (direction, names) in [
                        ("inbound", json!([])),
                        ("outbound", json!([])),
                        ("outbound", json!(["db.example"])),
                    ] {
                        all.push(told(&json!({
                            "direction": direction, "source": source, "destination": destination,
                            "stage": stage, "probe": probe, "tls": tls, "peer": peer,
                            "names": names,
                        })));
                    }
                }
            }
        }
    }
    all
}

#[test]
fn what_is_told_is_judged_as_what_is_open() {
    let mut rules = std::collections::BTreeSet::new();
    for one in all() {
        // As `Conn` tells it, and back.
        let again = told(&json!({
            "direction": one.direction.label(), "source": one.source,
            "destination": one.destination, "names": one.names.iter().map(|n| &**n).collect::<Vec<_>>(),
            "peer": one.peer.as_ref().map(SpiffeId::as_str), "tls": one.tls.map(Tls::label),
            "stage": one.stage.label(),
            "probe": match &one.stage { Stage::Probe(path) => Some(path), _ => None },
        }));
        assert_eq!(again, one);
        for policy in policies() {
            let live = one.facts().denied_by(&policy, &NoHosts);
            assert_eq!(again.facts().denied_by(&policy, &NoHosts), live);
            rules.extend(live);
        }
    }
    let rules: Vec<_> = rules.iter().map(|rule| &**rule).collect();
    assert_eq!(
        rules,
        ["d", "default", "mtls", "net", "probes", "trustDomains"],
        "all that can end one"
    );
}

/// Stage by stage: what a tightened policy ends, and by which name.
#[test]
fn each_stage_is_judged_by_what_it_asks() {
    let item = |direction: &str, stage: &str, tls: Option<&str>, peer: Option<&str>| {
        json!({
            "direction": direction, "source": "10.1.0.1:4000", "destination": "10.2.0.1:80",
            "stage": stage, "probe": (stage == "probe").then_some("/ready"), "tls": tls,
            "peer": peer, "names": [],
        })
    };
    let [strict, permissive, listed, mtls, partner, closed] = &*policies() else { panic!("six") };
    let plain = &policy(
        "",
        "mtls: disable, defaultAction: deny, probes: [{port: 80, path: /ready}]",
        "defaultAction: passthrough",
    );
    for (item, policy, rule) in [
        (item("inbound", "exempt", None, None), closed, None),
        (item("inbound", "opening", None, None), strict, None),
        (item("inbound", "opening", None, None), permissive, Some("net")),
        (item("inbound", "opening", None, None), closed, Some("default")),
        (item("inbound", "allowed", Some("mtls"), Some(CART)), strict, None),
        (item("inbound", "allowed", Some("plaintext"), None), strict, Some("mtls")),
        (item("inbound", "allowed", Some("plaintext"), None), mtls, None),
        (item("inbound", "allowed", Some("mtls"), Some(CART)), partner, Some("trustDomains")),
        (item("inbound", "allowed", Some("mtls"), Some(CART)), closed, Some("default")),
        (item("inbound", "probe", Some("plaintext"), None), listed, None),
        (item("inbound", "probe", Some("plaintext"), None), strict, Some("probes")),
        // Nothing there asks for TLS any more, so it is a request as any other.
        (item("inbound", "probe", Some("plaintext"), None), mtls, None),
        (item("inbound", "probe", Some("plaintext"), None), plain, Some("default")),
        (item("outbound", "opening", None, None), strict, None),
        (item("outbound", "opening", None, None), listed, Some("d")),
        (item("outbound", "opening", None, None), mtls, None),
        (item("outbound", "opening", None, None), closed, None),
        (item("outbound", "allowed", Some("passthrough"), None), strict, None),
        (item("outbound", "allowed", Some("passthrough"), None), listed, Some("d")),
        (item("outbound", "allowed", Some("passthrough"), None), mtls, Some("d")),
        (
            item("outbound", "allowed", Some("mtls"), Some("spiffe://cluster.local/ns/shop/sa/db")),
            mtls,
            None,
        ),
        (item("outbound", "allowed", Some("mtls"), Some(CART)), mtls, Some("d")),
        (item("outbound", "allowed", Some("mtls"), Some(CART)), strict, None),
        (item("outbound", "allowed", Some("mtls"), Some(CART)), partner, Some("trustDomains")),
        (item("outbound", "allowed", Some("passthrough"), None), closed, Some("default")),
        (item("outbound", "exempt", Some("passthrough"), None), closed, None),
    ] {
        let got = told(&item).facts().denied_by(policy, &NoHosts);
        assert_eq!(got.as_deref(), rule, "{item}");
    }
}

#[test]
fn a_mapped_address_is_the_ipv4_one() {
    let item = json!({
        "direction": "inbound", "source": "[::ffff:10.1.0.1]:4000",
        "destination": "[::ffff:10.2.0.1]:80", "stage": "opening", "probe": null, "tls": null,
        "peer": null, "names": [],
    });
    let told = told(&item);
    assert_eq!(told.source, "10.1.0.1:4000".parse().unwrap());
    assert_eq!(told.destination, Some("10.2.0.1:80".parse().unwrap()));
    let rule = told.facts().denied_by(&policies()[1], &NoHosts);
    assert_eq!(rule.as_deref(), Some("net"));
}

#[test]
fn an_item_that_says_too_little_is_an_error_and_never_stays() {
    let good = json!({
        "direction": "inbound", "source": "10.0.0.1:1", "destination": null, "stage": "opening",
        "probe": null, "tls": null, "peer": null, "names": [],
    });
    assert!(Told::from_json(&good).is_ok());
    for field in ["direction", "source", "destination", "stage", "tls", "peer", "names"] {
        for bad in [None, Some(json!("x")), Some(json!(7))] {
            let mut item = good.clone();
            match bad {
                None => drop(item.as_object_mut().unwrap().remove(field)),
                Some(value) => item[field] = value,
            }
            let error = Told::from_json(&item).expect_err(&item.to_string());
            assert!(error.starts_with(field), "{error}");
        }
    }
    let probe = json!({"stage": "probe"});
    assert!(Told::from_json(&probe).unwrap_err().starts_with("probe"), "a probe has a path");
}
